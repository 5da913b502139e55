//nolint:forbidigo // sleeps inside synctest bubbles only
package keeper_test

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-csi/leasehold/internal/render"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store/storetest"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

// mortal is the wire of a process that is killed at one of its requests: before Vault sees it, or when Vault has done it and
// the reply is lost. From then on nothing the process does has an effect.
type mortal struct {
	next  http.RoundTripper
	death func()

	mu       sync.Mutex
	requests int
	at       int // zero: it lives
	after    bool
	dead     bool
}

var errDead = errors.New("the process is dead")

func (m *mortal) RoundTrip(r *http.Request) (*http.Response, error) {
	dies, after, dead := m.count()
	if dead {
		return nil, errDead
	}
	if dies && !after {
		m.die()
		return nil, errDead
	}
	resp, err := m.next.RoundTrip(r)
	if dies {
		m.die()
		return nil, errDead
	}
	return resp, err
}

func (m *mortal) count() (dies, after, dead bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests++
	return m.requests == m.at, m.after, m.dead
}

func (m *mortal) sent() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.requests
}

func (m *mortal) die() {
	m.mu.Lock()
	m.dead = true
	m.mu.Unlock()
	m.death()
}

func (m *mortal) isDead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

// life is a pod's: mounts with three paths, rotation of a lease at its maximum, a new login at the token's, an end.
func life(t *testing.T, n *node, wire *mortal) {
	n.vault.Role("my-app-role", vaulttest.Role{TTL: 30 * time.Minute, MaxTTL: 90 * time.Minute})
	n.vault.Dynamic(creds, vaulttest.Dynamic{TTL: 30 * time.Minute, MaxTTL: time.Hour})
	n.vault.Dynamic("database/creds/other", vaulttest.Dynamic{TTL: 30 * time.Minute})
	n.vault.PKI("pki/issue/x", false)
	req := n.request("p", append(wantCreds, "other=database/creds/other#username")...)
	withCertificate(req, 2*time.Hour, spec.Care{RevokeOnEnd: true})
	republish := func() (files []render.File) {
		for range 100 { // kubelet's tries
			req.JWT = n.request("p").JWT
			var err error
			if files, err = n.keeper.Acquire(t.Context(), req); err == nil && !wire.isDead() {
				return files
			}
			if wire.isDead() {
				n.restart(wire)
			}
			time.Sleep(time.Second)
		}
		t.Fatalf("no mount succeeded\n%s", n.log)
		return nil
	}
	for range 100 {
		files := republish()
		if !n.lives(files[0]) || !n.lives(files[2]) {
			t.Fatalf("the volume shows credentials that are dead\n%s", n.log)
		}
		pairOf(t, files)
		time.Sleep(time.Minute)
		if wire.isDead() {
			n.restart(wire)
		}
	}
	n.end("p")
	time.Sleep(time.Minute)
	if wire.isDead() {
		n.restart(wire)
	}
}

// restart begins the next process on what the dead one left.
func (n *node) restart(wire *mortal) {
	n.stop()
	wire.mu.Lock()
	wire.dead, wire.at = false, 0
	wire.mu.Unlock()
	n.start()
}

// A process is killed before and after each of its requests to Vault in turn. Whatever it leaves: the pod gets working
// credentials, and after its end nothing of it lives but, for a lost reply to a login, one token without leases.
func TestKilledAtEveryRequest(t *testing.T) {
	run := func(t *testing.T, at int, after bool) (requests int) {
		wire := &mortal{at: at, after: after}
		bubble(t, func(t *testing.T, n *node) {
			n.stop()
			wire.next = n.vault
			wire.death = func() { _ = n.store.Close() }
			n.wire = wire
			n.start()
			life(t, n, wire)
			time.Sleep(claimLife) // a claim of the dead process passes
			requests = wire.sent()
			synctest.Wait()
			if s := n.states(); s != "" {
				t.Errorf("the store still holds %q", s)
			}
			unknown := 0
			for _, token := range n.vault.Tokens() {
				if !token.Revoked {
					unknown++
				}
			}
			n.expect("pod ended", min(unknown, 1), 0, 0)
			if unknown == 1 && !n.asked("auth/kubernetes/login", at-1, at+1) {
				t.Errorf("a token lives on that was recorded\n%s", n.log)
			}
			if live := n.certificates(); live > 1 || live == 1 && !n.asked(issue, at-3, at+3) {
				t.Errorf("%d certificates live on that were recorded\n%s", live, n.log)
			}
		})
		return requests
	}
	total := run(t, 0, false)
	t.Logf("%d requests", total)
	for at := 1; at <= total; at++ {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d,after=%t", at, after), func(t *testing.T) { run(t, at, after) })
		}
	}
}

// asked reports whether a path was asked for between two ordinals of requests: others are made beside one.
func (n *node) asked(path string, from, to int) bool {
	for i, r := range n.vault.Requests() {
		if i+1 >= from && i+1 <= to && r.Path == path {
			return true
		}
	}
	return false
}

// The store's file cannot be written from before or after each request to Vault on, for a while. The pod gets working credentials all
// the same once it can be, and after its end nothing of it lives: what could not be recorded was not kept.
func TestStoreFailsAtEveryRequest(t *testing.T) {
	run := func(t *testing.T, at int, after bool) (requests int) {
		wire := &mortal{}
		bubble(t, func(t *testing.T, n *node) {
			n.stop()
			failing := &failingStore{wire: wire, at: at, after: after, fail: func() {
				mend := storetest.BreakWrites(t, n.dir)
				time.AfterFunc(15*time.Second, mend)
			}}
			wire.next, n.wire = n.vault, failing
			n.start()
			life(t, n, wire)
			time.Sleep(claimLife + 10*time.Minute) // what a failed mount left as it was, and a look that could note nothing
			requests = wire.sent()
			if s := n.states(); s != "" {
				t.Errorf("the store still holds %q\n%s", s, n.log)
			}
			n.expect("pod ended", 0, 0, 0)
			if live := n.certificates(); live != 0 {
				t.Errorf("%d certificates live on\n%s", live, n.log)
			}
		})
		return requests
	}
	total := run(t, 0, false)
	for at := 1; at <= total; at++ {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d,after=%t", at, after), func(t *testing.T) { run(t, at, after) })
		}
	}
}

// failingStore calls fail once: before one of the requests, or when its reply is there.
type failingStore struct {
	wire  *mortal
	at    int
	after bool
	once  sync.Once
	fail  func()
}

func (f *failingStore) RoundTrip(r *http.Request) (*http.Response, error) {
	f.wire.mu.Lock()
	now := f.wire.requests+1 == f.at
	f.wire.mu.Unlock()
	if now && !f.after {
		f.once.Do(f.fail)
	}
	resp, err := f.wire.RoundTrip(r)
	if now && f.after {
		f.once.Do(f.fail)
	}
	return resp, err
}
