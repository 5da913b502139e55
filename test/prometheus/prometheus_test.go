//go:build e2e

package prometheus

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const rulesFile = "../../manifests/monitoring/rules.yaml"

// TestServer: what a provider says is scraped under its node's name, and a rule that it meets is active, with the node in its words.
func TestServer(t *testing.T) {
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, "leasehold_ready 0\nleasehold_leases{state=\"lapsed\"} 0\n")
	}))
	defer provider.Close()
	rules, err := Rules(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), t.TempDir(), rules)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	if err := s.Scrape("node-1", strings.TrimPrefix(provider.URL, "http://")); err != nil {
		t.Fatal(err)
	}
	var active []Active
	for len(active) == 0 {
		if active, err = s.Alerts(t.Context()); err != nil {
			t.Fatal(err)
		}
		active = deleteAbsent(active)
		select {
		case <-t.Context().Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	if a := active[0]; len(active) != 1 || a.Labels["alertname"] != "LeaseholdNotReady" || a.State != "pending" || a.Labels["job"] != "leasehold" ||
		!strings.HasPrefix(a.Annotations["summary"], "The provider on node-1 ") {
		t.Errorf("active: %+v", active)
	}
	samples, err := s.Query(t.Context(), `leasehold_leases{state="lapsed"} + 1`)
	if err != nil || len(samples) != 1 || samples[0].Value != 1 || samples[0].Labels["node"] != "node-1" {
		t.Errorf("%+v, %v", samples, err)
	}
	queries, err := Queries("../../manifests/monitoring/dashboard.json")
	if err != nil || len(queries) == 0 {
		t.Fatalf("the dashboard asks for %d things, %v", len(queries), err)
	}
	for _, expr := range queries {
		if _, err := s.Query(t.Context(), expr); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Query(t.Context(), "sum("); err == nil || !strings.Contains(err.Error(), "parse error") {
		t.Errorf("error %v of an expression that is none", err)
	}
}

// deleteAbsent leaves out that there is no target, which is so before the first scrape.
func deleteAbsent(active []Active) []Active {
	return slices.DeleteFunc(active, func(a Active) bool { return a.Labels["alertname"] == "LeaseholdAbsent" })
}

// TestAlerts has promtool, of the Debian package prometheus, check the rules and run their unit tests.
func TestAlerts(t *testing.T) {
	promtool, err := program("promtool")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := Rules(rulesFile)
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
