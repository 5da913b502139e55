package admin

import (
	"context"
	"math"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
)

// Metrics tells of what is held whenever it is asked: what is looked up then costs nothing between.
type Metrics struct {
	// List returns what is held; required, as all fields are.
	List func() ([]grant.Grant, error)
	// Usage tells how much of the store is used.
	Usage func() (store.Usage, error)
	// LeftToExpire says why the end of the pod revokes nothing of a grant; empty when it does.
	LeftToExpire func(grant.Grant) string
	// EndHeld tells of a volume whether its pod seems to be over, without proof that no container uses it any more.
	EndHeld func(spec.VolumeKey) bool
	// BreakerOpen tells whether revocations are held back.
	BreakerOpen func() bool
	// Ready returns what is missing before Mounts can be answered.
	Ready func(context.Context) error
	// Now reads the clock of the grants.
	Now func() grant.Instant
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	grantsDesc  = desc("leasehold_grants", "Grants held, by state.", "state")
	leasesDesc  = desc("leasehold_leases", "Leases held, by what becomes of them.", "state")
	lapseDesc   = desc("leasehold_next_lapse_seconds", "Time left of the credentials that run out first unless they are renewed or replaced; +Inf for none.")
	failingDesc = desc("leasehold_failing_grants", "Grants of which the last try failed, by what was tried.", "operation")
	atRiskDesc  = desc("leasehold_failing_next_lapse_seconds", "Time left of the credentials that run out first of those that cannot be renewed at present; +Inf for none.")
	pendingDesc = desc("leasehold_pending_revocations", "Grants that are to be revoked and are not yet; those that are left to run out are none of them.")
	oldestDesc  = desc("leasehold_oldest_pending_revocation_seconds", "For how long the one among them has waited that waits longest; 0 for none.")
	heldDesc    = desc("leasehold_held_ends", "Volumes whose pod seems to be over and whose leases are kept, because a container may still use them.")
	openDesc    = desc("leasehold_breaker_open", "1 while revocations are held back because more pods seemed to end than the API told of.")
	readyDesc   = desc("leasehold_ready", "1 when /readyz answers 200.")
	contentDesc = desc("leasehold_store_content_bytes", "Size of Vault's answers that are kept.")
	limitDesc   = desc("leasehold_store_content_limit_bytes", "Size of kept answers beyond which Mounts are refused: --state-max.")
	fileDesc    = desc("leasehold_store_file_bytes", "Size of the store's file, which does not shrink.")
)

// Describe implements prometheus.Collector.
func (m Metrics) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		grantsDesc, leasesDesc, lapseDesc, failingDesc, atRiskDesc, pendingDesc, oldestDesc, heldDesc, openDesc, readyDesc, contentDesc, limitDesc, fileDesc,
	} {
		descs <- d
	}
}

// Collect implements prometheus.Collector.
func (m Metrics) Collect(metrics chan<- prometheus.Metric) {
	grants, err := m.List()
	if err != nil {
		metrics <- prometheus.NewInvalidMetric(grantsDesc, err)
		return
	}
	usage, err := m.Usage()
	if err != nil {
		metrics <- prometheus.NewInvalidMetric(fileDesc, err)
		return
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	held := m.count(grants)
	for _, state := range grant.States() {
		gauge(grantsDesc, float64(held.grants[state]), string(state))
	}
	for _, state := range []string{current, overdue, lapsed, superseded, revoking} {
		gauge(leasesDesc, float64(held.leases[state]), state)
	}
	gauge(lapseDesc, secondsTo(held.lapse, m.Now()))
	gauge(failingDesc, float64(held.failing["renew"]), "renew")
	gauge(failingDesc, float64(held.failing["revoke"]), "revoke")
	gauge(atRiskDesc, secondsTo(held.atRisk, m.Now()))
	gauge(pendingDesc, float64(held.pending))
	gauge(oldestDesc, held.oldest.Seconds())
	gauge(heldDesc, float64(len(held.held)))
	gauge(openDesc, one(m.BreakerOpen()))
	gauge(readyDesc, one(m.Ready(context.Background()) == nil)) // a scrape brings no context along, and the look has limits of its own
	gauge(contentDesc, float64(usage.Content))
	gauge(limitDesc, float64(usage.Limit))
	gauge(fileDesc, float64(usage.File))
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// secondsTo is the time from now to an instant; that which is never comes in +Inf.
func secondsTo(until, now grant.Instant) float64 {
	if until == math.MaxInt64 {
		return math.Inf(1)
	}
	return until.Sub(now).Seconds()
}

// counts are what grants add up to.
type counts struct {
	grants  map[grant.State]int
	leases  map[string]int
	failing map[string]int
	// lapse is when the first of all runs out, and atRisk the first of those whose renewals fail.
	lapse, atRisk grant.Instant
	pending       int
	oldest        time.Duration
	// held are the volumes whose ends are held.
	held map[spec.VolumeKey]bool
}

func (m Metrics) count(grants []grant.Grant) counts {
	now := m.Now()
	c := counts{grants: map[grant.State]int{}, leases: map[string]int{}, failing: map[string]int{}, lapse: math.MaxInt64, atRisk: math.MaxInt64,
		held: map[spec.VolumeKey]bool{}}
	for _, g := range grants {
		c.grants[g.State]++
		for _, l := range g.Leases {
			c.leases[leaseState(g, l, now)]++
		}
		lapse := g.Lapse(now)
		c.lapse = min(c.lapse, lapse)
		revoking := g.State == grant.Revoking
		if !revoking && m.EndHeld(g.Volume) {
			c.held[g.Volume] = true
		}
		switch {
		case g.Failures == 0:
		case revoking:
			c.failing["revoke"]++
		default:
			c.failing["renew"]++
			c.atRisk = min(c.atRisk, lapse)
		}
		if !revoking || m.LeftToExpire(g) != "" {
			continue
		}
		c.pending++
		if g.GivenUp != 0 {
			c.oldest = max(c.oldest, now.Sub(g.GivenUp))
		}
	}
	return c
}

// What becomes of leases.
const (
	// current: a volume shows what it stands for, and it is renewed or will be replaced.
	current = "current"
	// overdue: it is near its end, and should have been replaced at a republish.
	overdue = "overdue"
	// lapsed: it ended, and the volume still shows what it stood for.
	lapsed = "lapsed"
	// superseded: something took its place, and it runs out.
	superseded = "superseded"
	// revoking: it is given back, or runs out, with its grant.
	revoking = "revoking"
	// over: it ended and is in nobody's way.
	over = ""
)

func leaseState(g grant.Grant, l grant.Lease, now grant.Instant) string {
	ended := g.LeaseLeft(l, now) == 0
	switch {
	case g.State == grant.Revoking:
		return revoking
	case ended && (l.Superseded || g.State != grant.Active):
		return over
	case l.Superseded, g.State == grant.Superseded:
		return superseded
	case ended:
		return lapsed
	case g.Overdue(l, now):
		return overdue
	}
	return current
}

// NewBuildInfo returns the metric of what runs, which is always 1.
func NewBuildInfo(version string) prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "leasehold_build_info", Help: "1, with the version of Leasehold and of the Go that built it.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	g.Set(1)
	return g
}

// NewMissingRights returns the metric of how many rights the provider lacks in the cluster.
func NewMissingRights() prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "leasehold_missing_rights", Help: "Rights in the cluster that the provider lacks, when it asked last; its log names them.",
	})
}

// NewRefusals returns the metric of refused Mounts, with a zero for each reason.
func NewRefusals(reasons []string) *prometheus.CounterVec {
	return counted("leasehold_mounts_refused_total", "Mounts that were refused, by reason.", "reason", reasons)
}

// NewRotations returns the metric of what was replaced, with a zero for each kind.
func NewRotations(kinds []keeper.Rotation) *prometheus.CounterVec {
	var names []string
	for _, k := range kinds {
		names = append(names, string(k))
	}
	return counted("leasehold_rotations_total", "Logins, leases and certificates that took the place of others in a volume, by kind.", "kind", names)
}

// counted is a counter that begins with 0 for each value of its label: of one that shows up with its first count, that count is no increase.
func counted(name, help, label string, values []string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	for _, v := range values {
		c.WithLabelValues(v)
	}
	return c
}

// APIRequests counts requests to the Kubernetes API.
type APIRequests struct{ *prometheus.CounterVec }

// NewAPIRequests returns APIRequests that counted none yet.
func NewAPIRequests() APIRequests {
	return APIRequests{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "leasehold_api_requests_total", Help: "Requests to the Kubernetes API, by HTTP method and the answer's status; status none when no answer came.",
	}, []string{"method", "status"})}
}

// Answered takes one request; a status of 0 means that no answer came.
func (a APIRequests) Answered(method string, status int) {
	text := "none"
	if status != 0 {
		text = strconv.Itoa(status)
	}
	a.WithLabelValues(method, text).Inc()
}

// NewRenewalDelays returns the metric of how late renewals are begun, in seconds.
func NewRenewalDelays() prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "leasehold_renewal_delay_seconds", Help: "Time between when a renewal was due and when it was begun, of those that did not fail before.",
		Buckets: []float64{.1, 1, 10, 60, 600},
	})
}

// VaultRequests measures requests to Vault.
type VaultRequests struct{ *prometheus.HistogramVec }

// NewVaultRequests returns VaultRequests that measured none yet.
func NewVaultRequests() VaultRequests {
	return VaultRequests{prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "leasehold_vault_request_seconds", Help: "Time that requests to Vault took, by what was asked for and what came of it.",
		Buckets: []float64{.005, .02, .1, .5, 2, 10, 60},
	}, []string{"operation", "outcome"})}
}

// Answered takes one request.
func (v VaultRequests) Answered(operation, outcome string, took time.Duration) {
	v.WithLabelValues(operation, outcome).Observe(took.Seconds())
}

// Events counts the events that are posted on pods.
type Events struct{ *prometheus.CounterVec }

// NewEvents returns Events that counted none yet.
func NewEvents() Events {
	return Events{prometheus.NewCounterVec(prometheus.CounterOpts{Name: "leasehold_events_total", Help: "Events posted on pods, by reason."}, []string{"reason"})}
}

// Count returns post with every call counted.
func (e Events) Count(post func(pod spec.Pod, eventtype, reason, message string)) func(spec.Pod, string, string, string) {
	return func(pod spec.Pod, eventtype, reason, message string) {
		e.WithLabelValues(reason).Inc()
		post(pod, eventtype, reason, message)
	}
}
