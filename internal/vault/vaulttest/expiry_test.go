//nolint:forbidigo // sleeps inside synctest bubbles only
package vaulttest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

// TestRenewal walks through what renew-self answered on Vault 1.21.2 for each kind of role and increment.
func TestRenewal(t *testing.T) {
	hour, day := time.Hour, 24*time.Hour
	rows := []struct {
		name       string
		role       vaulttest.Role
		increments []string
		want       []string
		warned     []bool
	}{
		{"ttl and max", vaulttest.Role{TTL: hour, MaxTTL: day}, []string{`"5s"`, "300", "0", "7200", "10000000"},
			[]string{"5", "300", "3600", "7200", "86400"}, []bool{false, false, false, false, true}},
		{"period", vaulttest.Role{Period: 10 * time.Minute}, []string{`"5s"`, "300", "0", "7200", "10000000"},
			[]string{"600", "600", "600", "600", "600"}, make([]bool, 5)},
		{"explicit max", vaulttest.Role{TTL: hour, ExplicitMax: 20 * time.Minute}, []string{`"5s"`, "300", "0", "7200", "10000000"},
			[]string{"5", "300", "1200", "1200", "1200"}, []bool{false, false, true, true, true}},
		{"period and explicit max", vaulttest.Role{Period: 10 * time.Minute, ExplicitMax: 30 * time.Minute},
			[]string{`"5s"`, "0", "10000000"}, []string{"600", "600", "600"}, make([]bool, 3)},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
				v.Role("my-app-role", row.role)
				c.do(login, 200)
				for i, increment := range row.increments {
					text := c.do(renew+` {"increment":`+increment+`}`, 200, `"lease_duration":`+row.want[i]+",")
					if warned := !strings.Contains(text, `"warnings":null`); warned != row.warned[i] {
						t.Errorf("increment %s: warned is %v: %s", increment, warned, text)
					}
				}
			})
		})
	}
}

func TestTokenReachesItsMaximum(t *testing.T) {
	bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
		v.Role("my-app-role", vaulttest.Role{TTL: 30 * time.Second, MaxTTL: 90 * time.Second})
		c.do(login, 200)
		for _, want := range []string{"30", "30", "30", "30", "30", "18", "6"} {
			time.Sleep(12 * time.Second)
			c.do(renew, 200, `"lease_duration":`+want+",")
		}
		time.Sleep(12 * time.Second)
		c.do(renew, 403, "invalid token")
	})
}

func TestPeriodicTokenReachesItsExplicitMaximum(t *testing.T) {
	bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
		v.Role("my-app-role", vaulttest.Role{Period: 10 * time.Minute, ExplicitMax: 30 * time.Minute})
		c.do(login, 200)
		for _, want := range []string{"600", "600", "600", "360"} {
			time.Sleep(6 * time.Minute)
			c.do(renew, 200, `"lease_duration":`+want+",")
		}
		time.Sleep(6 * time.Minute)
		expect(t, v, [3]int{0, 0, 0})
	})
}

func TestMaximumCountsWholeSeconds(t *testing.T) {
	bubble(t, func(_ *testing.T, v *vaulttest.Vault, c *client) {
		v.Role("my-app-role", vaulttest.Role{MaxTTL: 90 * time.Second})
		time.Sleep(500 * time.Millisecond)
		c.do(login, 200)
		time.Sleep(2100 * time.Millisecond)
		c.do(renew, 200, `"lease_duration":88,`)
	})
}

func TestLeaseReachesItsMaximum(t *testing.T) {
	bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
		v.Dynamic("database/creds/my-app", vaulttest.Dynamic{TTL: 20 * time.Second, MaxTTL: time.Minute})
		c.do(login, 200)
		c.do(read, 200)
		for _, want := range []string{"20", "20", "20", "12"} {
			time.Sleep(12 * time.Second)
			c.do(`PUT sys/leases/renew {"lease_id":"$lease"}`, 200, `"lease_duration":`+want+",")
		}
		time.Sleep(12 * time.Second)
		c.do(`PUT sys/leases/renew {"lease_id":"$lease"}`, 400, "lease not found")
		expect(t, v, [3]int{1, 0, 0})
	})
}

func TestTokenTakesItsLeasesAlong(t *testing.T) {
	bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
		c.do(login, 200)
		c.do(read, 200)
		c.do(read, 200)
		c.do(renew+` {"increment":"5s"}`, 200)
		if l := v.Leases()[0]; l.TTL != time.Hour || l.Accessor != v.Tokens()[0].Accessor {
			t.Errorf("a lease was bound to its token's TTL, or is not the token's: %v", l.TTL)
		}
		time.Sleep(5*time.Second - time.Nanosecond)
		expect(t, v, [3]int{1, 2, 2})
		time.Sleep(time.Nanosecond)
		expect(t, v, [3]int{0, 0, 0})
	})
}

func TestRevocationIsQueued(t *testing.T) {
	bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
		v.RevocationDelay(4 * time.Second)
		c.do(login, 200)
		c.do(read, 200)
		lease := c.lease
		c.do(revoke, 204)
		expect(t, v, [3]int{0, 1, 1})
		c.do(login, 200)
		c.do(`PUT sys/leases/renew {"lease_id":"`+lease+`"}`, 400, "lease expired")
		time.Sleep(4 * time.Second)
		c.do(`PUT sys/leases/renew {"lease_id":"`+lease+`"}`, 400, "lease not found")
		expect(t, v, [3]int{1, 0, 0})
	})
}

func TestBackendDown(t *testing.T) {
	bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
		c.do(login, 200)
		c.do(read, 200)
		v.BackendDown(true)
		c.do(read, 500, "unable to create new user: ", "unable to start transaction: failed to connect")
		c.do(`PUT sys/leases/renew {"lease_id":"$lease"}`, 400, `{"errors":["failed to renew entry: `)
		c.do(renew, 200)
		c.do(revoke, 204)
		expect(t, v, [3]int{0, 1, 1})
		v.BackendDown(false)
		expect(t, v, [3]int{0, 1, 1}) // Vault comes back to it on its own schedule
		time.Sleep(20 * time.Second)
		expect(t, v, [3]int{0, 0, 0})
	})
}

func TestVaultGivesUp(t *testing.T) {
	bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
		c.do(login, 200)
		c.do(read, 200)
		v.BackendDown(true)
		c.do(revoke, 204)
		time.Sleep(620*time.Second - time.Nanosecond)
		if v.Leases()[0].Irrevocable {
			t.Error("irrevocable before the sixth attempt")
		}
		time.Sleep(time.Nanosecond)
		v.BackendDown(false)
		time.Sleep(24 * time.Hour)
		if !v.Leases()[0].Irrevocable {
			t.Error("not irrevocable after six attempts")
		}
		expect(t, v, [3]int{0, 1, 1})
		c.do(login, 200)
		c.do(`PUT sys/leases/renew {"lease_id":"`+v.Leases()[0].ID+`"}`, 400, "has failed previous revocation attempts")
	})
}

func TestUnsealingWithTheBackendDown(t *testing.T) {
	bubble(t, func(t *testing.T, v *vaulttest.Vault, c *client) {
		c.do(login, 200)
		c.do(read, 200)
		c.do(renew+` {"increment":"10s"}`, 200)
		v.BackendDown(true)
		v.Sealed(true)
		time.Sleep(14 * time.Second)
		v.Sealed(false) // the first attempt is made now, not when it fell due
		c.do("GET sys/health", 200)
		v.BackendDown(false)
		time.Sleep(20*time.Second - time.Nanosecond)
		expect(t, v, [3]int{0, 1, 1})
		time.Sleep(time.Nanosecond)
		expect(t, v, [3]int{0, 0, 0})
	})
}
