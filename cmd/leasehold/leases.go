package main

import (
	"context"
	"encoding/json"
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

// leases prints what the provider of this node holds.
func leases(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var s admin.Selection
	flags := flag.NewFlagSet("leases", flag.ContinueOnError)
	flags.SetOutput(stderr)
	output := flags.String("o", "table", "output `format`: "+strings.Join(leaseFormats, ", "))
	watch := flags.Bool("w", false, "look again every 2 s, until interrupted")
	flags.StringVar(&s.Namespace, "n", "", "only pods of this `namespace`")
	flags.StringVar(&s.Pod, "pod", "", "only the pod of this `name`")
	flags.StringVar(&s.State, "state", "", "only grants in this `state`")
	flags.StringVar(&s.Vault, "vault", "", "only what is held at this `URL`")
	flags.DurationVar(&s.Within, "expiring-within", 0, "only what ends within this `time` unless it is renewed")
	stateDir := flags.String("state-dir", defaultStateDir, "state `folder` of the provider to ask")
	if err := parse(flags, args); err != nil {
		return err
	}
	if !slices.Contains(leaseFormats, *output) {
		return fmt.Errorf("%w: -o must be one of %s", errUsage, strings.Join(leaseFormats, ", "))
	}
	for {
		report, err := fetch(ctx, *stateDir)
		if err != nil {
			return err
		}
		if *watch && isTerminal(stdout) {
			_, _ = io.WriteString(stdout, clearScreen)
		}
		if err := writeLeases(stdout, report, s.Of(report), *output); err != nil || !*watch {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchPace):
		}
	}
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

func writeLeases(w io.Writer, all, selected admin.Report, format string) error {
	switch format {
	case "json":
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(selected)
	case "yaml":
		text, err := yaml.Marshal(selected)
		if err == nil {
			_, err = w.Write(text)
		}
		return err
	}
	if held := len(all.Grants); held > 0 && len(selected.Grants) == 0 {
		_, err := fmt.Fprintf(w, "Of the %d grants on node %s none is selected.\n", held, all.Node)
		return err
	}
	return admin.WriteTable(w, selected, format == "wide")
}
