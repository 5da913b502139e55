package grant_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
)

func TestReissueAfter(t *testing.T) {
	const hour, day, early = time.Hour, 24 * time.Hour, 30 * time.Second
	tests := map[string]struct {
		validity grant.Validity
		percent  int
		gap      time.Duration
		want     time.Duration
		odd      bool
	}{
		"a day":                        {grant.Validity{Span: day + early, Left: day}, 70, 0, day / 10 * 7, false},
		"a day, early":                 {grant.Validity{Span: day + early, Left: day}, 10, 0, day / 10, false},
		"an hour, early":               {grant.Validity{Span: hour + early, Left: hour}, 10, 0, hour / 10, false},
		"in time for two republishes":  {grant.Validity{Span: hour + early, Left: hour}, 95, 0, hour - 5*time.Minute - 30*time.Second, false},
		"that come far apart":          {grant.Validity{Span: hour + early, Left: hour}, 95, 10 * time.Minute, hour - 12*time.Minute, false},
		"half of a short life is used": {grant.Validity{Span: 6*time.Minute + early, Left: 6 * time.Minute}, 70, 0, 3 * time.Minute, false},
		"a span that nobody knows":     {grant.Validity{Left: day}, 70, 0, day / 10 * 7, false},
		"valid from long ago":          {grant.Validity{Span: day + hour, Left: hour}, 70, 0, 42 * time.Minute, false},
		"a clock that is behind":       {grant.Validity{Span: day, Left: 100 * day}, 70, 0, day / 10 * 7, false},
		"a clock that is ahead":        {grant.Validity{Span: day, Left: -hour}, 70, 0, 10 * time.Minute, true},
		"ahead by nearly all of it":    {grant.Validity{Span: day, Left: time.Minute}, 70, 0, 10 * time.Minute, true},
		"ahead by a part of it":        {grant.Validity{Span: day, Left: day / 2}, 70, 0, day / 20 * 7, false},
		"a short one, clock ahead":     {grant.Validity{Span: 20 * time.Minute, Left: 0}, 70, 0, time.Minute, true},
		"ended, and no span":           {grant.Validity{Left: -1}, 70, 0, 10 * time.Minute, true},
		"nothing known":                {grant.Validity{}, 70, 0, 10 * time.Minute, true},
	}
	for name, tt := range tests {
		if after, odd := tt.validity.ReissueAfter(tt.percent, tt.gap); after != tt.want || odd != tt.odd {
			t.Errorf("%s: after %s, odd %t, want %s, %t", name, after, odd, tt.want, tt.odd)
		}
	}
}

func TestRotation(t *testing.T) {
	for _, tt := range []struct {
		ttl, interval time.Duration
		imminent      bool
		refresh       time.Duration
	}{
		{0, time.Minute, true, 2 * s},
		{2 * s, time.Minute, true, 4 * s},
		{3 * s, time.Minute, false, 5 * s},
		{time.Minute, time.Hour, false, 62 * s},
		{time.Minute, 59 * s, false, 62 * s}, // not in the last moments before
		{time.Minute, 58 * s, false, 62 * s},
		{time.Minute, 57 * s, false, 57 * s}, // changed by people
		{720 * time.Hour, 2 * time.Minute, false, 2 * time.Minute},
	} {
		r := grant.Rotation(tt.ttl)
		if r.Imminent() != tt.imminent || r.RefreshAfter(tt.interval) != tt.refresh || r.Over() != tt.ttl+2*s {
			t.Errorf("%s, read again every %s: imminent %t, after %s", tt.ttl, tt.interval, r.Imminent(), r.RefreshAfter(tt.interval))
		}
	}
}

func certificate(serial int, from grant.Instant, life time.Duration) grant.Certificate {
	return grant.Certificate{Serial: secret.New(strconv.Itoa(serial)), Mount: "pki", Term: grant.NewTerm(from, life, false)}
}

func TestCertify(t *testing.T) {
	var g grant.Grant
	for i := range 2000 {
		g.Certify(certificate(i, boot, time.Hour+time.Duration(i)*s), boot)
	}
	if n := len(g.Certificates); n != 1024 || g.Certificates[0].Serial.Reveal() != "976" || g.Certificates[n-1].Serial.Reveal() != "1999" {
		t.Errorf("%d are remembered, from %s", n, g.Certificates[0].Serial.Reveal())
	}
	later := boot.Add(2 * time.Hour)
	g.Certify(certificate(0, later, 0), later) // of no known end
	g.Certify(certificate(1, later, time.Hour), later)
	if n := len(g.Certificates); n != 2 {
		t.Errorf("%d are left of those that ended", n)
	}
}

// TestCertificateNeedsItsToken: for as long as it can be revoked the token is renewed, and replaced at its own maximum.
func TestCertificateNeedsItsToken(t *testing.T) {
	g := leased()
	g.Leases, g.Certificates = nil, []grant.Certificate{certificate(1, boot, 2*time.Hour)}
	g.Login = grant.NewTerm(boot, time.Hour, true)
	at := boot.Add(50 * time.Minute)
	if !g.Needed(at) || g.Leased(at) || !g.TokenRenewal(at) || g.NextLook(boot) == 0 || g.TokenDue(at) {
		t.Error("the token is not kept alive")
	}
	g.Login.Final = true
	if !g.TokenDue(at) {
		t.Error("at its maximum it is not replaced")
	}
	if over := boot.Add(2 * time.Hour); g.Needed(over) || g.TokenRenewal(over) || g.NextLook(over) != 0 || g.TokenDue(over) {
		t.Error("the token is kept although the certificate ended")
	}
}

// TestLeasedCertificateDue: its share of life decides, not its lease, which cannot be renewed.
func TestLeasedCertificateDue(t *testing.T) {
	g := leased()
	g.Leases[0].Term = grant.NewTerm(boot, time.Hour, false)
	a := grant.Answer{Read: userRead, Leased: true, RefreshAt: boot.Add(54 * time.Minute)}
	for at, want := range map[time.Duration]bool{time.Minute: false, 50 * time.Minute: false, 54 * time.Minute: true, 2 * time.Hour: true} {
		if got := g.AnswerDue(a, boot.Add(at)); got != want {
			t.Errorf("after %s: %t", at, got)
		}
	}
	g.Leases[0].Term = g.Leases[0].Term.Lost(boot)
	if !g.AnswerDue(a, boot.Add(s)) {
		t.Error("it was revoked, and is not issued anew")
	}
}
