package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// patience bounds every wait for a condition, far above what a slow machine needs.
	patience = 5 * time.Minute
	// pace is the time between two looks at a condition, and so how exact the times of a timeline are.
	pace = 50 * time.Millisecond
)

// await waits for something, until check returns nil. The errors of check say what it saw instead.
func await(ctx context.Context, p *printer, what string, check func(context.Context) error) error {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	var seen error
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || seen == nil {
			seen = err // and not that the time was over while looking
		}
		p.wait(fmt.Sprintf("waiting for %s (%.0f s)", what, time.Since(start).Seconds()))
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("waited %s for %s; at last: %w", patience, what, seen)
		case <-ticker.C:
		}
	}
}

// thing is something that ends: what its end is called, who tells, and whether it is still there.
type thing struct {
	what, source string
	there        func(context.Context) (bool, error)
}

// end is when a thing was found gone. It was seen at lastThere and no more at gone; the truth is between them.
type end struct {
	thing
	lastThere, gone time.Time
}

// watchEnds looks at all things at the same time until each is gone, and returns their ends in the order given.
func watchEnds(ctx context.Context, p *printer, things []thing) ([]end, error) {
	ends := make([]end, len(things))
	faults := make([]error, len(things))
	var watchers sync.WaitGroup
	for i, t := range things {
		watchers.Go(func() { ends[i], faults[i] = watchEnd(ctx, p, t) })
	}
	watchers.Wait()
	return ends, errors.Join(faults...)
}

func watchEnd(ctx context.Context, p *printer, t thing) (end, error) {
	e := end{thing: t}
	err := await(ctx, p, "the moment: "+t.what, func(ctx context.Context) error {
		asked := time.Now()
		there, err := t.there(ctx)
		if err != nil {
			return err
		}
		if there {
			e.lastThere = asked
			return errors.New("not yet, says " + t.source)
		}
		e.gone = time.Now()
		return nil
	})
	return e, err
}

// notBefore fails when something ended while the volume was certainly still mounted.
func notBefore(volume end, others []end) error {
	for _, other := range others {
		if other.gone.Before(volume.lastThere) {
			return fmt.Errorf("%q came %s before %q: a container could still have needed it",
				other.what, exactSeconds(volume.lastThere.Sub(other.gone)), volume.what)
		}
	}
	return nil
}

// mounts reads from the provider's metrics how many Mount calls it has answered with success.
func mounts(metrics string) (int, error) {
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "leasehold_calls_total{") && strings.Contains(line, `code="OK"`) && strings.Contains(line, `/Mount"`) {
			fields := strings.Fields(line)
			n, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err != nil {
				return 0, fmt.Errorf("reading the provider's metrics: %w", err)
			}
			return int(n), nil
		}
	}
	return 0, nil
}
