package template_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	consul "github.com/hashicorp/consul-template/template"

	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/template"
)

// vault is a Vault of fixed replies, by method, path and query. What it does not have is denied below secret/, as by a policy that
// allows secret/data/ only, and absent elsewhere.
type vault struct {
	*httptest.Server
	replies map[string]string
}

func newVault(t *testing.T) *vault {
	v := &vault{replies: map[string]string{
		"GET database/creds/app": leased + `"data":{"username":"v-kube-app-x1","password":"p4ss-\"w'rd$<&>"}}`,
		"GET secret/data/app": `{"request_id":"r","lease_id":"","lease_duration":0,"renewable":false,"data":{"data":{"user":"ann","password":"s3cr=t:#!\\",
			"port":5432,"big":12345678901234567890,"ratio":0.5,"tls":true,"none":null,"json":"{\"a\":[1,2,{\"b\":\"c\"}]}","yaml":"a: 1\nb:\n- x\n- y\n",
			"b64":"aGVsbG8gd29ybGQ=","hosts":"a.example.com, b.example.com","empty":"","multi":"line1\nline2\n","ü":"ö","nested":{"x":{"y":"z"}},
			"list":["one","two"],"app/db/user":"u","kv":"k1=v1;k2=v2"},
			"metadata":{"created_time":"2026-01-02T03:04:05.678Z","custom_metadata":{"owner":"team-a"},"deletion_time":"","destroyed":false,"version":3}}}`,
		"GET secret/data/app?version=2":        `{"lease_duration":0,"data":{"data":{"user":"old"},"metadata":{"version":2}}}`,
		"GET secret/data/users/ann":            `{"data":{"data":{"user_name":"ann","user_password":"a1"},"metadata":{"version":1}}}`,
		"GET secret/data/users/bob":            `{"data":{"data":{"user_name":"bob","user_password":"b2"},"metadata":{"version":1}}}`,
		"GET secret/metadata/users?list=true":  `{"data":{"keys":["bob","ann","team/"]}}`,
		"GET kv1/app":                          `{"lease_duration":2764800,"renewable":false,"data":{"apikey":"k-1","secret":"s-1"},"warnings":["soon to end"]}`,
		"GET kv1?list=true":                    `{"data":{"keys":["app"]}}`,
		"PUT transit/encrypt/app":              `{"data":{"ciphertext":"vault:v1:abc","key_version":1}}`,
		"GET pki/cert/ca_chain":                `{"data":{"ca_chain":"-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----","certificate":"yy"}}`,
		"PUT pki/issue/web":                    issued(t),
		"GET sys/internal/ui/mounts/secret":    mountOf("secret/", "kv", "2"),
		"GET sys/internal/ui/mounts/kv1":       mountOf("kv1/", "kv", "1"),
		"GET sys/internal/ui/mounts/database":  `{"data":{"path":"database/","type":"database","options":null}}`,
		"GET sys/internal/ui/mounts/transit":   `{"data":{"path":"transit/","type":"transit","options":null}}`,
		"GET sys/internal/ui/mounts/pki":       `{"data":{"path":"pki/","type":"pki","options":null}}`,
		"GET database/static-creds/batch-role": `{"data":{"username":"batch","password":"b","ttl":3600,"rotation_period":86400,"last_vault_rotation":"2026-01-02T03:04:05Z"}}`,
		"PUT kv1/written":                      "",
	}}
	v.Server = httptest.NewServer(v)
	t.Cleanup(v.Close)
	return v
}

const leased = `{"request_id":"request-canary","lease_id":"database/creds/app/lease-canary","lease_duration":3600,"renewable":true,`

func mountOf(path, kind, version string) string {
	return fmt.Sprintf(`{"data":{"path":%q,"type":%q,"options":{"version":%q}}}`, path, kind, version)
}

func (v *vault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	if rest, ok := strings.CutPrefix(path, "sys/internal/ui/mounts/"); ok {
		mount, _, _ := strings.Cut(rest, "/")
		path = "sys/internal/ui/mounts/" + mount
	}
	if r.URL.RawQuery != "" {
		path += "?" + r.URL.RawQuery
	}
	body, ok := v.replies[r.Method+" "+path]
	switch {
	case ok && body == "":
		w.WriteHeader(http.StatusNoContent)
	case ok:
		_, _ = io.WriteString(w, body)
	case strings.HasPrefix(path, "secret/"):
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"errors":["permission denied"]}`)
	default:
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"errors":[]}`)
	}
}

// read is a template.Reader.
func (v *vault) read(ctx context.Context, reads []spec.Read) (map[spec.Read]template.Reply, error) {
	replies := make(map[spec.Read]template.Reply)
	for _, r := range reads {
		url := v.URL + "/v1/" + r.Path
		if r.Query != "" {
			url += "?" + r.Query
		}
		req, err := http.NewRequestWithContext(ctx, r.Method, url, strings.NewReader(r.Args))
		if err != nil {
			return nil, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return nil, err
		}
		switch resp.StatusCode {
		case http.StatusOK:
			replies[r] = template.Reply{Body: body}
		case http.StatusNotFound:
			replies[r] = template.Reply{Absent: true}
		case http.StatusForbidden:
			replies[r] = template.Reply{Denied: errDenied}
		default:
			replies[r] = template.Reply{}
		}
	}
	return replies, nil
}

var errDenied = errors.New("permission denied")

// agent renders a template as consul-template's runner does: again and again until nothing is missing.
func (v *vault) agent(t *testing.T, text string) string {
	t.Helper()
	clients := dependency.NewClientSet()
	if err := clients.CreateVaultClient(&dependency.CreateVaultClientInput{Address: v.URL, Token: "token"}); err != nil {
		t.Fatal(err)
	}
	theirs, err := consul.NewTemplate(&consul.NewTemplateInput{Contents: text})
	if err != nil {
		t.Fatal(err)
	}
	brain := consul.NewBrain()
	for range 8 {
		result, err := theirs.Execute(&consul.ExecuteInput{Brain: brain})
		if err != nil {
			t.Fatal(err)
		}
		if result.Missing.Len() == 0 {
			return string(result.Output)
		}
		for _, d := range result.Missing.List() {
			data, _, err := d.Fetch(clients, nil)
			if err != nil {
				t.Fatal(err)
			}
			brain.Remember(d, data)
		}
	}
	t.Fatal("it never ends")
	return ""
}

// issued is a reply of pki/issue with a chain of two authorities.
func issued(t *testing.T) string {
	t.Helper()
	type pair struct {
		cert *x509.Certificate
		key  *ecdsa.PrivateKey
		text string
	}
	sign := func(name string, ca bool, by *pair) *pair {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute),
			NotAfter: time.Now().Add(time.Hour), IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
		p := &pair{c, key, ""}
		if by == nil {
			by = p
		}
		der, err := x509.CreateCertificate(rand.Reader, c, by.cert, &key.PublicKey, by.key)
		if err != nil {
			t.Fatal(err)
		}
		p.text = strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
		return p
	}
	root := sign("root", true, nil)
	issuer := sign("issuer", true, root)
	leaf := sign("web.example.com", false, issuer)
	der, err := x509.MarshalPKCS8PrivateKey(leaf.key)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{"lease_id": "", "data": map[string]any{
		"certificate": leaf.text, "issuing_ca": issuer.text, "ca_chain": []string{issuer.text, root.text}, "expiration": time.Now().Add(time.Hour).Unix(),
		"private_key":      strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))),
		"private_key_type": "ec", "serial_number": "01:02",
	}})
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// agentTemplates are as people write them for the agent's sidecar.
var agentTemplates = map[string]string{
	"one value": `{{- with secret "database/creds/my-app" -}}{{ .Data.username }}{{- end -}}`,
	"postgres URL": `{{- with secret "database/creds/app" -}}
postgresql://{{ .Data.username }}:{{ .Data.password }}@postgres:5432/app?sslmode=require
{{- end -}}
`,
	"spring properties": `{{- with secret "database/creds/app" }}
spring.datasource.username={{ .Data.username }}
spring.datasource.password={{ .Data.password }}
{{- end }}
{{- with secret "secret/data/app" }}
app.api.user={{ .Data.data.user }}
app.api.port={{ .Data.data.port }}
app.api.big={{ .Data.data.big }}
app.tls={{ .Data.data.tls }}
{{- end }}
`,
	"pgpass": `{{ with secret "database/creds/app" }}*:*:*:{{ .Data.username | replaceAll ":" "\\:" }}:{{ .Data.password | replaceAll "\\" "\\\\" | replaceAll ":" "\\:" }}
{{ end }}`,
	"shell exports": `{{- with secret "secret/data/app" -}}
{{- range $k, $v := .Data.data -}}
export {{ $k }}="{{ $v }}"
{{ end -}}
{{- end -}}`,
	"dotenv of all keys": `{{ with secret "secret/data/app" }}
{{ range $k, $v := .Data.data }}
{{ $k | toUpper | regexReplaceAll "[^A-Z0-9_]" "_" }}={{ $v }}
{{ end }}
{{ end }}`,
	"dotenv, quoted": `{{ with secret "secret/data/app" -}}
USER={{ .Data.data.user | toJSON }}
PASS={{ .Data.data.password | toJSON }}
MULTI={{ .Data.data.multi | toJSON }}
{{ end }}`,
	"nginx upstream": `{{ with secret "secret/data/app" -}}
upstream app {
{{- range $host := .Data.data.hosts | split "," }}
  server {{ $host | trimSpace }}:8080;
{{- end }}
}
{{ end }}`,
	"json file": `{
  {{- with secret "database/creds/app" }}
  "database": {"username": {{ .Data.username | toJSON }}, "password": {{ .Data.password | toJSON }}},
  {{- end }}
  {{- with secret "secret/data/app" }}
  "port": {{ .Data.data.port }}, "ratio": {{ .Data.data.ratio }}, "none": {{ .Data.data.none | toJSON }}
  {{- end }}
}
`,
	"whole data as JSON":           `{{ with secret "secret/data/app" }}{{ .Data.data | toJSON }}{{ end }}`,
	"whole data as pretty JSON":    `{{ with secret "secret/data/app" }}{{ .Data.data | toJSONPretty }}{{ end }}`,
	"whole data, unescaped":        `{{ with secret "database/creds/app" }}{{ .Data | toUnescapedJSON }}{{ .Data | toUnescapedJSONPretty }}{{ end }}`,
	"whole data as YAML":           `{{ with secret "secret/data/app" }}{{ .Data.data | toYAML }}{{ end }}`,
	"data as TOML":                 `{{ with secret "database/creds/app" }}{{ .Data | toTOML }}{{ end }}`,
	"json inside":                  `{{ with secret "secret/data/app" }}{{ with $d := .Data.data.json | parseJSON }}{{ range $d.a }}<{{ . }}>{{ end }}{{ end }}{{ end }}`,
	"yaml inside":                  `{{ with secret "secret/data/app" }}{{ $d := .Data.data.yaml | parseYAML }}{{ $d.a }}{{ join "," (index $d "b" | sprig_toStrings) }}{{ end }}`,
	"metadata":                     `{{ with secret "secret/data/app" }}# version {{ .Data.metadata.version }} of {{ .Data.metadata.created_time }} by {{ .Data.metadata.custom_metadata.owner }}{{ end }}`,
	"a version":                    `{{ with secret "secret/data/app?version=2" }}{{ .Data.data.user }}{{ end }}`,
	"two versions":                 `{{ with secret "secret/data/app?version=2" }}{{ .Data.data.user }}{{ end }}{{ with secret "secret/data/app" }}{{ .Data.data.user }}{{ end }}`,
	"KV version 2, short path":     `{{ with secret "secret/app" }}{{ .Data.data.user }}{{ end }}`,
	"KV version 2, short, version": `{{ with secret "secret/app?version=2" }}{{ .Data.data.user }}{{ end }}`,
	"KV version 1":                 `{{ with secret "kv1/app" }}{{ .Data.apikey }} {{ .LeaseDuration }} {{ .Renewable }} {{ .Warnings }}{{ end }}`,
	"lease":                        `{{ with secret "database/creds/app" }}{{ .LeaseDuration }} {{ .Renewable }}{{ if .Auth }}auth{{ end }}{{ if .WrapInfo }}wrap{{ end }}{{ end }}`,
	"slashes around":               `{{ with secret " /secret/data/app/ " }}{{ .Data.data.user }}{{ end }}`,
	"users of a folder": `{{- range secrets "secret/metadata/users" }}
{{- if not (. | contains "/") }}
{{- with secret (printf "secret/data/users/%s" .) }}
"{{ .Data.data.user_name }}" "{{ .Data.data.user_password | md5sum }}"
{{- end }}{{ end }}{{ end }}`,
	"users of a folder, short": `{{- range secrets "secret/users/" }}
{{- if not (in . "/") }}{{ with secret (printf "secret/users/%s" .) }}{{ .Data.data.user_name }} {{ end }}{{ end }}{{ end }}`,
	"count of a folder":  `{{ $n := secrets "secret/metadata/users" | len }}{{ $i := 1 }}[{{ range secrets "secret/metadata/users" }}"{{ . }}"{{ if lt $i $n }}, {{ end }}{{ $i = add 1 $i }}{{ end }}]`,
	"list that is empty": `{{ range secrets "kv1/nothing" }}{{ . }}{{ else }}none{{ end }}`,
	"list of version 1":  `{{ range secrets "kv1/" }}{{ with secret (printf "kv1/%s" .) }}{{ range $k, $v := .Data }}{{ $k }}: {{ $v }}{{ end }}{{ end }}{{ end }}`,
	"nested withs": `{{ with secret "database/creds/app" }}{{ $db := . }}{{ with secret "kv1/app" }}{{ $api := . }}{{ with secret "secret/data/app" -}}
url=db://{{ $db.Data.username }}@h:{{ .Data.data.port }}?key={{ $api.Data.apikey }}{{ end }}{{ end }}{{ end }}`,
	"with and else":  `{{ with secret "secret/data/app" }}{{ with .Data.data.empty }}{{ . }}{{ else }}no value{{ end }}{{ end }}`,
	"if and missing": `{{ with secret "secret/data/app" }}{{ if .Data.data.nope }}yes{{ else if .Data.data.user }}user{{ end }}[{{ .Data.data.nope }}]{{ end }}`,
	"scratch": `{{ scratch.Set "zone" "example.com" }}{{ with secret "secret/data/app" }}{{ scratch.MapSet "all" "b" .Data.data.user }}{{ scratch.MapSet "all" "a" .Data.data.port }}{{ scratch.SetX "zone" "other" }}{{ end -}}
{{ scratch.Get "zone" }} {{ range scratch.MapValues "all" }}{{ . }},{{ end }}{{ if scratch.Key "none" }}x{{ end }}`,
	"explodeMap":                `{{ with secret "secret/data/app" }}{{ with $m := .Data.data | explodeMap }}{{ $m.app.db.user }}{{ end }}{{ end }}`,
	"mergeMap":                  `{{ with secret "secret/data/app" }}{{ $a := "{\"user\":\"x\",\"n\":\"y\"}" | parseJSON }}{{ mergeMap $a .Data.data.nested | toJSON }}{{ end }}`,
	"base64":                    `{{ with secret "secret/data/app" }}{{ .Data.data.b64 | base64Decode }} {{ .Data.data.user | base64Encode }} {{ "a?b" | base64URLEncode | base64URLDecode }}{{ end }}`,
	"basic auth":                `{{ with secret "secret/data/app" }}Authorization: Basic {{ printf "%s:%s" .Data.data.user .Data.data.password | base64Encode }}{{ end }}`,
	"indented block":            "{{ with secret \"secret/data/app\" }}key: |\n{{ .Data.data.multi | indent 4 }}{{ end }}",
	"sprig":                     `{{ with secret "secret/data/app" }}{{ .Data.data.nope | sprig_default "dflt" }} {{ .Data.data.user | sprig_upper | sprig_quote }} {{ .Data.data.user | sprig_sha256sum }} {{ sprig_dict "a" 1 "b" (sprig_list 1 2) | toJSON }}{{ end }}`,
	"sprig nindent":             `a:{{ with secret "secret/data/app" }}{{ .Data.data.multi | sprig_nindent 2 }}{{ end }}`,
	"hashes":                    `{{ with secret "secret/data/app" }}{{ .Data.data.user | sha256Hex }} {{ hmacSHA256Hex .Data.data.user "key" }} {{ .Data.data.user | md5sum }}{{ end }}`,
	"math":                      `{{ with secret "secret/data/app" }}{{ $p := .Data.data.port | sprig_toString | parseInt }}{{ add $p 1 }} {{ $p | multiply 2 }} {{ divide 3 $p }} {{ modulo 7 $p }} {{ maximum 3 $p }}{{ end }}`,
	"split to map":              `{{ with secret "secret/data/app" }}{{ range $k, $v := .Data.data.kv | splitToMap ";" "=" }}{{ $k }}->{{ $v }};{{ end }}{{ end }}`,
	"strings":                   `{{ with secret "secret/data/app" }}{{ .Data.data.hosts | trimSuffix "com" | toTitle }} {{ .Data.data.user | trimPrefix "a" | trim "n" }}{{ .Data.data.user | regexMatch "^a" }}{{ end }}`,
	"printf and html":           `{{ with secret "database/creds/app" }}{{ printf "%-20s|%q|%x" .Data.username .Data.password .Data.username }}{{ .Data.password | html }}{{ .Data.password | urlquery }}{{ .Data.password | js }}{{ end }}`,
	"index of keys":             `{{ with secret "secret/data/app" }}{{ index .Data.data "app/db/user" }}{{ index .Data.data.list 1 }}{{ len .Data.data.list }}{{ .Data.data.nested.x.y }}{{ end }}`,
	"loop":                      `{{ range loop 3 }}{{ . }}{{ end }}{{ range $i := loop 5 8 }}{{ if eq $i 6 }}{{ continue }}{{ end }}{{ $i }}{{ end }}`,
	"define":                    `{{ define "line" }}{{ . | toUpper }};{{ end }}{{ with secret "secret/data/app" }}{{ range .Data.data.list }}{{ template "line" . }}{{ executeTemplate "line" . }}{{ end }}{{ end }}`,
	"block":                     `{{ with secret "secret/data/app" }}{{ block "b" .Data.data.user }}<{{ . }}>{{ end }}{{ end }}`,
	"comment":                   `{{- /* written by ops */ -}}{{ with secret "secret/data/app" }}{{/* user */}}{{ .Data.data.user }}{{ end }}`,
	"static role":               `{{ with secret "database/static-creds/batch-role" }}{{ .Data.username }}:{{ .Data.password }} until {{ .Data.ttl }}{{ end }}`,
	"a write":                   `{{ with secret "transit/encrypt/app" "plaintext=aGk=" }}{{ .Data.ciphertext }} {{ .Data.key_version }}{{ end }}`,
	"a write without an answer": `{{ with secret "kv1/written" "a=b" }}{{ .Data }}{{ else }}written{{ end }}`,
	"PKI with secret": `{{ with secret "pki/issue/web" "common_name=web.example.com" "ttl=24h" }}{{ .Data.certificate }}
{{ .Data.private_key }}{{ range .Data.ca_chain }}
{{ . }}{{ end }}{{ end }}`,
	"PKI, key file":     `{{ with secret "pki/issue/web" "common_name=web.example.com" " ttl = 24h " "" }}{{ .Data.private_key }}{{ end }}`,
	"pkiCert":           `{{- with pkiCert "pki/issue/web" "common_name=web.example.com" "ttl=24h" -}}{{ .Cert }}{{ .CA }}{{ .Key }}{{- end -}}`,
	"pkiCert with Data": `{{ with pkiCert "pki/issue/web" "common_name=web.example.com" }}{{ .Data.Key }}{{ .Data.Cert }}{{ range .CAChain }}{{ . }}{{ end }}{{ if .Key }}key{{ end }}{{ end }}`,
	"pkiCert, chain":    `{{ with pkiCert (printf "pki/issue/%s" "web") (printf "common_name=%s" "web.example.com") }}{{ scratch.Set "chain" .Cert }}{{ range .CAChain }}{{ scratch.Set "chain" (printf "%s%s" (scratch.Get "chain") .) }}{{ end }}{{ end }}{{ scratch.Get "chain" }}`,
	"CA chain":          `{{ with secret "pki/cert/ca_chain" }}{{ .Data.ca_chain }}{{ end }}`,
	"no secret at all":  "plain text with } and { and $ and ümläut\n",
	"spew":              `{{ with secret "kv1/app" }}{{ spew_sprintf "%v" .Data.apikey }}{{ end }}`,
}

// TestAgentTemplates holds our rendering against consul-template's own, dependencies, Vault client and all.
func TestAgentTemplates(t *testing.T) {
	log.SetOutput(io.Discard) // the library's
	dependency.SetVaultLeaseRenewalThreshold(0.9)
	v := newVault(t)
	v.replies["GET database/creds/my-app"] = v.replies["GET database/creds/app"]
	for name, text := range agentTemplates {
		t.Run(name, func(t *testing.T) {
			want := v.agent(t, text)
			got, err := render(t, text, v.read)
			if err != nil {
				t.Fatal(err)
			}
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if strings.Contains(text, "secret \"") && bytes.Equal([]byte(got), []byte(text)) {
				t.Error("nothing was rendered")
			}
		})
	}
}
