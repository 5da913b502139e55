package keeper_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/render"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
	"github.com/leasehold-csi/leasehold/internal/vault"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

const (
	creds = "database/creds/my-app"
	kv    = "secret/data/x"
)

// node is a keeper with a store and a fake Vault, on virtual time.
type node struct {
	t     *testing.T
	dir   string
	vault *vaulttest.Vault
	wire  http.RoundTripper
	// stateMax is the store's content limit; zero for the default.
	stateMax int64
	log      *text
	// configure changes what start begins with; nil for nothing.
	configure func(*keeper.Config)

	mu    sync.Mutex
	ended map[string]bool // pod UIDs
	// unannounced: nobody told of the ends.
	unannounced bool
	blind       bool      // sees nothing of pods and volumes
	warning     string    // of the next verdict of an end, and of no other
	started     time.Time // of the pods' containers
	events      []string

	store  *store.Store
	keeper *keeper.Keeper
	stop   func()
}

// bubble runs f on a node in a synctest bubble.
func bubble(t *testing.T, f func(*testing.T, *node)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		v := vaulttest.New(t)
		v.Role("my-app-role", vaulttest.Role{TTL: time.Hour, MaxTTL: 240 * time.Hour})
		v.Dynamic(creds, vaulttest.Dynamic{TTL: time.Hour, MaxTTL: 240 * time.Hour})
		v.KV2(kv, map[string]any{"k": "v"})
		n := &node{t: t, dir: dir, vault: v, wire: v, log: new(text), ended: map[string]bool{}}
		n.start()
		f(t, n)
		n.stop()
		for _, s := range v.Secrets() {
			if strings.Contains(n.log.String(), s) {
				t.Errorf("the log or an event holds a secret:\n%s", n.log)
			}
		}
	})
}

// text is what processes write and tests read meanwhile.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (t *text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.Write(p)
}

func (t *text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}

func now() grant.Instant { return grant.Instant(time.Now().UnixNano()) }

// start begins a process on what the store holds.
func (n *node) start() {
	n.t.Helper()
	var err error
	n.store, err = store.Open(n.t.Context(), store.Config{Dir: n.dir, AllowDisk: true, MaxBytes: n.stateMax, Now: now})
	if err != nil {
		n.t.Fatal(err)
	}
	config := keeper.Config{
		Store: n.store, Vaults: &vault.Pool{RoundTripper: n.wire}, Now: now, Ended: n.verdict, Event: n.event,
		Log: slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if n.configure != nil {
		n.configure(&config)
	}
	n.keeper, err = keeper.New(config)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.keeper.Resume(); err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(n.t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = n.keeper.Run(ctx) })
	n.stop = func() {
		n.keeper.Leave()
		if err := n.keeper.Drain(context.Background()); err != nil {
			n.t.Error(err)
		}
		cancel()
		running.Wait()
		_ = n.store.Close() // a killed process's is closed already
	}
}

func (n *node) verdict(_ context.Context, g grant.Grant) grant.Verdict {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.blind {
		return grant.Verdict{}
	}
	var warning string
	if n.ended[g.Pod.UID] {
		warning, n.warning = n.warning, ""
	}
	return grant.Verdict{Warning: warning, Ended: n.ended[g.Pod.UID], Reason: "the test says so", FolderSeen: true, Grace: 30 * time.Second, Announced: !n.unannounced, Started: n.started}
}

func (n *node) event(pod spec.Pod, eventtype, reason, message string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events = append(n.events, reason)
	_, _ = fmt.Fprintln(n.log, eventtype, reason, pod.Name, message)
}

func (n *node) had(reason string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Contains(n.events, reason)
}

// reconfigure ends the process and begins another with a changed configuration.
func (n *node) reconfigure(configure func(*keeper.Config)) {
	n.t.Helper()
	n.stop()
	n.configure = configure
	n.start()
}

// end is the proven end of a pod.
func (n *node) end(uid string) {
	n.mu.Lock()
	n.ended[uid] = true
	n.mu.Unlock()
	n.keeper.Wake(uid)
}

// request is a Mount of a pod's volume "secrets" that wants files; a file is "name=path#key".
func (n *node) request(uid string, files ...string) *spec.Request {
	req := &spec.Request{
		Pod:    spec.Pod{Namespace: "default", Name: "pod-" + uid, UID: uid, ServiceAccount: "my-app"},
		Volume: spec.VolumeKey{PodUID: uid, Volume: "secrets"},
		Class:  "class",
		Spec: spec.Spec{
			Server: spec.Server{Address: n.vault.URL}, Auth: spec.Auth{Mount: "kubernetes", Role: "my-app-role"},
			Digest: strings.Join(files, ","),
		},
		JWT: secret.New(n.vault.JWT("default", "my-app")),
	}
	for _, f := range files {
		name, rest, _ := strings.Cut(f, "=")
		path, key, _ := strings.Cut(rest, "#")
		req.Spec.Objects = append(req.Spec.Objects, spec.Object{Name: name, Read: spec.Read{Method: "GET", Path: path}, Key: key, Mode: 0o644})
	}
	return req
}

// claimLife is longer than a claim of a process that died.
const claimLife = 4 * time.Minute

var secretless secret.Value

var wantCreds = []string{"user=" + creds + "#username", "pass=" + creds + "#password"}

// mount is a republish that must succeed.
func (n *node) mount(req *spec.Request) []render.File {
	n.t.Helper()
	if !req.JWT.IsZero() { // kubelet sends a token that is good for a while
		req.JWT = secret.New(n.vault.JWT("default", "my-app"))
	}
	files, err := n.keeper.Acquire(n.t.Context(), req)
	if err != nil {
		n.t.Fatalf("mount: %v\n%s", err, n.log)
	}
	return files
}

// expect compares what lives in Vault: tokens, leases, users of the back end.
func (n *node) expect(when string, tokens, leases, users int) {
	n.t.Helper()
	synctest.Wait()
	gotTokens, gotLeases := 0, 0
	for _, t := range n.vault.Tokens() {
		if !t.Revoked {
			gotTokens++
		}
	}
	for _, l := range n.vault.Leases() {
		if !l.Revoked {
			gotLeases++
		}
	}
	if got := len(n.vault.Users()); gotTokens != tokens || gotLeases != leases || got != users {
		n.t.Fatalf("%s: %d tokens, %d leases and %d users live, want %d, %d and %d\n%s", when, gotTokens, gotLeases, got, tokens, leases, users, n.log)
	}
}

// states are the states of all that the store holds.
func (n *node) states() string {
	n.t.Helper()
	grants, err := n.keeper.Grants()
	if err != nil {
		n.t.Fatal(err)
	}
	var out []string
	for _, g := range grants {
		out = append(out, string(g.State))
	}
	return strings.Join(out, " ")
}

// lives reports whether a file names a user that exists in the back end.
func (n *node) lives(user render.File) bool {
	return slices.ContainsFunc(n.vault.Users(), func(u vaulttest.User) bool { return u.Name == string(user.Contents) })
}

func same(a, b []render.File) bool {
	return fmt.Sprint(a) == fmt.Sprint(b)
}
