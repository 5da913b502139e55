package vault

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
)

// maxSerial bounds the text of a serial number. One has 20 bytes at most, of three characters each (RFC 5280).
const maxSerial = 64

// Certificate is what a reply says of the certificate that it brought.
type Certificate struct {
	// Serial is its serial number; zero when the reply has none, or one that cannot be.
	Serial   secret.Value
	Validity grant.Validity
}

// shape is what replies are told apart by. What may be of any type in a secret that only looks like these must not keep the rest from
// being read.
type shape struct {
	// Of a certificate: issue and sign of a PKI engine (1.21.2) answer with all of these.
	Certificate string `json:"certificate"`
	Serial      string `json:"serial_number"`
	Expiration  any    `json:"expiration"` // unix seconds
	// Of a password that Vault changes by itself, whether after a period or on a schedule: database, ldap and openldap.
	TTL         any    `json:"ttl"` // seconds until it does
	LastRotated string `json:"last_vault_rotation"`
	Period      any    `json:"rotation_period"`
	Schedule    string `json:"rotation_schedule"`
}

// look sees what a reply's data is. A certificate that comes with a lease lives as long as that, which no clock can have wrong.
func (r *Reply) look(method string, data json.RawMessage) {
	var s shape
	_ = json.Unmarshal(data, &s) // a text that is none is left out, and means another shape
	if method != http.MethodGet && s.Certificate != "" {
		r.Certificate = s.certificate()
		if r.Certificate != nil && !r.LeaseID.IsZero() && r.TTL > 0 {
			r.Certificate.Validity = grant.Validity{Span: r.TTL, Left: r.TTL}
		}
	}
	if method == http.MethodGet && r.LeaseID.IsZero() && (s.LastRotated != "" || s.Period != nil || s.Schedule != "") {
		if ttl, ok := s.TTL.(float64); ok {
			r.Rotation = new(grant.Rotation(seconds(whole(ttl))))
		}
	}
}

// certificate returns nil for what does not say when it ends.
func (s *shape) certificate() *Certificate {
	c := new(Certificate)
	if len(s.Serial) <= maxSerial {
		c.Serial = secret.New(s.Serial)
	}
	var end time.Time
	if seconds, ok := s.Expiration.(float64); ok && seconds > 0 {
		end = time.Unix(whole(seconds), 0)
	}
	if issued := parseCertificate(s.Certificate); issued != nil {
		c.Validity.Span = min(issued.NotAfter.Sub(issued.NotBefore), century)
		if end.IsZero() || issued.NotAfter.Before(end) {
			end = issued.NotAfter
		}
	}
	if end.IsZero() {
		return nil
	}
	c.Validity.Left = min(time.Until(end), century)
	return c
}

// parseCertificate reads the formats that PKI engines issue in: pem, pem_bundle (with the key before it) and der. nil for others.
func parseCertificate(text string) *x509.Certificate {
	der, _ := base64.StdEncoding.DecodeString(text)
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			der = block.Bytes
			break
		}
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil
	}
	return certificate
}

// whole is a number of seconds, as far as it is one that time can hold.
func whole(seconds float64) int64 {
	const most = 1 << 50
	return int64(min(max(seconds, -most), most))
}
