package admin_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

func TestMetrics(t *testing.T) {
	const nothing = `
# HELP leasehold_breaker_open 1 while revocations are held back because more pods seemed to end than the API told of.
# TYPE leasehold_breaker_open gauge
leasehold_breaker_open 0
# HELP leasehold_grants Grants held, by state.
# TYPE leasehold_grants gauge
leasehold_grants{state="Active"} 0
leasehold_grants{state="Partial"} 0
leasehold_grants{state="Pending"} 0
leasehold_grants{state="Revoking"} 0
leasehold_grants{state="Superseded"} 0
# HELP leasehold_leases Leases held, those that were replaced and still run out included.
# TYPE leasehold_leases gauge
leasehold_leases 0
# HELP leasehold_next_lapse_seconds Time left of the credentials that run out first unless they are renewed or replaced; +Inf for none.
# TYPE leasehold_next_lapse_seconds gauge
leasehold_next_lapse_seconds +Inf
`
	// Of what is held only the lease that was not replaced counts: 20 minutes, a minute ago.
	some := strings.NewReplacer(
		`state="Active"} 0`, `state="Active"} 1`, `state="Partial"} 0`, `state="Partial"} 1`, `state="Revoking"} 0`, `state="Revoking"} 1`,
		"leasehold_leases 0", "leasehold_leases 2", "breaker_open 0", "breaker_open 1", "seconds +Inf", "seconds 1140",
	).Replace(nothing)
	tests := map[string]struct {
		held []grant.Grant
		open bool
		want string
	}{
		"nothing":              {want: nothing},
		"some, and held back ": {held: held(), open: true, want: some},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := admin.Metrics{
				List: func() ([]grant.Grant, error) { return tt.held, nil }, BreakerOpen: func() bool { return tt.open },
				Now: func() grant.Instant { return now },
			}
			if err := testutil.CollectAndCompare(m, strings.NewReader(tt.want)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMetricsOfABrokenStore(t *testing.T) {
	r := prometheus.NewRegistry()
	r.MustRegister(admin.Metrics{List: func() ([]grant.Grant, error) { return nil, errors.New("broken") }})
	if _, err := r.Gather(); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("error %v", err)
	}
}

func TestEventsAreCounted(t *testing.T) {
	var posted []string
	e := admin.NewEvents()
	post := e.Count(func(pod spec.Pod, eventtype, reason, message string) {
		posted = append(posted, strings.Join([]string{pod.Name, eventtype, reason, message}, " "))
	})
	post(spec.Pod{Name: "app"}, "Warning", "WillLapse", "soon")
	post(spec.Pod{Name: "app"}, "Normal", "Rotated", "done")
	post(spec.Pod{Name: "job"}, "Warning", "WillLapse", "soon")
	if got, want := strings.Join(posted, "; "), "app Warning WillLapse soon; app Normal Rotated done; job Warning WillLapse soon"; got != want {
		t.Errorf("posted %s", got)
	}
	for reason, want := range map[string]float64{"WillLapse": 2, "Rotated": 1} {
		if got := testutil.ToFloat64(e.WithLabelValues(reason)); got != want {
			t.Errorf("%s: %v, want %v", reason, got, want)
		}
	}
}

func TestVaultRequestsAreMeasured(t *testing.T) {
	v := admin.NewVaultRequests()
	v.Answered("login", "ok", 30*time.Millisecond)
	v.Answered("login", "ok", time.Minute)
	const want = `
# HELP leasehold_vault_request_seconds Time that requests to Vault took, by what was asked for and what came of it.
# TYPE leasehold_vault_request_seconds histogram
leasehold_vault_request_seconds_bucket{operation="login",outcome="ok",le="0.005"} 0
leasehold_vault_request_seconds_bucket{operation="login",outcome="ok",le="0.02"} 0
leasehold_vault_request_seconds_bucket{operation="login",outcome="ok",le="0.1"} 1
leasehold_vault_request_seconds_bucket{operation="login",outcome="ok",le="0.5"} 1
leasehold_vault_request_seconds_bucket{operation="login",outcome="ok",le="2"} 1
leasehold_vault_request_seconds_bucket{operation="login",outcome="ok",le="10"} 1
leasehold_vault_request_seconds_bucket{operation="login",outcome="ok",le="60"} 2
leasehold_vault_request_seconds_bucket{operation="login",outcome="ok",le="+Inf"} 2
leasehold_vault_request_seconds_sum{operation="login",outcome="ok"} 60.03
leasehold_vault_request_seconds_count{operation="login",outcome="ok"} 2
`
	if err := testutil.CollectAndCompare(v, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
