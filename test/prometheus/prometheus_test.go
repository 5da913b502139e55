//go:build e2e

package prometheus

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestAlerts has promtool, of the Debian package prometheus, check the rules and run their unit tests.
func TestAlerts(t *testing.T) {
	promtool, err := program("promtool")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := Rules("../../manifests/monitoring/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("testdata/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string][]byte{"rules.yaml": rules, "alerts.yaml": tests} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"check", "rules", "--lint-fatal", "rules.yaml"}, {"test", "rules", "alerts.yaml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = dir
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, output)
		}
	}
}
