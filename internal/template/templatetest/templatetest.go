// Package templatetest lets the tests of other packages render templates.
package templatetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/template"
)

// Renderer returns one whose children are built for the test.
func Renderer(t testing.TB) *template.Renderer {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "child")
	build := exec.Command("go", "build", "-o", binary, "github.com/leasehold-csi/leasehold/internal/template/templatetest/child")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building what renders: %v\n%s", err, out)
	}
	return &template.Renderer{Binary: binary}
}
