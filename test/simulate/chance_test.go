package simulate_test

import (
	"encoding/binary"
	"hash/fnv"
	"sync"
	"time"
)

// dice makes every choice of a world a hash of (seed, actor, effect, ordinal): what one actor meets does not depend on how the
// goroutines of the others were scheduled, so that a seed replays.
type dice struct {
	seed uint64

	mu       sync.Mutex
	ordinals map[string]uint64
}

func newDice(seed uint64) *dice { return &dice{seed: seed, ordinals: map[string]uint64{}} }

// roll returns a number in [0,1) for the next such effect of the actor.
func (d *dice) roll(actor, effect string) float64 {
	key := actor + "\x00" + effect
	d.mu.Lock()
	ordinal := d.ordinals[key]
	d.ordinals[key]++
	d.mu.Unlock()
	h := fnv.New64a()
	_ = binary.Write(h, binary.BigEndian, [2]uint64{d.seed, ordinal})
	_, _ = h.Write([]byte(key))
	return float64(mix(h.Sum64())>>11) / (1 << 53)
}

// mix spreads what FNV leaves close together for keys that differ in their last bytes.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

func (d *dice) between(actor, effect string, least, most time.Duration) time.Duration {
	return least + time.Duration(d.roll(actor, effect)*float64(most-least))
}

// odds are kinds with the chance of each; at most one happens.
type odds []struct {
	kind   string
	chance float64
}

// pick returns the kind that happens to the next such effect of the actor; empty for none.
func (d *dice) pick(actor, effect string, o odds) string {
	at := d.roll(actor, effect)
	for _, kind := range o {
		if at -= kind.chance; at < 0 {
			return kind.kind
		}
	}
	return ""
}
