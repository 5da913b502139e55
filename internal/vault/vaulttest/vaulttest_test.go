//nolint:forbidigo // sleeps inside synctest bubbles only
package vaulttest_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

// truth is what the operator finds: live tokens, leases known to Vault, users in the back end.
func truth(v *vaulttest.Vault) [3]int {
	var n [3]int
	for _, t := range v.Tokens() {
		if !t.Revoked {
			n[0]++
		}
	}
	for _, l := range v.Leases() {
		if !l.Revoked {
			n[1]++
		}
	}
	n[2] = len(v.Users())
	return n
}

func expect(t *testing.T, v *vaulttest.Vault, want [3]int) {
	t.Helper()
	if got := truth(v); got != want {
		t.Errorf("tokens, leases, users: %v, want %v", got, want)
	}
}

// bubble runs a test that has virtual time.
func bubble(t *testing.T, f func(*testing.T, *vaulttest.Vault, *client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		v := newVault(t)
		f(t, v, newClient(t, v))
	})
}

func TestLogin(t *testing.T) {
	valid := vaulttest.Identity{Namespace: "default", ServiceAccount: "app", Pod: "app-0"}
	role := vaulttest.Role{ServiceAccounts: []string{"app"}, Namespaces: []string{"def*"}, Audience: "vault"}
	rows := []struct {
		name   string
		change func(*vaulttest.Identity, *vaulttest.Vault)
		status int
		text   string
	}{
		{"admitted", func(*vaulttest.Identity, *vaulttest.Vault) {}, 200, `"service_account_name":"app"`},
		{"service account", func(i *vaulttest.Identity, _ *vaulttest.Vault) { i.ServiceAccount = "other" }, 403,
			"service account name not authorized"},
		{"namespace", func(i *vaulttest.Identity, _ *vaulttest.Vault) { i.Namespace = "other" }, 403, "namespace not authorized"},
		{"audience", func(i *vaulttest.Identity, _ *vaulttest.Vault) { i.Audience = "api" }, 403,
			"invalid audience (aud) claim: audience claim does not match any expected audience"},
		{"expired", func(i *vaulttest.Identity, _ *vaulttest.Vault) { i.TTL = -time.Minute }, 403,
			"invalid expiration time (exp) claim: token is expired"},
		{"pod gone", func(_ *vaulttest.Identity, v *vaulttest.Vault) { v.PodGone("default", "app-0") }, 403,
			`{"errors":["permission denied"]}`},
		{"no review", func(_ *vaulttest.Identity, v *vaulttest.Vault) { v.ReviewerDown(true) }, 403,
			`{"errors":["permission denied"]}`},
		{"role gone", func(_ *vaulttest.Identity, v *vaulttest.Vault) { v.DeleteRole("my-app-role") }, 403, "permission denied"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			v := vaulttest.New(t)
			v.Role("my-app-role", role)
			who := valid
			row.change(&who, v)
			newClient(t, v).do(`PUT auth/kubernetes/login {"role":"my-app-role","jwt":"`+who.JWT()+`"}`, row.status, row.text)
		})
	}
}

// in runs f and returns a function that waits for it.
func in(f func()) (wait func()) {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	return func() { <-done }
}

func TestReadInFlightLeaksItsLease(t *testing.T) {
	bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
		c.do(login, 200)
		hold := v.Hold(read, vaulttest.BeforeEffect)
		wait := in(func() { _, _, _, _ = c.try("GET", "database/creds/my-app", "") })
		hold.Wait()
		expect(t, v, [3]int{1, 0, 0})
		c.do(revoke, 204)
		hold.Release()
		wait()
		expect(t, v, [3]int{0, 1, 1})
		time.Sleep(time.Hour)
		expect(t, v, [3]int{0, 0, 0})
	})
}

func TestAbortedRequests(t *testing.T) {
	rows := []struct {
		name    string
		request string
		stage   vaulttest.Stage
		want    [3]int
	}{
		{"a login leaves a token", login, vaulttest.BeforeEffect, [3]int{2, 0, 0}},
		{"a read leaves a lease", read, vaulttest.BeforeEffect, [3]int{1, 1, 1}},
		{"a read leaves a user without a lease", read, vaulttest.MidEffect, [3]int{1, 0, 1}},
		{"a read leaves a lease, late", read, vaulttest.AfterEffect, [3]int{1, 1, 1}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
				c.do(login, 200)
				method, rest, _ := strings.Cut(row.request, " ")
				path, body, _ := strings.Cut(rest, " ")
				hold := v.Hold(method+" "+path, row.stage)
				ctx, abort := context.WithCancel(t.Context())
				wait := in(func() {
					r, err := http.NewRequestWithContext(ctx, method, v.URL+"/v1/"+path, strings.NewReader(c.fill(body)))
					if err != nil {
						t.Error(err)
						return
					}
					r.Header.Set("X-Vault-Token", c.token)
					if answer, err := v.RoundTrip(r); !errors.Is(err, context.Canceled) {
						t.Errorf("an aborted request returned %v", err)
						_ = answer.Body.Close()
					}
				})
				hold.Wait()
				abort()
				wait()
				hold.Release()
				synctest.Wait()
				expect(t, v, row.want)
			})
		})
	}
}

func TestFaults(t *testing.T) {
	bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
		c.do(login, 200)
		v.FailNext("database/", 1, vaulttest.Fault{Status: 412})
		c.do(read, 412, "required index state not present")
		v.FailNext("GET ", 1, vaulttest.Fault{Status: 502, Body: "<html>", Header: http.Header{"Retry-After": {"3"}}})
		c.do(read, 502, "<html>")
		v.FailNext("", 1, vaulttest.Fault{})
		if _, _, _, err := c.try("GET", "database/creds/my-app", ""); !errors.Is(err, io.EOF) {
			t.Errorf("a cut connection: %v", err)
		}
		expect(t, v, [3]int{1, 0, 0})
		v.DropReply(read, 1)
		if _, _, _, err := c.try("GET", "database/creds/my-app", ""); !errors.Is(err, io.EOF) {
			t.Errorf("a dropped reply: %v", err)
		}
		expect(t, v, [3]int{1, 1, 1})
		if n := v.Count(read); n != 4 {
			t.Errorf("%d reads arrived, want 4", n)
		}
		c.do(read, 200)
	})
}

func TestRateLimit(t *testing.T) {
	bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
		v.RateLimit(2, 10*time.Second)
		c.do(login, 200)
		c.do(renew, 200)
		status, header, text, err := c.try("PUT", "auth/token/revoke-self", "")
		if err != nil || status != 429 || header.Get("Retry-After") != "10" ||
			!strings.Contains(text, `request path \"auth/token/revoke-self\": rate limit quota exceeded`) {
			t.Errorf("status %d, Retry-After %q, %s, %v", status, header.Get("Retry-After"), text, err)
		}
		c.do("GET sys/health", 200)
		time.Sleep(time.Second)
		c.do(revoke, 204)
	})
}

func TestServerStates(t *testing.T) {
	bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
		c.do(login, 200)
		c.do(read, 200)
		c.do(renew+` {"increment":"10s"}`, 200)

		v.Sealed(true)
		c.do(read, 503, `{"errors":["Vault is sealed"]}`)
		if text := c.do("GET sys/health", 503, `"sealed":true`); strings.Contains(text, "cluster_id") {
			t.Errorf("a sealed server told its cluster: %s", text)
		}
		time.Sleep(14 * time.Second)
		expect(t, v, [3]int{1, 1, 1}) // nobody is there to revoke
		v.Sealed(false)
		expect(t, v, [3]int{0, 0, 0})

		c.do(login, 200)
		v.Standby(true)
		c.do(read, 500, "local node not active but active cluster node not found")
		c.do("GET sys/health", 429, `"standby":true`)
		c.do("GET sys/health?standbyok=true", 200)
		v.Standby(false)

		v.Cluster("another")
		c.do(read, 403, "invalid token")
		c.do("GET sys/health", 200, `"cluster_id":"another"`)
	})
}

func TestRecords(t *testing.T) {
	bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
		c.do(login, 200)
		password := field(c.do(read, 200), "password")
		for _, r := range v.Requests() {
			if r.Header.Get("X-Vault-Token") != "" || r.Header.Get("X-Vault-Request") != "true" {
				t.Errorf("%s %s was recorded with its token, or without its headers", r.Method, r.Path)
			}
		}
		all := strings.Join(v.Secrets(), "\n")
		for _, secret := range []string{c.token, c.lease, password} {
			if !strings.Contains(all, secret) {
				t.Error("a secret is missing in Secrets")
			}
		}
	})
}

func TestDown(t *testing.T) {
	bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
		c.do(login, 200)
		hold := v.Hold(read, vaulttest.BeforeEffect)
		wait := in(func() {
			if _, _, _, err := c.try("GET", "database/creds/my-app", ""); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("in flight as the server stopped: %v", err)
			}
		})
		hold.Wait()
		v.Down(true)
		wait()
		if _, _, _, err := c.try("GET", "sys/health", ""); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("while the server is down: %v", err)
		}
		hold.Release()
		synctest.Wait()
		v.Down(false)
		expect(t, v, [3]int{1, 0, 0})
		c.do(read, 200)
	})
}

func TestDownOnASocket(t *testing.T) {
	v := newVault(t)
	v.Serve(t)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	c := &client{t: t, http: &http.Client{Transport: transport}, url: v.URL}
	c.do(login, 200)
	v.Down(true)
	if _, _, _, err := c.try("PUT", "auth/token/renew-self", ""); err == nil {
		t.Error("a stopped server answered")
	}
	v.Down(false)
	c.do(read, 200)
	v.DropReply(read, 1)
	transport.CloseIdleConnections()
	if _, _, _, err := c.try("GET", "database/creds/my-app", ""); !errors.Is(err, io.EOF) {
		t.Errorf("a dropped reply: %v", err)
	}
	expect(t, v, [3]int{1, 2, 2})
}

func TestRestrictedTokens(t *testing.T) {
	t.Run("uses", func(t *testing.T) {
		bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
			v.Role("my-app-role", vaulttest.Role{Uses: 3})
			c.do(login, 200, `"num_uses":3`)
			c.do(read, 200)
			c.do("GET auth/token/lookup-self", 200, `"num_uses":1`)
			hold := v.Hold(read, vaulttest.BeforeEffect)
			wait := in(func() {
				const want = "Secret cannot be returned; token had one use left, so leased credentials were immediately revoked."
				status, _, text, err := c.try("GET", "database/creds/my-app", "")
				if status != 400 || !strings.Contains(text, want) {
					t.Errorf("the last use: status %d: %s: %v", status, text, err)
				}
			})
			hold.Wait()
			other := *c
			other.do(renew, 403, "invalid token")
			hold.Release()
			wait()
			c.do(read, 403, "invalid token")
			expect(t, v, [3]int{0, 0, 0})
		})
	})
	t.Run("batch", func(t *testing.T) {
		bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
			v.Role("my-app-role", vaulttest.Role{TTL: 10 * time.Minute, Batch: true})
			c.do(login, 200, `"token_type":"batch"`, `"accessor":""`, `"renewable":false`)
			c.do(renew, 400, "batch tokens cannot be renewed")
			c.do(revoke, 400, "batch tokens cannot be revoked")
			time.Sleep(time.Second)
			c.do(read, 200, `"lease_duration":599`, `"renewable":true`)
			time.Sleep(time.Minute)
			c.do(`PUT sys/leases/renew {"lease_id":"$lease"}`, 200, `"lease_duration":539`)
		})
	})
	t.Run("no default policy", func(t *testing.T) {
		bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
			v.Role("my-app-role", vaulttest.Role{NoDefaultPolicy: true, Paths: []string{"database"}})
			c.do(login, 200)
			c.do(revoke, 403, `1 error occurred:\n\t* permission denied\n\n`)
			c.do("GET secret/data/x", 403, `1 error occurred:\n\t* permission denied\n\n`)
			c.do(read, 200)
		})
	})
	t.Run("role gone", func(t *testing.T) {
		bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
			c.do(login, 200)
			v.DeleteRole("my-app-role")
			c.do(renew, 500, "failed to renew entry: role my-app-role does not exist during renewal")
		})
	})
	t.Run("not replicated yet", func(t *testing.T) {
		bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
			v.ReplicationLag(time.Second)
			c.do(login, 200)
			c.do(read, 403, "invalid token")
			time.Sleep(time.Second)
			c.do(read, 200)
		})
	})
}

func TestSecrets(t *testing.T) {
	bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
		v.KV1("kv1/x", map[string]any{"a": "1"})
		v.KV1("kv1/hinted", map[string]any{"ttl": "30m"})
		v.KV2("secret/data/x", map[string]any{"a": "2"})
		v.PKI("pki/issue/x", true)
		v.Static("database/static-creds/x", time.Minute)
		v.Raw("secret/odd", 204, "", "")
		v.Auth("secret/token", vaulttest.Role{TTL: time.Minute})
		c.do(login, 200)
		c.do("GET kv1/x", 200, `"data":{"a":"1"}`, `"lease_id":""`, `"lease_duration":2764800`)
		c.do("GET kv1/hinted", 200, `"lease_duration":1800`)
		c.do("GET secret/data/x", 200, `"data":{"a":"2"}`, `"version":2`, `"lease_duration":0`)
		c.do("GET secret/data/x?version=1", 200, `"data":{"a":"1"}`, `"version":1`)
		c.do("GET secret/data/x?version=3", 404, `{"errors":[]}`)
		v.DeleteKV2("secret/data/x")
		c.do("GET secret/data/x", 404, `"data":null`, `"deletion_time":"2`)
		c.do("GET secret/odd", 204)

		c.do(`PUT pki/issue/x {"common_name":"app.local","ttl":"5m"}`, 200, "BEGIN CERTIFICATE", `"lease_duration":300`, `"renewable":false`)
		c.do(`PUT sys/leases/renew {"lease_id":"$lease"}`, 400, "lease is not renewable")

		first := field(c.do("GET database/static-creds/x", 200, `"ttl":60`, `"lease_id":""`), "password")
		time.Sleep(59 * time.Second)
		c.do("GET database/static-creds/x", 200, `"ttl":1`, first)
		time.Sleep(time.Second)
		if second := c.do("GET database/static-creds/x", 200, `"ttl":60`); strings.Contains(second, first) {
			t.Error("the password did not change")
		}

		c.do(read, 200)
		v.Remove("database/creds/my-app")
		c.do(`PUT sys/leases/renew {"lease_id":"$lease"}`, 400, `could not find role with name \"my-app\"`)
		parent := c.token
		c.do("GET secret/token", 200, `"orphan":false`)
		c.token = parent
		expect(t, v, [3]int{2, 2, 1})
		c.do(revoke, 204)
		expect(t, v, [3]int{0, 0, 0}) // the child went with its parent
	})
}

// TestConcurrentUse is for the race detector, over a socket.
func TestConcurrentUse(t *testing.T) {
	v := newVault(t)
	v.Serve(t)
	var waits []func()
	for range 8 {
		waits = append(waits, in(func() {
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			c := &client{t: t, http: &http.Client{Transport: transport}, url: v.URL}
			for range 20 {
				for _, request := range []string{login, read, renew, `PUT sys/leases/renew {"lease_id":"$lease"}`, revoke} {
					method, rest, _ := strings.Cut(request, " ")
					path, body, _ := strings.Cut(rest, " ")
					status, _, text, err := c.try(method, path, c.fill(body))
					if err != nil || status >= 300 {
						t.Errorf("%s: status %d: %v", path, status, err)
						return
					}
					if s := field(text, "client_token"); s != "" {
						c.token = s
					}
					if s := field(text, "lease_id"); s != "" {
						c.lease = s
					}
				}
			}
		}))
	}
	for _, wait := range waits {
		wait()
	}
	expect(t, v, [3]int{0, 0, 0})
	if n := len(v.Leases()); n != 160 {
		t.Errorf("%d leases were issued, want 160", n)
	}
}
