package admin

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// Metrics counts what is held whenever it is asked.
type Metrics struct {
	// List returns what is held; required.
	List func() ([]grant.Grant, error)
	// BreakerOpen tells whether revocations are held back; required.
	BreakerOpen func() bool
	// Now reads the clock of the grants; required.
	Now func() grant.Instant
}

var (
	grantsDesc = prometheus.NewDesc("leasehold_grants", "Grants held, by state.", []string{"state"}, nil)
	leasesDesc = prometheus.NewDesc("leasehold_leases", "Leases held, those that were replaced and still run out included.", nil, nil)
	lapseDesc  = prometheus.NewDesc("leasehold_next_lapse_seconds", "Time left of the credentials that run out first unless they are renewed or replaced; +Inf for none.", nil, nil)
	openDesc   = prometheus.NewDesc("leasehold_breaker_open", "1 while revocations are held back because more pods seemed to end than the API told of.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m Metrics) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{grantsDesc, leasesDesc, lapseDesc, openDesc} {
		descs <- desc
	}
}

// Collect implements prometheus.Collector.
func (m Metrics) Collect(metrics chan<- prometheus.Metric) {
	grants, err := m.List()
	if err != nil {
		metrics <- prometheus.NewInvalidMetric(grantsDesc, err)
		return
	}
	leases, now, lapse := 0, m.Now(), grant.Instant(math.MaxInt64)
	states := map[grant.State]int{}
	for _, g := range grants {
		states[g.State]++
		leases += len(g.Leases)
		lapse = min(lapse, g.Lapse(now))
	}
	for _, state := range grant.States() {
		metrics <- prometheus.MustNewConstMetric(grantsDesc, prometheus.GaugeValue, float64(states[state]), string(state))
	}
	metrics <- prometheus.MustNewConstMetric(leasesDesc, prometheus.GaugeValue, float64(leases))
	left := math.Inf(1)
	if lapse != math.MaxInt64 {
		left = lapse.Sub(now).Seconds()
	}
	metrics <- prometheus.MustNewConstMetric(lapseDesc, prometheus.GaugeValue, left)
	open := 0.0
	if m.BreakerOpen() {
		open = 1
	}
	metrics <- prometheus.MustNewConstMetric(openDesc, prometheus.GaugeValue, open)
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
