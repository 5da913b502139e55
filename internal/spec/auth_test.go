package spec_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// TestParseMethod: what a class logs in by, and what of the pod's Secret it is that logs in.
func TestParseMethod(t *testing.T) {
	const roleName, roleID, method = "roleName", "roleId", "authMethod"
	held := map[string]string{"secretId": "id-canary", "tls.crt": "cert-canary", "tls.key": "key-canary"}
	for _, test := range []struct {
		name         string
		params       map[string]string
		want         spec.Auth
		jwt, id, pem string
	}{
		{"by default", map[string]string{roleName: "r"}, spec.Auth{Mount: "flag", Role: "r"}, jwt, "", ""},
		{"kubernetes", map[string]string{roleName: "r", method: "kubernetes"}, spec.Auth{Mount: "flag", Role: "r"}, jwt, "", ""},
		{"jwt", map[string]string{roleName: "r", method: "jwt", "vaultAuthMountPath": "jwt"}, spec.Auth{Mount: "jwt", Role: "r"}, jwt, "", ""},
		{"role-id", map[string]string{roleID: "i"}, spec.Auth{Method: spec.AppRole, Mount: "approle", RoleID: "i"}, "", "id-canary", ""},
		{"approle", map[string]string{roleID: "i", method: "approle"}, spec.Auth{Method: spec.AppRole, Mount: "approle", RoleID: "i"}, "", "id-canary", ""},
		{"cert", map[string]string{method: "cert"}, spec.Auth{Method: spec.Cert, Mount: "cert"}, "", "", "cert-canary\nkey-canary"},
		{"cert, with role and mount", map[string]string{method: "cert", roleName: "r", "vaultAuthMountPath": "team/cert"},
			spec.Auth{Method: spec.Cert, Mount: "team/cert", Role: "r"}, "", "", "cert-canary\nkey-canary"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := validCall()
			c.defaults.AuthMount, c.secrets = "flag", held
			delete(c.params, roleName)
			maps.Copy(c.params, test.params)
			req := c.mustParse(t)
			if req.Spec.Auth != test.want {
				t.Errorf("got  %+v\nwant %+v", req.Spec.Auth, test.want)
			}
			if j, id, pair := req.JWT.Reveal(), req.SecretID.Reveal(), req.Spec.Server.Pair.Reveal(); j != test.jwt || id != test.id || pair != test.pem {
				t.Errorf("JWT %q, secret-id %q, pair %q", j, id, pair)
			}
		})
	}
}

func TestParseMethodFaults(t *testing.T) {
	for _, test := range []struct {
		name    string
		change  func(*call)
		secrets map[string]string
		want    string
	}{
		{"unknown", param("authMethod", "ldap"), nil, `authMethod "ldap" is none of ["approle" "cert" "jwt" "kubernetes"]`},
		{"another than the role-id's", func(c *call) { c.params["authMethod"], c.params["roleId"] = "cert", "i" }, nil, "roleId and authMethod approle belong together"},
		{"no role-id", param("authMethod", "approle"), nil, "roleId and authMethod approle belong together"},
		{"half a pair", param("authMethod", "cert"), map[string]string{"tls.crt": "canary"}, "the Secret of nodePublishSecretRef holds only one of tls.crt and tls.key"},
		{"the other half", param("authMethod", "cert"), map[string]string{"tls.key": "canary"}, "the Secret of nodePublishSecretRef holds only one of tls.crt and tls.key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := validCall()
			c.secrets = test.secrets
			test.change(c)
			_, err := c.parse(t)
			if got := faults(t, err); !slices.ContainsFunc(got, func(f string) bool { return strings.HasPrefix(f, test.want) }) || strings.Contains(err.Error(), "canary") {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestOwnPairLogsInWhereListedOnly: the provider's own certificate is not even shown where the operator does not let the pod's namespace
// log in with it.
func TestOwnPairLogsInWhereListedOnly(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*call)
		shown  bool
		warned bool
	}{
		{"another method", func(*call) {}, true, false},
		{"not listed", param("authMethod", "cert"), false, false},
		{"another is listed", func(c *call) {
			c.params["authMethod"], c.defaults.Rules.CertNamespaces = "cert", []string{"shopping", "*"}
		}, false, false},
		{"listed", func(c *call) { c.params["authMethod"], c.defaults.Rules.CertNamespaces = "cert", []string{"shop"} }, true, false},
		{"named by the class", func(c *call) {
			c.params["authMethod"], c.params["vaultTLSClientCertPath"], c.params["vaultTLSClientKeyPath"] = "cert", "/tls/crt", "/tls/key"
		}, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := validCall()
			c.defaults.Server.ClientCert, c.defaults.Server.ClientKey = "/own/crt", "/own/key"
			test.change(c)
			req := c.mustParse(t)
			if s := req.Spec.Server; (s.ClientCert != "") != test.shown || (s.ClientKey != "") != test.shown {
				t.Errorf("certificate %q, key %q", s.ClientCert, s.ClientKey)
			}
			warned := slices.ContainsFunc(req.Warnings, func(w string) bool { return strings.Contains(w, "--cert-auth-namespaces") })
			if warned != test.warned {
				t.Errorf("warnings %q", req.Warnings)
			}
		})
	}
}

// TestPairIsNoPartOfTheWish: a certificate is renewed long before the pod ends.
func TestPairIsNoPartOfTheWish(t *testing.T) {
	c := validCall()
	c.params["authMethod"] = "cert"
	c.secrets = map[string]string{"tls.crt": "a", "tls.key": "a"}
	before := c.mustParse(t)
	c.secrets = map[string]string{"tls.crt": "b", "tls.key": "b"}
	if after := c.mustParse(t); after.Spec.Digest != before.Spec.Digest || after.Spec.Server == before.Spec.Server {
		t.Error("another pair is another wish, or is not seen")
	}
}
