package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

func (s *stage) connectionsPlain(ctx context.Context) (result, error) {
	return s.connections(ctx, "connections/plain", "connections of a full node, plain HTTP", s.bed.State().Vault.Address, connections)
}

func (s *stage) connectionsTLS(ctx context.Context) (result, error) {
	vault := s.bed.State().Vault
	if err := s.restart(ctx, "--vault-addr", vault.TLSAddress, "--vault-tls-ca-cert", vault.Certificate); err != nil {
		return result{}, err
	}
	r, err := s.connections(ctx, "connections/tls", "connections of a full node, TLS and HTTP/2", vault.TLSAddress, 2)
	return r, errors.Join(err, s.end(ctx), s.restart(ctx))
}

// connections counts those to one Vault during a storm and after it.
func (s *stage) connections(ctx context.Context, row, title, address string, limit float64) (result, error) {
	sampling, stop := context.WithCancel(ctx)
	peak := 0
	var group errgroup.Group
	group.Go(func() error {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			n, err := connectionsTo(s.pid(), address)
			if err != nil {
				return err
			}
			peak = max(peak, n)
			select {
			case <-sampling.Done():
				return nil
			case <-tick.C:
			}
		}
	})
	_, took, err := s.full(ctx, database(volumeLeases))
	stop()
	if err = errors.Join(err, group.Wait()); err != nil {
		return result{}, err
	}
	after, err := connectionsTo(s.pid(), address)
	if err != nil {
		return result{}, err
	}
	r := s.result(row, title)
	r.Sides = []side{sideOf("storm", took)}
	r.Checks = []check{counted("most during the storm", float64(peak), math.Max(limit, connections)), counted("after the storm", float64(after), limit)}
	return r, nil
}

// fairness measures what 50 addresses that never answer, named by one namespace, cost another.
func (s *stage) fairness(ctx context.Context) (result, error) {
	const addresses = 50
	calls := s.few(100)
	pods, err := s.pods(ctx, 50)
	if err != nil {
		return result{}, err
	}
	w := kv(1)
	if _, err := s.oneAtATime(ctx, pods, "warm", warmUp, w); err != nil {
		return result{}, err
	}
	var rounds []round // the floor is the undisturbed one
	for n := range s.rounds {
		var r round
		if r.floor, err = s.oneAtATime(ctx, pods, fmt.Sprint("quiet-", n), calls, w); err != nil {
			return result{}, err
		}
		hanging, cut := context.WithCancel(ctx)
		others, err := s.hang(hanging, pods, fmt.Sprint("hang-", n), addresses)
		if err == nil {
			r.ours, err = s.oneAtATime(ctx, pods, fmt.Sprint("disturbed-", n), calls, w)
		}
		cut()
		if others != nil {
			others.Wait()
		}
		if err != nil {
			return result{}, err
		}
		rounds = append(rounds, r)
	}
	r := s.result("fairness", fmt.Sprintf("cold Mount, 1 KV path, while %d addresses of another namespace hang", addresses))
	r.Sides = []side{sideOf("undisturbed", pooled(rounds, floorOf)), sideOf("disturbed", pooled(rounds, oursOf))}
	r.Checks = []check{most("p99 / undisturbed p99", "x", ratios(rounds, .99), 1.5)}
	return r, nil
}

func (s *stage) oneAtATime(ctx context.Context, pods []*pod, prefix string, calls int, w wish) (latencies, error) {
	requests, err := s.requests(pods, prefix, calls, w)
	if err != nil {
		return nil, err
	}
	took, _, err := s.mountAll(ctx, requests, len(w.paths), 1)
	return took, err
}

// hang begins Mounts of another namespace at addresses that do not answer before ctx ends, and returns when all are under way.
func (s *stage) hang(ctx context.Context, pods []*pod, prefix string, n int) (*sync.WaitGroup, error) {
	addresses, err := silent(ctx, n)
	if err != nil {
		return nil, err
	}
	var under sync.WaitGroup
	for i, address := range addresses {
		w := kv(1)
		w.vault, w.namespace = address, "hostile"
		request, err := s.request(pods[i%len(pods)], fmt.Sprint(prefix, "-", i), w)
		if err != nil {
			return nil, err
		}
		under.Go(func() {
			_, _ = s.driver.Mount(ctx, request) // fails when ctx ends: that is what it is for
		})
	}
	return &under, s.await(ctx, "every hanging Mount is connected", func() error {
		for _, address := range addresses {
			if n, err := connectionsTo(s.pid(), address); err != nil || n == 0 {
				return fmt.Errorf("%s is not connected to: %w", address, err)
			}
		}
		return nil
	})
}

// memory measures what a full node takes up, after a storm and a long time of renewals.
func (s *stage) memory(ctx context.Context) (result, error) {
	if err := s.restart(ctx); err != nil { // a process that did nothing else
		return result{}, err
	}
	if _, _, err := s.full(ctx, database(volumeLeases)); err != nil {
		return result{}, err
	}
	length := s.watch
	if s.short {
		length = 0
	}
	var heaps, routines []float64
	for end := time.Now().Add(length); ; {
		m, err := s.providerMetrics(ctx)
		if err != nil {
			return result{}, err
		}
		heaps, routines = append(heaps, m.gauge("go_memstats_heap_alloc_bytes")), append(routines, m.gauge("go_goroutines"))
		if !time.Now().Before(end) {
			break
		}
		select {
		case <-ctx.Done():
			return result{}, ctx.Err()
		case <-time.After(min(time.Minute, time.Until(end))):
		}
	}
	begun, err := s.renewals(ctx)
	if err != nil {
		return result{}, err
	}
	m, err := memoryOf(s.pid())
	if err != nil {
		return result{}, err
	}
	state, err := bytesIn(s.bed.State().Provider.StateDir)
	if err != nil {
		return result{}, err
	}
	size, err := fileSize(s.provider)
	if err != nil {
		return result{}, err
	}
	const mib = 1 << 20
	r := s.result("memory", fmt.Sprintf("memory of a full node after a storm and %s of renewals", length))
	r.Checks = []check{
		most("RssAnon + RssShmem + state folder", "MiB", once(float64(m.anonymous+m.shared+state)/mib), 40),
		told("RssAnon", "MiB", float64(m.anonymous)/mib), told("RssShmem", "MiB", float64(m.shared)/mib), told("state folder", "MiB", float64(state)/mib),
		told("VmRSS", "MiB", float64(m.resident)/mib),
		most("binary", "MB", once(float64(size)/1e6), 60),
		{What: "heap in use, by the minute", Unit: "MiB", spread: scaled(spreadOf(heaps), 1./mib)},
		{What: "goroutines, by the minute", spread: spreadOf(routines)},
		told("renewals that began", "", begun.all),
		told("of them over 1 s late", "", begun.all-begun.punctual),
	}
	return r, nil
}

func scaled(s spread, by float64) spread { return spread{s.Median * by, s.Low * by, s.High * by} }
