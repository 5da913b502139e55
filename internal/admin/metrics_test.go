package admin_test

import (
	"context"
	"errors"
	"maps"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
)

// metrics are of a provider that holds something, with all else as it should be.
func metrics(held ...grant.Grant) admin.Metrics {
	return admin.Metrics{
		List:         func() ([]grant.Grant, error) { return held, nil },
		Usage:        func() (store.Usage, error) { return store.Usage{Content: 1000, Limit: 4000, File: 65536}, nil },
		LeftToExpire: func(g grant.Grant) string { return g.Expire },
		EndHeld:      func(spec.VolumeKey) bool { return false }, BreakerOpen: func() bool { return false },
		Ready: func(context.Context) error { return nil }, Now: func() grant.Instant { return now },
	}
}

// values are those of the metrics, by name and label.
func values(t *testing.T, m prometheus.Collector) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(m)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "leasehold_")
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			found[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return found
}

func TestMetrics(t *testing.T) {
	nothing := map[string]float64{
		"grants Active": 0, "grants Partial": 0, "grants Pending": 0, "grants Revoking": 0, "grants Superseded": 0,
		"leases current": 0, "leases overdue": 0, "leases lapsed": 0, "leases superseded": 0, "leases revoking": 0,
		"next_lapse_seconds": math.Inf(1), "failing_next_lapse_seconds": math.Inf(1), "failing_grants renew": 0, "failing_grants revoke": 0,
		"pending_revocations": 0, "oldest_pending_revocation_seconds": 0, "held_ends": 0, "breaker_open": 0, "ready": 1,
		"store_content_bytes": 1000, "store_content_limit_bytes": 4000, "store_file_bytes": 65536,
	}
	token := grant.NewTerm(now, time.Hour, true)
	lease := func(left time.Duration) grant.Lease {
		return grant.Lease{Term: grant.NewTerm(now.Add(-time.Minute), left+time.Minute, true)}
	}
	replaced, late := lease(5*time.Minute), grant.Lease{Term: grant.NewTerm(now.Add(-25*time.Minute), 30*time.Minute, false)}
	replaced.Superseded = true
	tests := map[string]struct {
		held   grant.Grant
		change func(*admin.Metrics)
		want   map[string]float64 // beside nothing
	}{
		"nothing": {change: func(m *admin.Metrics) { m.List = func() ([]grant.Grant, error) { return nil, nil } }},
		"a volume that is renewed": {
			held: grant.Grant{State: grant.Active, Login: token, Leases: []grant.Lease{lease(20 * time.Minute), replaced}},
			want: map[string]float64{"grants Active": 1, "leases current": 1, "leases superseded": 1, "next_lapse_seconds": 1200},
		},
		"a volume whose renewals fail": {
			held: grant.Grant{State: grant.Active, Login: token, Leases: []grant.Lease{lease(20 * time.Minute)}, Failures: 2},
			want: map[string]float64{
				"grants Active": 1, "leases current": 1, "next_lapse_seconds": 1200, "failing_grants renew": 1, "failing_next_lapse_seconds": 1200,
			},
		},
		"a lease that should have been replaced, and one that ended": {
			held: grant.Grant{State: grant.Active, Login: token, Leases: []grant.Lease{late, lease(0)}},
			want: map[string]float64{"grants Active": 1, "leases overdue": 1, "leases lapsed": 1, "next_lapse_seconds": 300},
		},
		"what a token that ended took along": {
			held: grant.Grant{State: grant.Active, Login: token.Lost(now - 1), Leases: []grant.Lease{lease(20 * time.Minute)}},
			want: map[string]float64{"grants Active": 1, "leases lapsed": 1, "next_lapse_seconds": 0},
		},
		"leases that ended and that nothing shows": {
			held: grant.Grant{State: grant.Superseded, Login: token, Leases: []grant.Lease{lease(0)}},
			want: map[string]float64{"grants Superseded": 1},
		},
		"a revocation that fails": {
			held: grant.Grant{State: grant.Revoking, Login: token, Leases: []grant.Lease{lease(time.Minute)}, Failures: 1, GivenUp: now.Add(-time.Minute)},
			want: map[string]float64{
				"grants Revoking": 1, "leases revoking": 1, "failing_grants revoke": 1, "pending_revocations": 1, "oldest_pending_revocation_seconds": 60,
			},
		},
		"a revocation that an earlier version began": {
			held: grant.Grant{State: grant.Revoking}, want: map[string]float64{"grants Revoking": 1, "pending_revocations": 1},
		},
		"what is left to run out": {
			held:   grant.Grant{State: grant.Revoking, Expire: "the class says so", GivenUp: now.Add(-time.Hour)},
			change: func(m *admin.Metrics) { m.EndHeld = func(spec.VolumeKey) bool { return true } }, // of a volume that it is taken from by hand
			want:   map[string]float64{"grants Revoking": 1},
		},
		"a node in trouble": {
			held: grant.Grant{State: grant.Partial},
			change: func(m *admin.Metrics) {
				m.EndHeld, m.BreakerOpen = func(spec.VolumeKey) bool { return true }, func() bool { return true }
				m.Ready = func(context.Context) error { return errors.New("no pods yet") }
			},
			want: map[string]float64{"grants Partial": 1, "held_ends": 1, "breaker_open": 1, "ready": 0},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := metrics(tt.held)
			if tt.change != nil {
				tt.change(&m)
			}
			want := maps.Clone(nothing)
			maps.Copy(want, tt.want)
			if got := values(t, m); !maps.Equal(got, want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
		})
	}
}

func TestCountersBeginWithNothing(t *testing.T) {
	refusals, rotations := admin.NewRefusals([]string{"denied", "class"}), admin.NewRotations(keeper.Rotations())
	refusals.WithLabelValues("class").Inc()
	if got, want := values(t, refusals), map[string]float64{"mounts_refused_total denied": 0, "mounts_refused_total class": 1}; !maps.Equal(got, want) {
		t.Errorf("refusals %v, want %v", got, want)
	}
	if got, want := values(t, rotations), map[string]float64{"rotations_total login": 0, "rotations_total lease": 0, "rotations_total certificate": 0}; !maps.Equal(got, want) {
		t.Errorf("rotations %v, want %v", got, want)
	}
}

func TestAPIRequestsAreCounted(t *testing.T) {
	a := admin.NewAPIRequests()
	a.Answered("GET", 200)
	a.Answered("GET", 0)
	if got, want := values(t, a), map[string]float64{"api_requests_total GET 200": 1, "api_requests_total GET none": 1}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestBuildInfo(t *testing.T) {
	if got, want := values(t, admin.NewBuildInfo("v1.2.3")), map[string]float64{"build_info " + runtime.Version() + " v1.2.3": 1}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
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
