package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
)

// A full node: its pods, and what each of them mounts.
const nodePods, podVolumes, volumeLeases = 250, 2, 2

func trimScheme(address string) string {
	_, host, _ := strings.Cut(address, "://")
	return host
}

// full mounts the volumes of a full node, all at once, and returns their calls.
func (s *stage) full(ctx context.Context, w wish) (requests []*v1alpha1.MountRequest, took latencies, err error) {
	pods, err := s.pods(ctx, s.few(nodePods))
	if err != nil {
		return nil, nil, err
	}
	if requests, err = s.requests(pods, "storm", len(pods)*podVolumes, w); err != nil {
		return nil, nil, err
	}
	took, _, err = s.mountAll(ctx, requests, len(w.paths), len(requests))
	return requests, took, err
}

// storm measures a whole node's first Mounts, all at once. Profiles are of a storm of their own, because taking them takes time.
func (s *stage) storm(ctx context.Context) (result, error) {
	w := database(volumeLeases)
	calls := s.few(nodePods) * podVolumes
	floor, err := newFloor(s.address(w), "")
	if err != nil {
		return result{}, err
	}
	var rounds []round
	var ratio, totals []float64
	var failed atomic.Int64
	used := newUsages()
	for range s.rounds {
		pods, err := s.pods(ctx, s.few(nodePods))
		if err != nil {
			return result{}, err
		}
		var r round
		var theirs, ours float64
		err = used.floor.during(func() (err error) {
			r.floor, theirs, err = floorAll(ctx, floor, pods, calls, w, calls)
			return err
		})
		if err == nil {
			err = s.revoke(ctx, floor)
		}
		if err == nil {
			r.ours, ours, err = s.stormOf(ctx, pods, w, calls, &failed, used.ours.during)
		}
		if err != nil {
			return result{}, err
		}
		rounds, ratio, totals = append(rounds, r), append(ratio, theirs/ours), append(totals, float64(calls)/ours)
	}
	r := s.result("storm", fmt.Sprintf("storm, %d pods x %d volumes x %d leases", s.few(nodePods), podVolumes, volumeLeases))
	r.Sides = []side{sideOf("floor", pooled(rounds, floorOf)), sideOf("leasehold", pooled(rounds, oursOf))}
	r.Checks = []check{
		most("time for all / floor's", "x", spreadOf(ratio), 1.2),
		{What: "time for all", Unit: "s", spread: spreadOf(totals)},
		told("slowest pod", "s", pooled(rounds, oursOf).quantile(1).Seconds()),
		counted("errors", float64(failed.Load()), 0),
	}
	r.Notes = used.notes("one storm", s.rounds)
	if s.profile == "" {
		return r, nil
	}
	pods, err := s.pods(ctx, s.few(nodePods))
	if err == nil {
		_, _, err = s.stormOf(ctx, pods, w, calls, &failed, func(load func() error) error { return s.profiled(ctx, "storm", load) })
	}
	if err != nil {
		return result{}, err
	}
	costs, err := s.costs(ctx, "storm")
	r.Notes = append(r.Notes, costs...)
	return r, err
}

// stormOf makes the first Mounts of pods all at once, watched by something, counts those that failed, and gives everything back.
func (s *stage) stormOf(ctx context.Context, pods []*pod, w wish, calls int, failed *atomic.Int64, watched func(func() error) error) (took latencies, perSecond float64, err error) {
	requests, err := s.requests(pods, "storm", calls, w)
	if err != nil {
		return nil, 0, err
	}
	err = watched(func() (err error) {
		took, perSecond, err = all(calls, calls, func(i int) (time.Duration, error) {
			took, err := s.mount(ctx, requests[i], len(w.paths))
			if err != nil && failed.Add(1) == 1 {
				fmt.Println("  the first Mount that failed:", err)
			}
			return took, nil
		})
		return err
	})
	return took, perSecond, errors.Join(err, s.end(ctx))
}

// republishOpen measures Mounts of what is mounted, 50 a second, whether or not those before are answered.
func (s *stage) republishOpen(ctx context.Context) (result, error) {
	const every = 20 * time.Millisecond
	length := 30 * time.Second
	if s.short {
		length = 5 * time.Second
	}
	requests, _, err := s.full(ctx, database(volumeLeases))
	if err != nil {
		return result{}, err
	}
	if err := s.quiet(ctx); err != nil {
		return result{}, err
	}
	calls := int(length / every)
	empty, err := s.openLoop(ctx, calls, every, func(int) (time.Duration, error) { return s.version(ctx) })
	if err != nil {
		return result{}, err
	}
	took, requested, err := s.counting(ctx, func() (latencies, error) {
		return s.openLoop(ctx, calls, every, func(i int) (time.Duration, error) { return s.mount(ctx, requests[i%len(requests)], volumeLeases) })
	})
	if err != nil {
		return result{}, err
	}
	r := s.result("republish/open", "republish, nothing due, 50/s")
	r.Sides = []side{sideOf("an empty call (Version) over the same socket", empty), sideOf("leasehold", took)}
	r.Checks = []check{
		most("p50", "ms", once(took.quantile(.5).Seconds()*1e3), .5),
		told("p50 beyond an empty call's", "ms", (took.quantile(.5)-empty.quantile(.5)).Seconds()*1e3),
		most("p99", "ms", once(took.quantile(.99).Seconds()*1e3), 3),
		counted("requests to Vault", requested.vault, 0),
		counted("requests to the API server", float64(len(requested.api)), 0),
		counted("goroutines more than before", requested.goroutines, 5),
	}
	if len(requested.api) > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("the API server was asked for %v", requested.api))
	}
	return r, nil
}

// quiet waits until the looks that follow first Mounts are over: Vault and the API server are asked for nothing.
func (s *stage) quiet(ctx context.Context) error {
	return s.await(ctx, "nothing is asked for", func() error {
		_, r, err := s.counting(ctx, func() (latencies, error) {
			select {
			case <-ctx.Done():
			case <-time.After(2 * time.Second):
			}
			return nil, nil
		})
		if err == nil && (r.vault > 0 || len(r.api) > 0) {
			err = fmt.Errorf("%.0f requests to Vault, to the API server %v", r.vault, r.api)
		}
		return err
	})
}

// requested is what happened meanwhile.
type requested struct {
	vault, goroutines float64
	api               map[string]float64 // by verb and resource; empty for none
}

func (s *stage) counting(ctx context.Context, load func() (latencies, error)) (took latencies, r requested, err error) {
	before, err := s.providerMetrics(ctx)
	if err != nil {
		return nil, r, err
	}
	api, err := s.apiRequests(ctx)
	if err != nil {
		return nil, r, err
	}
	mark, err := s.bed.AuditMark()
	if err != nil {
		return nil, r, err
	}
	if took, err = load(); err != nil {
		return nil, r, err
	}
	entries, err := s.bed.AuditSince(mark)
	if err != nil {
		return nil, r, err
	}
	apiAfter, err := s.apiRequests(ctx)
	if err != nil {
		return nil, r, err
	}
	after, err := s.providerMetrics(ctx)
	r = requested{vault: float64(len(entries)), goroutines: after.gauge("go_goroutines") - before.gauge("go_goroutines"), api: map[string]float64{}}
	for what, count := range apiAfter {
		if more := count - api[what]; more > 0 {
			r.api[what] = more
		}
	}
	return took, r, err
}

// openLoop begins a call at each beat, whether or not those before are answered.
func (s *stage) openLoop(ctx context.Context, n int, every time.Duration, call func(int) (time.Duration, error)) (latencies, error) {
	took := make(latencies, n)
	var group errgroup.Group
	start := time.Now()
	for i := range n {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Until(start.Add(time.Duration(i) * every))):
		}
		group.Go(func() (err error) { took[i], err = call(i); return err })
	}
	return took, group.Wait()
}

// republishMost measures how many Mounts of what is mounted are answered, while other volumes' leases are renewed.
func (s *stage) republishMost(ctx context.Context) (result, error) {
	length := 15 * time.Second
	if s.short {
		length = 3 * time.Second
	}
	renewed := wish{role: role, paths: []string{"database/creds/" + shortRole}}
	pods, err := s.pods(ctx, 20)
	if err != nil {
		return result{}, err
	}
	shorts, err := s.requests(pods, "short", len(pods), renewed)
	if err != nil {
		return result{}, err
	}
	if _, _, err := s.mountAll(ctx, shorts, 1, crowd); err != nil {
		return result{}, err
	}
	requests, _, err := s.full(ctx, database(volumeLeases))
	if err != nil {
		return result{}, err
	}
	before, err := s.renewals(ctx)
	if err != nil {
		return result{}, err
	}
	used, err := cpu(s.pid())
	if err != nil {
		return result{}, err
	}
	own, start := ownCPU(), time.Now()
	var took latencies
	err = s.profiled(ctx, "republish/most", func() (err error) { took, err = s.closedLoop(ctx, requests, atOnce, length); return err })
	if err != nil {
		return result{}, err
	}
	elapsed := time.Since(start)
	usedAfter, err := cpu(s.pid())
	if err != nil {
		return result{}, err
	}
	clients := ownCPU() - own
	after, err := s.renewals(ctx)
	if err != nil {
		return result{}, err
	}
	r := s.result("republish/most", "republish, nothing due, as many as it takes, 32 at a time")
	r.Sides = []side{sideOf("leasehold", took)}
	r.Checks = []check{
		least("throughput", "Mount/s", once(float64(len(took))/elapsed.Seconds()), 2000),
		told("client's share of a core", "%", 100*clients.Seconds()/elapsed.Seconds()),
		told("Leasehold's share of a core", "%", 100*(usedAfter-used).Seconds()/elapsed.Seconds()),
		told("renewals meanwhile", "", after.all-before.all),
		most("renewals that began over 1 s late", "", once((after.all-after.punctual)-(before.all-before.punctual)), 0),
	}
	r.Notes, err = s.costs(ctx, "republish/most")
	return r, err
}

// renewals counts those that began, and those of them that did within a second of their time.
type renewals struct{ all, punctual float64 }

func (s *stage) renewals(ctx context.Context) (r renewals, err error) {
	m, err := s.providerMetrics(ctx)
	if err != nil {
		return r, err
	}
	for _, series := range m["leasehold_renewal_delay_seconds"].GetMetric() {
		r.all += float64(series.GetHistogram().GetSampleCount())
		for _, b := range series.GetHistogram().GetBucket() {
			if b.GetUpperBound() == 1 {
				r.punctual += float64(b.GetCumulativeCount())
			}
		}
	}
	return r, nil
}

// closedLoop makes calls for a while, each worker its next when the last is answered.
func (s *stage) closedLoop(ctx context.Context, requests []*v1alpha1.MountRequest, workers int, length time.Duration) (took latencies, err error) {
	var next atomic.Int64
	var mu sync.Mutex
	var group errgroup.Group
	end := time.Now().Add(length)
	for range workers {
		group.Go(func() error {
			var own latencies
			for time.Now().Before(end) {
				one, err := s.mount(ctx, requests[int(next.Add(1))%len(requests)], volumeLeases)
				if err != nil {
					return err
				}
				own = append(own, one)
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, own...)
			return nil
		})
	}
	return took, group.Wait()
}

// start measures how soon a new process serves what another held.
func (s *stage) start(ctx context.Context) (result, error) {
	const grants = 1000
	pods, err := s.pods(ctx, s.few(nodePods))
	if err != nil {
		return result{}, err
	}
	requests, err := s.requests(pods, "start", s.few(grants), kv(1))
	if err != nil {
		return result{}, err
	}
	if _, _, err := s.mountAll(ctx, requests, 1, atOnce); err != nil {
		return result{}, err
	}
	var took latencies
	made := 0.0
	for range 2 * s.rounds {
		if err := s.bed.Kill(ctx, "provider"); err != nil {
			return result{}, err
		}
		_, r, err := s.countingVault(ctx, func() (latencies, error) {
			one, err := s.startOnce(ctx, requests[0])
			took = append(took, one)
			return nil, err
		})
		if err != nil {
			return result{}, err
		}
		made += r
	}
	r := s.result("start", fmt.Sprintf("process start with %d grants", len(requests)))
	r.Sides = []side{sideOf("until a Mount is answered", took)}
	r.Checks = []check{
		most("p50", "ms", once(took.quantile(.5).Seconds()*1e3), 300),
		counted("logins and reads", made, 0),
	}
	return r, nil
}

// startOnce starts the provider and returns how long it took until a Mount was answered.
func (s *stage) startOnce(ctx context.Context, request *v1alpha1.MountRequest) (time.Duration, error) {
	var group errgroup.Group
	start := time.Now()
	group.Go(func() error { return s.bed.Start(ctx, "provider") })
	err := s.serving(ctx)
	if err == nil {
		s.conn.Connect()
		_, err = s.mount(ctx, request, 1)
	}
	took := time.Since(start)
	return took, errors.Join(err, group.Wait())
}

// countingVault counts the logins and reads meanwhile.
func (s *stage) countingVault(ctx context.Context, load func() (latencies, error)) (took latencies, made float64, err error) {
	mark, err := s.bed.AuditMark()
	if err != nil {
		return nil, 0, err
	}
	if took, err = load(); err != nil {
		return nil, 0, err
	}
	entries, err := s.bed.AuditSince(mark)
	for _, e := range entries {
		if strings.HasSuffix(e.Path, "/login") || e.Operation == "read" {
			made++
		}
	}
	return took, made, err
}
