package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/internal/template"
)

// row is one line of the issue: how it is measured.
type row struct {
	name    string
	measure func(*stage, context.Context) (result, error)
}

// rows are measured in this order; benchmarkRow and kubeletRow come after them.
var rows = []row{
	{"cold/kv1", coldOne("cold/kv1", "cold Mount, 1 KV path", kv(1), 200)},
	{"cold/kv10", coldOne("cold/kv10", "cold Mount, 10 KV paths", kv(10), 200)},
	{"cold/db", coldOne("cold/db", "cold Mount, 1 database path", database(1), 200)},
	{"cold/orphan", (*stage).coldOrphan},
	{"rendering", (*stage).rendering},
	{"cold32/kv1", coldMany("cold32/kv1", "32 at a time, 1 KV path", kv(1), 640)},
	{"cold32/kv10", coldMany("cold32/kv10", "32 at a time, 10 KV paths", kv(10), 320)},
	{"cold32/db", coldMany("cold32/db", "32 at a time, 1 database path", database(1), 320)},
	{"away", (*stage).away},
	{"storm", (*stage).storm},
	{"republish/open", (*stage).republishOpen},
	{"republish/most", (*stage).republishMost},
	{"start", (*stage).start},
	{"rollout", (*stage).rollOut},
	{"upgrade", (*stage).upgrade},
	{"connections/plain", (*stage).connectionsPlain},
	{"connections/tls", (*stage).connectionsTLS},
	{"fairness", (*stage).fairness},
	{"memory", (*stage).memory},
}

const (
	benchmarkRow = "benchmarks"
	kubeletRow   = "end"
	apartRow     = "end/apart"
)

// order is a row's place in the tables.
func order(name string) int {
	i := slices.IndexFunc(rows, func(r row) bool { return r.name == name })
	if i < 0 {
		return len(rows)
	}
	return i
}

// lightRows measures the chosen rows on the light bed.
func lightRows(ctx context.Context, o options) (results []result, err error) {
	chosen := slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return !o.rows.MatchString(r.name) })
	if len(chosen) == 0 {
		return nil, nil
	}
	s, err := newStage(ctx, o)
	defer func() { err = errors.Join(err, s.close()) }()
	if err != nil {
		return nil, err
	}
	for _, r := range chosen {
		begin := time.Now()
		measured, err := r.measure(s, ctx)
		if err == nil {
			err = s.end(ctx)
		}
		if err != nil {
			return results, fmt.Errorf("%s: %w", r.name, err)
		}
		fmt.Printf("  measured %-20s %6.1fs\n", r.name, time.Since(begin).Seconds())
		write(os.Stdout, []result{measured})
		results = append(results, measured)
	}
	return results, nil
}

// few makes a number small enough for the short form.
func (s *stage) few(n int) int {
	if s.short {
		return min(n, 20)
	}
	return n
}

const warmUp = 20

// coldOne measures first Mounts one at a time, in turn with the floor.
func coldOne(row, title string, w wish, calls int) func(*stage, context.Context) (result, error) {
	return func(s *stage, ctx context.Context) (result, error) {
		rounds, err := s.inTurn(ctx, w, s.few(calls))
		if err != nil {
			return result{}, err
		}
		r := s.result(row, title)
		r.Sides = []side{sideOf("floor", pooled(rounds, floorOf)), sideOf("leasehold", pooled(rounds, oursOf))}
		r.Checks = []check{most("p50 / floor's p50", "x", ratios(rounds, .5), 1.25), most("p99 / floor's p99", "x", ratios(rounds, .99), 1.5)}
		return r, nil
	}
}

// inTurn makes single first Mounts and the floor's requests for the same, one after the other.
func (s *stage) inTurn(ctx context.Context, w wish, calls int) (rounds []round, err error) {
	pods, err := s.pods(ctx, min(calls, 50))
	if err != nil {
		return nil, err
	}
	floor, err := newFloor(s.address(w), "")
	if err != nil {
		return nil, err
	}
	for n := range s.rounds + 1 {
		count := calls
		if n == 0 {
			count = warmUp
		}
		r, err := s.inTurnOnce(ctx, floor, pods, fmt.Sprint("round-", n), w, count)
		if err = errors.Join(err, s.revoke(ctx, floor)); err != nil {
			return nil, err
		}
		if n > 0 {
			rounds = append(rounds, r)
		}
	}
	return rounds, nil
}

func (s *stage) address(w wish) string {
	if w.vault != "" {
		return w.vault
	}
	return s.bed.State().Vault.Address
}

func (s *stage) inTurnOnce(ctx context.Context, floor *floor, pods []*pod, prefix string, w wish, calls int) (r round, err error) {
	requests, err := s.requests(pods, prefix, calls, w)
	if err != nil {
		return r, err
	}
	ours := func(i int) error {
		took, err := s.mount(ctx, requests[i], len(w.paths))
		r.ours = append(r.ours, took)
		return err
	}
	theirs := func(i int) error {
		took, err := floor.mount(ctx, pods[i%len(pods)], w, 0)
		r.floor = append(r.floor, took)
		return err
	}
	return r, alternately(calls, ours, theirs)
}

// alternately makes n calls of each of two sides, one after the other, of which each goes first in its turn.
func alternately(n int, one, other func(int) error) error {
	for i := range n {
		first, second := one, other
		if i%2 == 1 {
			first, second = other, one
		}
		if err := errors.Join(first(i), second(i)); err != nil {
			return err
		}
	}
	return nil
}

// coldOrphan measures what the one call costs that shortens a token to the orphan TTL.
func (s *stage) coldOrphan(ctx context.Context) (result, error) {
	w := kv(1)
	w.role = longRole
	rounds, err := s.inTurn(ctx, w, s.few(200))
	if err != nil {
		return result{}, err
	}
	r := s.result("cold/orphan", "cold Mount, 1 KV path, token shortened to the orphan TTL")
	r.Sides = []side{sideOf("floor, without that call", pooled(rounds, floorOf)), sideOf("leasehold", pooled(rounds, oursOf))}
	r.Checks = []check{{What: "p50 / floor's p50", Unit: "x", spread: ratios(rounds, .5)}}
	return r, nil
}

// rendering measures what a template costs: its process, and a first Mount with one beside the same Mount without.
func (s *stage) rendering(ctx context.Context) (result, error) {
	binary, err := filepath.Abs(s.provider)
	if err != nil {
		return result{}, fmt.Errorf("finding the binary: %w", err)
	}
	renderer := template.Renderer{Binary: binary}
	var started latencies
	for range warmUp + s.few(200) {
		begin := time.Now()
		if _, err := renderer.Render(ctx, namespace, []template.Template{{Object: "file", Text: "text"}}, nil); err != nil {
			return result{}, err
		}
		started = append(started, time.Since(begin))
	}
	started = started[warmUp:]
	pods, err := s.pods(ctx, 50)
	if err != nil {
		return result{}, err
	}
	plain, templates := kv(1), kv(1)
	templates.templates = true
	var rounds []round // the floor is the one without
	for n := range s.rounds + 1 {
		calls := s.few(200)
		if n == 0 {
			calls = warmUp
		}
		r, err := s.mountsInTurn(ctx, pods, fmt.Sprint("round-", n), calls, plain, templates)
		if err != nil {
			return result{}, err
		}
		if n > 0 {
			rounds = append(rounds, r)
		}
	}
	r := s.result("rendering", "cold Mount, 1 KV path, rendered from a template")
	r.Sides = []side{
		sideOf("start of the process alone", started), sideOf("without a template", pooled(rounds, floorOf)), sideOf("with one", pooled(rounds, oursOf)),
	}
	r.Checks = []check{
		most("start of the process, p50", "ms", once(milliseconds(started, .5)), 15),
		told("start of the process, p90", "ms", milliseconds(started, .9)),
		{What: "p50 / without a template", Unit: "x", spread: ratios(rounds, .5)},
	}
	return r, nil
}

// mountsInTurn makes first Mounts of two kinds, one after the other.
func (s *stage) mountsInTurn(ctx context.Context, pods []*pod, prefix string, calls int, floor, ours wish) (r round, err error) {
	theirs, err := s.requests(pods, prefix+"-floor", calls, floor)
	if err != nil {
		return r, err
	}
	own, err := s.requests(pods, prefix+"-ours", calls, ours)
	if err != nil {
		return r, err
	}
	mount := func(requests []*v1alpha1.MountRequest, w wish, took *latencies) func(int) error {
		return func(i int) error {
			one, err := s.mount(ctx, requests[i], len(w.paths))
			*took = append(*took, one)
			return err
		}
	}
	return r, alternately(calls, mount(theirs, floor, &r.floor), mount(own, ours, &r.ours))
}

const atOnce = 32

// coldMany measures the throughput of first Mounts, 32 at a time, in turn with the floor's.
func coldMany(row, title string, w wish, calls int) func(*stage, context.Context) (result, error) {
	return func(s *stage, ctx context.Context) (result, error) {
		calls := s.few(calls)
		used := newUsages()
		rounds, rates, err := s.inBlocks(ctx, w, calls, used)
		if err != nil {
			return result{}, err
		}
		var ratio, ours []float64
		for _, r := range rates {
			ratio, ours = append(ratio, r.ours/r.floor), append(ours, r.ours)
		}
		r := s.result(row, title)
		r.Sides = []side{sideOf("floor", pooled(rounds, floorOf)), sideOf("leasehold", pooled(rounds, oursOf))}
		r.Checks = []check{
			least("throughput / floor's", "x", spreadOf(ratio), .9),
			{What: "throughput", Unit: "Mount/s", spread: spreadOf(ours)},
		}
		r.Notes = used.notes(fmt.Sprintf("%d Mounts", calls), s.rounds+1)
		return r, nil
	}
}

// rate is how many calls a second each side made.
type rate struct{ floor, ours float64 }

// inBlocks makes first Mounts and the floor's requests, 32 at a time, in blocks that take turns.
func (s *stage) inBlocks(ctx context.Context, w wish, calls int, used usages) (rounds []round, rates []rate, err error) {
	pods, err := s.pods(ctx, min(calls, nodePods))
	if err != nil {
		return nil, nil, err
	}
	floor, err := newFloor(s.address(w), "")
	if err != nil {
		return nil, nil, err
	}
	for n := range s.rounds + 1 {
		var r round
		var v rate
		requests, err := s.requests(pods, fmt.Sprint("round-", n), calls, w)
		if err != nil {
			return nil, nil, err
		}
		ours := func() (err error) { r.ours, v.ours, err = s.mountAll(ctx, requests, len(w.paths), atOnce); return err }
		theirs := func() (err error) { r.floor, v.floor, err = floorAll(ctx, floor, pods, calls, w, atOnce); return err }
		blocks := []func() error{func() error { return used.ours.during(ours) }, func() error { return used.floor.during(theirs) }}
		if n%2 == 1 {
			slices.Reverse(blocks)
		}
		for _, block := range blocks {
			if err := block(); err != nil {
				return nil, nil, err
			}
		}
		if err := s.revoke(ctx, floor); err != nil {
			return nil, nil, err
		}
		if n > 0 { // the first is to warm up
			rounds, rates = append(rounds, r), append(rates, v)
		}
	}
	return rounds, rates, nil
}

// mountAll makes calls, some at the same time, and returns how long each took and how many a second there were.
func (s *stage) mountAll(ctx context.Context, requests []*v1alpha1.MountRequest, files, atOnce int) (latencies, float64, error) {
	return all(len(requests), atOnce, func(i int) (time.Duration, error) { return s.mount(ctx, requests[i], files) })
}

func floorAll(ctx context.Context, floor *floor, pods []*pod, calls int, w wish, atOnce int) (latencies, float64, error) {
	return all(calls, atOnce, func(i int) (time.Duration, error) { return floor.mount(ctx, pods[i%len(pods)], w, 0) })
}

// all does n calls, some at the same time.
func all(n, atOnce int, call func(int) (time.Duration, error)) (latencies, float64, error) {
	took := make(latencies, n)
	var group errgroup.Group
	group.SetLimit(atOnce)
	start := time.Now()
	for i := range n {
		group.Go(func() (err error) { took[i], err = call(i); return err })
	}
	err := group.Wait()
	return took, float64(n) / time.Since(start).Seconds(), err
}

// away measures 50 paths of a Vault that is 5 ms away.
func (s *stage) away(ctx context.Context) (result, error) {
	const roundTrip = 5 * time.Millisecond
	w := kv(kvPaths)
	address, err := away(ctx, trimScheme(s.bed.State().Vault.Address), roundTrip)
	if err != nil {
		return result{}, err
	}
	w.vault = "http://" + address
	logins, err := s.logins(ctx, w)
	if err != nil {
		return result{}, err
	}
	vault := s.bed.State().Processes["vault"].PID
	before, err := cpu(vault)
	if err != nil {
		return result{}, err
	}
	calls := s.few(30)
	rounds, err := s.inTurn(ctx, w, calls)
	if err != nil {
		return result{}, err
	}
	after, err := cpu(vault)
	if err != nil {
		return result{}, err
	}
	each := (after - before).Seconds() / float64(2*(warmUp+s.rounds*calls))
	ideal := func(limit int) (trips int, took time.Duration) {
		trips = (kvPaths + limit - 1) / limit
		return trips, logins.quantile(.5) + time.Duration(trips)*roundTrip
	}
	trips, least := ideal(s.readers)
	_, floorLeast := ideal(kvPaths)
	r := s.result("away", "cold Mount, 50 KV paths, Vault 5 ms away")
	r.Sides = []side{sideOf("floor, all reads at once", pooled(rounds, floorOf)), sideOf("leasehold", pooled(rounds, oursOf))}
	r.Checks = []check{
		most(fmt.Sprintf("p50 / (login + %d x 5 ms)", trips), "x", once(float64(r.Sides[1].P50)/float64(least)), 1.5),
		told("floor's p50 / (login + 1 x 5 ms)", "x", float64(r.Sides[0].P50)/float64(floorLeast)),
		told("login", "ms", milliseconds(logins, .5)),
		told("Vault's own processor time for one login and 50 reads", "ms", each*1e3),
	}
	return r, nil
}

// logins measures logins alone.
func (s *stage) logins(ctx context.Context, w wish) (took latencies, err error) {
	pods, err := s.pods(ctx, 1)
	if err != nil {
		return nil, err
	}
	floor, err := newFloor(w.vault, "")
	if err != nil {
		return nil, err
	}
	for range 50 {
		start := time.Now()
		if _, err := floor.login(ctx, pods[0], w.role); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
	}
	return took, s.revoke(ctx, floor)
}
