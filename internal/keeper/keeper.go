// Package keeper carries grants through their life. [Keeper.Acquire] is the Mount side: it answers a volume's files, and logs in
// and reads when it must. Everything else is one function, sync: look at one grant and at its pod, do the one thing that is
// due, say when to come back.
//
// # The order of effects
//
// A record comes before or right after every effect on Vault, so that whatever a crash interrupts is found again:
//
//	put Pending · log in · put the token · shorten its life to the orphan TTL · read · put each answer with its lease as it
//	returns, and the others together · put Active · answer
//	put how far a renewal may reach · renew · put what it brought
//	put Revoking · revoke each certificate and forget it · probe the leases' back end · revoke the token · delete the record
//
// # Who may touch a grant
//
// The store is the only state; there is no copy in memory. A claim is a field of the record: as long as BusyUntil lies ahead,
// Vault may be working on a request under the token, and the grant is not revoked. A Mount sets it before its first request and
// clears it after its last reply; a Mount that died leaves it standing, and it passes.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"k8s.io/client-go/util/workqueue"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/span"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
	"github.com/leasehold-csi/leasehold/internal/template"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// DefaultOrphanTTL bounds how long a token outlives a node that nobody renews for any more.
const DefaultOrphanTTL = time.Hour

// RevokeMode is what becomes of leases that are to be given back.
type RevokeMode string

// The modes: the brake of a whole node.
const (
	// RevokeOn gives them back; the zero value means the same.
	RevokeOn RevokeMode = "on"
	// RevokeLog lets them run out and logs what would have been revoked.
	RevokeLog RevokeMode = "log"
	// RevokeOff lets them run out.
	RevokeOff RevokeMode = "off"
)

// Rotation is what took the place of another one of its kind.
type Rotation string

// The kinds of what is rotated.
const (
	RotatedLogin       Rotation = "login"
	RotatedLease       Rotation = "lease"
	RotatedCertificate Rotation = "certificate"
)

// Rotations are all kinds.
func Rotations() []Rotation { return []Rotation{RotatedLogin, RotatedLease, RotatedCertificate} }

// Config is what a Keeper works with. The fields up to Log must be set.
type Config struct {
	Store  *store.Store
	Vaults *vault.Pool
	// Ended tells what is known of the end of a grant's pod.
	Ended func(context.Context, grant.Grant) grant.Verdict
	// Event tells the pod's owners something; eventtype is Normal or Warning. It must not block.
	Event func(pod spec.Pod, eventtype, reason, message string)
	// Changed is told of every change of a volume's state; it must not block. nil for nobody.
	Changed func(Change)
	// Now reads CLOCK_BOOTTIME.
	Now func() grant.Instant
	Log *slog.Logger
	// OrphanTTL is the longest life that a token is left with; zero means DefaultOrphanTTL.
	OrphanTTL time.Duration
	// Revoke is RevokeOn when empty. What was not revoked is as soon as a later process may.
	Revoke RevokeMode
	// SubPath names a container that mounts the volume by subPath, so that it never sees a change; empty for none. nil for never.
	SubPath func(podUID, volume string) string
	// RenewalBegan is told how long after its time a renewal that did not fail before is begun; nil for nobody.
	RenewalBegan func(late time.Duration)
	// Rotated is told of each login, lease and certificate that took the place of one that a volume had shown; nil for nobody.
	Rotated func(Rotation)
	// Overrides names the parameters that the pod gives the volume itself, and which win over its class; nil for never any.
	Overrides func(podUID, volume string) []string
	// Synced lists the names of the class's objects that the driver copies into Secrets; nil for none ever.
	Synced func(ctx context.Context, namespace, class string) ([]string, error)
	// RequestToken makes a service account token for a pod to which kubelet sent none; an empty audience means the one that its
	// maker prefers. nil when there is no such way. Its errors must not hold the token.
	RequestToken func(ctx context.Context, pod spec.Pod, audience string) (secret.Value, error)
	// Templates renders; nil for one that is ready for use.
	Templates *template.Renderer
	// Sees returns what speaks against this process looking where the kubelet that mounts the volume has its folders; nil for nothing ever.
	Sees func(volume spec.VolumeKey, kubeletDir string) error
	// Tracer makes the spans of renewals and revocations; nil for none. The one of a Mount comes with its context.
	Tracer trace.Tracer
	// Identify returns what speaks against a pod being the one that it says it is; nil when nobody can tell.
	Identify func(context.Context, spec.Pod) error
}

// Keeper keeps the grants of one node.
type Keeper struct {
	Config

	// queue knows what is to be looked at when; lanes, of what is due, whose turn it is.
	queue   workqueue.TypedDelayingInterface[string]
	lanes   *lanes
	breaker breaker
	volumes volumes
	lives   lives
	holders holders
	leased  digests

	mounts struct {
		sync.Mutex
		underway map[spec.VolumeKey]*flight
		// waiting are those of them that have not begun, in the order in which they came; flying is how many have, and namespace how
		// many of each namespace.
		waiting   []*flight
		flying    int
		namespace map[string]int
		closed    bool
		running   sync.WaitGroup
	}
	// pulse is closed when the loop that finds what is due comes by; nil while nobody waits for that.
	pulse struct {
		sync.Mutex
		seen chan struct{}
	}
	// drained: no Mount has asked for anything of Vault since the last GiveBack.
	drained atomic.Bool
	// leaving is closed when waiting Mounts should be answered although their work goes on.
	leaving     chan struct{}
	leavingOnce sync.Once
}

// New returns a Keeper that does nothing yet.
func New(c Config) (*Keeper, error) {
	if c.OrphanTTL == 0 {
		c.OrphanTTL = DefaultOrphanTTL
	}
	if c.OrphanTTL < 2*grant.RequestTimeout {
		return nil, fmt.Errorf("an orphan TTL of %s is too short: renewals need at least %s", c.OrphanTTL, 2*grant.RequestTimeout)
	}
	if c.Templates == nil {
		c.Templates = new(template.Renderer)
	}
	if c.Tracer == nil {
		c.Tracer = noop.Tracer{}
	}
	if c.SubPath == nil {
		c.SubPath = func(string, string) string { return "" }
	}
	if c.Sees == nil {
		c.Sees = func(spec.VolumeKey, string) error { return nil }
	}
	if c.Changed == nil {
		c.Changed = func(Change) {}
	}
	if c.RenewalBegan == nil {
		c.RenewalBegan = func(time.Duration) {}
	}
	if c.Rotated == nil {
		c.Rotated = func(Rotation) {}
	}
	if c.Overrides == nil {
		c.Overrides = func(string, string) []string { return nil }
	}
	if c.Synced == nil {
		c.Synced = func(context.Context, string, string) ([]string, error) { return nil, nil }
	}
	k := &Keeper{
		Config:  c,
		queue:   workqueue.NewTypedDelayingQueue[string](),
		lanes:   newLanes(),
		volumes: volumes{began: c.Now()},
		leaving: make(chan struct{}),
	}
	k.mounts.underway = make(map[spec.VolumeKey]*flight)
	k.mounts.namespace = make(map[string]int)
	return k, nil
}

// Resume takes over what an earlier process left. It must be called once, before the first Acquire.
//
// A grant that is Pending belonged to a Mount that died with that process. Its reads may still be running in Vault, so it is
// not used again, and is revoked once none can be.
func (k *Keeper) Resume() error {
	grants, unreadable, err := k.Store.All()
	if err != nil {
		return fmt.Errorf("reading the store: %w", err)
	}
	if unreadable > 0 {
		k.Log.Error("records of the store cannot be read; their leases run out by themselves", "records", unreadable)
	}
	for _, g := range grants {
		k.say(of(g, TookOver).because(k.standing(g)))
		if g.State == grant.Pending {
			if err := k.letGo(g.ID, "the provider stopped during the volume's first mount"); err != nil {
				return err
			}
		}
		k.holders.take(g.Accessor, g.ID)
		k.queue.Add(g.ID)
	}
	k.Log.Info("took over the store", "grants", len(grants))
	return nil
}

// Run looks after the grants until ctx ends, and returns when the last look is over.
func (k *Keeper) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	workers.Go(k.line)
	for range syncers {
		workers.Go(func() { k.work(ctx) })
	}
	<-ctx.Done()
	k.queue.ShutDown()
	workers.Wait()
	return nil
}

// Wake has the grants of a pod looked at now.
func (k *Keeper) Wake(podUID string) { k.wake(k.Store.OfPod(podUID)) }

// WakeAll has every grant looked at now: news of any pod may have been missed.
func (k *Keeper) WakeAll() { k.wake(k.Grants()) }

func (k *Keeper) wake(grants []grant.Grant, err error) {
	if err != nil {
		k.Log.Error("finding the grants to look at", "err", err)
		return
	}
	for _, g := range grants {
		k.queue.Add(g.ID)
	}
}

// Grants returns all that is held.
func (k *Keeper) Grants() ([]grant.Grant, error) {
	grants, _, err := k.Store.All()
	return grants, err
}

// BreakerOpen reports whether revocations are held back because more pods seemed to end than the watch told of.
func (k *Keeper) BreakerOpen() bool { return k.breaker.open(k.Now()) }

// heartbeat is in the queue when somebody asks whether it is read. No grant has this id.
const heartbeat = ""

// Alive returns nil when the loop that finds what is due goes round, which it does whatever Vault and the API server do, and else an error
// when ctx ends.
func (k *Keeper) Alive(ctx context.Context) error {
	k.pulse.Lock()
	if k.pulse.seen == nil {
		k.pulse.seen = make(chan struct{})
	}
	seen := k.pulse.seen
	k.pulse.Unlock()
	k.queue.Add(heartbeat)
	select {
	case <-seen:
		return nil
	case <-ctx.Done():
		return errors.New("the loop that looks after grants stands still")
	}
}

func (k *Keeper) beat() {
	k.pulse.Lock()
	defer k.pulse.Unlock()
	if k.pulse.seen != nil {
		close(k.pulse.seen)
		k.pulse.seen = nil
	}
}

// line puts what is due into its lane.
func (k *Keeper) line() {
	for {
		id, shutdown := k.queue.Get()
		if shutdown {
			k.lanes.close()
			return
		}
		if id == heartbeat {
			k.beat()
			k.queue.Done(id)
			continue
		}
		w := look{id: id} // of a record that cannot be read, or is gone: the look itself will tell
		if g, err := k.Store.Get(id); err == nil {
			w.lane, w.by = lane{g.Pod.Namespace, g.Server.Address}, g.LookBy(k.Now())
		}
		k.lanes.push(w)
	}
}

func (k *Keeper) work(ctx context.Context) {
	for {
		w, ok := k.lanes.pop()
		if !ok {
			return
		}
		if next := k.guarded(ctx, w.id); next != 0 {
			k.queue.AddAfter(w.id, max(0, next.Sub(k.Now())))
		}
		k.lanes.done(w)
		k.queue.Done(w.id)
	}
}

// guarded is sync with a panic turned into a late next look: one grant must not take the daemon down.
func (k *Keeper) guarded(ctx context.Context, id string) (next grant.Instant) {
	defer func() {
		if p := recover(); p != nil {
			k.Log.Error("panic while looking after a grant", "grant", id, "panic", fmt.Sprintf("%T", p))
			next = k.Now().Add(time.Minute)
		}
	}()
	next, err := k.sync(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return 0 // it was forgotten meanwhile
	}
	if err != nil { // also what said that nothing is due any more, or something at once: it was not recorded
		next = max(next, k.Now().Add(firstPause))
	}
	if err != nil && ctx.Err() == nil {
		k.Log.Warn("looking after a grant", "grant", id, "err", err, "next", next.Sub(k.Now()).Round(time.Second))
	}
	return next
}

// standing says what the store knows of a grant, for people.
func (k *Keeper) standing(g grant.Grant) string {
	text := fmt.Sprintf("a grant %s old in state %s, of role %q, with %d leases", Span(k.Now().Sub(g.Created)), g.State, g.Auth.Role, len(g.Leases))
	if g.Cause != "" {
		text += ", to be given back: " + g.Cause
	}
	if g.Problem != "" {
		text += "; what failed last: " + g.Problem
	}
	return text
}

// letGo has a grant revoked; cause says why, for people.
func (k *Keeper) letGo(id, cause string) error {
	return k.giveUp(id, LetGo, cause, func(g *grant.Grant) { g.Expire = "" })
}

// giveUp marks a grant as Revoking, which it stays until it is certainly gone.
func (k *Keeper) giveUp(id string, kind Kind, cause string, change func(*grant.Grant)) error {
	g, err := k.Store.Update(id, func(g *grant.Grant) error {
		g.GiveUp(cause, k.Now())
		g.Failures = 0
		change(g)
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("marking a grant for revocation: %w", err)
	}
	c := of(g, kind).because(cause)
	c.Keeps = k.LeftToExpire(g)
	k.say(c)
	if k.Revoke == RevokeLog {
		k.Log.Info("would revoke a grant now", "grant", g.ID, "pod", g.Pod.Namespace+"/"+g.Pod.Name, "leases", len(g.Leases), "certificates", len(g.Certificates))
	}
	k.queue.Add(id)
	return nil
}

// begun begins the span of work on a grant that no Mount waits for.
func (k *Keeper) begun(ctx context.Context, work string, g grant.Grant) (context.Context, trace.Span) {
	ctx, s := k.Tracer.Start(ctx, work)
	if s.IsRecording() {
		s.SetAttributes(span.Volume(g.Pod, g.Volume.Volume, g.Class, g.Auth)...)
	}
	return ctx, s
}

func session(g *grant.Grant) vault.Session {
	return vault.Session{Namespace: g.Namespace, Token: g.Token}
}
