package grant

import (
	"cmp"
	"slices"
	"time"
)

const (
	// issuePace is how long after a certificate the next one is issued at the earliest, should a wrong clock make it look as if it
	// had ended; of short ones a twentieth of their life.
	issuePace = 10 * time.Minute
	// rotationSlack is how long after its rotation a password is read: the ttl that Vault states is of whole seconds.
	rotationSlack = 2 * time.Second
	// maxCertificates is how many a grant remembers. There are ten of a read at most, unless many edited classes each bring their own.
	maxCertificates = 1024
)

// Validity is what a certificate says of its life.
type Validity struct {
	// Span is from its beginning to its end; zero when it cannot be told.
	Span time.Duration
	// Left is what was left of it by the wall clock when it came, zero or less when it seemed to have ended.
	Left time.Duration
}

// Life is the longest that the certificate can have been issued for, whatever clock is wrong.
func (v Validity) Life() time.Duration { return max(v.Span, v.Left, 0) }

// ReissueAfter is how long after a certificate came the next one is due: when so many percent of what was left have passed, and in
// time for a republish and another; gap is as for Term.Due. odd says that by this node's clock next to nothing is left of its life,
// so that it is not the clock that decides.
func (v Validity) ReissueAfter(percent int, gap time.Duration) (after time.Duration, odd bool) {
	left := max(v.Left, 0)
	if v.Span > 0 {
		left = min(left, v.Span)
	}
	pace := min(issuePace, cmp.Or(v.Life()/20, issuePace))
	after = min(left/100*time.Duration(percent), left-replacing(gap, left))
	return max(after, pace), after < pace
}

// Rotation is what Vault says of a password that it changes by itself: until it does.
type Rotation time.Duration

// Imminent reports whether what was read may be old when it arrives.
func (r Rotation) Imminent() bool { return time.Duration(r) <= rotationSlack }

// Over is how long after the read it certainly is, if it comes in time.
func (r Rotation) Over() time.Duration { return time.Duration(r) + rotationSlack }

// RefreshAfter is how long after the read another one is due: never just before the password changes, and no later than any other
// secret, because people change it too.
func (r Rotation) RefreshAfter(interval time.Duration) time.Duration {
	if interval < time.Duration(r)-rotationSlack {
		return interval
	}
	return r.Over()
}

// Inherit takes the certificates over of a grant that this one supersedes: they can be revoked under any token of the same Vault, and
// that of the other one is renewed no more.
func (g *Grant) Inherit(from *Grant, now Instant) {
	if from.Server.Address != g.Server.Address || from.Namespace != g.Namespace {
		return
	}
	for _, c := range from.Certificates {
		g.Certify(c, now)
	}
	from.Certificates = nil
}

// Certify remembers a certificate, and forgets those that ended and, of too many, the one that ends first.
func (g *Grant) Certify(c Certificate, now Instant) {
	g.Certificates = slices.DeleteFunc(append(g.Certificates, c), func(c Certificate) bool { return c.Term.Left(now) == 0 })
	if len(g.Certificates) > maxCertificates {
		first := slices.MinFunc(g.Certificates, func(a, b Certificate) int { return cmp.Compare(a.Term.Left(now), b.Term.Left(now)) })
		g.Certificates = slices.DeleteFunc(g.Certificates, func(c Certificate) bool { return c == first })
	}
}
