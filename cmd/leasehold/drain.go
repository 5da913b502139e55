package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/leasehold-csi/leasehold/internal/admin"
)

// drain has the provider of this node give back what it holds, before it is removed.
func drain(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("drain", flag.ContinueOnError)
	flags.SetOutput(stderr)
	force := flags.Bool("force", false, "give back also what running pods use, and mount nothing more until the provider is started again")
	leave := flags.Bool("leave", false, "leave what running pods use to its end, and say when that is")
	timeout := flags.Duration("timeout", 5*time.Minute, "how `long` to wait for Vault")
	stateDir := flags.String("state-dir", defaultStateDir, "state `folder` of the provider to drain")
	if err := parse(flags, args); err != nil {
		return err
	}
	if *force && *leave {
		return fmt.Errorf("%w: --force and --leave exclude each other", errUsage)
	}
	limited, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	report, err := admin.Drain(limited, *stateDir, *force, func(left int) {
		_, _ = fmt.Fprintf(stderr, "%d being given back\n", left)
	})
	if err != nil {
		return err
	}
	if len(report.Grants) == 0 {
		return admin.WriteTable(stdout, report, false)
	}
	if err := admin.WriteEnds(stdout, report, time.Now()); err != nil {
		return err
	}
	switch {
	case limited.Err() != nil:
		return fmt.Errorf("not all was given back within %s: leasehold leases says why; drain again, or let it run out as above", *timeout)
	case *leave:
		return nil
	}
	return errInUse
}

var errInUse = errors.New("running pods use the above: stop them and drain again, or leave it to its end with --leave, or take it away from them with --force")
