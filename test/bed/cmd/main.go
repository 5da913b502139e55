// Command cmd starts and removes the test bed; see package bed.
//
//	go run ./test/bed/cmd up|down|status|build [--no-kubelet|--kind] [--dir DIR] [--provider=false]
//
// It exits with 3 when this machine lacks something that Debian's packages could add, and names them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/leasehold-csi/leasehold/test/bed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	var missing *bed.MissingError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.As(err, &missing):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	default:
		fmt.Fprintln(os.Stderr, "bed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	var verb string
	if len(args) > 0 {
		verb, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("bed", flag.ContinueOnError)
	light := flags.Bool("no-kubelet", false, "the light form: no kubelet, no containers, no root")
	kind := flags.Bool("kind", false, "the full form, in a cluster that kind makes in Docker")
	dir := flags.String("dir", "", "the bed's `folder` (default below the temporary folder, by form)")
	provider := flags.Bool("provider", true, "build and run Leasehold in the bed")
	if err := flags.Parse(args); err != nil {
		return err
	}
	options := bed.Options{Form: bed.Full, Dir: *dir, Log: stdout}
	switch {
	case *light:
		options.Form, options.Traces = bed.Light, true
	case *kind:
		options.Form = bed.Kind
	}
	if options.Dir == "" {
		options.Dir = bed.DefaultDir(options.Form)
	}
	switch verb {
	case "up":
		return up(ctx, options, *provider)
	case "down":
		return bed.Down(ctx, options.Dir)
	case "status":
		return status(options.Dir, stdout)
	case "build":
		return bed.Build(ctx, options)
	}
	return errors.New("say what to do: up, down, status or build")
}

func up(ctx context.Context, options bed.Options, provider bool) error {
	if err := bed.CanRun(options.Form); err != nil {
		return err
	}
	if b, err := bed.Open(options.Dir); err == nil && b.State().Ready && b.Alive()["apiserver"] {
		return fmt.Errorf("a bed already runs in %s; take it down first", options.Dir)
	}
	if provider {
		var err error
		if options.Provider, err = filepath.Abs("bin/leasehold"); err != nil {
			return fmt.Errorf("finding bin/leasehold: %w", err)
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", options.Provider, "./cmd/leasehold")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("building leasehold: %w", err)
		}
	}
	b, err := bed.Up(ctx, options)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(options.Log, "\n  export KUBECONFIG=%s VAULT_ADDR=%s VAULT_TOKEN=$(cat %s)\n",
		b.State().Kubeconfig, b.State().Vault.Address, b.State().Vault.RootTokenFile)
	return err
}

func status(dir string, stdout io.Writer) error {
	b, err := bed.Open(dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s test bed in %s, ready: %t\n", b.State().Form, dir, b.State().Ready)
	alive := b.Alive()
	for _, name := range slices.Sorted(maps.Keys(alive)) {
		state := "ended"
		if alive[name] {
			state = "runs"
		}
		fmt.Fprintf(stdout, "  %-20s %s\n", name, state)
	}
	return nil
}
