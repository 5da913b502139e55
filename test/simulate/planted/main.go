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
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	folder = "test/simulate/planted/bugs"
	// limit is how long the simulation may take to find a bug.
	limit = 60 * time.Second
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
		took, found, err := plant(ctx, bug)
		if err != nil {
			return fmt.Errorf("%s: %w", bug, err)
		}
		verdict := "found"
		if !found {
			missed++
			verdict = "MISSED"
		}
		fmt.Printf("%-44s %-6s %4.0f s  %s\n", strings.TrimSuffix(filepath.Base(bug), ".patch"), verdict, took.Seconds(), title(bug))
	}
	if missed > 0 {
		return fmt.Errorf("the simulation missed %d of %d bugs", missed, len(bugs))
	}
	fmt.Printf("the simulation found %d of %d bugs\n", len(bugs), len(bugs))
	return nil
}

func title(bug string) string {
	text, _ := os.ReadFile(bug)
	first, _, _ := strings.Cut(string(text), "\n")
	return first
}

// plant tells how long the simulation took to find the bug, and whether it did.
func plant(ctx context.Context, bug string) (took time.Duration, found bool, err error) {
	dir, err := os.MkdirTemp("", "leasehold-planted-")
	if err != nil {
		return 0, false, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	patch, err := filepath.Abs(bug)
	if err != nil {
		return 0, false, err
	}
	for _, step := range [][]string{
		{"sh", "-c", `git ls-files -z --cached --others --exclude-standard | tar --create --null --ignore-failed-read --files-from=- | tar --extract --directory "$0"`, dir},
		{"git", "-C", dir, "init", "--quiet"},
		{"git", "-C", dir, "apply", patch},
		{"go", "test", "-C", dir, "-c", "-o", "simulation", "./test/simulate"},
	} {
		if out, err := exec.CommandContext(ctx, step[0], step[1:]...).CombinedOutput(); err != nil {
			return 0, false, fmt.Errorf("%s: %w\n%s", step[0], err, out)
		}
	}
	begin := time.Now()
	simulation := exec.CommandContext(ctx, filepath.Join(dir, "simulation"), "-test.run=^TestSimulate$", "-test.timeout=5m")
	simulation.Env = append(os.Environ(), "SIMULATE_TIME="+limit.String())
	simulation.Dir = dir
	_, err = simulation.Output()
	var failed *exec.ExitError
	if ctx.Err() != nil {
		return 0, false, ctx.Err()
	}
	if err != nil && !errors.As(err, &failed) {
		return 0, false, err
	}
	return time.Since(begin), err != nil, nil
}
