//nolint:forbidigo // sleeps inside synctest bubbles only
package keeper_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
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

func TestLifeOfAPod(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.request("p", wantCreds...)
		first := n.mount(req)
		n.expect("mounted", 1, 1, 1)

		before := len(n.vault.Requests())
		for range 3 {
			if again := n.mount(req); !same(first, again) {
				t.Error("a republish changed the files")
			}
		}
		if after := len(n.vault.Requests()); after != before {
			t.Errorf("republishes sent %d requests to Vault", after-before)
		}

		time.Sleep(100 * time.Hour)
		n.expect("100 lease lives later", 1, 1, 1)
		if !same(first, n.mount(req)) {
			t.Error("the credentials changed although their lease could be renewed")
		}

		n.end("p")
		n.expect("pod ended", 0, 0, 0)
		if s := n.states(); s != "" {
			t.Errorf("the store still holds %s", s)
		}
	})
}

func TestVolumesOfOnePodHaveGrantsOfTheirOwn(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		one, two := n.request("p", wantCreds...), n.request("p", wantCreds...)
		two.Volume.Volume = "other"
		if same(n.mount(one), n.mount(two)) {
			t.Error("two volumes share credentials")
		}
		n.expect("both mounted", 2, 2, 2)
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}

func TestRestartFindsEverythingAgain(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.request("p", wantCreds...)
		first := n.mount(req)
		n.stop()
		before := len(n.vault.Requests())
		n.start()
		if !same(first, n.mount(req)) || len(n.vault.Requests()) != before {
			t.Error("a restart cost a request to Vault or changed the files")
		}
		time.Sleep(10 * time.Hour)
		n.expect("renewed by the new process", 1, 1, 1)
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}

func TestMountsOfOneVolumeShareOneFlight(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		hold := n.vault.Hold(creds, vaulttest.BeforeEffect)
		req := n.request("p", wantCreds...)
		answers := make(chan error, 5)
		for range 5 {
			go func() { _, err := n.keeper.Acquire(t.Context(), req); answers <- err }()
		}
		hold.Wait()
		synctest.Wait()
		hold.Release()
		for range 5 {
			if err := <-answers; err != nil {
				t.Error(err)
			}
		}
		n.expect("five calls answered", 1, 1, 1)
	})
}

func TestCallerLeavesWorkGoesOn(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		hold := n.vault.Hold(creds, vaulttest.AfterEffect)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		req := n.request("p", wantCreds...)
		if _, err := n.keeper.Acquire(ctx, req); !errors.Is(err, keeper.ErrWorking) {
			t.Fatalf("got %v, want ErrWorking", err)
		}
		hold.Release()
		n.mount(req)
		n.expect("second try", 1, 1, 1)
		if c := n.vault.Count(creds); c != 1 {
			t.Errorf("%d reads for one set of credentials", c)
		}
	})
}

// A server that needs half a minute for each answer: every request is given its time, and the next try goes on.
func TestSlowVault(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.wire = slow{n.vault, 50 * time.Second}
		n.stop()
		n.start()
		paths := []string{}
		for i := range 20 { // three rounds of eight
			path := fmt.Sprintf("database/creds/slow-%d", i)
			n.vault.Dynamic(path, vaulttest.Dynamic{TTL: time.Hour})
			paths = append(paths, fmt.Sprintf("f%d=%s#username", i, path))
		}
		var err error
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			_, err = n.keeper.Acquire(ctx, n.request("p", paths...))
			cancel()
			if err == nil {
				break
			}
			time.Sleep(time.Minute)
		}
		if err != nil {
			t.Fatalf("never mounted: %v\n%s", err, n.log)
		}
		n.expect("each path read once", 1, 20, 20)
	})
}

type slow struct {
	next  http.RoundTripper
	delay time.Duration
}

func (s slow) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := s.next.RoundTrip(r)
	select {
	case <-time.After(s.delay):
		return resp, err
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

func TestFailedMountIsTakenUpAgain(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.request("p", append(wantCreds, "late=secret/data/late#k")...)
		for range 3 {
			if _, err := n.keeper.Acquire(t.Context(), req); vault.KindOf(err) != vault.NotFound {
				t.Fatalf("got %v, want not found", err)
			}
			time.Sleep(2 * time.Minute)
		}
		n.expect("failing", 1, 1, 1)
		n.vault.KV2("secret/data/late", map[string]any{"k": "v"})
		n.mount(req)
		n.expect("mounted", 1, 1, 1)
		if logins := n.vault.Count("auth/kubernetes/login"); logins != 1 {
			t.Errorf("%d logins, want 1", logins)
		}
	})
}

func TestFailedMountIsGivenUp(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.request("p", append(wantCreds, "never=secret/data/never#k")...)
		if _, err := n.keeper.Acquire(t.Context(), req); err == nil {
			t.Fatal("mounted what is not there")
		}
		n.expect("just failed", 1, 1, 1)
		time.Sleep(grant.PartialLife + time.Second)
		n.expect("not tried again", 0, 0, 0)
	})
}

func TestChangedWishGivesTheOldTokenBack(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		if _, err := n.keeper.Acquire(t.Context(), n.request("p", append(wantCreds, "x=nowhere#k")...)); err == nil {
			t.Fatal("mounted what is not there")
		}
		n.mount(n.request("p", wantCreds...))
		n.expect("mounted with the corrected class", 1, 1, 1)
	})
}

func TestEditedClassSupersedes(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.mount(n.request("p", wantCreds...))
		time.Sleep(time.Second)
		n.mount(n.request("p", append(wantCreds, "k="+kv+"#k")...))
		n.expect("both sets live: containers may still use the first", 2, 2, 2)
		if s := n.states(); s != "Superseded Active" {
			t.Errorf("states %s", s)
		}
		time.Sleep(2 * time.Hour)
		n.expect("the first ran out by itself", 1, 1, 1)
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}

// TestWhatWasSeenOfThePodStays: a grant that nobody could look at yet knows what an earlier one of its volume knew.
func TestWhatWasSeenOfThePodStays(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.mount(n.request("p", wantCreds...))
		synctest.Wait()
		n.mu.Lock()
		n.blind = true
		n.mu.Unlock()
		n.mount(n.request("p", append(wantCreds, "k="+kv+"#k")...))
		grants, err := n.store.OfPod("p")
		if err != nil || len(grants) != 2 {
			t.Fatalf("%d grants: %v", len(grants), err)
		}
		for _, g := range grants {
			if !g.FolderSeen || g.Grace != 30*time.Second {
				t.Errorf("a grant in state %s: folder seen %t, grace period %s", g.State, g.FolderSeen, g.Grace)
			}
		}
	})
}

func TestEndWaitsForReadsUnderWay(t *testing.T) {
	for _, stage := range []vaulttest.Stage{vaulttest.BeforeEffect, vaulttest.AfterEffect} {
		bubble(t, func(t *testing.T, n *node) {
			hold := n.vault.Hold(creds, stage)
			answer := make(chan error, 1)
			go func() { _, err := n.keeper.Acquire(t.Context(), n.request("p", wantCreds...)); answer <- err }()
			hold.Wait()
			n.end("p")
			synctest.Wait()
			if n.vault.Count("auth/token/revoke-self") != 0 {
				t.Error("revoked with a read under way")
			}
			hold.Release()
			if err := <-answer; err == nil {
				t.Error("files for a pod that ended")
			}
			n.expect("read came back", 0, 0, 0)
		})
	}
}

func TestMountThatDiedIsNotUsedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.mount(n.request("p", wantCreds...))
		grants, err := n.keeper.Grants()
		if err != nil {
			t.Fatal(err)
		}
		// As a process leaves it that is killed between a read and its record.
		_, err = n.store.Update(grants[0].ID, func(g *grant.Grant) error {
			g.State, g.BusyUntil = grant.Pending, now().Add(2*grant.RequestLimit)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		n.stop()
		n.start()
		n.mount(n.request("p", wantCreds...))
		n.expect("a new login at once, the old one while reads may be under way", 2, 2, 2)
		time.Sleep(claimLife)
		n.expect("the old one given back", 1, 1, 1)
	})
}

// die is a kill -9 while requests are under way.
func (n *node) die() {
	_ = n.store.Close()
	n.keeper.Leave()
}

func TestMountThatDiedIsGivenBackAlsoWithoutAnother(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		hold := n.vault.Hold(creds, vaulttest.AfterEffect)
		go func() { _, _ = n.keeper.Acquire(t.Context(), n.request("p", wantCreds...)) }()
		hold.Wait()
		n.die()
		hold.Release()
		n.stop()
		n.start()
		n.expect("the pod lives, a read may be under way", 1, 1, 1)
		time.Sleep(claimLife)
		n.expect("none can be", 0, 0, 0)
	})
}

func TestSecondTryThatDiedIsNotUsedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.FailNext(creds, 1, vaulttest.Fault{Status: http.StatusForbidden})
		if _, err := n.keeper.Acquire(t.Context(), n.request("p", wantCreds...)); err == nil {
			t.Fatal("mounted")
		}
		hold := n.vault.Hold(creds, vaulttest.AfterEffect)
		go func() { _, _ = n.keeper.Acquire(t.Context(), n.request("p", wantCreds...)) }()
		hold.Wait()
		n.die()
		hold.Release()
		n.stop()
		n.start()
		n.mount(n.request("p", wantCreds...))
		n.expect("a new login", 2, 2, 2)
		time.Sleep(claimLife)
		n.expect("the old one given back", 1, 1, 1)
	})
}

func TestDoubtOfAnEarlierTryStays(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.DropReply(creds, 1)
		_, err := n.keeper.Acquire(t.Context(), n.request("p", wantCreds...))
		if vault.KindOf(err) != vault.InDoubt {
			t.Fatalf("got %v", err)
		}
		n.vault.FailNext(creds, 1, vaulttest.Fault{Status: http.StatusForbidden})
		if _, err := n.keeper.Acquire(t.Context(), n.request("p", wantCreds...)); vault.KindOf(err) != vault.Denied {
			t.Fatalf("got %v", err)
		}
		n.end("p")
		time.Sleep(time.Minute)
		n.expect("the first read might still run", 1, 1, 1)
		time.Sleep(time.Minute)
		n.expect("given back", 0, 0, 0)
	})
}

func TestLostRenewalIsReckonedWith(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.mount(n.request("p", wantCreds...))
		n.vault.DropReply("auth/token/renew-self", 1000)
		time.Sleep(10 * time.Minute) // renewals are done and their replies lost
		n.vault.Down(true)
		n.end("p")
		time.Sleep(52 * time.Minute) // beyond the life that was stated last
		n.vault.Down(false)
		time.Sleep(time.Minute)
		n.expect("Vault is back before the life that it gave ends", 0, 0, 0)
	})
}

func TestNothingThatMayHaveHappenedIsSentTwice(t *testing.T) {
	tests := map[string]struct {
		sabotage func(*vaulttest.Vault)
		path     string
	}{
		"login, reply lost": {func(v *vaulttest.Vault) { v.DropReply("auth/kubernetes/login", 1) }, "auth/kubernetes/login"},
		"read, reply lost":  {func(v *vaulttest.Vault) { v.DropReply(creds, 1) }, creds},
		"login, 500":        {func(v *vaulttest.Vault) { v.FailNext("auth/kubernetes/login", 1, vaulttest.Fault{Status: 500}) }, "auth/kubernetes/login"},
		"read, 502":         {func(v *vaulttest.Vault) { v.FailNext(creds, 1, vaulttest.Fault{Status: 502}) }, creds},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				tt.sabotage(n.vault)
				if _, err := n.keeper.Acquire(t.Context(), n.request("p", wantCreds...)); err == nil {
					t.Error("mounted")
				}
				if c := n.vault.Count(tt.path); c != 1 {
					t.Errorf("sent %d times", c)
				}
			})
		})
	}
}

func TestWhatWasNotExecutedIsSentAgain(t *testing.T) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusPreconditionFailed, http.StatusServiceUnavailable} {
		bubble(t, func(t *testing.T, n *node) {
			n.vault.FailNext("auth/kubernetes/login", 2, vaulttest.Fault{Status: status})
			n.vault.FailNext(creds, 2, vaulttest.Fault{Status: status})
			n.mount(n.request("p", wantCreds...))
			n.expect("mounted in one call", 1, 1, 1)
		})
	}
}

func TestLostReadDelaysTheRevocation(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.DropReply(creds, 1)
		if _, err := n.keeper.Acquire(t.Context(), n.request("p", wantCreds...)); err == nil {
			t.Fatal("mounted")
		}
		n.end("p")
		time.Sleep(time.Minute)
		n.expect("Vault might still be working", 1, 1, 1)
		time.Sleep(grant.RequestLimit)
		n.expect("given back", 0, 0, 0)
	})
}

func TestOrphanTTLBoundsALongToken(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.Role("my-app-role", vaulttest.Role{TTL: 24 * time.Hour})
		n.mount(n.request("p", wantCreds...))
		if ttl := n.vault.Tokens()[0].TTL; ttl > keeper.DefaultOrphanTTL {
			t.Errorf("the token lives %s without anybody's care", ttl)
		}
		time.Sleep(72 * time.Hour)
		n.expect("renewed for three days", 1, 1, 1)
		n.stop() // the node is lost
		time.Sleep(keeper.DefaultOrphanTTL + time.Second)
		n.expect("an orphan TTL after the node's loss", 0, 0, 0)
		n.start()
	})
}

// TestNamespaceIsInEveryCall: of a whole life, rotation, renewals, probe and revocation included. Only sys/health is not of a namespace.
func TestNamespaceIsInEveryCall(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.Dynamic(creds, vaulttest.Dynamic{TTL: time.Hour, MaxTTL: 3 * time.Hour})
		req := n.request("p", wantCreds...)
		req.Spec.Namespace = "team/a"
		for range 5 * 60 {
			n.mount(req)
			time.Sleep(time.Minute)
		}
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
		calls := map[string]int{}
		for _, r := range n.vault.Requests() {
			calls[r.Path]++
			if got := r.Header.Get("X-Vault-Namespace"); got != "team/a" && r.Path != "sys/health" {
				t.Errorf("%s %s is of namespace %q", r.Method, r.Path, got)
			}
		}
		for _, path := range []string{"auth/kubernetes/login", creds, "auth/token/renew-self", "sys/leases/renew", "auth/token/revoke-self"} {
			if calls[path] == 0 {
				t.Errorf("no call of %s: %v", path, calls)
			}
		}
	})
}

// TestOwnCertificateDoesNotLogIn: at an auth mount of the cert method, which looks at nothing but the connection's certificate, the
// provider's own would log in for any pod whose class names the mount.
func TestOwnCertificateDoesNotLogIn(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.Role("leasehold", vaulttest.Role{Mount: "cert", Cert: true, TTL: time.Hour})
		req := n.request("p", wantCreds...)
		req.Spec.Auth.Mount = "cert"
		for range 3 {
			if _, err := n.keeper.Acquire(t.Context(), req); err == nil || !strings.Contains(err.Error(), "the provider's own client certificate") {
				t.Fatalf("got %v", err)
			}
			time.Sleep(time.Minute)
			n.expect("refused", 0, 0, 0)
		}
		if c := n.vault.Count(creds); c != 0 {
			t.Errorf("%d reads with the provider's token", c)
		}
		if s := n.states(); s != "" {
			t.Errorf("the store still holds %s", s)
		}
	})
}

// TestTokenThatCannotBeShortenedIsTold: a period ignores what is asked for.
func TestTokenThatCannotBeShortenedIsTold(t *testing.T) {
	for name, test := range map[string]struct {
		role vaulttest.Role
		told bool
	}{
		"long period":         {vaulttest.Role{Period: 24 * time.Hour}, true},
		"short period":        {vaulttest.Role{Period: 10 * time.Minute}, false},
		"long TTL":            {vaulttest.Role{TTL: 24 * time.Hour}, false},
		"long batch token":    {vaulttest.Role{TTL: 24 * time.Hour, Batch: true}, true},
		"short explicit max":  {vaulttest.Role{TTL: 24 * time.Hour, ExplicitMax: 30 * time.Minute}, false},
		"short TTL all along": {vaulttest.Role{TTL: 10 * time.Minute}, false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				n.vault.Role("my-app-role", test.role)
				n.mount(n.request("p", "k="+kv+"#k"))
				if n.had("LongToken") != test.told {
					t.Errorf("told: %t\n%s", !test.told, n.log)
				}
			})
		})
	}
}

func TestMaximumTTLIsRotatedWithOverlap(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.Dynamic(creds, vaulttest.Dynamic{TTL: time.Hour, MaxTTL: 3 * time.Hour})
		req := n.request("p", wantCreds...)
		first := n.mount(req)
		changes, last := 0, first
		for range 24 * 60 {
			time.Sleep(time.Minute)
			if files := n.mount(req); !same(files, last) {
				changes, last = changes+1, files
			}
			if !n.lives(last[0]) {
				t.Fatalf("the volume shows credentials that are dead\n%s", n.log)
			}
		}
		if changes < 8 || changes > 12 {
			t.Errorf("%d rotations in 24 h at a maximum of 3 h", changes)
		}
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}

// TestShortOutageLetsNothingLapse: once a lease was cut by its maximum, an outage of half the TTL may begin at any moment of
// the life of those after it, in that pod or in another of its kind, and after a restart.
func TestShortOutageLetsNothingLapse(t *testing.T) {
	const ttl, longest, pace, outage = time.Minute, 3 * time.Minute, 22 * time.Second, 30 * time.Second
	for _, of := range []string{"lease", "token"} {
		t.Run(of, func(t *testing.T) {
			for begin := time.Second; begin < longest; begin += 2 * time.Second {
				bubble(t, func(t *testing.T, n *node) {
					if of == "lease" {
						n.vault.Dynamic(creds, vaulttest.Dynamic{TTL: ttl, MaxTTL: longest})
					} else {
						n.vault.Role("my-app-role", vaulttest.Role{TTL: ttl, MaxTTL: longest})
					}
					// each second every volume must show what lives; now and then it is republished
					run := func(d time.Duration, reqs ...*spec.Request) {
						shown := make([]render.File, len(reqs))
						for age := time.Duration(0); age < d; age += time.Second {
							for i, req := range reqs {
								if age%pace == 0 {
									shown[i] = n.mount(req)[0]
								}
								if !n.lives(shown[i]) {
									t.Fatalf("outage at %s: %s shows credentials that are dead\n%s", begin, req.Pod.Name, n.log)
								}
							}
							time.Sleep(time.Second)
						}
					}
					p, q := n.request("p", wantCreds...), n.request("q", wantCreds...)
					run(longest+pace, p)
					n.stop()
					n.start()
					run(ttl, p)
					time.AfterFunc(begin, func() { n.vault.Sealed(true) })
					time.AfterFunc(begin+outage, func() { n.vault.Sealed(false) })
					run(begin+2*ttl, p, q)
				})
			}
		})
	}
}

// TestNewcomerIsLookedAfterInACrowd: a look that was due when a volume showed nothing yet is not put off by those of volumes that do,
// for as long as these keep everybody busy.
func TestNewcomerIsLookedAfterInACrowd(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.Dynamic(creds, vaulttest.Dynamic{TTL: time.Minute})
		for i := range 200 {
			n.mount(n.request(fmt.Sprint("p", i), wantCreds...))
		}
		n.reconfigure(func(c *keeper.Config) {
			c.Ended = func(ctx context.Context, g grant.Grant) grant.Verdict {
				time.Sleep(time.Second) // an API server that takes its time
				verdict := n.verdict(ctx, g)
				verdict.Check = 10 * time.Second
				return verdict
			}
		})
		time.Sleep(20 * time.Second)
		user := n.mount(n.request("new", wantCreds...))[0]
		for range 3 * time.Minute / time.Second {
			if !n.lives(user) {
				t.Fatalf("the newcomer's credentials died\n%s", n.log)
			}
			time.Sleep(time.Second)
		}
	})
}

// mountForADay republishes a volume each minute, and wants what it shows to work.
func (n *node) mountForADay(req *spec.Request) {
	n.t.Helper()
	for range 24 * 60 {
		if !n.lives(n.mount(req)[0]) {
			n.t.Fatalf("the volume shows credentials that are dead\n%s", n.log)
		}
		time.Sleep(time.Minute)
	}
}

func TestTokenAtItsMaximumIsReplaced(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.Role("my-app-role", vaulttest.Role{TTL: time.Hour, MaxTTL: 4 * time.Hour})
		rotated := map[keeper.Rotation]int{}
		n.reconfigure(func(c *keeper.Config) { c.Rotated = func(kind keeper.Rotation) { rotated[kind]++ } })
		n.mountForADay(n.request("p", wantCreds...))
		logins, leases := n.vault.Count("auth/kubernetes/login")-1, n.vault.Count(creds)-1 // the first replaced nothing
		if want := map[keeper.Rotation]int{keeper.RotatedLogin: logins, keeper.RotatedLease: leases}; logins < 5 || leases < 5 || !maps.Equal(rotated, want) {
			t.Errorf("told of %v, want %v", rotated, want)
		}
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}

func TestRevokedOutsideIsHealed(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.request("p", wantCreds...)
		first := n.mount(req)
		grants, _ := n.keeper.Grants()
		client, err := (&vault.Pool{RoundTripper: n.vault}).Client(grants[0].Server, "default")
		if err != nil {
			t.Fatal(err)
		}
		if err := client.RevokeSelf(t.Context(), vault.Session{Token: grants[0].Token}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Minute)
		if same(first, n.mount(req)) {
			t.Error("the dead credentials stayed")
		}
		if !n.had("LeaseLost") {
			t.Error("no event")
		}
		n.expect("healed", 1, 1, 1)
	})
}

func TestPlainSecretsAreReadAgain(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.request("p", "k="+kv+"#k")
		n.mount(req)
		for range 3 * 60 { // beyond the token's life: it is not renewed, as nothing is leased under it
			time.Sleep(time.Minute)
			n.mount(req)
		}
		n.vault.KV2(kv, map[string]any{"k": "new"})
		time.Sleep(2*time.Minute + time.Second)
		if got := string(n.mount(req)[0].Contents); got != "new" {
			t.Errorf("the file holds %q\n%s", got, n.log)
		}
		if c := n.vault.Count("GET " + kv); c > 100 {
			t.Errorf("%d reads in 3 h", c)
		}
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}

func TestOldContentOutlivesAFailedRefresh(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.request("p", "k="+kv+"#k")
		first := n.mount(req)
		n.vault.Sealed(true)
		time.Sleep(10 * time.Minute)
		if !same(first, n.mount(req)) || !n.had("RefreshFailed") {
			t.Error("a sealed Vault took the files away, or nobody was told")
		}
	})
}

func TestFullStoreLeavesMountedVolumesAlone(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.stop()
		n.stateMax = 2 * (2 << 20)
		n.start()
		n.vault.KV2("secret/data/large", map[string]any{"k": strings.Repeat("x", 3<<19)})
		req := n.request("p", "k=secret/data/large#k")
		first := n.mount(req)
		if _, err := n.keeper.Acquire(t.Context(), n.request("q", wantCreds...)); !errors.Is(err, store.ErrFull) {
			t.Errorf("got %v", err)
		}
		n.expect("refused before the login", 1, 0, 0)
		time.Sleep(3 * time.Minute)
		if !same(first, n.mount(req)) || !n.had("RefreshFailed") {
			t.Error("a full store took the files away, or nobody was told")
		}
	})
}

// TestUnseenFolderLeavesMountedVolumesAlone: a volume whose end could not be seen is not begun, but one that was is kept up.
func TestUnseenFolderLeavesMountedVolumesAlone(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.request("p", "k="+kv+"#k")
		n.mount(req)
		unseen := errors.New("kubelet's folder is elsewhere")
		n.reconfigure(func(c *keeper.Config) {
			c.Sees = func(v spec.VolumeKey, kubeletDir string) error {
				if v.PodUID != "q" || kubeletDir != "/var/lib/k0s/kubelet" {
					t.Errorf("asked for %v below %s", v, kubeletDir)
				}
				return unseen
			}
		})
		other := n.request("q", wantCreds...)
		other.KubeletDir = "/var/lib/k0s/kubelet"
		if _, err := n.keeper.Acquire(t.Context(), other); !errors.Is(err, unseen) {
			t.Errorf("got %v", err)
		}
		n.expect("refused before the login", 1, 0, 0)
		reads := n.vault.Count(kv)
		time.Sleep(3 * time.Minute)
		n.mount(req)
		if n.vault.Count(kv) == reads || n.had("RefreshFailed") {
			t.Error("a volume that is mounted was not refreshed")
		}
	})
}

// TestFullStoreLeavesNoRecord: a new grant that has no room for what the volume shows is not left behind, as nothing is under way for it.
func TestFullStoreLeavesNoRecord(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.stop()
		n.stateMax = 8 << 20 // of which a namespace may fill half
		n.start()
		n.vault.KV2("secret/data/large", map[string]any{"k": strings.Repeat("x", 9<<18)})
		req := n.request("p", append(wantCreds, "large=secret/data/large#k", "small="+kv+"#k")...)
		req.Spec.Objects[3].Care.Refresh = 10 * time.Second
		n.mount(req)
		n.vault.RevokeAccessor(n.vault.Tokens()[0].Accessor)
		time.Sleep(time.Minute) // the small one is due, which finds the token dead
		_, _ = n.keeper.Acquire(t.Context(), req)
		time.Sleep(claimLife)
		if s := n.states(); strings.Contains(s, "Pending") || strings.Contains(s, "Revoking") {
			t.Errorf("states %s", s)
		}
		if !n.had("RefreshFailed") {
			t.Error("the new grant had room, so that this shows nothing")
		}
	})
}

// TestClassWarningsAreToldOnce: not at every republish, and not by every retry of a mount that goes on.
func TestClassWarningsAreToldOnce(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.request("p", wantCreds...)
		req.Warnings = []string{"one", "two"}
		for range 3 {
			n.mount(req)
		}
		synctest.Wait()
		if told := strings.Count(n.log.String(), `SecretProviderClass "class": one; two`); told != 1 {
			t.Errorf("told %d times\n%s", told, n.log)
		}
	})
}

func TestMistakeInAnEditedClassIsTold(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.mount(n.request("p", wantCreds...))
		if _, err := n.keeper.Acquire(t.Context(), n.request("p", "x=nowhere#k")); err == nil {
			t.Error("mounted what is not there")
		}
		if !n.had("RefreshFailed") {
			t.Error("no event, and the driver hides the error")
		}
		if s := n.states(); !strings.Contains(s, "Active") {
			t.Errorf("states %q: the mounted credentials are gone", s)
		}
	})
}

func TestOutageOfVaultIsSurvived(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.mount(n.request("p", wantCreds...))
		n.mount(n.request("q", wantCreds...))
		time.Sleep(30 * time.Minute)
		n.vault.Sealed(true)
		time.Sleep(20 * time.Minute)
		n.end("q")
		time.Sleep(10 * time.Minute)
		n.vault.Sealed(false)
		time.Sleep(time.Minute)
		n.expect("back: one renewed, one given back", 1, 1, 1)
		time.Sleep(24 * time.Hour)
		n.expect("a day later", 1, 1, 1)
	})
}

func TestOutageLongerThanALifeIsHealed(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.request("p", wantCreds...)
		n.mount(req)
		n.vault.Sealed(true)
		time.Sleep(2 * time.Hour)
		n.vault.Sealed(false)
		if !n.lives(n.mount(req)[0]) {
			t.Error("the volume shows credentials that died in the outage")
		}
		n.end("p")
		time.Sleep(2 * time.Minute)
		n.expect("pod ended", 0, 0, 0)
	})
}

// TestEndedTokenIsAskedForCalmly: its leases may still live, so that it is not given up, and nothing is urgent any more.
func TestEndedTokenIsAskedForCalmly(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.Role("my-app-role", vaulttest.Role{TTL: 10 * time.Minute})
		n.vault.Dynamic(creds, vaulttest.Dynamic{TTL: 4 * time.Hour})
		n.mount(n.request("p", wantCreds...))
		n.vault.Sealed(true)
		time.Sleep(time.Hour)
		before := len(n.vault.Requests())
		time.Sleep(time.Hour)
		if sent := len(n.vault.Requests()) - before; sent == 0 || sent > 4*60 {
			t.Errorf("%d requests in an hour", sent)
		}
	})
}

func TestRevocationWaitsForTheBackEnd(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.mount(n.request("p", wantCreds...))
		n.vault.BackendDown(true)
		n.end("p")
		time.Sleep(40 * time.Minute)
		n.expect("back end down", 1, 1, 1)
		n.vault.BackendDown(false)
		time.Sleep(time.Minute)
		n.expect("back end up", 0, 0, 0)
		for _, l := range n.vault.Leases() {
			if l.Irrevocable {
				t.Error("Vault gave a lease up")
			}
		}
	})
}

func TestAnotherClusterProvesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.mount(n.request("p", wantCreds...))
		n.vault.Cluster("another")
		n.end("p")
		time.Sleep(10 * time.Minute)
		if s := n.states(); s != "Revoking" {
			t.Errorf("states %q: the grant was forgotten on another cluster's word", s)
		}
		time.Sleep(2 * time.Hour)
		if s := n.states(); s != "" {
			t.Errorf("states %q: kept beyond every deadline", s)
		}
	})
}

func TestTokensAreNotMounted(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.Auth("strange/token", vaulttest.Role{TTL: time.Hour})
		_, err := n.keeper.Acquire(t.Context(), n.request("p", "t=strange/token#x"))
		var refused *keeper.RefusedError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "auth block") {
			t.Fatalf("got %v", err)
		}
		n.expect("only the login is left", 1, 0, 0)
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}

func TestLeasesUnderTokensThatCannotCarryThemAreRefused(t *testing.T) {
	for name, role := range map[string]vaulttest.Role{
		"token_type=batch":        {TTL: time.Hour, Batch: true},
		"token_num_uses":          {TTL: time.Hour, Uses: 20},
		"token_no_default_policy": {TTL: time.Hour, NoDefaultPolicy: true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				n.vault.Role("my-app-role", role)
				n.mount(n.request("plain", "k="+kv+"#k"))
				for range 5 {
					_, err := n.keeper.Acquire(t.Context(), n.request("leased", wantCreds...))
					if err == nil || !strings.Contains(err.Error(), name) {
						t.Fatalf("got %v", err)
					}
					time.Sleep(time.Minute)
				}
				if c := n.vault.Count(creds); c != 1 {
					t.Errorf("%d reads for nothing", c)
				}
			})
		})
	}
}

func TestNoTokenFromKubelet(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.request("p", wantCreds...)
		jwt := req.JWT
		req.JWT = secretless
		if _, err := n.keeper.Acquire(t.Context(), req); !errors.Is(err, keeper.ErrNoToken) {
			t.Fatalf("got %v", err)
		}
		if s := n.states(); s != "" {
			t.Errorf("states %q", s)
		}
		req.JWT = jwt
		n.mount(req)
		req.JWT = secretless
		n.mount(req) // a republish needs none
	})
}

// TestRequestedToken: when kubelet sends no token one is requested for each login, for the pod of the Mount, and for nothing else.
func TestRequestedToken(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		var asked []string
		var failure error
		jwt := n.vault.JWT("default", "my-app")
		n.reconfigure(func(c *keeper.Config) {
			c.RequestToken = func(_ context.Context, pod spec.Pod, audience string) (secret.Value, error) {
				asked = append(asked, fmt.Sprint(pod, audience))
				if failure != nil {
					return secretless, failure
				}
				return secret.New(jwt), nil
			}
		})
		n.mount(n.request("kubelet", wantCreds...))
		if len(asked) > 0 {
			t.Errorf("kubelet's token is there, and one was requested: %q", asked)
		}
		n.end("kubelet")

		req := n.request("p", wantCreds...)
		req.JWT, req.Spec.Auth.Audience = secretless, "elsewhere"
		failure = errors.New("there is no rule for it")
		_, err := n.keeper.Acquire(t.Context(), req)
		if !errors.Is(err, keeper.ErrNoToken) || !errors.Is(err, failure) {
			t.Errorf("got %v", err)
		}
		time.Sleep(time.Hour)
		n.expect("without a token", 0, 0, 0)
		if s := n.states(); s != "" {
			t.Errorf("states %q", s)
		}

		failure, asked = nil, nil
		n.mount(req)
		n.mount(req)
		if want := fmt.Sprint(req.Pod, "elsewhere"); len(asked) != 1 || asked[0] != want {
			t.Errorf("requested for %q, want once for %q", asked, want)
		}
		if strings.Contains(n.log.String(), jwt) {
			t.Error("the log holds the token")
		}
	})
}

// TestClassOverridden: a volume whose pod overrides its class has an event at its first mount, also of one that fails, and none later.
func TestClassOverridden(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		overridden := func() int { return strings.Count(n.log.String(), "Warning ClassOverridden") }
		n.reconfigure(func(c *keeper.Config) {
			c.Overrides = func(uid, volume string) []string {
				if uid+"/"+volume == "p/secrets" {
					return []string{"roleName", "vaultAddress"}
				}
				return nil
			}
		})
		n.mount(n.request("other", wantCreds...))
		if overridden() != 0 {
			t.Fatal("told of a pod that overrides nothing")
		}
		n.vault.FailNext("PUT auth/kubernetes/login", 1, vaulttest.Fault{Status: 403})
		req := n.request("p", wantCreds...)
		if _, err := n.keeper.Acquire(t.Context(), req); err == nil || overridden() != 1 {
			t.Errorf("%d events of a login that failed with %v, want one", overridden(), err)
		}
		if want := `volume "secrets": the pod's volumeAttributes ["roleName" "vaultAddress"] win over SecretProviderClass "class"`; !strings.Contains(n.log.String(), want) {
			t.Errorf("the event does not say %s:\n%s", want, n.log)
		}
		n.mount(req)
		told := overridden()
		n.mount(n.request("p", append(wantCreds, "k="+kv+"#k")...)) // an edited class
		n.reconfigure(n.configure)
		time.Sleep(300 * time.Hour) // past the token's maximum
		n.mount(n.request("p", append(wantCreds, "k="+kv+"#k")...))
		if overridden() != told {
			t.Errorf("%d more events at later mounts", overridden()-told)
		}
	})
}

// TestAlive: a Vault that answers nobody does not make a process that should be started again; a loop that does not run does.
func TestAlive(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		for i := range 100 {
			n.mount(n.request(fmt.Sprint("p", i), wantCreds...))
		}
		n.reconfigure(func(c *keeper.Config) {
			c.Vaults = &vault.Pool{RoundTripper: stuck{n.wire, strings.TrimPrefix(n.vault.URL, "http://")}}
		})
		time.Sleep(30 * time.Minute)
		for range 2 {
			if err := n.keeper.Alive(t.Context()); err != nil {
				t.Error(err)
			}
		}
		still, err := keeper.New(keeper.Config{Store: n.store, Now: now})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := still.Alive(ctx); err == nil || !strings.Contains(err.Error(), "stands still") {
			t.Errorf("a keeper that does not run: %v", err)
		}
		_ = still.Run(ctx) // which ends its queue
	})
}

// TestRevokePod: a pod loses what it has at once, another keeps it, and a republish gives new credentials.
func TestRevokePod(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		lost, kept := n.mount(n.request("lost", wantCreds...)), n.mount(n.request("kept", wantCreds...))
		if revoked, err := n.keeper.RevokePod("default", "pod-lost"); err != nil || revoked != 1 {
			t.Fatalf("%d, %v", revoked, err)
		}
		synctest.Wait()
		n.expect("revoked", 1, 1, 1)
		if n.lives(lost[0]) || !n.lives(kept[0]) || !n.had("RevokedByHand") {
			t.Error("another pod's credentials were revoked, or nobody was told")
		}
		if again := n.mount(n.request("lost", wantCreds...)); !n.lives(again[0]) {
			t.Error("the republish shows what was revoked")
		}
		n.expect("republished", 2, 2, 2)
	})
}

// TestGiveBack: of pods that are over without force, of all with it; and then nothing is mounted any more.
func TestGiveBack(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.mount(n.request("over", wantCreds...))
		n.mount(n.request("running", wantCreds...))
		n.mu.Lock()
		n.ended["over"], n.warning = true, "once"
		n.mu.Unlock()
		if err := n.keeper.GiveBack(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		n.expect("without force", 1, 1, 1)
		if !n.had("EndUnclear") {
			t.Error("what the look found is not told")
		}
		if err := n.keeper.GiveBack(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		n.expect("with force", 0, 0, 0)
		if _, err := n.keeper.Acquire(t.Context(), n.request("running", wantCreds...)); !errors.Is(err, keeper.ErrLeaving) {
			t.Errorf("a republish after that: %v", err)
		}
	})
}

func TestLeavingAnswersWaitingMounts(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		hold := n.vault.Hold(creds, vaulttest.AfterEffect)
		answer := make(chan error, 1)
		go func() { _, err := n.keeper.Acquire(t.Context(), n.request("p", wantCreds...)); answer <- err }()
		hold.Wait()
		n.keeper.Leave()
		if err := <-answer; !errors.Is(err, keeper.ErrLeaving) {
			t.Errorf("got %v", err)
		}
		hold.Release()
		n.stop()
		n.start()
		before := len(n.vault.Requests())
		n.mount(n.request("p", wantCreds...))
		if len(n.vault.Requests()) != before {
			t.Error("the next process did not find the finished work")
		}
	})
}

// An authority's chain is no JSON: it is the file as it is, and read again like any plain secret.
func TestRawAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		const chain, next = "-----BEGIN CERTIFICATE-----\nA\n", "-----BEGIN CERTIFICATE-----\nB\n"
		n.vault.Raw("pki/ca_chain", 200, "application/pkix-cert", chain)
		req := n.request("p", append(wantCreds, "ca.pem=pki/ca_chain#")...)
		if got := string(n.mount(req)[2].Contents); got != chain {
			t.Errorf("the file holds %q", got)
		}
		n.stop()
		n.start()
		n.vault.Raw("pki/ca_chain", 200, "application/pkix-cert", next)
		if got := string(n.mount(req)[2].Contents); got != chain {
			t.Errorf("at once after a restart the file holds %q", got)
		}
		time.Sleep(3 * time.Minute)
		if got := string(n.mount(req)[2].Contents); got != next {
			t.Errorf("3 minutes later the file holds %q", got)
		}
		n.expect("mounted", 1, 1, 1)
	})
}
