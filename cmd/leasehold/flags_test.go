package main

import (
	"io"
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// The page is nowhere unless it is asked for, and then at a loopback address only.
func TestPageAddress(t *testing.T) {
	for args, want := range map[string]string{
		"": "", "--ui-addr=": "", "--ui-addr=127.0.0.1:8081": "127.0.0.1:8081", "--ui-addr=[::1]:0": "[::1]:0", "--ui-addr=localhost:8081": "127.0.0.1:8081",
		"--ui-addr=:8081": "refused", "--ui-addr=0.0.0.0:8081": "refused", "--ui-addr=[::]:8081": "refused", "--ui-addr=10.0.0.7:8081": "refused",
		"--ui-addr=localhost.example.com:8081": "refused", "--ui-addr=127.0.0.1": "refused",
	} {
		o, err := parseServe(append(strings.Fields(args), "--node-name=n"), io.Discard)
		if got := o.uiAddr; (err != nil) != (want == "refused") || err == nil && got != want {
			t.Errorf("%q: %q, %v", args, got, err)
		}
	}
}

// TestServerSettings: a flag wins over the environment; what OpenBao's say nothing about follows Vault's; only the documented
// variables are looked at.
func TestServerSettings(t *testing.T) {
	const standard = "https://127.0.0.1:8200"
	tests := []struct {
		name           string
		args           []string
		env            map[string]string
		vault, openbao spec.Server // Address is standard when empty
	}{
		{"nothing", nil, nil, spec.Server{}, spec.Server{}},
		{"flag", []string{"-vault-addr=http://a/"}, map[string]string{"VAULT_ADDR": "http://b"}, spec.Server{Address: "http://a"}, spec.Server{Address: "http://a"}},
		{"environment", nil, map[string]string{"VAULT_ADDR": "http://b"}, spec.Server{Address: "http://b"}, spec.Server{Address: "http://b"}},
		{"agent's address", nil, map[string]string{"VAULT_ADDR": "http://b", "VAULT_AGENT_ADDR": "http://c"}, spec.Server{Address: "http://c"}, spec.Server{Address: "http://c"}},
		{"OpenBao's flag", []string{"--openbao-addr", "http://a"}, map[string]string{"BAO_ADDR": "http://b"}, spec.Server{}, spec.Server{Address: "http://a"}},
		{"OpenBao's environment wins over Vault's flag", []string{"--vault-addr", "http://a"}, map[string]string{"BAO_ADDR": "http://b"}, spec.Server{Address: "http://a"}, spec.Server{Address: "http://b"}},
		{"everything", nil, map[string]string{
			"VAULT_CACERT": "/ca", "VAULT_CAPATH": "/d", "VAULT_TLS_SERVER_NAME": "n", "VAULT_CLIENT_CERT": "/c", "VAULT_CLIENT_KEY": "/k", "VAULT_SKIP_VERIFY": "true",
		}, spec.Server{CACert: "/ca", CADirectory: "/d", ServerName: "n", ClientCert: "/c", ClientKey: "/k", SkipVerify: true},
			spec.Server{CACert: "/ca", CADirectory: "/d", ServerName: "n", ClientCert: "/c", ClientKey: "/k", SkipVerify: true}},
		{"switched on again", []string{"--openbao-tls-skip-verify=false", "--vault-tls-skip-verify"}, nil, spec.Server{SkipVerify: true}, spec.Server{}},
		{"not obeyed", nil, map[string]string{"VAULT_TOKEN": "canary", "VAULT_PROXY_ADDR": "http://p", "VAULT_MAX_RETRIES": "9"}, spec.Server{}, spec.Server{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for name, value := range test.env {
				t.Setenv(name, value)
			}
			o, err := parseServe(append(test.args, "--node-name=n"), io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			for _, side := range []struct {
				got      spec.Defaults
				want     spec.Server
				provider spec.Provider
			}{{o.vault, test.vault, spec.Vault}, {o.openbao, test.openbao, spec.OpenBao}} {
				if side.want.Address == "" {
					side.want.Address = standard
				}
				if side.got.Server != side.want || side.got.Provider != side.provider || side.got.AuthMount != "kubernetes" {
					t.Errorf("%s: got  %+v\nwant %+v", side.provider, side.got, side.want)
				}
			}
		})
	}
	t.Setenv("VAULT_SKIP_VERIFY", "perhaps")
	if _, err := parseServe([]string{"--node-name=n"}, io.Discard); err == nil || err.Error() != `bad usage: environment variable VAULT_SKIP_VERIFY: parse error` {
		t.Errorf("a variable that is no truth value: %v", err)
	}
}
