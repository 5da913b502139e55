package grant

import "time"

const (
	// renewEvery is the longest pause between two renewals, so that a revocation by somebody else is noticed.
	renewEvery = 10 * time.Minute
	// republishRoom is what a replacement needs at the driver's and kubelet's default pace: one rotation poll interval (2 m)
	// and one republish (up to 90 s), with a margin.
	republishRoom = 4 * time.Minute
)

// Term is the life of a token or a lease as Vault last stated it. Vault states lives as seconds from now; they are kept as
// the instant at which the request was sent and the seconds, so that the end is never reckoned too late.
type Term struct {
	// From is when the request was sent whose reply stated TTL.
	From Instant
	// TTL is the stated life; zero for a life without end.
	TTL time.Duration
	// Full is the TTL last given without being cut by a maximum.
	Full time.Duration
	// Limit is an instant that the end cannot lie after, whatever became of renewals whose reply was lost.
	Limit Instant
	// Renewable is false when Vault said so, or when it refused a renewal for good.
	Renewable bool
	// Final: the last renewal was cut by a maximum TTL, so the next would not bring more.
	Final bool
}

// NewTerm is the life stated by the reply to a request sent at from.
func NewTerm(from Instant, ttl time.Duration, renewable bool) Term {
	return Term{From: from, TTL: ttl, Full: ttl, Limit: from.Add(ttl), Renewable: renewable}
}

// Expiry is when it ends; zero when it has no end.
func (t Term) Expiry() Instant {
	if t.TTL == 0 {
		return 0
	}
	return t.From.Add(t.TTL)
}

// Left is what is left of it at now, never negative. A life without end has a century left.
func (t Term) Left(now Instant) time.Duration {
	if t.TTL == 0 {
		return 100 * 365 * 24 * time.Hour
	}
	return max(0, t.Expiry().Sub(now))
}

// Over reports whether it ended for certain: every renewal that may have reached Vault is reckoned with.
func (t Term) Over(now Instant) bool { return t.TTL != 0 && now >= t.Limit }

// Extends reports whether a renewal can lengthen it.
func (t Term) Extends() bool { return t.TTL != 0 && t.Renewable && !t.Final }

// RenewAt is when to renew: after a third of the stated life, so that two failed tries leave time for a third, and at least
// every ten minutes. jitter in [0,1) brings it forward by up to a tenth. Zero when a renewal would bring nothing.
func (t Term) RenewAt(jitter float64) Instant {
	if !t.Extends() {
		return 0
	}
	pause := min(t.TTL/3, renewEvery)
	return t.From.Add(pause - time.Duration(jitter*float64(pause)/10))
}

// Asking notes, before a renewal is sent at now, how far it may lengthen the life even if its reply is lost.
func (t Term) Asking(now Instant, increment time.Duration) Term {
	t.Limit = max(t.Limit, now.Add(max(increment, t.Full)))
	return t
}

// Renewed is the life after a renewal sent at from was granted ttl, where asked was wanted (zero: as before).
//
// A reply below what was asked means a maximum TTL when the end did not come nearer (Vault 1.21: 20, 20, 12, then
// "lease not found"), and a changed role when it did: a maximum never takes back what was promised.
func (t Term) Renewed(from Instant, ttl, asked time.Duration, renewable bool) Term {
	if asked == 0 {
		asked = t.Full
	}
	next := NewTerm(from, max(ttl, 1), renewable) // 0 is the rest of the last second here, not a life without end
	const rounding = 2 * time.Second              // Vault states whole seconds
	cut := ttl+rounding < asked
	if cut && next.Expiry() >= t.Expiry().Add(-rounding) {
		next.Final, next.Full = true, t.Full
	}
	return next
}

// Lost is the life of something that Vault no longer knows.
func (t Term) Lost(now Instant) Term {
	return Term{From: now, TTL: 1, Full: t.Full, Limit: now.Add(1), Final: true}
}

// Due reports whether a republish at now should replace it: nothing lengthens it any more, and what is left is about what a
// republish needs. Of a short life at least half is used.
func (t Term) Due(now Instant) bool {
	if t.TTL == 0 || t.Extends() && t.Left(now) > 0 { // what ran out in an outage is renewed by nobody
		return false
	}
	room := max(t.Full/3, min(republishRoom, t.Full/2))
	return t.Left(now) <= room
}
