// Planted shows that the simulation finds bugs: it plants one at a time into a copy of the code, builds it, and wants the simulation
// to fail. A bug is a file of bugs/: its first line says what is decided wrongly, the rest is a patch.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	folder = "test/simulate/planted/bugs"
	// limit is how long the simulation may take to find a bug.
	limit = 60 * time.Second
	// Of so many replays of a seed that found it, so many at least must find it again. What goroutines do at one instant has no order,
	// and few worlds hang on it: of so many seeds one must replay so well.
	replays, again, seeds = 10, 9, 3
)

func main() {
	n := flag.String("n", "", "how many bugs to try, beginning with another one every day; empty for all")
	only := flag.String("only", "", "the one bug to try")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *n, *only); err != nil {
		fmt.Fprintln(os.Stderr, "planted:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, n, only string) error {
	bugs, err := filepath.Glob(filepath.Join(folder, "*.patch"))
	if err != nil || len(bugs) == 0 {
		return fmt.Errorf("no bugs in %s: run it at the top of the repository (%w)", folder, err)
	}
	switch {
	case only != "":
		bugs = []string{filepath.Join(folder, only+".patch")}
	case n != "":
		count, err := strconv.Atoi(n)
		if err != nil || count < 1 || count > len(bugs) {
			return fmt.Errorf("there are %d bugs, not %q", len(bugs), n)
		}
		first := time.Now().YearDay() * count % len(bugs)
		bugs = slices.Concat(bugs, bugs)[first : first+count]
	}
	missed := 0
	for _, bug := range bugs {
		r, err := plant(ctx, bug)
		if err != nil {
			return fmt.Errorf("%s: %w", bug, err)
		}
		verdict := "MISSED"
		if r.found {
			verdict = fmt.Sprintf("found, %2d of %d replays", r.replayed, replays)
		}
		if r.replayed < again {
			missed++
		}
		fmt.Printf("%-32s %4.0f s  %-24s %s\n", strings.TrimSuffix(filepath.Base(bug), ".patch"), r.took.Seconds(), verdict, title(bug))
	}
	if missed > 0 {
		return fmt.Errorf("the simulation missed %d of %d bugs, or could not replay them", missed, len(bugs))
	}
	fmt.Printf("the simulation found %d of %d bugs\n", len(bugs), len(bugs))
	return nil
}

func title(bug string) string {
	text, _ := os.ReadFile(bug)
	first, _, _ := strings.Cut(string(text), "\n")
	return first
}

// result is what the simulation made of a bug: how long it took, whether it found it, and how many replays of its seed did.
type result struct {
	took     time.Duration
	found    bool
	replayed int
}

// seedOf is what the simulation says of the world that it found a violation in.
var seedOf = regexp.MustCompile(`make simulate SEED=([0-9a-f]{16})`)

// plant runs the simulation with one bug.
func plant(ctx context.Context, bug string) (result, error) {
	dir, err := os.MkdirTemp("", "leasehold-planted-")
	if err != nil {
		return result{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	patch, err := filepath.Abs(bug)
	if err != nil {
		return result{}, err
	}
	for _, step := range [][]string{
		{"sh", "-c", `git ls-files -z --cached --others --exclude-standard | tar --create --null --ignore-failed-read --files-from=- | tar --extract --directory "$0"`, dir},
		{"git", "-C", dir, "init", "--quiet"},
		{"git", "-C", dir, "apply", patch},
		{"go", "test", "-C", dir, "-c", "-o", "simulation", "./test/simulate"},
	} {
		if out, err := exec.CommandContext(ctx, step[0], step[1:]...).CombinedOutput(); err != nil {
			return result{}, fmt.Errorf("%s: %w\n%s", step[0], err, out)
		}
	}
	var r result
	for range seeds {
		if r, err = find(ctx, dir); err != nil || !r.found || r.replayed >= again {
			break
		}
	}
	return r, err
}

// find lets the simulation look for the bug, and replays what it found.
func find(ctx context.Context, dir string) (result, error) {
	begin := time.Now()
	out, failed, err := simulate(ctx, dir, "SIMULATE_TIME="+limit.String())
	r := result{took: time.Since(begin), found: failed}
	seed := seedOf.FindSubmatch(out)
	if err != nil || !failed {
		return r, err
	}
	if seed == nil {
		return r, fmt.Errorf("the simulation failed without a seed:\n%s", out)
	}
	for range replays {
		_, failed, err := simulate(ctx, dir, "SIMULATE_SEED="+string(seed[1]))
		if err != nil {
			return r, err
		}
		if failed {
			r.replayed++
		}
	}
	return r, nil
}

// simulate runs the simulation built in a folder, and tells whether it failed.
func simulate(ctx context.Context, dir, setting string) (out []byte, failed bool, err error) {
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "simulation"), "-test.run=^TestSimulate$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), setting)
	cmd.Dir = dir
	out, err = cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, false, ctx.Err()
	case errors.As(err, &exit):
		return out, true, nil
	default:
		return out, false, err
	}
}
