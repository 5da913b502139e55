// Command first times the README's first command, `make demo`, in a clean clone of the last commit, and keeps what it measured in
// docs/first-steps.json and in the table of docs/testing.md.
//
//	go run ./test/first [-cold] [-bare] [-no-kubelet]
//
// With -cold nothing is built or downloaded yet: Go's caches and the servers' are new and empty. With -bare PostgreSQL is hidden, by an empty
// folder over it in a mount namespace (root). How busy the machine was before is told beside.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "first:", err)
		os.Exit(1)
	}
}

// conditions are what is measured under.
type conditions struct{ cold, bare, noKubelet bool }

func run(ctx context.Context, args []string) error {
	var c conditions
	flags := flag.NewFlagSet("first", flag.ContinueOnError)
	flags.BoolVar(&c.cold, "cold", false, "with new and empty caches")
	flags.BoolVar(&c.bare, "bare", false, "without PostgreSQL; needs root")
	flags.BoolVar(&c.noKubelet, "no-kubelet", false, "on the light test bed, also where the full one can run")
	if err := flags.Parse(args); err != nil {
		return err
	}
	m, err := measure(ctx, c)
	if err != nil {
		return err
	}
	return record("docs/first-steps.json", "docs/testing.md", m)
}

// measure clones, runs the command and takes what it says of its times.
func measure(ctx context.Context, c conditions) (m measured, err error) {
	dir, err := os.MkdirTemp("", "leasehold-first-")
	if err != nil {
		return m, fmt.Errorf("making a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	clone, times := filepath.Join(dir, "leasehold"), filepath.Join(dir, "times.json")
	if output, err := exec.CommandContext(ctx, "git", "clone", "--quiet", ".", clone).CombinedOutput(); err != nil {
		return m, fmt.Errorf("cloning: %w: %s", err, output)
	}
	commit, err := exec.CommandContext(ctx, "git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return m, fmt.Errorf("naming the commit: %w", err)
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return m, fmt.Errorf("asking how busy the machine is: %w", err)
	}
	m.Commit, m.Date = strings.TrimSpace(string(commit)), time.Now().UTC().Format(time.DateOnly)
	m.Cold, m.Processors, m.Load = c.cold, runtime.NumCPU(), strings.Fields(string(load))[0]
	if err := c.command(ctx, dir, clone, times).Run(); err != nil {
		return m, fmt.Errorf("running make demo: %w", err)
	}
	text, err := os.ReadFile(times)
	if err != nil {
		return m, fmt.Errorf("reading its times: %w", err)
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fmt.Errorf("decoding its times: %w", err)
	}
	return m, nil
}

func (c conditions) command(ctx context.Context, dir, clone, times string) *exec.Cmd {
	demo := "--times=" + times
	if c.noKubelet {
		demo += " --no-kubelet"
	}
	words := []string{"make", "demo", "DEMO=" + demo}
	if c.bare {
		words = append([]string{"unshare", "--mount", "sh", "-ec", `mount -t tmpfs none /usr/lib/postgresql; exec "$@"`, "sh"}, words...)
	}
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Dir, cmd.Stdout, cmd.Stderr = clone, os.Stdout, os.Stderr
	cmd.Env = os.Environ()
	if c.cold {
		cmd.Env = append(cmd.Env, "GOFLAGS=-modcacherw", // or else the modules could not be removed
			"GOCACHE="+filepath.Join(dir, "go-build"), "GOMODCACHE="+filepath.Join(dir, "go-mod"), "LEASEHOLD_CACHE="+filepath.Join(dir, "servers"))
	}
	return cmd
}
