package keeper

import (
	"fmt"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// TestUntemplated: a Mount without templates pays nothing for their existence. There is neither a renderer nor a store that it could ask.
func TestUntemplated(t *testing.T) {
	var wish spec.Spec
	for i := range 10 {
		wish.Objects = append(wish.Objects, spec.Object{Name: fmt.Sprint("file-", i), Read: read(i), Key: "password"})
	}
	k, answers := new(Keeper), make(map[spec.Read]grant.Answer)
	got := testing.AllocsPerRun(100, func() {
		if _, err := k.renderTemplates(t.Context(), nil, vault.Session{}, "", &wish, answers); err != nil {
			t.Error(err)
		}
	})
	if got > 0 {
		t.Errorf("%.0f allocations", got)
	}
}
