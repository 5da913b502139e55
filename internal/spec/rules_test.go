package spec_test

import (
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

func patterns(t *testing.T, texts ...string) (all []spec.AddressPattern) {
	t.Helper()
	for _, text := range texts {
		p, err := spec.ParseAddressPattern(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		all = append(all, p)
	}
	return all
}

func TestWhichAddressesAClassMayName(t *testing.T) {
	const other, reserved = "is not the provider's --vault-addr, and no --allow-vault-addr opens it", "address, and no --allow-vault-addr names it"
	open := spec.Rules{}
	only := spec.Rules{DefaultOnly: true}
	patterned := func(texts ...string) spec.Rules {
		return spec.Rules{DefaultOnly: true, Addresses: patterns(t, texts...)}
	}
	listed := spec.Rules{Addresses: patterns(t, "https://vault.example")}
	tests := []struct {
		name, address string
		rules         spec.Rules
		want          string // the end of the fault; empty for none
		guarded       bool
	}{
		{"anything by default", "https://other:1", open, "", true},
		{"the default", "https://vault:8200", only, "", false},
		{"the default in capitals", "HTTPS://VAULT:8200/", only, "", false},
		{"another", "https://other:8200", only, other, false},
		{"the default's host by another scheme", "http://vault:8200", only, other, false},
		{"the default's host at another port", "https://vault", only, other, false},

		{"what a pattern says", "https://a.example:8200", patterned("https://a.example:8200"), "", true},
		{"by the second pattern", "https://a.example:8200", patterned("https://b", "https://*.example:8200"), "", true},
		{"another scheme", "http://a.example:8200", patterned("https://*.example:8200"), other, false},
		{"another port", "https://a.example:8201", patterned("https://*.example:8200"), other, false},
		{"a longer host", "https://a.example.evil:8200", patterned("https://*.example:8200"), other, false},
		{"a host that swallows the port", "https://vault.evil:8200", patterned("https://vault*:443"), other, false},
		{"port of the scheme", "https://a.example", patterned("https://a.example:443"), "", true},
		{"port of the scheme, written", "https://a.example:443", patterned("https://a.example"), "", true},
		{"any port", "http://a.example:99", patterned("http://a.example:*"), "", true},
		{"one character", "https://a1.example", patterned("https://a?.example"), "", true},
		{"a list without a --vault-addr", "https://other.example", listed, other, false},

		{"loopback", "http://127.0.0.1:8200", open, reserved, false},
		{"loopback by name", "http://localhost:8200", open, reserved, false},
		{"metadata", "http://169.254.169.254", open, reserved, false},
		{"loopback in IPv6", "http://[::ffff:127.0.0.1]:8200", open, reserved, false},
		{"a wildcard does not name it", "http://127.0.0.1:8200", patterned("http://*:*"), reserved, false},
		{"a pattern names it", "http://127.0.0.1:8200", patterned("http://127.0.0.1:*"), "", false},
		{"a pattern names another", "http://127.0.0.2:8200", patterned("http://127.0.0.1:*", "http://127.0.0.?:*"), reserved, false},
		{"a pattern names localhost", "http://localhost:8200", patterned("http://LOCALHOST:8200"), "", false},
		{"a pattern names loopback in IPv6", "http://[::1]:8200", patterned("http://[::1]:8200"), "", false},
		{"a named name is not named as loopback", "http://a.example", patterned("http://a.example"), "", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := validCall()
			c.defaults.Rules = test.rules
			c.params["vaultAddress"] = test.address
			req, err := c.parse(t)
			if test.want != "" {
				if got := faults(t, err); len(got) != 1 || !strings.HasSuffix(got[0], test.want) {
					t.Errorf("faults %q\n want %q", got, test.want)
				}
				return
			}
			if err != nil {
				t.Fatalf("refused: %v", err)
			}
			if req.Spec.Server.Guarded != test.guarded {
				t.Errorf("guarded: %t", req.Spec.Server.Guarded)
			}
		})
	}
}

func TestAddressPatterns(t *testing.T) {
	for _, text := range []string{"", "vault", "vault:8200", "*", "*://vault", "unix:///x", "https://", "https://:8200", "https://a/b", "https://u@a", "https://[a-z]x", `https://a\*`, "https://[::1", "https://a:b:c", "https://a]"} {
		if p, err := spec.ParseAddressPattern(text); err == nil {
			t.Errorf("%q is taken for %v", text, p)
		}
	}
}

func TestReserved(t *testing.T) {
	for text, want := range map[string]bool{
		"127.0.0.1": true, "127.8.9.10": true, "::1": true, "::ffff:127.0.0.1": true,
		"169.254.169.254": true, "169.254.0.1": true, "fe80::1": true, "fe80::1%eth0": true, "::ffff:169.254.169.254": true,
		"0.0.0.0": true, "0.1.2.3": true, "::": true, "224.0.0.1": true, "ff02::1": true, "239.1.1.1": true,
		"100.100.100.200": true, "168.63.129.16": true, "192.0.0.192": true, "fd00:ec2::254": true, "fd20:ce::254": true,
		"::ffff:100.100.100.200": true, "::ffff:0.1.2.3": true, "fd00:ec2::254%eth0": true,
		"10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "8.8.8.8": false, "fd00::1": false, "2001:db8::1": false, "100.64.0.1": false,
	} {
		if got := spec.Reserved(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
}

func TestWhichNamespacesAClassMayName(t *testing.T) {
	tests := []struct {
		name, namespace, byDefault string
		allowed                    []string
		refused                    bool
	}{
		{"all by default", "a/b", "", nil, false},
		{"none", "", "", []string{"a"}, false},
		{"a listed one", "/a/", "", []string{"b", "a"}, false},
		{"another", "c", "", []string{"b", "a"}, true},
		{"a child", "a/b", "", []string{"a"}, true},
		{"a child by pattern", "a/b", "", []string{"a/*"}, false},
		{"a grandchild by pattern", "a/b/c", "", []string{"a/*"}, true},
		{"the default", "d", "d", []string{"a"}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := validCall()
			c.defaults.Namespace, c.defaults.Rules.Namespaces = test.byDefault, test.allowed
			param("vaultNamespace", test.namespace)(c)
			_, err := c.parse(t)
			if !test.refused {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if got := faults(t, err); len(got) != 1 || !strings.HasPrefix(got[0], "no --allow-vault-namespace opens vaultNamespace") {
				t.Errorf("faults %q", got)
			}
		})
	}
}

func TestWhereTheTLSFilesOfAClassMayLie(t *testing.T) {
	const ca, dir, crt, key = "vaultCACertPath", "vaultCADirectory", "vaultTLSClientCertPath", "vaultTLSClientKeyPath"
	tests := []struct {
		name   string
		params map[string]string
		allow  []string
		want   string // the folder; "refused" for a fault
	}{
		{"anywhere by default", map[string]string{ca: "/any/where"}, nil, ""},
		{"none named", nil, []string{"/tls"}, ""},
		{"in the folder", map[string]string{ca: "/tls/ca", crt: "/tls/a/crt", key: "/tls/a/key"}, []string{"/tls"}, "/tls"},
		{"the folder itself", map[string]string{dir: "/tls/"}, []string{"/tls"}, "/tls"},
		{"in the second folder", map[string]string{ca: "/b/ca"}, []string{"/a", "/b"}, "/b"},
		{"elsewhere", map[string]string{ca: "/etc/shadow"}, []string{"/tls"}, "refused"},
		{"a folder elsewhere", map[string]string{dir: "/"}, []string{"/tls"}, "refused"},
		{"climbs out", map[string]string{ca: "/tls/../etc/ca"}, []string{"/tls"}, "refused"},
		{"only a prefix", map[string]string{ca: "/tls2/ca"}, []string{"/tls"}, "refused"},
		{"one of the pair elsewhere", map[string]string{crt: "/tls/crt", key: "/etc/key"}, []string{"/tls"}, "refused"},
		{"in two folders", map[string]string{crt: "/a/crt", key: "/b/key"}, []string{"/a", "/b"}, "refused"},
		{"the default's", map[string]string{ca: "/d/ca"}, []string{"/tls"}, ""},
		{"everywhere", map[string]string{ca: "/any/where"}, []string{"/"}, "/"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := validCall()
			c.defaults.Server.CACert, c.defaults.Rules.TLSFolders = "/d/ca", test.allow
			maps.Copy(c.params, test.params)
			req, err := c.parse(t)
			if test.want == "refused" {
				if got := faults(t, err); len(got) != 1 || !strings.HasPrefix(got[0], "no one --allow-tls-dir holds ") {
					t.Errorf("faults %q", got)
				}
				return
			}
			if err != nil {
				t.Fatalf("refused: %v", err)
			}
			if got := req.Spec.Server.TLSFolder; got != test.want {
				t.Errorf("folder %q, want %q", got, test.want)
			}
		})
	}
}

// A volume keeps its login when the operator opens or closes something else.
func TestRulesAreNoPartOfTheWish(t *testing.T) {
	c := validCall()
	c.params["vaultAddress"], c.params["vaultCACertPath"] = "https://a.example", "/tls/ca"
	before := c.mustParse(t).Spec.Digest
	c.defaults.Rules = spec.Rules{DefaultOnly: true, Addresses: patterns(t, "https://a.example"), TLSFolders: []string{"/tls"}}
	if c.mustParse(t).Spec.Digest != before {
		t.Error("the digest changed")
	}
}
