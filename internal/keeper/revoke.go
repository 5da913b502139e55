package keeper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/span"
	"github.com/leasehold-csi/leasehold/internal/store"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// probeIncrement is the life that a lease is left with by the probe before the revocation, which follows at once.
const probeIncrement = time.Minute

// LeftToExpire says why the pod's end revokes nothing of a grant, so that all of it runs out by itself; empty when it does revoke.
func (k *Keeper) LeftToExpire(g grant.Grant) string {
	if g.Expire == "" && (k.Revoke == RevokeLog || k.Revoke == RevokeOff) {
		return "--revoke=" + string(k.Revoke)
	}
	return g.Expire
}

// revoke gives a grant back to Vault and forgets it once it is certainly gone.
func (k *Keeper) revoke(ctx context.Context, g grant.Grant) (grant.Instant, error) {
	braked := k.LeftToExpire(g) != ""
	switch now := k.Now(); {
	case g.Busy(now):
		return g.BusyUntil, nil
	case g.Token.IsZero():
		return 0, k.forget(g, NeverUsed)
	case g.Login.Over(now):
		if !braked {
			k.tellKept(g, "the token that could have revoked them ended before")
		}
		return 0, k.forget(g, RanOut)
	case braked:
		return g.Login.Limit, nil
	}
	client, err := k.Vaults.Client(g.Server, g.Pod.Namespace)
	if err != nil {
		return k.later(g, err)
	}
	ctx, work := k.begun(ctx, span.Revoke, g)
	defer func() { span.End(work, err) }()
	if g, err = k.revokeCertificates(ctx, client, g); err != nil {
		return k.later(g, err)
	}
	if err = k.probe(ctx, client, g); err != nil {
		return k.later(g, err)
	}
	_, err = within(ctx, grant.RequestTimeout, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, client.RevokeSelf(ctx, session(&g))
	})
	switch {
	case err == nil:
		return 0, k.forget(g, Revoked)
	case vault.KindOf(err) == vault.InvalidToken && k.sameCluster(ctx, client, g):
		k.tellKept(g, "the token that could have revoked them was revoked outside of Leasehold")
		err = nil // what was to be reached is
		return 0, k.forget(g, AlreadyGone)
	}
	return k.later(g, err)
}

// probe asks for a small renewal of each lease that can tell, and fails when the engine's back end does: Vault gives a lease up after
// six failed revocations (about ten minutes) and the user would stay for ever, while a token that still lives keeps its leases. One
// that ended and is still known waits for its back end. What Vault did not answer has not been asked; a refusal is not the back end's,
// and the revocation itself will tell.
func (k *Keeper) probe(ctx context.Context, client *vault.Client, g grant.Grant) error {
	for _, l := range g.Probes(k.Now()) {
		_, err := within(ctx, grant.RequestTimeout, func(ctx context.Context) (vault.Life, error) {
			return client.RenewLease(ctx, session(&g), l, probeIncrement)
		})
		switch path := l.Read.Path; vault.KindOf(err) {
		case vault.BackEndDown:
			return &leaseError{path, fmt.Errorf("the back end of %q is down, so the revocation waits for it: %w", path, err)}
		case vault.LeaseEnded:
			return &leaseError{path, fmt.Errorf("the lease of %q ended and is not gone yet, so the revocation waits for its back end: %w", path, err)}
		case vault.NotExecuted, vault.Unreachable, vault.InDoubt, vault.Failing:
			return &leaseError{path, fmt.Errorf("asking whether the back end of %q works: %w", path, err)}
		}
	}
	return nil
}

// forget deletes the record of a grant that is certainly gone; how is one of the final kinds of change.
func (k *Keeper) forget(g grant.Grant, how Kind) error {
	if err := k.Store.Delete(g.ID); err != nil {
		return fmt.Errorf("forgetting a grant: %w", err)
	}
	k.holders.drop(g.Accessor)
	k.say(of(g, how))
	if rest, err := k.Store.OfVolume(g.Volume); err == nil && len(rest) == 0 {
		k.volumes.forget(g.Volume)
	}
	return nil
}

// GiveBack has the grants of pods that are over given back. With all it takes also those that running pods use, once the logins and reads
// under way are over; this process makes no others then, or the pods would be given new credentials at their next republish.
func (k *Keeper) GiveBack(ctx context.Context, all bool) error {
	k.drained.Store(true)
	if all {
		if err := k.Drain(ctx); err != nil {
			return err
		}
	}
	grants, err := k.Grants()
	if err != nil {
		return fmt.Errorf("reading the store: %w", err)
	}
	for _, g := range grants {
		if g.State == grant.Revoking {
			continue
		}
		if all {
			err = errors.Join(err, k.letGo(g.ID, "drained by force"))
			continue
		}
		g, verdict, held, failure := k.lookAtPod(ctx, g)
		if failure == nil && verdict.Ended && held == 0 {
			_, failure = k.end(g, verdict.Reason)
		}
		if !errors.Is(failure, store.ErrNotFound) { // it was given back meanwhile
			err = errors.Join(err, failure)
		}
	}
	return err
}

// Emptied tells whether GiveBack was called and nothing is held since, so that there is nothing to hand to a next process.
func (k *Keeper) Emptied() bool {
	grants, unreadable, err := k.Store.All()
	return k.drained.Load() && err == nil && unreadable == 0 && len(grants) == 0
}

// RevokePod has all that a pod holds given back, whether or not it is over, and returns of how many grants that is. A pod that runs is
// given new credentials at its next republish.
func (k *Keeper) RevokePod(namespace, name string) (revoked int, err error) {
	grants, err := k.Grants()
	if err != nil {
		return 0, fmt.Errorf("reading the store: %w", err)
	}
	for _, g := range grants {
		if g.State == grant.Revoking || g.Pod.Namespace != namespace || g.Pod.Name != name {
			continue
		}
		if failure := k.letGo(g.ID, "revoked by hand"); failure != nil {
			err = errors.Join(err, failure)
			continue
		}
		k.Event(g.Pod, "Warning", "RevokedByHand", fmt.Sprintf("volume %q: an operator had its credentials revoked (leasehold revoke); new ones come with the next republish", g.Volume.Volume))
		revoked++
	}
	return revoked, err
}
