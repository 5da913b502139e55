package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/provider"
)

// meters count what happens, for /metrics.
type meters struct {
	registry      *prometheus.Registry
	events        admin.Events
	delays        prometheus.Histogram
	vaultRequests admin.VaultRequests
	apiRequests   admin.APIRequests
	refusals      *prometheus.CounterVec
	rotations     *prometheus.CounterVec
	missingRights prometheus.Gauge
}

func newMeters() meters {
	m := meters{
		registry: prometheus.NewRegistry(), events: admin.NewEvents(), delays: admin.NewRenewalDelays(),
		vaultRequests: admin.NewVaultRequests(), apiRequests: admin.NewAPIRequests(),
		refusals: admin.NewRefusals(provider.Reasons()), rotations: admin.NewRotations(keeper.Rotations()), missingRights: admin.NewMissingRights(),
	}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), admin.NewBuildInfo(version),
		m.events, m.delays, m.vaultRequests, m.apiRequests, m.refusals, m.rotations, m.missingRights)
	return m
}

func (m meters) renewalBegan(late time.Duration) { m.delays.Observe(late.Seconds()) }
func (m meters) rotated(kind keeper.Rotation)    { m.rotations.WithLabelValues(string(kind)).Inc() }
func (m meters) refused(reason string)           { m.refusals.WithLabelValues(reason).Inc() }
