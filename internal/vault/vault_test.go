package vault_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

var (
	auth  = spec.Auth{Mount: "kubernetes", Role: "my-app-role"}
	creds = spec.Read{Method: http.MethodGet, Path: "database/creds/my-app"}
)

func client(t *testing.T, v *vaulttest.Vault) *vault.Client {
	t.Helper()
	c, err := (&vault.Pool{RoundTripper: v}).Client(spec.Server{Address: v.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// world is a fake Vault with a role, dynamic credentials and a login.
func world(t *testing.T) (*vaulttest.Vault, *vault.Client, vault.Login) {
	t.Helper()
	v := vaulttest.New(t)
	v.Role("my-app-role", vaulttest.Role{TTL: time.Hour, ServiceAccounts: []string{"my-app"}})
	v.Dynamic(creds.Path, vaulttest.Dynamic{TTL: time.Minute, MaxTTL: 10 * time.Minute})
	v.KV2("secret/data/x", map[string]any{"k": "v"})
	c := client(t, v)
	login, err := c.LogIn(t.Context(), "", auth, vault.Credentials{JWT: secret.New(v.JWT("default", "my-app"))})
	if err != nil {
		t.Fatal(err)
	}
	return v, c, login
}

func TestCallsOfALife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, c, login := world(t)
		if login.TTL != time.Hour || !login.Renewable || login.Unleasable != "" || login.Accessor.IsZero() {
			t.Errorf("login: %+v", login)
		}
		reply, err := c.Read(t.Context(), login.Session, creds)
		if err != nil || reply.LeaseID.IsZero() || reply.TTL != time.Minute || !reply.Renewable || reply.Certificate != nil || reply.Rotation != nil {
			t.Fatalf("read: %+v, %v", reply, err)
		}
		if life, err := c.RenewLease(t.Context(), login.Session, grant.Lease{ID: reply.LeaseID}, 5*time.Minute); err != nil || life.TTL != 5*time.Minute {
			t.Errorf("renewed lease: %+v, %v", life, err)
		}
		if life, err := c.RenewSelf(t.Context(), login.Session, 10*time.Minute); err != nil || life.TTL != 10*time.Minute {
			t.Errorf("renewed token: %+v, %v", life, err)
		}
		if c.Cluster(t.Context()) == "" {
			t.Error("no cluster id")
		}
		if err := c.RevokeSelf(t.Context(), login.Session); err != nil {
			t.Error(err)
		}
		if err := c.RevokeSelf(t.Context(), login.Session); vault.KindOf(err) != vault.InvalidToken {
			t.Errorf("revoked twice: %v", err)
		}
		for _, r := range v.Requests() {
			if r.Header.Get("X-Vault-Request") != "true" {
				t.Errorf("%s lacks X-Vault-Request", r.Path)
			}
		}
	})
}

// TestRequestsAreTold: each with what it was for, what came of it and how long it took, those that are tried again each time.
func TestRequestsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, _, login := world(t)
		var told []string
		c, err := (&vault.Pool{RoundTripper: v, Answered: func(operation, outcome string, took time.Duration) {
			told = append(told, fmt.Sprint(operation, " ", outcome, " ", took))
		}}).Client(spec.Server{Address: v.URL}, "shop")
		if err != nil {
			t.Fatal(err)
		}
		v.FailNext("GET "+creds.Path, 1, vaulttest.Fault{Status: 429})
		reply, err := c.Read(t.Context(), login.Session, creds)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Read(t.Context(), login.Session, spec.Read{Method: http.MethodGet, Path: "secret/data/none"})
		_, _ = c.RenewLease(t.Context(), login.Session, grant.Lease{ID: reply.LeaseID}, 0)
		_, _ = c.RenewSelf(t.Context(), login.Session, 0)
		_ = c.RevokeSelf(t.Context(), login.Session)
		_ = c.RevokeCertificate(t.Context(), login.Session, "pki", secret.New("00:11"))
		c.Cluster(t.Context())
		want := []string{"read not_executed 0s", "read ok 0s", "read not_found 0s", "renew_lease ok 0s", "renew_token ok 0s", "revoke ok 0s", "revoke_certificate invalid_token 0s", "health ok 0s"}
		if !slices.Equal(told, want) {
			t.Errorf("told\n%q, want\n%q", told, want)
		}
	})
}

func TestNamespaceGoesWithEveryCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, c, login := world(t)
		login.Namespace = "team/a"
		before := len(v.Requests())
		reply, _ := c.Read(t.Context(), login.Session, creds)
		_, _ = c.RenewSelf(t.Context(), login.Session, time.Hour)
		_, _ = c.RenewLease(t.Context(), login.Session, grant.Lease{ID: reply.LeaseID}, 0)
		_ = c.RevokeSelf(t.Context(), login.Session)
		for _, r := range v.Requests()[before:] {
			if got := r.Header.Get("X-Vault-Namespace"); got != "team/a" {
				t.Errorf("%s went to namespace %q", r.Path, got)
			}
		}
	})
}

// The catalogue: what Vault 1.21.2 answers, and what it means.
func TestKinds(t *testing.T) {
	fault := func(path string, status int, body string) func(*vaulttest.Vault) {
		return func(v *vaulttest.Vault) { v.FailNext(path, 100, vaulttest.Fault{Status: status, Body: body}) }
	}
	errs := func(text string) string { return fmt.Sprintf(`{"errors":[%q]}`, text) }
	const renew, self = "sys/leases/renew", "auth/token/renew-self"
	tests := map[string]struct {
		weather func(*vaulttest.Vault)
		call    string // read, lease, token
		want    vault.Kind
	}{
		"no policy":                 {fault(creds.Path, 403, ""), "read", vault.Denied},
		"unknown role":              {func(v *vaulttest.Vault) { v.Remove(creds.Path) }, "read", vault.Invalid},
		"kv missing":                {fault(creds.Path, 404, `{"errors":[]}`), "read", vault.NotFound},
		"back end down, read":       {func(v *vaulttest.Vault) { v.BackendDown(true) }, "read", vault.Failing},
		"sealed":                    {func(v *vaulttest.Vault) { v.Sealed(true) }, "read", vault.NotExecuted},
		"rate limit":                {fault(creds.Path, 429, errs("rate limit quota exceeded")), "read", vault.NotExecuted},
		"state not replicated":      {fault(creds.Path, 412, errs("required index state not present")), "read", vault.NotExecuted},
		"no leader":                 {fault(creds.Path, 500, errs("local node not active but active cluster node not found")), "read", vault.NotExecuted},
		"standby whose leader died": {fault(creds.Path, 307, ""), "read", vault.NotExecuted},
		"overloaded":                {fault(creds.Path, 503, errs("overloaded, try again later")), "read", vault.NotExecuted},
		"bad gateway of a proxy":    {fault(creds.Path, 502, "<html>"), "read", vault.Failing},
		"cut":                       {func(v *vaulttest.Vault) { v.DropReply(creds.Path, 100) }, "read", vault.InDoubt},
		"refused":                   {func(v *vaulttest.Vault) { v.Down(true) }, "read", vault.Unreachable},
		"empty":                     {func(v *vaulttest.Vault) { v.Raw(creds.Path, 204, "", "") }, "read", vault.Empty},
		"not JSON":                  {func(v *vaulttest.Vault) { v.Raw(creds.Path, 200, "text/html", "<html>") }, "read", vault.NotVault},
		"too large": {func(v *vaulttest.Vault) {
			v.Raw(creds.Path, 200, "application/json", strings.Repeat(" ", vault.MaxReply+1))
		}, "read", vault.NotVault},
		"too large an error": {func(v *vaulttest.Vault) {
			v.Raw(creds.Path, 400, "application/json", strings.Repeat(" ", vault.MaxReply+1))
		}, "read", vault.NotVault},
		"back end down, renewal":     {func(v *vaulttest.Vault) { v.BackendDown(true) }, "lease", vault.BackEndDown},
		"lease unknown":              {fault(renew, 400, errs("lease not found")), "lease", vault.LeaseGone},
		"lease expired":              {fault(renew, 400, errs("lease expired")), "lease", vault.LeaseEnded},
		"lease not renewable":        {fault(renew, 400, errs("lease is not renewable")), "lease", vault.Unrenewable},
		"past the maximum":           {fault(renew, 400, errs("past the max TTL, cannot renew")), "lease", vault.Unrenewable},
		"role of the engine deleted": {fault(renew, 400, errs(`failed to renew entry: could not find role with name "x"`)), "lease", vault.Unrenewable},
		"past the maximum, engine":   {fault(renew, 400, errs("failed to renew entry: err: past the max TTL, cannot renew")), "lease", vault.Unrenewable},
		"irrevocable":                {fault(renew, 400, errs("lease is expired and has failed previous revocation attempts")), "lease", vault.LeaseGone},
		"lease of a token":           {fault(renew, 400, errs("tokens cannot be renewed through this endpoint")), "lease", vault.Unrenewable},
		"batch token":                {fault(self, 400, errs("batch tokens cannot be renewed")), "token", vault.Unrenewable},
		"token without default":      {fault(self, 403, errs("1 error occurred:\n\t* permission denied\n\n")), "token", vault.Denied},
		"past the maximum, token":    {fault(self, 500, errs("failed to renew entry: past the max TTL, cannot renew")), "token", vault.Unrenewable},
		"renewal while sealed":       {fault(self, 503, errs("Vault is sealed")), "token", vault.NotExecuted},
		"renewal at a rate limit":    {fault(self, 429, errs("rate limit quota exceeded")), "token", vault.NotExecuted},
		"back end down, revocation":  {fault(renew, 400, errs("failed to revoke entry: connection refused")), "lease", vault.BackEndDown},
		"auth role deleted":          {func(v *vaulttest.Vault) { v.DeleteRole("my-app-role") }, "token", vault.Unrenewable},
		"invalid token":              {fault(self, 403, errs("2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")), "token", vault.InvalidToken},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v, c, login := world(t)
				reply, err := c.Read(t.Context(), login.Session, creds)
				if err != nil {
					t.Fatal(err)
				}
				tt.weather(v)
				switch tt.call {
				case "read":
					_, err = c.Read(t.Context(), login.Session, creds)
				case "lease":
					_, err = c.RenewLease(t.Context(), login.Session, grant.Lease{ID: reply.LeaseID}, 0)
				case "token":
					_, err = c.RenewSelf(t.Context(), login.Session, time.Hour)
				}
				if got := vault.KindOf(err); got != tt.want {
					t.Errorf("kind %d, want %d: %v", got, tt.want, err)
				}
				if len(err.Error()) > 1500 || strings.Contains(err.Error(), "<html>") {
					t.Errorf("the error repeats the reply: %.200s", err)
				}
				for _, s := range v.Secrets() {
					if strings.Contains(err.Error(), s) {
						t.Errorf("the error holds a secret: %v", err)
					}
				}
			})
		})
	}
}

func TestLoginIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, c, _ := world(t)
		jwt := secret.New(v.JWT("default", "another"))
		_, err := c.LogIn(t.Context(), "", auth, vault.Credentials{JWT: jwt})
		if vault.KindOf(err) != vault.Denied || !strings.Contains(err.Error(), "service account name not authorized") {
			t.Errorf("got %v", err)
		}
		_, err = c.LogIn(t.Context(), "", spec.Auth{Mount: "kubernetes", Role: "nobody"}, vault.Credentials{JWT: jwt})
		if vault.KindOf(err) != vault.Invalid || !strings.Contains(err.Error(), "nobody") {
			t.Errorf("got %v", err)
		}
	})
}

func TestLoginFromACacheIsRefused(t *testing.T) {
	v, c, _ := world(t)
	v.CacheLogins(true)
	jwt := secret.New(v.JWT("default", "my-app"))
	login, err := c.LogIn(t.Context(), "", auth, vault.Credentials{JWT: jwt})
	if err != nil {
		t.Fatalf("what the cache did not have: %v", err)
	}
	_, err = c.LogIn(t.Context(), "", auth, vault.Credentials{JWT: jwt})
	if vault.KindOf(err) != vault.Shared || !strings.Contains(err.Error(), "X-Cache: HIT") || !strings.Contains(err.Error(), "share one token") {
		t.Errorf("got %v", err)
	}
	if strings.Contains(err.Error(), login.Token.Reveal()) {
		t.Errorf("the error holds the token: %v", err)
	}
}

func TestHostileServerDoesNotSpeakThroughUs(t *testing.T) {
	const jwt = "header.payload.signature"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = fmt.Fprintf(w, `{"errors":["you sent %s\n\u001b[31m", %q, "3", "4"]}`, jwt, strings.Repeat("x", 10000))
	}))
	defer srv.Close()
	c, err := new(vault.Pool).Client(spec.Server{Address: srv.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.LogIn(t.Context(), "", auth, vault.Credentials{JWT: secret.New(jwt)})
	if text := err.Error(); strings.Contains(text, jwt) || strings.ContainsAny(text, "\n\x1b") || len(text) > 1000 {
		t.Errorf("got %q", text)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	reached := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer other.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		srv := httptest.NewServer(http.RedirectHandler(other.URL, status))
		if err := revoke(t, spec.Server{Address: srv.URL}); vault.KindOf(err) != vault.NotExecuted {
			t.Errorf("%d: %v", status, err)
		}
		srv.Close()
	}
	if reached {
		t.Error("the token was carried to another host")
	}
}

func TestTLS(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	defer srv.Close()
	srv.Config.ErrorLog = nil
	revoke := func(s spec.Server) error {
		c, err := new(vault.Pool).Client(s, "shop")
		if err != nil {
			return err
		}
		return c.RevokeSelf(t.Context(), vault.Session{Token: secret.New("t")})
	}
	if err := revoke(spec.Server{Address: srv.URL}); vault.KindOf(err) != vault.Distrusted {
		t.Errorf("unknown authority: %v", err)
	}
	if err := revoke(spec.Server{Address: srv.URL, SkipVerify: true}); err != nil {
		t.Errorf("unchecked: %v", err)
	}
	if err := revoke(spec.Server{Address: srv.URL, CACert: "/nowhere.pem"}); vault.KindOf(err) != vault.Unusable || !strings.Contains(err.Error(), "/nowhere.pem") {
		t.Errorf("missing file: %v", err)
	}
	if err := revoke(spec.Server{Address: strings.Replace(srv.URL, "https", "http", 1)}); err == nil {
		t.Error("plain HTTP to a TLS port succeeded")
	}
}

// A Vault Agent on a socket.
func TestUnixSocket(t *testing.T) {
	v := vaulttest.New(t)
	v.Role("my-app-role", vaulttest.Role{TTL: time.Hour})
	v.KV2("secret/data/x", map[string]any{"k": "v"})
	socket := filepath.Join(t.TempDir(), "agent.sock")
	c, err := new(vault.Pool).Client(spec.Server{Address: "unix://" + socket}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	jwt := secret.New(v.JWT("default", "my-app"))
	if _, err := c.RenewSelf(t.Context(), vault.Session{Token: secret.New("t")}, time.Hour); vault.KindOf(err) != vault.Unreachable || !strings.Contains(err.Error(), socket) {
		t.Errorf("nobody listens: %v", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: v}}
	srv.Start()
	defer srv.Close()
	login, err := c.LogIn(t.Context(), "", auth, vault.Credentials{JWT: jwt})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(t.Context(), login.Session, spec.Read{Method: http.MethodGet, Path: "secret/data/x"}); err != nil {
		t.Error(err)
	}
	if err := c.RevokeSelf(t.Context(), login.Session); err != nil {
		t.Error(err)
	}
}

func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := "http://" + l.Addr().String()
	_ = l.Close()
	c, err := new(vault.Pool).Client(spec.Server{Address: address}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	err = c.RevokeSelf(t.Context(), vault.Session{Token: secret.New("t")})
	var e *vault.Error
	if !errors.As(err, &e) || e.Kind != vault.Unreachable || !e.Repeatable() || e.Executed() {
		t.Errorf("got %v", err)
	}
}

func TestSilentServerIsInDoubt(t *testing.T) {
	quiet := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-quiet }))
	defer srv.Close()
	defer close(quiet)
	c, err := new(vault.Pool).Client(spec.Server{Address: srv.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = c.Read(ctx, vault.Session{Token: secret.New("t")}, creds)
	var e *vault.Error
	if !errors.As(err, &e) || e.Kind != vault.InDoubt || !e.Executed() || e.Repeatable() {
		t.Errorf("got %v", err)
	}
}

// net/http by itself repeats a GET whose kept connection dies.
func TestReadOverAKeptConnectionIsSentOnce(t *testing.T) {
	v := vaulttest.New(t)
	v.Serve(t)
	v.Role("my-app-role", vaulttest.Role{TTL: time.Hour})
	v.Dynamic(creds.Path, vaulttest.Dynamic{TTL: time.Minute})
	c, err := new(vault.Pool).Client(spec.Server{Address: v.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	login, err := c.LogIn(t.Context(), "", auth, vault.Credentials{JWT: secret.New(v.JWT("default", "my-app"))})
	if err != nil {
		t.Fatal(err)
	}
	v.DropReply(creds.Path, 1)
	if _, err := c.Read(t.Context(), login.Session, creds); vault.KindOf(err) != vault.InDoubt {
		t.Errorf("got %v", err)
	}
	if n := len(v.Leases()); n != 1 {
		t.Errorf("%d leases for one read", n)
	}
}

func TestOneClientForOneServer(t *testing.T) {
	var p vault.Pool
	a, _ := p.Client(spec.Server{Address: "http://127.0.0.1:1"}, "shop")
	b, _ := p.Client(spec.Server{Address: "http://127.0.0.1:1"}, "shop")
	c, _ := p.Client(spec.Server{Address: "http://127.0.0.1:1", ServerName: "x"}, "shop")
	if a != b || a == c {
		t.Error("clients are not shared by server and trust")
	}
}

// TestShapes: what a reply tells of when another one may differ. Left is reckoned by the wall clock, so that it has a second to spare.
func TestShapes(t *testing.T) {
	certificate, _ := vaulttest.Pair("a.test", 24*time.Hour) // valid from 30 s ago
	block, _ := pem.Decode([]byte(certificate))
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	const day = 24 * time.Hour
	issued := func(certificate string, expiration any) string {
		text, err := json.Marshal(map[string]any{"data": map[string]any{"certificate": certificate, "serial_number": "0a:1b", "expiration": expiration, "private_key": "k"}})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	tests := map[string]struct {
		method, body string
		certificate  *grant.Validity
		rotation     time.Duration // zero: none
	}{
		"plain":                   {"GET", `{"data":{"data":{"k":"v"}}}`, nil, 0},
		"plain, odd ttl":          {"GET", `{"data":{"ttl":"1h","certificate":"x","expiration":"soon","rotation_period":1}}`, nil, 0},
		"plain, only a ttl":       {"GET", `{"data":{"ttl":30}}`, nil, 0},
		"static role":             {"GET", `{"data":{"username":"u","ttl":30,"rotation_period":60,"last_vault_rotation":"2026-01-01T00:00:00Z"}}`, nil, 30 * time.Second},
		"on a schedule":           {"GET", `{"data":{"username":"u","ttl":30,"rotation_schedule":"0 0 * * SAT"}}`, nil, 30 * time.Second},
		"of ldap, never rotated":  {"GET", `{"data":{"dn":"d","ttl":30,"rotation_period":60,"last_vault_rotation":""}}`, nil, 30 * time.Second},
		"static role, huge ttl":   {"GET", `{"data":{"ttl":9223372036854775807,"rotation_period":60}}`, nil, 100 * 365 * day},
		"certificate":             {"PUT", issued(certificate, in(day)), &grant.Validity{Span: day + 30*time.Second, Left: day}, 0},
		"of DER":                  {"PUT", issued(base64.StdEncoding.EncodeToString(block.Bytes), in(day)), &grant.Validity{Span: day + 30*time.Second, Left: day}, 0},
		"behind its key":          {"POST", issued("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"+certificate, in(day)), &grant.Validity{Span: day + 30*time.Second, Left: day}, 0},
		"ends before it says":     {"PUT", issued(certificate, in(48*time.Hour)), &grant.Validity{Span: day + 30*time.Second, Left: day}, 0},
		"says less than it is":    {"PUT", issued(certificate, in(time.Hour)), &grant.Validity{Span: day + 30*time.Second, Left: time.Hour}, 0},
		"unreadable":              {"PUT", issued("x", in(day)), &grant.Validity{Left: day}, 0},
		"only a certificate":      {"PUT", issued(certificate, "never"), &grant.Validity{Span: day + 30*time.Second, Left: day}, 0},
		"ended":                   {"PUT", issued("x", in(-time.Hour)), &grant.Validity{Left: -time.Hour}, 0},
		"says nothing of its end": {"PUT", issued("x", 0), nil, 0},
		"ends beyond time":        {"PUT", issued("x", json.Number("9223372036854775")), &grant.Validity{Left: 100 * 365 * day}, 0},
		"not issued by a read":    {"GET", issued(certificate, in(day)), nil, 0},
		"made by a write":         {"POST", `{"data":{"ciphertext":"x"}}`, nil, 0},
		"leased":                  {"GET", `{"lease_id":"x","lease_duration":60,"data":{"username":"u","ttl":3,"rotation_period":4}}`, nil, 0},
		"leased certificate":      {"PUT", strings.Replace(issued(certificate, in(day)), "{", `{"lease_id":"x","lease_duration":600,`, 1), &grant.Validity{Span: 10 * time.Minute, Left: 10 * time.Minute}, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			v, c, login := world(t)
			v.Raw("odd/x", 200, "application/json", tt.body)
			reply, err := c.Read(t.Context(), login.Session, spec.Read{Method: tt.method, Path: "odd/x"})
			if err != nil {
				t.Fatal(err)
			}
			if (reply.Rotation == nil) != (tt.rotation == 0) || reply.Rotation != nil && time.Duration(*reply.Rotation) != tt.rotation {
				t.Errorf("rotation %v, want %s", reply.Rotation, tt.rotation)
			}
			if (reply.Certificate == nil) != (tt.certificate == nil) {
				t.Fatalf("certificate %+v, want %+v", reply.Certificate, tt.certificate)
			}
			if tt.certificate == nil {
				return
			}
			got := reply.Certificate.Validity
			if late := tt.certificate.Left - got.Left; got.Span != tt.certificate.Span || late < 0 || late > 5*time.Second || reply.Certificate.Serial.Reveal() != "0a:1b" {
				t.Errorf("%+v, want %+v", got, *tt.certificate)
			}
		})
	}
}

func TestRevokeCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, c, login := world(t)
		v.PKI("pki/issue/x", false)
		reply, err := c.Read(t.Context(), login.Session, spec.Read{Method: http.MethodPut, Path: "pki/issue/x", Args: `{"common_name":"a"}`})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // it may have been before
			if err := c.RevokeCertificate(t.Context(), login.Session, "pki", reply.Certificate.Serial); err != nil {
				t.Error(err)
			}
		}
		if all := v.Certificates(); len(all) != 1 || !all[0].Revoked {
			t.Errorf("%+v", all)
		}
		err = c.RevokeCertificate(t.Context(), login.Session, "pki", secret.New("0a:1b:2c"))
		if vault.KindOf(err) != vault.Invalid || strings.Contains(err.Error(), "0a:1b") {
			t.Errorf("one that Vault does not know: %v", err)
		}
	})
}

// What Vault 1.21.2 sends that is no JSON, by its path.
func TestRawReplies(t *testing.T) {
	const certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
	for name, tt := range map[string]struct {
		status            int
		contentType, body string
		want              vault.Kind // of an error; Unknown for a raw reply
	}{
		"pki/ca_chain":           {200, "application/pkix-cert", certificate, 0},
		"pki/ca/pem":             {200, "application/pem-certificate-chain", certificate, 0},
		"pki/ca":                 {200, "application/pkix-cert", "0\x82\x03\x17\x00\xff", 0},
		"pki/crl":                {200, "application/pkix-crl", "0\x81\x85\x00\xff", 0},
		"pki/crl/pem":            {200, "application/x-pem-file", "-----BEGIN X509 CRL-----\n", 0},
		"ssh/public_key":         {200, "text/plain", "ssh-rsa AAAA\n", 0},
		"with a charset":         {200, "text/plain; charset=utf-8", "ssh-rsa AAAA\n", 0},
		"a page":                 {200, "text/html", "<html>canary", vault.NotVault},
		"of no type":             {200, "", "canary", vault.NotVault},
		"of an unreadable type":  {200, ";", "canary", vault.NotVault},
		"JSON that is none":      {200, "application/json", "canary", vault.NotVault},
		"another status":         {206, "application/pkix-cert", certificate, vault.NotVault},
		"pki/ca without a CA":    {204, "application/pkix-cert", "", vault.Empty},
		"nothing at all":         {200, "application/pkix-cert", "", vault.Empty},
		"an error of that type":  {400, "application/pkix-cert", "canary", vault.Invalid},
		"larger than any answer": {200, "application/pkix-cert", strings.Repeat("x", vault.MaxReply+1), vault.NotVault},
	} {
		t.Run(name, func(t *testing.T) {
			v, c, login := world(t)
			v.Raw("pki/x", tt.status, tt.contentType, tt.body)
			reply, err := c.Read(t.Context(), login.Session, spec.Read{Method: http.MethodGet, Path: "pki/x"})
			if tt.want != vault.Unknown {
				if vault.KindOf(err) != tt.want || strings.Contains(err.Error(), "canary") {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || !reply.Raw || string(reply.Body) != tt.body || !reply.LeaseID.IsZero() {
				t.Errorf("got %+v, %v", reply, err)
			}
		})
	}
}

// Vault's JSON is that whatever something on the way calls it.
func TestJSONIsNotRaw(t *testing.T) {
	v, c, login := world(t)
	v.Raw("odd/x", 200, "text/plain", `{"lease_id":"odd/x/1","lease_duration":60,"data":{"k":"v"}}`)
	reply, err := c.Read(t.Context(), login.Session, spec.Read{Method: http.MethodGet, Path: "odd/x"})
	if err != nil || reply.Raw || reply.LeaseID.IsZero() {
		t.Errorf("got %+v, %v", reply, err)
	}
}

func TestRetryAfterIsBounded(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 0, "10": 10 * time.Second, "-1": 0, "soon": 0, "0": 0,
		"301": 5 * time.Minute, "9223372036854775807": 5 * time.Minute, "99999999999999999999999": 5 * time.Minute,
		"Fri, 31 Dec 9999 23:59:59 GMT": 5 * time.Minute, "Thu, 01 Jan 1970 00:00:00 GMT": 0,
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", text)
			w.WriteHeader(http.StatusTooManyRequests)
		}))
		c, err := new(vault.Pool).Client(spec.Server{Address: srv.URL}, "shop")
		if err != nil {
			t.Fatal(err)
		}
		var e *vault.Error
		if err := c.RevokeSelf(t.Context(), vault.Session{Token: secret.New("t")}); !errors.As(err, &e) || e.RetryAfter != want {
			t.Errorf("%q: %v; want %s", text, err, want)
		}
		srv.Close()
	}
}

// A server that drips for ever holds up its own caller until the deadline, and one without end ends at the bound.
func TestTarPits(t *testing.T) {
	drip := func(w http.ResponseWriter, r *http.Request, head, text string) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		for _, err = conn.Write([]byte(head)); err == nil; _, err = conn.Write([]byte(text)) {
			if len(text) > 1 {
				continue
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-t.Context().Done():
				return
			}
		}
	}
	const ok = "HTTP/1.1 200 OK\r\n"
	long := strings.Repeat("x", 4096)
	for name, test := range map[string]struct {
		head, text string
		inTime     bool // the bound ends it, not the deadline
		want       vault.Kind
	}{
		"drips its headers": {ok + "A: ", "x", false, vault.InDoubt},
		"drips its body":    {ok + "Content-Length: 1000000\r\n\r\n", " ", false, vault.InDoubt},
		"endless headers":   {ok, "A: " + long + "\r\n", true, vault.InDoubt},
		"endless body":      {ok + "\r\n", long, true, vault.NotVault},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { drip(w, r, test.head, test.text) }))
			defer srv.Close()
			c, err := new(vault.Pool).Client(spec.Server{Address: srv.URL}, "shop")
			if err != nil {
				t.Fatal(err)
			}
			limit := 3 * time.Second
			if test.inTime {
				limit = time.Minute
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			_, err = c.Read(ctx, vault.Session{Token: secret.New("t")}, creds)
			if vault.KindOf(err) != test.want || errors.Is(err, context.DeadlineExceeded) == test.inTime {
				t.Errorf("%v; want kind %d", err, test.want)
			}
		})
	}
}

func TestATenantOfManyServersLosesItsOwnOldest(t *testing.T) {
	var p vault.Pool
	get := func(tenant, host string) *vault.Client {
		t.Helper()
		c, err := p.Client(spec.Server{Address: "http://" + host}, tenant)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	shared, own := get("shop", "shared"), get("shop", "own")
	greedyShared, oldest := get("greedy", "shared"), get("greedy", "0")
	if greedyShared != shared {
		t.Error("two tenants of one server do not share its client")
	}
	for i := range 100 {
		get("greedy", fmt.Sprint("more-", i))
	}
	if get("greedy", "0") == oldest {
		t.Error("a tenant keeps more clients than it may")
	}
	for i := range 250 { // with these there are too many in all
		get(fmt.Sprint("tenant-", i), fmt.Sprint("theirs-", i))
	}
	if get("shop", "shared") != shared || get("shop", "own") != own {
		t.Error("a tenant of two servers lost one to others")
	}
}
