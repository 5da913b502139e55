// Command demo tells what Leasehold does, on real parts and in a form that people like to read: an app mounts database
// credentials from Vault, uses them and ends, and seconds later the lease, the token and the database user are gone.
//
//	go run ./test/demo [--keep] [--no-kubelet]
//
// It runs on the full test bed where that can run, and else on the light one; see package bed. It installs nothing. It
// exits with 0 only when everything it says was seen to be true, and with 3 when this machine lacks Debian packages.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/leasehold-csi/leasehold/test/bed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	p := newPrinter(os.Stdout)
	err := run(ctx, os.Args[1:], p)
	stop()
	var missing *bed.MissingError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.As(err, &missing):
		p.failure(fmt.Sprintf("The %s test bed cannot run here: %s", missing.Form, missing.Reason))
		p.line("    " + installLine(missing))
		os.Exit(3)
	case errors.Is(err, errUsage):
		os.Exit(2)
	default:
		p.failure(err.Error())
		os.Exit(1)
	}
}

// errUsage stands for what package flag has printed already.
var errUsage = errors.New("bad usage")

func run(ctx context.Context, args []string, p *printer) error {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	keep := flags.Bool("keep", false, "leave the test bed up, to look around")
	noKubelet := flags.Bool("no-kubelet", false, "take the light form of the test bed also where the full one can run")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return err
	} else if err != nil {
		return errUsage
	}
	choice, err := choose(*noKubelet)
	if err != nil {
		return err
	}
	example, err := readExample(examplePath)
	if err != nil {
		return err
	}
	s := &story{printer: p, choice: choice, example: example}
	return s.close(ctx, s.tell(ctx), *keep)
}
