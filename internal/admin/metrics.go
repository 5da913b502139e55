package admin

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/leasehold-csi/leasehold/internal/grant"
)

// Metrics counts what is held whenever it is asked.
type Metrics struct {
	// List returns what is held; required.
	List func() ([]grant.Grant, error)
}

var (
	grantsDesc = prometheus.NewDesc("leasehold_grants", "Grants held, by state.", []string{"state"}, nil)
	leasesDesc = prometheus.NewDesc("leasehold_leases", "Leases held, those that were replaced and still run out included.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m Metrics) Describe(descs chan<- *prometheus.Desc) { descs <- grantsDesc; descs <- leasesDesc }

// Collect implements prometheus.Collector.
func (m Metrics) Collect(metrics chan<- prometheus.Metric) {
	grants, err := m.List()
	if err != nil {
		metrics <- prometheus.NewInvalidMetric(grantsDesc, err)
		return
	}
	leases := 0
	states := map[grant.State]int{grant.Pending: 0, grant.Partial: 0, grant.Active: 0, grant.Superseded: 0, grant.Revoking: 0}
	for _, g := range grants {
		states[g.State]++
		leases += len(g.Leases)
	}
	for state, n := range states {
		metrics <- prometheus.MustNewConstMetric(grantsDesc, prometheus.GaugeValue, float64(n), string(state))
	}
	metrics <- prometheus.MustNewConstMetric(leasesDesc, prometheus.GaugeValue, float64(leases))
}
