//nolint:forbidigo // sleeps inside synctest bubbles only
package keeper_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/render"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

const issue = "pki/issue/x"

// withCertificate has a request want a certificate and its key, beside what it wants already.
func withCertificate(req *spec.Request, ttl time.Duration, care spec.Care) *spec.Request {
	read := spec.Read{Method: "PUT", Path: issue, Args: fmt.Sprintf(`{"common_name":"x","ttl":%d}`, ttl/time.Second)}
	req.Spec.Objects = append(req.Spec.Objects,
		spec.Object{Name: "tls.crt", Read: read, Key: "certificate", Care: care}, spec.Object{Name: "tls.key", Read: read, Key: "private_key"})
	return req
}

// pair wants the certificate and the key among files to belong together, and returns the certificate.
func pairOf(t *testing.T, files []render.File) string {
	t.Helper()
	crt, key := files[len(files)-2].Contents, files[len(files)-1].Contents
	if _, err := tls.X509KeyPair(crt, key); err != nil {
		t.Errorf("the certificate and its key: %v", err)
	}
	return string(crt)
}

// certificates counts those that were not revoked and have not ended.
func (n *node) certificates() (live int) {
	for _, c := range n.vault.Certificates() {
		if !c.Revoked && c.Expires.After(time.Now()) {
			live++
		}
	}
	return live
}

// TestCertificateIsKept: until its share of life is over, whether or not it has a lease, and whatever becomes of tokens.
func TestCertificateIsKept(t *testing.T) {
	for name, test := range map[string]struct {
		leased bool
		role   vaulttest.Role
		at     int
		issued int // in 10 days of certificates of a day
	}{
		"by default":      {false, vaulttest.Role{TTL: time.Hour, MaxTTL: 240 * time.Hour}, 0, 15},
		"early":           {false, vaulttest.Role{TTL: time.Hour, MaxTTL: 240 * time.Hour}, 25, 40},
		"short tokens":    {false, vaulttest.Role{TTL: 10 * time.Minute, MaxTTL: 20 * time.Minute}, 0, 15},
		"leased":          {true, vaulttest.Role{TTL: time.Hour, MaxTTL: 1000 * time.Hour}, 0, 15},
		"leased, at 90 %": {true, vaulttest.Role{TTL: time.Hour, MaxTTL: 1000 * time.Hour}, 90, 12},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				n.vault.Role("my-app-role", test.role)
				n.vault.PKI(issue, test.leased)
				req := withCertificate(n.request("p", "k="+kv+"#k"), 24*time.Hour, spec.Care{RenewAt: test.at})
				shown, rotated := map[string]bool{}, 0
				n.reconfigure(func(c *keeper.Config) {
					c.Rotated = func(kind keeper.Rotation) {
						if kind == keeper.RotatedCertificate {
							rotated++
						}
					}
				})
				for range 10 * 24 * 6 {
					shown[pairOf(t, n.mount(req))] = true
					time.Sleep(10 * time.Minute)
				}
				if issued := n.vault.Count(issue); len(shown) != issued || issued != test.issued {
					t.Errorf("%d were issued and %d shown, want %d", issued, len(shown), test.issued)
				}
				if rotated != test.issued-1 {
					t.Errorf("told of %d that took another's place, of %d", rotated, test.issued)
				}
			})
		})
	}
}

// TestFailingReissueKeepsTheOld, and says so; the next one that succeeds is shown whole.
func TestFailingReissueKeepsTheOld(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.PKI(issue, false)
		req := withCertificate(n.request("p"), time.Hour, spec.Care{})
		first := pairOf(t, n.mount(req))
		n.vault.FailNext(issue, 5, vaulttest.Fault{Status: http.StatusForbidden})
		time.Sleep(43 * time.Minute)
		for range 5 {
			if pairOf(t, n.mount(req)) != first {
				t.Error("the certificate changed although none was issued")
			}
			time.Sleep(time.Minute)
		}
		if !n.had("RefreshFailed") {
			t.Error("nobody was told")
		}
		n.vault.DropReply(issue, 1) // one is issued, and nobody knows of it
		if pairOf(t, n.mount(req)) != first {
			t.Error("the certificate changed although none came")
		}
		if pairOf(t, n.mount(req)) == first || n.vault.Count(issue) != 8 {
			t.Errorf("not issued anew, or more often than needed: %d", n.vault.Count(issue))
		}
	})
}

// TestWrongClockIssuesCalmly: a certificate that seems to have ended when it comes is not issued at each republish.
func TestWrongClockIssuesCalmly(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		crt, key := vaulttest.Pair("x", -time.Minute)
		n.vault.Raw(issue, 200, "application/json", fmt.Sprintf(`{"data":{"certificate":%q,"private_key":%q,"serial_number":"1","expiration":%d}}`, crt, key, time.Now().Add(-time.Minute).Unix()))
		req := withCertificate(n.request("p"), time.Hour, spec.Care{})
		for range 60 {
			n.mount(req)
			time.Sleep(time.Minute)
		}
		if issued := n.vault.Count(issue); issued < 5 || issued > 6 {
			t.Errorf("issued %d times in an hour", issued)
		}
		if told := n.log.String(); !strings.Contains(told, "ClockWrong") || !strings.Contains(told, "ended 1m0s ago") {
			t.Errorf("told:\n%s", told)
		}
	})
}

// TestRevokeOnEnd: those that the pod was shown, one after the other, under one token after the other, are revoked when it is over, and
// not before.
func TestRevokeOnEnd(t *testing.T) {
	for name, role := range map[string]vaulttest.Role{
		"long token":   {TTL: time.Hour, MaxTTL: 1000 * time.Hour},
		"short tokens": {TTL: 30 * time.Minute, MaxTTL: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				n.vault.Role("my-app-role", role)
				n.vault.PKI(issue, false)
				req := withCertificate(n.request("p"), 10*time.Hour, spec.Care{RevokeOnEnd: true, RenewAt: 20})
				for range 9 * 12 {
					n.mount(req)
					time.Sleep(5 * time.Minute)
					for _, c := range n.vault.Certificates() {
						if c.Revoked {
							t.Fatal("one was revoked while the pod lived")
						}
					}
				}
				if live := n.certificates(); live != 5 {
					t.Errorf("%d live", live)
				}
				n.stop()
				n.start()
				n.end("p")
				n.expect("pod ended", 0, 0, 0)
				if live := n.certificates(); live != 0 {
					t.Errorf("%d live on", live)
				}
				if n.had("CertificateKept") {
					t.Errorf("told of what is gone:\n%s", n.log)
				}
				if s := n.states(); s != "" {
					t.Errorf("the store still holds %s", s)
				}
			})
		})
	}
}

// TestCertificateOfAnEditedClass is revoked at the end as well, with the token that the volume has then, if it is of the same Vault.
func TestCertificateOfAnEditedClass(t *testing.T) {
	for _, elsewhere := range []bool{false, true} {
		bubble(t, func(t *testing.T, n *node) {
			n.vault.PKI(issue, false)
			n.mount(withCertificate(n.request("p"), 10*time.Hour, spec.Care{RevokeOnEnd: true}))
			req := n.request("p", "k="+kv+"#k")
			if elsewhere {
				req.Spec.Namespace = "team"
			}
			n.mount(req)
			time.Sleep(30 * time.Minute)
			n.mount(req)
			if n.certificates() != 1 {
				t.Errorf("elsewhere %t: revoked while a container may still use it\n%s", elsewhere, n.log)
			}
			n.end("p")
			n.expect("pod ended", 0, 0, 0)
			if live := n.certificates(); live != 0 {
				t.Errorf("elsewhere %t: %d live on\n%s", elsewhere, live, n.log)
			}
		})
	}
}

// TestRevocationDenied: one event says what to do, and the rest is given back.
func TestRevocationDenied(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.Role("my-app-role", vaulttest.Role{TTL: time.Hour, MaxTTL: 240 * time.Hour, Paths: []string{issue, creds}})
		n.vault.PKI(issue, false)
		req := withCertificate(n.request("p", wantCreds...), time.Hour, spec.Care{RevokeOnEnd: true, RenewAt: 20})
		for range 20 {
			n.mount(req)
			time.Sleep(2 * time.Minute)
		}
		live := n.certificates()
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
		told := n.log.String()
		want := fmt.Sprintf(`live on (%d, until `, live)
		if strings.Count(told, "Warning CertificateKept") != 1 || !strings.Contains(told, want) || !strings.Contains(told, `add to a policy of role "my-app-role": path "pki/revoke" { capabilities = ["update"] }`) {
			t.Errorf("told:\n%s", told)
		}
		if asked := n.vault.Count("pki/revoke"); asked != 1 || live < 2 {
			t.Errorf("asked %d times to revoke %d", asked, live)
		}
	})
}

// TestCertificateThatVaultForgot: one that no_store kept from being remembered cannot be revoked, which is told; others are.
func TestCertificateThatVaultForgot(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.PKI(issue, false)
		n.mount(withCertificate(n.request("p", wantCreds...), time.Hour, spec.Care{RevokeOnEnd: true}))
		n.vault.FailNext("pki/revoke", 1, vaulttest.Fault{Status: 400, Body: fmt.Sprintf(`{"errors":["certificate with serial %s not found."]}`, n.vault.Certificates()[0].Serial)})
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
		if told := n.log.String(); !strings.Contains(told, "CertificateKept") || !strings.Contains(told, "no_store") {
			t.Errorf("told:\n%s", told)
		}
	})
}

// TestOutageAtTheEnd: the certificate is revoked when Vault is back, and until then its token is kept.
func TestOutageAtTheEnd(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.PKI(issue, false)
		n.mount(withCertificate(n.request("p"), 10*time.Hour, spec.Care{RevokeOnEnd: true}))
		n.vault.FailNext("pki/revoke", 3, vaulttest.Fault{Status: 500})
		n.vault.Sealed(true)
		n.end("p")
		time.Sleep(20 * time.Minute)
		n.vault.Sealed(false)
		time.Sleep(5 * time.Minute)
		n.expect("Vault is back", 0, 0, 0)
		if live := n.certificates(); live != 0 {
			t.Errorf("%d live on", live)
		}
	})
}

// TestTokenLostBeforeTheEnd: what cannot be revoked any more is told of.
func TestTokenLostBeforeTheEnd(t *testing.T) {
	for name, lose := range map[string]func(*node){
		"revoked": func(n *node) { n.vault.RevokeAccessor(n.vault.Tokens()[0].Accessor) },
		"ended":   func(n *node) { n.vault.Sealed(true); time.Sleep(2 * time.Hour); n.vault.Sealed(false) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				n.vault.PKI(issue, false)
				n.mount(withCertificate(n.request("p"), 10*time.Hour, spec.Care{RevokeOnEnd: true}))
				lose(n)
				n.end("p")
				time.Sleep(5 * time.Minute)
				if live := n.certificates(); live != 1 || !n.had("CertificateKept") || n.states() != "" {
					t.Errorf("%d live, states %q\n%s", live, n.states(), n.log)
				}
			})
		})
	}
}

// TestBrakesHoldCertificatesToo: what lets leases run out lets certificates.
func TestBrakesHoldCertificatesToo(t *testing.T) {
	synced := func(c *keeper.Config) {
		c.Synced = func(context.Context, string, string) ([]string, error) { return []string{"tls.crt"}, nil }
	}
	for name, test := range map[string]struct {
		configure func(*keeper.Config)
		change    func(*spec.Spec)
		event     string
		refused   bool
		revoked   bool
	}{
		"revoke=log":       {func(c *keeper.Config) { c.Revoke = keeper.RevokeLog }, func(*spec.Spec) {}, "", false, false},
		"revoke=off":       {func(c *keeper.Config) { c.Revoke = keeper.RevokeOff }, func(*spec.Spec) {}, "", false, false},
		"onPodEnd: expire": {nil, func(s *spec.Spec) { s.OnPodEnd = spec.ExpireOnPodEnd }, "", false, false},
		"synced: expire":   {synced, func(s *spec.Spec) { s.SyncedLeases = spec.ExpireSynced }, "SyncedLease", false, false},
		"synced: revoke":   {synced, func(s *spec.Spec) { s.SyncedLeases = spec.RevokeSynced }, "", false, true},
		"synced: refuse":   {synced, func(s *spec.Spec) { s.SyncedLeases = spec.RefuseSynced }, "", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				n.reconfigure(test.configure)
				n.vault.PKI(issue, false)
				req := withCertificate(n.request("p"), 10*time.Hour, spec.Care{RevokeOnEnd: true})
				test.change(&req.Spec)
				for range 3 {
					if _, err := n.keeper.Acquire(t.Context(), req); (err != nil) != test.refused {
						t.Fatalf("mounted: %v", err)
					}
				}
				n.end("p")
				time.Sleep(3 * time.Hour)
				if live := n.certificates(); (live == 0) != test.revoked || n.vault.Count(issue) != 1 || n.had("CertificateKept") {
					t.Errorf("%d live of %d, told: %s", live, n.vault.Count(issue), n.log)
				}
				if test.event != "" && !n.had(test.event) {
					t.Errorf("no %s", test.event)
				}
			})
		})
	}
}
