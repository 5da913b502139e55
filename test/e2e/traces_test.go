//go:build e2e

package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// span is one as the collector received it.
type span struct {
	Trace      string `json:"traceId"`
	ID         string `json:"spanId"`
	Parent     string `json:"parentSpanId"`
	Name       string `json:"name"`
	Attributes []struct {
		Key   string `json:"key"`
		Value struct {
			String string `json:"stringValue"`
		} `json:"value"`
	} `json:"attributes"`
	Status struct {
		Message string `json:"message"`
	} `json:"status"`
}

func (s span) attribute(key string) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			return a.Value.String
		}
	}
	return ""
}

// spans lists what the collector received so far.
func (s *suite) spans() ([]span, error) {
	text, err := os.ReadFile(s.bed.State().Collector.Traces)
	if err != nil {
		return nil, err
	}
	var all []span
	for line := range bytes.Lines(text[:bytes.LastIndexByte(text, '\n')+1]) { // what follows is being written
		var lot struct {
			Resources []struct {
				Scopes []struct {
					Spans []span `json:"spans"`
				} `json:"scopeSpans"`
			} `json:"resourceSpans"`
		}
		if err := json.Unmarshal(line, &lot); err != nil {
			return nil, fmt.Errorf("decoding what the collector wrote: %w", err)
		}
		for _, resource := range lot.Resources {
			for _, scope := range resource.Scopes {
				all = append(all, scope.Spans...)
			}
		}
	}
	return all, nil
}

// traces lists, of a pod, what was done for it with the requests to Vault below, each once. Those are in the order of the alphabet.
func (p *place) traces(pod string) ([]string, error) {
	all, err := p.spans()
	if err != nil {
		return nil, err
	}
	var done []string
	for _, work := range all {
		if work.attribute("k8s.namespace.name") != p.ns || work.attribute("k8s.pod.name") != pod {
			continue
		}
		var below []string
		for _, request := range all {
			if request.Parent == work.ID && request.Trace == work.Trace && request.Name != "health" {
				below = append(below, request.Name+" "+request.attribute("leasehold.vault.path"))
			}
		}
		slices.Sort(below)
		if text := fmt.Sprintf("%s %q %s", work.Name, below, work.Status.Message); !slices.Contains(done, text) {
			done = append(done, text)
		}
	}
	return done, nil
}

// tracesAreSent follows a pod, and one that may not log in, from their Mounts to their end by what OpenTelemetry's collector was told.
func (s *suite) tracesAreSent(t *testing.T) {
	p := s.newPlace(t, "traces")
	p.makeRole(p.role, map[string]any{"default_ttl": (20 * time.Second).Seconds(), "max_ttl": (10 * time.Minute).Seconds()})
	p.class("db", map[string]string{"roleName": "my-app-role", "objects": credentials(p.role) + `
- objectName: kv
  secretPath: kv1/my-app
  secretKey: password
`})
	p.class("denied", map[string]string{"roleName": "nobodys", "objects": credentials(p.role)})
	pod, denied := p.run(newPod("traced", "db")), p.create(newPod("denied", "denied"))
	creds := "database/creds/" + p.role
	await := func(pod string, want ...string) {
		t.Helper()
		p.eventually(t, fmt.Sprintf("the collector has received %q", want), func(context.Context) error {
			done, err := p.traces(pod)
			for _, text := range want {
				if err == nil && !slices.ContainsFunc(done, func(d string) bool { return strings.HasPrefix(d, text) }) {
					err = fmt.Errorf("of %s there are only %q", text, done)
				}
			}
			return err
		})
	}
	await(pod.Name,
		fmt.Sprintf("Mount %q", []string{"login auth/kubernetes/login", "read " + creds, "read kv1/my-app"}),
		fmt.Sprintf("Mount %q", []string{}), // a republish
		fmt.Sprintf("Renew %q", []string{"renew_lease " + creds}))
	await(denied.Name, fmt.Sprintf("Mount %q logging in at ", []string{"login auth/kubernetes/login"}))
	p.deleteAll()
	await(pod.Name, fmt.Sprintf("Revoke %q", []string{"renew_lease " + creds, "revoke auth/token/revoke-self"}))
	p.awaitNothing()
}

// tracesText is all that the collector received.
func (s *suite) tracesText(context.Context) (string, error) {
	text, err := os.ReadFile(s.bed.State().Collector.Traces)
	return string(text), err
}
