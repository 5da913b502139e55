package vault

import (
	"encoding/json"
	"net/http"
	"time"
)

const (
	// kvRefresh is how often a plain secret is read again at most.
	kvRefresh = 2 * time.Minute
	// certShare is the share of its life after which a certificate is issued anew, in percent.
	certShare = 70
	// staticSlack is how long after its rotation a static role's password is read: within the last second of its ttl Vault
	// may still tell the old one.
	staticSlack = 2 * time.Second
)

// refreshAfter tells from the shape of a reply without a lease when reading again may bring something new.
func refreshAfter(method string, data json.RawMessage) time.Duration {
	var shape struct {
		Certificate string       `json:"certificate"`
		Expiration  json.Number  `json:"expiration"` // of a certificate, unix seconds
		TTL         *json.Number `json:"ttl"`        // of a static role's password, seconds
		LastRotated string       `json:"last_vault_rotation"`
	}
	// Another type in one of these places means another shape, which the zero values tell as well.
	_ = json.Unmarshal(data, &shape)
	if method != http.MethodGet && shape.Certificate != "" {
		if end, err := shape.Expiration.Int64(); err == nil && end > 0 {
			left := time.Until(time.Unix(end, 0))
			return max(left/100*certShare, time.Second)
		}
	}
	if shape.LastRotated != "" && shape.TTL != nil {
		if ttl, err := shape.TTL.Int64(); err == nil {
			return seconds(ttl) + staticSlack
		}
	}
	if method == http.MethodGet {
		return kvRefresh
	}
	return 0
}
