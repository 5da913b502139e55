package main

import (
	"math"
	"slices"
	"time"
)

// latencies are how long calls took, in any order.
type latencies []time.Duration

// quantile is the smallest latency that the share q of all does not exceed; zero of none.
func (l latencies) quantile(q float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(l))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// spread is a value measured several times.
type spread struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

// spreadOf returns the median of values with the lowest and the highest; all zero of none.
func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return spread{Median: (sorted[(n-1)/2] + sorted[n/2]) / 2, Low: sorted[0], High: sorted[n-1]}
}

// once is a value that was measured one time.
func once(value float64) spread { return spread{Median: value, Low: value, High: value} }

// round is what one round of a case measured: the floor's calls and Leasehold's, made in turn.
type round struct{ floor, ours latencies }

// ratios compare Leasehold's quantile with the floor's of the same round.
func ratios(rounds []round, q float64) spread {
	var values []float64
	for _, r := range rounds {
		if floor := r.floor.quantile(q); floor > 0 {
			values = append(values, float64(r.ours.quantile(q))/float64(floor))
		}
	}
	return spreadOf(values)
}

// pooled is all that the rounds measured of one side.
func pooled(rounds []round, side func(round) latencies) (all latencies) {
	for _, r := range rounds {
		all = append(all, side(r)...)
	}
	return all
}

func oursOf(r round) latencies  { return r.ours }
func floorOf(r round) latencies { return r.floor }
