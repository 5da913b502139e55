package keeper

import (
	"fmt"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
)

const boot = grant.Instant(time.Hour)

func TestBreaker(t *testing.T) {
	var b breaker
	for i := range rush {
		if until, _ := b.hold(fmt.Sprint(i), boot); until != 0 {
			t.Fatalf("end %d is held", i)
		}
	}
	if b.open(boot) {
		t.Fatal("open before a rush")
	}
	until, first := b.hold("one too many", boot)
	if want := boot.Add(holdBack); until != want || !first || !b.open(boot) {
		t.Fatalf("held until %d (first %t, open %t), want %d", until, first, b.open(boot), want)
	}
	if _, first := b.hold("one too many", boot.Add(time.Second)); first {
		t.Error("told twice")
	}
	later := boot.Add(5 * time.Minute)
	if until, _ := b.hold("later", later); until != later.Add(holdBack) {
		t.Error("an end is not held while the breaker is open")
	}
	if until, _ := b.hold("one too many", boot.Add(holdBack)); until != 0 {
		t.Error("held for longer than said")
	}
	if b.open(boot.Add(holdBack)) {
		t.Error("open for ever")
	}
}

func TestBreakerLetsASteadyPacePass(t *testing.T) {
	var b breaker
	now := boot
	for i := range 1000 {
		now = now.Add(rushWindow / rush)
		if until, _ := b.hold(fmt.Sprint(i), now); until != 0 {
			t.Fatalf("end %d is held", i)
		}
	}
	if len(b.ends) > 4*rush*int(holdBack/rushWindow) {
		t.Errorf("%d ends are remembered", len(b.ends))
	}
}
