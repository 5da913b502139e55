package keeper

import (
	"testing"

	"github.com/leasehold-csi/leasehold/internal/grant"
)

func popped(t *testing.T, l *lanes) look {
	t.Helper()
	w, ok := l.pop()
	if !ok {
		t.Fatal("nothing popped")
	}
	return w
}

func TestLanesLeastTimeLeftFirst(t *testing.T) {
	l := newLanes()
	for id, by := range map[string]grant.Instant{"b": 20, "a": 10, "c": 30} {
		l.push(look{id, lane{"ns", "v"}, by})
	}
	for _, want := range []string{"a", "b", "c"} {
		w := popped(t, l)
		if w.id != want {
			t.Errorf("%s before %s", w.id, want)
		}
		l.done(w)
	}
	if len(l.byVault)+len(l.byNamespace)+len(l.waiting) != 0 {
		t.Errorf("%d, %d and %d are remembered of lanes that are empty", len(l.byVault), len(l.byNamespace), len(l.waiting))
	}
}

// TestLanesAreFair: a namespace with much to do, and urgent, waits for one with little under way.
func TestLanesAreFair(t *testing.T) {
	l := newLanes()
	for i := range grant.Instant(100) {
		l.push(look{"many", lane{"large", "v"}, i})
	}
	popped(t, l)
	l.push(look{"one", lane{"small", "v"}, 1000})
	if w := popped(t, l); w.id != "one" {
		t.Error("the namespace with nothing under way had to wait")
	}
}

// TestLanesLeaveRoom: a Vault and a namespace that answer nothing hold their share and no more, and get their turn back.
func TestLanesLeaveRoom(t *testing.T) {
	l := newLanes()
	for range 100 {
		l.push(look{"stuck", lane{"a", "tar"}, 1})
		l.push(look{"stuck", lane{"b", "tar"}, 1})
	}
	var stuck []look
	for range perVault {
		stuck = append(stuck, popped(t, l))
	}
	l.push(look{"free", lane{"b", "good"}, 1000})
	if w := popped(t, l); w.id != "free" {
		t.Fatalf("more than %d looks wait for one Vault", perVault)
	}
	l.done(stuck[0])
	if w := popped(t, l); w.id != "stuck" {
		t.Errorf("%s took a turn that it did not wait for", w.id)
	}

	l = newLanes()
	for i := range 100 {
		l.push(look{"stuck", lane{"a", string(rune('A' + i%50))}, 1})
	}
	for range perNamespace {
		popped(t, l)
	}
	l.push(look{"free", lane{"b", "good"}, 1000})
	if w := popped(t, l); w.id != "free" {
		t.Errorf("more than %d looks are under way for one namespace", perNamespace)
	}
}

func TestLanesClosed(t *testing.T) {
	l := newLanes()
	l.push(look{id: "a"})
	l.close()
	if _, ok := l.pop(); ok {
		t.Error("popped although closed")
	}
}
