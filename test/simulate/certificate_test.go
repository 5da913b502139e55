package simulate_test

import (
	"slices"
	"time"

	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

const (
	// shortCertificate is issued anew within a life; longCertificate outlives it.
	shortCertificate, longCertificate = 15 * time.Minute, 10 * time.Hour
	// unused is what must have passed of a life before the next one is issued: less than at which it is due.
	unused = 0.4
)

// certificate is one that Vault issued.
type certificate struct {
	pem, key string
	born     time.Time
	lost     bool // nobody can know of it
	shown    bool
}

// life is how long a pod's certificates live.
func (p *pod) life() time.Duration {
	if p.kind.rotates || p.kind.lease.TTL < 10*time.Minute {
		return shortCertificate
	}
	return longCertificate
}

// shownLocked is the certificate that a pod shows; nil for none.
func (w *world) shownLocked(p *pod) *certificate {
	for _, c := range w.certificates {
		if c.pem == p.shown["crt"] {
			return c
		}
	}
	return nil
}

// issuedLocked judges a new certificate: the one before is to be used.
func (w *world) issuedLocked(a asked) {
	p := w.podLocked(a.pod)
	if p == nil || p.reissue {
		return
	}
	if before := w.shownLocked(p); before != nil && time.Since(before.born).Seconds() < unused*p.life().Seconds() {
		w.violatedLocked("reissue", p.name, "was issued a certificate %s after the one that it shows", time.Since(before.born).Round(time.Second))
	}
}

// certifiedLocked judges the certificate and key that a pod is to show from now on.
func (w *world) certifiedLocked(p *pod, files map[string]string) {
	for _, c := range w.certificates {
		if c.pem == files["crt"] && c.key == files["key"] {
			c.shown = true
			return
		}
	}
	w.violatedLocked("I5", p.name, "shows a certificate and a key that are not of one issue")
}

// staleLocked judges the password of a static role: what the file holds must have worked during the mount. One republish may come in the
// moments after a rotation.
func (w *world) staleLocked(p *pod, shown string, worked ...string) {
	if slices.Contains(worked, shown) {
		p.stale = 0
		return
	}
	if p.stale++; p.stale > 1 {
		w.violatedLocked("static role", p.name, "shows a password that was changed before the last %d republishes", p.stale)
	}
}

// lookAtCertificates: what a running pod shows is valid, and nothing that it ever showed was revoked.
func (w *world) lookAtCertificates(p *pod, uses bool, all []vaulttest.Certificate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	uses = uses && now.After(p.uncertified)
	for _, c := range all {
		known := w.certificates[c.Serial]
		if known == nil || c.Path != p.issue() || !p.running {
			continue
		}
		if uses && known.pem == p.shown["crt"] && now.After(c.Expires) {
			w.violatedLocked("I1/I3", p.name, "runs and shows a certificate that ended %s ago", now.Sub(c.Expires))
		}
		if known.shown && c.Revoked {
			w.violatedLocked("I1", p.name, "runs, and a certificate of it is revoked")
		}
	}
}

// lastOfCertificates: what was to be revoked is, unless nobody knows of it, or no token was left to revoke it with, which was told or is to
// be: the end of a pod whose grace period nobody saw is held for a day.
func (w *world) lastOfCertificates() {
	tokens := w.vault.Tokens()
	for _, c := range w.vault.Certificates() {
		w.mu.Lock()
		i := slices.IndexFunc(w.pods, func(p *pod) bool { return c.Path == p.issue() })
		p, known := w.pods[i], w.certificates[c.Serial]
		ended := slices.ContainsFunc(tokens, func(t vaulttest.Token) bool {
			return t.Role == p.name && (w.lost[t.Accessor] || !w.gaveBack[t.Accessor])
		})
		told := ended && (slices.Contains(p.events, "CertificateKept") || w.holdsLocked(p))
		if !c.Revoked && c.Expires.After(time.Now()) && known != nil && !known.lost && !told {
			w.violatedLocked("I2", p.name, "is over, and a certificate of it is not revoked")
		}
		w.mu.Unlock()
	}
}

// holdsLocked tells whether a grant of a pod is still held.
func (w *world) holdsLocked(p *pod) bool {
	if w.process == nil {
		return false
	}
	grants, err := w.process.store.OfPod(p.uid)
	return err == nil && len(grants) > 0
}
