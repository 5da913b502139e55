//nolint:forbidigo // sleeps inside synctest bubbles only
package provider_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
	"github.com/leasehold-csi/leasehold/internal/vault"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
	"github.com/leasehold-csi/leasehold/provider"
)

const (
	kvValue   = "canary of a plain secret"
	tokensKey = "csi.storage.k8s.io/serviceAccount.tokens"
	// objects are those of the class that the README shows.
	objects = `
- objectName: "db_user"
  secretPath: "database/creds/my-app"
  secretKey: "username"
- objectName: "db_pass"
  secretPath: "database/creds/my-app"
  secretKey: "password"
`
)

// node is everything between the driver and Vault: the service behind a real gRPC server, a keeper that runs, a store, and
// Vault at the wire.
type node struct {
	t       testing.TB
	vault   *vaulttest.Vault
	service *provider.Service
	client  v1alpha1.CSIDriverProviderClient
	keeper  *keeper.Keeper
	store   *store.Store

	mu    sync.Mutex
	ended bool         // the pod
	told  bytes.Buffer // whatever leaves the node: log, events, answers with an error
	// requested is the token that can be requested; without one there is no rule for it.
	requested secret.Value
	reasons   []string // of refused calls
	// wire takes Vault's place when it is set.
	wire func(*http.Request) (*http.Response, error)
}

// Write implements io.Writer for the log.
func (n *node) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.told.Write(p)
}

// RoundTrip implements http.RoundTripper.
func (n *node) RoundTrip(r *http.Request) (*http.Response, error) {
	if n.wire != nil {
		return n.wire(r)
	}
	return n.vault.RoundTrip(r)
}

func (n *node) noteRefusal(reason string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reasons = append(n.reasons, reason)
}

func (n *node) requestToken(context.Context, spec.Pod, string) (secret.Value, error) {
	if n.requested.IsZero() {
		return n.requested, errors.New("there is no rule for it")
	}
	return n.requested, nil
}

// judge tells the keeper of the pod's end.
func (n *node) judge(context.Context, grant.Grant) grant.Verdict {
	n.mu.Lock()
	defer n.mu.Unlock()
	return grant.Verdict{Ended: n.ended, Reason: "test", FolderSeen: true}
}

// bubble runs a test with virtual time and, once it is over, checks that nothing secret left the node. A store of maxBytes
// zero has the default size.
func bubble(t *testing.T, maxBytes int64, test func(*node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, maxBytes)
		test(n)
		n.checkSecrets()
	})
}

func newNode(t testing.TB, maxBytes int64) *node {
	t.Helper()
	n := &node{t: t, vault: vaulttest.New(t)}
	n.vault.Role("my-app-role", vaulttest.Role{TTL: time.Hour, ServiceAccounts: []string{"app-sa"}, Paths: []string{"database/", "secret/", "raw/", "pki/"}})
	n.vault.Dynamic("database/creds/my-app", vaulttest.Dynamic{TTL: time.Hour, MaxTTL: 24 * time.Hour})
	n.vault.KV2("secret/data/app", map[string]any{"password": kvValue})

	begin := time.Now()
	now := func() grant.Instant { return grant.Instant(time.Hour + time.Since(begin)) }
	ledger, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), AllowDisk: true, Now: now, MaxBytes: maxBytes})
	if err != nil {
		t.Fatal(err)
	}
	n.store = ledger
	n.keeper, err = keeper.New(keeper.Config{
		Store: ledger, Vaults: &vault.Pool{RoundTripper: n}, Ended: n.judge, Now: now,
		RequestToken: n.requestToken,
		Event:        func(_ spec.Pod, _, reason, message string) { fmt.Fprintln(n, reason, message) },
		Log:          slog.New(slog.NewTextHandler(n, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	n.service = provider.New(provider.Config{
		Keeper: n.keeper, VersionKey: ledger.VersionKey, Version: "v1.2.3", Refused: n.noteRefusal,
		Defaults: spec.Defaults{Server: spec.Server{Address: n.vault.URL}},
	})
	listener := bufconn.Listen(1 << 20)
	driver := grpc.NewServer()
	v1alpha1.RegisterCSIDriverProviderServer(driver, n.service)
	conn, err := grpc.NewClient("passthrough:driver", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	n.client = v1alpha1.NewCSIDriverProviderClient(conn)

	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { _ = driver.Serve(listener) })
	all.Go(func() { _ = n.keeper.Run(ctx) })
	t.Cleanup(func() {
		_ = conn.Close()
		driver.Stop()
		if err := n.keeper.Drain(context.Background()); err != nil {
			t.Error(err)
		}
		cancel()
		all.Wait()
		if err := ledger.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// call is one valid Mount call, for tests to change.
type call struct {
	params             map[string]string
	secrets            map[string]string // of nodePublishSecretRef
	target, attributes string            // attributes take the place of params when they are set
}

func (n *node) validCall() *call {
	return &call{
		params: map[string]string{
			"roleName":                               "my-app-role",
			"objects":                                objects,
			"secretProviderClass":                    "vault-db-creds",
			"csi.storage.k8s.io/pod.name":            "app",
			"csi.storage.k8s.io/pod.namespace":       "shop",
			"csi.storage.k8s.io/pod.uid":             "0f8a-11",
			"csi.storage.k8s.io/serviceAccount.name": "app-sa",
			tokensKey:                                `{"vault":{"token":"` + n.vault.JWT("shop", "app-sa", "app") + `"}}`,
		},
		target: "/var/lib/kubelet/pods/0f8a-11/volumes/kubernetes.io~csi/creds/mount",
	}
}

func (c *call) request(t testing.TB) *v1alpha1.MountRequest {
	t.Helper()
	attributes, err := json.Marshal(c.params)
	if err != nil {
		t.Fatal(err)
	}
	if c.attributes != "" {
		attributes = []byte(c.attributes)
	}
	secrets, err := json.Marshal(c.secrets)
	if err != nil {
		t.Fatal(err)
	}
	return &v1alpha1.MountRequest{Attributes: string(attributes), Secrets: string(secrets), Permission: "420", TargetPath: c.target}
}

// try mounts and returns the answer; what an error says is kept for checkSecrets, as it becomes an event.
func (n *node) try(ctx context.Context, c *call) (*v1alpha1.MountResponse, *status.Status) {
	n.t.Helper()
	resp, err := n.client.Mount(ctx, c.request(n.t))
	if err != nil {
		fmt.Fprintln(n, err)
	}
	return resp, status.Convert(err)
}

// mount must succeed and returns the files, with their versions.
func (n *node) mount(c *call) (files, versions map[string]string) {
	n.t.Helper()
	resp, failure := n.try(context.Background(), c)
	if failure.Code() != codes.OK {
		n.t.Fatalf("Mount: %s: %s", failure.Code(), failure.Message())
	}
	files, versions = map[string]string{}, map[string]string{}
	for _, f := range resp.GetFiles() {
		files[f.GetPath()] = string(f.GetContents())
		if f.GetMode() != 0o644 {
			n.t.Errorf("%s has mode %o", f.GetPath(), f.GetMode())
		}
	}
	for _, v := range resp.GetObjectVersion() {
		versions[v.GetId()] = v.GetVersion()
	}
	if len(versions) != len(files) {
		n.t.Errorf("%d files with %d versions", len(files), len(versions))
	}
	return files, versions
}

// refused must fail with a final code; it returns what a person reads.
func (n *node) refused(c *call, want codes.Code) string {
	n.t.Helper()
	_, failure := n.try(context.Background(), c)
	if failure.Code() != want {
		n.t.Errorf("answered %s %q, want %s", failure.Code(), failure.Message(), want)
	}
	return failure.Message()
}

// end ends the pod and gives the node the time to give everything back.
func (n *node) end() {
	n.mu.Lock()
	n.ended = true
	n.mu.Unlock()
	n.keeper.Wake("0f8a-11")
	time.Sleep(time.Hour)
}

// checkEmpty finds nothing left in Vault, and nothing recorded.
func (n *node) checkEmpty() {
	n.t.Helper()
	for _, token := range n.vault.Tokens() {
		if !token.Revoked {
			n.t.Errorf("Vault still holds a token of %s", token.Path)
		}
	}
	for _, lease := range n.vault.Leases() {
		if !lease.Revoked {
			n.t.Errorf("Vault still holds a lease of %s", lease.Path)
		}
	}
	if users := n.vault.Users(); len(users) > 0 {
		n.t.Errorf("the database still has %v", users)
	}
	if grants, err := n.keeper.Grants(); err != nil || len(grants) > 0 {
		n.t.Errorf("the store still holds %d grants, %v", len(grants), err)
	}
}

func (n *node) checkSecrets() {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, text := range append(n.vault.Secrets(), kvValue, n.vault.JWT("shop", "app-sa", "app")) {
		if strings.Contains(n.told.String(), text) {
			n.t.Errorf("%q left the node:\n%s", text, n.told.String())
		}
	}
}

// count returns how many requests of each kind reached Vault, cluster questions aside.
func (n *node) count() map[string]int {
	counts := map[string]int{}
	for _, r := range n.vault.Requests() {
		counts[r.Method+" "+r.Path]++
	}
	delete(counts, "GET sys/health")
	return counts
}

func (n *node) checkCount(want map[string]int) {
	n.t.Helper()
	if got := n.count(); !maps.Equal(got, want) {
		n.t.Errorf("requests to Vault: %v\nwant %v", got, want)
	}
}
