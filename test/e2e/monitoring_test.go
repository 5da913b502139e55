//go:build e2e

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-csi/leasehold/test/prometheus"
)

const (
	rulesFile     = "../../manifests/monitoring/rules.yaml"
	dashboardFile = "../../manifests/monitoring/dashboard.json"
)

// needFault are parts of selectors that find something only when something is wrong, or outside of the provider.
var needFault = []string{`outcome=~"unreachable`, `outcome=~"denied`, `status=~"none`, "leasehold_events_total", "kube_"}

// monitored has a real Prometheus scrape the provider of a mounted pod: all that the rules and the dashboard ask for is there, and
// nothing is alarming.
func (s *suite) monitored(t *testing.T) {
	ctx := t.Context()
	p := s.newPlace(t, "monitored")
	p.databaseClass()
	pod := p.run(newPod("app", "db"))
	rules, err := prometheus.Rules(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	server, err := prometheus.Start(ctx, t.TempDir(), rules)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	address, err := s.metricsAddress(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Scrape(s.bed.State().Node, address); err != nil {
		t.Fatal(err)
	}
	s.eventually(t, "the provider is scraped", func(ctx context.Context) error {
		found, err := server.Query(ctx, "leasehold_grants")
		if err == nil && len(found) == 0 {
			err = errors.New("there are no grants")
		}
		return err
	})
	alerts, err := prometheus.Alerts(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	queries, err := prometheus.Queries(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range alerts {
		queries = append(queries, a.Expr)
	}
	for _, expr := range queries {
		if _, err := server.Query(ctx, expr); err != nil {
			t.Error(err)
		}
		for _, selector := range prometheus.Selectors(expr) {
			found, err := server.Query(ctx, selector)
			if err != nil {
				t.Error(err)
			}
			fault := slices.ContainsFunc(needFault, func(part string) bool { return strings.Contains(selector, part) })
			if len(found) == 0 && !fault {
				t.Errorf("%s finds nothing", selector)
			}
		}
	}
	// Ten evaluations in a row; what is pending would fire some time.
	calm := 0
	var last []string
	s.eventually(t, "no alert is active", func(ctx context.Context) error {
		active, err := server.Alerts(ctx)
		if err != nil {
			return fmt.Errorf("%w; active before: %v", err, last)
		}
		if last = names(active); len(last) > 0 {
			err = fmt.Errorf("active: %v", last)
		}
		if calm++; err != nil {
			calm = 0
			return err
		}
		if time.Duration(calm)*pace < 10*time.Second {
			return errors.New("none for a while")
		}
		return nil
	})
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitNothing()
}

func names(alerts []prometheus.Active) (names []string) {
	for _, a := range alerts {
		names = append(names, a.Labels["alertname"])
	}
	return names
}

// metricsAddress is where the provider's metrics are.
func (s *suite) metricsAddress(ctx context.Context) (string, error) {
	if !s.hasKubelet() {
		return s.bed.State().Provider.HealthAddress, nil
	}
	pod, err := s.providerPod(ctx)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(pod.Status.PodIP, "8080"), nil
}
