package vault

import "time"

// LookNow has the TLS files looked at with the next use of each client: over a kept connection virtual time does not pass.
func (p *Pool) LookNow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.clients {
		c.looked = time.Time{}
	}
}
