//go:build e2e

package e2e_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	authenticationv1 "k8s.io/api/authentication/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
)

const (
	chaosTTL, chaosMaxTTL = time.Minute, 3 * time.Minute
	// A short outage is at most a third of the shortest TTL: renewals bridge it, so nothing may lapse.
	shortOutage = chaosTTL / 3
	longOutage  = 100 * time.Second
	// rest is what lies between two outages: the renewals that the one held up must come before the next.
	rest = chaosTTL / 2
	// recovery is what two republishes may take after an outage, on a slow machine: then every volume shows working credentials.
	recovery      = 4 * time.Minute
	kubeletPods   = 20
	harnessPods   = 200
	mountEvery    = 12 * time.Second // kubelet's pace here, with its sync period of 10 s
	probesASecond = 10
	convergence   = 15 * time.Minute
)

// TestChaos stops and kills parts for CHAOS_TIME under pods that use their credentials all the time, and then wants nothing left.
func TestChaos(t *testing.T) {
	length, err := time.ParseDuration(cmp.Or(os.Getenv("CHAOS_TIME"), "3m"))
	if err != nil {
		t.Fatalf("CHAOS_TIME: %v", err)
	}
	seed, _ := strconv.ParseUint(os.Getenv("CHAOS_SEED"), 10, 64)
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1e9
	}
	s := start(t)
	if !s.hasKubelet() {
		t.Fatal("chaos needs the full bed: BED=full")
	}
	c := &chaos{place: s.newPlace(t, "chaos"), seed: seed, counts: map[string]int{}, bad: map[string]bool{}}
	c.makeRole(c.role, map[string]any{"default_ttl": chaosTTL.String(), "max_ttl": chaosMaxTTL.String()})
	c.databaseClass()
	fmt.Printf("chaos: seed %d, %s, %d pods of kubelet's and %d of the harness's\n", seed, length, kubeletPods, harnessPods)
	c.populate()
	// The maximum TTL of a kind is learned from the first of it that reaches it; until then an outage just before the cut takes the
	// room of the replacement away.
	wait(t.Context(), chaosMaxTTL)
	c.everybodyWorks("after a whole life undisturbed")
	end := time.Now().Add(length)
	for round := 0; time.Now().Before(end) && !t.Failed(); round++ {
		c.round(round)
	}
	c.finish()
	for _, what := range slices.Sorted(maps.Keys(c.counts)) {
		fmt.Printf("  %-40s %7d\n", what, c.counts[what])
	}
	t.Run("no secret was told", s.noSecretWasTold)
}

type chaos struct {
	*place
	seed     uint64
	provider v1alpha1.CSIDriverProviderClient
	stop     context.CancelFunc
	working  sync.WaitGroup

	mu     sync.Mutex
	counts map[string]int
	// disturbed: an outage that outlasts a credential's life is under way, or volumes recover from it.
	disturbed bool
	lapsed    map[*guest]bool // in the outage under way
	guests    []*guest
	apps      []*corev1.Pod
	bad       map[string]bool // what was reported of logs, once
	next      int
}

// guest is a pod without kubelet: the harness mounts for it, as the driver does.
type guest struct {
	pod   *corev1.Pod
	jwt   string
	mu    sync.Mutex
	files map[string]string
	gone  bool
}

func (c *chaos) pick(round int, what string, n int) int {
	h := fnv.New64a()
	_ = binary.Write(h, binary.BigEndian, [2]uint64{c.seed, uint64(round)})
	_, _ = h.Write([]byte(what))
	return int((h.Sum64() >> 8) % uint64(n))
}

func (c *chaos) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[what]++
}

func (c *chaos) populate() {
	connection, err := grpc.NewClient("unix:"+c.endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = connection.Close() })
	c.provider = v1alpha1.NewCSIDriverProviderClient(connection)
	for i := range kubeletPods {
		c.apps = append(c.apps, c.app(i))
	}
	for _, pod := range c.apps {
		c.awaitRunning(pod)
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	c.stop = cancel
	for range harnessPods {
		g := c.newGuest()
		c.guests = append(c.guests, g)
		c.working.Go(func() { c.republish(ctx, g) })
	}
	c.everybodyWorks("at the beginning")
	c.working.Go(func() { c.probe(ctx) })
}

func (c *chaos) app(i int) *corev1.Pod {
	pod := newPod(fmt.Sprintf("app-%d-%d", i, c.next), "db")
	c.next++
	pod.Spec.TerminationGracePeriodSeconds = new(int64(2))
	c.logInAlways(pod)
	pod.Spec.Containers[0].Args[slices.Index(pod.Spec.Containers[0].Args, "--probe-every")+1] = "1s"
	return c.create(pod)
}

func (c *chaos) newGuest() *guest {
	ctx := c.t.Context()
	c.mu.Lock()
	c.next++
	name := fmt.Sprintf("guest-%d", c.next)
	c.mu.Unlock()
	pod := newPod(name, "db")
	pod.Spec.SchedulerName = "none" // it stays Pending: nobody runs it
	pod.Spec.NodeSelector = map[string]string{"runs": "guests"}
	pod = c.create(pod)
	request, err := c.bed.Client().CoreV1().ServiceAccounts(c.ns).CreateToken(ctx, "my-app", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences: []string{"vault"}, ExpirationSeconds: new(int64(8 * 3600)),
			BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: name, UID: pod.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return &guest{pod: pod, jwt: request.Status.Token}
}

// leave ends a guest. It is bound, though kubelet may not run it, so that the provider's watch tells of its end as of any other pod's:
// for ends that nobody announces in such numbers the breaker waits ten minutes. Kubelet fails it. Its object stays, as a Job's does:
// the provider may not have looked at it yet, and of a pod that it never saw it waits for proof for a day.
func (c *chaos) leave(g *guest) {
	ctx, name := c.t.Context(), g.pod.Name
	node := corev1.ObjectReference{Kind: "Node", Name: c.bed.State().Node}
	err := c.pods().Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: name}, Target: node}, metav1.CreateOptions{})
	if err == nil {
		err = c.poll(ctx, time.Second, func(ctx context.Context) error {
			now, err := c.pods().Get(ctx, name, metav1.GetOptions{})
			if err == nil && now.Status.Phase != corev1.PodFailed {
				err = errors.New("kubelet has not refused " + name)
			}
			return err
		})
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gone = true
	if err := errors.Join(err, os.RemoveAll(c.volumeFolder(g.pod, volume))); err != nil {
		c.t.Error(err)
	}
}

// leaveAll ends guests together.
func (c *chaos) leaveAll(guests []*guest) {
	var leaving sync.WaitGroup
	for _, g := range guests {
		leaving.Go(func() { c.leave(g) })
	}
	leaving.Wait()
}

// republish mounts for a guest at the driver's pace until it is gone.
func (c *chaos) republish(ctx context.Context, g *guest) {
	for ctx.Err() == nil {
		g.mu.Lock()
		gone := g.gone
		if !gone {
			c.makeFolder(g.pod)
		}
		g.mu.Unlock()
		if gone {
			return
		}
		c.mount(ctx, g)
		select {
		case <-ctx.Done():
		case <-time.After(mountEvery):
		}
	}
}

func (c *chaos) mount(ctx context.Context, g *guest) {
	tokens, _ := json.Marshal(map[string]any{"vault": map[string]string{"token": g.jwt}})
	attributes, _ := json.Marshal(map[string]string{
		"secretProviderClass": "db", "roleName": "my-app-role", "objects": credentials(c.role),
		"csi.storage.k8s.io/pod.name": g.pod.Name, "csi.storage.k8s.io/pod.namespace": c.ns, "csi.storage.k8s.io/pod.uid": string(g.pod.UID),
		"csi.storage.k8s.io/serviceAccount.name": "my-app", "csi.storage.k8s.io/serviceAccount.tokens": string(tokens),
	})
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	answer, err := c.provider.Mount(ctx, &v1alpha1.MountRequest{
		Attributes: string(attributes), Permission: "420", TargetPath: "/var/lib/kubelet/pods/" + string(g.pod.UID) + "/volumes/kubernetes.io~csi/" + volume + "/mount",
	})
	c.count("mounts of guests")
	if err != nil {
		c.count("mounts of guests that failed")
		return
	}
	files := map[string]string{}
	for _, f := range answer.GetFiles() {
		files[f.GetPath()] = string(f.GetContents())
		c.secrets.add("the file "+f.GetPath(), string(f.GetContents()))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.files != nil && g.files["db_user"] != files["db_user"] {
		c.count("rotations of guests")
	}
	g.files = files
}

// probe logs in as one guest after the other.
func (c *chaos) probe(ctx context.Context) {
	ticker := time.NewTicker(time.Second / probesASecond)
	defer ticker.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		c.mu.Lock()
		g := c.guests[i%len(c.guests)]
		c.mu.Unlock()
		c.working.Go(func() { c.probeOne(ctx, g) })
	}
}

func (c *chaos) probeOne(ctx context.Context, g *guest) {
	g.mu.Lock()
	files, gone := g.files, g.gone
	g.mu.Unlock()
	if files == nil || gone {
		return
	}
	err := c.bed.CanLogIn(ctx, files["db_user"], files["db_pass"])
	g.mu.Lock()
	current := g.files["db_user"] == files["db_user"] && !g.gone
	g.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts["probes of guests"]++
	if err == nil || !refusedLogin(err.Error()) || !current {
		return
	}
	if c.disturbed {
		c.counts["probes refused in long outages"]++
		c.lapsed[g] = true
		return
	}
	c.counts["violations"]++
	c.t.Errorf("%s: what %s shows does not log in: %v", time.Now().Format(time.TimeOnly), g.pod.Name, err)
}

// refusedLogin tells a login that PostgreSQL refused (28P01, 28000) from a PostgreSQL that is away.
func refusedLogin(text string) bool {
	return strings.Contains(text, "28P01") || strings.Contains(text, "28000") ||
		strings.Contains(text, "password authentication failed") || strings.Contains(text, "does not exist") || strings.Contains(text, "is not permitted to log in")
}

// everybodyWorks waits until what every guest shows logs in, and then what every pod of kubelet's does, which republishes at a pace of
// its own.
func (c *chaos) everybodyWorks(when string) {
	c.t.Helper()
	begin := time.Now()
	c.mu.Lock()
	guests, apps := slices.Clone(c.guests), slices.Clone(c.apps)
	c.mu.Unlock()
	c.eventually(c.t, "every volume shows working credentials "+when, func(ctx context.Context) error {
		guests = slices.DeleteFunc(guests, func(g *guest) bool {
			g.mu.Lock()
			files := g.files
			g.mu.Unlock()
			return files != nil && c.bed.CanLogIn(ctx, files["db_user"], files["db_pass"]) == nil
		})
		apps = slices.DeleteFunc(apps, func(pod *corev1.Pod) bool {
			folder := filepath.Join(c.volumeFolder(pod, volume), "mount")
			user, err := os.ReadFile(filepath.Join(folder, "db_user"))
			password, err2 := os.ReadFile(filepath.Join(folder, "db_pass"))
			return err == nil && err2 == nil && c.bed.CanLogIn(ctx, string(user), string(password)) == nil
		})
		if len(guests)+len(apps) > 0 {
			return fmt.Errorf("%d do not", len(guests)+len(apps))
		}
		return nil
	})
	if took := time.Since(begin); took > recovery {
		c.t.Errorf("it took %s %s until every volume showed working credentials", took.Round(time.Second), when)
	}
	wait(c.t.Context(), 3*time.Second) // for a probe that began with the credentials before
}

var chaosKinds = []string{"provider killed", "Vault sealed", "Vault stopped", "PostgreSQL stopped", "API server stopped", "forced deletes", "deletes and jobs"}

// round disturbs one part, for a short or a long time.
func (c *chaos) round(n int) {
	kind := chaosKinds[c.pick(n, "kind", len(chaosKinds))]
	long := c.pick(n, "long", 2) == 1
	duration := shortOutage/2 + time.Duration(c.pick(n, "duration", int(shortOutage/2/time.Millisecond)))*time.Millisecond
	if long {
		duration = longOutage
	}
	outage := strings.HasSuffix(kind, "stopped") || strings.HasSuffix(kind, "sealed")
	c.count("rounds: " + kind)
	fmt.Printf("  %s round %d: %s", time.Now().Format(time.TimeOnly), n, kind)
	if outage {
		fmt.Printf(" for %s", duration.Round(time.Second))
	}
	fmt.Println()
	ctx, begin := c.t.Context(), time.Now()
	if outage && long {
		c.setDisturbed(true)
	}
	var err error
	during := func(stop, start func() error) error {
		failure := stop()
		wait(ctx, duration)
		return errors.Join(failure, start())
	}
	switch kind {
	case "provider killed":
		err = c.killProvider(ctx)
	case "Vault sealed":
		err = during(func() error { return c.bed.SealVault(ctx) }, func() error { return c.bed.UnsealVault(ctx) })
	case "Vault stopped", "PostgreSQL stopped", "API server stopped":
		part := map[string]string{"Vault stopped": "vault", "PostgreSQL stopped": "postgres", "API server stopped": "apiserver"}[kind]
		err = during(func() error { return c.bed.Stop(ctx, part) }, func() error { return c.bed.Start(ctx, part) })
	case "forced deletes":
		c.replacePods(n, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))})
	case "deletes and jobs":
		c.replacePods(n, metav1.DeleteOptions{})
		c.job(n)
	}
	if err != nil {
		c.t.Errorf("%s: %v", kind, err)
	}
	c.everybodyWorks("after: " + kind)
	c.readAppLogs(outage && long)
	c.lapsesWereTold(begin)
	c.setDisturbed(false)
	if outage {
		wait(ctx, rest)
	}
}

// lapsesWereTold waits until there is a warning, not older than the round, for every guest whose credentials lapsed in it.
func (c *chaos) lapsesWereTold(since time.Time) {
	c.mu.Lock()
	untold := map[string]bool{}
	for g := range c.lapsed {
		untold[g.pod.Name] = true
	}
	c.counts["volumes whose credentials lapsed in long outages"] += len(untold)
	c.mu.Unlock()
	c.eventually(c.t, "an event told of every lapse", func(ctx context.Context) error {
		events, err := c.bed.Client().CoreV1().Events(c.ns).List(ctx, metav1.ListOptions{FieldSelector: "type=Warning"})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Source.Component == "leasehold" && !e.LastTimestamp.Time.Before(since.Truncate(time.Second)) {
				delete(untold, e.InvolvedObject.Name)
			}
		}
		if len(untold) > 0 {
			return fmt.Errorf("%d were not told of: %v", len(untold), slices.Sorted(maps.Keys(untold)))
		}
		return nil
	})
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (c *chaos) setDisturbed(disturbed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.disturbed = disturbed
	c.lapsed = map[*guest]bool{}
}

// killProvider sends SIGKILL, and takes the pod away lest kubelet's back-off make an outage of it.
func (c *chaos) killProvider(ctx context.Context) error {
	if err := c.bed.KillProvider(); err != nil {
		return err
	}
	c.count("kills")
	pod, err := c.providerPod(ctx)
	if err == nil {
		err = c.bed.Client().CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))})
	}
	if err != nil {
		c.t.Logf("the provider's pod: %v", err) // it may be gone already
	}
	return c.poll(ctx, pace, func(ctx context.Context) error { _, err := c.providerPod(ctx); return err })
}

// replacePods deletes a few pods of each sort and makes others.
func (c *chaos) replacePods(round int, options metav1.DeleteOptions) {
	for i := range 3 {
		n := c.pick(round, fmt.Sprint("app", i), len(c.apps))
		c.delete(c.apps[n], options)
		c.apps[n] = c.app(n)
		c.count("pods replaced")
	}
	var chosen []int
	var old []*guest
	c.mu.Lock()
	for i := range 10 {
		if n := c.pick(round, fmt.Sprint("guest", i), len(c.guests)); !slices.Contains(chosen, n) {
			chosen, old = append(chosen, n), append(old, c.guests[n])
		}
	}
	c.mu.Unlock()
	c.leaveAll(old)
	for _, n := range chosen {
		g := c.newGuest()
		c.mu.Lock()
		c.guests[n] = g
		c.mu.Unlock()
		c.working.Go(func() { c.republish(c.t.Context(), g) })
		c.count("pods replaced")
	}
	for _, pod := range c.apps {
		c.awaitRunning(pod)
	}
}

func (c *chaos) job(round int) {
	pod := newPod("", "db")
	c.logInAlways(pod, "--for", "5s")
	_, err := c.bed.Client().BatchV1().Jobs(c.ns).Create(c.t.Context(), &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("job-", round)},
		Spec:       batchv1.JobSpec{BackoffLimit: new(int32), Template: corev1.PodTemplateSpec{Spec: pod.Spec}},
	}, metav1.CreateOptions{})
	if err != nil {
		c.t.Error(err)
	}
	c.count("jobs")
}

// readAppLogs looks for refused logins in what kubelet's pods said themselves. In long outages they are counted only.
func (c *chaos) readAppLogs(disturbed bool) {
	paths, _ := filepath.Glob(filepath.Join(c.bed.State().Logs, "pods", c.ns+"_*", "app", "*.log"))
	for _, path := range paths {
		file, err := os.Open(path)
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(file); lines.Scan(); {
			line := lines.Text()
			if !strings.Contains(line, "failed:") || !refusedLogin(line) || c.bad[path+line] {
				continue
			}
			c.bad[path+line] = true
			c.counts["logins of apps that were refused"]++
			if !disturbed {
				c.counts["violations"]++
				c.t.Errorf("%s said %.200s", filepath.Base(filepath.Dir(filepath.Dir(path))), line)
			}
		}
		_ = file.Close()
	}
}

// finish deletes all but a few pods, checks that exactly theirs is left, and then that nothing is.
func (c *chaos) finish() {
	kept := c.apps[:3]
	fmt.Printf("  %s every pod but %d ends\n", time.Now().Format(time.TimeOnly), len(kept))
	for _, pod := range c.apps[3:] {
		c.delete(pod, metav1.DeleteOptions{})
	}
	c.mu.Lock()
	guests := c.guests
	c.mu.Unlock()
	c.leaveAll(guests)
	c.stop()
	c.working.Wait()
	begin := time.Now()
	c.converges("only what living pods use is left", len(kept))
	c.deleteAll()
	c.converges("nothing is left", 0)
	fmt.Printf("  converged within %s\n", time.Since(begin).Round(time.Second))
}

// converges waits until there are as many tokens and grants as living volumes, and no lease or user that is none of theirs. Vault makes
// users without a lease for requests that were cut off; they are told, with what was asked.
func (c *chaos) converges(what string, living int) {
	c.t.Helper()
	begin := time.Now()
	var last holding
	exact := func(ctx context.Context) (err error) {
		if last, err = c.holds(ctx); err != nil {
			return err
		}
		// A living volume has its current lease, and those before it that run out by themselves.
		if h := last; len(h.tokens) != living || len(h.grants) != living || len(h.leases) < living || len(h.leases) > 3*living {
			return fmt.Errorf("there are %v", h)
		}
		return nil
	}
	err := c.poll(c.t.Context(), pace, exact)
	for err != nil && time.Since(begin) < convergence {
		select {
		case <-c.interrupted:
			c.t.Fatal("interrupted")
		default:
		}
		err = c.poll(c.t.Context(), pace, exact)
	}
	if err != nil {
		c.t.Fatalf("waiting until %s: %v", what, err)
	}
	if extra := len(last.users) - len(last.leases); extra > 0 {
		c.counts["users that Vault made without a lease"] += extra
		cut := 0
		entries, err := c.bed.AuditSince(0)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, e := range entries {
			if e.Path == "database/creds/"+c.role && e.Error != "" {
				cut++
				fmt.Printf("  aborted: %s %s: %.120s\n", e.Operation, e.Path, e.Error)
			}
		}
		if extra > cut+c.counts["kills"]*8 {
			c.t.Errorf("%d users have no lease, and only %d requests were cut off", extra, cut)
		}
	}
}
