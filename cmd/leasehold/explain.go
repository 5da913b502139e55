package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/leasehold-csi/leasehold/internal/admin"
)

// explain prints what the provider of this node knows of a pod, and what to check next.
func explain(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("explain", flag.ContinueOnError)
	flags.SetOutput(stderr)
	output := flags.String("o", "text", "output `format`: text or json")
	stateDir := flags.String("state-dir", defaultStateDir, "state `folder` of the provider to ask")
	pod := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") { // so that flags may stand on either side of the pod
		pod, args = args[0], args[1:]
	}
	if err := flags.Parse(args); err != nil {
		return usageError(err)
	}
	if pod == "" && flags.NArg() == 1 {
		pod = flags.Arg(0)
	} else if flags.NArg() > 0 {
		return fmt.Errorf("%w: unexpected argument %q", errUsage, flags.Arg(0))
	}
	namespace, name, ok := strings.Cut(pod, "/")
	if !ok || namespace == "" || name == "" {
		return fmt.Errorf("%w: name the pod as namespace/name", errUsage)
	}
	if *output != "text" && *output != "json" {
		return fmt.Errorf("%w: -o must be text or json", errUsage)
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	report, err := admin.Fetch(ctx, *stateDir)
	if err != nil {
		return err
	}
	timeline, err := admin.FetchEvents(ctx, *stateDir, namespace, name)
	if err != nil {
		return err
	}
	now := time.Now()
	explanation := admin.Explain(report, timeline, namespace, name, now)
	if *output == "json" {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(explanation)
	}
	return explanation.Write(stdout, now)
}
