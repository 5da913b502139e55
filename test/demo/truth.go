package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/test/bed"
)

// attempts counts the app's logins.
type attempts struct{ ok, failed int }

// countAttempts reads the app's log: a line "ok" for each login, or one that starts with "failed".
func countAttempts(log string) (tries attempts) {
	for line := range strings.Lines(log) {
		switch {
		case strings.TrimSpace(line) == "ok":
			tries.ok++
		case strings.HasPrefix(line, "failed"):
			tries.failed++
		}
	}
	return tries
}

// requests counts what was asked of Vault.
type requests struct{ logins, reads int }

// countRequests counts logins, and reads of the secret.
func countRequests(entries []bed.AuditEntry, secret string) (n requests) {
	for _, entry := range entries {
		switch entry.Path {
		case "auth/kubernetes/login":
			n.logins++
		case secret:
			n.reads++
		}
	}
	return n
}

// holdings is what exists in Vault and PostgreSQL because of pods.
type holdings struct {
	tokens, leases int
	roles          []string
}

func (s *story) holdings(ctx context.Context) (h holdings, err error) {
	tokens, err := s.bed.LoginTokens(ctx)
	if err != nil {
		return h, err
	}
	leases, err := s.bed.VaultLeases(ctx, s.example.secret)
	if err != nil {
		return h, err
	}
	h.tokens, h.leases = len(tokens), len(leases)
	if !s.bare {
		h.roles, err = s.bed.DatabaseRoles(ctx)
	}
	return h, err
}

// onlyOf fails unless there is one token, one lease and one database role, this one.
func (h holdings) onlyOf(user string) error {
	if h.tokens != 1 || h.leases != 1 || !slices.Equal(h.roles, []string{user}) {
		return fmt.Errorf("there should be one token, one lease and the database role %s; there are %s, %s and the roles %q",
			user, count(h.tokens, "token"), count(h.leases, "lease"), h.roles)
	}
	return nil
}

// providerHoldsNothing asks the provider itself.
func (s *story) providerHoldsNothing(ctx context.Context) error {
	output, err := s.bed.Leases(ctx)
	if err != nil {
		return err
	}
	var report admin.Report
	if err := json.Unmarshal(output, &report); err != nil {
		return fmt.Errorf("decoding what leasehold leases says: %w", err)
	}
	if len(report.Grants) > 0 {
		return fmt.Errorf("it holds %s", count(len(report.Grants), "grant"))
	}
	return nil
}

// mountsAnswered asks the provider how many Mount calls it has answered with success.
func (s *story) mountsAnswered(ctx context.Context) (int, error) {
	metrics, err := s.metrics(ctx)
	if err != nil {
		return 0, fmt.Errorf("reading the provider's metrics: %w", err)
	}
	return mounts(metrics)
}

func (s *story) metrics(ctx context.Context) (string, error) {
	provider := s.bed.State().Provider
	if s.form == bed.Full {
		core := s.bed.Client().CoreV1()
		pods, err := core.Pods(provider.Namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return "", err
		}
		if len(pods.Items) != 1 {
			return "", fmt.Errorf("there are %s of the provider", count(len(pods.Items), "pod"))
		}
		metrics, err := core.RESTClient().Get().Namespace(provider.Namespace).Resource("pods").
			Name(pods.Items[0].Name + ":8080").SubResource("proxy").Suffix("metrics").DoRaw(ctx)
		return string(metrics), err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+provider.HealthAddress+"/metrics", nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	metrics, err := io.ReadAll(response.Body)
	return string(metrics), err
}
