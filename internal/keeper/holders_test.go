//nolint:forbidigo // sleeps inside synctest bubbles only
package keeper_test

import (
	"strings"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// What caches logins answers a second volume with the token of the first. That volume is refused, and the first keeps its token.
func TestTwoVolumesDoNotShareAToken(t *testing.T) {
	for name, tells := range map[string]bool{"a cache that tells": true, "a cache that does not": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				n.vault.CacheLogins(tells)
				one, two := n.request("p", wantCreds...), n.request("p", wantCreds...)
				two.Volume.Volume = "other"
				n.mount(one)
				refused := func(when string) {
					t.Helper()
					two.JWT = one.JWT
					_, err := n.keeper.Acquire(t.Context(), two)
					if vault.KindOf(err) != vault.Shared || !strings.Contains(err.Error(), "two volumes would share one token") {
						t.Errorf("%s: %v", when, err)
					}
					n.expect(when, 1, 1, 1)
					if s := n.states(); s != "Active" {
						t.Errorf("%s: the store holds %q", when, s)
					}
				}
				refused("at first")
				n.stop()
				n.start()
				refused("after a restart")
				time.Sleep(10 * time.Hour)
				n.expect("renewed", 1, 1, 1)
				n.mount(two) // with a JWT of its own
				n.expect("both mounted", 2, 2, 2)
				n.end("p")
				n.expect("pod ended", 0, 0, 0)
			})
		})
	}
}

func TestOfTwoMountsAtOnceOneGetsTheToken(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.CacheLogins(false)
		errs := make(chan error)
		for _, volume := range []string{"a", "b"} {
			req := n.request("p", wantCreds...)
			req.Volume = spec.VolumeKey{PodUID: "p", Volume: volume}
			go func() { _, err := n.keeper.Acquire(t.Context(), req); errs <- err }()
		}
		if a, b := <-errs, <-errs; (a == nil) == (b == nil) || vault.KindOf(a) != vault.Shared && vault.KindOf(b) != vault.Shared {
			t.Errorf("got %v and %v", a, b)
		}
		n.expect("both answered", 1, 1, 1)
	})
}

// A token that is gone with its grant may come again: whoever gets it finds that out by itself.
func TestATokenIsFreeAfterItsGrant(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.CacheLogins(false)
		one, two := n.request("p", wantCreds...), n.request("q", wantCreds...)
		n.mount(one)
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
		two.JWT = one.JWT
		if _, err := n.keeper.Acquire(t.Context(), two); vault.KindOf(err) != vault.InvalidToken {
			t.Errorf("got %v", err)
		}
	})
}
