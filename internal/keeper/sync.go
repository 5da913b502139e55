package keeper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// sweep is the longest time between two looks at a grant, in case a change of its pod was never told.
const sweep = 10 * time.Minute

// sync looks at one grant and at its pod, does the one thing that is due, and says when to come back; zero for when woken.
func (k *Keeper) sync(ctx context.Context, id string) (next grant.Instant, err error) {
	g, err := k.Store.Get(id)
	if err != nil {
		return k.Now().Add(time.Minute), fmt.Errorf("reading the record: %w", err)
	}
	if g.State == grant.Revoking {
		return k.revoke(ctx, g)
	}
	verdict := k.Ended(ctx, g)
	if g, err = k.note(g, verdict); err != nil {
		return k.Now().Add(time.Minute), err
	}
	if verdict.Ended {
		return k.end(g, verdict.Reason)
	}
	next, err = k.keep(ctx, g)
	look := verdict.Check
	if look == 0 {
		look = sweep
	}
	return grant.Earliest(next, k.Now().Add(look)), err
}

// note records what only a look at the living pod can tell, and passes a warning on.
func (k *Keeper) note(g grant.Grant, v grant.Verdict) (grant.Grant, error) {
	if v.Warning != "" {
		k.Event(g.Pod, "Warning", "EndUnclear", v.Warning)
	}
	grace := g.Grace
	if v.Grace != 0 {
		grace = v.Grace
	}
	if (g.FolderSeen || !v.FolderSeen) && grace == g.Grace {
		return g, nil
	}
	return k.Store.Update(g.ID, func(g *grant.Grant) error {
		g.FolderSeen, g.Grace = g.FolderSeen || v.FolderSeen, grace
		return nil
	})
}

// end lets go of a grant whose pod is over, as soon as no Mount is working with it: a read that returns after the token's
// revocation leaves a lease that nothing removes (measured on Vault 1.21.2).
func (k *Keeper) end(g grant.Grant, reason string) (grant.Instant, error) {
	k.Log.Info("pod ended", "grant", g.ID, "pod", g.Pod.Namespace+"/"+g.Pod.Name, "uid", g.Pod.UID, "volume", g.Volume.Volume, "reason", reason)
	return k.Now(), k.letGo(g.ID, reason)
}

// keep does what a living pod's grant needs.
func (k *Keeper) keep(ctx context.Context, g grant.Grant) (grant.Instant, error) {
	now := k.Now()
	switch g.State {
	case grant.Pending:
		return 0, nil // its Mount is under way in this process and will wake it: Resume let go of all others
	case grant.Partial:
		if given := g.Tried.Add(grant.PartialLife); now < given {
			return given, nil
		}
		return now, k.letGo(g.ID, "the mount failed and was not tried again")
	case grant.Superseded:
		if g.Leased(now) && !g.Login.Over(now) {
			return now.Add(time.Minute), nil
		}
		return now, k.letGo(g.ID, "replaced, and nothing is leased under it any more")
	case grant.Active:
		return k.renew(ctx, g)
	}
	return 0, fmt.Errorf("unknown state %q", g.State)
}

// renew renews the token and the leases that are due.
func (k *Keeper) renew(ctx context.Context, g grant.Grant) (grant.Instant, error) {
	client, err := k.Vaults.Client(g.Server)
	if err != nil {
		return k.later(g, err)
	}
	if due := g.Login.RenewAt(g.Jitter()); due != 0 && due <= k.Now() && g.Leased(k.Now()) {
		if g, err = k.renewToken(ctx, client, g); err != nil {
			return k.later(g, err)
		}
	}
	for i, l := range g.Leases {
		if due := l.Term.RenewAt(g.Jitter()); l.Superseded || due == 0 || due > k.Now() {
			continue
		}
		if g, err = k.renewLease(ctx, client, g, i); err != nil {
			return k.later(g, err)
		}
	}
	if g.Failures > 0 {
		if g, err = k.Store.Update(g.ID, func(g *grant.Grant) error { g.Failures, g.Problem = 0, ""; return nil }); err != nil {
			return k.Now().Add(time.Minute), err
		}
	}
	return g.NextRenewal(k.Now()), nil
}

func (k *Keeper) renewToken(ctx context.Context, client *vault.Client, g grant.Grant) (grant.Grant, error) {
	increment := min(g.Login.Full, k.OrphanTTL)
	from := k.Now()
	g, err := k.Store.Update(g.ID, func(g *grant.Grant) error { g.Login = g.Login.Asking(from, increment); return nil })
	if err != nil {
		return g, err
	}
	life, err := within(ctx, func(ctx context.Context) (vault.Life, error) { return client.RenewSelf(ctx, session(&g), increment) })
	switch kind := vault.KindOf(err); {
	case err == nil:
		k.Log.Debug("renewed a token", "grant", g.ID, "ttl", life.TTL)
		return k.Store.Update(g.ID, func(g *grant.Grant) error {
			g.Login = g.Login.Renewed(from, life.TTL, increment, life.Renewable)
			return nil
		})
	case kind == vault.Unrenewable:
		return k.Store.Update(g.ID, func(g *grant.Grant) error { g.Login.Renewable, g.Problem = false, err.Error(); return nil })
	case kind == vault.InvalidToken && k.sameCluster(ctx, client, g):
		k.lost(g, "its Vault token was revoked or expired")
		return k.Store.Update(g.ID, func(g *grant.Grant) error {
			g.Login = g.Login.Lost(from)
			for i := range g.Leases {
				g.Leases[i].Term = g.Leases[i].Term.Lost(from)
			}
			return nil
		})
	}
	return g, err
}

func (k *Keeper) renewLease(ctx context.Context, client *vault.Client, g grant.Grant, i int) (grant.Grant, error) {
	id, path := g.Leases[i].ID, g.Leases[i].Read.Path
	from := k.Now()
	life, err := within(ctx, func(ctx context.Context) (vault.Life, error) { return client.RenewLease(ctx, session(&g), id, 0) })
	change := func(to func(grant.Term) grant.Term) (grant.Grant, error) {
		return k.Store.Update(g.ID, func(g *grant.Grant) error {
			for i := range g.Leases { // a Mount may have changed the order meanwhile
				if g.Leases[i].ID == id {
					g.Leases[i].Term = to(g.Leases[i].Term)
				}
			}
			return nil
		})
	}
	switch vault.KindOf(err) {
	case vault.LeaseGone:
		k.lost(g, fmt.Sprintf("the lease of %q was revoked or expired", path))
		return change(func(t grant.Term) grant.Term { return t.Lost(from) })
	case vault.Unrenewable:
		return change(func(t grant.Term) grant.Term { t.Renewable = false; return t })
	}
	if err != nil {
		return g, err
	}
	k.Log.Debug("renewed a lease", "grant", g.ID, "path", path, "ttl", life.TTL)
	return change(func(t grant.Term) grant.Term { return t.Renewed(from, life.TTL, 0, life.Renewable) })
}

func (k *Keeper) lost(g grant.Grant, what string) {
	k.Event(g.Pod, "Warning", "LeaseLost", fmt.Sprintf("volume %q: %s outside of Leasehold; new credentials come with the next republish", g.Volume.Volume, what))
}

// later notes a failure and says when to try again.
func (k *Keeper) later(g grant.Grant, failure error) (grant.Instant, error) {
	after, err := k.Store.Update(g.ID, func(g *grant.Grant) error {
		g.Failures++
		g.Problem = failure.Error()
		return nil
	})
	if err != nil {
		after.Failures = 1
	}
	pause := min(time.Second<<min(after.Failures-1, 10), 30*time.Second)
	if refused, ok := errors.AsType[*vault.Error](failure); ok {
		pause = max(pause, refused.RetryAfter)
	}
	return k.Now().Add(pause), errors.Join(failure, err)
}

// sameCluster reports whether the server at the grant's address is certainly the one that made it. Another one's "invalid
// token" says nothing about the grant.
func (k *Keeper) sameCluster(ctx context.Context, client *vault.Client, g grant.Grant) bool {
	id, _ := within(ctx, func(ctx context.Context) (string, error) { return client.Cluster(ctx), nil })
	return id != "" && id == g.Cluster
}

func within[T any](ctx context.Context, request func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return request(ctx)
}
