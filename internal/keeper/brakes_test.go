//nolint:forbidigo // sleeps inside synctest bubbles only
package keeper_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

// TestBrakes: a node that revokes nothing lets everything run out, renews nothing of it, and gives back what is left as soon as it
// may revoke again.
func TestBrakes(t *testing.T) {
	for _, mode := range []keeper.RevokeMode{keeper.RevokeLog, keeper.RevokeOff} {
		t.Run(string(mode), func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				n.reconfigure(func(c *keeper.Config) { c.Revoke = mode })
				n.mount(n.request("p", wantCreds...))
				n.end("p")
				time.Sleep(10 * time.Minute)
				n.expect("pod ended", 1, 1, 1)
				if says := strings.Contains(n.log.String(), "would revoke"); says != (mode == keeper.RevokeLog) {
					t.Errorf("says what it would revoke: %t", says)
				}
				n.reconfigure(nil)
				n.expect("brake off", 0, 0, 0)
				n.reconfigure(func(c *keeper.Config) { c.Revoke = mode })
				n.mount(n.request("q", wantCreds...))
				n.end("q")
				time.Sleep(2 * time.Hour)
				n.expect("ran out", 0, 0, 0)
				if s := n.states(); s != "" {
					t.Errorf("the store still holds %s", s)
				}
			})
		})
	}
}

func TestExpireOnPodEnd(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.request("p", wantCreds...)
		req.Spec.OnPodEnd = spec.ExpireOnPodEnd
		n.mount(req)
		time.Sleep(10 * time.Hour)
		n.expect("renewed while the pod lives", 1, 1, 1)
		n.end("p")
		time.Sleep(10 * time.Minute)
		n.expect("pod ended", 1, 1, 1)
		time.Sleep(time.Hour)
		n.expect("ran out", 0, 0, 0)
	})
}

// TestExpireOnPodEndKeepsNoFailedMount: what no pod ever saw is revoked whatever the class says.
func TestExpireOnPodEndKeepsNoFailedMount(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.request("p", append([]string{"x=secret/data/absent#k"}, wantCreds...)...)
		req.Spec.OnPodEnd = spec.ExpireOnPodEnd
		if _, err := n.keeper.Acquire(t.Context(), req); err == nil {
			t.Fatal("mounted what is not there")
		}
		time.Sleep(10 * time.Minute)
		n.expect("given up", 0, 0, 0)
	})
}

func TestSyncedLeases(t *testing.T) {
	tests := []struct {
		policy  spec.SyncedLeases
		synced  []string
		mounts  bool
		asked   int
		event   bool
		revoked bool
	}{
		{spec.ExpireSynced, nil, true, 1, false, true},
		{spec.ExpireSynced, []string{"user"}, true, 1, true, false},
		{spec.RevokeSynced, []string{"user"}, true, 0, false, true},
		{spec.RefuseSynced, []string{"user"}, false, 1, false, true},
		{spec.RefuseSynced, []string{"plain"}, true, 1, false, true},
		{spec.ExpireSynced, []string{"all/username"}, true, 1, true, false},
	}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.policy, test.synced), func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				asked := 0
				n.reconfigure(func(c *keeper.Config) {
					c.Synced = func(context.Context, string, string) ([]string, error) { asked++; return test.synced, nil }
				})
				req := n.request("p", append([]string{"plain=" + kv + "#k"}, wantCreds...)...)
				req.Spec.Objects = append(req.Spec.Objects, spec.Object{Name: "all", Read: req.Spec.Objects[1].Read, Each: true})
				req.Spec.SyncedLeases = test.policy
				for range 3 {
					_, err := n.keeper.Acquire(t.Context(), req)
					if (err == nil) != test.mounts {
						t.Fatalf("mounted: %v", err)
					}
				}
				n.expect("asked for three times", 1, 1, 1)
				if asked != test.asked || n.had("SyncedLease") != test.event {
					t.Errorf("asked %d times, event %t", asked, n.had("SyncedLease"))
				}
				n.end("p")
				time.Sleep(10 * time.Minute)
				if test.revoked {
					n.expect("pod ended", 0, 0, 0)
				} else {
					n.expect("pod ended", 1, 1, 1)
				}
			})
		})
	}
}

// TestUnknownWhetherSynced: nothing is mounted whose end cannot be told, and the next try goes on from what was read.
func TestUnknownWhetherSynced(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		away := errors.New("the API is away")
		n.reconfigure(func(c *keeper.Config) {
			c.Synced = func(context.Context, string, string) ([]string, error) { return nil, away }
		})
		req := n.request("p", wantCreds...)
		req.Spec.SyncedLeases = spec.ExpireSynced
		if _, err := n.keeper.Acquire(t.Context(), req); !errors.Is(err, away) {
			t.Fatalf("mounted: %v", err)
		}
		away = nil
		n.mount(req)
		n.expect("mounted", 1, 1, 1)
	})
}

// TestAsksAheadOfLeases: what brought a lease before will again, so the class is asked about while Vault works and not after it.
func TestAsksAheadOfLeases(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		const request, question = time.Second, 2 * time.Second
		n.wire = slow{n.vault, request}
		n.reconfigure(func(c *keeper.Config) {
			c.Synced = func(context.Context, string, string) ([]string, error) { time.Sleep(question); return nil, nil }
		})
		mount := func(pod string) time.Duration {
			req := n.request(pod, wantCreds...)
			req.Spec.SyncedLeases = spec.ExpireSynced
			begin := time.Now()
			n.mount(req)
			return time.Since(begin)
		}
		mount("first")
		if took := mount("second"); took != max(2*request, question) { // a login and a read
			t.Errorf("the second mount took %s", took)
		}
	})
}

// TestBreaker: when all pods of a node seem to end at once and nobody told of it, nothing is revoked until they are found over again.
func TestBreaker(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		const pods = 30
		for i := range pods {
			n.mount(n.request(fmt.Sprint(i), wantCreds...))
		}
		n.mu.Lock()
		n.unannounced = true
		for i := range pods {
			n.ended[fmt.Sprint(i)] = true
		}
		n.mu.Unlock()
		n.keeper.WakeAll()
		time.Sleep(time.Minute)
		n.expect("rush", pods-10, pods-10, pods-10)
		if !n.keeper.BreakerOpen() || !n.had("RevocationHeld") {
			t.Error("nobody is told")
		}
		n.mu.Lock()
		clear(n.ended) // it was a mistake: all but one live
		n.ended["29"] = true
		n.mu.Unlock()
		time.Sleep(time.Hour)
		live := pods - 10
		for _, id := range []string{"29"} {
			if !strings.Contains(n.log.String(), "uid="+id+" ") {
				t.Errorf("pod %s is not in the log", id)
			}
			live--
		}
		if got := len(n.vault.Users()); got != live && got != live+1 { // 29 may have been among the first ten
			t.Errorf("%d users live, want %d", got, live)
		}
		if n.keeper.BreakerOpen() {
			t.Error("still open")
		}
	})
}

// TestWarnsOfALapse: nobody republishes, so that nothing replaces what reaches its maximum.
func TestWarnsOfALapse(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.Dynamic(creds, vaulttest.Dynamic{TTL: 20 * time.Minute, MaxTTL: time.Hour})
		n.mount(n.request("p", wantCreds...))
		time.Sleep(50 * time.Minute)
		if n.had("WillLapse") {
			t.Fatal("warned although it is not late")
		}
		time.Sleep(9 * time.Minute)
		if !n.had("WillLapse") {
			t.Fatal("not warned")
		}
		if text := n.log.String(); !strings.Contains(text, "nobody has asked for new ones for") || strings.Count(text, "WillLapse") != 1 {
			t.Errorf("warned:\n%s", text)
		}
	})
}

func TestWarnsOfSubPath(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.Dynamic(creds, vaulttest.Dynamic{TTL: time.Hour, MaxTTL: time.Hour})
		n.reconfigure(func(c *keeper.Config) { c.SubPath = func(string, string) string { return "app" } })
		n.mount(n.request("p", wantCreds...))
		time.Sleep(21 * time.Minute)
		if !strings.Contains(n.log.String(), `container "app" mounts them by subPath`) {
			t.Errorf("not warned:\n%s", n.log)
		}
	})
}

// TestStartedEmpty: a container that runs before the volume's files were ever handed out was given an empty volume, or another
// provider's when nobody had heard of the volume yet.
func TestStartedEmpty(t *testing.T) {
	for name, test := range map[string]struct {
		heard, early bool
		says         string
	}{
		"in time":               {false, false, ""},
		"the answer was lost":   {true, true, "before the volume's files were first handed to the CSI driver, so it may see"},
		"nobody asked for them": {false, true, "before Leasehold first heard of the volume, so unless another provider had mounted it"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				req := n.request("p", wantCreds...)
				if test.heard { // and its caller left before the answer
					slow := n.vault.Hold("GET "+creds, vaulttest.BeforeEffect)
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					if _, err := n.keeper.Acquire(ctx, req); !errors.Is(err, keeper.ErrWorking) {
						t.Fatal(err)
					}
					slow.Release()
				}
				n.mu.Lock()
				n.started = time.Now().Add(30 * time.Second)
				n.mu.Unlock()
				if test.early {
					time.Sleep(time.Minute)
				}
				n.mount(req)
				time.Sleep(time.Hour)
				n.reconfigure(nil)
				n.mount(n.request("p", wantCreds...))
				time.Sleep(time.Hour)
				told := n.log.String()
				if times := strings.Count(told, "StartedEmpty"); times > 1 || (times == 1) != test.early || !strings.Contains(told, test.says) {
					t.Errorf("told %d times:\n%s", times, told)
				}
			})
		})
	}
}

// TestRevokedTokenHealsAtOnce: the republish that meets the refusal logs in anew, whichever cluster answers.
func TestRevokedTokenHealsAtOnce(t *testing.T) {
	for _, cluster := range []string{"", "another"} {
		bubble(t, func(t *testing.T, n *node) {
			req := n.request("p", append([]string{"plain=" + kv + "#k"}, wantCreds...)...)
			first := n.mount(req)
			if cluster == "" {
				n.vault.RevokeAccessor(n.vault.Tokens()[0].Accessor)
			} else {
				n.vault.Cluster(cluster)
			}
			time.Sleep(3 * time.Minute)
			if again := n.mount(req); same(first, again) || !n.lives(again[1]) {
				t.Errorf("cluster %q: the volume shows what is gone", cluster)
			}
			if lost := n.had("LeaseLost"); lost != (cluster == "") {
				t.Errorf("cluster %q: told of a loss: %t", cluster, lost)
			}
		})
	}
}

// stuck is a wire on which nothing of one host is ever answered.
type stuck struct {
	http.RoundTripper
	host string
}

// RoundTrip implements http.RoundTripper.
func (s stuck) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host == s.host {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	return s.RoundTripper.RoundTrip(r)
}

// TestTarPitLeavesOthersAlone: one namespace's Vault answers nothing; the mounts of another wait for nothing.
func TestTarPitLeavesOthersAlone(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.reconfigure(func(c *keeper.Config) { c.Vaults = &vault.Pool{RoundTripper: stuck{n.wire, "tar.test:8200"}} })
		for i := range 300 {
			req := n.request(fmt.Sprint("tar", i), wantCreds...)
			req.Pod.Namespace, req.Spec.Server.Address = "hostile", "http://tar.test:8200"
			go func() { _, _ = n.keeper.Acquire(t.Context(), req) }()
		}
		time.Sleep(time.Second)
		begin := time.Now()
		n.mount(n.request("p", wantCreds...))
		if took := time.Since(begin); took > time.Second {
			t.Errorf("a mount of another namespace took %s", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		req := n.request("late", wantCreds...)
		req.Pod.Namespace = "hostile"
		if _, err := n.keeper.Acquire(ctx, req); !errors.Is(err, keeper.ErrCrowded) {
			t.Errorf("the 301st mount of the namespace: %v", err)
		}
		time.Sleep(30 * time.Minute)
	})
}

// TestCrowdWaitsItsTurn: a mount beyond its namespace's share begins when another ends, unless nobody waits for it any more.
func TestCrowdWaitsItsTurn(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.reconfigure(func(c *keeper.Config) { c.Vaults = &vault.Pool{RoundTripper: stuck{n.wire, "tar.test:8200"}} })
		for i := range 64 {
			req := n.request(fmt.Sprint("tar", i), wantCreds...)
			req.Spec.Server.Address = "http://tar.test:8200"
			go func() { _, _ = n.keeper.Acquire(t.Context(), req) }()
		}
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := n.keeper.Acquire(ctx, n.request("leaves", wantCreds...)); !errors.Is(err, keeper.ErrCrowded) {
			t.Errorf("a mount that did not begin: %v", err)
		}
		n.mount(n.request("stays", wantCreds...))
		n.expect("the others gave up", 1, 1, 1)
	})
}

// TestTellsOfALapse: the republish that brings credentials after an outage says for how long there were none.
func TestTellsOfALapse(t *testing.T) {
	for name, outage := range map[string]bool{"in time": false, "after an outage": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				n.vault.Dynamic(creds, vaulttest.Dynamic{TTL: 20 * time.Minute, MaxTTL: 20 * time.Minute})
				req := n.request("p", wantCreds...)
				n.mount(req)
				n.vault.Down(outage)
				time.Sleep(18 * time.Minute)
				if outage {
					time.Sleep(5 * time.Minute)
					n.vault.Down(false)
				}
				n.mount(req)
				text := n.log.String()
				if told := strings.Contains(text, "Warning Rotated") && strings.Contains(text, "those before ended"); told != outage {
					t.Errorf("told %t:\n%s", told, text)
				}
				if calm := strings.Contains(text, "Normal Rotated"); calm == outage {
					t.Errorf("calm %t:\n%s", calm, text)
				}
			})
		})
	}
}

// TestTellsHowLateRenewalsBegin: on time while the process runs, and as late as it was away.
func TestTellsHowLateRenewalsBegin(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		late := make(chan time.Duration, 100)
		n.reconfigure(func(c *keeper.Config) { c.RenewalBegan = func(d time.Duration) { late <- d } })
		n.mount(n.request("p", wantCreds...))
		time.Sleep(time.Hour)
		if len(late) < 5 {
			t.Errorf("%d renewals within an hour", len(late))
		}
		for range len(late) {
			if d := <-late; d != 0 {
				t.Errorf("a renewal began %s late", d)
			}
		}
		n.stop()
		time.Sleep(20 * time.Minute)
		n.start()
		time.Sleep(time.Second)
		if d := <-late; d < 10*time.Minute || d > 20*time.Minute || len(late) > 0 {
			t.Errorf("a renewal began %s late after 20 min", d)
		}
	})
}
