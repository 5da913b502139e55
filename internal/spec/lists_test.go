package spec_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// TestLists: what is parsed once serves every pod of a class, but nobody who means another thing by the same text.
func TestLists(t *testing.T) {
	c := validCall()
	c.defaults.Lists = spec.NewLists()
	c.params["objects"] = "- {objectName: a, secretPath: x, encodin: hex}"
	first := c.mustParse(t)

	same := func(r *spec.Request) bool { return &r.Spec.Objects[0] == &first.Spec.Objects[0] }
	if again := c.mustParse(t); !same(again) || len(again.Warnings) != 1 || again.Warnings[0] != first.Warnings[0] {
		t.Errorf("parsed anew: %+v", again)
	}
	c.permission = "256"
	if other := c.mustParse(t); same(other) || other.Spec.Objects[0].Mode != 0o400 {
		t.Errorf("another mode: %+v", other.Spec.Objects)
	}
	c.permission, c.defaults.Strict = "420", true
	for range 2 {
		if _, err := c.parse(t); err == nil {
			t.Error("what is a warning otherwise is no fault")
		}
	}
	c.defaults.Strict = false
	for i := range 500 { // more than are kept
		c.params["objects"] = fmt.Sprintf("- {objectName: a, secretPath: x%d}", i)
		if got := c.mustParse(t).Spec.Objects[0].Read.Path; got != fmt.Sprintf("x%d", i) {
			t.Errorf("text %d: path %s", i, got)
		}
	}
	c.params["objects"] = "- {objectName: a, secretPath: x} #" + strings.Repeat(" ", 9<<10)
	if large := c.mustParse(t); &large.Spec.Objects[0] == &c.mustParse(t).Spec.Objects[0] {
		t.Error("a large text is kept")
	}
}
