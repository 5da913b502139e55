//nolint:forbidigo // sleeps inside synctest bubbles only
package keeper_test

import (
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

const unwrap = "sys/wrapping/unwrap"

// byAppRole has a pod log in by AppRole.
func (n *node) byAppRole(id string, wrapped bool) *spec.Request {
	req := n.request("p", wantCreds...)
	req.Spec.Auth = spec.Auth{Method: spec.AppRole, RoleID: "role-id", Mount: "approle"}
	req.JWT, req.SecretID, req.Wrapped = secretless, secret.New(id), wrapped
	return req
}

func TestAppRole(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.AppRole("role-id", vaulttest.Role{TTL: time.Hour, MaxTTL: 4 * time.Hour})
		n.mountForADay(n.byAppRole(n.vault.SecretID("role-id"), false))
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}

// TestWrappedSecretIDIsUnwrappedOnce: the logins after the first go without the wrapping token, also in another process, and also
// when the first login failed.
func TestWrappedSecretIDIsUnwrappedOnce(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.AppRole("role-id", vaulttest.Role{TTL: time.Hour, MaxTTL: 4 * time.Hour})
		req := n.byAppRole(n.vault.Wrap(n.vault.SecretID("role-id")), true)
		n.vault.FailNext("auth/approle/login", 1, vaulttest.Fault{Status: 500, Body: `{"errors":["internal error"]}`})
		if _, err := n.keeper.Acquire(t.Context(), req); err == nil {
			t.Fatal("the login did not fail")
		}
		for range 12 {
			n.stop()
			n.start()
			for range 60 {
				if !n.lives(n.mount(req)[0]) {
					t.Fatalf("the volume shows credentials that are dead\n%s", n.log)
				}
				time.Sleep(time.Minute)
			}
		}
		if c := n.vault.Count(unwrap); c != 1 {
			t.Errorf("unwrapped %d times", c)
		}
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
		if s := n.states(); s != "" {
			t.Errorf("the store still holds %s", s)
		}
	})
}

// TestRefusedSecretIDIsForgotten: a new one in the pod's Secret takes its place.
func TestRefusedSecretIDIsForgotten(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.AppRole("role-id", vaulttest.Role{TTL: time.Hour})
		req := n.byAppRole(n.vault.Wrap(n.vault.SecretID("role-id")), true)
		n.vault.WithdrawSecretIDs()
		for range 2 {
			if _, err := n.keeper.Acquire(t.Context(), req); err == nil {
				t.Fatal("a secret-id that was withdrawn logged in")
			}
			time.Sleep(time.Second)
		}
		req.SecretID = secret.New(n.vault.Wrap(n.vault.SecretID("role-id")))
		n.mount(req)
		n.expect("mounted", 1, 1, 1)
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}

// TestRefusedSecretIDOfARunningPodIsForgotten: the grant that the volume shows hands it on to the next.
func TestRefusedSecretIDOfARunningPodIsForgotten(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.vault.AppRole("role-id", vaulttest.Role{TTL: time.Hour, MaxTTL: 4 * time.Hour})
		req := n.byAppRole(n.vault.Wrap(n.vault.SecretID("role-id")), true)
		n.mount(req)
		n.vault.WithdrawSecretIDs()
		req.SecretID = secret.New(n.vault.Wrap(n.vault.SecretID("role-id")))
		for range 10 * 60 {
			if !n.lives(n.mount(req)[0]) {
				t.Fatalf("the volume shows credentials that are dead\n%s", n.log)
			}
			time.Sleep(time.Minute)
		}
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}
