package vaulttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"time"
)

// certificateTTL is what a certificate gets if the request names no ttl.
const certificateTTL = 72 * time.Hour

// Certificate is one that was issued.
type Certificate struct {
	Serial   string
	Path     string // that it was issued at
	Accessor string // of the token it was issued under
	Expires  time.Time
	Revoked  bool
}

// Certificates returns every certificate ever issued, oldest first.
func (v *Vault) Certificates() []Certificate {
	v.enter()
	defer v.mu.Unlock()
	all := make([]Certificate, 0, len(v.certificates))
	for _, c := range v.certificates {
		all = append(all, *c)
	}
	return all
}

// PKI makes an issuing role of a PKI engine: a write of common_name and ttl answers a real certificate. By default it
// has no lease and outlives its token. If leased (generate_lease=true), it has one that cannot be renewed. The engine is the
// path's first segment; it revokes by serial number.
func (v *Vault) PKI(path string, leased bool) {
	now := v.enter()
	defer v.mu.Unlock()
	ca := newIssuer(now)
	mount, _, _ := strings.Cut(path, "/")
	v.mountLocked(mount+"/revoke", v.revokeCertificateLocked, unknownRole)
	v.mountLocked(path, func(c *call, t *token, now time.Time) (reply, step) {
		f, bad := c.fields()
		switch {
		case !c.writes():
			return unsupported, nil
		case bad != nil:
			return *bad, nil
		case f.CommonName == "":
			return failure(http.StatusBadRequest, "common_name is required"), nil
		}
		ttl := time.Duration(f.TTL)
		if ttl == 0 {
			ttl = certificateTTL
		}
		data := ca.issue(f.CommonName, now, ttl)
		serial := data["serial_number"].(string)
		v.issued = append(v.issued, data["private_key"].(string), serial)
		issued := &Certificate{Serial: serial, Path: path, Accessor: t.accessor, Expires: now.Add(ttl)}
		v.certificates = append(v.certificates, issued)
		e := envelope{Data: data}
		if !leased {
			return e.reply(http.StatusOK), nil
		}
		return v.leaseLocked(t, &lease{path: path, certificate: issued}, now, ttl, e), nil
	}, unknownRole)
}

// revokeCertificateLocked is an engine's revoke: of one that was revoked it says so again, of one that ended it does nothing.
func (v *Vault) revokeCertificateLocked(c *call, _ *token, now time.Time) (reply, step) {
	f, bad := c.fields()
	switch {
	case !c.writes():
		return unsupported, nil
	case bad != nil:
		return *bad, nil
	}
	for _, issued := range v.certificates {
		switch {
		case issued.Serial != f.SerialNumber || !strings.HasPrefix(issued.Path, strings.TrimSuffix(c.path, "revoke")):
			continue
		case !issued.Expires.After(now):
			return envelope{Warnings: []string{"certificate with serial " + f.SerialNumber + " already expired; refusing to add to CRL"}}.reply(http.StatusOK), nil
		}
		issued.Revoked = true
		return envelope{Data: map[string]any{"revocation_time": now.Unix(), "revocation_time_rfc3339": now.UTC(), "state": "revoked"}}.reply(http.StatusOK), nil
	}
	return failure(http.StatusBadRequest, "certificate with serial "+f.SerialNumber+" not found."), nil
}

// Pair returns a client certificate of an authority that nobody knows, and its key, both in PEM. A negative ttl means that it has
// expired.
func Pair(name string, ttl time.Duration) (cert, key string) {
	data := newIssuer(time.Now()).issue(name, time.Now(), ttl)
	return data["certificate"].(string), data["private_key"].(string)
}

// issuer is a certificate authority.
type issuer struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newIssuer(now time.Time) issuer {
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "vaulttest"},
		NotBefore:             now.Add(-30 * time.Second),
		NotAfter:              now.AddDate(10, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	return issuer{must(x509.ParseCertificate(der)), key}
}

// issue answers the data of an issued certificate, which like Vault's is valid from 30 s ago.
func (i issuer) issue(name string, now time.Time, ttl time.Duration) map[string]any {
	serial := must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 159)))
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name},
		NotBefore:    now.Add(-30 * time.Second),
		NotAfter:     now.Add(ttl),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	der := must(x509.CreateCertificate(rand.Reader, template, i.certificate, key.Public(), i.key))
	ca := block("CERTIFICATE", i.certificate.Raw)
	return map[string]any{
		"certificate":      block("CERTIFICATE", der),
		"issuing_ca":       ca,
		"ca_chain":         []string{ca},
		"private_key":      block("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(key))),
		"private_key_type": "ec",
		"serial_number":    colons(serial.Bytes()),
		"expiration":       now.Add(ttl).Unix(),
	}
}

// colons writes bytes as Vault writes a serial number.
func colons(b []byte) string {
	digits := make([]string, len(b))
	for i := range b {
		digits[i] = hex.EncodeToString(b[i : i+1])
	}
	return strings.Join(digits, ":")
}

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// must is for what fails only if the machine has no randomness.
func must[T any](x T, err error) T {
	if err != nil {
		panic(fmt.Sprintf("vaulttest: issuing a certificate: %v", err))
	}
	return x
}
