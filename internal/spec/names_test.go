package spec_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// TestOpenBaoNames: baoX wins over openbaoX, and that over vaultX; what is meant is the same as in a class for Vault.
func TestOpenBaoNames(t *testing.T) {
	values := map[string]string{
		"Address": "https://own:8200", "Namespace": "team", "AuthMountPath": "k8s", "CACertPath": "/c/ca", "TLSServerName": "n",
		"TLSClientCertPath": "/c/crt", "TLSClientKeyPath": "/c/key", "SkipTLSVerify": "true",
	}
	parse := func(provider spec.Provider, prefixes ...string) *spec.Request {
		c := validCall()
		c.defaults.Provider = provider
		for i, prefix := range prefixes {
			for name, value := range values {
				if i > 0 {
					value = "/ignored" // the first prefix given wins
				}
				c.params[prefix+name] = value
			}
		}
		c.params[tokensKey] = `{"vault":{"token":"for-vault"},"openbao":{"token":"for-openbao"}}`
		return c.mustParse(t)
	}
	want := parse(spec.Vault, "vault")
	for _, prefixes := range [][]string{{"vault"}, {"openbao"}, {"bao"}, {"openbao", "vault"}, {"bao", "vault"}, {"bao", "openbao"}} {
		got := parse(spec.OpenBao, prefixes...)
		if got.Spec.Server != want.Spec.Server || got.Spec.Namespace != want.Spec.Namespace || got.Spec.Auth != want.Spec.Auth {
			t.Errorf("%v: got  %+v\nwant %+v", prefixes, got.Spec, want.Spec)
		}
		if got.JWT.Reveal() != "for-openbao" || got.Audience != "openbao" || len(got.Warnings) != 0 {
			t.Errorf("%v: token %q for audience %q, warnings %q", prefixes, got.JWT.Reveal(), got.Audience, got.Warnings)
		}
	}
	if want.JWT.Reveal() != "for-vault" || want.Audience != "vault" {
		t.Errorf("a class for Vault: token %q for audience %q", want.JWT.Reveal(), want.Audience)
	}
}

// TestOpenBaoNamesInFaults: a fault names the parameter that the class has, or, where it has none, the one of the provider.
func TestOpenBaoNamesInFaults(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*call)
		want   string
	}{
		{"bao", param("baoAddress", "x"), "baoAddress must be http"},
		{"openbao", param("openbaoCACertPath", "x"), `openbaoCACertPath "x" is not an absolute path`},
		{"vault", param("vaultSkipTLSVerify", "x"), `vaultSkipTLSVerify "x" is neither`},
		{"aliases", func(c *call) { c.params["baoAuthMountPath"], c.params["openbaoKubernetesMountPath"] = "a", "b" }, "openbaoKubernetesMountPath and baoAuthMountPath mean the same"},
		{"missing", func(c *call) { c.defaults.Server.Address = "" }, "openbaoAddress is missing"},
		{"half a pair", param("baoTLSClientKeyPath", "/k"), "openbaoTLSClientCertPath and baoTLSClientKeyPath must be set together"},
	} {
		c := validCall()
		c.defaults.Provider = spec.OpenBao
		test.change(c)
		_, err := c.parse(t)
		if got := faults(t, err); len(got) != 1 || !strings.HasPrefix(got[0], test.want) {
			t.Errorf("%s: faults %q, want %q", test.name, got, test.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	both := func(changes ...func(*call)) func(*call) {
		return func(c *call) {
			for _, change := range changes {
				change(c)
			}
		}
	}
	for _, test := range []struct {
		name   string
		change func(*call)
		want   []string
		// unknown keys are faults where the provider is strict
		fault bool
	}{
		{"nothing to say", func(*call) {}, nil, false},
		{"the driver's own", both(param("csi.storage.k8s.io/what", "x"), param("secretProviderClass", "x")), nil, false},
		{"another case", param("rolename", "x"), []string{`parameter "rolename" is unknown and has no effect; did you mean roleName?`}, true},
		{"a letter missing", param("vaultAdress", "x"), []string{`parameter "vaultAdress" is unknown and has no effect; did you mean vaultAddress?`}, true},
		{"of the other provider", param("baoAddress", "x"), []string{`parameter "baoAddress" is unknown and has no effect`}, true},
		{"like nothing", param("kubernetesServiceAccountPath", "x"), []string{`parameter "kubernetesServiceAccountPath" is unknown and has no effect`}, true},
		{"sorted", both(param("b", "x"), param("a", "x")), []string{`parameter "a" is unknown and has no effect`, `parameter "b" is unknown and has no effect`}, true},
		{"in an object", item("secretkey: a"), []string{`object "x": key "secretkey" is unknown and has no effect; did you mean secretKey?`}, true},
		{"history", item("objectVersion: 3"), []string{`object "x": key "objectVersion" is unknown and has no effect`}, true},
		{"merged", item("<<: {secretKey: a}"), nil, false},
		{"encoding without key", item("encoding: base64"), []string{`object "x": encoding has no effect without secretKey: the file is the whole answer as JSON`}, false},
		{"refresh of a write", item("method: put", "refreshInterval: 1h"), []string{`object "x": refreshInterval has no effect with method PUT: what a write made is not made again for a refresh`}, false},
		{"a share of no life", item("renewAt: 50"), []string{`object "x": renewAt has no effect with method GET: certificates are issued with PUT`}, false},
		{"revoked where all expires", both(param("onPodEnd", "expire"), param("objects", "- {objectName: x, secretPath: pki/issue/a, method: PUT, revokeOnEnd: true}")),
			[]string{`object "x": revokeOnEnd has no effect with onPodEnd: expire`}, false},
		{"decimal permission", item("secretKey: a", "filePermission: 600"),
			[]string{`object "x": filePermission 600 is read as 0600: without a leading 0 YAML takes it for a decimal number, 01130, which is no file mode; write 0600`}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := validCall()
			test.change(c)
			if got := c.mustParse(t).Warnings; !slices.Equal(got, test.want) {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
			c.defaults.Strict = true
			_, err := c.parse(t)
			if !test.fault && err != nil {
				t.Errorf("refused where strict: %v", err)
			}
			if test.fault && !slices.Equal(faults(t, err), test.want) {
				t.Errorf("faults where strict: %v", err)
			}
		})
	}
}

// TestDigestIsOfTheWordsWritten: an operator who switches a volume's provider, or a class that says the same otherwise, is a new wish.
func TestDigestIsOfTheWordsWritten(t *testing.T) {
	digests := map[string]bool{}
	for _, key := range []string{"vaultAddress", "openbaoAddress", "baoAddress"} {
		c := validCall()
		c.defaults.Provider = spec.OpenBao
		c.params[key] = "https://own:8200"
		digests[c.mustParse(t).Spec.Digest] = true
	}
	if len(digests) != 3 {
		t.Errorf("%d digests", len(digests))
	}
}

// TestListedKeysAreRead: each listed parameter and key is one that the parser looks at, so that it is worth documenting.
func TestListedKeysAreRead(t *testing.T) {
	for _, provider := range []spec.Provider{spec.Vault, spec.OpenBao} {
		for _, key := range provider.Parameters() {
			c := validCall()
			c.defaults.Provider = provider
			before, err := json.Marshal(c.mustParse(t).Spec)
			if err != nil {
				t.Fatal(err)
			}
			digest := c.mustParse(t).Spec.Digest
			own := &call{params: maps.Clone(c.params), target: c.target, permission: c.permission, defaults: c.defaults}
			own.params[key] = "\n"
			if req, err := own.parse(t); err == nil {
				after, err := json.Marshal(req.Spec)
				if err != nil {
					t.Fatal(err)
				}
				if strings.ReplaceAll(string(after), req.Spec.Digest, digest) == string(before) {
					t.Errorf("%s: the parameter %s changes nothing", provider, key)
				}
			}
		}
	}
}
