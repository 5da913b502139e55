package keeper

import (
	"container/heap"
	"sync"

	"github.com/leasehold-csi/leasehold/internal/grant"
)

const (
	// syncers is how many grants are looked at concurrently.
	syncers = 32
	// perVault and perNamespace bound how many of them wait for one Vault, or on behalf of one tenant, so that one that does not
	// answer leaves room for the others.
	perVault     = 12
	perNamespace = 16
)

// lane is what the grants have in common that may get into each other's way.
type lane struct {
	namespace string // of the pods
	vault     string // its address, however it is trusted and whatever certificate is shown to it
}

// look is a grant that waits to be looked at.
type look struct {
	id   string
	lane lane
	// by is until when it should begin.
	by grant.Instant
}

// lanes decides whose turn it is: the namespace's that has the fewest looks under way, and within it the grant's that should
// be looked at first; nobody's whose Vault or namespace has its full share already. The zero value is not usable.
type lanes struct {
	mu          sync.Mutex
	changed     *sync.Cond
	waiting     map[lane]*urgent
	byVault     map[string]int
	byNamespace map[string]int
	closed      bool
}

func newLanes() *lanes {
	l := &lanes{waiting: map[lane]*urgent{}, byVault: map[string]int{}, byNamespace: map[string]int{}}
	l.changed = sync.NewCond(&l.mu)
	return l
}

func (l *lanes) push(w look) {
	l.mu.Lock()
	defer l.mu.Unlock()
	queue := l.waiting[w.lane]
	if queue == nil {
		queue = new(urgent)
		l.waiting[w.lane] = queue
	}
	heap.Push(queue, w)
	l.changed.Signal()
}

// pop waits for a grant whose turn it is; ok is false once closed. What it returns must be given to done.
func (l *lanes) pop() (w look, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.closed {
			return look{}, false
		}
		if next, found := l.next(); found {
			queue := l.waiting[next]
			w, _ = heap.Pop(queue).(look)
			if queue.Len() == 0 {
				delete(l.waiting, next)
			}
			l.byVault[next.vault]++
			l.byNamespace[next.namespace]++
			return w, true
		}
		l.changed.Wait()
	}
}

// next is the lane whose turn it is.
func (l *lanes) next() (best lane, found bool) {
	for candidate, queue := range l.waiting {
		if l.byVault[candidate.vault] >= perVault || l.byNamespace[candidate.namespace] >= perNamespace {
			continue
		}
		fewer := l.byNamespace[candidate.namespace] - l.byNamespace[best.namespace]
		if !found || fewer < 0 || fewer == 0 && (*queue)[0].by < (*l.waiting[best])[0].by {
			best, found = candidate, true
		}
	}
	return best, found
}

func (l *lanes) done(w look) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byVault[w.lane.vault]--; l.byVault[w.lane.vault] == 0 {
		delete(l.byVault, w.lane.vault)
	}
	if l.byNamespace[w.lane.namespace]--; l.byNamespace[w.lane.namespace] == 0 {
		delete(l.byNamespace, w.lane.namespace)
	}
	l.changed.Broadcast() // a Vault's and a namespace's share are free now, which can be two turns
}

// close ends every pop; what waits is dropped.
func (l *lanes) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.changed.Broadcast()
}

// urgent is a heap of looks, the one that should begin first at its root.
type urgent []look

func (u urgent) Len() int           { return len(u) }
func (u urgent) Less(i, j int) bool { return u[i].by < u[j].by }
func (u urgent) Swap(i, j int)      { u[i], u[j] = u[j], u[i] }

// Push implements heap.Interface.
func (u *urgent) Push(x any) {
	w, _ := x.(look)
	*u = append(*u, w)
}

// Pop implements heap.Interface.
func (u *urgent) Pop() any {
	last := len(*u) - 1
	w := (*u)[last]
	*u = (*u)[:last]
	return w
}
