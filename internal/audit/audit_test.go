package audit_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/leasehold-csi/leasehold/internal/audit"
	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

func open(t *testing.T, path string, stdout, log *bytes.Buffer) *audit.Log {
	t.Helper()
	l, err := audit.Open(path, "node-1", stdout, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// change is complete: every field that a record has.
func change(kind keeper.Kind) keeper.Change {
	return keeper.Change{
		At: time.Unix(1, 0), Kind: kind, Pod: spec.Pod{Namespace: "shop", Name: "app", UID: "uid", ServiceAccount: "app-sa"}, Volume: "creds", Class: "db", Grant: "1",
		Server: spec.Server{Address: "https://vault:8200"}, Namespace: "team", Auth: spec.Auth{Mount: "kubernetes", Role: "web"},
		Path: "database/creds/app", TTL: time.Hour, Request: "5ca1ab1e-0000-0000-0000-000000000000", Why: "because",
	}
}

func TestRecord(t *testing.T) {
	var out bytes.Buffer
	l := open(t, audit.Stdout, &out, new(bytes.Buffer))
	l.Add(change(keeper.Rotated))
	want := `{"version":1,"time":"1970-01-01T00:00:01Z","node":"node-1","action":"rotate","outcome":"ok","namespace":"shop","pod":"app","uid":"uid",` +
		`"serviceAccount":"app-sa","volume":"creds","class":"db","grant":"1","vault":"https://vault:8200","vaultNamespace":"team","authMount":"kubernetes","role":"web",` +
		`"path":"database/creds/app","ttlSeconds":3600,"requestId":"5ca1ab1e-0000-0000-0000-000000000000","reason":"because"}` + "\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}

// What was done with credentials has a record, and what was not has none.
func TestActions(t *testing.T) {
	for kind, want := range map[keeper.Kind]string{
		keeper.LoggedIn: "login ok", keeper.LoginFailed: "login failed", keeper.Issued: "issue ok", keeper.Renewed: "renew ok", keeper.RenewalFailed: "renew failed",
		keeper.RenewalOver: "renew refused", keeper.PodEnded: "release ok", keeper.LetGo: "release ok", keeper.Revoked: "revoke ok", keeper.RevocationFailed: "revoke failed",
		keeper.RanOut: "revoke expired", keeper.Lost: "revoke elsewhere", keeper.TookOver: "", keeper.NeverUsed: "", keeper.EndUnclear: "", "WillLapse": "",
	} {
		var out bytes.Buffer
		open(t, audit.Stdout, &out, new(bytes.Buffer)).Add(change(kind))
		var record struct{ Action, Outcome string }
		if out.Len() > 0 {
			if err := json.Unmarshal(out.Bytes(), &record); err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.TrimSpace(record.Action + " " + record.Outcome); got != want {
			t.Errorf("%s: %q, want %q", kind, got, want)
		}
	}
}

// A file is for its owner only, is appended to, and made again when somebody moved it away.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	lines := func(path string) int {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(text), "\n")
	}
	for range 2 {
		open(t, path, nil, new(bytes.Buffer)).Add(change(keeper.LoggedIn))
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 || lines(path) != 2 {
		t.Errorf("%v (%v) with %d lines", info.Mode(), err, lines(path))
	}
	l := open(t, path, nil, new(bytes.Buffer))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	l.Add(change(keeper.LoggedIn))
	if lines(path) != 1 || lines(path+".1") != 2 {
		t.Errorf("%d lines in the new file and %d in the old one", lines(path), lines(path+".1"))
	}
}

// What cannot be written is told and counted.
func TestFailures(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "logs")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Open(folder, "node-1", nil, slog.Default()); err == nil {
		t.Error("a folder is taken for a file")
	}
	var log bytes.Buffer
	l := open(t, filepath.Join(folder, "audit.log"), nil, &log)
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	l.Add(change(keeper.LoggedIn))
	if got := testutil.ToFloat64(l.Failures); got != 1 || !strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("%v failures, and the log says %q", got, &log)
	}
}

func TestNone(t *testing.T) {
	var out, log bytes.Buffer
	open(t, "", &out, &log).Add(change(keeper.LoggedIn))
	if out.Len()+log.Len() > 0 {
		t.Errorf("without an audit log: %q and %q", &out, &log)
	}
}
