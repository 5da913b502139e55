//nolint:forbidigo // sleeps inside synctest bubbles only
package provider_test

import (
	"crypto/x509"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
	"github.com/leasehold-csi/leasehold/provider"
)

// checkNames finds what a person needs in order to know whose login failed, and where.
func checkNames(t *testing.T, n *node, message string) {
	t.Helper()
	for _, name := range []string{n.vault.URL, `auth mount "kubernetes`, "my-app-role", "shop/app-sa"} {
		if !strings.Contains(message, name) {
			t.Errorf("the message does not name %s: %s", name, message)
		}
	}
}

func param(key, value string) func(*node, *call) {
	return func(_ *node, c *call) {
		if value == "" {
			delete(c.params, key)
		} else {
			c.params[key] = value
		}
	}
}

// path asks for one whole answer.
func path(path string) func(*node, *call) {
	return param("objects", "- {objectName: x, secretPath: "+path+"}")
}

// raw asks for an answer that might be Vault's.
func raw(status int, contentType, body string) func(*node, *call) {
	return func(n *node, c *call) {
		n.vault.Raw("raw/x", status, contentType, body)
		path("raw/x")(n, c)
	}
}

// fail answers requests with a fault for ever.
func fail(match string, f vaulttest.Fault) func(*node, *call) {
	return func(n *node, _ *call) { n.vault.FailNext(match, 1000, f) }
}

func object(name string) func(*node, *call) {
	return param("objects", `- {objectName: "`+name+`", secretPath: secret/data/app}`)
}

const (
	loginRequest = "PUT auth/kubernetes/login"
	readRequest  = "GET database/creds/my-app"
)

// TestBadInput: each fault is answered with one clear sentence and a final code, and leaves nothing in Vault once the pod is
// gone.
func TestBadInput(t *testing.T) {
	tests := []struct {
		name   string
		change func(*node, *call)
		code   codes.Code
		say    string
	}{
		{"no role", param("roleName", ""), codes.InvalidArgument, "roleName is missing"},
		{"objects missing", param("objects", ""), codes.InvalidArgument, "objects is missing"},
		{"objects empty", param("objects", "[]"), codes.InvalidArgument, "objects is empty"},
		{"objects not a list", param("objects", "a: b"), codes.InvalidArgument, "objects is not a YAML list"},
		{"objects not YAML", param("objects", "- [a"), codes.InvalidArgument, "objects is not valid YAML"},
		{"objectName twice", param("objects", objects+objects), codes.InvalidArgument, "is given more than once"},
		{"objectName absolute", object("/etc/passwd"), codes.InvalidArgument, "is an absolute path"},
		{"objectName climbs", object("../x"), codes.InvalidArgument, `holds ".."`},
		{"objectName unclean", object("a//b"), codes.InvalidArgument, "is not a clean path"},
		{"objectName too long", object(strings.Repeat("n", 256)), codes.InvalidArgument, "255 bytes"},
		{"malformed attributes", func(_ *node, c *call) { c.attributes = "{" }, codes.InvalidArgument, "the attributes are not a JSON object"},
		{"another pod's target", func(_ *node, c *call) { c.target = strings.Replace(c.target, "0f8a-11", "other", 1) }, codes.InvalidArgument, `belongs to pod UID "other"`},
		{"no service account token", param(tokensKey, ""), codes.FailedPrecondition, `there is no rule for it; kubelet sends one when tokenRequests in the CSIDriver object secrets-store.csi.k8s.io list audience "vault" (`},
		{"token for another audience", param("audience", "elsewhere"), codes.FailedPrecondition, `audience "elsewhere"`},
		{"secretKey not in the answer", param("objects", "- {objectName: x, secretPath: database/creds/my-app, secretKey: passwort}"), codes.FailedPrecondition, `has no key "passwort"`},
		{"answer larger than a message", raw(200, "application/json", `{"data":{"x":"`+strings.Repeat("x", 5<<20)+`"}}`), codes.FailedPrecondition, "larger than 4 MiB"},
		{"files larger than a message", raw(200, "application/json", `{"data":{"x":"`+strings.Repeat("x", 4<<20-64<<10)+`"}}`), codes.FailedPrecondition, "larger than"},
		{"answer with a token", func(n *node, c *call) { n.vault.Auth("raw/x", vaulttest.Role{}); path("raw/x")(n, c) }, codes.FailedPrecondition, "the answer is a Vault token"},
		{"unusable CA file", param("vaultCACertPath", "/nonexistent/ca.crt"), codes.FailedPrecondition, "check vaultAddress and the TLS files"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, 0, func(n *node) {
				c := n.validCall()
				test.change(n, c)
				if got := n.refused(c, test.code); !strings.Contains(got, test.say) || strings.Contains(got, "\n") {
					t.Errorf("%q\nwant a sentence with %q", got, test.say)
				}
				n.end()
				n.checkEmpty()
			})
		})
	}
}

// TestVaultsFaults: whatever Vault does, the answer is final, says what Vault said, whose login it was and what to check.
func TestVaultsFaults(t *testing.T) {
	tests := []struct {
		name   string
		change func(*node, *call)
		code   codes.Code
		say    string
	}{
		{"unknown role", param("roleName", "my-app-role-2"), codes.InvalidArgument, `Vault said 400 "invalid role name \"my-app-role-2\""`},
		{"wrong service account", func(n *node, _ *call) {
			n.vault.Role("my-app-role", vaulttest.Role{ServiceAccounts: []string{"other"}})
		},
			codes.PermissionDenied, "service account name not authorized"},
		{"wrong service account, kubelet's token", func(n *node, _ *call) {
			n.vault.Role("my-app-role", vaulttest.Role{ServiceAccounts: []string{"other"}})
		},
			codes.PermissionDenied, `add "app-sa" to bound_service_account_names of role "my-app-role"`},
		{"wrong service account, a requested token", func(n *node, c *call) {
			n.vault.Role("my-app-role", vaulttest.Role{ServiceAccounts: []string{"other"}})
			n.requested = secret.New(n.vault.JWT("shop", "app-sa", "app"))
			delete(c.params, tokensKey)
		},
			codes.PermissionDenied, `add "app-sa" to bound_service_account_names of role "my-app-role"`},
		{"no such mount", param("vaultAuthMountPath", "kubernetes-2"), codes.PermissionDenied, "check that the auth mount exists"},
		{"login not found", fail(loginRequest, vaulttest.Fault{Status: 404}), codes.NotFound, "check the name of the auth mount"},
		{"login without content", fail(loginRequest, vaulttest.Fault{Status: 200, Body: " "}), codes.FailedPrecondition, "without content"},
		{"login without a token", fail(loginRequest, vaulttest.Fault{Status: 200, Body: "{}"}), codes.FailedPrecondition, "that the auth mount is one for Kubernetes"},
		{"login cut off", fail(loginRequest, vaulttest.Fault{}), codes.FailedPrecondition, "what cut the connection"},

		{"no permission", path("elsewhere/x"), codes.PermissionDenied, `add to a policy of role "my-app-role": path "elsewhere/x" { capabilities = ["read"] }`},
		{"token gone", fail(readRequest, vaulttest.Fault{Status: 403, Body: `{"errors":["permission denied","invalid token"]}`}), codes.PermissionDenied, "the next try makes a new one"},
		{"unknown path", path("secret/data/none"), codes.NotFound, "check the path"},
		{"unknown database role", path("database/creds/none"), codes.InvalidArgument, "unknown role: none"},
		{"204", raw(204, "", ""), codes.FailedPrecondition, "without content"},
		{"empty", raw(200, "application/json", ""), codes.FailedPrecondition, "without content"},
		{"not JSON", raw(200, "text/html", "<html>canary of a plain secret</html>"), codes.FailedPrecondition, "not Vault's JSON"},
		{"back end down", func(n *node, _ *call) { n.vault.BackendDown(true) }, codes.FailedPrecondition, `Vault reaches the back end of "database/creds/my-app"`},
		{"not an error of Vault's", fail(readRequest, vaulttest.Fault{Status: 502, Body: "<html>canary of a plain secret</html>"}), codes.FailedPrecondition, "502 Bad Gateway"},
		{"lease gone", fail(readRequest, vaulttest.Fault{Status: 400, Body: `{"errors":["lease not found"]}`}), codes.FailedPrecondition, "lease not found"},
		{"cannot be renewed", fail(readRequest, vaulttest.Fault{Status: 400, Body: `{"errors":["lease is not renewable"]}`}), codes.FailedPrecondition, "not renewable"},
		{"failed to renew", fail(readRequest, vaulttest.Fault{Status: 400, Body: `{"errors":["failed to renew entry: x"]}`}), codes.FailedPrecondition, "failed to renew"},

		{"unreachable", func(n *node, _ *call) { n.vault.Down(true) }, codes.FailedPrecondition, "check the address, the port in it"},
		{"sealed", func(n *node, _ *call) { n.vault.Sealed(true) }, codes.FailedPrecondition, "unseal Vault"},
		{"no leader", func(n *node, _ *call) { n.vault.Standby(true) }, codes.FailedPrecondition, "why Vault has no leader"},
		{"forwards elsewhere", fail("", vaulttest.Fault{Status: 307, Header: http.Header{"Location": {"http://other:8200"}}}), codes.FailedPrecondition, "use the address of the active node"},
		{"rate limited", fail("", vaulttest.Fault{Status: 429}), codes.FailedPrecondition, "raise Vault's lease count quota"},
		{"not trusted", func(n *node, _ *call) {
			n.wire = func(*http.Request) (*http.Response, error) { return nil, x509.UnknownAuthorityError{} }
		}, codes.FailedPrecondition, "set vaultCACertPath"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, 0, func(n *node) {
				c := n.validCall()
				test.change(n, c)
				got := n.refused(c, test.code)
				if !strings.Contains(got, test.say) || strings.Contains(got, "\n") {
					t.Errorf("%q\nwant a sentence with %q", got, test.say)
				}
				checkNames(t, n, got)
			})
		})
	}
}

// TestRecovery: once the fault is over, the next try mounts, with the login that there is.
func TestRecovery(t *testing.T) {
	tests := []struct {
		name       string
		harm, heal func(*node)
	}{
		{"unreachable", func(n *node) { n.vault.Down(true) }, func(n *node) { n.vault.Down(false) }},
		{"sealed", func(n *node) { n.vault.Sealed(true) }, func(n *node) { n.vault.Sealed(false) }},
		{"back end down", func(n *node) { n.vault.BackendDown(true) }, func(n *node) { n.vault.BackendDown(false) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, 0, func(n *node) {
				test.harm(n)
				n.refused(n.validCall(), codes.FailedPrecondition)
				test.heal(n)
				time.Sleep(time.Minute)
				n.mount(n.validCall())
				if tokens := n.vault.Tokens(); len(tokens) != 1 {
					t.Errorf("%d tokens were issued", len(tokens))
				}
				n.end()
				n.checkEmpty()
			})
		})
	}
}

// TestRefusalsHaveAReason: each refused call is told of once, for one of the known reasons.
func TestRefusalsHaveAReason(t *testing.T) {
	tests := []struct {
		reason string
		change func(*node, *call)
		room   int64 // of the store; 0 for the default
	}{
		{"class", param("roleName", ""), 0},
		{"class", func(_ *node, c *call) { c.attributes = "{" }, 0},
		{"no_token", param(tokensKey, ""), 0},
		{"denied", fail(loginRequest, vaulttest.Fault{Status: 403}), 0},
		{"failing", fail(readRequest, vaulttest.Fault{Status: 500}), 0},
		{"unreachable", func(n *node, _ *call) { n.vault.Down(true) }, 0},
		{"store_full", func(*node, *call) {}, 1000},
		{"other", param("objects", "- {objectName: x, secretPath: database/creds/my-app, secretKey: passwort}"), 0},
	}
	for _, test := range tests {
		t.Run(test.reason, func(t *testing.T) {
			bubble(t, test.room, func(n *node) {
				c := n.validCall()
				test.change(n, c)
				if _, refused := n.try(n.t.Context(), c); refused.Code() == codes.OK || !slices.Equal(n.reasons, []string{test.reason}) {
					t.Errorf("%v, and told of %q, want %q once", refused, n.reasons, test.reason)
				}
				if !slices.Contains(provider.Reasons(), test.reason) {
					t.Errorf("%q is none of the known reasons", test.reason)
				}
				n.vault.Down(false)
				n.end()
			})
		})
	}
}

// TestFailedRefreshKeepsTheContent: a volume that was filled stays filled.
func TestFailedRefreshKeepsTheContent(t *testing.T) {
	bubble(t, 0, func(n *node) {
		c := n.validCall()
		path("secret/data/app")(n, c)
		before, _ := n.mount(c)
		n.vault.Down(true)
		time.Sleep(10 * time.Minute)
		if after, _ := n.mount(c); after["x"] != before["x"] {
			t.Errorf("now %q", after)
		}
		if told := n.told.String(); !strings.Contains(told, "RefreshFailed") || !strings.Contains(told, "check the address, the port in it") {
			t.Error("no event tells of the failed refresh, with the next step")
		}
	})
}

// TestRefusedClassIsToldOfARunningPod: the driver hides what a republish is refused for.
func TestRefusedClassIsToldOfARunningPod(t *testing.T) {
	bubble(t, 0, func(n *node) {
		c := n.validCall()
		param("roleName", "")(n, c)
		n.refused(c, codes.InvalidArgument)
		if strings.Contains(n.told.String(), "RefreshFailed") {
			t.Error("told of a volume that shows nothing yet: kubelet tells that")
		}
		c = n.validCall()
		n.mount(c)
		param("roleName", "")(n, c)
		n.refused(c, codes.InvalidArgument)
		if !strings.Contains(n.told.String(), "RefreshFailed") {
			t.Error("no event tells of it")
		}
	})
}

func TestFullStoreAsksVaultForNothing(t *testing.T) {
	bubble(t, 1000, func(n *node) {
		if got := n.refused(n.validCall(), codes.FailedPrecondition); !strings.Contains(got, "--state-max") {
			t.Errorf("%q", got)
		}
		n.checkCount(map[string]int{})
	})
}
