package keeper

import (
	"sync"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// maxKinds bounds what is remembered of how long things live.
const maxKinds = 4096

// kind is what tokens, or leases, have in common that live equally long: a wish, and the read of a lease; a token has none.
type kind struct {
	digest string
	read   spec.Read
}

// lives remembers the longest life of each kind, which only a renewal that is cut tells: the next of its kind is then replaced ahead
// of that. The records of the grants hold it too, so that it comes back soon after a restart.
type lives struct {
	mu      sync.Mutex
	longest map[kind]time.Duration
}

// learn takes what the terms of a grant tell.
func (l *lives) learn(g grant.Grant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.put(kind{digest: g.Digest}, g.Login.Max)
	for _, lease := range g.Leases {
		l.put(kind{g.Digest, lease.Read}, lease.Term.Max)
	}
}

// put keeps what is known; any other kind makes room. The caller holds the lock.
func (l *lives) put(of kind, longest time.Duration) {
	if longest == 0 {
		return
	}
	if l.longest == nil {
		l.longest = make(map[kind]time.Duration)
	}
	if _, known := l.longest[of]; !known && len(l.longest) >= maxKinds {
		for other := range l.longest {
			delete(l.longest, other)
			break
		}
	}
	l.longest[of] = longest
}

// of is the longest life of a kind; zero when it is not known.
func (l *lives) of(k kind) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.longest[k]
}
