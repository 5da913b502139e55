package grant

import (
	"cmp"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// Times of the life of a grant.
const (
	// RequestLimit is Vault's own limit for one request (default_max_request_duration, 90 s): after it nothing that was
	// sent before can still be executed.
	RequestLimit = 90 * time.Second
	// PartialLife is how long a Partial grant waits for the next try; kubelet's longest pause between two is 2 m 2 s.
	PartialLife = 5 * time.Minute
)

// Leased reports whether a lease under the token may still be alive at now.
func (g *Grant) Leased(now Instant) bool {
	for _, l := range g.Leases {
		if l.Term.Left(now) > 0 {
			return true
		}
	}
	return false
}

// Needed reports whether the token is at now: a lease hangs on it, or a certificate is to be revoked with it.
func (g *Grant) Needed(now Instant) bool {
	return g.Leased(now) || slices.ContainsFunc(g.Certificates, func(c Certificate) bool { return c.Term.Left(now) > 0 })
}

// Busy reports whether Vault may be working on a request under the token that must not meet a revocation.
func (g *Grant) Busy(now Instant) bool { return now < g.BusyUntil }

// Readable reports whether the token lives long enough at now for a read to end before it does.
func (g *Grant) Readable(now Instant) bool {
	return !g.Token.IsZero() && g.Login.Left(now) >= min(RequestLimit, g.Login.Full/2)
}

// Lease returns the lease behind the current answer of a read, or nil.
func (g *Grant) Lease(r spec.Read) *Lease {
	for i := range g.Leases {
		if l := &g.Leases[i]; l.Read == r && !l.Superseded {
			return l
		}
	}
	return nil
}

// TokenDue reports whether a republish at now needs a new login: the token is needed and nothing lengthens it any more.
func (g *Grant) TokenDue(now Instant) bool { return g.Needed(now) && g.Login.Due(now, g.Gap) }

// AnswerDue reports whether a republish at now should read the answer again.
func (g *Grant) AnswerDue(a Answer, now Instant) bool {
	if a.Leased {
		l := g.Lease(a.Read)
		if l == nil || l.Term.Left(now) == 0 {
			return true
		}
		if a.RefreshAt == 0 {
			return l.Term.Due(now, g.Gap)
		}
	}
	return a.RefreshAt != 0 && now >= a.RefreshAt
}

// Supersede marks the leases of a read as replaced and forgets those that ran out.
func (g *Grant) Supersede(r spec.Read, now Instant) {
	kept := g.Leases[:0]
	for _, l := range g.Leases {
		if l.Read == r {
			l.Superseded = true
		}
		if !l.Superseded || l.Term.Left(now) > 0 {
			kept = append(kept, l)
		}
	}
	g.Leases = kept
}

// vaultTries is how long Vault tries to revoke a lease that ended: six times, with pauses of 20, 40, 80, 160 and 320 s and up to
// half as much of jitter (1.21.2). Then it gives the lease up, and what it stood for stays in the back end for ever.
const vaultTries = 16 * time.Minute

// Probes are the leases whose renewal tells whether their back ends work: those that live, and those that ended by themselves and
// that Vault may still be trying to revoke, where no living one of the same path can tell. Revoking the token would be another try,
// and if the back end is down a wasted one.
func (g *Grant) Probes(now Instant) []Lease {
	var probes []Lease
	for _, l := range g.Leases {
		if l.Term.Left(now) > 0 {
			if l.Term.Renewable {
				probes = append(probes, l)
			}
			continue
		}
		tells := func(other Lease) bool { return other.Read.Path == l.Read.Path && other.Term.Left(now) > 0 }
		if now < l.Term.Expiry().Add(vaultTries) && !slices.ContainsFunc(g.Leases, tells) {
			probes = append(probes, l)
		}
	}
	return probes
}

// Jitter spreads the renewals of grants that began together. It is fixed for a volume and its beginning, so that a schedule computed
// twice is the same.
func (g *Grant) Jitter() float64 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(strconv.FormatInt(int64(g.Created), 10) + "/" + g.Volume.PodUID + "/" + g.Volume.Volume))
	return float64(h.Sum32()) / (1 << 32)
}

// NextRenewal is when the token or a lease is to be renewed; zero for never.
func (g *Grant) NextRenewal(now Instant) Instant {
	if g.State != Active || !g.Needed(now) {
		return 0
	}
	jitter := g.Jitter()
	next := g.Login.RenewAt(jitter)
	for _, l := range g.Leases {
		if !l.Superseded {
			next = Earliest(next, l.Term.RenewAt(jitter))
		}
	}
	return next
}

// NextLook is when something is due that no other event brings about: a renewal of the token or of a lease, or the moment at
// which a replacement is late. Zero for never. A token that is not needed is not renewed: it lapses, and a later refresh logs in
// again.
func (g *Grant) NextLook(now Instant) Instant {
	if g.State != Active || !g.Needed(now) {
		return 0
	}
	next := Earliest(g.NextRenewal(now), after(now, g.Login.LateAt(g.Gap)))
	for _, l := range g.Leases {
		if !l.Superseded {
			next = Earliest(next, after(now, l.Term.LateAt(g.Gap)))
		}
	}
	return next
}

// after returns i when it lies ahead; zero otherwise.
func after(now, i Instant) Instant {
	if i <= now {
		return 0
	}
	return i
}

// Renewals are the leases that are due for a renewal at now, least time left first.
func (g *Grant) Renewals(now Instant) []Lease {
	var due []Lease
	jitter := g.Jitter()
	for _, l := range g.Leases {
		if at := l.Term.RenewAt(jitter); !l.Superseded && at != 0 && at <= now {
			due = append(due, l)
		}
	}
	slices.SortStableFunc(due, func(a, b Lease) int { return cmp.Compare(a.Term.Expiry(), b.Term.Expiry()) })
	return due
}

// TokenRenewal reports whether the token is due for a renewal at now.
func (g *Grant) TokenRenewal(now Instant) bool {
	at := g.Login.RenewAt(g.Jitter())
	return at != 0 && at <= now && g.Needed(now)
}

// RenewalDue is since when a renewal of the token or of a lease is due at now; zero when none is.
func (g *Grant) RenewalDue(now Instant) (due Instant) {
	if g.TokenRenewal(now) {
		due = g.Login.RenewAt(g.Jitter())
	}
	for _, l := range g.Renewals(now) {
		due = Earliest(due, l.Term.RenewAt(g.Jitter()))
	}
	return due
}

// Lapse is when the first of what the volume shows runs out unless it is renewed or replaced. The largest Instant when nothing can.
func (g *Grant) Lapse(now Instant) Instant {
	lapse := Instant(math.MaxInt64)
	if g.State != Active || !g.Leased(now) {
		return lapse
	}
	for _, l := range g.Leases {
		if !l.Superseded && l.Term.Left(now) > 0 {
			lapse = min(lapse, now.Add(g.LeaseLeft(l, now)))
		}
	}
	return lapse
}

// longestTurn is how long a look may wait because others have less time left.
const longestTurn = time.Minute

// LookBy is until when a look that is due at now should begin: what has least time left comes first, and nothing is put off for good.
// A grant that shows nothing is looked at without Vault, and while its look waits it can begin to show what runs out soon.
func (g *Grant) LookBy(now Instant) Instant {
	switch g.State {
	case Pending, Partial, Superseded:
		return now
	default:
		return min(g.Lapse(now), now.Add(longestTurn))
	}
}

// Ends is when the first of what the volume shows and a republish at now should replace ends, or has ended. Zero for never.
func (g *Grant) Ends(now Instant) (ends Instant) {
	for _, l := range g.Leases {
		if !l.Superseded && (l.Term.Due(now, g.Gap) || g.Login.Due(now, g.Gap)) {
			ends = Earliest(ends, l.Term.Expiry(), g.Login.Expiry())
		}
	}
	return ends
}

// LeaseLeft is what is left of a lease at now: it ends with its token at the latest.
func (g *Grant) LeaseLeft(l Lease, now Instant) time.Duration {
	return min(l.Term.Left(now), g.Login.Left(now))
}

// Warning says what is wrong with how long a lease lives.
type Warning string

// The warnings that people are given about a lease, each once.
const (
	// BelowFloor: it lives shorter than republishes need, so that the volume can show something dead for a while.
	BelowFloor Warning = "BelowFloor"
	// Late: nobody asked to replace it although that is due.
	Late Warning = "Late"
	// Frozen: a container mounts the file by subPath, and will never see what replaces it.
	Frozen Warning = "Frozen"
)

// end is the term that a lease ends with: its own, or that of a token that ends before and that no renewal lengthens. fixed says that it
// ends, and no renewal lengthens it.
func (g *Grant) end(l Lease, now Instant) (end Term, fixed bool) {
	end = l.Term
	if !g.Login.Extends() && g.Login.Left(now) < l.Term.Left(now) {
		end = g.Login
	}
	return end, end.TTL != 0 && !end.Extends()
}

// Overdue reports whether a lease is near its end, and should have been replaced: half of the time for that is gone, whether nobody has
// asked for another one or Vault gave none.
func (g *Grant) Overdue(l Lease, now Instant) bool {
	end, fixed := g.end(l, now)
	return g.State == Active && !l.Superseded && g.LeaseLeft(l, now) > 0 && fixed && now >= end.LateAt(g.Gap)
}

// Warnings are those that a lease calls for at now and that were not given yet. asked is when a Mount last asked for the
// volume's files; frozen says that a container mounts them by subPath.
func (g *Grant) Warnings(l Lease, now, asked Instant, frozen bool) []Warning {
	if g.State != Active || l.Superseded || g.LeaseLeft(l, now) == 0 {
		return nil
	}
	ends, fixed := g.end(l, now)
	if !fixed {
		return nil
	}
	var warnings []Warning
	warn := func(w Warning, called bool) {
		if called && !slices.Contains(l.Warned, w) {
			warnings = append(warnings, w)
		}
	}
	span := ends.Span()
	warn(BelowFloor, span != 0 && span < Floor(g.Gap))
	late := ends.LateAt(g.Gap)
	warn(Late, now >= late && asked < late.Add(-ends.room(g.Gap)/2))
	warn(Frozen, frozen)
	return warnings
}
