package keeper

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/span"
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
	g, verdict, held, err := k.lookAtPod(ctx, g)
	if err != nil {
		return k.Now().Add(time.Minute), err
	}
	if verdict.Ended && held == 0 {
		return k.end(g, verdict.Reason)
	}
	next, err = k.keep(ctx, g)
	look := verdict.Check
	if look == 0 {
		look = sweep
	}
	return grant.Earliest(next, held, k.Now().Add(look)), err
}

// lookAtPod asks whether a grant's pod is over, and records what only a look at it can tell. held is until when an end is not acted on;
// zero for one that is, and for none.
func (k *Keeper) lookAtPod(ctx context.Context, g grant.Grant) (after grant.Grant, verdict grant.Verdict, held grant.Instant, err error) {
	verdict = k.Ended(ctx, g)
	if after, err = k.note(g, verdict); err == nil && verdict.Ended {
		held = k.holdBack(after, verdict)
	}
	return after, verdict, held, err
}

// holdBack returns until when an end is not acted on because too many came that nobody announced; zero to act.
func (k *Keeper) holdBack(g grant.Grant, v grant.Verdict) grant.Instant {
	if v.Announced {
		return 0
	}
	until, first := k.breaker.hold(g.Pod.UID, k.Now())
	if first {
		c := of(g, EndHeld).because(v.Reason)
		c.Trouble, c.Again = BreakerOpen, holdBack
		k.say(c)
		k.Event(g.Pod, "Warning", "RevocationHeld", fmt.Sprintf("volume %q: %s; but more than %d pods of this node ended within a minute that the API told nothing of: "+
			"its leases are kept for %s and looked at again", g.Volume.Volume, v.Reason, rush, holdBack))
	}
	return until
}

// note records what only a look at the living pod can tell, and passes a warning on.
func (k *Keeper) note(g grant.Grant, v grant.Verdict) (grant.Grant, error) {
	if v.Warning != "" {
		c := of(g, EndUnclear).because(v.Warning)
		c.Trouble = UnclearEnd
		k.say(c)
		k.Event(g.Pod, "Warning", "EndUnclear", v.Warning)
	}
	grace, compared := g.Grace, g.Answered.IsZero() || v.Started.IsZero()
	if v.Grace != 0 {
		grace = v.Grace
	}
	if (g.FolderSeen || !v.FolderSeen) && grace == g.Grace && compared {
		return g, nil
	}
	if !compared {
		k.startedEmpty(g, v.Started)
	}
	return k.Store.Update(g.ID, func(g *grant.Grant) error {
		g.FolderSeen, g.Grace = g.FolderSeen || v.FolderSeen, grace
		if !compared {
			g.Answered = time.Time{}
		}
		return nil
	})
}

// startedEmpty tells of a container that was started before the volume's files were first handed out. The driver published the
// volume without them: it takes a mount whose answer never arrived for done (v1.6.0: a retry within the rotation poll interval
// succeeds without asking the provider). Of a volume that was not heard of when the container was started, another provider may have
// made the files.
func (k *Keeper) startedEmpty(g grant.Grant, started time.Time) {
	const rounding = time.Second // the API states whole seconds
	early := g.Answered.Sub(started)
	if early <= rounding {
		return
	}
	what, but := "the volume's files were first handed to the CSI driver", ""
	if heard := time.Now().Add(-k.Now().Sub(g.Created)); heard.Sub(started) > rounding {
		what, but = "Leasehold first heard of the volume", "unless another provider had mounted it, or this node's store was lost, "
	}
	k.notice(of(g, noticed), "StartedEmpty", fmt.Sprintf("volume %q: a container was started %s before %s, so %sit may see an empty folder: restart the pod if it misses its secrets",
		g.Volume.Volume, early.Round(time.Second), what, but))
}

// end lets go of a grant whose pod is over, as soon as no Mount is working with it: a read that returns after the token's
// revocation leaves a lease that nothing removes (measured on Vault 1.21.2).
func (k *Keeper) end(g grant.Grant, reason string) (grant.Instant, error) {
	return k.Now(), k.giveUp(g.ID, PodEnded, reason, func(*grant.Grant) {})
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
		if g.Needed(now) && !g.Login.Over(now) {
			return now.Add(time.Minute), nil
		}
		return now, k.letGo(g.ID, "replaced, and nothing needs it any more")
	case grant.Active:
		return k.renew(ctx, g)
	}
	return 0, fmt.Errorf("unknown state %q", g.State)
}

// renew renews the token and the leases that are due, and warns of what no renewal can keep alive. One that fails does not keep
// the others from being tried, unless Vault cannot be reached at all.
func (k *Keeper) renew(ctx context.Context, g grant.Grant) (grant.Instant, error) {
	client, err := k.Vaults.Client(g.Server, g.Pod.Namespace)
	if err != nil {
		return k.later(g, err)
	}
	var failure error
	now := k.Now()
	if due := g.RenewalDue(now); due != 0 {
		if g.Failures == 0 {
			k.RenewalBegan(now.Sub(due))
		}
		var work trace.Span
		ctx, work = k.begun(ctx, span.Renew, g)
		defer func() { span.End(work, failure) }()
	}
	if g.TokenRenewal(k.Now()) {
		g, failure = k.renewToken(ctx, client, g)
	}
	for _, l := range g.Renewals(k.Now()) {
		if e, ok := errors.AsType[*vault.Error](failure); ok && e.Repeatable() {
			break
		}
		if g, err = k.renewLease(ctx, client, g, l); failure == nil {
			failure = err
		}
	}
	k.lives.learn(g)
	if g, err = k.warn(g); err != nil {
		return k.Now().Add(time.Minute), err
	}
	if failure != nil {
		return k.later(g, failure)
	}
	if g.Failures > 0 {
		if g, err = k.Store.Update(g.ID, func(g *grant.Grant) error { g.Failures, g.Problem = 0, ""; return nil }); err != nil {
			return k.Now().Add(time.Minute), err
		}
	}
	return g.NextLook(k.Now()), nil
}

func (k *Keeper) renewToken(ctx context.Context, client *vault.Client, g grant.Grant) (grant.Grant, error) {
	increment := min(g.Login.Full, k.OrphanTTL)
	from := k.Now()
	asking, err := k.Store.Update(g.ID, func(g *grant.Grant) error { g.Login = g.Login.Asking(from, increment); return nil })
	if err != nil {
		return g, err
	}
	g = asking
	life, err := within(ctx, g.Login.TryTime(from), func(ctx context.Context) (vault.Life, error) {
		return client.RenewSelf(ctx, session(&g), increment)
	})
	switch vault.KindOf(err) {
	case vault.InvalidToken:
		return k.tokenRefused(ctx, client, g, err)
	case vault.Unrenewable, vault.Denied:
		k.say(of(g, RenewalOver).failed(err, asked(g)))
		return k.Store.Update(g.ID, func(g *grant.Grant) error { g.Login.Renewable, g.Problem = false, err.Error(); return nil })
	}
	if err != nil {
		return g, err
	}
	k.say(of(g, Renewed).at("", life.TTL).asking(life.Request))
	cluster := g.Cluster
	if cluster == "" { // it could not be asked for at the login; what renews the token is its own
		cluster, _ = within(ctx, grant.RequestTimeout, func(ctx context.Context) (string, error) { return client.RecentCluster(ctx), nil })
	}
	return k.Store.Update(g.ID, func(g *grant.Grant) error {
		g.Cluster = cluster
		g.Login = g.Login.Renewed(from, life.TTL, increment, life.Renewable)
		return nil
	})
}

func (k *Keeper) renewLease(ctx context.Context, client *vault.Client, g grant.Grant, l grant.Lease) (grant.Grant, error) {
	from := k.Now()
	life, err := within(ctx, l.Term.TryTime(from), func(ctx context.Context) (vault.Life, error) {
		return client.RenewLease(ctx, session(&g), l, 0)
	})
	change := func(to func(grant.Term) grant.Term) (grant.Grant, error) {
		return k.Store.Update(g.ID, func(g *grant.Grant) error {
			for i := range g.Leases { // a Mount may have changed the order meanwhile
				if g.Leases[i].ID == l.ID {
					g.Leases[i].Term = to(g.Leases[i].Term)
				}
			}
			return nil
		})
	}
	switch vault.KindOf(err) {
	case vault.InvalidToken:
		return k.tokenRefused(ctx, client, g, err)
	case vault.LeaseGone, vault.LeaseEnded:
		k.lost(g, fmt.Sprintf("the lease of %q was revoked or expired", l.Read.Path))
		return change(func(t grant.Term) grant.Term { return t.Lost(from) })
	case vault.Unrenewable, vault.Denied:
		k.say(of(g, RenewalOver).at(l.Read.Path, 0).failed(err, asked(g)))
		return change(func(t grant.Term) grant.Term { t.Renewable = false; return t })
	}
	if err != nil {
		return g, &leaseError{l.Read.Path, fmt.Errorf("%q: %w", l.Read.Path, err)}
	}
	k.say(of(g, Renewed).at(l.Read.Path, life.TTL).asking(life.Request))
	return change(func(t grant.Term) grant.Term { return t.Renewed(from, life.TTL, 0, life.Renewable) })
}

// tokenRefused takes the token, and with it the leases, for lost when the Vault that made it says that it does not know it.
func (k *Keeper) tokenRefused(ctx context.Context, client *vault.Client, g grant.Grant, refusal error) (grant.Grant, error) {
	if !k.sameCluster(ctx, client, g) {
		return g, refusal
	}
	k.lost(g, "its Vault token was revoked or expired")
	now := k.Now()
	return k.Store.Update(g.ID, func(g *grant.Grant) error {
		g.Login = g.Login.Lost(now)
		for i := range g.Leases {
			g.Leases[i].Term = g.Leases[i].Term.Lost(now)
		}
		return nil
	})
}

func (k *Keeper) lost(g grant.Grant, what string) {
	c := of(g, Lost).because(what)
	c.Trouble = vault.RevokedElsewhere
	k.say(c)
	k.Event(g.Pod, "Warning", "LeaseLost", fmt.Sprintf("volume %q: %s outside of Leasehold; new credentials come with the next republish", g.Volume.Volume, what))
}

// warn tells the pod's owners, once each, of leases that will lapse before something replaces them.
func (k *Keeper) warn(g grant.Grant) (grant.Grant, error) {
	now := k.Now()
	container := k.SubPath(g.Volume.PodUID, g.Volume.Volume)
	asked := k.volumes.lastAsked(g.Volume, now)
	warned := make(map[secret.Value][]grant.Warning)
	for _, l := range g.Leases {
		for _, w := range g.Warnings(l, now, asked, container != "") {
			warned[l.ID] = append(warned[l.ID], w)
			left := g.LeaseLeft(l, now)
			k.notice(of(g, noticed), "WillLapse", fmt.Sprintf("volume %q: the credentials of %q end in %s (%s) and cannot be extended; %s",
				g.Volume.Volume, l.Read.Path, left.Round(time.Second), wall(left), explain(w, g, l, now.Sub(asked), container)))
		}
	}
	if len(warned) == 0 {
		return g, nil
	}
	return k.Store.Update(g.ID, func(g *grant.Grant) error {
		for i := range g.Leases {
			g.Leases[i].Warned = append(g.Leases[i].Warned, warned[g.Leases[i].ID]...)
		}
		return nil
	})
}

// explain says why nothing may replace a lease in time.
func explain(w grant.Warning, g grant.Grant, l grant.Lease, silent time.Duration, container string) string {
	switch w {
	case grant.BelowFloor:
		return fmt.Sprintf("a life of at most %s is below the %s that replacing them at republishes needs: raise the maximum TTL, or republish more often",
			min(l.Term.Span(), g.Login.Span()).Round(time.Second), grant.Floor(g.Gap).Round(time.Second))
	case grant.Late:
		return fmt.Sprintf("nobody has asked for new ones for %s: are rotation (--enable-secret-rotation of the CSI driver) and requiresRepublish (CSIDriver object) on?",
			silent.Round(time.Second))
	default:
		return fmt.Sprintf("container %q mounts them by subPath and will not see the new ones: mount the whole volume", container)
	}
}

// wall is the time of day in a while, for people.
func wall(in time.Duration) string { return time.Now().Add(in).UTC().Format(time.RFC3339) }

const (
	firstPause   = time.Second
	longestPause = 30 * time.Second
	uncounted    = 6 // failures, that lead to longestPause
	// tellAt and tellEvery are the numbers of failures in a row at which people are told.
	tellAt    = 3
	tellEvery = 20
)

// later notes and tells of a failure and says when to try again: sooner when little is left, and not all grants at once.
func (k *Keeper) later(g grant.Grant, failure error) (grant.Instant, error) {
	after, err := k.Store.Update(g.ID, func(g *grant.Grant) error {
		g.Failures++
		g.Problem = failure.Error()
		return nil
	})
	if err != nil { // there is nothing to count in, so the pause is the longest
		after, after.Failures = g, uncounted
	}
	now := k.Now()
	pause := min(firstPause<<min(after.Failures-1, 10), longestPause)
	if left := after.Lapse(now).Sub(now); left > 0 && left < 8*pause {
		pause = max(left/8, firstPause)
	}
	pause += time.Duration(after.Jitter() * float64(pause) / 4)
	if refused, ok := errors.AsType[*vault.Error](failure); ok {
		pause = max(pause, refused.RetryAfter)
	}
	if after.Failures == tellAt || after.Failures%tellEvery == 0 {
		k.tellTrouble(after, failure, now)
	}
	kind := RenewalFailed
	if g.State == grant.Revoking {
		kind = RevocationFailed
	}
	c := of(g, kind).failed(failure, asked(g))
	c.Again = pause
	k.say(c)
	return now.Add(pause), err
}

// tellTrouble says on the pod what fails again and again, and until when that does no harm.
func (k *Keeper) tellTrouble(g grant.Grant, failure error, now grant.Instant) {
	if g.State == grant.Revoking {
		k.Event(g.Pod, "Warning", "RevocationFailing", fmt.Sprintf("volume %q: its leases could not be given back yet, %d tries failed; they are tried until %s, when they run out by themselves: %v",
			g.Volume.Volume, g.Failures, wall(max(0, g.Login.Limit.Sub(now))), failure))
		return
	}
	if lapse := g.Lapse(now); lapse != math.MaxInt64 {
		k.Event(g.Pod, "Warning", "RenewalFailing", fmt.Sprintf("volume %q: its credentials are valid until %s, but %d tries to renew failed: %v",
			g.Volume.Volume, wall(lapse.Sub(now)), g.Failures, failure))
	}
}

// sameCluster reports whether the server at the grant's address is certainly the one that made it. Another one's "invalid
// token" says nothing about the grant.
func (k *Keeper) sameCluster(ctx context.Context, client *vault.Client, g grant.Grant) bool {
	id, _ := within(ctx, grant.RequestTimeout, func(ctx context.Context) (string, error) { return client.Cluster(ctx), nil })
	return id != "" && id == g.Cluster
}

func within[T any](ctx context.Context, limit time.Duration, request func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return request(ctx)
}
