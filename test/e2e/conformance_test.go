//go:build e2e

package e2e_test

import (
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
	"github.com/leasehold-csi/leasehold/test/bed"
)

// realClass is a SecretProviderClass as people have them, and what their pods see.
type realClass struct {
	name     string
	provider string // vault when empty
	// parameters are added to roleName and objects.
	parameters map[string]string
	// secret is the one that the pod's nodePublishSecretRef names; empty for none.
	secret  string
	objects string
	// files are patterns that whole files match.
	files map[string]string
	modes map[string]os.FileMode
	// warns is a part of the ClassWarning event; empty for none.
	warns string
	// fails is a part of what the pod that cannot start says; empty for one that can.
	fails string
}

// oddValues is what the path KV holds: one of each kind of value that Vault keeps.
var oddValues = map[string]any{
	"text": "plain", "number": 42, "fraction": 1.5, "yes": true, "nothing": nil, "list": []string{"a", "b"}, "map": map[string]string{"a": "b"},
	"a.b": "dotted", "base64": "aGVsbG8K", "hex": "68656c6c6f", "words": "grüße, \"welt\"", "lines": "one\ntwo\n",
}

// realClasses are the classes; KV stands for a path of key-value version 1, DATA for one of version 2, DB for a database role, FOLDER
// for that of TLS files, MOUNT for where the auth methods are mounted that log in with secret.
func realClasses(vault bed.VaultState) []realClass {
	withCA := func(parameters map[string]string) map[string]string {
		parameters["vaultAddress"], parameters["vaultCACertPath"] = vault.TLSAddress, vault.Certificate
		return parameters
	}
	item := func(fields string) string {
		return "- {objectName: f, secretPath: KV, secretKey: text, " + fields + "}"
	}
	one := func(key string) string { return "- {objectName: f, secretPath: KV, secretKey: " + key + "}" }
	plain := map[string]string{"f": "plain"}
	const text = "- objectName: f\n  secretPath: KV\n  secretKey: text\n"
	return []realClass{
		// what is under a key
		{name: "text", objects: one("text"), files: plain, modes: map[string]os.FileMode{"f": 0o644}},
		{name: "quoted", objects: "- objectName: \"f\"\n  secretPath: \"KV\"\n  secretKey: \"text\"\n", files: plain},
		{name: "number", objects: one("number"), files: map[string]string{"f": "42"}},
		{name: "fraction", objects: one("fraction"), files: map[string]string{"f": `1\.5`}},
		{name: "boolean", objects: one("'yes'"), files: map[string]string{"f": "true"}},
		{name: "null", objects: one("nothing"), files: map[string]string{"f": "null"}},
		{name: "list", objects: one("list"), files: map[string]string{"f": `\["a","b"\]`}},
		{name: "map", objects: one("map"), files: map[string]string{"f": `\{"a":"b"\}`}},
		{name: "dotted-key", objects: one("a.b"), files: map[string]string{"f": "dotted"}},
		{name: "words", objects: one("words"), files: map[string]string{"f": `grüße, "welt"`}},
		{name: "lines", objects: one("lines"), files: map[string]string{"f": "one\ntwo\n"}},
		{name: "whole", objects: "- {objectName: f, secretPath: KV}", files: map[string]string{"f": `\{"data":\{.*"text":"plain".*\}\}`}},

		// encodings
		{name: "utf-8", objects: item("encoding: utf-8"), files: plain},
		{name: "encoding-case", objects: item("encoding: UTF-8"), files: plain},
		{name: "base64", objects: "- {objectName: f, secretPath: KV, secretKey: base64, encoding: base64}", files: map[string]string{"f": "hello\n"}},
		{name: "hex", objects: "- {objectName: f, secretPath: KV, secretKey: hex, encoding: hex}", files: map[string]string{"f": "hello"}},
		{name: "encoding-whole", objects: "- {objectName: f, secretPath: KV, encoding: base64}", files: map[string]string{"f": `\{"data":.*`}, warns: "encoding has no effect without secretKey"},

		// permissions
		{name: "mode-octal", objects: item("filePermission: 0600"), files: plain, modes: map[string]os.FileMode{"f": 0o600}},
		{name: "mode-0o", objects: item("filePermission: 0o640"), files: plain, modes: map[string]os.FileMode{"f": 0o640}},
		{name: "mode-decimal", objects: item("filePermission: 420"), files: plain, modes: map[string]os.FileMode{"f": 0o644}},
		{name: "mode-meant-octal", objects: item("filePermission: 600"), files: plain, modes: map[string]os.FileMode{"f": 0o600}, warns: "filePermission 600 is read as 0600"},
		{name: "mode-quoted", objects: item(`filePermission: "0400"`), files: plain, modes: map[string]os.FileMode{"f": 0o400}},
		{name: "mode-zero", objects: item("filePermission: 0"), files: plain, modes: map[string]os.FileMode{"f": 0o644}},

		// paths
		{name: "path-slash", objects: "- {objectName: f, secretPath: /KV, secretKey: text}", files: plain},
		{name: "path-v1", objects: "- {objectName: f, secretPath: v1/KV, secretKey: text}", files: plain},
		{name: "path-slash-v1", objects: "- {objectName: f, secretPath: /v1/KV, secretKey: text}", files: plain},
		{name: "kv2", objects: "- {objectName: f, secretPath: DATA, secretKey: k}", files: map[string]string{"f": "two"}},
		{name: "kv2-version", objects: "- {objectName: f, secretPath: 'DATA?version=1', secretKey: k}", files: map[string]string{"f": "one"}},
		{name: "kv2-versions", objects: "- {objectName: a, secretPath: 'DATA?version=1', secretKey: k}\n- {objectName: b, secretPath: DATA, secretKey: k}", files: map[string]string{"a": "one", "b": "two"}},
		{name: "folders", objects: "- {objectName: a/b/f, secretPath: KV, secretKey: text}\n- {objectName: a/g, secretPath: KV, secretKey: number}", files: map[string]string{"a/b/f": "plain", "a/g": "42"}},

		// methods
		{name: "get", objects: item("method: GET"), files: plain},
		{name: "get-small", objects: item("method: get"), files: plain},
		{name: "put", objects: "- {objectName: f, secretPath: pki/issue/my-app, secretKey: serial_number, method: PUT, secretArgs: {common_name: a.test, ttl: 30m}}", files: map[string]string{"f": "[0-9a-f:]+"}},
		{name: "post", objects: "- {objectName: f, secretPath: pki/issue/my-app, secretKey: certificate, method: POST, secretArgs: {common_name: a.test, ttl: 30m}}", files: map[string]string{"f": "(?s)-----BEGIN CERTIFICATE-----.*"}},
		{name: "chain", objects: "- {objectName: f, secretPath: pki/issue/my-app, secretKey: ca_chain, method: PUT, secretArgs: {common_name: a.test, ttl: 30m}}", files: map[string]string{"f": `\["-----BEGIN CERTIFICATE-----.*"\]`}},

		// formats, keys within keys, and what may be missing
		{name: "raw", objects: item("format: raw"), files: plain},
		{name: "as-json", objects: "- {objectName: f, secretPath: DATA, format: json}", files: map[string]string{"f": `\{"k":"two"\}` + "\n"}},
		{name: "as-yaml", objects: "- {objectName: f, secretPath: KV, secretKey: [number, map], format: yaml}", files: map[string]string{"f": `map: \{a: "?b"?\}` + "\nnumber: 42\n"}},
		{name: "as-dotenv", objects: "- {objectName: f, secretPath: KV, secretKey: [text, number], format: dotenv}", files: map[string]string{"f": "text='plain'\nnumber='42'\n"}},
		{name: "as-properties", objects: "- {objectName: f, secretPath: KV, secretKey: [text, a.b], format: properties}", files: map[string]string{"f": `text=plain\na\.b=dotted` + "\n"}},
		{name: "as-pem", objects: "- {objectName: f, secretPath: pki/issue/my-app, method: PUT, format: pem, secretArgs: {common_name: a.test, ttl: 30m}}", files: map[string]string{"f": "(?s)-----BEGIN CERTIFICATE-----.*PRIVATE KEY-----\n"}},
		{name: "as-pkcs12", objects: "- {objectName: f, secretPath: pki/issue/my-app, method: PUT, format: pkcs12, password: changeit, secretArgs: {common_name: a.test, ttl: 30m}}", files: map[string]string{"f": "(?s)0.+"}},
		{name: "each", objects: "- {objectName: d, secretPath: DATA, secretKey: '*'}", files: map[string]string{"d/k": "two"}},
		{name: "nested", objects: one("map.a"), files: map[string]string{"f": "b"}},
		{name: "optional", objects: "- {objectName: f, secretPath: KV, secretKey: text}\n- {objectName: g, secretPath: KV-not-there, optional: true}", files: plain},

		// templates
		{name: "template", objects: "- objectName: f\n  template: |\n    {{- with secret \"KV\" }}\n    text={{ .Data.text }}\n    {{- end }}\n", files: map[string]string{"f": "\ntext=plain\n"}},
		{name: "template-database", objects: "- {objectName: u, secretPath: database/creds/DB, secretKey: username}\n- objectName: f\n  template: '{{ with secret \"database/creds/DB\" }}{{ .Data.username }}{{ end }}'\n", files: map[string]string{"u": "v-kubernet-.*", "f": "v-kubernet-.*"}},
		{name: "template-refused", objects: "- {objectName: f, template: '{{ file \"/etc/passwd\" }}'}", fails: "function file is refused: it reads files"},
		{name: "template-failing", objects: "- objectName: f\n  template: '{{ with secret \"KV\" }}{{ parseInt .Data.text }}{{ end }}'\n", fails: "function parseInt fails"},

		// how answers are looked after
		{name: "refresh", parameters: map[string]string{"refreshInterval": "10m"}, objects: item("refreshInterval: 30"), files: plain},
		{name: "certificate", objects: "- {objectName: c, secretPath: pki/issue/my-app, secretKey: certificate, method: PUT, secretArgs: &a {common_name: a.test, ttl: 30m}, renewAt: 50%, revokeOnEnd: true}\n" +
			"- {objectName: k, secretPath: pki/issue/my-app, secretKey: private_key, method: POST, secretArgs: *a}", files: map[string]string{"c": "(?s)-----BEGIN CERTIFICATE-----.*", "k": "(?s)-----BEGIN .*PRIVATE KEY-----.*"}},

		// YAML
		{name: "block", objects: text, files: plain},
		{name: "comment", objects: "# mine\n" + text + "# end\n", files: plain},
		{name: "indented", objects: "  - objectName: f\n    secretPath: KV\n    secretKey: text\n", files: plain},
		{name: "anchors", objects: "- &a {objectName: f, secretPath: KV, secretKey: text}\n- {<<: *a, objectName: g}\n", files: map[string]string{"f": "plain", "g": "plain"}},
		{name: "json", objects: `[{"objectName": "f", "secretPath": "KV", "secretKey": "text"}]`, files: plain},

		// credentials, both files from one read
		{name: "database", objects: "- {objectName: u, secretPath: database/creds/DB, secretKey: username}\n- {objectName: p, secretPath: /v1/database/creds/DB, secretKey: password}", files: map[string]string{"u": "v-kubernet-.*", "p": "[-A-Za-z0-9]+"}},
		{name: "expire", parameters: map[string]string{"onPodEnd": "revoke", "syncedLeases": "expire"}, objects: one("text"), files: plain},
		{name: "synced-revoke", parameters: map[string]string{"syncedLeases": "revoke"}, objects: one("text"), files: plain},

		// where and who
		{name: "address", parameters: map[string]string{"vaultAddress": vault.Address}, objects: one("text"), files: plain},
		{name: "mount-old", parameters: map[string]string{"vaultKubernetesMountPath": "kubernetes"}, objects: one("text"), files: plain},
		{name: "mount", parameters: map[string]string{"vaultAuthMountPath": "/kubernetes/"}, objects: one("text"), files: plain},
		{name: "audience", parameters: map[string]string{"audience": "vault"}, objects: one("text"), files: plain},
		{name: "namespace", parameters: map[string]string{"vaultNamespace": "team"}, objects: one("text"), files: plain}, // this Vault ignores it
		{name: "approle", parameters: map[string]string{"roleId": "conform", "vaultAuthMountPath": "MOUNT/approle"}, secret: "approle", objects: one("text"), files: plain, warns: "roleName has no effect beside roleId"},
		{name: "cert", parameters: withCA(map[string]string{"authMethod": "cert", "roleName": "conform", "vaultAuthMountPath": "MOUNT/cert"}), secret: "cert", objects: one("text"), files: plain},

		// TLS
		{name: "ca", parameters: withCA(map[string]string{}), objects: one("text"), files: plain},
		{name: "ca-folder", parameters: map[string]string{"vaultAddress": vault.TLSAddress, "vaultCADirectory": "FOLDER"}, objects: one("text"), files: plain},
		{name: "no-ca", parameters: map[string]string{"vaultAddress": vault.TLSAddress}, objects: one("text"), fails: "certificate"},
		{name: "tls-name", parameters: withCA(map[string]string{"vaultTLSServerName": bed.VaultName}), objects: one("text"), files: plain},
		{name: "tls-other-name", parameters: withCA(map[string]string{"vaultTLSServerName": "other.test"}), objects: one("text"), fails: "other.test"},
		{name: "client-pair", parameters: withCA(map[string]string{"vaultTLSClientCertPath": "FOLDER/client/tls.crt", "vaultTLSClientKeyPath": "FOLDER/client/tls.key"}), objects: one("text"), files: plain},
		{name: "half-a-pair", parameters: withCA(map[string]string{"vaultTLSClientCertPath": "FOLDER/client/tls.crt"}), objects: one("text"), fails: "must be set together"},
		{name: "skip", parameters: map[string]string{"vaultAddress": vault.TLSAddress, "vaultSkipTLSVerify": "true"}, objects: one("text"), files: plain},
		{name: "skip-1", parameters: map[string]string{"vaultAddress": vault.TLSAddress, "vaultSkipTLSVerify": "1"}, objects: one("text"), files: plain},
		{name: "skip-not", parameters: map[string]string{"vaultAddress": vault.TLSAddress, "vaultSkipTLSVerify": "false"}, objects: one("text"), fails: "certificate"},

		// what has no effect
		{name: "history", parameters: map[string]string{"kubernetesServiceAccountPath": "/x", "vaultCAPem": "x"}, objects: one("text"), files: plain, warns: `parameter "kubernetesServiceAccountPath" is unknown`},
		{name: "history-object", objects: item("objectVersion: '1', objectPath: /x"), files: plain, warns: `key "objectVersion" is unknown`},
		{name: "slip", parameters: map[string]string{"vaultAdress": "http://x"}, objects: one("text"), files: plain, warns: "did you mean vaultAddress?"},

		// OpenBao's names: more of them are made of those above
		{name: "openbao-first", provider: "openbao", parameters: map[string]string{"audience": "vault", "openbaoAddress": vault.Address, "vaultAddress": "http://elsewhere:8200"}, objects: one("text"), files: plain},
		{name: "bao-first", provider: "openbao", parameters: map[string]string{"audience": "vault", "baoAddress": vault.Address, "openbaoAddress": "http://elsewhere:8200"}, objects: one("text"), files: plain},
		{name: "bao-as-vault", provider: "openbao", parameters: map[string]string{"audience": "vault", "vaultAddress": vault.Address}, objects: one("text"), files: plain},
	}
}

// underOtherNames are the classes whose parameters have a name of OpenBao's, under that. Their pods' tokens are still for Vault.
func underOtherNames(classes []realClass) []realClass {
	var others []realClass
	for _, prefix := range []string{"bao", "openbao"} {
		for _, c := range classes {
			other, named := map[string]string{"audience": "vault"}, false
			for key, value := range c.parameters {
				if bare, ok := strings.CutPrefix(key, "vault"); ok {
					key, named = prefix+bare, true
				}
				other[key] = value
			}
			if named && c.provider == "" && c.warns == "" {
				c.name, c.provider, c.parameters = prefix+"-"+c.name, "openbao", other
				others = append(others, c)
			}
		}
	}
	return others
}

// mustCover compares the table with all keys that there are.
func mustCover(t *testing.T, classes []realClass) {
	t.Helper()
	text := "\nroleName\nobjects\n"
	for _, c := range classes {
		for key := range c.parameters {
			text += key + "\n"
		}
		text += regexp.MustCompile("[^A-Za-z]+").ReplaceAllString(c.objects, "\n")
	}
	for _, key := range slices.Concat(spec.Vault.Parameters(), spec.OpenBao.Parameters(), spec.ObjectKeys()) {
		if !strings.Contains(text, "\n"+key+"\n") {
			t.Errorf("no class has the key %s", key)
		}
	}
}

// conformance mounts every class of the table, looks at the files, and at what is left when all its pods are gone.
func (s *suite) conformance(t *testing.T) {
	p := s.newPlace(t, "conform")
	ctx := t.Context()
	kv, data := "kv1/"+p.role, "secret/data/"+p.role
	if _, err := p.vault.Logical().WriteWithContext(ctx, kv, oddValues); err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"one", "two"} {
		if _, err := p.vault.Logical().WriteWithContext(ctx, data, map[string]any{"data": map[string]any{"k": value}}); err != nil {
			t.Fatal(err)
		}
	}
	here := strings.NewReplacer("KV", kv, "DATA", data, "DB", p.role, "FOLDER", p.tlsFolder(), "MOUNT", p.role)
	p.enableLogins()
	classes := realClasses(s.bed.State().Vault)
	classes = append(classes, underOtherNames(classes)...)
	mustCover(t, classes)
	pods := make([]*corev1.Pod, len(classes))
	for i, c := range classes {
		parameters := map[string]any{"roleName": "my-app-role", "objects": here.Replace(c.objects)}
		for key, value := range c.parameters {
			parameters[key] = here.Replace(value)
		}
		provider := c.provider
		if provider == "" {
			provider = "vault"
		}
		p.apply(&unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "secrets-store.csi.x-k8s.io/v1", "kind": "SecretProviderClass",
			"metadata": map[string]any{"name": c.name},
			"spec":     map[string]any{"provider": provider, "parameters": parameters},
		}})
		pod := newPod(c.name, c.name)
		if c.secret != "" {
			pod.Spec.Volumes[0].CSI.NodePublishSecretRef = &corev1.LocalObjectReference{Name: c.secret}
		}
		pods[i] = p.create(pod)
	}
	for i, c := range classes {
		if c.fails != "" {
			p.awaitComplaint(c.name, c.fails)
			continue
		}
		p.awaitRunning(pods[i])
		p.mustShow(pods[i], c)
	}
	p.deleteAll()
	for _, pod := range pods {
		p.awaitObjectGone(pod)
	}
	p.awaitNothing()
}

// tlsFolder makes a folder with Vault's certificate alone, as a CA, and one below it with a client certificate.
func (p *place) tlsFolder() string {
	p.t.Helper()
	ca, err := os.ReadFile(p.bed.State().Vault.Certificate)
	if err != nil {
		p.t.Fatal(err)
	}
	cert, key := vaulttest.Pair("conform", time.Hour)
	folder := p.t.TempDir()
	for name, content := range map[string]string{"ca.crt": string(ca), "client/tls.crt": cert, "client/tls.key": key} {
		path := filepath.Join(folder, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			p.t.Fatal(err)
		}
	}
	return folder
}

// enableLogins mounts the methods that log in with a Secret, below the place's role, and makes the Secrets.
func (p *place) enableLogins() {
	p.t.Helper()
	for _, method := range []string{"approle", "cert"} {
		p.write("sys/auth/"+p.role+"/"+method, map[string]any{"type": method})
		p.t.Cleanup(func() { _ = p.vault.Sys().DisableAuth(p.role + "/" + method) })
	}
	p.write("auth/"+p.role+"/cert/certs/conform", map[string]any{"certificate": p.certificate("cert"), "token_policies": "my-app"})
	role := "auth/" + p.role + "/approle/role/conform"
	p.write(role, map[string]any{"token_policies": "my-app"})
	p.write(role+"/role-id", map[string]any{"role_id": "conform"})
	issued, err := p.vault.Logical().WriteWithContext(p.t.Context(), role+"/secret-id", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	id := issued.Data["secret_id"].(string)
	p.secrets.add("a secret-id", id)
	p.secret("approle", map[string]string{"secretId": id})
}

// mustShow compares a pod's volume with what its class should bring.
func (p *place) mustShow(pod *corev1.Pod, c realClass) {
	p.t.Helper()
	folder := filepath.Join(p.volumeFolder(pod, volume), "mount")
	for file, want := range c.files {
		content, err := os.ReadFile(filepath.Join(folder, file))
		if err != nil || !regexp.MustCompile("^(?:"+want+")$").Match(content) {
			p.t.Errorf("%s: file %s does not match %q: %v", c.name, file, want, err)
		}
		if block, _ := pem.Decode(content); strings.Contains(want, "BEGIN") && !strings.HasPrefix(want, `\[`) && block == nil {
			p.t.Errorf("%s: file %s is not PEM", c.name, file)
		}
	}
	for file, want := range c.modes {
		if info, err := os.Stat(filepath.Join(folder, file)); err != nil || info.Mode().Perm() != want {
			p.t.Errorf("%s: file %s: want mode %v, have %v, %v", c.name, file, want, info, err)
		}
	}
	if c.warns != "" {
		p.awaitEvent(pod.Name, "ClassWarning", c.warns)
	}
}
