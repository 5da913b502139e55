package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/internal/fleet"
)

// drain has the provider of this node give back what it holds, before it is removed, or those of all nodes.
func drain(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	d := drainer{stdout: stdout, stderr: stderr}
	flags := flag.NewFlagSet("drain", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.BoolVar(&d.force, "force", false, "give back also what running pods use, and mount nothing more until the provider is started again")
	flags.BoolVar(&d.leave, "leave", false, "leave what running pods use to its end, and say when that is")
	flags.StringVar(&d.format, "o", "table", "output `format`: table or json")
	flags.DurationVar(&d.timeout, "timeout", 5*time.Minute, "how `long` to wait for Vault")
	flags.StringVar(&d.stateDir, "state-dir", defaultStateDir, "state `folder` of the provider to drain")
	d.everywhere.define(flags)
	if err := parse(flags, args); err != nil {
		return err
	}
	if d.force && d.leave {
		return fmt.Errorf("%w: --force and --leave exclude each other", errUsage)
	}
	if d.format != "table" && d.format != "json" {
		return fmt.Errorf("%w: -o must be table or json", errUsage)
	}
	if err := d.everywhere.prepare(flags); err != nil {
		return err
	}
	if d.everywhere.allNodes {
		return d.allNodes(ctx)
	}
	return d.here(ctx)
}

// drainer has what is held given back, and prints what is left.
type drainer struct {
	everywhere     everywhere
	force, leave   bool
	format         string
	timeout        time.Duration
	stateDir       string
	stdout, stderr io.Writer
}

func (d *drainer) here(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	report, err := admin.Drain(limited, d.stateDir, d.force, func(left int) {
		fmt.Fprintf(d.stderr, beingGivenBack+"\n", left)
	})
	if err != nil {
		return err
	}
	err = write(d.stdout, d.format, report, func() error {
		if len(report.Grants) == 0 {
			return admin.WriteTable(d.stdout, report, false)
		}
		return admin.WriteEnds(d.stdout, report, time.Now())
	})
	if err != nil {
		return err
	}
	return d.verdict(report)
}

// beingGivenBack is the progress that a drain tells of, for people and for a drain of all nodes.
const beingGivenBack = "%d being given back"

func (d *drainer) allNodes(ctx context.Context) error {
	report, err := d.everywhere.run(ctx, fleet.Command{
		Args:   []string{"drain", "-o", "json", fmt.Sprintf("--force=%t", d.force), "--timeout", d.timeout.String(), "--state-dir", d.stateDir},
		Within: d.timeout + askWithin, // the drain itself, and the way there
		Told: func(node, line string) {
			var left int
			if _, err := fmt.Sscanf(line, beingGivenBack, &left); err == nil {
				fmt.Fprintf(d.stderr, "%s: "+beingGivenBack+"\n", node, left)
			}
		},
	})
	if err != nil {
		return err
	}
	err = write(d.stdout, d.format, report, func() error { return report.WriteEnds(d.stdout, time.Now()) })
	if err != nil {
		return err
	}
	partial, left := whole(report), d.verdict(report.Nodes...)
	if partial != nil && left != nil {
		return fmt.Errorf("%w; and %w", partial, left)
	}
	return errors.Join(partial, left)
}

// verdict says what has to be done about what is left; nil for nothing.
func (d *drainer) verdict(reports ...admin.Report) error {
	used, revoking := 0, 0
	for _, r := range reports {
		used += r.InUse()
		revoking += r.Revoking()
	}
	switch {
	case revoking > 0:
		return fmt.Errorf("not all was given back within %s: leasehold leases says why; drain again, or let it run out as above", d.timeout)
	case used > 0 && !d.leave:
		return errInUse
	}
	return nil
}

var errInUse = errors.New("running pods use the above: stop them and drain again, or leave it to its end with --leave, or take it away from them with --force")
