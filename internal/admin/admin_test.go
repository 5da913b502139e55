package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/server"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

var update = flag.Bool("update", false, "write the golden files anew")

const now = grant.Instant(time.Hour)

// held is a node's worth of grants in no order; every text in them that is secret holds "canary".
func held() []grant.Grant {
	grants := []grant.Grant{
		{
			ID: "3", State: grant.Active, Namespace: "team",
			Volume: spec.VolumeKey{PodUID: "uid-app", Volume: "creds"},
			Pod:    spec.Pod{Namespace: "shop", Name: "app", UID: "uid-app", ServiceAccount: "app-sa"},
			Class:  "vault-db-creds", Server: spec.Server{Address: "https://vault:8200"},
			Token: secret.New("canary-token"), Accessor: secret.New("canary-accessor"),
			Login: grant.NewTerm(now.Add(-time.Minute), time.Hour, true),
			Leases: []grant.Lease{
				{
					ID:   secret.New("canary-lease"),
					Read: spec.Read{Method: "PUT", Path: "database/creds/my-app", Query: "canary=1", Args: `{"password":"canary"}`},
					Term: grant.NewTerm(now.Add(-time.Minute), 20*time.Minute, true),
				},
				{ID: secret.New("canary-older"), Read: spec.Read{Path: "database/creds/my-app"}, Term: grant.NewTerm(0, time.Second, true), Superseded: true},
			},
		},
		{
			ID: "1", State: grant.Partial, Problem: "Vault is sealed",
			Volume: spec.VolumeKey{PodUID: "uid-job", Volume: "kv"},
			Pod:    spec.Pod{Namespace: "shop", Name: "a-job", UID: "uid-job", ServiceAccount: "job"},
			Token:  secret.New("canary-token"), Login: grant.NewTerm(now, 0, false),
		},
		{
			ID: "2", State: grant.Revoking, Cause: "pod deleted",
			Volume: spec.VolumeKey{PodUID: "uid-app", Volume: "creds"},
			Pod:    spec.Pod{Namespace: "shop", Name: "app", UID: "uid-app", ServiceAccount: "app-sa"},
		},
	}
	for i := range grants {
		grants[i].Auth = spec.Auth{Mount: "kubernetes", Role: "my-app-role"}
	}
	return grants
}

// provider tells of what list returns.
func provider(list func() ([]grant.Grant, error)) admin.Provider {
	return admin.Provider{
		Node: "node-1", Version: "v0.1.0", List: list, LeftToExpire: func(g grant.Grant) string { return g.Expire }, BreakerOpen: func() bool { return false },
		Now: func() grant.Instant { return now },
	}
}

// serve answers at a folder's admin socket until the test ends.
func serve(t *testing.T, dir string, p admin.Provider) {
	t.Helper()
	l, err := server.NewSocket(admin.SocketPath(dir)).Bind()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- server.ServeHTTP(ctx, l, admin.Handler(p))
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
}

// folder has a path short enough for a socket.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "leasehold-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

func TestFetch(t *testing.T) {
	dir := folder(t)
	serve(t, dir, provider(func() ([]grant.Grant, error) { return held(), nil }))
	report, err := admin.Fetch(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "leases.json", string(text)+"\n")
	var table strings.Builder
	if err := admin.WriteTable(&table, report, false); err != nil {
		t.Fatal(err)
	}
	golden(t, "leases.txt", table.String())
	table.Reset()
	if err := admin.WriteTable(&table, report, true); err != nil {
		t.Fatal(err)
	}
	golden(t, "leases-wide.txt", table.String())
}

func TestReportHoldsNoSecret(t *testing.T) {
	w := httptest.NewRecorder()
	list := func() ([]grant.Grant, error) { return held(), nil }
	admin.Handler(provider(list)).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/leases", nil))
	for _, text := range []string{"canary", secret.Value{}.String()} {
		if body := w.Body.String(); w.Code != http.StatusOK || strings.Contains(body, text) {
			t.Errorf("%d, with %q: %s", w.Code, text, body)
		}
	}
}

func TestProfiles(t *testing.T) {
	list := func() ([]grant.Grant, error) { return held(), nil }
	w := httptest.NewRecorder()
	admin.Handler(provider(list)).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/debug/pprof/heap?debug=1", nil))
	if w.Code != http.StatusOK || !strings.HasPrefix(w.Body.String(), "heap profile: ") {
		t.Errorf("%d: %.100s", w.Code, w.Body.String())
	}
}

// TestSelection: each filter leaves the grants that fit it, and all together those that fit all.
func TestSelection(t *testing.T) {
	dir := folder(t)
	serve(t, dir, provider(func() ([]grant.Grant, error) { return held(), nil }))
	report, err := admin.Fetch(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		selection admin.Selection
		want      string
	}{
		{admin.Selection{}, "1 2 3"},
		{admin.Selection{Namespace: "shop"}, "1 2 3"},
		{admin.Selection{Namespace: "sho"}, ""},
		{admin.Selection{Pod: "app"}, "2 3"},
		{admin.Selection{State: "active"}, "3"},
		{admin.Selection{Vault: "https://vault:8200"}, "3"},
		{admin.Selection{Within: 20 * time.Minute}, "3"},
		{admin.Selection{Within: 10 * time.Minute}, ""},
		{admin.Selection{Pod: "app", State: "Revoking"}, "2"},
	} {
		var ids []string
		for _, g := range test.selection.Of(report).Grants {
			ids = append(ids, g.ID)
		}
		if got := strings.Join(ids, " "); got != test.want {
			t.Errorf("%+v: %q, want %q", test.selection, got, test.want)
		}
	}
	if len(report.Grants) != 3 {
		t.Error("a selection changed the report")
	}
}

func TestNothingHeld(t *testing.T) {
	dir := folder(t)
	serve(t, dir, provider(func() ([]grant.Grant, error) { return nil, nil }))
	report, err := admin.Fetch(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := json.Marshal(report); err != nil || string(text) != `{"version":1,"node":"node-1","provider":"v0.1.0","grants":[]}` {
		t.Errorf("%s, %v", text, err)
	}
	var table strings.Builder
	if err := admin.WriteTable(&table, report, false); err != nil || table.String() != "Nothing is held on node node-1.\n" {
		t.Errorf("%q, %v", table.String(), err)
	}
}

func TestFetchFailures(t *testing.T) {
	t.Run("nobody listens", func(t *testing.T) {
		dir := folder(t)
		if _, err := admin.Fetch(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "is "+dir+" its --state-dir?") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("the store cannot be read", func(t *testing.T) {
		dir := folder(t)
		serve(t, dir, provider(func() ([]grant.Grant, error) { return nil, errors.New("broken") }))
		if _, err := admin.Fetch(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "500") {
			t.Errorf("error %v", err)
		}
	})
}
