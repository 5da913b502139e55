// Command bench measures what Leasehold costs, on the real parts of package bed: a real API server, Vault and PostgreSQL, with
// pods that are real objects on a node without kubelet.
//
//	go run ./test/bench [-short] [-rows REGEXP] [-record] [-provider BINARY] [-env NAME=VALUE] [-variant NAME] [-profile FOLDER] [-readers N] [-rounds N] [-dir FOLDER]
//
// Each latency is compared with its floor: the same logins and reads as bare HTTP requests over connections that are kept alive,
// measured in the same run, in turn with Leasehold's. With -short the rows are small, and only counts are judged (requests,
// connections, goroutines), never times; it exits with 1 when a count is missed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/leasehold-csi/leasehold/test/bed"
)

// file and document keep what was measured last of each row.
const (
	file     = "docs/performance.json"
	document = "docs/performance.md"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:])
	stop()
	var missing *bed.MissingError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.As(err, &missing):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	short    bool
	rows     *regexp.Regexp
	record   bool
	provider string
	variant  string
	env      string
	profile  string
	rounds   int
	readers  int
	dir      string
	watch    time.Duration
}

func parse(args []string) (o options, err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.BoolVar(&o.short, "short", false, "small rows, of which only counts are judged")
	flags.BoolVar(&o.record, "record", false, "write what was measured into "+file+" and "+document)
	flags.StringVar(&o.provider, "provider", "", "measure this `binary` instead of building the checkout's")
	flags.StringVar(&o.variant, "variant", "", "`name` of what the binary or -env changes, for the tables")
	flags.StringVar(&o.env, "env", "", "environment variable, `NAME=VALUE`, for the provider and the Go benchmarks")
	flags.DurationVar(&o.watch, "watch", 30*time.Minute, "how long the row of the memory watches renewals")
	flags.StringVar(&o.profile, "profile", "", "`folder` for profiles of the provider, row by row")
	flags.IntVar(&o.rounds, "rounds", 5, "how often each case is measured")
	flags.IntVar(&o.readers, "readers", 8, "how many reads of a Mount the measured `binary` has under way at a time")
	flags.StringVar(&o.dir, "dir", filepath.Join(os.TempDir(), "leasehold-bench"), "`folder` of the bed")
	rows := flags.String("rows", "", "measure only the rows whose name this `regexp` matches")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if o.short {
		o.rounds = 1
	}
	if o.rows, err = regexp.Compile(*rows); err != nil {
		return o, fmt.Errorf("-rows: %w", err)
	}
	return o, nil
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	var results []result
	for _, at := range []func(context.Context, options) ([]result, error){lightRows, benchmarkRows, binaryRows, kubeletRows} {
		measured, err := at(ctx, o)
		results = append(results, measured...)
		if err != nil {
			return err
		}
	}
	write(os.Stdout, results)
	if o.record {
		if err := record(file, document, results); err != nil {
			return err
		}
	}
	return missed(results, o.short)
}

// missed tells which counts were.
func missed(results []result, short bool) (err error) {
	for _, r := range results {
		for _, c := range r.Checks {
			if c.Count && !c.met() {
				err = errors.Join(err, fmt.Errorf("%s: %s: %s, not %s", r.title(), c.What, c.value(), c.target()))
			}
		}
	}
	if short && len(results) == 0 {
		return errors.New("no row was measured")
	}
	return err
}
