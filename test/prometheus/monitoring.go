package prometheus

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

// Rules are those of a PrometheusRule object, as a file that Prometheus and promtool read.
func Rules(path string) ([]byte, error) {
	object, err := readRules(path)
	if err != nil {
		return nil, err
	}
	return yaml.Marshal(object.Spec)
}

// Alert is a rule.
type Alert struct {
	Name        string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for,omitempty"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

type prometheusRule struct {
	Spec struct {
		Groups []struct {
			Name  string  `json:"name"`
			Rules []Alert `json:"rules"`
		} `json:"groups"`
	} `json:"spec"`
}

func readRules(path string) (object prometheusRule, err error) {
	text, err := os.ReadFile(path)
	if err == nil {
		err = yaml.Unmarshal(text, &object)
	}
	if err != nil {
		return object, fmt.Errorf("reading the rules: %w", err)
	}
	return object, nil
}

// Alerts are those of a PrometheusRule object.
func Alerts(path string) (alerts []Alert, err error) {
	object, err := readRules(path)
	for _, group := range object.Spec.Groups {
		alerts = append(alerts, group.Rules...)
	}
	return alerts, err
}

// Queries are what a dashboard asks for, with all nodes chosen.
func Queries(path string) (queries []string, err error) {
	var dashboard struct {
		Panels []struct {
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
	}
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &dashboard)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the dashboard: %w", err)
	}
	chosen := strings.NewReplacer("$node", ".*", "$__rate_interval", "1m")
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			queries = append(queries, chosen.Replace(target.Expr))
		}
	}
	return queries, nil
}

// selector is what series are chosen by, of metrics of the provider, of its process, of the scrape, and of kube-state-metrics.
var selector = regexp.MustCompile(`\b(?:(?:leasehold|process|kube)_[a-z_]+|up\b)(?:\{[^}]*\})?`)

// Selectors are those within an expression.
func Selectors(expr string) []string { return selector.FindAllString(expr, -1) }
