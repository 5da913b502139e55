package keeper_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

// pair is a certificate with its key, in PEM.
func pair() string {
	cert, key := vaulttest.Pair("app", time.Hour)
	return cert + key
}

// byCert has a pod log in by certificate.
func (n *node) byCert(pair string) *spec.Request {
	n.vault.Role("app", vaulttest.Role{Mount: "cert", Cert: true, TTL: time.Hour, MaxTTL: 4 * time.Hour})
	req := n.request("p", wantCreds...)
	req.Spec.Auth = spec.Auth{Method: spec.Cert, Mount: "cert"}
	req.JWT, req.Spec.Server.Pair = secretless, secret.New(pair)
	return req
}

func TestCertificateLogsIn(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		req := n.byCert(pair())
		n.mountForADay(req)
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}

// TestNewCertificateIsTakenOver: the token is renewed with what the pod's Secret holds now, also by another process, and with what it
// held last when there is no Secret any more.
func TestNewCertificateIsTakenOver(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		first, second := pair(), pair()
		req := n.byCert(first)
		for _, text := range []string{first, second, ""} {
			req.Spec.Server.Pair = secret.New(text)
			n.mount(req)
			n.stop()
			n.start()
			grants, err := n.keeper.Grants()
			want := text
			if text == "" {
				want = second
			}
			if err != nil || len(grants) != 1 || grants[0].Server.Pair.Reveal() != want {
				t.Errorf("%d grants, %v; or another certificate", len(grants), err)
			}
		}
		n.expect("mounted three times", 1, 1, 1)
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}

// TestUnusableCertificateIsNotTakenOver: with half a certificate the token could be neither renewed nor given back.
func TestUnusableCertificateIsNotTakenOver(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		good := pair()
		req := n.byCert(good)
		n.mount(req)
		req.Spec.Server.Pair = secret.New(good[:len(good)/2])
		n.mount(req)
		if !n.had("RefreshFailed") {
			t.Error("nobody was told")
		}
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
		if s := n.states(); s != "" {
			t.Errorf("the store still holds %s", s)
		}
	})
}

// TestNoCertificate: nothing is asked of Vault for a pod that brings none, unless it may use the provider's own and is the pod that
// it says it is.
func TestNoCertificate(t *testing.T) {
	own := filepath.Join(t.TempDir(), "own.pem")
	if err := os.WriteFile(own, []byte(pair()), 0o600); err != nil {
		t.Fatal(err)
	}
	impostor := errors.New("the pod of that UID is another one")
	for _, test := range []struct {
		name     string
		own      string
		identify func(context.Context, spec.Pod) error
		want     error
	}{
		{"none at all", "", nil, keeper.ErrNoCertificate},
		{"the provider's, of nobody knows who", own, nil, keeper.ErrNoCertificate},
		{"the provider's, of an impostor", own, func(context.Context, spec.Pod) error { return impostor }, impostor},
		{"the provider's", own, func(context.Context, spec.Pod) error { return nil }, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				n.reconfigure(func(c *keeper.Config) { c.Identify = test.identify })
				req := n.byCert("")
				req.Spec.Server.ClientCert, req.Spec.Server.ClientKey = test.own, test.own
				if _, err := n.keeper.Acquire(t.Context(), req); !errors.Is(err, test.want) {
					t.Fatalf("got %v", err)
				}
				if c := n.vault.Count("auth/cert/login"); (c > 0) != (test.want == nil) {
					t.Errorf("%d logins", c)
				}
				n.end("p")
				n.expect("pod ended", 0, 0, 0)
			})
		})
	}
}
