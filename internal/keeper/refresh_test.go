//nolint:forbidigo // sleeps inside synctest bubbles only
package keeper_test

import (
	"strings"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

const static = "database/static-creds/app"

// TestStaticPassword: whenever a republish comes but in the first moments after a rotation, the file holds the password that works, one
// that was just read also a second later, and it is read no more often than needed for that.
func TestStaticPassword(t *testing.T) {
	for name, test := range map[string]struct {
		period, pace, late, interval time.Duration
		reads                        [2]int // in 6 h, at least and at most
	}{
		"each republish meets a rotation": {10 * time.Minute, time.Minute, 0, 24 * time.Hour, [2]int{36, 40}},
		"of no pace in common":            {307 * time.Second, 61 * time.Second, 0, 24 * time.Hour, [2]int{70, 80}},
		"Vault is late with it":           {10 * time.Minute, time.Minute, 5 * time.Second, 24 * time.Hour, [2]int{36, 160}},
		"looked after as any secret":      {10 * time.Minute, time.Minute, 0, 0, [2]int{150, 220}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				n.vault.Static(static, test.period)
				n.vault.RotationDelay(test.late)
				req := n.request("p", "pass="+static+"#password")
				req.Spec.Refresh = test.interval
				begin := time.Now()
				for time.Since(begin) < 6*time.Hour {
					settled := time.Since(begin)%test.period > 2*time.Second+test.late
					reads := n.vault.Count(static)
					shown := string(n.mount(req)[0].Contents)
					if settled && shown != n.vault.Password(static) {
						t.Fatalf("after %s the file holds a password that is no more", time.Since(begin))
					}
					time.Sleep(time.Second)
					if n.vault.Count(static) > reads && shown != n.vault.Password(static) {
						t.Fatalf("after %s the password changed while it was read", time.Since(begin))
					}
					time.Sleep(test.pace - time.Second)
				}
				if reads := n.vault.Count("GET " + static); reads < test.reads[0] || reads > test.reads[1] {
					t.Errorf("%d reads, want %v", reads, test.reads)
				}
			})
		})
	}
}

// TestFirstMountAwaitsTheRotation that is two seconds away, and no more.
func TestFirstMountAwaitsTheRotation(t *testing.T) {
	for left, wait := range map[time.Duration]time.Duration{
		time.Minute: 0, 3 * time.Second: 0, 2 * time.Second: 4 * time.Second, time.Second: 3 * time.Second,
	} {
		bubble(t, func(t *testing.T, n *node) {
			n.vault.Static(static, time.Hour)
			time.Sleep(time.Hour - left)
			begin := time.Now()
			shown := string(n.mount(n.request("p", "pass="+static+"#password"))[0].Contents)
			if took := time.Since(begin); took != wait {
				t.Errorf("%s before a rotation it took %s, want %s", left, took, wait)
			}
			if shown != n.vault.Password(static) {
				t.Errorf("%s before a rotation it shows a password that is no more", left)
			}
		})
	}
}

// TestRotationThatNeverComes holds a mount up for a moment only: the password works on.
func TestRotationThatNeverComes(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.Static(static, time.Hour)
		n.vault.RotationDelay(1000 * time.Hour)
		time.Sleep(2 * time.Hour)
		begin := time.Now()
		shown := string(n.mount(n.request("p", "pass="+static+"#password"))[0].Contents)
		if took := time.Since(begin); took > 10*time.Second || shown != n.vault.Password(static) {
			t.Errorf("it took %s", took)
		}
	})
}

// TestPasswordChangedByHand reaches the file as a change of any secret does.
func TestPasswordChangedByHand(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.Static(static, 720*time.Hour)
		req := n.request("p", "pass="+static+"#password")
		n.mount(req)
		n.vault.Rotate(static)
		time.Sleep(spec.DefaultRefresh)
		if got := string(n.mount(req)[0].Contents); got != n.vault.Password(static) {
			t.Error("the file holds the old password")
		}
	})
}

// TestRefreshInterval: an object's wins over its class's, and a plain secret is read no more often.
func TestRefreshInterval(t *testing.T) {
	for name, test := range map[string]struct {
		class, object time.Duration
		want          int // reads in an hour of republishes that come each minute, the first included
	}{
		"default":         {0, 0, 30},
		"class":           {10 * time.Minute, 0, 6},
		"object":          {0, 20 * time.Minute, 3},
		"object wins":     {20 * time.Minute, 10 * time.Minute, 6},
		"each republish":  {0, 10 * time.Second, 60},
		"hardly ever":     {100 * time.Hour, 0, 1},
		"below the class": {10 * time.Minute, 30 * time.Minute, 2},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				req := n.request("p", "whole="+kv+"#", "k="+kv+"#k")
				req.Spec.Refresh, req.Spec.Objects[1].Care.Refresh = test.class, test.object
				first := n.mount(req)
				for range 59 {
					time.Sleep(time.Minute)
					if !same(first, n.mount(req)) {
						t.Error("a secret that did not change changed a file")
					}
				}
				if reads := n.vault.Count("GET " + kv); reads != test.want {
					t.Errorf("%d reads, want %d", reads, test.want)
				}
			})
		})
	}
}

// TestDeletedVersion: at a refresh the last good content stays, with an event that says what to do; at a first mount that is the error.
func TestDeletedVersion(t *testing.T) {
	const says, next = "was deleted at", "undelete the version (vault kv undelete), write the secret again"
	for name, query := range map[string]string{"newest": "", "fixed": "version=1"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				wants := func(uid string) *spec.Request {
					req := n.request(uid, "whole="+kv+"#", "k="+kv+"#k")
					for i := range req.Spec.Objects {
						req.Spec.Objects[i].Read.Query = query
					}
					return req
				}
				first := n.mount(wants("p"))
				n.vault.DeleteKV2(kv)
				for range 5 {
					time.Sleep(2 * time.Minute)
					if !same(first, n.mount(wants("p"))) {
						t.Error("the last good content is gone")
					}
				}
				if told := n.log.String(); !strings.Contains(told, "Warning RefreshFailed") || !strings.Contains(told, says) || !strings.Contains(told, next) {
					t.Errorf("told:\n%s", told)
				}
				req := wants("q")
				_, err := n.keeper.Acquire(t.Context(), req)
				if vault.KindOf(err) != vault.NotFound || !strings.Contains(vault.Explain(err, req), says) || !strings.Contains(vault.Explain(err, req), next) {
					t.Errorf("a first mount: %v", err)
				}
				n.vault.KV2(kv, map[string]any{"k": "new"})
				time.Sleep(2 * time.Minute)
				if changed := !same(first, n.mount(wants("p"))); changed != (query == "") {
					t.Errorf("a new version was written, and the files changed: %t", changed)
				}
			})
		})
	}
}
