// Command leasehold is a Vault provider for the Secrets Store CSI driver that gives every lease back.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

const usage = `leasehold gives every Vault lease back when its pod is over.

usage: leasehold [command] [flags]

  serve     answer the Secrets Store CSI driver on this node (the default)
  leases    list what this node holds, or every node
  explain   tell what happened to a pod, and what to check next
  revoke    give back what a pod holds, although it may run
  drain     give back what this node holds, or every node, before the provider is removed
  validate  check SecretProviderClasses in files
  version   print the version

leasehold COMMAND -h prints a command's flags.
`

func main() {
	// A process that renders templates has ended before this: see package template.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errFaults):
		os.Exit(1)
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "leasehold:", err)
		os.Exit(2)
	case errors.Is(err, errPartial):
		fmt.Fprintln(os.Stderr, "leasehold:", err)
		os.Exit(3)
	case err != nil:
		fmt.Fprintln(os.Stderr, "leasehold:", err)
		os.Exit(1)
	}
}

// errUsage marks errors in the command line.
var errUsage = errors.New("bad usage")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	command, rest := "serve", args
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, rest = args[0], args[1:]
	}
	switch command {
	case "serve":
		return serve(ctx, rest, stdout, stderr)
	case "leases":
		return leases(ctx, rest, stdout, stderr)
	case "explain":
		return explain(ctx, rest, stdout, stderr)
	case "revoke":
		return revoke(ctx, rest, os.Stdin, stdout, stderr)
	case "drain":
		return drain(ctx, rest, stdout, stderr)
	case "validate":
		return check(rest, os.Stdin, stdout, stderr)
	case "version":
		return printVersion(rest, stdout, stderr)
	case "help":
		_, err := io.WriteString(stdout, usage)
		return err
	}
	return fmt.Errorf("%w: there is no command %q; leasehold help lists them", errUsage, command)
}
