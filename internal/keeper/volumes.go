package keeper

import (
	"sync"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// volumes remembers how Mounts come. It is not kept over a restart: then a volume counts as asked for until one pause of
// the usual pace has passed.
type volumes struct {
	began grant.Instant

	mu   sync.Mutex
	seen map[spec.VolumeKey]*visits
}

type visits struct {
	// asked is when a Mount last came.
	asked grant.Instant
	// changed is when an answer last differed from the one before; zero when a Mount came since.
	changed grant.Instant
}

// ask notes that a Mount comes at now, and returns how long after a change of the volume's files it does; zero when they did not
// change since the one before.
func (v *volumes) ask(key spec.VolumeKey, now grant.Instant) (gap time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	seen := v.visits(key)
	if seen.changed != 0 {
		gap = now.Sub(seen.changed)
	}
	*seen = visits{asked: now}
	return gap
}

// change notes that the volume's files were answered at now and are not those of the answer before.
func (v *volumes) change(key spec.VolumeKey, now grant.Instant) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.visits(key).changed = now
}

// visits is the memory of one volume. The caller holds the lock.
func (v *volumes) visits(key spec.VolumeKey) *visits {
	seen := v.seen[key]
	if seen == nil {
		seen = new(visits)
		if v.seen == nil {
			v.seen = make(map[spec.VolumeKey]*visits)
		}
		v.seen[key] = seen
	}
	return seen
}

// lastAsked is when a Mount last asked for the volume, as far as is known at now; zero when none has for long.
func (v *volumes) lastAsked(key spec.VolumeKey, now grant.Instant) grant.Instant {
	v.mu.Lock()
	defer v.mu.Unlock()
	if seen := v.seen[key]; seen != nil {
		return seen.asked
	}
	if now.Sub(v.began) < grant.Floor(0) {
		return now
	}
	return v.began
}

func (v *volumes) forget(key spec.VolumeKey) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.seen, key)
}
