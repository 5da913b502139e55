package render_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/leasehold-csi/leasehold/internal/render"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// fixed are a key and a certificate that are the same in every run.
const (
	fixedKey = `-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIG/s5wHRvwqY9NSUXQjWK2L+gCSgMSiTfgkJeicGkIAF
-----END PRIVATE KEY-----
`
	fixedCertificate = `-----BEGIN CERTIFICATE-----
MIIBODCB66ADAgECAhQDPcNyIfkkQgytHsYGgqzmPVI6/DAFBgMrZXAwETEPMA0G
A1UEAwwGc3RhYmxlMCAXDTI2MTEyNTE5NTczNloYDzIxMjYxMTAxMTk1NzM2WjAR
MQ8wDQYDVQQDDAZzdGFibGUwKjAFBgMrZXADIQBGE2sW3KhQ1Rps6p5w2AwkH+sz
whpwo953ZrbhUG7LjqNTMFEwHQYDVR0OBBYEFK0hWfimz+h3O7rCZ+MlOUsndSCO
MB8GA1UdIwQYMBaAFK0hWfimz+h3O7rCZ+MlOUsndSCOMA8GA1UdEwEB/wQFMAMB
Af8wBQYDK2VwA0EAj6QkiN8JU/p7xYyUSO0QAzCHMZmu7Z2f/RWyJ2Lh8rFXiytt
OICbJHmpX8hApLoB4OwFe6bbv21GTjoU4jCYDQ==
-----END CERTIFICATE-----
`
)

// issued is a certificate in PEM, and its key.
type issued struct {
	pem  string
	cert *x509.Certificate
	key  crypto.Signer
}

// issue makes a certificate; a parent without key is none, and the certificate its own issuer.
func issue(t *testing.T, name string, key crypto.Signer, parent issued) issued {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Unix(1<<32, 0),
		BasicConstraintsValid: true, IsCA: strings.HasSuffix(name, "CA"),
	}
	if parent.key == nil {
		parent = issued{cert: template, key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return issued{block("CERTIFICATE", string(der)), cert, key}
}

func ecKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func pkcs8(t *testing.T, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return block("PRIVATE KEY", string(der))
}

func sec1(t *testing.T, key *ecdsa.PrivateKey) string {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return block("EC PRIVATE KEY", string(der))
}

// TestPKCS12: the library and openssl find in a store what was in the answer, for each kind of key and where it can stand.
func TestPKCS12(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leafKey := ecKey(t)
	root := issue(t, "root CA", ecKey(t), issued{})
	issuer := issue(t, "issuing CA", ecKey(t), root)
	ofRSA, ofEC, ofEd := issue(t, "a.test", rsaKey, issuer), issue(t, "a.test", leafKey, issuer), issue(t, "a.test", edKey, issuer)
	pki := func(leaf issued, key string) map[string]any {
		return map[string]any{
			"certificate": leaf.pem, "issuing_ca": issuer.pem, "ca_chain": []string{issuer.pem, root.pem}, "private_key": strings.TrimSpace(key),
			"private_key_type": "x", "serial_number": "1", "expiration": 1,
		}
	}
	bundle := pki(ofEC, sec1(t, leafKey))
	bundle["certificate"] = sec1(t, leafKey) + ofEC.pem + issuer.pem
	for _, test := range []struct {
		name     string
		data     map[string]any
		keys     []string
		password string
		want     []issued
	}{
		{"RSA, PKCS #1", pki(ofRSA, block("RSA PRIVATE KEY", string(x509.MarshalPKCS1PrivateKey(rsaKey)))), nil, "changeit", []issued{ofRSA, issuer, root}},
		{"RSA, PKCS #8", pki(ofRSA, pkcs8(t, rsaKey)), nil, "changeit", []issued{ofRSA, issuer, root}},
		{"EC, SEC 1", pki(ofEC, sec1(t, leafKey)), nil, ` "a' $~`, []issued{ofEC, issuer, root}},
		{"EC, PKCS #8", pki(ofEC, pkcs8(t, leafKey)), nil, strings.Repeat("x", 128), []issued{ofEC, issuer, root}},
		{"Ed25519", pki(ofEd, pkcs8(t, edKey)), nil, "x", []issued{ofEd, issuer, root}},
		{"as a bundle", bundle, nil, "changeit", []issued{ofEC, issuer, root}},
		{"keys", pki(ofEC, sec1(t, leafKey)), []string{"private_key", "certificate", "ca_chain.1"}, "changeit", []issued{ofEC, root}},
		{"one text, with what is neither", map[string]any{"all": ofEC.pem + block("EC PARAMETERS", "x") + pkcs8(t, leafKey)}, []string{"all"}, "changeit", []issued{ofEC}},
	} {
		t.Run(test.name, func(t *testing.T) {
			store, err := rendered(spec.Object{Format: spec.PKCS12, Password: test.password, Keys: test.keys}, bodyOf(t, test.data))
			if err != nil {
				t.Fatal(err)
			}
			key, leaf, chain, err := pkcs12.DecodeChain([]byte(store), test.password)
			if err != nil {
				t.Fatal(err)
			}
			if !test.want[0].key.(interface{ Equal(crypto.PrivateKey) bool }).Equal(key) {
				t.Error("the library finds another key")
			}
			if got := append([]*x509.Certificate{leaf}, chain...); !slices.EqualFunc(got, test.want, func(c *x509.Certificate, w issued) bool { return c.Equal(w.cert) }) {
				t.Errorf("the library finds %d certificates, not those that were written in their order", len(got))
			}
			want := pkcs8(t, test.want[0].key)
			for _, w := range test.want {
				want += w.pem
			}
			if got := opened(t, store, test.password); got != want {
				t.Error("openssl finds another key or other certificates")
			}
			again, err := rendered(spec.Object{Format: spec.PKCS12, Password: test.password, Keys: test.keys}, bodyOf(t, test.data))
			if err != nil || again != store {
				t.Errorf("the same answer gives another store: %v", err)
			}
		})
	}
}

// opened is what openssl finds in a store: the private key, and the certificates in their order.
func opened(t *testing.T, store, password string) (text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "store")
	if err := os.WriteFile(file, []byte(store), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "openssl", "pkcs12", "-in", file, "-passin", "pass:"+password, "-nodes").Output()
	if err != nil {
		t.Fatalf("openssl: %v", err)
	}
	for found, rest := pem.Decode(out); found != nil; found, rest = pem.Decode(rest) {
		plain := block(found.Type, string(found.Bytes)) // without what openssl tells beside
		if found.Type == "PRIVATE KEY" {
			text = plain + text
		} else {
			text += plain
		}
	}
	return text
}

// TestPKCS12IsStable: a file must not change with a version of Go, of the library or of Leasehold, and nothing that is random may be
// the same in two stores.
func TestPKCS12IsStable(t *testing.T) {
	fixed := map[string]any{"key": fixedKey, "cert": fixedCertificate}
	other := issue(t, "other CA", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), issued{})
	with := func(changes map[string]any) map[string]any {
		data := maps.Clone(fixed)
		maps.Copy(data, changes)
		return data
	}
	seen := make(map[string]string)
	for _, test := range []struct {
		name, password string
		data           map[string]any
		keys           []string
	}{
		{"fixed", "changeit", fixed, []string{"key", "cert"}},
		{"another password", "changei", fixed, []string{"key", "cert"}},
		{"a chain", "changeit", with(map[string]any{"ca": other.pem}), []string{"key", "cert", "ca"}},
		{"the chain before", "changeit", with(map[string]any{"cert": other.pem, "key": pkcs8(t, other.key), "ca": fixedCertificate}), []string{"key", "cert", "ca"}},
		{"another pair", "changeit", with(map[string]any{"cert": other.pem, "key": pkcs8(t, other.key)}), []string{"key", "cert"}},
	} {
		store, err := rendered(spec.Object{Format: spec.PKCS12, Password: test.password, Keys: test.keys}, bodyOf(t, test.data))
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		random := 0
		for i := range len(store) - 18 {
			if store[i] != 4 || store[i+1] != 16 { // a string of 16 bytes
				continue
			}
			random++
			value := store[i+2 : i+18]
			if before, again := seen[value]; again {
				t.Errorf("%s: a salt or vector is also one of %q", test.name, before)
			}
			seen[value] = test.name
		}
		if random < 5 {
			t.Errorf("%s: %d salts and vectors of 16 bytes, want those of certificates, key and MAC", test.name, random)
		}
		const want = "286869e5d9677864fcbe7e9efeaffbcb53a0a271e409000babbc1056d1610a9a"
		if sum := sha256.Sum256([]byte(store)); test.name == "fixed" && hex.EncodeToString(sum[:]) != want {
			t.Errorf("the store changed, and so would every such file at an upgrade: its digest is %x", sum)
		}
	}
}

func TestPKCS12Errors(t *testing.T) {
	stranger := pkcs8(t, ecKey(t))
	large := block("PRIVATE KEY", strings.Repeat("canary", 1100))
	broken := block("CERTIFICATE", "canary")
	const unfit = "holds a private key that is not the first certificate's, or none that format pkcs12 can write: RSA, EC or Ed25519, not encrypted"
	for _, test := range []struct{ name, text, want string }{
		{"no certificate", fixedKey, "holds no certificate, which format pkcs12 needs"},
		{"no key", fixedCertificate, "holds no private key, which format pkcs12 needs"},
		{"neither", block("X509 CRL", "canary"), "holds no certificate, which format pkcs12 needs"},
		{"two keys", fixedCertificate + fixedKey + stranger, "holds 2 private keys, of which format pkcs12 takes one"},
		{"another's key", fixedCertificate + stranger, unfit},
		{"encrypted", fixedCertificate + block("ENCRYPTED PRIVATE KEY", "canary"), unfit},
		{"no key within", fixedCertificate + block("canary PRIVATE KEY", "canary"), unfit},
		{"a kind of key that ends alike", fixedCertificate + block("canaryPRIVATE KEY", "canary"), unfit},
		{"large key", fixedCertificate + large, "holds a private key that is larger than 8192 bytes"},
		{"broken certificate", fixedCertificate + broken + fixedKey, "holds 2 certificates, of which number 2 cannot be read"},
		{"no PEM", "canary", `has under key "a" what is not PEM: it holds no block`},
	} {
		_, err := rendered(spec.Object{Format: spec.PKCS12, Password: "changeit", Key: "a"}, bodyOf(t, map[string]any{"a": test.text}))
		if want := `object "file": the answer of "database/creds/my-app" ` + test.want; err == nil || err.Error() != want {
			t.Errorf("%s: %v, want\n%s", test.name, err, want)
		}
	}
	_, err := rendered(spec.Object{Format: spec.PKCS12, Password: "changeit"}, `{"data":{"a":"canary"}}`)
	if want := `has no key "certificate", as a PKI engine's would, so that format pkcs12 needs secretKey; its keys are "a"`; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("of no PKI engine: %v, want ... %s", err, want)
	}
}

// FuzzPKCS12: whatever stands in whatever order, it becomes the same store twice, of which the key is the certificate's, or a sentence.
func FuzzPKCS12(f *testing.F) {
	f.Add([]byte{0, 1}, "", "changeit")
	f.Add([]byte{2, 3, 0, 4, 3}, "text around", "~ ")
	f.Add([]byte{0, 1, 5}, strings.Replace(fixedCertificate, "\n", "\na: b\n\n", 1), "é")
	f.Add([]byte{5, 0}, block("X PRIVATE KEY", "x"), "😀")
	f.Fuzz(func(t *testing.T, order []byte, piece, password string) {
		second := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
		pieces := []string{fixedCertificate, fixedKey, issue(t, "second CA", second, issued{}).pem, pkcs8(t, second), block("EC PARAMETERS", "x"), piece}
		var text strings.Builder
		for _, i := range order[:min(len(order), 16)] {
			text.WriteString(pieces[int(i)%len(pieces)] + "\n")
		}
		o, body := spec.Object{Format: spec.PKCS12, Password: password, Key: "a"}, bodyOf(t, map[string]any{"a": text.String()})
		store, err := rendered(o, body)
		if err != nil {
			var e *render.Error
			if !errors.As(err, &e) || len(e.Problem) > 512 {
				t.Errorf("%v", err)
			}
			return
		}
		if again, err := rendered(o, body); err != nil || again != store {
			t.Errorf("another store the second time, %v", err)
		}
		key, leaf, _, err := pkcs12.DecodeChain([]byte(store), password)
		if err != nil {
			t.Fatal(err)
		}
		if !key.(crypto.Signer).Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(leaf.PublicKey) {
			t.Error("the key is not the certificate's")
		}
	})
}
