package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/internal/fleet"
)

// leaseFormats are the ways to print what is held.
var leaseFormats = []string{"table", "wide", "json", "yaml"}

const (
	// askWithin bounds one question to the provider.
	askWithin = 30 * time.Second
	// watchPace is the time between two looks.
	watchPace = 2 * time.Second
	// clearScreen moves a terminal's cursor home and clears what is there.
	clearScreen = "\x1b[H\x1b[2J"
)

// leases prints what the provider of this node holds, or those of all nodes.
func leases(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var l lister
	flags := flag.NewFlagSet("leases", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&l.format, "o", "table", "output `format`: "+strings.Join(leaseFormats, ", "))
	watch := flags.Bool("w", false, "look again every 2 s, until interrupted")
	flags.StringVar(&l.selection.Namespace, "n", "", "only pods of this `namespace`")
	flags.StringVar(&l.selection.Pod, "pod", "", "only the pod of this `name`")
	flags.StringVar(&l.selection.State, "state", "", "only grants in this `state`")
	flags.StringVar(&l.selection.Vault, "vault", "", "only what is held at this `URL`")
	flags.DurationVar(&l.selection.Within, "expiring-within", 0, "only what ends within this `time` unless it is renewed")
	flags.StringVar(&l.stateDir, "state-dir", defaultStateDir, "state `folder` of the provider to ask")
	l.everywhere.define(flags)
	if err := parse(flags, args); err != nil {
		return err
	}
	if !slices.Contains(leaseFormats, l.format) {
		return fmt.Errorf("%w: -o must be one of %s", errUsage, strings.Join(leaseFormats, ", "))
	}
	if err := l.everywhere.prepare(flags); err != nil {
		return err
	}
	l.out, l.clear = stdout, *watch && isTerminal(stdout)
	look := l.here
	if l.everywhere.allNodes {
		look = l.onAllNodes
	}
	for {
		err := look(ctx)
		if !*watch || err != nil && !errors.Is(err, errPartial) && ctx.Err() == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchPace):
		}
	}
}

// lister looks at what is held and prints what is selected of it.
type lister struct {
	everywhere everywhere
	stateDir   string
	selection  admin.Selection
	format     string
	out        io.Writer
	clear      bool // the terminal, before each look is printed
}

func (l *lister) here(ctx context.Context) error {
	all, err := fetch(ctx, l.stateDir)
	if err != nil {
		return err
	}
	selected := l.selection.Of(all)
	return l.print(selected, func(wide bool) error {
		if held := len(all.Grants); held > 0 && len(selected.Grants) == 0 {
			_, err := fmt.Fprintf(l.out, "Of the %d grants on node %s none is selected.\n", held, all.Node)
			return err
		}
		return admin.WriteTable(l.out, selected, wide)
	})
}

func (l *lister) onAllNodes(ctx context.Context) error {
	all, err := l.everywhere.run(ctx, fleet.Command{Args: []string{"leases", "-o", "json", "--state-dir", l.stateDir}, Within: askWithin})
	if err != nil {
		return err
	}
	selected := l.selection.In(all)
	if err := l.print(selected, func(wide bool) error { return selected.WriteTable(l.out, wide) }); err != nil {
		return err
	}
	return whole(all)
}

func (l *lister) print(report any, table func(wide bool) error) error {
	if l.clear {
		_, _ = io.WriteString(l.out, clearScreen)
	}
	return write(l.out, l.format, report, func() error { return table(l.format == "wide") })
}

// write writes a report as JSON, as YAML, or else as a table.
func write(w io.Writer, format string, report any, table func() error) error {
	switch format {
	case "json":
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(report)
	case "yaml":
		text, err := yaml.Marshal(report)
		if err == nil {
			_, err = w.Write(text)
		}
		return err
	}
	return table()
}

func fetch(ctx context.Context, stateDir string) (admin.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	return admin.Fetch(ctx, stateDir)
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
