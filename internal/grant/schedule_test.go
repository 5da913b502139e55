package grant_test

import (
	"slices"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

var (
	userRead = spec.Read{Method: "GET", Path: "database/creds/my-app"}
	certRead = spec.Read{Method: "PUT", Path: "pki/issue/app"}
)

// leased returns an active grant whose token lives for an hour and which holds one lease of ten minutes.
func leased() *grant.Grant {
	return &grant.Grant{
		ID: "g", State: grant.Active, Token: secret.New("t"),
		Login:  grant.NewTerm(boot, time.Hour, true),
		Leases: []grant.Lease{{ID: secret.New("user"), Read: userRead, Term: grant.NewTerm(boot, 10*time.Minute, true)}},
	}
}

func TestNextLook(t *testing.T) {
	j := leased().Jitter()
	if j < 0 || j >= 1 {
		t.Fatalf("jitter %f", j)
	}
	at := func(ttl time.Duration) grant.Instant { return grant.NewTerm(boot, ttl, true).RenewAt(j) }
	late := grant.NewTerm(boot, 10*time.Minute, false).LateAt(0)
	tests := []struct {
		name   string
		change func(*grant.Grant)
		want   grant.Instant
	}{
		{"the lease first", func(*grant.Grant) {}, at(10 * time.Minute)},
		{"the token first", func(g *grant.Grant) { g.Login = grant.NewTerm(boot, time.Minute, true) }, at(time.Minute)},
		{"superseded leases are not", func(g *grant.Grant) { g.Leases[0].Superseded = true }, at(time.Hour)},
		{"a lease that is not renewable, when its replacement is late", func(g *grant.Grant) { g.Leases[0].Term.Renewable = false }, late},
		{"a late replacement is looked for once", func(g *grant.Grant) { g.Leases[0].Term = grant.NewTerm(boot, 6*s/5, false) }, at(time.Hour)},
		{"nothing leased", func(g *grant.Grant) { g.Leases = nil }, 0},
		{"lease ran out", func(g *grant.Grant) { g.Leases[0].Term = grant.NewTerm(0, s, true) }, 0},
		{"nothing to lengthen", func(g *grant.Grant) { g.Login.Renewable, g.Leases[0].Term.Final = false, true }, late},
		{"pending", func(g *grant.Grant) { g.State = grant.Pending }, 0},
		{"partial", func(g *grant.Grant) { g.State = grant.Partial }, 0},
		{"superseded", func(g *grant.Grant) { g.State = grant.Superseded }, 0},
		{"revoking", func(g *grant.Grant) { g.State = grant.Revoking }, 0},
	}
	for _, test := range tests {
		g := leased()
		test.change(g)
		if got := g.NextLook(boot.Add(s)); got != test.want {
			t.Errorf("%s: %s after boot, want %s", test.name, got.Sub(boot), test.want.Sub(boot))
		}
	}
}

func TestTokenDue(t *testing.T) {
	tests := []struct {
		name   string
		change func(*grant.Grant)
		want   bool
	}{
		{"renewable", func(*grant.Grant) {}, false},
		{"at its maximum", func(g *grant.Grant) { g.Login.Final = true }, true},
		{"at its maximum, nothing leased", func(g *grant.Grant) { g.Login.Final, g.Leases = true, nil }, false},
		{"at its maximum, with life enough", func(g *grant.Grant) { g.Login = grant.NewTerm(boot, 24*time.Hour, false) }, false},
		{"without end", func(g *grant.Grant) { g.Login = grant.NewTerm(boot, 0, false) }, false},
	}
	for _, test := range tests {
		g := leased()
		g.Leases[0].Term = grant.NewTerm(boot, 2*time.Hour, true)
		test.change(g)
		if got := g.TokenDue(boot.Add(50 * time.Minute)); got != test.want {
			t.Errorf("%s: %t", test.name, got)
		}
	}
}

func TestAnswerDue(t *testing.T) {
	answer := grant.Answer{Read: userRead, Leased: true}
	tests := []struct {
		name   string
		answer grant.Answer
		change func(*grant.Grant)
		at     time.Duration
		want   bool
	}{
		{"lease renewable", answer, func(*grant.Grant) {}, 9 * time.Minute, false},
		{"lease at its maximum, early", answer, func(g *grant.Grant) { g.Leases[0].Term.Final = true }, time.Minute, false},
		{"lease at its maximum, late", answer, func(g *grant.Grant) { g.Leases[0].Term.Final = true }, 8 * time.Minute, true},
		{"lease lost", answer, func(g *grant.Grant) { g.Leases[0].Term = g.Leases[0].Term.Lost(boot) }, s, true},
		{"lease forgotten", answer, func(g *grant.Grant) { g.Leases = nil }, 0, true},
		{"only a superseded lease", answer, func(g *grant.Grant) { g.Leases[0].Superseded = true }, 0, true},
		{"plain, early", grant.Answer{Read: certRead, RefreshAt: boot.Add(time.Minute)}, func(*grant.Grant) {}, time.Minute - 1, false},
		{"plain, then", grant.Answer{Read: certRead, RefreshAt: boot.Add(time.Minute)}, func(*grant.Grant) {}, time.Minute, true},
		{"plain, never", grant.Answer{Read: certRead}, func(*grant.Grant) {}, 1000 * time.Hour, false},
	}
	for _, test := range tests {
		g := leased()
		test.change(g)
		if got := g.AnswerDue(test.answer, boot.Add(test.at)); got != test.want {
			t.Errorf("%s: %t", test.name, got)
		}
	}
}

func TestSupersede(t *testing.T) {
	term := grant.NewTerm(boot, 10*time.Minute, true)
	over := grant.NewTerm(0, s, true)
	g := &grant.Grant{Leases: []grant.Lease{
		{ID: secret.New("replaced"), Read: userRead, Term: term},
		{ID: secret.New("other read"), Read: certRead, Term: term},
		{ID: secret.New("replaced and over"), Read: userRead, Term: over},
		{ID: secret.New("other read, replaced and over"), Read: certRead, Term: over, Superseded: true},
		{ID: secret.New("other read, current and over"), Read: certRead, Term: over},
	}}
	g.Supersede(userRead, boot)
	var got []string
	for _, l := range g.Leases {
		state := "current"
		if l.Superseded {
			state = "superseded"
		}
		got = append(got, l.ID.Reveal()+": "+state)
	}
	want := []string{"replaced: superseded", "other read: current", "other read, current and over: current"}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	if l := g.Lease(userRead); l != nil {
		t.Errorf("%q is still behind the answer", l.ID.Reveal())
	}
	if l := g.Lease(certRead); l == nil || l.ID != secret.New("other read") {
		t.Errorf("the other read's lease is %v", l)
	}
}

func TestReadable(t *testing.T) {
	tests := []struct {
		name string
		life time.Duration
		at   time.Duration
		want bool
	}{
		{"a request's time left", time.Hour, time.Hour - grant.RequestLimit, true},
		{"less than a request's time", time.Hour, time.Hour - grant.RequestLimit + 1, false},
		{"half of a short life", 20 * s, 10 * s, true},
		{"less than half of a short life", 20 * s, 10*s + 1, false},
		{"over", 20 * s, time.Hour, false},
		{"without end", 0, time.Hour, true},
	}
	for _, test := range tests {
		g := leased()
		g.Login = grant.NewTerm(boot, test.life, true)
		if got := g.Readable(boot.Add(test.at)); got != test.want {
			t.Errorf("%s: %t", test.name, got)
		}
		if g.Token = (secret.Value{}); g.Readable(boot.Add(test.at)) {
			t.Errorf("%s: readable without a token", test.name)
		}
	}
}

func TestBusyAndLeased(t *testing.T) {
	g := leased()
	g.BusyUntil = boot.Add(s)
	if !g.Busy(boot.Add(s)-1) || g.Busy(boot.Add(s)) {
		t.Error("busy until exactly BusyUntil")
	}
	if end := boot.Add(10 * time.Minute); !g.Leased(end-1) || g.Leased(end) {
		t.Error("leased until exactly the lease's end")
	}
}

func TestRenewalsLeastTimeLeftFirst(t *testing.T) {
	g := leased()
	g.Leases = []grant.Lease{
		{ID: secret.New("later"), Term: grant.NewTerm(boot, 20*time.Minute, true)},
		{ID: secret.New("replaced"), Term: grant.NewTerm(boot, time.Minute, true), Superseded: true},
		{ID: secret.New("soon"), Term: grant.NewTerm(boot, 10*time.Minute, true)},
		{ID: secret.New("not yet"), Term: grant.NewTerm(boot, time.Hour, true)},
		{ID: secret.New("final"), Term: grant.NewTerm(boot, time.Minute, false)},
	}
	var got []string
	for _, l := range g.Renewals(boot.Add(7 * time.Minute)) {
		got = append(got, l.ID.Reveal())
	}
	if want := []string{"soon", "later"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestWarnings(t *testing.T) {
	const hour = time.Hour
	ending := func(life time.Duration) func(*grant.Grant) {
		return func(g *grant.Grant) { g.Leases[0].Term = grant.NewTerm(boot, life, false) }
	}
	tests := []struct {
		name   string
		change func(*grant.Grant)
		at     time.Duration
		asked  time.Duration // when a Mount came last
		frozen bool
		want   []grant.Warning
	}{
		{"renewable", func(*grant.Grant) {}, 9 * time.Minute, 0, true, nil},
		{"long enough, and asked for", ending(hour / 2), 25 * time.Minute, 22 * time.Minute, false, nil},
		{"not asked for since it was due", ending(hour / 2), 25 * time.Minute, 19 * time.Minute, false, []grant.Warning{grant.Late}},
		{"due, and not late yet", ending(hour / 2), 24 * time.Minute, 0, false, nil},
		{"below the floor", ending(6 * time.Minute), 0, 0, false, []grant.Warning{grant.BelowFloor}},
		{"at the floor", ending(7 * time.Minute), 0, 0, false, nil},
		{"a floor of fast republishes", func(g *grant.Grant) { ending(6 * time.Minute)(g); g.Gap = 30 * s }, 0, 0, false, nil},
		{"told already", func(g *grant.Grant) {
			ending(6 * time.Minute)(g)
			g.Leases[0].Warned = []grant.Warning{grant.BelowFloor}
		}, 0, 0, false, nil},
		{"mounted by subPath", ending(hour / 2), 0, 0, true, []grant.Warning{grant.Frozen}},
		{"its token ends first", func(g *grant.Grant) { g.Login = grant.NewTerm(boot, 5*time.Minute, false) }, 0, 0, false, []grant.Warning{grant.BelowFloor}},
		{"superseded", func(g *grant.Grant) { ending(s)(g); g.Leases[0].Superseded = true }, 0, 0, true, nil},
		{"over", ending(6 * time.Minute), 6 * time.Minute, 0, true, nil},
		{"superseded grant", func(g *grant.Grant) { ending(6 * time.Minute)(g); g.State = grant.Superseded }, 0, 0, true, nil},
	}
	for _, test := range tests {
		g := leased()
		test.change(g)
		if got := g.Warnings(g.Leases[0], boot.Add(test.at), boot.Add(test.asked), test.frozen); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestOverdue(t *testing.T) {
	tests := []struct {
		name   string
		change func(*grant.Grant)
		want   bool
	}{
		{"near its end", func(*grant.Grant) {}, true},
		{"not near enough", func(g *grant.Grant) { g.Leases[0].Term = grant.NewTerm(boot, 31*time.Minute, false) }, false},
		{"renewable", func(g *grant.Grant) { g.Leases[0].Term.Renewable = true }, false},
		{"its token near its end", func(g *grant.Grant) {
			g.Leases[0].Term.Renewable = true
			g.Login = grant.NewTerm(boot, 28*time.Minute, false)
		}, true},
		{"superseded", func(g *grant.Grant) { g.Leases[0].Superseded = true }, false},
		{"over", func(g *grant.Grant) { g.Leases[0].Term = grant.NewTerm(boot, 25*time.Minute, false) }, false},
		{"nothing shows it", func(g *grant.Grant) { g.State = grant.Partial }, false},
	}
	for _, test := range tests {
		g := leased()
		g.Leases[0].Term = grant.NewTerm(boot, 30*time.Minute, false)
		test.change(g)
		if got := g.Overdue(g.Leases[0], boot.Add(25*time.Minute)); got != test.want {
			t.Errorf("%s: %t", test.name, got)
		}
	}
}

func TestLapse(t *testing.T) {
	g := leased()
	if got := g.Lapse(boot); got != boot.Add(10*time.Minute) {
		t.Errorf("%s after boot, want the lease's end", got.Sub(boot))
	}
	g.Login = grant.NewTerm(boot, time.Minute, true)
	if got := g.Lapse(boot); got != boot.Add(time.Minute) {
		t.Errorf("%s after boot, want the token's end", got.Sub(boot))
	}
	g.State = grant.Revoking
	if got := g.Lapse(boot); got < boot.Add(1000*time.Hour) {
		t.Error("what is to be revoked is urgent")
	}
}

// TestLookBy: least time left first, nothing put off for good, and what shows nothing yet at once.
func TestLookBy(t *testing.T) {
	for _, test := range []struct {
		state grant.State
		life  time.Duration
		want  time.Duration // from boot
	}{
		{grant.Active, 20 * s, 20 * s},
		{grant.Active, time.Hour, time.Minute},
		{grant.Active, 0, time.Minute},
		{grant.Pending, 20 * s, 0},
		{grant.Partial, 20 * s, 0},
		{grant.Superseded, 20 * s, 0},
		{grant.Revoking, 20 * s, time.Minute},
	} {
		g := grant.Grant{State: test.state, Login: grant.NewTerm(boot, time.Hour, true), Leases: []grant.Lease{{Term: grant.NewTerm(boot, test.life, true)}}}
		if got := g.LookBy(boot).Sub(boot); got != test.want {
			t.Errorf("%s, %s left: by %s, want %s", test.state, test.life, got, test.want)
		}
	}
}

func TestGivenUpSinceTheFirstTime(t *testing.T) {
	g := grant.Grant{State: grant.Active}
	g.GiveUp("pod ended", 10)
	g.GiveUp("revoked by hand", 20)
	if g.State != grant.Revoking || g.Cause != "revoked by hand" || g.GivenUp != 10 {
		t.Errorf("%s since %d, %s", g.State, g.GivenUp, g.Cause)
	}
}

func TestProbes(t *testing.T) {
	lease := func(path string, life time.Duration) grant.Lease {
		return grant.Lease{Read: spec.Read{Path: path}, Term: grant.NewTerm(boot, life, true)}
	}
	fixed := lease("pki", time.Hour)
	fixed.Term.Renewable = false
	for _, test := range []struct {
		name   string
		leases []grant.Lease
		at     time.Duration
		want   int
	}{
		{"it lives", []grant.Lease{lease("a", time.Minute)}, time.Minute - 1, 1},
		{"it lives and cannot be renewed", []grant.Lease{fixed}, time.Minute, 0},
		{"it ended", []grant.Lease{lease("a", time.Minute)}, time.Minute, 1},
		{"Vault has tried for long enough", []grant.Lease{lease("a", time.Minute)}, 17 * time.Minute, 0},
		{"a living one of its path can tell", []grant.Lease{lease("a", time.Minute), lease("a", time.Hour)}, 2 * time.Minute, 1},
		{"one of another path cannot", []grant.Lease{lease("a", time.Minute), lease("b", time.Hour)}, 2 * time.Minute, 2},
		{"without end", []grant.Lease{lease("a", 0)}, 2 * time.Minute, 1},
	} {
		g := grant.Grant{Leases: test.leases}
		if got := len(g.Probes(boot.Add(test.at))); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
}
