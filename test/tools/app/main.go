// Command app is what the test bed's pods run: an application that logs in to PostgreSQL with the credentials it finds
// in files, as applications with a mounted volume do.
//
//	app                                      wait for SIGTERM (also the pod's own pause container)
//	app sleep DURATION                       wait, whatever signals come
//	app grow MIB                             take that much memory, 1 MiB after another, and wait for SIGTERM
//	app login-once --dsn D --user-file F --pass-file F
//	app run --dsn D --user-file F --pass-file F [--probe-every 1s] [--for DURATION]
//
// run logs in again and again, with what the files say at that moment, until SIGTERM or until --for is over. It prints
// one line per try and ends with 1 when any try failed.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if len(args) == 0 {
		<-ctx.Done()
		return nil
	}
	switch args[0] {
	case "sleep":
		return sleep(args[1:])
	case "grow":
		return grow(ctx, args[1:])
	case "login-once":
		p, err := parse(args)
		if err != nil {
			return err
		}
		return p.logIn(context.Background())
	case "run":
		p, err := parse(args)
		if err != nil {
			return err
		}
		return p.run(ctx)
	}
	return fmt.Errorf("unknown command %q", args[0])
}

func sleep(args []string) error {
	if len(args) != 1 {
		return errors.New("sleep: say how long")
	}
	duration, err := time.ParseDuration(args[0])
	if err != nil {
		return fmt.Errorf("sleep: %w", err)
	}
	<-time.After(duration)
	return nil
}

func grow(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("grow: say how many MiB")
	}
	mib, err := strconv.Atoi(args[0])
	if err != nil {
		return fmt.Errorf("grow: %w", err)
	}
	taken := make([][]byte, mib)
	for i := range taken {
		taken[i] = bytes.Repeat([]byte{1}, 1<<20) // written to, or the kernel would not give it
	}
	<-ctx.Done()
	runtime.KeepAlive(taken)
	return nil
}

// probe is one application's way to its database.
type probe struct {
	dsn, userFile, passFile string
	every, lifetime         time.Duration
}

func parse(args []string) (*probe, error) {
	p := &probe{}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.StringVar(&p.dsn, "dsn", "", "`URL` of the database, without a user")
	flags.StringVar(&p.userFile, "user-file", "", "`file` with the user name")
	flags.StringVar(&p.passFile, "pass-file", "", "`file` with the password")
	flags.DurationVar(&p.every, "probe-every", time.Second, "time between two logins")
	flags.DurationVar(&p.lifetime, "for", 0, "how long to run; 0 is until SIGTERM")
	if err := flags.Parse(args[1:]); err != nil {
		return nil, err
	}
	if p.dsn == "" || p.userFile == "" || p.passFile == "" || p.every <= 0 {
		return nil, errors.New("--dsn, --user-file and --pass-file are needed, and --probe-every above 0")
	}
	return p, nil
}

func (p *probe) run(ctx context.Context) error {
	if p.lifetime > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.lifetime)
		defer cancel()
	}
	ticker := time.NewTicker(p.every)
	defer ticker.Stop()
	failed := 0
	for {
		// A login that SIGTERM would cut off has not failed.
		if err := p.logIn(context.WithoutCancel(ctx)); err != nil {
			failed++
			fmt.Println("failed:", err)
		} else {
			fmt.Println("ok")
		}
		select {
		case <-ctx.Done():
			if failed > 0 {
				return fmt.Errorf("%d logins failed", failed)
			}
			return nil
		case <-ticker.C:
		}
	}
}

// logIn opens a session with what the files hold now, and asks the database one question.
func (p *probe) logIn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	config, err := pgx.ParseConfig(p.dsn)
	if err != nil {
		return fmt.Errorf("reading --dsn: %w", err)
	}
	for before := ""; before == "" || before != config.User; { // the files may be replaced between two reads
		if before, err = read(p.userFile); err != nil {
			return err
		}
		if config.Password, err = read(p.passFile); err != nil {
			return err
		}
		if config.User, err = read(p.userFile); err != nil {
			return err
		}
	}
	session, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("logging in: %w", err)
	}
	return errors.Join(session.Ping(ctx), session.Close(ctx))
}

func read(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading credentials: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}
