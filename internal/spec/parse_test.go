package spec_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

const (
	jwt     = "jwt-canary"
	objects = `
- objectName: "db_user"
  secretPath: "database/creds/my-app"
  secretKey: "username"
- objectName: "db_pass"
  secretPath: "database/creds/my-app"
  secretKey: "password"
`
	tokensKey = "csi.storage.k8s.io/serviceAccount.tokens"
)

// call is one valid Mount call, for tests to change.
type call struct {
	params, secrets    map[string]string
	target, permission string
	defaults           spec.Defaults
}

func validCall() *call {
	return &call{
		params: map[string]string{
			"roleName":                               "my-app-role",
			"objects":                                objects,
			"secretProviderClass":                    "vault-db-creds",
			"csi.storage.k8s.io/pod.name":            "app",
			"csi.storage.k8s.io/pod.namespace":       "shop",
			"csi.storage.k8s.io/pod.uid":             "0f8a-11",
			"csi.storage.k8s.io/serviceAccount.name": "app-sa",
			"csi.storage.k8s.io/ephemeral":           "true",
			tokensKey:                                `{"vault":{"token":"` + jwt + `","expirationTimestamp":"2026-01-01T00:00:00Z"},"other":{"token":"other-jwt"}}`,
		},
		target:     "/var/lib/kubelet/pods/0f8a-11/volumes/kubernetes.io~csi/creds/mount",
		permission: "420",
		defaults:   spec.Defaults{Server: spec.Server{Address: "https://vault:8200"}, AuthMount: "kubernetes"},
	}
}

func (c *call) input(t testing.TB) spec.Input {
	t.Helper()
	attributes, err := json.Marshal(c.params)
	if err != nil {
		t.Fatal(err)
	}
	secrets, err := json.Marshal(c.secrets)
	if err != nil {
		t.Fatal(err)
	}
	return spec.Input{Attributes: string(attributes), Secrets: string(secrets), TargetPath: c.target, Permission: c.permission}
}

func (c *call) parse(t *testing.T) (*spec.Request, error) {
	t.Helper()
	return spec.Parse(c.input(t), c.defaults)
}

func (c *call) mustParse(t *testing.T) *spec.Request {
	t.Helper()
	req, err := c.parse(t)
	if err != nil {
		t.Fatalf("refused: %v", err)
	}
	return req
}

func faults(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		t.Fatal("accepted")
	}
	var e *spec.Error
	if !errors.As(err, &e) {
		t.Fatalf("not an *Error: %v", err)
	}
	return e.Faults
}

// param returns a change of one parameter; an empty value removes it.
func param(key, value string) func(*call) {
	return func(c *call) {
		if value == "" {
			delete(c.params, key)
			return
		}
		c.params[key] = value
	}
}

// item returns a change of objects to one object with more keys.
func item(lines ...string) func(*call) {
	return param("objects", "- objectName: x\n  secretPath: kv/x\n  "+strings.Join(lines, "\n  "))
}

func names(quoted ...string) func(*call) {
	var b strings.Builder
	for _, name := range quoted {
		fmt.Fprintf(&b, "- {objectName: %s, secretPath: kv/x}\n", name)
	}
	return param("objects", b.String())
}

func TestParse(t *testing.T) {
	got := validCall().mustParse(t)
	if got.JWT.Reveal() != jwt {
		t.Error("the token for vault was not picked")
	}
	if got.Spec.Digest == "" {
		t.Error("no digest")
	}
	read := spec.Read{Method: "GET", Path: "database/creds/my-app"}
	want := &spec.Request{
		Pod:    spec.Pod{Namespace: "shop", Name: "app", UID: "0f8a-11", ServiceAccount: "app-sa"},
		Volume: spec.VolumeKey{PodUID: "0f8a-11", Volume: "creds"},
		Class:  "vault-db-creds",

		KubeletDir: "/var/lib/kubelet",
		Spec: spec.Spec{
			Server: spec.Server{Address: "https://vault:8200"},
			Auth:   spec.Auth{Mount: "kubernetes", Role: "my-app-role"},
			Objects: []spec.Object{
				{Name: "db_user", Read: read, Key: "username", Mode: 0o644, Encoding: spec.UTF8},
				{Name: "db_pass", Read: read, Key: "password", Mode: 0o644, Encoding: spec.UTF8},
			},
			OnPodEnd: spec.RevokeOnPodEnd, SyncedLeases: spec.ExpireSynced,
			Digest: got.Spec.Digest,
		},
		JWT:      got.JWT,
		Audience: "vault",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestParseObject(t *testing.T) {
	const base = "kv/x"
	tests := []struct {
		name  string
		lines string
		want  spec.Object
	}{
		{"leading slash", "secretPath: /kv/x", spec.Object{Read: spec.Read{Method: "GET", Path: base}}},
		{"v1", "secretPath: v1/kv/x", spec.Object{Read: spec.Read{Method: "GET", Path: base}}},
		{"slash and v1", "secretPath: /v1/kv//x/", spec.Object{Read: spec.Read{Method: "GET", Path: base}}},
		{"query is sorted", "secretPath: 'kv/x?version=2&a=b c'", spec.Object{Read: spec.Read{Method: "GET", Path: base, Query: "a=b+c&version=2"}}},
		{"method", "secretPath: kv/x\n  method: put", spec.Object{Read: spec.Read{Method: "PUT", Path: base}}},
		{"args are canonical", "secretPath: kv/x\n  method: POST\n  secretArgs: {ttl: 1h, common_name: a.b, n: 12345678901234567890, deep: {b: [1, true], a: null}}",
			spec.Object{Read: spec.Read{Method: "POST", Path: base, Args: `{"common_name":"a.b","deep":{"a":null,"b":[1,true]},"n":12345678901234567890,"ttl":"1h"}`}}},
		{"no args", "secretPath: kv/x\n  secretArgs: {}", spec.Object{Read: spec.Read{Method: "GET", Path: base}}},
		{"key is a number", "secretPath: kv/x\n  secretKey: 007", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Key: "007"}},
		{"key is null", "secretPath: kv/x\n  secretKey: ~", spec.Object{Read: spec.Read{Method: "GET", Path: base}}},
		{"mode 0600", "secretPath: kv/x\n  filePermission: 0600", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Mode: 0o600}},
		{"mode 0o600", "secretPath: kv/x\n  filePermission: 0o600", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Mode: 0o600}},
		{"mode decimal", "secretPath: kv/x\n  filePermission: 384", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Mode: 0o600}},
		{"mode decimal above 0777", "secretPath: kv/x\n  filePermission: 640", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Mode: 0o640}},
		{"mode quoted", "secretPath: kv/x\n  filePermission: \"600\"", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Mode: 0o600}},
		{"mode quoted 0o", "secretPath: kv/x\n  filePermission: '0o777'", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Mode: 0o777}},
		{"mode 0", "secretPath: kv/x\n  filePermission: 0", spec.Object{Read: spec.Read{Method: "GET", Path: base}}},
		{"encoding", "secretPath: kv/x\n  encoding: BASE64", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Encoding: spec.Base64}},
		{"all keys", "secretPath: kv/x\n  secretKey: '*'\n  encoding: hex", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Each: true, Encoding: spec.Hex}},
		{"a key named *", `secretPath: kv/x` + "\n  " + `secretKey: \*`, spec.Object{Read: spec.Read{Method: "GET", Path: base}, Key: `\*`}},
		{"keys", "secretPath: kv/x\n  secretKey: [b, 1, a.c]\n  format: Dotenv", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Keys: []string{"b", "1", "a.c"}, Format: spec.Dotenv}},
		{"raw", "secretPath: kv/x\n  format: raw", spec.Object{Read: spec.Read{Method: "GET", Path: base}}},
		{"format of all", "secretPath: kv/x\n  format: pem", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Format: spec.PEM}},
		{"store", "secretPath: kv/x\n  format: PKCS12\n  password: 0012", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Format: spec.PKCS12, Password: "0012"}},
		{"no password", "secretPath: kv/x\n  password: ~", spec.Object{Read: spec.Read{Method: "GET", Path: base}}},
		{"optional", "secretPath: kv/x\n  optional: true", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Optional: true}},
		{"not optional", "secretPath: kv/x\n  optional: false", spec.Object{Read: spec.Read{Method: "GET", Path: base}}},
		{"unknown key", "secretPath: kv/x\n  objectVersion: 3", spec.Object{Read: spec.Read{Method: "GET", Path: base}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := validCall()
			c.permission = "288" // 0440
			c.params["objects"] = "- objectName: dir/x\n  " + test.lines
			want := test.want
			want.Name = "dir/x"
			if want.Mode == 0 {
				want.Mode = 0o440
			}
			if want.Encoding == "" {
				want.Encoding = spec.UTF8
			}
			if got := c.mustParse(t).Spec.Objects[0]; !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestParseAnchors(t *testing.T) {
	c := validCall()
	c.params["objects"] = `
- &user
  objectName: user
  secretPath: &path database/creds/a
  secretKey: username
- objectName: path
  secretPath: *path
- <<: *user
  objectName: again
`
	objects := c.mustParse(t).Spec.Objects
	for _, o := range objects {
		if o.Read.Path != "database/creds/a" {
			t.Errorf("object %s reads %q", o.Name, o.Read.Path)
		}
	}
	if len(objects) != 3 || objects[2].Key != "username" {
		t.Errorf("got %+v", objects)
	}
}

func TestParseServer(t *testing.T) {
	defaults := spec.Server{
		Address: "http://default:8200", CACert: "/d/ca", ServerName: "d", ClientCert: "/d/crt", ClientKey: "/d/key", SkipVerify: true,
	}
	tests := []struct {
		name   string
		params map[string]string
		change func(*spec.Server)
	}{
		{"nothing set", nil, func(*spec.Server) {}},
		{"address", map[string]string{"vaultAddress": "HTTPS://Vault.example:8200/"}, func(s *spec.Server) { s.Address, s.Guarded = "https://vault.example:8200", true }},
		{"the default's address", map[string]string{"vaultAddress": "http://Default:8200/"}, func(*spec.Server) {}},
		{"IPv6", map[string]string{"vaultAddress": "http://[2001:db8::1]:8200"}, func(s *spec.Server) { s.Address, s.Guarded = "http://[2001:db8::1]:8200", true }},
		{"CA file", map[string]string{"vaultCACertPath": "/c//ca", "vaultCADirectory": "/c"}, func(s *spec.Server) { s.CACert = "/c/ca" }},
		{"CA directory", map[string]string{"vaultCADirectory": "/c"}, func(s *spec.Server) { s.CACert, s.CADirectory = "", "/c" }},
		{"server name", map[string]string{"vaultTLSServerName": "v"}, func(s *spec.Server) { s.ServerName = "v" }},
		{"client pair", map[string]string{"vaultTLSClientCertPath": "/c/crt", "vaultTLSClientKeyPath": "/c/key"},
			func(s *spec.Server) { s.ClientCert, s.ClientKey = "/c/crt", "/c/key" }},
		{"false wins", map[string]string{"vaultSkipTLSVerify": "false"}, func(s *spec.Server) { s.SkipVerify = false }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := validCall()
			c.defaults.Server = defaults
			maps.Copy(c.params, test.params)
			want := defaults
			test.change(&want)
			if got := c.mustParse(t).Spec.Server; got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

// In the existing provider a class could only switch the checks off.
func TestClassSwitchesTLSVerificationOnAgain(t *testing.T) {
	for text, skip := range map[string]bool{"": true, "false": false, "False": false, "0": false, "true": true} {
		c := validCall()
		c.defaults.Server.SkipVerify = true
		param("vaultSkipTLSVerify", text)(c)
		if got := c.mustParse(t).Spec.Server.SkipVerify; got != skip {
			t.Errorf("%q after --vault-tls-skip-verify: skip is %t", text, got)
		}
	}
}

func TestParseAuth(t *testing.T) {
	c := validCall()
	c.defaults.AuthMount, c.defaults.Namespace = "", "operators"
	if s := c.mustParse(t).Spec; s.Auth.Mount != "kubernetes" || s.Namespace != "operators" {
		t.Errorf("defaults: mount %q, namespace %q", s.Auth.Mount, s.Namespace)
	}
	c.defaults.AuthMount = "flag"
	if s := c.mustParse(t).Spec; s.Auth.Mount != "flag" {
		t.Errorf("flag: mount %q", s.Auth.Mount)
	}
	c.params["vaultNamespace"] = "/teams/a/"
	for _, key := range []string{"vaultAuthMountPath", "vaultKubernetesMountPath"} {
		own := maps.Clone(c.params)
		own[key] = "/k8s//west/"
		s := (&call{params: own, target: c.target, defaults: c.defaults}).mustParse(t).Spec
		if s.Auth.Mount != "k8s/west" || s.Namespace != "teams/a" {
			t.Errorf("%s: mount %q, namespace %q", key, s.Auth.Mount, s.Namespace)
		}
	}
}

func TestParseJWT(t *testing.T) {
	attribute := validCall().params[tokensKey]
	tests := []struct {
		name, attribute, secret, audience, want string
	}{
		{"default audience", attribute, "", "", jwt},
		{"audience", attribute, "", "other", "other-jwt"},
		{"audience not sent", attribute, "", "third", ""},
		{"no tokens", "", "", "", ""},
		{"null", "null", "", "", ""},
		{"secrets", "", `{"vault":{"token":"from-secrets"}}`, "", "from-secrets"},
		{"attributes first", attribute, `{"vault":{"token":"from-secrets"}}`, "", jwt},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := validCall()
			param(tokensKey, test.attribute)(c)
			param("audience", test.audience)(c)
			if test.secret != "" {
				c.secrets = map[string]string{tokensKey: test.secret}
			}
			if got := c.mustParse(t).JWT; got.Reveal() != test.want || got.IsZero() != (test.want == "") {
				t.Errorf("got %q, want %q", got.Reveal(), test.want)
			}
		})
	}
}

func TestParseAcceptsAbsentSecretsAndPermission(t *testing.T) {
	for secrets, permission := range map[string]string{"": "", "null": "0", "{}": "420"} {
		c := validCall()
		delete(c.params, tokensKey)
		in := c.input(t)
		in.Secrets, in.Permission = secrets, permission
		req, err := spec.Parse(in, c.defaults)
		if err != nil {
			t.Errorf("secrets %q: %v", secrets, err)
			continue
		}
		if mode := req.Spec.Objects[0].Mode; mode != 0o644 {
			t.Errorf("secrets %q: mode %#o", secrets, mode)
		}
	}
}

func TestDigest(t *testing.T) {
	base := validCall().mustParse(t).Spec.Digest
	tests := []struct {
		name   string
		change func(*call)
		same   bool
	}{
		{"new token", param(tokensKey, `{"vault":{"token":"new"}}`), true},
		{"another service account", param("csi.storage.k8s.io/serviceAccount.name", "b"), true},
		{"secrets", func(c *call) { c.secrets = map[string]string{"a": "b"} }, true},
		{"role", param("roleName", "b"), false},
		{"objects", param("objects", objects+"# changed"), false},
		{"unknown parameter", param("refresh", "1m"), false},
		{"default address", func(c *call) { c.defaults.Server.Address = "https://b" }, false},
		{"default trust", func(c *call) { c.defaults.Server.SkipVerify = true }, false},
		{"default namespace", func(c *call) { c.defaults.Namespace = "b" }, false},
		{"default mount", func(c *call) { c.defaults.AuthMount = "b" }, false},
	}
	seen := map[string]string{base: "unchanged"}
	for _, test := range tests {
		c := validCall()
		test.change(c)
		got := c.mustParse(t).Spec.Digest
		if test.same != (got == base) {
			t.Errorf("%s: same = %v, want %v", test.name, got == base, test.same)
		}
		if other, ok := seen[got]; ok && !test.same {
			t.Errorf("%s and %s have one digest", test.name, other)
		}
		seen[got] = test.name
	}
}

func TestDigestTellsKeysFromValues(t *testing.T) {
	one, other := validCall(), validCall()
	one.params["a"], one.params["b"] = "1", "2"
	other.params["a"] = "12:+b1:2"
	if one.mustParse(t).Spec.Digest == other.mustParse(t).Spec.Digest {
		t.Error("two wishes have one digest")
	}
}
