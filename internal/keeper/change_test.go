//nolint:forbidigo // sleeps inside synctest bubbles only
package keeper_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

// changes are what a keeper tells.
type changes struct {
	mu    sync.Mutex
	all   []keeper.Change
	taken int
}

func (c *changes) add(change keeper.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, change)
}

// take returns what was told since the last call: kinds, with what they are of, each once.
func (c *changes) take() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var told []string
	for _, change := range c.all[c.taken:] {
		line := string(change.Kind)
		for _, more := range []string{change.Path, string(change.Trouble), change.Keeps} {
			if more != "" {
				line += " " + more
			}
		}
		if len(told) == 0 || told[len(told)-1] != line {
			told = append(told, line)
		}
	}
	c.taken = len(c.all)
	return strings.Join(told, ", ")
}

func (c *changes) expect(t *testing.T, when, want string) {
	t.Helper()
	if got := c.take(); got != want {
		t.Errorf("%s: told\n%s\nwant\n%s", when, got, want)
	}
}

// following runs f on a node whose changes are told.
func following(t *testing.T, f func(*testing.T, *node, *changes)) {
	t.Helper()
	bubble(t, func(t *testing.T, n *node) {
		told := new(changes)
		n.reconfigure(func(c *keeper.Config) { c.Changed = told.add })
		f(t, n, told)
		told.mu.Lock()
		defer told.mu.Unlock()
		for _, change := range told.all {
			for _, s := range n.vault.Secrets() {
				if strings.Contains(fmt.Sprintf("%+v", change), s) {
					t.Errorf("a change holds a secret: %+v", change)
				}
			}
		}
	})
}

// The story of a volume, from its login to its end.
func TestTellsOfEachChangeOnce(t *testing.T) {
	following(t, func(t *testing.T, n *node, told *changes) {
		req := n.request("p", append(wantCreds, "k="+kv+"#k")...)
		n.mount(req)
		told.expect(t, "mounted", "LoggedIn, Issued "+creds+", Mounted")
		for range 3 {
			time.Sleep(10 * time.Second)
			n.mount(req)
		}
		told.expect(t, "republished with nothing due", "")
		time.Sleep(15 * time.Minute)
		told.expect(t, "renewed", "Renewed, Renewed "+creds)
		n.vault.KV2(kv, map[string]any{"k": "new"})
		n.mount(req)
		told.expect(t, "republished after a change", "Refreshed "+kv)
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
		told.expect(t, "pod ended", "PodEnded, Revoked")
	})
}

// New credentials in the place of those that no renewal lengthens are a rotation.
func TestTellsOfARotation(t *testing.T) {
	following(t, func(t *testing.T, n *node, told *changes) {
		n.vault.Dynamic(creds, vaulttest.Dynamic{TTL: 20 * time.Minute, MaxTTL: 40 * time.Minute})
		req := n.request("p", wantCreds...)
		n.mount(req)
		told.take()
		for range 40 {
			time.Sleep(time.Minute)
			n.mount(req)
		}
		if got := told.take(); strings.Count(got, "Rotated "+creds) != 1 || strings.Contains(got, "Issued") || strings.Contains(got, "Refreshed") {
			t.Errorf("told %s, want one rotation", got)
		}
	})
}

// What fails is told with where its cause lies.
func TestTellsWhereATroubleLies(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault func(*node)
		want  string
	}{
		{"sealed", func(n *node) { n.vault.Sealed(true) }, "RenewalFailed VaultSealed"},
		{"down", func(n *node) { n.vault.Down(true) }, "RenewalFailed VaultUnreachable"},
		{"back end", func(n *node) { n.vault.BackendDown(true) }, "RenewalFailed " + creds + " BackEndDown"},
		{"role of the login", func(n *node) { n.vault.DeleteRole("my-app-role") }, "RenewalOver RoleGone"},
		{"role of the engine", func(n *node) { n.vault.Remove(creds) }, "RenewalOver " + creds + " RoleGone"},
		{"token", func(n *node) { n.vault.RevokeAccessor(n.vault.Tokens()[0].Accessor) }, "Lost RevokedElsewhere"},
	} {
		t.Run(c.name, func(t *testing.T) {
			following(t, func(t *testing.T, n *node, told *changes) {
				n.mount(n.request("p", wantCreds...))
				told.take()
				c.fault(n)
				time.Sleep(15 * time.Minute)
				if got := told.take(); !strings.Contains(got, c.want) {
					t.Errorf("told %s, want %s", got, c.want)
				}
				n.vault.Sealed(false)
				n.vault.Down(false)
				n.vault.BackendDown(false)
			})
		})
	}
}

// A mount that fails is told of at each try, one that has something to show keeps it, and what an earlier process left is told of.
func TestTellsOfFailedMountsAndOfTheStore(t *testing.T) {
	following(t, func(t *testing.T, n *node, told *changes) {
		req := n.request("p", wantCreds...)
		req.Spec.Auth.Role = "no-such-role"
		for range 2 {
			if _, err := n.keeper.Acquire(t.Context(), req); err == nil {
				t.Fatal("a login with a role that is not there succeeds")
			}
			told.expect(t, "login refused", "LoginFailed RoleGone")
		}
		n.mount(n.request("p", "k="+kv+"#k"))
		told.take()
		n.vault.DeleteKV2(kv)
		time.Sleep(3 * time.Minute)
		n.mount(n.request("p", "k="+kv+"#k"))
		told.mu.Lock()
		last := told.all[len(told.all)-1]
		told.mu.Unlock()
		if last.Kind != keeper.ReadFailed || !last.Shown || !strings.Contains(last.Says(), "keeps its content") || !last.Warning() {
			t.Errorf("told %+v", last)
		}
		told.take()
		n.stop()
		n.start()
		told.expect(t, "restarted", "TookOver")
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}
