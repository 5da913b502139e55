package vault

import (
	"net/http"
	"sync"
	"time"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// A tenant, which is a namespace of pods, chooses the addresses of its volumes, so that clients must be bounded.
const (
	clientsPerTenant = 16
	clientsInAll     = 256
)

// Pool holds one client, and so one set of connections, for each server and way to trust it, whichever tenants use it. Who
// uses too many loses the one that it used longest ago. The zero value is ready to use.
type Pool struct {
	// RoundTripper takes the network's place; nil for the network. For tests that meet Vault at the wire.
	RoundTripper http.RoundTripper
	// Answered is told of each request: what was asked for, what came of it ("ok", or the kind of failure), and how long that took; nil
	// for nobody. Both are of few words that are known beforehand.
	Answered func(operation, outcome string, took time.Duration)

	mu      sync.Mutex
	clock   uint64 // counts uses
	clients map[spec.Server]*Client
	used    map[string]map[spec.Server]uint64 // when a tenant last used a server
}

// Client returns the client of a server for a tenant. It is another one than before when a TLS file was replaced; requests under
// way end over the old one's connections. The error says which file of the TLS setting could not be used.
func (p *Pool) Client(s spec.Server, tenant string) (*Client, error) {
	c, err := p.current(s)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.clients == nil {
		p.clients, p.used = make(map[spec.Server]*Client), make(map[string]map[spec.Server]uint64)
	}
	switch before := p.clients[s]; {
	case before == nil:
		p.clients[s] = c
	case before.files == c.files, before.made.After(c.made): // somebody was faster
		c = before
	default:
		before.closeIdle()
		p.clients[s] = c
	}
	if p.used[tenant] == nil {
		p.used[tenant] = make(map[spec.Server]uint64)
	}
	p.clock++
	p.used[tenant][s] = p.clock
	if len(p.used[tenant]) > clientsPerTenant {
		p.drop(tenant)
	}
	for len(p.clients) > clientsInAll {
		p.drop(p.greediest(tenant))
	}
	return c, nil
}

// current returns a server's client, or a new one when there is none or its TLS files look different now. They are read without
// the lock: a tenant may name the slowest of file systems. What cannot be used, such as half of a pair in the middle of its rotation,
// does not take the place of what could: the next look tries again.
func (p *Pool) current(s spec.Server) (*Client, error) {
	now := time.Now()
	p.mu.Lock()
	c := p.clients[s]
	due := c == nil || now.Sub(c.looked) >= lookEvery
	if c != nil && due {
		c.looked = now
	}
	p.mu.Unlock()
	if !due {
		return c, nil
	}
	files := look(s) // before they are read, so that a change meanwhile is found by the next look
	if c != nil && c.files == files {
		return c, nil
	}
	changed, err := newClient(s, p.RoundTripper, p.Answered)
	if err != nil && c != nil {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	changed.files, changed.made, changed.looked = files, now, now
	return changed, nil
}

// greediest returns the tenant of the most clients: the one that asks, unless another has more.
func (p *Pool) greediest(tenant string) string {
	for t, servers := range p.used {
		if len(servers) > len(p.used[tenant]) {
			tenant = t
		}
	}
	return tenant
}

// drop takes from a tenant what it used longest ago. A client that nobody else uses goes: its idle connections are closed
// now, and those with requests under way after these.
func (p *Pool) drop(tenant string) {
	var oldest spec.Server
	last := p.clock + 1
	for s, at := range p.used[tenant] {
		if at < last {
			oldest, last = s, at
		}
	}
	if delete(p.used[tenant], oldest); len(p.used[tenant]) == 0 {
		delete(p.used, tenant)
	}
	for _, servers := range p.used {
		if _, ok := servers[oldest]; ok {
			return
		}
	}
	p.clients[oldest].closeIdle()
	delete(p.clients, oldest)
}
