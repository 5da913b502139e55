package vault_test

import (
	"errors"
	"net/http"
	"testing"
	"testing/synctest"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// Each reply is of one trouble; Vault's words are those of 1.21.2.
func TestTroubleOf(t *testing.T) { synctest.Test(t, troubles) } // some are tried again, for seconds

func troubles(t *testing.T) {
	for _, c := range []struct {
		op     string // login, read or renew
		status int
		says   string
		want   vault.Trouble
	}{
		{"renew", 503, "Vault is sealed", vault.Sealed},
		{"read", 500, "local node not active but active cluster node not found", vault.Busy},
		{"read", 429, "request path \\\"x\\\": rate limit quota exceeded", vault.Busy},
		{"login", 400, "invalid role name \\\"web\\\"", vault.RoleGone},
		{"login", 400, "role \\\"web\\\" could not be found", vault.RoleGone},
		{"login", 403, "service account name not authorized", vault.LoginRefused},
		{"login", 403, "permission denied", vault.LoginRefused},
		{"login", 500, "internal error", vault.Broken},
		{"read", 403, "permission denied", vault.PolicyDenied},
		{"read", 400, "unknown role: web", vault.RoleGone},
		{"read", 400, "missing argument", vault.WrongRequest},
		{"read", 404, "", vault.NothingThere},
		{"read", 204, "", vault.WrongRequest},
		{"login", 204, "", vault.Strange},
		{"read", 500, "dial tcp 127.0.0.1:5432: connect: connection refused", vault.BackEnd},
		{"read", 500, "storage is full", vault.Broken},
		{"read", 403, "invalid token", vault.RevokedElsewhere},
		{"renew", 400, "failed to renew entry: resp: (*logical.Response)(nil) err: dial tcp: connection refused", vault.BackEnd},
		{"renew", 400, "failed to renew entry: could not find role with name web", vault.RoleGone},
		{"renew", 400, "lease not found", vault.RevokedElsewhere},
		{"renew", 400, "lease is not renewable", ""},
	} {
		body := `{"errors":["` + c.says + `"]}`
		if c.status == http.StatusNoContent {
			body = ""
		}
		client, err := (&vault.Pool{RoundTripper: says{c.status, "application/json", "", body}}).Client(spec.Server{Address: "http://vault.test"}, "shop")
		if err != nil {
			t.Fatal(err)
		}
		session := vault.Session{Token: secret.New("hvs.x")}
		switch c.op {
		case "login":
			_, err = client.LogIn(t.Context(), "", auth, vault.Credentials{JWT: secret.New("x")})
		case "read":
			_, err = client.Read(t.Context(), session, spec.Read{Method: http.MethodGet, Path: "database/creds/web"})
		default:
			_, err = client.RenewLease(t.Context(), session, grant.Lease{ID: secret.New("x")}, 0)
		}
		if got := vault.TroubleOf(err); err == nil || got != c.want {
			t.Errorf("%s: %v is %q, want %q", c.op, err, got, c.want)
		}
	}
	if got := vault.TroubleOf(errors.New("of ours")); got != "" {
		t.Errorf("an error that is not Vault's is %q", got)
	}
}

// Vault's id of a request is taken over, and nothing else that stands in its place.
func TestRequestID(t *testing.T) {
	const id = "5ca1ab1e-1111-2222-3333-444444444444"
	for text, want := range map[string]string{`"` + id + `"`: id, `"hvs.` + id + `"`: "", `"token"`: "", `7`: "", `null`: "", `{"a":1}`: ""} {
		reply := `{"request_id":` + text + `,"data":{"k":"v"}}`
		client, err := (&vault.Pool{RoundTripper: says{200, "application/json", "", reply}}).Client(spec.Server{Address: "http://vault.test"}, "shop")
		if err != nil {
			t.Fatal(err)
		}
		got, err := client.Read(t.Context(), vault.Session{Token: secret.New("hvs.x")}, spec.Read{Method: http.MethodGet, Path: "secret/data/x"})
		if err != nil || got.Request != want {
			t.Errorf("%s: %q, %v, want %q", text, got.Request, err, want)
		}
	}
}
