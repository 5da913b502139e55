package grant

import "time"

// Instant is a point on CLOCK_BOOTTIME, in nanoseconds since the node booted: it lives exactly as long as a store on
// tmpfs and never jumps. The zero value means not set.
type Instant int64

// Add returns the instant d later.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Sub returns the time from o to i.
func (i Instant) Sub(o Instant) time.Duration { return time.Duration(i - o) }

// Earliest returns the earliest instant that is set; zero when none is.
func Earliest(instants ...Instant) Instant {
	var first Instant
	for _, i := range instants {
		if i != 0 && (first == 0 || i < first) {
			first = i
		}
	}
	return first
}
