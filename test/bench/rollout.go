package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
)

// ledgerBefore is the last commit whose ledger lacks fields of today's.
const ledgerBefore = "2ae0b31"

// driverCalls is how the driver v1.6.0 calls its providers.
const driverCalls = `{"methodConfig": [{
	"name": [{"service": "v1alpha1.CSIDriverProvider"}],
	"waitForReady": true,
	"retryPolicy": {"maxAttempts": 3, "initialBackoff": "1s", "maxBackoff": "10s", "backoffMultiplier": 1.1, "retryableStatusCodes": ["UNAVAILABLE"]}
}]}`

// rollOut measures how long Mounts wait while the provider is restarted.
func (s *stage) rollOut(ctx context.Context) (result, error) {
	return s.replacements(ctx, s.result("rollout", "restart of the provider under load"), s.args[0])
}

// upgrade measures the same where the process before is that of an earlier ledger.
func (s *stage) upgrade(ctx context.Context) (result, error) {
	before, err := s.buildAt(ctx, ledgerBefore)
	if err != nil {
		return result{}, err
	}
	return s.replacements(ctx, s.result("upgrade", "upgrade from the ledger of commit "+ledgerBefore+" under load"), before)
}

// buildAt makes the binary of another commit.
func (s *stage) buildAt(ctx context.Context, commit string) (string, error) {
	source := filepath.Join(s.dir, commit)
	cmd := exec.CommandContext(ctx, "sh", "-euc", `mkdir -p "$2"; git archive "$1" | tar -x -C "$2"; cd "$2"; CGO_ENABLED=0 exec go build -trimpath -o leasehold ./cmd/leasehold`, "sh", commit, source)
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building commit %s: %w\n%s", commit, err, output)
	}
	return filepath.Join(source, "leasehold"), nil
}

// replacements replaces the provider's process in every round, from another binary to the one that is measured.
func (s *stage) replacements(ctx context.Context, r result, before string) (result, error) {
	var all replacement
	var longest []float64
	for range s.rounds {
		if err := s.restartAs(ctx, before); err != nil {
			return r, err
		}
		one, err := s.replaced(ctx)
		if err == nil {
			err = s.end(ctx)
		}
		if err != nil {
			return r, err
		}
		longest = append(longest, max(one.firsts.quantile(1), one.republishes.quantile(1)).Seconds())
		all.firsts, all.republishes = append(all.firsts, one.firsts...), append(all.republishes, one.republishes...)
		all.failed, all.changed, all.asked = all.failed+one.failed, all.changed+one.changed, all.asked+one.asked
	}
	r.Sides = []side{sideOf("first Mounts", all.firsts), sideOf("republishes", all.republishes)}
	r.Checks = []check{
		{What: "longest wait of a Mount", Unit: "s", spread: spreadOf(longest)},
		counted("Mounts that failed", all.failed, 0),
		counted("mounted volumes that show something else afterwards", all.changed, 0),
		counted("logins and reads beyond those of first Mounts", all.asked, 0),
	}
	return r, nil
}

// replacement is what calls met while the provider's process was replaced.
type replacement struct {
	firsts, republishes    latencies
	failed, changed, asked float64
}

// replaced has the provider restarted, by an orderly end, while volumes are mounted and republished as the driver does it.
func (s *stage) replaced(ctx context.Context) (r replacement, err error) {
	const (
		every    = 20 * time.Millisecond // between calls
		oneFirst = 10                    // of so many
		length   = 10 * time.Second
		after    = 2 * time.Second
	)
	w := database(1)
	mounted, shown, err := s.mountedVolumes(ctx, w)
	if err != nil {
		return r, err
	}
	calls := int(length / every)
	pods, err := s.pods(ctx, calls/oneFirst)
	if err != nil {
		return r, err
	}
	firsts, err := s.requests(pods, "first", len(pods), w)
	if err != nil {
		return r, err
	}
	conn, err := grpc.NewClient("unix:"+s.bed.State().Provider.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(driverCalls))
	if err != nil {
		return r, fmt.Errorf("making a client like the driver's: %w", err)
	}
	defer func() { _ = conn.Close() }()
	driver := v1alpha1.NewCSIDriverProviderClient(conn)
	call := func(in *v1alpha1.MountRequest, failed *atomic.Int64) time.Duration {
		start := time.Now()
		if _, err := driver.Mount(ctx, in); err != nil && failed.Add(1) == 1 {
			fmt.Println("  the first Mount that failed:", err)
		}
		return time.Since(start)
	}
	var failed atomic.Int64
	took, made, err := s.countingVault(ctx, func() (latencies, error) {
		var restart errgroup.Group
		restart.Go(func() error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(after):
				return s.restart(ctx)
			}
		})
		took, err := s.openLoop(ctx, calls, every, func(i int) (time.Duration, error) {
			if i%oneFirst == 0 {
				return call(firsts[i/oneFirst], &failed), nil
			}
			return call(mounted[i%len(mounted)], &failed), nil
		})
		return took, errors.Join(err, restart.Wait())
	})
	if err != nil {
		return r, err
	}
	for i, one := range took {
		if i%oneFirst == 0 {
			r.firsts = append(r.firsts, one)
		} else {
			r.republishes = append(r.republishes, one)
		}
	}
	r.failed, r.asked = float64(failed.Load()), made-float64(len(firsts)*(1+len(w.paths)))
	for i, request := range mounted {
		now, err := driver.Mount(ctx, request)
		if err != nil {
			return r, fmt.Errorf("mounting: %w", err)
		}
		if !slices.EqualFunc(now.GetFiles(), shown[i].GetFiles(), sameFile) {
			r.changed++
		}
	}
	return r, nil
}

func sameFile(a, b *v1alpha1.File) bool {
	return a.GetPath() == b.GetPath() && a.GetMode() == b.GetMode() && bytes.Equal(a.GetContents(), b.GetContents())
}

// mountedVolumes mounts volumes and returns their calls and what was answered.
func (s *stage) mountedVolumes(ctx context.Context, w wish) (requests []*v1alpha1.MountRequest, shown []*v1alpha1.MountResponse, err error) {
	pods, err := s.pods(ctx, s.few(nodePods))
	if err != nil {
		return nil, nil, err
	}
	if requests, err = s.requests(pods, "mounted", len(pods), w); err != nil {
		return nil, nil, err
	}
	shown = make([]*v1alpha1.MountResponse, len(requests))
	_, _, err = all(len(requests), atOnce, func(i int) (_ time.Duration, err error) {
		shown[i], err = s.driver.Mount(ctx, requests[i])
		return 0, err
	})
	if err != nil {
		err = fmt.Errorf("mounting: %w", err)
	}
	return requests, shown, err
}
