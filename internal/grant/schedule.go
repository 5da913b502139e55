package grant

import (
	"hash/fnv"
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

// TokenDue reports whether a republish at now needs a new login: leases hang on the token and nothing lengthens it any more.
func (g *Grant) TokenDue(now Instant) bool { return g.Leased(now) && g.Login.Due(now) }

// AnswerDue reports whether a republish at now should read the answer again.
func (g *Grant) AnswerDue(a Answer, now Instant) bool {
	if a.Leased {
		l := g.Lease(a.Read)
		return l == nil || l.Term.Due(now)
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

// Jitter spreads the renewals of grants that began together. It is fixed for one grant, so that a schedule computed twice
// is the same.
func (g *Grant) Jitter() float64 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(g.ID))
	return float64(h.Sum32()) / (1 << 32)
}

// NextRenewal is when the token or a lease should be renewed next; zero when nothing is to be renewed. A grant without
// leases is not: its token lapses, and a later refresh logs in again.
func (g *Grant) NextRenewal(now Instant) Instant {
	if g.State != Active || !g.Leased(now) {
		return 0
	}
	next := g.Login.RenewAt(g.Jitter())
	for _, l := range g.Leases {
		if !l.Superseded {
			next = Earliest(next, l.Term.RenewAt(g.Jitter()))
		}
	}
	return next
}
