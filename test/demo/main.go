// Command demo tells what Leasehold does, on real parts and in a form that people like to read: an app mounts database
// credentials from Vault, uses them and ends, and seconds later the lease, the token and the database user are gone.
//
//	go run ./test/demo [--keep] [--no-kubelet] [--begun SECONDS] [--times FILE]
//
// It runs on the full test bed where that can run, and else on the light one; see package bed. Where there is no PostgreSQL
// either, the app mounts a key-value secret, and Go is all that the machine needs. It installs nothing, and exits with 0 only
// when everything it says was seen to be true.
package main

import (
	"context"
	"errors"
	"flag"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	p := newPrinter(os.Stdout)
	err := run(ctx, os.Args[1:], p)
	stop()
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
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
	begun := flags.Int64("begun", 0, "when the command began that built this program, in Unix `seconds`: its minutes count too (default now)")
	timesFile := flags.String("times", "", "`file` to write what took how long to, as JSON")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return err
	} else if err != nil {
		return errUsage
	}
	choice, err := choose(*noKubelet)
	if err != nil {
		return err
	}
	example, err := readExample(examplePath, choice.bare)
	if err != nil {
		return err
	}
	s := &story{printer: p, choice: choice, example: example, begun: time.Now(), timesFile: *timesFile}
	if *begun > 0 {
		s.begun = time.Unix(*begun, 0)
	}
	return s.close(ctx, s.tell(ctx), *keep)
}
