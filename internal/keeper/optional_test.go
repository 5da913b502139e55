//nolint:forbidigo // sleeps inside synctest bubbles only
package keeper_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/vault"
)

const absent = "secret/data/absent"

// TestOptionalSecretIsAwaited: what is not there is remembered, also by the next process, and looked for at the pace of plain secrets.
func TestOptionalSecretIsAwaited(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.request("p", append([]string{"k=" + absent + "#k"}, wantCreds...)...)
		req.Spec.Objects[0].Optional = true
		for range 3 {
			if files := n.mount(req); len(files) != 2 {
				t.Fatalf("files %v", files)
			}
			n.stop()
			n.start()
		}
		if c := n.vault.Count("GET " + absent); c != 1 {
			t.Fatalf("asked %d times at once", c)
		}
		shows := func(want string) {
			t.Helper()
			time.Sleep(2*time.Minute + time.Second)
			files := n.mount(req)
			if got := len(files) == 3; got != (want != "") || got && string(files[0].Contents) != want {
				t.Fatalf("files %v, want %q", files, want)
			}
		}
		n.vault.KV2(absent, map[string]any{"k": "here"})
		shows("here")
		n.vault.DeleteKV2(absent)
		shows("")
		n.vault.KV2(absent, map[string]any{"other": "key"})
		shows("")
		n.expect("all along", 1, 1, 1)
		if n.had("RefreshFailed") {
			t.Errorf("an absent secret was told as a failure:\n%s", n.log)
		}
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}

// TestOptionalForgivesAbsenceOnly: neither a denied read, nor a path that can hold nothing, nor a stranger's 404.
func TestOptionalForgivesAbsenceOnly(t *testing.T) {
	for _, test := range []struct {
		name string
		put  func(n *node)
		want vault.Kind
	}{
		{"denied", func(n *node) {
			n.vault.Raw(absent, http.StatusForbidden, "application/json", `{"errors":["permission denied"]}`)
		}, vault.Denied},
		{"misnamed", func(n *node) {
			n.vault.Raw(absent, http.StatusNotFound, "application/json", `{"request_id":"r","warnings":["Invalid path for a versioned K/V secrets engine. See the API docs"]}`)
		}, vault.NotFound},
		{"a proxy's", func(n *node) { n.vault.Raw(absent, http.StatusNotFound, "text/html", "<html>") }, vault.NotFound},
		{"sealed", func(n *node) {
			n.vault.Raw(absent, http.StatusInternalServerError, "application/json", `{"errors":["internal"]}`)
		}, vault.Failing},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				test.put(n)
				req := n.request("p", "k="+absent+"#k")
				req.Spec.Objects[0].Optional = true
				if _, err := n.keeper.Acquire(t.Context(), req); vault.KindOf(err) != test.want {
					t.Errorf("error %v", err)
				}
			})
		})
	}
}

// TestOptionalWithOthers: one object that cannot do without the path is enough for an error.
func TestOptionalWithOthers(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.request("p", "a="+absent+"#a", "b="+absent+"#b")
		req.Spec.Objects[0].Optional = true
		if files, err := n.keeper.Acquire(t.Context(), req); vault.KindOf(err) != vault.NotFound {
			t.Fatalf("files %v, error %v", files, err)
		}
		n.vault.KV2(absent, map[string]any{"b": "2"})
		if files := n.mount(req); len(files) != 1 || files[0].Path != "b" {
			t.Errorf("files %v", files)
		}
	})
}
