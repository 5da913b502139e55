//go:build e2e

package e2e_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/leasehold-csi/leasehold/test/bed"
)

const (
	// patience bounds every wait for a condition. It is far above what a slow machine needs, and longer than the five
	// minutes for which a login of a failing mount is kept.
	patience = 8 * time.Minute
	// pace is the time between two looks at a condition.
	pace = 200 * time.Millisecond
)

// suite is what all scenarios share.
type suite struct {
	bed     *bed.Bed
	vault   *api.Client // with the root token
	classes dynamic.NamespaceableResourceInterface
	logs    *providerLogs
	// heard is what the admin socket told, and events are those of the API server.
	heard, events *heard
	secrets       *canaries
	// interrupted is closed when somebody wants the tests to end early.
	interrupted <-chan struct{}
}

// TestMain lets the scenarios that run together all do so, also with few processors: they mostly wait.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	m.Run()
}

// start makes the bed, or opens the one in BED_DIR.
func start(t *testing.T) *suite {
	t.Helper()
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	t.Cleanup(stop)
	s := &suite{bed: openBed(ctx, t), secrets: &canaries{}, interrupted: ctx.Done()}
	var err error
	if s.vault, err = s.bed.Vault(); err != nil {
		t.Fatal(err)
	}
	client, err := dynamic.NewForConfig(s.bed.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	s.classes = client.Resource(schema.GroupVersionResource{
		Group: "secrets-store.csi.x-k8s.io", Version: "v1", Resource: "secretproviderclasses",
	})
	s.logs = followProvider(t, s.bed)
	s.heard, s.events = listen(t, s.askAdmin), listen(t, s.askEvents)
	s.watchBedsOwnSecrets(t)
	return s
}

func openBed(ctx context.Context, t *testing.T) *bed.Bed {
	t.Helper()
	if dir := os.Getenv("BED_DIR"); dir != "" {
		b, err := bed.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if !b.State().Ready {
			t.Fatalf("the bed in %s did not come up", dir)
		}
		return b
	}
	options := bed.Options{
		Form: bed.Form(cmp.Or(os.Getenv("BED"), string(bed.Light))),
		Log:  os.Stdout, Provider: filepath.Join(t.TempDir(), "leasehold"), Traces: true,
	}
	if options.Form == bed.Full && os.Getenv("CLUSTER") == "kind" {
		options.Form = bed.Kind
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", options.Provider, "./cmd/leasehold")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building leasehold: %v\n%s", err, output)
	}
	t.Cleanup(func() {
		if err := bed.Down(context.WithoutCancel(ctx), bed.DefaultDir(options.Form)); err != nil {
			t.Errorf("taking the bed down: %v", err)
		}
	})
	b, err := bed.Up(ctx, options)
	if err != nil {
		t.Fatalf("starting the bed: %v", err)
	}
	return b
}

// eventually waits until check returns nil, and ends the test when it does not in time.
func (s *suite) eventually(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	if err := s.poll(t.Context(), pace, check); err != nil {
		t.Fatalf("waiting until %s: %v", what, err)
	}
}

// poll looks until check returns nil. Its error is the last one of check, or why it was given up before.
func (s *suite) poll(ctx context.Context, every time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-s.interrupted:
			return errors.New("interrupted")
		case <-ctx.Done():
			return fmt.Errorf("given up after %s: %w", patience, err)
		case <-ticker.C:
		}
	}
}
