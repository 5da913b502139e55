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
		Spec: spec.Spec{
			Server: spec.Server{Address: "https://vault:8200"},
			Auth:   spec.Auth{Mount: "kubernetes", Role: "my-app-role"},
			Objects: []spec.Object{
				{Name: "db_user", Read: read, Key: "username", Mode: 0o644, Encoding: spec.UTF8},
				{Name: "db_pass", Read: read, Key: "password", Mode: 0o644, Encoding: spec.UTF8},
			},
			Digest: got.Spec.Digest,
		},
		JWT: got.JWT,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestParseFaults(t *testing.T) {
	long := strings.Repeat("n", 256)
	tests := []struct {
		name   string
		change func(*call)
		want   string // the one fault, or its beginning
	}{
		{"no role", param("roleName", ""), "roleName is missing"},
		{"role of two lines", param("roleName", "a\nb"), "roleName holds control characters"},
		{"endless role", param("roleName", strings.Repeat("r", 5000)), "roleName is longer than 4096 bytes"},
		{"no pod name", param("csi.storage.k8s.io/pod.name", ""), "the driver did not send csi.storage.k8s.io/pod.name; its CSIDriver"},
		{"pod name with slash", param("csi.storage.k8s.io/pod.name", "a/b"), `csi.storage.k8s.io/pod.name "a/b" is not a plain name`},
		{"class with slash", param("secretProviderClass", "../x"), `secretProviderClass "../x" is not a plain name`},
		{"another pod's target", param("csi.storage.k8s.io/pod.uid", "other"), `the target path belongs to pod UID "0f8a-11", but csi.storage.k8s.io/pod.uid is "other"`},
		{"no target", func(c *call) { c.target = "" }, `target path "" is not`},
		{"relative target", func(c *call) { c.target = c.target[1:] }, "target path"},
		{"target without volume", func(c *call) { c.target = "/pods/0f8a-11/volumes/kubernetes.io~csi/mount" }, "target path"},
		{"target that climbs", func(c *call) { c.target = "/pods/0f8a-11/volumes/kubernetes.io~csi/../mount" }, "target path"},
		{"target of another plugin", func(c *call) { c.target = "/pods/0f8a-11/volumes/kubernetes.io~nfs/v/mount" }, "target path"},
		{"permission not a number", func(c *call) { c.permission = "rw" }, `permission "rw" is not`},
		{"permission too large", func(c *call) { c.permission = "512" }, `permission "512" is not`},
		{"unix address", param("vaultAddress", "unix:///run/x.sock"), "vaultAddress may not be a unix socket"},
		{"address without scheme", param("vaultAddress", "vault:8200"), "vaultAddress must be"},
		{"address without host", param("vaultAddress", "https://:8200"), "vaultAddress must be"},
		{"address with password", param("vaultAddress", "https://u:canary@vault"), "vaultAddress must be"},
		{"address with path", param("vaultAddress", "https://vault/v1"), "vaultAddress must be"},
		{"no address at all", func(c *call) { c.defaults.Server.Address = "" }, "vaultAddress is missing"},
		{"both mounts", func(c *call) { c.params["vaultAuthMountPath"], c.params["vaultKubernetesMountPath"] = "a", "a" }, "vaultKubernetesMountPath and vaultAuthMountPath mean the same"},
		{"mount that climbs", param("vaultAuthMountPath", "a/../token"), `vaultAuthMountPath "a/../token" holds ".."`},
		{"mount with escape", param("vaultAuthMountPath", "a%2Fb"), `vaultAuthMountPath "a%2Fb" holds an escaped slash`},
		{"mount of slashes", param("vaultAuthMountPath", "//"), `vaultAuthMountPath "//" names no path`},
		{"namespace of two lines", param("vaultNamespace", "a\r\nX: y"), `vaultNamespace "a\r\nX: y" holds control characters`},
		{"relative CA", param("vaultCACertPath", "ca.pem"), `vaultCACertPath "ca.pem" is not an absolute path`},
		{"certificate without key", param("vaultTLSClientCertPath", "/tls/crt"), "vaultTLSClientCertPath and vaultTLSClientKeyPath must be set together"},
		{"key without certificate", param("vaultTLSClientKeyPath", "/tls/key"), "vaultTLSClientCertPath and vaultTLSClientKeyPath must be set together"},
		{"skip verify", param("vaultSkipTLSVerify", "yes"), `vaultSkipTLSVerify "yes" is neither`},
		{"tokens not JSON", param(tokensKey, "canary"), tokensKey + " is not a JSON object"},
		{"tokens a list", param(tokensKey, `["canary"]`), tokensKey + " is not a JSON object"},
		{"secrets not texts", func(c *call) { delete(c.params, tokensKey); c.secrets = map[string]string{tokensKey: "canary"} }, tokensKey + " is not a JSON object"},

		{"objects missing", param("objects", ""), "objects is missing"},
		{"objects blank", param("objects", "\n"), "objects is empty"},
		{"objects null", param("objects", "null"), "objects is empty"},
		{"objects an empty list", param("objects", "[]"), "objects is empty"},
		{"objects a mapping", param("objects", "array: []"), "objects is not a YAML list"},
		{"objects a text", param("objects", "canary"), "objects is not a YAML list"},
		{"objects not YAML", param("objects", "- objectName: [canary\n- x: 'y"), "objects is not valid YAML: line 2"},
		{"unquoted star", param("objects", "- secretArgs: {password: *canary}"), "objects is not valid YAML: an alias names no anchor"},
		{"item a text", param("objects", "- canary"), "object 1 is not a mapping"},
		{"key twice", item("secretKey: a", "secretKey: b"), "object 1 is not a mapping of plain and distinct keys"},
		{"too many", names(strings.Split(strings.Repeat("x,", 513), ",")[:513]...), "objects has more than 512 items"},

		{"name missing", param("objects", "- secretPath: kv/x"), "object 1: objectName is missing"},
		{"name null", names("null"), "object 1: objectName is missing"},
		{"name a list", names("[a]"), "object 1: objectName is not a plain text"},
		{"name absolute", names("/a"), `object "/a": objectName is an absolute path`},
		{"name with double slash", names("a//b"), `object "a//b": objectName is not a clean path`},
		{"name with end slash", names("a/"), `object "a/": objectName is not a clean path`},
		{"name a dot", names("."), `object ".": objectName is not a clean path`},
		{"name climbs", names("a/../../b"), `object "a/../../b": objectName holds ".."`},
		{"name is the driver's", names("..data"), `object "..data": objectName starts with ".."`},
		{"name element too long", names("a/" + long), `object "a/nnnn`},
		{"name too long", names(strings.Repeat("a/", 2100) + "a"), `object "a/a/`},
		{"name with NUL", names(`"a\0b"`), `object "a\x00b": objectName holds a NUL`},
		{"name twice", names("a", "b", "a", "a"), `object "a": objectName is given more than once`},
		{"name a folder", names("a/b", "a-b", "a"), `object "a": objectName is also a folder of object "a/b"`},

		{"path missing", param("objects", "- objectName: x"), `object "x": secretPath is missing`},
		{"path empty", param("objects", "- {objectName: x, secretPath: /}"), `object "x": secretPath "/" names no path`},
		{"path only v1", param("objects", "- {objectName: x, secretPath: /v1/}"), `object "x": secretPath "/v1/" names no path`},
		{"path climbs", param("objects", "- {objectName: x, secretPath: kv/../sys/raw}"), `object "x": secretPath "kv/../sys/raw" holds ".."`},
		{"path escaped", param("objects", "- {objectName: x, secretPath: kv%2fa}"), `object "x": secretPath "kv%2fa" holds an escaped slash`},
		{"path escaped dots", param("objects", "- {objectName: x, secretPath: kv/%2E%2e/a}"), `object "x": secretPath "kv/%2E%2e/a" holds an escaped slash or dot`},
		{"path fragment", param("objects", "- {objectName: x, secretPath: 'kv/a#b'}"), `object "x": secretPath "kv/a#b" holds a ? or #`},
		{"path control", param("objects", `- {objectName: x, secretPath: "kv/a\tb"}`), `object "x": secretPath "kv/a\tb" holds control characters`},
		{"query escape", param("objects", "- {objectName: x, secretPath: 'kv/a?v=%zz'}"), `object "x": secretPath "kv/a" has a query`},
		{"query fragment", param("objects", "- {objectName: x, secretPath: 'kv/a?v=1#b'}"), `object "x": secretPath "kv/a" has a query`},
		{"method", item("method: DELETE"), `object "x": method "DELETE" is none of`},
		{"args a text", item("secretArgs: canary"), `object "x": secretArgs is not a mapping`},
		{"args key twice", item("secretArgs: {a: canary, a: canary}"), `object "x": secretArgs is not a mapping`},
		{"args not JSON", item("secretArgs: {a: .nan}"), `object "x": secretArgs holds something`},
		{"args with inner keys of no text", item("secretArgs: {a: {1: canary}}"), `object "x": secretArgs holds something`},
		{"encoding", item("encoding: rot13"), `object "x": encoding "rot13" is none of`},
		{"mode decimal", item("filePermission: 600"), `object "x": filePermission "600" is 01130, above 0777; without a leading 0`},
		{"mode setuid", item("filePermission: 04755"), `object "x": filePermission "04755" is 04755, above 0777`},
		{"mode negative", item("filePermission: -1"), `object "x": filePermission "-1" is not a file mode`},
		{"mode not digits", item("filePermission: rw-r--r--"), `object "x": filePermission "rw-r--r--" is not a file mode`},
		{"mode quoted, not octal", item(`filePermission: "0689"`), `object "x": filePermission "0689" is not a file mode`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := validCall()
			test.change(c)
			_, err := c.parse(t)
			got := faults(t, err)
			if len(got) != 1 || !strings.HasPrefix(got[0], test.want) {
				t.Errorf("faults %q\n want %q", got, test.want)
			}
			if strings.Contains(err.Error(), "canary") {
				t.Errorf("the error repeats what may be secret: %v", err)
			}
		})
	}
}

func TestParseMalformedInput(t *testing.T) {
	tests := []struct {
		name   string
		change func(*spec.Input)
		want   string
	}{
		{"attributes empty", func(in *spec.Input) { in.Attributes = "" }, "the attributes are not a JSON object of texts"},
		{"attributes not JSON", func(in *spec.Input) { in.Attributes = "canary" }, "the attributes are not a JSON object of texts"},
		{"attributes not texts", func(in *spec.Input) { in.Attributes = `{"canary":1}` }, "the attributes are not a JSON object of texts"},
		{"attributes with more behind", func(in *spec.Input) { in.Attributes += "canary" }, "the attributes are not a JSON object of texts"},
		{"attributes too large", func(in *spec.Input) { in.Attributes += strings.Repeat(" ", 1<<20) }, "the attributes are larger than"},
		{"secrets not JSON", func(in *spec.Input) { in.Secrets = "canary" }, "the secrets are not a JSON object of texts"},
		{"secrets too large", func(in *spec.Input) { in.Secrets += strings.Repeat(" ", 4<<20) }, "the secrets are larger than"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := validCall()
			delete(c.params, tokensKey)
			in := c.input(t)
			test.change(&in)
			_, err := spec.Parse(in, c.defaults)
			if got := faults(t, err); len(got) != 1 || !strings.HasPrefix(got[0], test.want) {
				t.Errorf("faults %q\n want %q", got, test.want)
			}
			if strings.Contains(err.Error(), "canary") {
				t.Errorf("the error repeats its input: %v", err)
			}
		})
	}
}

func TestParseTellsAllFaults(t *testing.T) {
	c := validCall()
	c.target = "/nowhere"
	c.params["roleName"] = ""
	c.params["objects"] = "- {objectName: /x, method: DELETE, encoding: none, filePermission: 999}"
	_, err := c.parse(t)
	if got := faults(t, err); len(got) != 7 {
		t.Errorf("%d faults: %q", len(got), got)
	}
}

func TestParseBoundsFaults(t *testing.T) {
	c := validCall()
	many := make([]string, 100)
	for i := range many {
		many[i] = fmt.Sprintf("/%d%s", i, strings.Repeat("é", 500))
	}
	names(many...)(c)
	_, err := c.parse(t)
	got := faults(t, err)
	if last := got[len(got)-1]; len(got) != 16 || last != "and 85 more faults" {
		t.Errorf("%d faults, the last is %q", len(got), last)
	}
	for _, fault := range got {
		if len(fault) > 512 || strings.ContainsRune(fault, '�') {
			t.Errorf("fault of %d bytes: %q", len(fault), fault)
		}
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
		{"mode quoted", "secretPath: kv/x\n  filePermission: \"600\"", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Mode: 0o600}},
		{"mode quoted 0o", "secretPath: kv/x\n  filePermission: '0o777'", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Mode: 0o777}},
		{"mode 0", "secretPath: kv/x\n  filePermission: 0", spec.Object{Read: spec.Read{Method: "GET", Path: base}}},
		{"encoding", "secretPath: kv/x\n  encoding: BASE64", spec.Object{Read: spec.Read{Method: "GET", Path: base}, Encoding: spec.Base64}},
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
			if got := c.mustParse(t).Spec.Objects[0]; got != want {
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

func TestParseRefusesAliasBombs(t *testing.T) {
	deep := "x0: &x0 [lol, lol]\n"
	for i := 1; i < 40; i++ {
		deep += fmt.Sprintf("    x%d: &x%d [*x%d, *x%d]\n", i, i, i-1, i-1)
	}
	tests := map[string]string{
		"doubling":  deep,
		"wide":      "a: &a " + strings.Repeat("x", 100_000) + "\n    b: [" + strings.Repeat("*a,", 900) + "]",
		"in itself": "a: &a [*a]",
		"many keys": strings.Repeat("k: 1\n    ", 50_000),
		"deep":      "a: " + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000),
	}
	for name, args := range tests {
		t.Run(name, func(t *testing.T) {
			c := validCall()
			item("secretArgs:\n    " + args)(c)
			_, err := c.parse(t)
			if got := faults(t, err); len(got) != 1 {
				t.Errorf("faults %q", got)
			}
		})
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
		{"address", map[string]string{"vaultAddress": "HTTPS://Vault.example:8200/"}, func(s *spec.Server) { s.Address = "https://vault.example:8200" }},
		{"IPv6", map[string]string{"vaultAddress": "http://[::1]:8200"}, func(s *spec.Server) { s.Address = "http://[::1]:8200" }},
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
	for _, secrets := range []string{"", "null", "{}"} {
		c := validCall()
		delete(c.params, tokensKey)
		in := c.input(t)
		in.Secrets, in.Permission = secrets, ""
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
