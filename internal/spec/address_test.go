package spec_test

import (
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

func TestParseAddress(t *testing.T) {
	for text, want := range map[string]string{ // empty: refused
		"https://Vault:8200":                "https://vault:8200",
		"https://vault/":                    "https://vault",
		"http://[::1]:8200":                 "http://[::1]:8200",
		"https://proxy/vault/":              "https://proxy/vault",
		"unix:///var/run/vault/agent.sock":  "unix:///var/run/vault/agent.sock",
		"unix:///var/run//vault/agent.sock": "unix:///var/run/vault/agent.sock",
		"":                                  "",
		"vault":                             "",
		"vault:8200":                        "",
		"ftp://vault":                       "",
		"https://":                          "",
		"https://:8200":                     "",
		"https://u:canary@vault":            "",
		"https://vault?canary":              "",
		"https://vault#canary":              "",
		"https:vault":                       "",
		"unix://agent.sock":                 "",
		"unix:agent.sock":                   "",
		"unix://":                           "",
		"https://va ult":                    "",
		"https://vault:canary":              "",
	} {
		got, err := spec.ParseAddress(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%q: the error repeats it: %v", text, err)
		}
	}
}
