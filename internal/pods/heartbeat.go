package pods

import (
	"sync"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
)

const (
	// pollPace is kubelet's own pace of renewing the node's Lease.
	pollPace = 10 * time.Second
	// pollGap is how long a Lease may stand still before the proof of life begins anew.
	pollGap = 60 * time.Second
)

// heartbeat follows the node's Lease while somebody asks. The Lease's time is only compared with itself, never with a
// clock: that it moves is the proof. The zero value has seen nothing.
type heartbeat struct {
	mu      sync.Mutex
	polled  grant.Instant
	renewed time.Time
	// first and last bound the run of renewals seen with no gap; zero before any.
	first, last grant.Instant
}

// due tells whether the caller should read the Lease, and counts on it being done.
func (h *heartbeat) due(now grant.Instant) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.polled != 0 && now.Sub(h.polled) < pollPace {
		return false
	}
	h.polled = now
	return true
}

// saw records a Lease as read at now. The first sight begins a run: it may be old, so the run's length counts from there.
func (h *heartbeat) saw(renewed time.Time, now grant.Instant) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if renewed.Equal(h.renewed) {
		return
	}
	h.renewed = renewed
	if h.last == 0 || now.Sub(h.last) >= pollGap {
		h.first = now
	}
	h.last = now
}

// alive returns the part of the latest run that lies after since.
func (h *heartbeat) alive(since grant.Instant) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(h.last.Sub(max(h.first, since)), 0)
}
