package template_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/leasehold-csi/leasehold/internal/template"
)

// TestGate has six Mounts of each of three namespaces wait, and then one of a fourth.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g template.Gate
		var order []string
		enter := func(namespace string) {
			go func() {
				if err := template.Enter(&g, t.Context(), namespace); err != nil {
					t.Error(err)
				}
				order = append(order, namespace)
			}()
			synctest.Wait()
		}
		for range 6 {
			enter("a")
		}
		for _, namespace := range []string{"b", "c"} {
			for range 6 {
				enter(namespace)
			}
		}
		enter("late")
		if want := []string{"a", "a", "b", "b"}; !slices.Equal(order, want) {
			t.Fatalf("%v begin, want %v", order, want)
		}
		var ends []string
		for i := 0; i < len(order); i++ {
			template.Leave(&g, order[i])
			synctest.Wait()
			ends = append(ends, order[i])
		}
		// Who has nothing under way comes first, then who had a turn the longest ago: late is not kept waiting by the others' many.
		if want := "[a a b b c late a b c a b c a b c a b c c]"; fmt.Sprint(ends) != want {
			t.Errorf("turns\n%v, want\n%v", ends, want)
		}
		if !template.Idle(&g) {
			t.Error("something is left")
		}
	})
}

// TestGateGivenUp: who does not wait any more takes no turn.
func TestGateGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g template.Gate
		for range 2 {
			if err := template.Enter(&g, t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			if err := template.Enter(&g, ctx, "a"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}()
		synctest.Wait()
		cancel()
		synctest.Wait()
		template.Leave(&g, "a")
		template.Leave(&g, "a")
		if !template.Idle(&g) {
			t.Error("something is left")
		}
	})
}
