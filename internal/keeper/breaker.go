package keeper

import (
	"sync"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
)

const (
	// rush is how many pods may be found over within a minute although the watch told of no end of theirs. A few are ordinary: pods
	// that went while the provider was away. All of a node's at once look like a mistake: of an API server that forgot, of a
	// kubelet folder that is mounted wrongly.
	rush       = 10
	rushWindow = time.Minute
	// holdBack is how long each of them is then held, and must be found over again after it.
	holdBack = 10 * time.Minute
)

// breaker holds back ends that come in a rush and that nobody announced. The zero value is ready to use. It remembers nothing
// over a restart.
type breaker struct {
	mu sync.Mutex
	// ends are the unannounced ones: pod UID to when it was found over first.
	ends      map[string]grant.Instant
	openUntil grant.Instant
}

// hold returns until when the end of a pod, unannounced and found over at now, is not acted on; zero to act. first reports that
// this pod is newly held.
func (b *breaker) hold(uid string, now grant.Instant) (until grant.Instant, first bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	found, known := b.ends[uid]
	if !known {
		found = now
		b.note(uid, now)
	}
	if now >= b.openUntil || now.Sub(found) >= holdBack {
		return 0, false
	}
	return found.Add(holdBack), !known
}

func (b *breaker) note(uid string, now grant.Instant) {
	if b.ends == nil {
		b.ends = make(map[string]grant.Instant)
	}
	b.ends[uid] = now
	recent := 0
	for other, found := range b.ends {
		switch age := now.Sub(found); {
		case age < rushWindow:
			recent++
		case age > 2*holdBack:
			delete(b.ends, other)
		}
	}
	if recent > rush {
		b.openUntil = now.Add(holdBack)
	}
}

// open reports whether ends are being held back.
func (b *breaker) open(now grant.Instant) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return now < b.openUntil
}
