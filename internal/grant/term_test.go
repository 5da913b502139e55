package grant_test

import (
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
)

// boot is an instant like any other: an hour after the node's start.
const boot = grant.Instant(time.Hour)

const s = time.Second

// renewal is one renewal of a sequence: when it was sent, what was asked for (zero: as before) and what Vault stated.
type renewal struct{ at, asked, stated time.Duration }

// TestRenewed plays sequences measured on Vault 1.21.2.
func TestRenewed(t *testing.T) {
	tests := []struct {
		name     string
		life     time.Duration // stated at the beginning
		renewals []renewal

		extends bool          // another renewal is worth sending
		end     time.Duration // of the life
		full    time.Duration // the life last given uncut
	}{
		{"not renewed", 20 * s, nil, true, 20 * s, 20 * s},
		{"renewed in full", 20 * s, []renewal{{12 * s, 0, 20 * s}, {24 * s, 0, 20 * s}}, true, 44 * s, 20 * s},
		{"lease at its maximum", 20 * s, []renewal{{12 * s, 0, 20 * s}, {24 * s, 0, 20 * s}, {36 * s, 0, 20 * s}, {48 * s, 0, 12 * s}}, false, 60 * s, 20 * s},
		{"token at its maximum", 30 * s, []renewal{{60 * s, 0, 30 * s}, {72 * s, 0, 18 * s}}, false, 90 * s, 30 * s},
		{"token at its maximum, renewed once more", 30 * s, []renewal{{72 * s, 0, 18 * s}, {84 * s, 0, 6 * s}}, false, 90 * s, 30 * s},
		{"explicit maximum from the first renewal on", 1200 * s, []renewal{{400 * s, 3600 * s, 800 * s}}, false, 1200 * s, 1200 * s},
		{"explicit maximum as long as the life, in whole seconds", 20 * s, []renewal{{7200 * time.Millisecond, 0, 12 * s}}, false, 19200 * time.Millisecond, 20 * s},
		{"increment below the role's life", 300 * s, []renewal{{100 * s, 300 * s, 300 * s}}, true, 400 * s, 300 * s},
		{"period above the increment", 600 * s, []renewal{{200 * s, 300 * s, 600 * s}}, true, 800 * s, 600 * s},
		{"whole seconds only", 20 * s, []renewal{{7 * s, 0, 18 * s}}, true, 25 * s, 18 * s},
		{"role cut by an operator", 3600 * s, []renewal{{600 * s, 0, 60 * s}}, true, 660 * s, 60 * s},
		{"role cut, then renewed", 3600 * s, []renewal{{600 * s, 0, 60 * s}, {620 * s, 0, 60 * s}}, true, 680 * s, 60 * s},
		{"role cut, then at its maximum", 3600 * s, []renewal{{600 * s, 0, 60 * s}, {660 * s, 0, 20 * s}}, false, 680 * s, 60 * s},
		{"role lengthened", 60 * s, []renewal{{20 * s, 0, 3600 * s}}, true, 3620 * s, 3600 * s},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			term := grant.NewTerm(boot, test.life, true)
			for _, r := range test.renewals {
				term = term.Renewed(boot.Add(r.at), r.stated, r.asked, true)
			}
			if got := term.Extends(); got != test.extends {
				t.Errorf("Extends %t", got)
			}
			if got := term.Expiry().Sub(boot); got != test.end {
				t.Errorf("ends after %s, want %s", got, test.end)
			}
			if term.Full != test.full {
				t.Errorf("Full %s, want %s", term.Full, test.full)
			}
			if got := term.RenewAt(0); (got != 0) != test.extends {
				t.Errorf("RenewAt %d, although Extends is %t", got, test.extends)
			}
		})
	}
}

// TestRenewedWithinItsLastSecond: Vault states whole seconds, so the rest of a second is stated as 0, and that is no life
// without end.
func TestRenewedWithinItsLastSecond(t *testing.T) {
	for _, life := range []time.Duration{s, 2 * s, 20 * s, time.Hour} {
		now := boot.Add(life - s/2)
		term := grant.NewTerm(boot, life, true).Renewed(now, 0, 0, true)
		later := now.Add(2 * s)
		if term.Left(later) != 0 || !term.Over(later) {
			t.Errorf("a life of %s renewed with 0 has %s left and is over: %t", life, term.Left(later), term.Over(later))
		}
	}
}

func TestRenewedNoLongerRenewable(t *testing.T) {
	if grant.NewTerm(boot, time.Hour, true).Renewed(boot.Add(s), time.Hour, 0, false).Extends() {
		t.Error("Vault said that it is not renewable")
	}
}

func TestRenewAt(t *testing.T) {
	final := grant.NewTerm(boot, time.Minute, true)
	final.Final = true
	tests := []struct {
		name   string
		term   grant.Term
		jitter float64
		want   time.Duration // after boot; zero for never
	}{
		{"a third", grant.NewTerm(boot, time.Minute, true), 0, 20 * s},
		{"up to a tenth earlier", grant.NewTerm(boot, time.Minute, true), 0.5, 19 * s},
		{"every ten minutes", grant.NewTerm(boot, 24*time.Hour, true), 0, 10 * time.Minute},
		{"not renewable", grant.NewTerm(boot, time.Minute, false), 0, 0},
		{"without end", grant.NewTerm(boot, 0, true), 0, 0},
		{"at its maximum", final, 0, 0},
	}
	for _, test := range tests {
		want := grant.Instant(0)
		if test.want != 0 {
			want = boot.Add(test.want)
		}
		if got := test.term.RenewAt(test.jitter); got != want {
			t.Errorf("%s: %s after boot, want %s", test.name, got.Sub(boot), test.want)
		}
	}
}

func TestDue(t *testing.T) {
	tests := []struct {
		name string
		life time.Duration
		at   time.Duration // from when on it is due
	}{
		{"a third of a long life", 3 * time.Hour, 2 * time.Hour},
		{"the room of two republishes", 15 * time.Minute, 9*time.Minute + 30*s},
		{"half of a short life", 6 * time.Minute, 3 * time.Minute},
		{"half of a very short life", 20 * s, 10 * s},
	}
	for _, test := range tests {
		renewable, ending := grant.NewTerm(boot, test.life, true), grant.NewTerm(boot, test.life, false)
		at := boot.Add(test.at)
		if ending.Due(at-1, 0) || !ending.Due(at, 0) {
			t.Errorf("%s: due before %s: %t, then: %t", test.name, test.at, ending.Due(at-1, 0), ending.Due(at, 0))
		}
		if end := boot.Add(test.life); renewable.Due(at, 0) || renewable.Due(end-1, 0) || !renewable.Due(end, 0) {
			t.Errorf("%s: due although a renewal lengthens it, or not when it ran out without one", test.name)
		}
	}
	if grant.NewTerm(boot, 0, false).Due(boot.Add(1000*time.Hour), 0) {
		t.Error("a life without end is due")
	}
}

// TestDueAheadOfAKnownMaximum: what the kind has taught counts while renewals still lengthen the life.
func TestDueAheadOfAKnownMaximum(t *testing.T) {
	for _, test := range []struct {
		name      string
		life, max time.Duration
		known     time.Duration // the Max of the new term
		at        time.Duration // from when on it is due
	}{
		{"half of a short maximum", time.Minute, 3 * time.Minute, 3 * time.Minute, 90 * s},
		{"a third of the life before a long one", time.Hour, 24 * time.Hour, 24 * time.Hour, 24*time.Hour - 20*time.Minute},
		{"as long as the life", time.Hour, time.Hour, time.Hour, 40 * time.Minute},
		{"disproved by the life itself", time.Hour, time.Minute, 0, time.Hour},
		{"not known", time.Hour, 0, 0, time.Hour},
	} {
		term := grant.NewTerm(boot, test.life, true).WithMax(test.max)
		if term.Max != test.known {
			t.Errorf("%s: Max %s, want %s", test.name, term.Max, test.known)
		}
		for age := test.life / 3; age < test.at; age += test.life / 3 {
			if term.Due(boot.Add(age), 0) {
				t.Errorf("%s: due at %s", test.name, age)
			}
			if test.known != 0 {
				term = term.Renewed(boot.Add(age), min(test.life, test.known-age), 0, true)
			}
		}
		if term.Due(boot.Add(test.at-1), 0) || !term.Due(boot.Add(test.at), 0) {
			t.Errorf("%s: not due from %s on", test.name, test.at)
		}
	}
	if grant.NewTerm(boot, 0, true).WithMax(time.Hour).Max != 0 {
		t.Error("a life without end has a maximum")
	}
}

// TestMaximumIsLearnedAndDisproved: a cut tells it, it stays through what follows, and a renewal that reaches beyond ends it.
func TestMaximumIsLearnedAndDisproved(t *testing.T) {
	first := grant.NewTerm(boot, time.Hour, true).Renewed(boot.Add(50*time.Minute), time.Hour, 0, true)
	if first.Max != 0 {
		t.Errorf("Max %s although no renewal was cut", first.Max)
	}
	first = first.Renewed(boot.Add(100*time.Minute), 20*time.Minute, 0, true)
	if first.Max != 2*time.Hour || first.Lost(boot.Add(101*time.Minute)).Max != 2*time.Hour {
		t.Errorf("cut after 2h: Max %s, and once lost %s", first.Max, first.Lost(boot.Add(101*time.Minute)).Max)
	}
	next := grant.NewTerm(boot, time.Hour, true).WithMax(first.Max)
	if same := next.Renewed(boot.Add(time.Hour+s), time.Hour, 0, true); same.Max != 2*time.Hour {
		t.Errorf("renewed to a second beyond, which is rounding: Max %s", same.Max)
	}
	if longer := next.Renewed(boot.Add(80*time.Minute), time.Hour, 0, true); longer.Max != 0 {
		t.Errorf("renewed to 2h20m: Max %s", longer.Max)
	}
	if shorter := next.Renewed(boot.Add(50*time.Minute), 30*time.Minute, 0, true); shorter.Max != 80*time.Minute {
		t.Errorf("cut after 80m: Max %s", shorter.Max)
	}
	unknown := next
	unknown.Issued = 0 // of another boot
	if unknown.Due(boot.Add(59*time.Minute), 0) || unknown.Renewed(boot.Add(50*time.Minute), 30*time.Minute, 0, true).Max != 2*time.Hour {
		t.Error("without a known beginning it is due, or the maximum was forgotten")
	}
	if denied := next.WithMax(3*time.Hour).Renewed(boot.Add(s), time.Minute, 0, false); denied.Due(boot.Add(30*s), 0) {
		t.Error("no longer renewable and short: a maximum that it cannot reach takes all of its life for room")
	}
}

func TestLeftAndOver(t *testing.T) {
	const century = 100 * 365 * 24 * time.Hour
	asked := grant.NewTerm(boot, 30*s, true).Asking(boot.Add(10*s), 60*s)
	tests := []struct {
		name string
		term grant.Term
		at   time.Duration
		left time.Duration
		over bool
	}{
		{"new", grant.NewTerm(boot, 30*s, true), 0, 30 * s, false},
		{"before its request", grant.NewTerm(boot, 30*s, true), -s, 31 * s, false},
		{"at its end", grant.NewTerm(boot, 30*s, true), 30 * s, 0, true},
		{"long gone", grant.NewTerm(boot, 30*s, true), time.Hour, 0, true},
		{"without end", grant.NewTerm(boot, 0, true), time.Hour, century, false},
		{"renewal under way", asked, 30 * s, 0, false},
		{"renewal's reply lost", asked, 70*s - 1, 0, false},
		{"as long as the lost renewal could reach", asked, 70 * s, 0, true},
		{"lost", grant.NewTerm(boot, time.Hour, true).Lost(boot.Add(s)), 2 * s, 0, true},
	}
	for _, test := range tests {
		now := boot.Add(test.at)
		if left, over := test.term.Left(now), test.term.Over(now); left != test.left || over != test.over {
			t.Errorf("%s: left %s, over %t; want %s, %t", test.name, left, over, test.left, test.over)
		}
	}
}

// TestAskingAgainForLess: the first, larger wish may have been granted.
func TestAskingAgainForLess(t *testing.T) {
	term := grant.NewTerm(boot, 30*s, true).Asking(boot.Add(10*s), 600*s).Asking(boot.Add(20*s), 30*s)
	if term.Over(boot.Add(610*s-1)) || !term.Over(boot.Add(610*s)) {
		t.Errorf("over at %s after boot, want 10m10s", term.Limit.Sub(boot))
	}
}

// TestAskingLessThanTheRoleGives: a period ignores the increment, so a lost reply may have brought the whole of it.
func TestAskingLessThanTheRoleGives(t *testing.T) {
	term := grant.NewTerm(boot, 600*s, true).Asking(boot.Add(200*s), 60*s)
	if term.Over(boot.Add(800*s - 1)) {
		t.Error("taken for over although the period may have been given anew")
	}
}

func TestLostIsDueAndStaysLost(t *testing.T) {
	now := boot.Add(s)
	term := grant.NewTerm(boot, time.Hour, true).Lost(now)
	if !term.Due(now, 0) || term.Extends() || term.RenewAt(0) != 0 {
		t.Errorf("due %t, extends %t, renew at %d", term.Due(now, 0), term.Extends(), term.RenewAt(0))
	}
}

func TestEarliest(t *testing.T) {
	tests := []struct {
		in   []grant.Instant
		want grant.Instant
	}{
		{nil, 0}, {[]grant.Instant{0, 0}, 0}, {[]grant.Instant{0, 3, 0, 2}, 2}, {[]grant.Instant{1}, 1},
	}
	for _, test := range tests {
		if got := grant.Earliest(test.in...); got != test.want {
			t.Errorf("Earliest(%v) = %d", test.in, got)
		}
	}
}

func FuzzTerm(f *testing.F) {
	f.Add(int64(time.Hour), int64(20*s), true, int64(12*s), int64(12*s), int64(0), 0.5, int64(s), int64(0))
	f.Add(int64(1), int64(0), true, int64(0), int64(0), int64(0), 0.0, int64(0), int64(s))
	f.Add(int64(time.Hour), int64(3600*s), true, int64(600*s), int64(0), int64(60*s), 0.99, int64(time.Minute), int64(time.Hour))
	f.Fuzz(func(t *testing.T, from, life int64, renewable bool, after, stated, asked int64, jitter float64, later, longest int64) {
		const decade = int64(10 * 365 * 24 * time.Hour)
		for _, n := range []int64{from, life, after, stated, asked, later, longest} {
			if n < 0 || n > decade {
				t.Skip("not a time that occurs")
			}
		}
		if !(jitter >= 0 && jitter < 1) {
			t.Skip("not a jitter")
		}
		first := grant.NewTerm(grant.Instant(from), time.Duration(life), renewable).WithMax(time.Duration(longest))
		if half := first.From.Add(first.TTL / 2); first.TTL != 0 && first.Due(half-1, 0) {
			t.Errorf("%+v is due in the first half of its life", first)
		}
		sent := grant.Instant(from).Add(time.Duration(after))
		properties(t, first, jitter, sent, time.Duration(later))
		if !first.Extends() {
			return
		}
		asking := first.Asking(sent, time.Duration(asked))
		if asking.Limit < first.Limit || asking.Expiry() != first.Expiry() {
			t.Errorf("asking changed %+v into %+v", first, asking)
		}
		renewed := asking.Renewed(sent, time.Duration(stated), time.Duration(asked), renewable)
		if renewed.TTL == 0 {
			t.Errorf("a renewal took the end away: %+v", renewed)
		}
		if renewed.Limit != renewed.Expiry() {
			t.Errorf("after its reply the limit of %+v is not its end", renewed)
		}
		properties(t, renewed, jitter, sent, time.Duration(later))
		properties(t, renewed.Lost(sent), jitter, sent, time.Duration(later))
	})
}

// properties hold for every term, at now and a while later.
func properties(t *testing.T, term grant.Term, jitter float64, now grant.Instant, later time.Duration) {
	t.Helper()
	then := now.Add(later)
	if at := term.RenewAt(jitter); at != 0 && (at < term.From || at > term.Expiry()) {
		t.Errorf("%+v is renewed at %d, outside of its life", term, at)
	}
	if term.Left(now) < 0 || term.Left(then) > term.Left(now) {
		t.Errorf("%+v has %s left, and %s later %s", term, term.Left(now), later, term.Left(then))
	}
	if term.Due(now, 0) && !term.Due(then, 0) {
		t.Errorf("%+v was due and is no more %s later", term, later)
	}
	if term.Over(now) && (!term.Over(then) || term.Left(now) != 0) {
		t.Errorf("%+v was over with %s left, and %s later: %t", term, term.Left(now), later, term.Over(then))
	}
	if term.Due(now, 0) && term.Extends() && term.Left(now) > 0 && term.Max == 0 {
		t.Errorf("%+v is due although a renewal lengthens it", term)
	}
}

// TestDueWithAGap: republishes that were seen far apart are given more room, up to half of the life.
func TestDueWithAGap(t *testing.T) {
	for _, test := range []struct{ life, gap, at time.Duration }{
		{12 * time.Minute, 10 * s, 12*time.Minute - 330*s},
		{20 * time.Minute, 6 * time.Minute, 12 * time.Minute},
		{10 * time.Minute, time.Hour, 5 * time.Minute},
	} {
		term := grant.NewTerm(boot, test.life, false)
		if at := boot.Add(test.at); term.Due(at-1, test.gap) || !term.Due(at, test.gap) {
			t.Errorf("a life of %s at a gap of %s: not due from %s on", test.life, test.gap, test.at)
		}
	}
}

// TestDueOfALongLifeInShortParts: it is half of the whole life that must be used, not of the part last given.
func TestDueOfALongLifeInShortParts(t *testing.T) {
	term := grant.NewTerm(boot, 6*time.Minute, true).Renewed(boot.Add(12*time.Minute), 4*time.Minute, 0, true)
	if at := boot.Add(12 * time.Minute); term.Extends() || !term.Due(at, 0) {
		t.Errorf("at the maximum, with 4m left of 16m: extends %t, due %t", term.Extends(), term.Due(at, 0))
	}
}

// TestTwoFailedTriesLeaveTimeForAThird counts with tries that use up all of their time, and the pauses between.
func TestTwoFailedTriesLeaveTimeForAThird(t *testing.T) {
	for life := 20 * s; life < 1000*time.Hour; life += life / 7 {
		term := grant.NewTerm(boot, life, true)
		at := term.RenewAt(0)
		for range 2 {
			at = at.Add(term.TryTime(at))
			at = at.Add(min(term.Left(at)/4, 3*s))
		}
		if left := term.Left(at); left < term.TryTime(at) {
			t.Errorf("a life of %s has %s left for the third try", life, left)
		}
	}
}
