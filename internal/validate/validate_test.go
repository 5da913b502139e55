package validate_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/validate"
)

func told(t *testing.T, text string, o validate.Options) string {
	t.Helper()
	findings, err := validate.File("f.yaml", []byte(text), o)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, f := range findings {
		fmt.Fprintf(&out, "%d %s %s: %s\n", f.Line, f.Level, f.Class, f.Text)
	}
	return out.String()
}

// TestFile: every fault at once, each on its line.
func TestFile(t *testing.T) {
	const text = `# two classes and something else
apiVersion: v1
kind: ConfigMap
metadata: {name: other}
---
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata:
  name: one
spec:
  provider: vault
  secretObjects:
    - secretName: synced
      data:
        - {objectName: user, key: u}
        - {objectName: missing, key: m}
  parameters:
    rolename: app
    vaultSkipTLSVerify: true
    objects: |
      - objectName: user
        secretPath: database/creds/app
        secretKey: username
        filePermission: 440
      - objectName: key
        secretPath: kv/../x
        filePermission: 640
      - objectName: cert
        secretPath: pki/issue/x
        secretArgs: {password: canary}
        method: PATCH
---
apiVersion: v1
kind: List
items:
  - apiVersion: secrets-store.csi.x-k8s.io/v1
    kind: SecretProviderClass
    metadata: {name: two}
    spec:
      provider: openbao
      parameters: {roleName: app, baoAddress: "vault:8200", objects: "- {objectName: a, secretPath: kv/a, secretKey: k}"}
  - apiVersion: secrets-store.csi.x-k8s.io/v1
    kind: SecretProviderClass
    metadata: {name: three}
    spec:
      provider: leasehold
      parameters: {vaultAddress: "vault:8200", roleName: app, objects: "- {objectName: a, secretPath: kv/a, secretKey: k}"}
`
	const want = `15 warning one: secretObjects: Secret "synced" outlives the pod, and object "user" comes from "database/creds/app", which looks leased: the lease will run out at the pod's end instead of being revoked; say syncedLeases: revoke or refuse to choose otherwise
16 warning one: secretObjects: Secret "synced" wants object "missing", which objects does not have: the driver will not make the Secret
18 fault one: roleName is missing: it names the Vault role to log in with (roleId is for AppRole)
18 warning one: parameter "rolename" is unknown and has no effect; did you mean roleName?
19 fault one: parameter "vaultSkipTLSVerify" is not a text, and the API server takes nothing else: put it in quotes
24 warning one: filePermission 440 is a decimal number for YAML: the mode is 0670; write 0670, or 0440 if that is meant
26 fault one: object "key": secretPath "kv/../x" holds ".."
27 warning one: object "key": filePermission 640 is read as 0640: without a leading 0 YAML takes it for a decimal number, 01200, which is no file mode; write 0640
31 fault one: object "cert": method "PATCH" is none of GET, PUT, POST
41 fault two: baoAddress must be http:// or https:// with a host and an optional port, and nothing else
47 fault three: vaultAddress must be http:// or https:// with a host and an optional port, and nothing else
`
	if got := told(t, text, validate.Options{}); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if strict := told(t, text, validate.Options{Strict: true}); !strings.Contains(strict, `18 fault one: parameter "rolename"`) {
		t.Errorf("strict:\n%s", strict)
	}
}

// TestSynced: what a Secret may be made of.
func TestSynced(t *testing.T) {
	const text = `kind: SecretProviderClass
metadata: {name: c}
spec:
  provider: vault
  secretObjects:
    - secretName: s
      data:
        - {objectName: all/password, key: a}
        - {objectName: all, key: b}
        - {objectName: maybe, key: c}
        - {objectName: settings, key: d}
  parameters:
    roleName: app
    objects: |
      - {objectName: all, secretPath: database/creds/app, secretKey: "*"}
      - {objectName: maybe, secretPath: kv/a, secretKey: [a, b], format: dotenv, optional: true}
      - {objectName: settings, secretPath: kv/a, format: json}
`
	got := told(t, text, validate.Options{Diff: true})
	for i, want := range []string{
		`8 warning c: secretObjects: Secret "s" outlives the pod, and object "all/password" comes from "database/creds/app", which looks leased`,
		`9 warning c: secretObjects: Secret "s" wants object "all", which objects does not have`,
		`10 warning c: secretObjects: Secret "s" wants object "maybe", which is optional: the driver makes no Secret while the file is not there`,
		`13 change c: "database/creds/app": credentials stay the same`,
	} {
		if lines := strings.Split(got, "\n"); len(lines) != 5 || !strings.HasPrefix(lines[i], want) {
			t.Errorf("got\n%s\nwant line %d to begin with\n%s", got, i+1, want)
		}
	}
}

func TestFileWithoutClasses(t *testing.T) {
	const want = "1 warning : the file holds no SecretProviderClass for provider vault, openbao or leasehold\n"
	for _, text := range []string{"", "a: b", "[1]", "kind: SecretProviderClass\nspec: {provider: azure}"} {
		if got := told(t, text, validate.Options{}); got != want {
			t.Errorf("%q: %s", text, got)
		}
	}
	if _, err := validate.File("f.yaml", []byte("a: [b"), validate.Options{}); err == nil || !strings.HasPrefix(err.Error(), "f.yaml: yaml: line 1") {
		t.Errorf("no YAML: %v", err)
	}
}

// TestChanges: what is not as with the existing provider, and only where it is so.
func TestChanges(t *testing.T) {
	const class = `kind: SecretProviderClass
metadata: {name: c}
spec:
  provider: vault
  parameters:
    roleName: app
    %s
    objects: |
`
	for _, test := range []struct {
		name, parameter, objects, want string
	}{
		{"plain", "", "{objectName: a, secretPath: kv/a, secretKey: k}", ""},
		{"whole reply", "", "{objectName: a, secretPath: kv/a}", `object "a": the file is {"data": ...}`},
		{"credentials", "", "{objectName: a, secretPath: /v1/database/creds/x, secretKey: k}", `"database/creds/x": credentials stay the same over republishes`},
		{"arguments", "", "{objectName: a, secretPath: pki/x, secretKey: k, secretArgs: {a: b}}\n      - {objectName: b, secretPath: pki/x, secretKey: k}", `"pki/x" is read 2 times`},
		{"one path in two forms", "", "{objectName: a, secretPath: pki/x, secretKey: k}\n      - {objectName: b, secretPath: /v1/pki/x, secretKey: k}", ""},
		{"certificate checked", `vaultSkipTLSVerify: "false"`, "{objectName: a, secretPath: kv/a, secretKey: k}", `vaultSkipTLSVerify "false" has Vault's certificate checked`},
	} {
		text := fmt.Sprintf(class, test.parameter) + "      - " + test.objects + "\n"
		if got := told(t, text, validate.Options{}); got != "" {
			t.Errorf("%s: %s", test.name, got)
		}
		got := told(t, text, validate.Options{Diff: true})
		if test.want == "" && got != "" || !strings.Contains(got, test.want) || strings.Count(got, "\n") > 1 {
			t.Errorf("%s: got %q, want one line with %q", test.name, got, test.want)
		}
	}
}

// TestExamples: the classes in docs have nothing wrong with them.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../docs/examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := told(t, string(text), validate.Options{Strict: true}); got != "" && !strings.Contains(got, "holds no SecretProviderClass") {
			t.Errorf("%s:\n%s", name, got)
		}
	}
}

func FuzzFile(f *testing.F) {
	f.Add("kind: SecretProviderClass\nmetadata: {name: c}\nspec: {provider: vault, parameters: {roleName: a, objects: '- {objectName: a, secretPath: b}'}}")
	f.Add("kind: List\nitems: [{kind: SecretProviderClass, spec: {provider: openbao, parameters: &a {b: *a}}}]")
	f.Fuzz(func(t *testing.T, text string) {
		findings, err := validate.File("f", []byte(text), validate.Options{Diff: true})
		if err != nil {
			return
		}
		for _, finding := range findings {
			if finding.Line < 0 || finding.Text == "" {
				t.Errorf("%+v", finding)
			}
		}
	})
}
