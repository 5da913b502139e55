package bed

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/hashicorp/vault/api"
)

// VaultLeases returns the ids of all leases below prefix, "database/creds/" for example. Logins are below
// "auth/kubernetes/login".
func (b *Bed) VaultLeases(ctx context.Context, prefix string) ([]string, error) {
	client, err := b.Vault()
	if err != nil {
		return nil, err
	}
	return leasesBelow(ctx, client, strings.TrimSuffix(prefix, "/")+"/")
}

func leasesBelow(ctx context.Context, client *api.Client, prefix string) ([]string, error) {
	keys, err := list(ctx, client, "sys/leases/lookup/"+prefix)
	if err != nil {
		return nil, err
	}
	var leases []string
	for _, key := range keys {
		if !strings.HasSuffix(key, "/") {
			leases = append(leases, prefix+key)
			continue
		}
		below, err := leasesBelow(ctx, client, prefix+key)
		if err != nil {
			return nil, err
		}
		leases = append(leases, below...)
	}
	return leases, nil
}

func list(ctx context.Context, client *api.Client, path string) ([]string, error) {
	answer, err := client.Logical().ListWithContext(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", path, err)
	}
	if answer == nil {
		return nil, nil
	}
	var keys []string
	values, _ := answer.Data["keys"].([]any)
	for _, value := range values {
		key, _ := value.(string)
		keys = append(keys, key)
	}
	return keys, nil
}

// LoginTokens returns the accessors of all live tokens that kubernetes logins made.
//
// It takes them from the audit log, which knows of a login when that is over, and not from auth/token/accessors: asked for a
// token between the moments of making it and of making its lease, Vault takes it for one that lost its lease, and revokes it.
func (b *Bed) LoginTokens(ctx context.Context) ([]string, error) {
	entries, err := b.AuditSince(0)
	if err != nil {
		return nil, err
	}
	var accessors []string
	for _, entry := range entries {
		if entry.Accessor != "" {
			accessors = append(accessors, entry.Accessor)
		}
	}
	return b.LiveTokens(ctx, accessors)
}

// LiveTokens returns those of the accessors whose tokens live. They must be of logins that are over; see LoginTokens.
func (b *Bed) LiveTokens(ctx context.Context, accessors []string) (live []string, err error) {
	client, err := b.Vault()
	if err != nil {
		return nil, err
	}
	for _, accessor := range accessors {
		_, err := client.Auth().Token().LookupAccessorWithContext(ctx, accessor)
		var refused *api.ResponseError
		switch {
		case err == nil:
			live = append(live, accessor)
		case !errors.As(err, &refused) || refused.StatusCode != http.StatusForbidden && refused.StatusCode != http.StatusBadRequest:
			return nil, fmt.Errorf("looking up a token: %w", err)
		}
	}
	return live, nil
}

// DatabaseRoles returns the users that Vault made in PostgreSQL and that exist there now.
func (b *Bed) DatabaseRoles(ctx context.Context) ([]string, error) {
	rows, err := b.sql(ctx, "postgres", "SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%' ORDER BY 1")
	if err != nil || rows == "" {
		return nil, err
	}
	return strings.Split(rows, "\n"), nil
}

// CanLogIn returns nil when PostgreSQL lets this user in with this password.
func (b *Bed) CanLogIn(ctx context.Context, user, password string) error {
	_, err := b.psql(ctx, user, password, b.state.Postgres.Database, "SELECT 1")
	return err
}

// AuditMark is a moment in Vault's audit log.
type AuditMark int64

// AuditEntry is one answered request of Vault's audit log.
type AuditEntry struct {
	// Operation is read, update, list and so on.
	Operation string
	// Path is the request's, without the leading v1.
	Path string
	// Error is what Vault answered; empty for a success.
	Error string
	// Namespace is that of the service account whose login this is or uses; empty when there is none.
	Namespace string
	// Accessor is that of the token which this login made; empty for anything but a login.
	Accessor string
}

// AuditMark returns the end of the audit log's last whole line: Vault may be writing another.
func (b *Bed) AuditMark() (AuditMark, error) {
	file, err := os.Open(b.state.Vault.AuditLog)
	if err != nil {
		return 0, fmt.Errorf("reading the audit log: %w", err)
	}
	defer func() { _ = file.Close() }()
	end, err := file.Seek(0, io.SeekEnd)
	for err == nil && end > 0 {
		start := max(0, end-64<<10)
		block := make([]byte, end-start)
		if _, err = file.ReadAt(block, start); err == nil {
			if i := bytes.LastIndexByte(block, '\n'); i >= 0 {
				return AuditMark(start + int64(i) + 1), nil
			}
			end = start
		}
	}
	if err != nil {
		return 0, fmt.Errorf("reading the audit log: %w", err)
	}
	return 0, nil
}

// AuditSince returns the requests answered after mark, oldest first, without those made with the root token, which are
// the bed's own.
func (b *Bed) AuditSince(mark AuditMark) (entries []AuditEntry, err error) {
	file, err := os.Open(b.state.Vault.AuditLog)
	if err != nil {
		return nil, fmt.Errorf("reading the audit log: %w", err)
	}
	defer func() { _ = file.Close() }()
	if _, err := file.Seek(int64(mark), io.SeekStart); err != nil {
		return nil, fmt.Errorf("reading the audit log: %w", err)
	}
	lines := bufio.NewReader(file)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the audit log: %w", err)
		}
		entry, keep, err := parseAudit(line)
		if err != nil {
			return nil, err
		}
		if keep {
			entries = append(entries, entry)
		}
	}
}

// parseAudit reads one line of the audit log; keep is false for what AuditSince leaves out.
func parseAudit(line []byte) (entry AuditEntry, keep bool, err error) {
	var record struct {
		Type  string `json:"type"`
		Error string `json:"error"`
		Auth  struct {
			Policies []string          `json:"policies"`
			Metadata map[string]string `json:"metadata"`
		} `json:"auth"`
		Request struct {
			Operation string `json:"operation"`
			Path      string `json:"path"`
		} `json:"request"`
		Response struct {
			Auth struct {
				Accessor string `json:"accessor"`
			} `json:"auth"`
		} `json:"response"`
	}
	if err := json.Unmarshal(line, &record); err != nil {
		return AuditEntry{}, false, fmt.Errorf("decoding a line of the audit log: %w", err)
	}
	entry = AuditEntry{
		Operation: record.Request.Operation, Path: record.Request.Path, Error: record.Error,
		Namespace: record.Auth.Metadata["service_account_namespace"],
	}
	if strings.HasSuffix(entry.Path, "/login") { // renewals answer with an accessor too
		entry.Accessor = record.Response.Auth.Accessor
	}
	return entry, record.Type == "response" && !slices.Contains(record.Auth.Policies, "root"), nil
}
