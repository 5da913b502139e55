//nolint:forbidigo // sleeps inside synctest bubbles only
package provider_test

import (
	"context"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

func TestVersion(t *testing.T) {
	bubble(t, 0, func(n *node) {
		v, err := n.client.Version(context.Background(), &v1alpha1.VersionRequest{Version: "v1alpha1"})
		if err != nil || v.GetVersion() != "v1alpha1" || v.GetRuntimeName() != "leasehold" || v.GetRuntimeVersion() != "v1.2.3" {
			t.Errorf("%v, %v", v, err)
		}
	})
}

func TestFirstMountAndRepublish(t *testing.T) {
	bubble(t, 0, func(n *node) {
		files, versions := n.mount(n.validCall())
		users := n.vault.Users()
		if len(users) != 1 || files["db_user"] != users[0].Name || files["db_pass"] == "" || len(files) != 2 {
			t.Fatalf("files %q for users %v", files, users)
		}
		once := map[string]int{"PUT auth/kubernetes/login": 1, "GET database/creds/my-app": 1}
		n.checkCount(once)
		requests := len(n.vault.Requests())

		again := n.validCall()
		again.params[tokensKey] = `{"vault":{"token":"the next token of kubelet's"}}`
		files2, versions2 := n.mount(again)
		if !maps.Equal(files, files2) || !maps.Equal(versions, versions2) {
			t.Errorf("a republish changed the volume: %q, %q", files2, versions2)
		}
		if got := len(n.vault.Requests()) - requests; got != 0 {
			t.Errorf("a republish sent %d requests to Vault", got)
		}
		if !strings.Contains(n.told.String(), "logged in") {
			t.Errorf("the log at debug level is silent, so it proves nothing:\n%s", n.told.String())
		}
		n.end()
		n.checkEmpty()
	})
}

func TestCredentialsOutliveTheirFirstTTL(t *testing.T) {
	bubble(t, 0, func(n *node) {
		files, _ := n.mount(n.validCall())
		for range 5 {
			time.Sleep(time.Hour)
			if again, _ := n.mount(n.validCall()); !maps.Equal(again, files) || len(n.vault.Users()) != 1 {
				t.Fatalf("now %q for users %v", again, n.vault.Users())
			}
		}
		n.end()
		n.checkEmpty()
	})
}

func TestVersionsChangeWithTheirFile(t *testing.T) {
	bubble(t, 0, func(n *node) {
		n.vault.KV1("secret/other", map[string]any{"password": kvValue})
		c := n.validCall()
		c.params["objects"] = "- {objectName: a, secretPath: secret/data/app, secretKey: password}\n- {objectName: b, secretPath: secret/other, secretKey: password}"
		_, before := n.mount(c)
		if before["a"] == before["b"] {
			t.Error("two files of the same content have one version: it tells that they are the same")
		}
		n.vault.KV2("secret/data/app", map[string]any{"password": "another value"})
		time.Sleep(3 * time.Minute)
		files, after := n.mount(c)
		if files["a"] != "another value" || after["a"] == before["a"] || after["b"] != before["b"] {
			t.Errorf("files %q, versions %v, before %v", files, after, before)
		}
	})
}

// TestVersionsOfNodesThatShareAKey: the same files have the same versions on all of them.
func TestVersionsOfNodesThatShareAKey(t *testing.T) {
	bubble(t, 0, func(n *node) {
		other := newNode(n.t, 0)
		versions := func(n *node) map[string]string {
			c := n.validCall()
			c.params["objects"] = "- {objectName: a, secretPath: secret/data/app, secretKey: password}\n- {objectName: all, secretPath: secret/data/app}"
			_, versions := n.mount(c)
			return versions
		}
		first := versions(n)
		if a, b := versions(n)["a"], versions(other)["a"]; a == b {
			t.Errorf("versions %q and %q under different keys", a, b)
		}
		for _, n := range []*node{n, other} {
			if err := n.store.SetVersionKey([]byte("shared")); err != nil {
				t.Fatal(err)
			}
		}
		if a, b := versions(n), versions(other); !maps.Equal(a, b) || a["a"] == first["a"] {
			t.Errorf("versions %v and %v under one key, %v before", a, b, first)
		}
	})
}

// TestSlowVault holds the read for less than a Mount waits.
func TestSlowVault(t *testing.T) {
	bubble(t, 0, func(n *node) {
		hold := n.vault.Hold("GET database/creds/my-app", vaulttest.BeforeEffect)
		time.AfterFunc(30*time.Second, hold.Release)
		n.mount(n.validCall())
	})
}

// TestPatience holds the read for ever: Mount answers before its caller gives up, and the next finds what the first began.
func TestPatience(t *testing.T) {
	tests := []struct {
		name    string
		timeout time.Duration // of the caller; zero for none
		want    time.Duration
	}{
		{"caller without a deadline", 0, time.Minute},
		{"kubelet", 2 * time.Minute, time.Minute},
		{"an impatient caller", 20 * time.Second, 15 * time.Second},
		{"a very impatient caller", 6 * time.Second, 3 * time.Second},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, 0, func(n *node) {
				hold := n.vault.Hold("GET database/creds/my-app", vaulttest.AfterEffect)
				ctx := context.Background()
				if test.timeout > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.timeout)
					defer cancel()
				}
				begin := time.Now()
				_, failure := n.try(ctx, n.validCall())
				if took := time.Since(begin); took != test.want {
					t.Errorf("answered after %s, want %s", took, test.want)
				}
				if failure.Code() != codes.FailedPrecondition || !strings.Contains(failure.Message(), "Vault has not answered yet") {
					t.Errorf("%s: %s", failure.Code(), failure.Message())
				}
				checkNames(t, n, failure.Message())
				hold.Release()
				synctest.Wait()
				if n.mount(n.validCall()); len(n.vault.Users()) != 1 {
					t.Errorf("users %v", n.vault.Users())
				}
			})
		})
	}
}

// TestCallerGoesAway cuts the call off during the read: its credentials are not lost.
func TestCallerGoesAway(t *testing.T) {
	bubble(t, 0, func(n *node) {
		hold := n.vault.Hold("GET database/creds/my-app", vaulttest.MidEffect)
		ctx, cancel := context.WithCancel(context.Background())
		go func() { hold.Wait(); cancel() }()
		if _, failure := n.try(ctx, n.validCall()); failure.Code() != codes.Canceled {
			t.Errorf("the caller gave up and was told %s", failure.Code())
		}
		hold.Release()
		synctest.Wait()
		n.mount(n.validCall())
		n.checkCount(map[string]int{"PUT auth/kubernetes/login": 1, "GET database/creds/my-app": 1})
		n.end()
		n.checkEmpty()
	})
}

func TestLeaving(t *testing.T) {
	bubble(t, 0, func(n *node) {
		hold := n.vault.Hold("GET database/creds/my-app", vaulttest.BeforeEffect)
		go func() { hold.Wait(); n.keeper.Leave() }()
		if got := n.refused(n.validCall(), codes.FailedPrecondition); !strings.Contains(got, "being restarted") {
			t.Errorf("%q", got)
		}
		hold.Release()
		if err := n.keeper.Drain(context.Background()); err != nil {
			t.Error(err)
		}
		n.mount(n.validCall()) // what the work brought is answered even then
	})
}

// TestVolumeOfNothing: the driver takes an answer without versions for an error, and one without files for an empty volume.
func TestVolumeOfNothing(t *testing.T) {
	bubble(t, 0, func(n *node) {
		n.vault.KV2("secret/data/there", nil)
		c := n.validCall()
		c.params["objects"] = "- {objectName: a, secretPath: secret/data/absent, optional: true}"
		resp, err := n.service.Mount(n.t.Context(), c.request(n.t))
		if err != nil || len(resp.GetFiles()) != 0 || len(resp.GetObjectVersion()) != 1 {
			n.t.Errorf("%v, %v", resp, err)
		}
	})
}
