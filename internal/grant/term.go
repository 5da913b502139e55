package grant

import (
	"cmp"
	"time"
)

const (
	// renewEvery is the longest pause between two renewals, so that a revocation by somebody else is noticed.
	renewEvery = 10 * time.Minute
	// usualGap is the longest time between a change of the files and the next republish at the driver's and kubelet's default
	// pace: one rotation poll interval (2 m) and one republish (up to 90 s).
	usualGap = 3*time.Minute + 30*time.Second
	// another is added to a gap: a second republish, should the first fail, and the time to do its work in.
	another = 2 * time.Minute
	// One try to renew may take what two failed ones leave time for, within these bounds.
	shortestTry, longestTry = 2 * time.Second, 30 * time.Second
	// rounding is how far two lives that Vault states may differ although they are the same: it states whole seconds.
	rounding = 2 * time.Second
)

// RequestTimeout bounds each revocation, and each renewal of what lives long.
const RequestTimeout = longestTry

// Term is the life of a token or a lease as Vault last stated it. Vault states lives as seconds from now; they are kept as
// the instant at which the request was sent and the seconds, so that the end is never reckoned too late.
type Term struct {
	// Issued is when the token or lease was first asked for; zero when the record is older than this field.
	Issued Instant
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
	Final bool `json:",omitempty"`
	// Max is the longest life of its kind, as far as a renewal that was cut has told; zero before one was.
	Max time.Duration `json:",omitempty"`
}

// NewTerm is the life stated by the reply to a request sent at from.
func NewTerm(from Instant, ttl time.Duration, renewable bool) Term {
	return Term{Issued: from, From: from, TTL: ttl, Full: ttl, Limit: from.Add(ttl), Renewable: renewable}
}

// WithMax is t with what is known of its kind: that one lived for longest and no longer. Zero, and what t itself disproves, is
// no knowledge.
func (t Term) WithMax(longest time.Duration) Term {
	if t.TTL == 0 || longest+rounding < t.Span() {
		longest = 0
	}
	t.Max = longest
	return t
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

// Span is its whole life, from the first request to its end; zero when it has no end, or a beginning that is not known.
func (t Term) Span() time.Duration {
	if t.TTL == 0 || t.Issued == 0 {
		return 0
	}
	return t.Expiry().Sub(t.Issued)
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

// TryTime is how long one try to renew may take at now: a third of what is left, so that a second and a third still fit.
func (t Term) TryTime(now Instant) time.Duration {
	return min(max(t.Left(now)/3, shortestTry), longestTry)
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
	next.Issued = t.Issued
	next = next.WithMax(t.Max)
	cut := ttl+rounding < asked
	if cut && next.Expiry() >= t.Expiry().Add(-rounding) {
		next.Final, next.Full = true, t.Full
		next.Max = cmp.Or(next.Span(), t.Max)
	}
	return next
}

// Lost is the life of something that Vault no longer knows.
func (t Term) Lost(now Instant) Term {
	return Term{Issued: t.Issued, From: now, TTL: 1, Full: t.Full, Limit: now.Add(1), Final: true, Max: t.Max}
}

// Due reports whether a republish at now should replace it: what is left, with all that renewals can still add, is about what a
// republish needs. What its kind has taught counts, so that an outage before the renewal that would be cut takes no room away. gap
// is the longest seen between a change of the files and the republish after it; zero before one was seen.
func (t Term) Due(now Instant, gap time.Duration) bool {
	left := t.Left(now)
	if t.Extends() && left > 0 { // what ran out in an outage is renewed by nobody
		if t.Max == 0 || t.Issued == 0 {
			return false
		}
		left = t.Issued.Add(t.Max).Sub(now)
	}
	return t.TTL != 0 && left <= t.room(gap)
}

// LateAt is when a replacement that is due and did not come is late: half of its room is gone. Zero when nothing is due.
func (t Term) LateAt(gap time.Duration) Instant {
	if t.TTL == 0 || t.Extends() {
		return 0
	}
	return t.Expiry().Add(-t.room(gap) / 2)
}

// room is how long before its end a replacement is sought: at least a third of its life, and time for one republish and another,
// but at least half of all its life, as far as it is known, is used. A gap below the usual one is not relied on: it may be that of a mere retry.
func (t Term) room(gap time.Duration) time.Duration {
	life := max(t.Full, t.Span())
	if t.Extends() {
		life = max(life, t.Max)
	}
	return max(t.Full/3, replacing(gap, life))
}

// replacing is the time that replacing something takes at most which lives for so long: a republish and another, but no more than half
// of its life.
func replacing(gap, life time.Duration) time.Duration { return min(max(gap, usualGap)+another, life/2) }

// Floor is the shortest maximum life that can be replaced without a lapse when republishes come as far apart as gap. A zero gap
// is that of the driver's and kubelet's default pace.
func Floor(gap time.Duration) time.Duration { return 2 * cmp.Or(gap, usualGap) }
