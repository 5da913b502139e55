package vault

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math"
	"strings"
	"time"

	"github.com/leasehold-csi/leasehold/internal/secret"
)

// Bounds of what is read of a token, and said about it.
const (
	maxToken     = 16 << 10 // bytes of its claims
	maxAudiences = 4
)

// claims are what a service account token says of itself, unverified. They are no secret: only the signature makes a token.
type claims struct {
	Issuer   string    `json:"iss"`
	Subject  string    `json:"sub"`
	Audience audiences `json:"aud"`
	Expires  float64   `json:"exp"` // seconds since 1970
	// readable: the token is a JWT.
	readable bool
}

// audiences is a list, or one text, as RFC 7519 allows.
type audiences []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audiences) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(a))
}

// claimsOf reads a token without verifying it. Errors are not told: they may quote it.
func claimsOf(jwt secret.Value) claims {
	parts := strings.Split(jwt.Reveal(), ".")
	if len(parts) != 3 || len(parts[1]) > maxToken {
		return claims{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return claims{}
	}
	var c claims
	if json.Unmarshal(payload, &c) != nil {
		return claims{}
	}
	c.readable = true
	return c
}

// describe says who made the token and for whom. The subject is that which a token of this pod has; another one is told. The time
// of its end is not told relative to now: events with the same text are counted, not repeated.
func (c claims) describe(subject string) string {
	if !c.readable {
		return "a token that is no JWT"
	}
	text := "token issuer " + c.issuerOr("none") + ", audience " + c.audienceOr("none")
	if c.Subject != subject {
		text += ", subject " + quote(c.Subject)
	}
	if end := c.end(); !end.IsZero() && time.Now().After(end) {
		text += ", expired at " + end.UTC().Format(time.RFC3339)
	}
	return text
}

// end is when the token expires; zero when it does not say.
func (c claims) end() time.Time {
	const year10000 = 253402300800
	if !(c.Expires > 0 && c.Expires < year10000) {
		return time.Time{}
	}
	return time.Unix(int64(math.Floor(c.Expires)), 0)
}

func (c claims) issuerOr(none string) string {
	if c.Issuer == "" {
		return none
	}
	return quote(c.Issuer)
}

func (c claims) audienceOr(none string) string {
	if len(c.Audience) == 0 {
		return none
	}
	var quoted []string
	for _, a := range c.Audience[:min(len(c.Audience), maxAudiences)] {
		quoted = append(quoted, quote(a))
	}
	if len(c.Audience) > maxAudiences {
		quoted = append(quoted, "...")
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// describeCertificate says whose the client certificate of a pair is, and who signed it.
func describeCertificate(pair secret.Value) string {
	for rest := []byte(pair.Reveal()); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return "no client certificate"
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			continue
		}
		text := "client certificate of " + quote(c.Subject.String()) + ", issuer " + quote(c.Issuer.String())
		if time.Now().After(c.NotAfter) {
			text += ", expired at " + c.NotAfter.UTC().Format(time.RFC3339)
		}
		return text
	}
}
