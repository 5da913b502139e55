package syntax

import (
	"maps"
	"slices"
)

// All are the names of the allowed functions.
func All() []string { return slices.Collect(maps.Keys(allowed)) }
