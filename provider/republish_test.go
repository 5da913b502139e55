package provider_test

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

// mounted mounts a volume of so many files, two of each set of credentials, and returns the call that kubelet repeats from then on.
func (n *node) mounted(files int) *v1alpha1.MountRequest {
	n.t.Helper()
	var class strings.Builder
	for i := range files {
		path, key := fmt.Sprintf("database/creds/app-%d", i/2), []string{"username", "password"}[i%2]
		n.vault.Dynamic(path, vaulttest.Dynamic{TTL: time.Hour, MaxTTL: 24 * time.Hour})
		fmt.Fprintf(&class, "- objectName: \"file-%d\"\n  secretPath: %q\n  secretKey: %q\n", i, path, key)
	}
	c := n.validCall()
	c.params["objects"] = class.String()
	n.mount(c)
	return c.request(n.t)
}

// TestRepublishAllocations guards what each volume of a node costs every minute or two. A fifth to a quarter of a call's allocations go
// into the parameters, whose list of objects is remembered, as much into decoding Vault's answers and into the reply with its object
// versions, and the rest into what the store holds. The bounds are 15 % above what was measured, so that they hold with the race detector as
// well, under which the libraries' pools forget some of what they hold.
func TestRepublishAllocations(t *testing.T) {
	for files, most := range map[int]float64{1: 205, 10: 448} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t, 0)
			call := n.mounted(files)
			synctest.Wait() // for whatever goes on in the background
			got := testing.AllocsPerRun(100, func() {
				if resp, err := n.service.Mount(t.Context(), call); err != nil || len(resp.GetFiles()) != files {
					t.Errorf("%v, %v", resp, err)
				}
			})
			if t.Logf("%d files: %.0f allocations", files, got); got > most {
				t.Errorf("a republish of %d files makes %.0f allocations, more than %.0f", files, got, most)
			}
		})
	}
}

// BenchmarkRepublish is a Mount call of a mounted volume, with nothing due: by itself, and through gRPC as the driver makes it.
func BenchmarkRepublish(b *testing.B) {
	for _, files := range []int{1, 10} {
		n := newNode(b, 0)
		call := n.mounted(files)
		driver := n.socket(b)
		b.Run(fmt.Sprintf("files=%d/service", files), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := n.service.Mount(b.Context(), call); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("files=%d/socket", files), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := driver.Mount(b.Context(), call); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// socket serves the node at a unix socket and returns a client of it.
func (n *node) socket(b *testing.B) v1alpha1.CSIDriverProviderClient {
	b.Helper()
	path := filepath.Join(b.TempDir(), "vault.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	server := grpc.NewServer()
	v1alpha1.RegisterCSIDriverProviderServer(server, n.service)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	b.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			b.Error(err)
		}
	})
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	return v1alpha1.NewCSIDriverProviderClient(conn)
}
