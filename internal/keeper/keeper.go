// Package keeper carries grants through their life. [Keeper.Acquire] is the Mount side: it answers a volume's files, and logs in
// and reads when it must. Everything else is one function, sync: look at one grant and at its pod, do the one thing that is
// due, say when to come back.
//
// # The order of effects
//
// A record comes before or right after every effect on Vault, so that whatever a crash interrupts is found again:
//
//	put Pending · log in · put the token · shorten its life to the orphan TTL · read · put each answer with its lease as it
//	returns · put Active · answer
//	put how far a renewal may reach · renew · put what it brought
//	put Revoking · probe the leases' back end · revoke the token · delete the record
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
	"time"

	"k8s.io/client-go/util/workqueue"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// DefaultOrphanTTL bounds how long a token outlives a node that nobody renews for any more.
const DefaultOrphanTTL = time.Hour

const (
	// syncers is how many grants are looked at concurrently.
	syncers = 8
	// requestTimeout bounds each renewal and revocation.
	requestTimeout = 30 * time.Second
)

// Config is what a Keeper works with. Every field but OrphanTTL must be set.
type Config struct {
	Store  *store.Store
	Vaults *vault.Pool
	// Ended tells what is known of the end of a grant's pod.
	Ended func(context.Context, grant.Grant) grant.Verdict
	// Event tells the pod's owners something; eventtype is Normal or Warning. It must not block.
	Event func(pod spec.Pod, eventtype, reason, message string)
	// Now reads CLOCK_BOOTTIME.
	Now func() grant.Instant
	// OrphanTTL is the longest life that a token is left with; zero means DefaultOrphanTTL.
	OrphanTTL time.Duration
	Log       *slog.Logger
}

// Keeper keeps the grants of one node.
type Keeper struct {
	Config

	queue workqueue.TypedDelayingInterface[string]

	mounts struct {
		sync.Mutex
		underway map[spec.VolumeKey]*flight
		closed   bool
		running  sync.WaitGroup
	}
	// leaving is closed when waiting Mounts should be answered although their work goes on.
	leaving     chan struct{}
	leavingOnce sync.Once
}

// New returns a Keeper that does nothing yet.
func New(c Config) (*Keeper, error) {
	if c.OrphanTTL == 0 {
		c.OrphanTTL = DefaultOrphanTTL
	}
	if c.OrphanTTL < 2*requestTimeout {
		return nil, fmt.Errorf("an orphan TTL of %s is too short: renewals need at least %s", c.OrphanTTL, 2*requestTimeout)
	}
	k := &Keeper{
		Config:  c,
		queue:   workqueue.NewTypedDelayingQueue[string](),
		leaving: make(chan struct{}),
	}
	k.mounts.underway = make(map[spec.VolumeKey]*flight)
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
		if g.State == grant.Pending {
			if err := k.letGo(g.ID, "the provider stopped during the volume's first mount"); err != nil {
				return err
			}
		}
		k.queue.Add(g.ID)
	}
	k.Log.Info("took over the store", "grants", len(grants))
	return nil
}

// Run looks after the grants until ctx ends, and returns when the last look is over.
func (k *Keeper) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	for range syncers {
		workers.Go(func() { k.work(ctx) })
	}
	<-ctx.Done()
	k.queue.ShutDown()
	workers.Wait()
	return nil
}

// Wake has the grants of a pod looked at now.
func (k *Keeper) Wake(podUID string) {
	grants, err := k.Store.OfPod(podUID)
	if err != nil {
		k.Log.Error("finding the grants of a pod", "uid", podUID, "err", err)
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

func (k *Keeper) work(ctx context.Context) {
	for {
		id, shutdown := k.queue.Get()
		if shutdown {
			return
		}
		if next := k.guarded(ctx, id); next != 0 {
			k.queue.AddAfter(id, max(0, next.Sub(k.Now())))
		}
		k.queue.Done(id)
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
	if err != nil && ctx.Err() == nil {
		k.Log.Warn("looking after a grant", "grant", id, "err", err, "next", next.Sub(k.Now()).Round(time.Second))
	}
	return next
}

// letGo has a grant revoked; cause says why, for people.
func (k *Keeper) letGo(id, cause string) error {
	_, err := k.Store.Update(id, func(g *grant.Grant) error {
		g.State, g.Cause, g.Failures = grant.Revoking, cause, 0
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("marking a grant for revocation: %w", err)
	}
	k.queue.Add(id)
	return nil
}

func session(g *grant.Grant) vault.Session {
	return vault.Session{Namespace: g.Namespace, Token: g.Token}
}
