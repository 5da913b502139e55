package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/leasehold-csi/leasehold/internal/admin"
)

// leases prints what the provider of this node holds.
func leases(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("leases", flag.ContinueOnError)
	flags.SetOutput(stderr)
	output := flags.String("o", "table", "output `format`: table or json")
	stateDir := flags.String("state-dir", defaultStateDir, "state `folder` of the provider to ask")
	if err := parse(flags, args); err != nil {
		return err
	}
	if *output != "table" && *output != "json" {
		return fmt.Errorf("%w: -o must be table or json", errUsage)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	report, err := admin.Fetch(ctx, *stateDir)
	if err != nil {
		return err
	}
	if *output == "table" {
		return admin.WriteTable(stdout, report)
	}
	encoder := json.NewEncoder(stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(report)
}
