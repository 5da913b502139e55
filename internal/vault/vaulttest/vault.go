// Package vaulttest is a fake Vault server for tests: what a client sees of Vault 1.21.2 and what its operator finds
// afterwards, at the HTTP level.
//
// It behaves, it is not scripted: tokens and leases expire, revoking a token takes its leases along, a read in flight
// while its token is revoked leaves a lease behind. Texts and status codes are those measured on Vault 1.21.2.
//
//	v := vaulttest.New(t)
//	v.Role("my-app-role", vaulttest.Role{TTL: time.Hour})
//	v.Dynamic("database/creds/my-app", vaulttest.Dynamic{TTL: time.Hour})
//	client := &http.Client{Transport: v} // requests to v.URL without a socket: fit for testing/synctest
//	v.Serve(t)                           // or: v.URL is a loopback address from here on
//
// # Time
//
// There are no timers. What fell due (an expiry, an attempt to revoke) is done, in order and as of its own instant, at
// the start of the next request, knob or look at [Vault.Tokens], [Vault.Leases] or [Vault.Users]. So the fake is idle
// between calls, and a bubble's clock drives it.
//
// # Ground truth
//
// [Vault.Users] is the outside back end's own list. It can differ from [Vault.Leases], as it can with a real database;
// a provider of credentials must not make it differ.
//
// # Matches
//
// Methods that pick requests take a match: "[METHOD ]path". A path that ends in a slash means everything below it, the
// empty match every request. PUT and POST are one and the same, as they are for Vault.
package vaulttest

import (
	"crypto/rand"
	"sync"
	"testing"
	"time"
)

// Vault is one fake server, an [http.Handler] and an [http.RoundTripper]. All methods may be called concurrently.
type Vault struct {
	// URL is the server's address, for RoundTrip a name like any other. Serve sets it to a loopback address.
	URL string

	requests sync.WaitGroup
	closed   chan struct{} // closed at the end of the test: nothing is held any more

	mu        sync.Mutex // guards everything below
	listener  *listener  // nil before Serve
	cut       chan struct{}
	tokens    []*token
	leases    []*lease
	pending   agenda
	byID      map[string]*token
	byLease   map[string]*lease
	roles     map[string]Role      // :: auth mount/role name → role
	secretIDs map[string]string    // :: AppRole's secret-id → role-id
	wrapped   map[string]string    // :: wrapping token → secret-id
	mounts    map[string]missing   // :: first path segment → the answer below it where nothing is
	secrets   map[string]engine    // :: path → what answers there
	dynamics  map[string]Dynamic   // :: path → role, as it is now
	versions  map[string][]version // :: path → versions of a KV 2 secret
	users     map[string]User      // :: name → user

	statics      map[string]*static // :: path → static role
	certificates []*Certificate

	podsGone map[string]bool // :: namespace/name → deleted
	log      []Request
	issued   []string
	weather
}

// New returns a running, unsealed server without roles or secrets. It stops when the test ends, which it holds up until
// every request has been answered.
func New(t testing.TB) *Vault {
	v := &Vault{
		URL:       "http://vault.test:8200",
		closed:    make(chan struct{}),
		cut:       make(chan struct{}),
		byID:      map[string]*token{},
		byLease:   map[string]*lease{},
		roles:     map[string]Role{},
		secretIDs: map[string]string{},
		wrapped:   map[string]string{},
		mounts:    map[string]missing{},
		secrets:   map[string]engine{},
		dynamics:  map[string]Dynamic{},
		versions:  map[string][]version{},
		statics:   map[string]*static{},
		users:     map[string]User{},
		podsGone:  map[string]bool{},
		weather:   weather{cluster: "cluster-" + rand.Text()},
	}
	t.Cleanup(func() {
		close(v.closed)
		v.requests.Wait()
	})
	return v
}

// enter locks the state and brings it up to the present. Down or sealed, Vault does nothing on its own: what falls due
// meanwhile is done, late, when it is back.
func (v *Vault) enter() time.Time {
	v.mu.Lock()
	now := time.Now()
	if !v.down && !v.sealed {
		v.settleLocked(now)
	}
	return now
}

// Token is a login token or one of its children. It does not hold the token itself.
type Token struct {
	Accessor string // empty for a batch token
	Role     string
	Path     string        // where it was issued: "auth/kubernetes/login"
	TTL      time.Duration // what is left; zero or less when Revoked
	Revoked  bool          // revoked or expired
}

// Tokens returns every token ever issued, oldest first.
func (v *Vault) Tokens() []Token {
	now := v.enter()
	defer v.mu.Unlock()
	all := make([]Token, 0, len(v.tokens))
	for _, t := range v.tokens {
		all = append(all, Token{t.accessor, t.role, t.path, t.expires.Sub(now), t.revoked})
	}
	return all
}

// Lease is a lease as sys/leases/lookup would show it.
type Lease struct {
	ID          string
	Path        string
	Accessor    string        // of the token it was issued under
	TTL         time.Duration // what is left; zero or less while its revocation is pending
	Revoked     bool          // revoked or expired, and gone from the back end
	Irrevocable bool          // given up after six failed attempts; an operator has to act
}

// Leases returns every lease ever issued, oldest first.
func (v *Vault) Leases() []Lease {
	now := v.enter()
	defer v.mu.Unlock()
	all := make([]Lease, 0, len(v.leases))
	for _, l := range v.leases {
		all = append(all, Lease{l.id, l.path, l.accessor, l.expires.Sub(now), l.revoked, l.irrevocable})
	}
	return all
}

// User is one user in the outside back end, such as a role of PostgreSQL.
type User struct {
	Name string
	Path string // that it was read from
}

// Users returns the users that exist in the back end now, in no order.
func (v *Vault) Users() []User {
	v.enter()
	defer v.mu.Unlock()
	all := make([]User, 0, len(v.users))
	for _, u := range v.users {
		all = append(all, u)
	}
	return all
}

// Secrets returns every text that must not appear in a log: tokens, lease ids and passwords issued, JWTs presented.
func (v *Vault) Secrets() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]string(nil), v.issued...)
}

// secretLocked makes a new unguessable text and remembers it for Secrets.
func (v *Vault) secretLocked(prefix string) string {
	s := prefix + rand.Text()
	v.issued = append(v.issued, s)
	return s
}
