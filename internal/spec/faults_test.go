package spec_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

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
		{"end unknown", param("onPodEnd", "keep"), `onPodEnd "keep" is none of ["revoke" "expire"]`},
		{"synced unknown", param("syncedLeases", "Expire"), `syncedLeases "Expire" is none of ["expire" "revoke" "refuse"]`},
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
		{"format", item("format: toml"), `object "x": format "toml" is none of raw, json, yaml, dotenv, properties, pem, pkcs12`},
		{"format a list", item("format: [json]"), `object "x": format is not a plain text`},
		{"key a mapping", item("secretKey: {a: b}"), `object "x": secretKey is neither a plain text nor a list of them`},
		{"keys without format", item("secretKey: [a]"), `object "x": secretKey lists keys, which needs a format`},
		{"no keys", item("secretKey: []", "format: json"), `object "x": secretKey is an empty list`},
		{"keys in keys", item("secretKey: [[a]]", "format: json"), `object "x": secretKey lists what is not a key`},
		{"empty key", item(`secretKey: [a, ""]`, "format: json"), `object "x": secretKey lists what is not a key`},
		{"key of a list twice", item(`secretKey: [a.b, 'a\.b']`, "format: json"), `object "x": secretKey lists "a.b" twice`},
		{"too many keys", item("secretKey: ["+strings.Repeat("a,", 513)+"]", "format: json"), `object "x": secretKey lists more than 512 keys`},
		{"all keys in a format", item("secretKey: '*'", "format: yaml"), `object "x": format yaml is not for secretKey "*"`},
		{"encoding in a format", item("format: pem", "encoding: hex"), `object "x": encoding hex is not for format pem`},
		{"no password", item("format: pkcs12"), `object "x": password is missing, which format pkcs12 needs; Java's own is changeit`},
		{"empty password", item("format: pkcs12", "password: ''"), `object "x": password is missing`},
		{"password a list", item("format: pkcs12", "password: [canary]"), `object "x": password is not a plain text`},
		{"password of another format", item("format: pem", "password: canary"), `object "x": password is for format pkcs12 only`},
		{"password of no format", item("password: canary"), `object "x": password is for format pkcs12 only`},
		{"password of a wrong format", item("format: p12", "password: canary"), `object "x": format "p12" is none of`},
		{"password that Java takes for none", item("format: pkcs12", "password: canaryé"), `object "x": password is not made of at most 128 printable ASCII characters, which is what Java takes`},
		{"password of two lines", item("format: pkcs12", `password: "canary\n"`), `object "x": password is not made of at most 128 printable ASCII characters`},
		{"long password", item("format: pkcs12", "password: "+strings.Repeat("canary", 22)), `object "x": password is not made of at most 128 printable ASCII characters`},
		{"all keys in a store", item("secretKey: '*'", "format: pkcs12", "password: x"), `object "x": format pkcs12 is not for secretKey "*"`},
		{"many stores", stores(17), "objects has more than 16 items of format pkcs12"},
		{"folder of a long name", param("objects", "- {objectName: "+strings.Repeat("a/", 2000)+"a, secretPath: kv/x, secretKey: '*'}"), `object "a/a/`},
		{"folder and file", param("objects", "- {objectName: a, secretPath: kv/x, secretKey: '*'}\n- {objectName: a/b, secretPath: kv/x}"), `object "a": objectName is also a folder of object "a/b"`},
		{"folder twice", param("objects", "- {objectName: a, secretPath: kv/x, secretKey: '*'}\n- {objectName: a, secretPath: kv/y, secretKey: '*'}"), `object "a": objectName is given more than once`},
		{"optional", item("optional: maybe"), `object "x": optional "maybe" is neither true nor false`},
		{"mode decimal, not octal", item("filePermission: 689"), `object "x": filePermission "689" is 01261, above 0777`},
		{"mode decimal, too large", item("filePermission: 1777"), `object "x": filePermission "1777" is 03361, above 0777`},
		{"mode quoted, too large", item("filePermission: '1777'"), `object "x": filePermission "1777" is above 0777`},
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

// stores is a change of objects to n of format pkcs12.
func stores(n int) func(*call) {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "- {objectName: s%d, secretPath: kv/x, format: pkcs12, password: changeit}\n", i)
	}
	return param("objects", b.String())
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
