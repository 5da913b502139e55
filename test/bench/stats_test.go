package main

import (
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	var hundred latencies
	for i := 100; i > 0; i-- {
		hundred = append(hundred, time.Duration(i))
	}
	tests := []struct {
		of   latencies
		q    float64
		want time.Duration
	}{
		{nil, .5, 0},
		{latencies{7}, .01, 7}, {latencies{7}, 1, 7},
		{latencies{3, 1, 2}, .5, 2},
		{latencies{4, 1, 2, 3}, .5, 2},
		{hundred, .5, 50}, {hundred, .9, 90}, {hundred, .99, 99}, {hundred, 1, 100},
	}
	for _, test := range tests {
		if got := test.of.quantile(test.q); got != test.want {
			t.Errorf("%v of %v: %d, want %d", test.q, test.of, got, test.want)
		}
	}
	if hundred[0] != 100 {
		t.Error("the latencies were put in order in place")
	}
}

func TestSpread(t *testing.T) {
	for _, test := range []struct {
		of   []float64
		want spread
	}{
		{nil, spread{}},
		{[]float64{2}, spread{2, 2, 2}},
		{[]float64{9, 1, 5}, spread{5, 1, 9}},
		{[]float64{4, 1, 2, 3}, spread{2.5, 1, 4}},
	} {
		if got := spreadOf(test.of); got != test.want {
			t.Errorf("%v: %v, want %v", test.of, got, test.want)
		}
	}
}

// TestRatios: each round is compared with its own floor, so that a slow moment of the machine is on both sides.
func TestRatios(t *testing.T) {
	rounds := []round{
		{floor: latencies{10, 10}, ours: latencies{11, 11}},
		{floor: latencies{100, 100}, ours: latencies{130, 130}},
		{floor: latencies{10, 10}, ours: latencies{12, 12}},
		{floor: nil, ours: latencies{1}},
	}
	if got, want := ratios(rounds, .5), (spread{1.2, 1.1, 1.3}); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}
