package vaulttest

import (
	"container/heap"
	"errors"
	"fmt"
	"strings"
	"time"
)

// mountTTL is Vault's default for both the default and the maximum TTL of a mount.
const mountTTL = 768 * time.Hour

// maxAttempts is how often Vault tries to revoke a lease before it calls it irrevocable.
const maxAttempts = 6

// token is a login token or a child of one. A batch token is not in Vault's token store: nothing hangs below it.
type token struct {
	id, accessor string
	role         string // as in Vault.roles
	path         string
	batch        bool
	uses         int  // calls left; 0: unlimited
	spent        bool // the last of a limited number of uses has begun
	grant        Role
	identity     Identity
	orphan       bool
	issued       time.Time
	known        time.Time // when this node learns of it
	expires      time.Time
	creationTTL  time.Duration
	revoked      bool
	leases       []*lease
	children     []*token
}

// lease is one issued secret. It is revoked some time after it expired.
type lease struct {
	id, path    string
	accessor    string // of its token
	user        string // in the back end; empty if Vault itself is the back end
	renewable   bool
	certificate *Certificate // behind it; nil for none
	bound       time.Time    // never beyond: the end of a batch token; zero if unbound
	issued      time.Time
	expires     time.Time
	renewed     time.Time
	due         time.Time // the next attempt to revoke it; zero if none is planned
	attempts    int
	revoked     bool
	irrevocable bool
}

// limits are the bounds of a TTL; zero means none, or the mount's own.
type limits struct {
	ttl, max, explicitMax, period time.Duration
}

// extend computes a new TTL at login, issue and renewal, and the warning if it was cut down. It is Vault's rule: a
// period wins over everything but an explicit maximum; else the increment asked for, not bound by the role's TTL,
// replaces what is left, up to the maximum counted from issue. Like Vault it counts the maximum in whole seconds.
func (l limits) extend(issued, now time.Time, increment time.Duration) (time.Duration, []string, error) {
	longest := mountTTL
	for _, m := range []time.Duration{l.max, l.explicitMax} {
		if m > 0 && m < longest {
			longest = m
		}
	}
	var ttl time.Duration
	switch {
	case l.period > 0:
		ttl = min(l.period, longest)
		if l.explicitMax == 0 {
			return ttl, nil, nil
		}
	case increment > 0:
		ttl = increment
	case l.ttl > 0:
		ttl = l.ttl
	default:
		ttl = mountTTL
	}
	left := issued.Truncate(time.Second).Add(longest).Sub(now.Truncate(time.Second))
	if left <= 0 {
		return 0, nil, errors.New("past the max TTL, cannot renew")
	}
	if ttl <= left {
		return ttl, nil, nil
	}
	warning := fmt.Sprintf("TTL of %q exceeded the effective max_ttl of %q; TTL value is capped accordingly",
		human(ttl), human(left))
	return left, []string{warning}, nil
}

// human prints a duration without its zero parts, as Vault does.
func human(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// expirer is a token or a lease with a deadline.
type expirer interface {
	// dueAt is the instant of its next change by itself; zero if there is none.
	dueAt() time.Time
	// fire makes that change.
	fire(v *Vault, at time.Time)
}

// deadline is an entry of the agenda. It is void once its expirer has another dueAt.
type deadline struct {
	at time.Time
	expirer
}

// agenda is a heap, the next deadline on top.
type agenda []deadline

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a agenda) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)        { *a = append(*a, x.(deadline)) }
func (a *agenda) Pop() any {
	last := len(*a) - 1
	d := (*a)[last]
	*a = (*a)[:last]
	return d
}

func (v *Vault) planLocked(e expirer) {
	heap.Push(&v.pending, deadline{e.dueAt(), e})
}

// settleLocked does what has fallen due, in order. What is overdue because Vault was away is done as of now.
func (v *Vault) settleLocked(now time.Time) {
	for len(v.pending) > 0 && !v.pending[0].at.After(now) {
		d := heap.Pop(&v.pending).(deadline)
		if d.at.Equal(d.dueAt()) {
			d.fire(v, latest(d.at, v.resumed))
		}
	}
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func (t *token) dueAt() time.Time {
	if t.revoked {
		return time.Time{}
	}
	return t.expires
}

func (t *token) fire(v *Vault, at time.Time) { v.revokeTokenLocked(t, at) }

// revokeTokenLocked ends a token at once, its children first. Its leases of any length are only marked and queued.
func (v *Vault) revokeTokenLocked(t *token, at time.Time) {
	if t.revoked {
		return
	}
	for _, child := range t.children {
		v.revokeTokenLocked(child, at)
	}
	t.revoked = true
	if at.Before(t.expires) {
		t.expires = at
	}
	for _, l := range t.leases {
		v.expireLeaseLocked(l, at.Add(v.revocation), at)
	}
}

// expireLeaseLocked ends a lease's time and queues it for revocation. One that is waiting to be tried again loses its
// pause: each trigger makes an attempt, and counts as one.
func (v *Vault) expireLeaseLocked(l *lease, due, at time.Time) {
	if l.revoked || l.irrevocable {
		return
	}
	if at.Before(l.expires) {
		l.expires = at
	}
	l.due = due
	v.planLocked(l)
}

func (l *lease) dueAt() time.Time { return l.due }

// fire tries to revoke the lease in its back end. Vault's pauses are 2^n x 10 s with up to half of that as jitter; here
// they are without jitter: 20, 40, 80, 160 and 320 s. Its daily retry of irrevocable leases is left out.
func (l *lease) fire(v *Vault, at time.Time) {
	if l.user != "" && v.backendDown {
		l.attempts++
		l.due = time.Time{}
		if l.irrevocable = l.attempts == maxAttempts; !l.irrevocable {
			l.due = at.Add(10 * time.Second << l.attempts)
			v.planLocked(l)
		}
		return
	}
	delete(v.users, l.user)
	if l.certificate != nil {
		l.certificate.Revoked = true
	}
	l.due, l.revoked = time.Time{}, true
}

// RevokeLease ends a lease as an operator would: sys/leases/revoke. Unknown leases are left alone.
func (v *Vault) RevokeLease(id string) {
	now := v.enter()
	defer v.mu.Unlock()
	if l := v.byLease[id]; l != nil {
		v.expireLeaseLocked(l, now.Add(v.revocation), now)
		v.settleLocked(now)
	}
}

// RevokeAccessor ends a token and all that hangs on it as an operator would: auth/token/revoke-accessor.
func (v *Vault) RevokeAccessor(accessor string) {
	now := v.enter()
	defer v.mu.Unlock()
	for _, t := range v.tokens {
		if t.accessor == accessor {
			v.revokeTokenLocked(t, now)
			v.settleLocked(now)
		}
	}
}
