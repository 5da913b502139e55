package admin_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// change is one of a pod's volume "creds", made at a second of the epoch.
func change(second int64, pod string, kind keeper.Kind) keeper.Change {
	return keeper.Change{
		At: time.Unix(second, 0), Kind: kind, Pod: spec.Pod{Namespace: "shop", Name: pod, UID: "uid-" + pod, ServiceAccount: "app-sa"}, Volume: "creds", Class: "db",
		Grant: "grant-" + pod, Server: spec.Server{Address: "https://vault:8200"}, Auth: spec.Auth{Mount: "kubernetes", Role: "web"},
	}
}

// remembered is what a history says of a namespace and pod, as the admin socket tells it.
func remembered(t *testing.T, h *admin.History, namespace, pod string) admin.Timeline {
	t.Helper()
	dir := folder(t)
	p := provider(func() ([]grant.Grant, error) { return nil, nil })
	p.History = h
	serve(t, dir, p)
	timeline, err := admin.FetchEvents(t.Context(), dir, namespace, pod)
	if err != nil {
		t.Fatal(err)
	}
	return timeline
}

// lines are the events as second, kind, count and second of the last.
func lines(timeline admin.Timeline) string {
	var b strings.Builder
	for _, e := range timeline.Events {
		fmt.Fprintf(&b, "%d %s %s %d %d\n", e.At.Unix(), e.Pod, e.Kind, e.Count, e.Last.Unix())
	}
	return b.String()
}

func TestHistoryIsTold(t *testing.T) {
	var h *admin.History
	synctest.Test(t, func(*testing.T) { h = admin.NewHistory(false) }) // at a time that is always the same
	login := change(1, "app", keeper.LoggedIn)
	login.TTL = time.Hour
	h.Add(login)
	failed := change(2, "app", keeper.RenewalFailed)
	failed.Path, failed.Why, failed.Trouble = "database/creds/app", "Vault is sealed", vault.Sealed
	h.Add(failed)
	failed.At = time.Unix(9, 0)
	h.Add(failed)
	h.Add(change(3, "other", keeper.Mounted))
	text, err := json.MarshalIndent(remembered(t, h, "shop", "app"), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "events.json", string(text)+"\n")
}

// What is repeated is counted, until something else happens; renewals of the token and of a lease take turns.
func TestHistoryCountsRepetitions(t *testing.T) {
	h := admin.NewHistory(false)
	h.Add(change(1, "app", keeper.LoggedIn))
	for i := range int64(3) {
		h.Add(change(10+10*i, "app", keeper.Renewed))
		lease := change(11+10*i, "app", keeper.Renewed)
		lease.Path = "database/creds/app"
		h.Add(lease)
	}
	failed := change(40, "app", keeper.RenewalFailed)
	failed.Why = "Vault is sealed"
	h.Add(failed)
	failed.At = time.Unix(41, 0)
	h.Add(failed)
	failed.At, failed.Why = time.Unix(42, 0), "connection refused"
	h.Add(failed)
	h.Add(change(50, "app", keeper.Renewed))
	want := "1 app LoggedIn 1 1\n10 app Renewed 3 30\n11 app Renewed 3 31\n40 app RenewalFailed 2 41\n42 app RenewalFailed 1 42\n50 app Renewed 1 50\n"
	if got := lines(remembered(t, h, "", "")); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Of a pod the last 32 are kept, and of the node 4096: those of pods that hold nothing any more go first, the oldest before the others.
func TestHistoryIsBounded(t *testing.T) {
	h := admin.NewHistory(false)
	busy := func(second int64, pod string) {
		for i := range int64(40) {
			c := change(second+i, pod, keeper.MountRefused)
			c.Why = fmt.Sprint(i)
			h.Add(c)
		}
	}
	busy(0, "living")
	busy(100, "gone")
	h.Add(change(150, "gone", keeper.Revoked))
	if got := remembered(t, h, "shop", "living").Events; len(got) != 32 || got[31].At.Unix() != 39 {
		t.Errorf("of one pod %d are kept, the last of them %+v", len(got), got[len(got)-1])
	}
	for i := range int64(4096/32 - 2) {
		busy(200+100*i, fmt.Sprintf("pod-%d", i))
	}
	if all := remembered(t, h, "", ""); len(all.Events) != 4096 {
		t.Fatalf("%d are kept of a node that is just full", len(all.Events))
	}
	busy(100000, "next")
	if all := remembered(t, h, "", ""); len(all.Events) != 4096 {
		t.Errorf("%d are kept", len(all.Events))
	}
	if gone := remembered(t, h, "shop", "gone"); len(gone.Events) != 0 {
		t.Errorf("of a pod that holds nothing there is still %s", lines(gone))
	}
	if living := remembered(t, h, "shop", "living"); len(living.Events) != 32 {
		t.Errorf("of the oldest pod that holds something %d are left", len(living.Events))
	}
	long := change(100100, "next", keeper.MountRefused)
	long.Why = "\x1b[2J\n" + strings.Repeat("ä", 10000)
	h.Add(long)
	if events := remembered(t, h, "shop", "next").Events; len(events[31].Says) > 1100 || strings.ContainsAny(events[31].Says, "\x1b\n") {
		t.Errorf("a sentence of %d bytes is kept", len(events[31].Says))
	}
}

// A limit leaves what happened last, however long ago it began.
func TestHistoryIsLimited(t *testing.T) {
	h := admin.NewHistory(false)
	h.Add(change(1, "app", keeper.Renewed))
	h.Add(change(2, "other", keeper.Mounted))
	h.Add(change(3, "third", keeper.Mounted))
	h.Add(change(4, "app", keeper.Renewed))
	p := provider(func() ([]grant.Grant, error) { return nil, nil })
	p.History = h
	for limit, want := range map[string]string{
		"0": "", "1": "1 app Renewed 2 4\n", "2": "1 app Renewed 2 4\n3 third Mounted 1 3\n",
		"9": "1 app Renewed 2 4\n2 other Mounted 1 2\n3 third Mounted 1 3\n", "": "1 app Renewed 2 4\n2 other Mounted 1 2\n3 third Mounted 1 3\n",
	} {
		w := httptest.NewRecorder()
		admin.Reports(p).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/events?limit="+limit, nil))
		var timeline admin.Timeline
		if err := json.Unmarshal(w.Body.Bytes(), &timeline); err != nil || lines(timeline) != want {
			t.Errorf("limit %q: %q, %v", limit, lines(timeline), err)
		}
	}
	for _, limit := range []string{"-1", "many", "99999999999999999999"} {
		w := httptest.NewRecorder()
		admin.Reports(p).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/events?limit="+limit, nil))
		if w.Code != http.StatusBadRequest {
			t.Errorf("limit %q: %d", limit, w.Code)
		}
	}
}
