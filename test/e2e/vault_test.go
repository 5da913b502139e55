//go:build e2e

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
	"github.com/leasehold-csi/leasehold/test/bed"
)

// refusal returns the HTTP status with which Vault refused; zero when it did not.
func refusal(err error) int {
	if refused, ok := errors.AsType[*api.ResponseError](err); ok {
		return refused.StatusCode
	}
	return 0
}

// lease returns what sys/leases/lookup says; nil when the lease is gone.
func (s *suite) lease(ctx context.Context, id string) (*api.Secret, error) {
	found, err := s.vault.Sys().LookupWithContext(ctx, id)
	if refusal(err) == http.StatusBadRequest {
		return nil, nil
	}
	return found, err
}

// vaultIsAsTheFake has the conversations with Vault that the fake of the unit tests is made after.
func (s *suite) vaultIsAsTheFake(t *testing.T) {
	p := s.newPlace(t, "calibration")
	p.shell(`psql -c 'CREATE ROLE fixed LOGIN'; vault write database/static-roles/fixed db_name=postgres username=fixed rotation_period=1h`)
	t.Cleanup(func() { p.shell(`vault delete database/static-roles/fixed; psql -c 'DROP ROLE fixed'`) })
	for _, sequence := range vaulttest.Calibration {
		if err := sequence.Run(t.Context(), http.DefaultClient, s.bed.State().Vault.Address, p.token("my-app", "vault")); err != nil {
			t.Errorf("%s: %v", sequence.Name, err)
		}
	}
	p.awaitNothing()
}

// age tells how long ago a lease was issued.
func (s *suite) age(ctx context.Context, id string) (time.Duration, error) {
	found, err := s.lease(ctx, id)
	if err != nil {
		return 0, err
	}
	if found == nil {
		return 0, errors.New("the lease is gone")
	}
	text, _ := found.Data["issue_time"].(string)
	issued, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return 0, fmt.Errorf("reading a lease's issue_time: %w", err)
	}
	return time.Since(issued), nil
}

// users returns the PostgreSQL users that Vault made for a database role.
func (s *suite) users(ctx context.Context, role string) ([]string, error) {
	all, err := s.bed.DatabaseRoles(ctx)
	return slices.DeleteFunc(all, func(user string) bool { return !strings.Contains(user, "-"+role+"-") }), err
}

// audit counts the requests of a namespace's logins since mark, by operation and path.
func (s *suite) audit(t *testing.T, mark bed.AuditMark, namespace string) map[string]int {
	t.Helper()
	entries, err := s.bed.AuditSince(mark)
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for _, entry := range entries {
		if entry.Namespace == namespace {
			counts[entry.Operation+" "+entry.Path]++
		}
	}
	return counts
}

func (s *suite) auditMark(t *testing.T) bed.AuditMark {
	t.Helper()
	mark, err := s.bed.AuditMark()
	if err != nil {
		t.Fatal(err)
	}
	return mark
}

// canaries are texts that nobody but Vault, the provider's memory and the pods' volumes may ever hold.
type canaries struct {
	mu    sync.Mutex
	texts map[string]string // what each is
}

func (c *canaries) add(what, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.texts == nil {
		c.texts = map[string]string{}
	}
	c.texts[text] = what
}

// foundIn returns what those canaries are that text holds.
func (c *canaries) foundIn(text string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []string
	for canary, what := range c.texts {
		if strings.Contains(text, canary) {
			found = append(found, what)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// addLease watches for the part of a lease id that is not the path, which everybody may know.
func (c *canaries) addLease(id string) { c.add("a lease id", path.Base(id)) }

// watchBedsOwnSecrets adds what the tests do not meet by themselves: no test sees a login's token or a pod's JWT, but all of
// them begin alike.
func (s *suite) watchBedsOwnSecrets(t *testing.T) {
	t.Helper()
	root, err := os.ReadFile(s.bed.State().Vault.RootTokenFile)
	if err != nil {
		t.Fatal(err)
	}
	s.secrets.add("the root token", strings.TrimSpace(string(root)))
	s.secrets.add("a Vault token", "hvs.")
	s.secrets.add("a JWT", "eyJ")
	s.secrets.add("a value of KV version 1", "kv1-password")
	s.secrets.add("a value of KV version 2", "kv2-password")
}

// nothingIsLeft asks Vault, PostgreSQL and the provider for anything that any scenario left.
func (s *suite) nothingIsLeft(t *testing.T) {
	s.eventually(t, "nothing of any pod is left", func(ctx context.Context) error {
		report, err := s.report(ctx)
		if err != nil {
			return err
		}
		if len(report.Grants) > 0 {
			return fmt.Errorf("there are grants: %+v", report.Grants)
		}
		return s.vaultHoldsNothing(ctx)
	})
}

// vaultHoldsNothing looks for what was made in Vault and PostgreSQL for any pod.
func (s *suite) vaultHoldsNothing(ctx context.Context) error {
	leases, err := s.bed.VaultLeases(ctx, "database/creds")
	if err != nil {
		return err
	}
	tokens, err := s.bed.LoginTokens(ctx)
	if err != nil {
		return err
	}
	users, err := s.bed.DatabaseRoles(ctx)
	if err != nil {
		return err
	}
	if left := len(leases) + len(tokens) + len(users); left > 0 {
		return fmt.Errorf("there are %d leases, %d login tokens, %d database users", len(leases), len(tokens), len(users))
	}
	return nil
}
