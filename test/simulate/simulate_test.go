// Package simulate runs pod lives against the real provider, keeper, store and pods packages on virtual time, with a behavioural Vault
// and models of kubelet, the CSI driver and the API server, while everything that can fail does, and checks the invariants from
// outside. A run is a row of worlds, each one node with a few pods, each in a bubble of its own with a seed of its own.
package simulate_test

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/klog/v2"
)

// floorPer100k is how often each kind of fault must occur in 100,000 lives.
const floorPer100k = 1000

// TestMain silences client-go, which logs every watch that ended early.
func TestMain(m *testing.M) {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	m.Run()
}

// TestSimulate runs worlds for SIMULATE_TIME (default: a few worlds), or until SIMULATE_LIVES lives are over. SIMULATE_SEED replays one
// world.
func TestSimulate(t *testing.T) {
	r := &run{count: map[string]int{}}
	if text := os.Getenv("SIMULATE_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 16, 64)
		if err != nil {
			t.Fatalf("SIMULATE_SEED: %v", err)
		}
		r.world(t, seed)
		r.report(t)
		return
	}
	wanted, limit := number(t, "SIMULATE_LIVES", 0), span(t, "SIMULATE_TIME")
	if wanted > 0 {
		limit = 0
	}
	if wanted == 0 && limit == 0 {
		wanted = 8 * lives
	}
	base := uint64(time.Now().UnixNano())
	if text := os.Getenv("SIMULATE_BASE"); text != "" {
		base = uint64(number(t, "SIMULATE_BASE", 0))
	}
	fmt.Printf("simulate: run %d\n", base)
	begin := time.Now()
	r.told = begin
	var next atomic.Uint64
	workers := runtime.GOMAXPROCS(0)
	t.Run("worlds", func(t *testing.T) {
		for i := range workers {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				for !t.Failed() && !r.failed.Load() {
					n := next.Add(1)
					if wanted > 0 && int(n-1)*lives >= wanted || limit > 0 && time.Since(begin) > limit {
						return
					}
					r.world(t, mix(base+n))
					r.progress(begin)
				}
			})
		}
	})
	r.report(t)
	fmt.Printf("%-34s %8.0f\n", "lives per second", float64(r.lives)/time.Since(begin).Seconds())
}

func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func span(t *testing.T, name string) time.Duration {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return d
}

// run is what all worlds of a run add up to.
type run struct {
	failed atomic.Bool

	mu    sync.Mutex
	told  time.Time
	lives int
	count map[string]int
}

// world runs one world in a bubble and tells of what was violated, with how it came to it.
func (r *run) world(t *testing.T, seed uint64) {
	t.Helper()
	dir, err := os.MkdirTemp(shm(), "leasehold-simulate-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed, dir)
		w.play()
		r.add(w)
		if len(w.broken) > 0 && r.failed.CompareAndSwap(false, true) {
			t.Errorf("seed %016x violates\n  %s\nTimeline:\n%s\nReplay with: make simulate SEED=%016x",
				seed, strings.Join(slices.Sorted(maps.Keys(w.broken)), "\n  "), strings.Join(w.lines, "\n"), seed)
		}
	})
}

// shm is a folder in memory, where there is one.
func shm() string {
	if _, err := os.Stat("/dev/shm"); err == nil {
		return "/dev/shm"
	}
	return ""
}

func (r *run) add(w *world) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lives += lives
	for what, n := range w.count {
		r.count[what] += n
	}
	for _, p := range w.pods {
		if w.count["kills"] > 0 {
			r.count["lives that met a kill"]++
		}
		if p.rotated {
			r.count["lives that rotated"]++
		}
	}
}

// progress tells now and then how far a long run is.
func (r *run) progress(begin time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.told) >= 30*time.Second {
		r.told = time.Now()
		fmt.Printf("simulate: %d lives in %s\n", r.lives, time.Since(begin).Round(time.Second))
	}
}

// report prints what happened, and fails when a long run met too little of something.
func (r *run) report(t *testing.T) {
	t.Helper()
	fmt.Printf("\n%-34s %8d\n", "pod lives", r.lives)
	for _, what := range slices.Sorted(maps.Keys(r.count)) {
		fmt.Printf("%-34s %8d\n", what, r.count[what])
	}
	if r.lives < 10000 {
		return
	}
	for _, o := range []odds{perRequest, perWorld} {
		for _, kind := range o {
			if floor := floorPer100k * r.lives / 100000; r.count[kind.kind] < floor {
				t.Errorf("%q occurred %d times in %d lives, fewer than %d", kind.kind, r.count[kind.kind], r.lives, floor)
			}
		}
	}
	for _, what := range []string{"lives that met a kill", "lives that rotated"} {
		if r.count[what] < r.lives/5 {
			t.Errorf("only %d %s", r.count[what], what)
		}
	}
	if perLife := r.count["republishes"] / r.lives; perLife < 10 {
		t.Errorf("only %d republishes per life", perLife)
	}
	if perLife := r.count["renewals"] / r.lives; perLife < 3 {
		t.Errorf("only %d renewals per life", perLife)
	}
}
