package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/leasehold-csi/leasehold/internal/admin"
)

// profiled does what a row measures and, when a folder for them was asked for, takes profiles of the provider meanwhile: of the
// processor in pieces of a second, and afterwards of all that was allocated since the process began.
func (s *stage) profiled(ctx context.Context, row string, load func() error) error {
	if s.profile == "" {
		return load()
	}
	sampling, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for sampling.Err() == nil {
			path := s.profilePath(row, fmt.Sprint("cpu-", time.Now().UnixNano()))
			if err := s.takeProfile(sampling, "profile?seconds=1", path); err != nil { // the last is cut off
				_ = os.Remove(path)
			}
		}
	}()
	err := load()
	stop()
	<-done
	return errors.Join(err, s.takeProfile(ctx, "allocs", s.profilePath(row, "allocs")))
}

func (s *stage) profilePath(row, kind string) string {
	return filepath.Join(s.profile, name(row)+"."+kind+".pprof")
}

// costs says what cost most in a row's profiles; nothing when there are none.
func (s *stage) costs(ctx context.Context, row string) ([]string, error) {
	if s.profile == "" {
		return nil, nil
	}
	pieces, err := filepath.Glob(s.profilePath(row, "cpu-*"))
	if err != nil || len(pieces) == 0 {
		return nil, err
	}
	cpu, err := s.biggest(ctx, "processor time", nil, pieces...)
	if err != nil {
		return nil, err
	}
	allocs, err := s.biggest(ctx, "bytes allocated", []string{"-sample_index=alloc_space"}, s.profilePath(row, "allocs"))
	return []string{cpu, allocs}, err
}

// centres are what the process spends on, by the functions that all of it goes through.
var centres = []struct{ what, functions string }{
	{"commits of the store, without encoding", `bbolt\.\(\*Tx\)\.Commit$|bbolt\.\(\*DB\)\.beginRWTx$`},
	{"decoding records", `internal/store\.decodeGrant$`},
	{"encoding records", `internal/store\.putGrant$`},
	{"reading answers from the store", `internal/store\.decodeAnswer$`},
	{"making files of answers", `internal/render\.Files$`},
	{"parsing what the volume asks for", `internal/spec\.Parse$`},
	{"requests to Vault", `internal/vault\.\(\*Client\)\.do$|net/http\.\(\*persistConn\)\.(readLoop|writeLoop)$`},
	{"versions of objects", `provider\.version$`},
	{"gRPC: reading and writing the socket", `grpc/internal/transport\.\(\*(loopyWriter|http2Server)\)\.(run|HandleStreams)$`},
	{"the watch of pods, and other requests to the API server", `client-go/rest\.\(\*Request\)|client-go/tools/cache\.\(\*(Reflector|processorListener|controller)\)\.`},
	{"judging whether pods ended", `internal/pods\.\(\*Judge\)\.Ended$`},
	{"garbage collection", `^runtime\.gcBgMarkWorker$`},
	{"the log", `log/slog\.\(\*Logger\)\.log$`},
	{"metrics", `promhttp\.|internal/admin\.`},
}

// biggest names the five centres that cost most, in shares of all.
func (s *stage) biggest(ctx context.Context, of string, flags []string, profiles ...string) (string, error) {
	type cost struct {
		what  string
		share float64
	}
	var costs []cost
	for _, c := range centres {
		args := append([]string{"tool", "pprof", "-top", "-nodecount=100000", "-nodefraction=0", "-focus=" + c.functions}, flags...)
		out, err := exec.CommandContext(ctx, "go", append(append(args, s.provider), profiles...)...).Output()
		if err != nil {
			return "", fmt.Errorf("reading a profile: %w", err)
		}
		share, found := focused(string(out))
		if found {
			costs = append(costs, cost{c.what, share})
		}
	}
	slices.SortFunc(costs, func(a, b cost) int { return cmp.Compare(b.share, a.share) })
	var text []string
	for _, c := range costs[:min(5, len(costs))] {
		text = append(text, fmt.Sprintf("%s %.0f %%", c.what, c.share))
	}
	return "most of the " + of + ": " + strings.Join(text, ", "), nil
}

// focused reads from what pprof prints which share of all went through what was focused on.
var accounting = regexp.MustCompile(`Showing nodes accounting for \S+, ([0-9.]+)% of `)

func focused(printed string) (share float64, found bool) {
	m := accounting.FindStringSubmatch(printed)
	if m == nil {
		return 0, false
	}
	share, err := strconv.ParseFloat(m[1], 64)
	return share, err == nil
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
