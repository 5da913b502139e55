//go:build e2e

package crash_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/leasehold-csi/leasehold/test/bed"
)

var update = flag.Bool("update", false, "write the golden file instead of comparing with it")

const (
	golden = "testdata/effects.golden"
	// together is how many cases run at a time: they mostly wait.
	together = 60
	// patience bounds every wait for a condition. What a dead process may have left under way in Vault takes 200 s, and a lease that
	// ran out meanwhile is left to Vault's own tries for 16 minutes.
	patience = 25 * time.Minute
)

// TestMain lets the cases that run together all do so, also with few processors: they mostly wait.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", strconv.Itoa(together)); err != nil {
		panic(err)
	}
	m.Run()
}

// TestCrash runs every scenario once undisturbed and counts its effects, and then again for each of them with the process killed
// before and after it. CRASH=short takes every fifth of these, beginning with another one every day.
func TestCrash(t *testing.T) {
	m := start(t)
	var mu sync.Mutex
	effects := map[string]points{}
	t.Run("undisturbed", func(t *testing.T) {
		for _, s := range scenarios {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				found := m.run(t, s, "")
				mu.Lock()
				defer mu.Unlock()
				effects[s.name] = found
			})
		}
	})
	if t.Failed() {
		return
	}
	compare(t, effects)
	step, first := 1, 0
	if os.Getenv("CRASH") == "short" {
		step = 5 // odd, so that both sides come up
		first = time.Now().YearDay() % step
	}
	n := 0
	var tried, done atomic.Int64
	t.Run("killed", func(t *testing.T) {
		for _, s := range scenarios {
			for i, kind := range effects[s.name].kinds {
				i += effects[s.name].after + 1
				for _, side := range []string{"before", "after"} {
					if n++; (n-1)%step != first {
						continue
					}
					tried.Add(1)
					t.Run(fmt.Sprintf("%s/%d %s %s", s.name, i, side, kind), func(t *testing.T) {
						t.Parallel()
						m.run(t, s, fmt.Sprintf("%d:%s", i, side))
						if d := done.Add(1); d%10 == 0 {
							fmt.Printf("crash: %d of %d cases done\n", d, tried.Load())
						}
					})
				}
			}
		}
	})
	t.Logf("%d crash points, every %d. of them tried", n, step)
}

// compare holds the counts against the golden file: an effect more or less is a change to be looked at.
func compare(t *testing.T, effects map[string]points) {
	t.Helper()
	var text strings.Builder
	for _, s := range scenarios {
		counts := map[string]int{}
		for _, kind := range effects[s.name].kinds {
			counts[kind]++
		}
		for _, kind := range slices.Sorted(maps.Keys(counts)) {
			fmt.Fprintf(&text, "%-20s %-16s %3d\n", s.name, kind, counts[kind])
		}
	}
	if *update {
		if err := os.WriteFile(golden, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if text.String() != string(want) {
		t.Errorf("the effects are\n%s\nand %s says\n%s", text.String(), golden, want)
	}
}

// matrix is what all cases share.
type matrix struct {
	bed    *bed.Bed
	vault  *api.Client
	binary string
}

func start(t *testing.T) *matrix {
	t.Helper()
	m := &matrix{binary: filepath.Join(t.TempDir(), "leasehold")}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-tags", "crashpoints", "-o", m.binary, "./cmd/leasehold")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building leasehold: %v\n%s", err, output)
	}
	dir := cmp.Or(os.Getenv("BED_DIR"), filepath.Join(os.TempDir(), "leasehold-bed-crash")) // PostgreSQL's user must reach it
	var err error
	if m.bed, err = bed.Open(dir); errors.Is(err, bed.ErrNoBed) {
		t.Cleanup(func() {
			if err := bed.Down(context.WithoutCancel(t.Context()), dir); err != nil {
				t.Error(err)
			}
		})
		m.bed, err = bed.Up(t.Context(), bed.Options{Form: bed.Light, Dir: dir, Log: os.Stdout})
	}
	if err != nil {
		t.Fatal(err)
	}
	if m.vault, err = m.bed.Vault(); err != nil {
		t.Fatal(err)
	}
	return m
}

// eventually waits until check returns nil, looking at a quick pace.
func eventually(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	every(t, 500*time.Millisecond, what, check)
}

// every is eventually at a pace of its own.
func every(t *testing.T, pace time.Duration, what string, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waiting until %s: %v", what, err)
		case <-ticker.C:
		}
	}
}
