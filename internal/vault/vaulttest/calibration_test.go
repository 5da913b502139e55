package vaulttest_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

// client talks to a fake as a provider would: one token, JSON, no retries.
type client struct {
	t     *testing.T
	http  *http.Client
	url   string
	token string
	lease string
}

// newClient returns a client without a socket.
func newClient(t *testing.T, v *vaulttest.Vault) *client {
	return &client{t: t, http: &http.Client{Transport: v}, url: v.URL}
}

// try makes a request. The error is the connection's.
func (c *client) try(method, path, body string) (status int, header http.Header, text string, err error) {
	r, err := http.NewRequestWithContext(c.t.Context(), method, c.url+"/v1/"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, "", err
	}
	r.Header.Set("X-Vault-Token", c.token)
	r.Header.Set("X-Vault-Request", "true")
	answer, err := c.http.Do(r)
	if err != nil {
		return 0, nil, "", err
	}
	defer func() { _ = answer.Body.Close() }()
	b, err := io.ReadAll(answer.Body)
	return answer.StatusCode, answer.Header, string(b), err
}

// do makes a request, checks the answer, and keeps the token and the lease in it.
func (c *client) do(request string, status int, has ...string) string {
	c.t.Helper()
	method, rest, _ := strings.Cut(request, " ")
	path, body, _ := strings.Cut(rest, " ")
	got, _, text, err := c.try(method, path, c.fill(body))
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	if got != status {
		c.t.Fatalf("%s %s: status %d, want %d: %s", method, path, got, status, text)
	}
	if s := field(text, "client_token"); s != "" {
		c.token = s
	}
	if s := field(text, "lease_id"); s != "" {
		c.lease = s
	}
	for _, want := range has {
		if !strings.Contains(text, c.fill(want)) {
			c.t.Errorf("%s %s: %s\nlacks %s", method, path, text, c.fill(want))
		}
	}
	return text
}

func (c *client) fill(s string) string {
	return strings.NewReplacer("$token", c.token, "$lease", c.lease, "$jwt", appJWT).Replace(s)
}

// appJWT is a token that the role my-app-role admits.
var appJWT = vaulttest.Identity{Namespace: "default", ServiceAccount: "my-app", Pod: "app-0"}.JWT()

// field returns a text in a JSON answer by its name, wherever it is.
func field(text, name string) string {
	_, rest, _ := strings.Cut(text, `"`+name+`":"`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

const (
	login  = `PUT auth/kubernetes/login {"role":"my-app-role","jwt":"$jwt"}`
	read   = "GET database/creds/my-app"
	revoke = "PUT auth/token/revoke-self"
	renew  = "PUT auth/token/renew-self"
)

// newVault returns the server that most tests start from.
func newVault(t *testing.T) *vaulttest.Vault {
	v := vaulttest.New(t)
	v.Role("my-app-role", vaulttest.Role{ServiceAccounts: []string{"my-app"}, Audience: "vault", TTL: 20 * time.Minute})
	v.Dynamic("database/creds/my-app", vaulttest.Dynamic{TTL: time.Hour, MaxTTL: 24 * time.Hour})
	v.KV2("secret/data/x", map[string]any{"a": "1"})
	v.PKI("pki/issue/my-app", false)
	v.Static("database/static-creds/fixed", time.Hour)
	return v
}

func TestCalibration(t *testing.T) {
	for _, s := range vaulttest.Calibration {
		t.Run(s.Name, func(t *testing.T) {
			v := newVault(t)
			for _, transport := range []string{"round trip", "socket"} {
				c := &http.Client{Transport: v}
				if transport == "socket" {
					v.Serve(t)
					c.Transport = &http.Transport{}
					defer c.CloseIdleConnections()
				}
				if err := s.Run(t.Context(), c, v.URL, appJWT); err != nil {
					t.Errorf("%s: %v", transport, err)
				}
			}
			for _, token := range v.Tokens() {
				if !token.Revoked {
					t.Errorf("a token of %s is left", token.Role)
				}
			}
		})
	}
}
