package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-csi/leasehold/test/bed"
)

func quiet() *printer { return &printer{out: &bytes.Buffer{}} }

func TestAwaitTellsWhatItSawAtLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		err := await(t.Context(), quiet(), "the pod to run", func(context.Context) error {
			return errors.New("it is Pending")
		})
		if err == nil || !strings.Contains(err.Error(), "for the pod to run; at last: it is Pending") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took != patience {
			t.Errorf("gave up after %s", took)
		}
	})
}

func TestAwaitKeepsTheReasonWhenALookIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		err := await(t.Context(), quiet(), "the pod to run", func(ctx context.Context) error {
			if looks++; looks == 1 {
				return errors.New("it is Pending")
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if err == nil || !strings.Contains(err.Error(), "it is Pending") {
			t.Errorf("got %v", err)
		}
	})
}

func TestAwaitEndsWithItsCaller(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := await(ctx, quiet(), "the pod to run", func(context.Context) error { return errors.New("no") })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// goneAfter is a thing that is there for so long, and cannot be looked at for a moment.
func goneAfter(what string, life time.Duration) thing {
	start, hidden := time.Now(), false
	return thing{what, "the test", func(context.Context) (bool, error) {
		if !hidden {
			hidden = true
			return false, errors.New("not reachable")
		}
		return time.Since(start) < life, nil
	}}
}

func TestWatchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ends, err := watchEnds(t.Context(), quiet(), []thing{
			goneAfter(leaseGone, 2*time.Second), goneAfter(volumeUnmounted, time.Second),
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, life := range []time.Duration{2 * time.Second, time.Second} {
			if e := ends[i]; e.gone.Sub(start) != life || e.lastThere.Sub(start) != life-pace {
				t.Errorf("%s: last there %s, gone %s", e.what, e.lastThere.Sub(start), e.gone.Sub(start))
			}
		}
		if err := notBefore(ends[1], ends[:1]); err != nil {
			t.Errorf("the right order: %v", err)
		}
		err = notBefore(ends[0], ends[1:])
		if err == nil || !strings.Contains(err.Error(), `"volume unmounted" came 0.95 s before "lease gone"`) {
			t.Errorf("the wrong order: %v", err)
		}
	})
}

func TestWatchEndsNamesWhatStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, err := watchEnds(t.Context(), quiet(), []thing{goneAfter(volumeUnmounted, time.Second), goneAfter(leaseGone, time.Hour)})
		if err == nil || !strings.Contains(err.Error(), "lease gone") || strings.Contains(err.Error(), "volume unmounted") {
			t.Errorf("got %v", err)
		}
	})
}

func TestMounts(t *testing.T) {
	const metrics = `# TYPE leasehold_calls_total counter
leasehold_calls_total{code="InvalidArgument",method="/v1alpha1.CSIDriverProvider/Mount"} 7
leasehold_calls_total{code="OK",method="/v1alpha1.CSIDriverProvider/Mount"} 3
leasehold_calls_total{code="OK",method="/v1alpha1.CSIDriverProvider/Version"} 5
`
	if n, err := mounts(metrics); n != 3 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if n, err := mounts(""); n != 0 || err != nil {
		t.Errorf("before the first call: got %d, %v", n, err)
	}
}

func TestCountRequests(t *testing.T) {
	got := countRequests([]bed.AuditEntry{
		{Path: "auth/kubernetes/login"}, {Path: credsPath}, {Path: "sys/leases/renew"}, {Path: credsPath}, {Path: keyPath},
	}, credsPath)
	if got != (requests{logins: 1, reads: 2}) {
		t.Errorf("got %+v", got)
	}
}

func TestCountAttempts(t *testing.T) {
	got := countAttempts("ok\nfailed: logging in: refused\nok\n\nok")
	if got != (attempts{ok: 3, failed: 1}) {
		t.Errorf("got %+v", got)
	}
}

func TestHoldingsOnlyOf(t *testing.T) {
	fine := holdings{tokens: 1, leases: 1, roles: []string{"v-app"}}
	if err := fine.onlyOf("v-app"); err != nil {
		t.Error(err)
	}
	for name, h := range map[string]holdings{
		"nothing":        {},
		"two tokens":     {tokens: 2, leases: 1, roles: []string{"v-app"}},
		"two leases":     {tokens: 1, leases: 2, roles: []string{"v-app"}},
		"another's role": {tokens: 1, leases: 1, roles: []string{"v-other"}},
		"two roles":      {tokens: 1, leases: 1, roles: []string{"v-app", "v-other"}},
	} {
		if h.onlyOf("v-app") == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
