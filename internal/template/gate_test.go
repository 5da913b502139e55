package template_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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
		if want := []string{"a", "a", "b"}; !slices.Equal(order, want) {
			t.Fatalf("%v begin, want %v", order, want)
		}
		var ends []string
		for i := 0; i < len(order); i++ {
			template.Leave(&g, order[i])
			synctest.Wait()
			ends = append(ends, order[i])
		}
		// Who has nothing under way comes first, then who had a turn the longest ago: late is not kept waiting by the others' many.
		if want := "[a a b c late a b c a b c a b c a b c b c]"; fmt.Sprint(ends) != want {
			t.Errorf("turns\n%v, want\n%v", ends, want)
		}
		if !template.Idle(&g) {
			t.Error("something is left")
		}
	})
}

// TestGateGivenUp: who does not wait any more takes no turn, and is told who had them.
func TestGateGivenUp(t *testing.T) {
	for holders, says := range map[string]string{"a a": "all 2 places of this namespace", "b b c": "all 3 places of this node", "a b c": "all 3 places of this node"} {
		synctest.Test(t, func(t *testing.T) {
			var g template.Gate
			for namespace := range strings.FieldsSeq(holders) {
				if err := template.Enter(&g, t.Context(), namespace); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := template.Enter(&g, ctx, "a"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %v", holders, err)
			}
			for namespace := range strings.FieldsSeq(holders) {
				template.Leave(&g, namespace)
			}
			if !template.Idle(&g) {
				t.Error("something is left")
			}
		})
	}
}
