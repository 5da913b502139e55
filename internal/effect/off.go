//go:build !crashpoints

package effect

// Before marks that an effect of that kind comes next; After is given what it returns.
func Before(string) int { return 0 }

// After marks that the effect has come.
func After(int) {}
