package template

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
)

const (
	// perNode is how many children run at once; with memory, the most that they can take from the node.
	perNode = 3
	// perNamespace leaves room for other tenants.
	perNamespace = 2
)

// gate lets few children run at once. Whose turn it is, is decided among the namespaces that wait: that with the fewest children, and
// of several the one whose last turn is the longest ago, or which came first. The zero value is open.
type gate struct {
	mu         sync.Mutex
	running    int
	turn       uint64
	namespaces map[string]*queue
}

// queue are those of a namespace.
type queue struct {
	running int
	// last is the turn in which one of them began, zero for none yet, and came that before which the namespace came.
	last    uint64
	came    uint64
	waiting []chan struct{}
}

// enter waits for a turn, which ends with leave. Its error says who had the turns.
func (g *gate) enter(ctx context.Context, namespace string) error {
	begin := make(chan struct{})
	g.mu.Lock()
	if g.namespaces == nil {
		g.namespaces = make(map[string]*queue)
	}
	q := g.namespaces[namespace]
	if q == nil {
		g.turn++
		q = &queue{came: g.turn}
		g.namespaces[namespace] = q
	}
	q.waiting = append(q.waiting, begin)
	g.admit()
	g.mu.Unlock()
	select {
	case <-begin:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(q.waiting, begin)
	if i < 0 { // it was let in meanwhile
		return nil
	}
	q.waiting = slices.Delete(q.waiting, i, i+1)
	g.forget(namespace)
	places, holders := perNode, "node"
	if q.running == perNamespace {
		places, holders = perNamespace, "namespace"
	}
	return fmt.Errorf("rendering: no turn came in time, because templates of other volumes hold all %d places of this %s; "+
		"look for its pods whose mounts take long or fail, whose events name the template: %w", places, holders, ctx.Err())
}

func (g *gate) leave(namespace string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	g.namespaces[namespace].running--
	g.forget(namespace)
	g.admit()
}

// forget drops a namespace that has neither children nor waits for any.
func (g *gate) forget(namespace string) {
	if q := g.namespaces[namespace]; q.running == 0 && len(q.waiting) == 0 {
		delete(g.namespaces, namespace)
	}
}

func (g *gate) admit() {
	for g.running < perNode {
		next := g.next()
		if next == nil {
			return
		}
		g.turn++
		g.running++
		next.running++
		next.last = g.turn
		close(next.waiting[0])
		next.waiting = next.waiting[1:]
	}
}

func (g *gate) next() (best *queue) {
	for _, q := range g.namespaces {
		if len(q.waiting) == 0 || q.running == perNamespace {
			continue
		}
		if best == nil || cmp.Or(cmp.Compare(q.running, best.running), cmp.Compare(q.last, best.last), cmp.Compare(q.came, best.came)) < 0 {
			best = q
		}
	}
	return best
}
