package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"github.com/leasehold-csi/leasehold/internal/admin"
)

// profiling takes profiles of the provider until stop is called: of the processor in pieces of a few seconds, which `go tool pprof`
// adds up when it is given all of them, and at the end of what was allocated. It does nothing when no folder was asked for.
func (s *stage) profiling(ctx context.Context, row string) (stop func() error) {
	if s.profile == "" {
		return func() error { return nil }
	}
	sampling, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	path := func(kind string) string { return filepath.Join(s.profile, name(row)+"."+kind+".pprof") }
	go func() {
		defer close(done)
		for i := 0; sampling.Err() == nil; i++ {
			// The piece that is cut off at the end, or by a restart of the provider, is no profile.
			if err := s.takeProfile(sampling, "profile?seconds=3", path(fmt.Sprint("cpu-", i))); err != nil {
				_ = os.Remove(path(fmt.Sprint("cpu-", i)))
			}
		}
	}()
	return func() error {
		cancel()
		<-done
		return s.takeProfile(ctx, "allocs", path("allocs"))
	}
}

func (s *stage) takeProfile(ctx context.Context, kind, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://leasehold/debug/pprof/"+kind, nil)
	if err != nil {
		return fmt.Errorf("taking a profile: %w", err)
	}
	client := admin.Client(s.bed.State().Provider.StateDir)
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("taking a profile: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	content, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode == http.StatusOK {
		err = os.WriteFile(path, content, 0o644)
	}
	if err != nil {
		return fmt.Errorf("keeping a profile: %w", err)
	}
	return nil
}
