//nolint:forbidigo // sleeps inside synctest bubbles only
package simulate_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/kube"
	"github.com/leasehold-csi/leasehold/internal/pods"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
	"github.com/leasehold-csi/leasehold/internal/vault"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
	"github.com/leasehold-csi/leasehold/provider"
)

const (
	nodeName = "node-a"
	// lives is how many pods one world has.
	lives = 8
)

// world is one node with its pods, Vault, API server, kubelet and driver, on the virtual time of one bubble. Only this file knows
// the product: how a process of it is started and called.
type world struct {
	t     testing.TB
	seed  uint64
	dice  *dice
	begin time.Time
	dir   string // of kubelet and the store
	vault *vaulttest.Vault
	api   *fake.Clientset
	net   *apiWeather
	pods  []*pod
	log   *tape

	background sync.WaitGroup
	over       chan struct{}
	overOnce   sync.Once

	mu      sync.Mutex
	process *process
	quiet   bool              // no more faults
	tokens  map[string]string // to the pod's name
	// accessors of tokens, and since when the back end is down.
	accessors   map[string]string
	heard       map[string]bool // leases whose reply arrived
	vague       map[string]bool // leases that were renewed without the reply's arriving: the provider knows an earlier end
	gaveBack    map[string]bool // accessors of tokens that were revoked by the provider
	backEndDown time.Time
	lost        map[string]bool      // accessors of tokens that nobody can know
	born        map[string]time.Time // accessor to when it was given out
	pairs       map[string]string    // user to password, as Vault gave them out
	issued      map[string]string    // user to lease
	revoked     map[string]bool      // users whose credentials somebody else revoked

	certificates map[string]*certificate // by serial number

	leases map[string]time.Time
	count  map[string]int
	lines  []string
	broken map[string]bool // invariant and pod
	// awayUntil is until when an outage, and the time to recover from it, excuse a lapse.
	awayUntil time.Time
	// step is how far kubelet's and the API server's clocks are off: the bubble has but one, and what counts is that they differ
	// from that of the provider.
	step time.Duration
	// kubeletBack is closed when kubelet is back; nil while it is there.
	kubeletBack chan struct{}
	// shakyUntil is until when a short outage may have delayed the news that a maximum was reached, so that one republish is left.
	shakyUntil time.Time
}

func newWorld(t testing.TB, seed uint64, dir string) *world {
	w := &world{
		t: t, seed: seed, dice: newDice(seed), begin: time.Now(), dir: dir, vault: vaulttest.New(t), log: new(tape), over: make(chan struct{}),
		tokens: map[string]string{}, accessors: map[string]string{}, heard: map[string]bool{}, vague: map[string]bool{}, gaveBack: map[string]bool{}, lost: map[string]bool{}, born: map[string]time.Time{}, pairs: map[string]string{}, issued: map[string]string{}, revoked: map[string]bool{},
		certificates: map[string]*certificate{}, leases: map[string]time.Time{}, count: map[string]int{}, broken: map[string]bool{},
	}
	w.net = newAPI(w)
	w.api = w.net.client
	for i := range lives {
		w.pods = append(w.pods, newPod(w, i))
	}
	return w
}

func (w *world) now() grant.Instant { return grant.Instant(time.Hour + time.Since(w.begin)) }

func (w *world) kubeNow() metav1.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return metav1.NewTime(time.Now().Add(w.step))
}

func (w *world) stepClock(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.step += d
	w.sayLocked("the clocks step by %s", d)
}

func (w *world) calm() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.quiet
}

// say adds a line to the timeline.
func (w *world) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sayLocked(format, args...)
}

func (w *world) sayLocked(format string, args ...any) {
	w.lines = append(w.lines, fmt.Sprintf("%8s  %s", time.Since(w.begin).Truncate(time.Millisecond), fmt.Sprintf(format, args...)))
}

// happened counts a fault.
func (w *world) happened(kind, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count[kind]++
	w.sayLocked("FAULT %s: %s", kind, fmt.Sprintf(format, args...))
}

func (w *world) add(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count[what]++
}

// violated notes that an invariant does not hold for a pod: once for each.
func (w *world) violated(invariant, pod, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violatedLocked(invariant, pod, format, args...)
}

func (w *world) violatedLocked(invariant, pod, format string, args ...any) {
	if key := invariant + " " + pod; !w.broken[key] {
		w.broken[key] = true
		w.sayLocked("VIOLATION %s: %s %s", invariant, pod, fmt.Sprintf(format, args...))
	}
}

// play lives all pods' lives to their end, and then some.
func (w *world) play() {
	if err := os.MkdirAll(w.dir+"/pods", 0o755); err != nil {
		w.t.Fatal(err)
	}
	var pods, others sync.WaitGroup
	for _, job := range []func(){w.supervise, w.watch, w.weather, w.net.kubeletBeats} {
		others.Go(job)
	}
	for _, p := range w.pods {
		pods.Go(p.live)
	}
	pods.Wait()
	w.mu.Lock()
	w.quiet = true
	w.mu.Unlock()
	w.say("every pod is over")
	time.Sleep(settle)
	w.last()
	w.overOnce.Do(func() { close(w.over) })
	others.Wait()
	w.background.Wait()
}

// tape is everything that the product says.
type tape struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (t *tape) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Write(p)
}

func (t *tape) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

// process is one run of the provider.
type process struct {
	w       *world
	keeper  *keeper.Keeper
	service *provider.Service
	store   *store.Store
	died    chan struct{}
	once    sync.Once
	stop    context.CancelFunc
	ended   sync.WaitGroup
}

func (p *process) dead() bool {
	select {
	case <-p.died:
		return true
	default:
		return false
	}
}

// start runs a process on what the one before left.
func (w *world) start() *process {
	p := &process{w: w, died: make(chan struct{})}
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	p.store, err = store.Open(context.Background(), store.Config{Dir: w.stateDir(), AllowDisk: true, Now: w.now})
	if err != nil {
		w.t.Fatalf("opening the store: %v", err)
	}
	cluster := kube.New(kube.Config{Client: w.api, Node: nodeName, Log: log})
	judge := pods.New(pods.Config{Cluster: cluster, KubeletDir: w.dir, Now: w.now, Log: log})
	event := func(pod spec.Pod, eventtype, reason, message string) {
		if !p.dead() {
			w.event(pod.Name, eventtype, reason, message)
		}
	}
	ended := func(ctx context.Context, g grant.Grant) grant.Verdict { // a look takes a while, in which kubelet may do something
		time.Sleep(w.dice.between(g.Pod.Name, "look", time.Millisecond, 60*time.Millisecond))
		return judge.Ended(ctx, g)
	}
	p.keeper, err = keeper.New(keeper.Config{
		Store: p.store, Vaults: &vault.Pool{RoundTripper: &wire{w, p}}, Ended: ended, Event: event, Now: w.now, Log: log,
		SubPath: cluster.SubPath, OrphanTTL: orphanTTL,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	cluster.OnPod(p.keeper.Wake)
	cluster.OnSynced(p.keeper.WakeAll)
	p.service = provider.New(provider.Config{
		Keeper: p.keeper, VersionKey: p.store.VersionKey, Version: "sim", Defaults: spec.Defaults{Server: spec.Server{Address: w.vault.URL}},
	})
	if err := p.keeper.Resume(); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	p.ended.Go(func() { _ = cluster.Run(ctx) })
	p.ended.Go(func() { _ = p.keeper.Run(ctx) })
	w.mu.Lock()
	w.process = p
	w.mu.Unlock()
	return p
}

func (w *world) stateDir() string { return filepath.Join(w.dir, "state") }

// kill ends the process as SIGKILL does: nothing of it has an effect any more.
func (p *process) kill() {
	p.once.Do(func() {
		close(p.died)
		p.w.mu.Lock()
		p.w.process = nil
		p.w.count["kills"]++
		p.w.sayLocked("the provider is killed")
		for accessor, at := range p.w.born {
			if at.Equal(time.Now()) { // the kill came between the reply and its record
				p.w.lost[accessor] = true
			}
		}
		for _, c := range p.w.certificates {
			c.lost = c.lost || c.born.Equal(time.Now())
		}
		p.w.mu.Unlock()
		p.stop()
		_ = p.store.Close()
	})
}

// leave ends the process as SIGTERM does.
func (p *process) leave() {
	p.keeper.Leave()
	_ = p.keeper.Drain(context.Background())
	p.once.Do(func() {
		close(p.died)
		p.w.mu.Lock()
		p.w.process = nil
		p.w.sayLocked("the provider leaves")
		p.w.mu.Unlock()
		p.stop()
		p.ended.Wait()
		_ = p.store.Close()
	})
}

// supervise restarts the provider whenever it died, and ends it with the world.
func (w *world) supervise() {
	for ordinal := 0; ; ordinal++ {
		p := w.start()
		w.say("the provider is up")
		select {
		case <-p.died:
			p.ended.Wait()
			_ = p.store.Close()
			time.Sleep(w.dice.between("node", "restart", time.Second, 40*time.Second))
		case <-w.over:
			p.leave()
			return
		}
	}
}

// mount is the driver's call: of whichever process is up, waiting for one as gRPC's waitForReady does.
func (w *world) mount(ctx context.Context, in *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
	for {
		w.mu.Lock()
		p := w.process
		w.mu.Unlock()
		if p != nil {
			return p.mount(ctx, in)
		}
		select {
		case <-ctx.Done():
			return nil, status.Error(codes.DeadlineExceeded, "no provider")
		case <-time.After(time.Second):
		}
	}
}

func (p *process) mount(ctx context.Context, in *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
	type result struct {
		out *v1alpha1.MountResponse
		err error
	}
	came := make(chan result, 1)
	p.w.background.Go(func() {
		out, err := p.service.Mount(ctx, in)
		came <- result{out, err}
	})
	select {
	case r := <-came:
		if p.dead() {
			return nil, status.Error(codes.Unavailable, "connection cut")
		}
		if r.err != nil {
			_, _ = fmt.Fprintln(p.w.log, r.err)
		}
		return r.out, r.err
	case <-p.died:
		return nil, status.Error(codes.Unavailable, "connection cut")
	case <-ctx.Done():
		return nil, status.Error(codes.DeadlineExceeded, "no answer")
	}
}

// event takes what the provider tells a pod's owners.
func (w *world) event(name, eventtype, reason, message string) {
	_, _ = fmt.Fprintln(w.log, eventtype, reason, message)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count["event "+reason]++
	w.sayLocked("event on %s: %s %s", name, reason, message)
	for _, p := range w.pods {
		if p.name == name {
			p.events = append(p.events, reason)
			p.failed = p.failed || reason == "RefreshFailed"
		}
	}
}

// loseStore takes the store away, as a reboot does that keeps the pods' UIDs. All that was granted is known to nobody.
func (w *world) loseStore() {
	_ = os.RemoveAll(w.stateDir())
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.vault.Tokens() {
		w.lost[t.Accessor] = true
	}
	for _, c := range w.certificates {
		c.lost = true
	}
	for _, p := range w.pods {
		p.renewed, p.reissue = true, true
	}
}
