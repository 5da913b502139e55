package admin_test

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

const credsPath = "database/creds/app"

// night is a history of the pod shop/app, told second by second.
type night struct {
	history *admin.History
	grants  []grant.Grant
}

// newNight is the history of a provider that starts, and follows another that was killed, at the beginning of the epoch of synctest.
func newNight(t *testing.T) *night {
	n := &night{}
	synctest.Test(t, func(*testing.T) { n.history = admin.NewHistory(true) })
	return n
}

// tell adds a change at so many seconds after the provider's start.
func (n *night) tell(second int64, kind keeper.Kind, with func(*keeper.Change)) {
	c := change(0, "app", kind)
	c.At = time.Date(2000, 1, 1, 0, 0, int(second), 0, time.UTC)
	if with != nil {
		with(&c)
	}
	n.history.Add(c)
}

func failing(trouble vault.Trouble, path, why string) func(*keeper.Change) {
	return func(c *keeper.Change) { c.Trouble, c.Path, c.Why = trouble, path, why }
}

func lasting(path string, ttl time.Duration) func(*keeper.Change) {
	return func(c *keeper.Change) { c.Path, c.TTL = path, ttl }
}

// explain asks as the command does.
func (n *night) explain(t *testing.T, pod string, second int) admin.Explanation {
	t.Helper()
	dir := folder(t)
	p := provider(func() ([]grant.Grant, error) { return n.grants, nil })
	p.History = n.history
	serve(t, dir, p)
	report, err := admin.Fetch(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	timeline, err := admin.FetchEvents(t.Context(), dir, "shop", pod)
	if err != nil {
		t.Fatal(err)
	}
	return admin.Explain(report, timeline, "shop", pod, time.Date(2000, 1, 1, 0, 0, second, 0, time.UTC))
}

// active is the grant that the changes are of.
func active() grant.Grant {
	return grant.Grant{
		ID: "grant-app", State: grant.Active, Volume: spec.VolumeKey{PodUID: "uid-app", Volume: "creds"}, Class: "db",
		Pod:    spec.Pod{Namespace: "shop", Name: "app", UID: "uid-app", ServiceAccount: "app-sa"},
		Server: spec.Server{Address: "https://vault:8200"}, Auth: spec.Auth{Mount: "kubernetes", Role: "web"},
		Token:  secret.New("canary-token"),
		Login:  grant.NewTerm(now.Add(-5*time.Minute), time.Hour, true),
		Leases: []grant.Lease{{Read: spec.Read{Path: credsPath}, Term: grant.NewTerm(now.Add(-5*time.Minute), 20*time.Minute, true)}},
	}
}

// A bad night: Vault is sealed and unsealed, the database goes and comes back, a role goes.
func TestExplainsABadNight(t *testing.T) {
	n := newNight(t)
	n.tell(1, keeper.LoggedIn, lasting("", time.Hour))
	n.tell(1, keeper.Issued, lasting(credsPath, 20*time.Minute))
	n.tell(2, keeper.Mounted, nil)
	for second := int64(400); second < 1000; second += 30 {
		n.tell(second, keeper.RenewalFailed, failing(vault.Sealed, "", "Vault is sealed"))
	}
	n.tell(1000, keeper.Renewed, lasting("", time.Hour))
	n.tell(1000, keeper.Renewed, lasting(credsPath, 20*time.Minute))
	n.tell(1400, keeper.RenewalFailed, failing(vault.BackEnd, credsPath, "failed to renew entry"))
	n.tell(1500, keeper.Renewed, lasting(credsPath, 20*time.Minute))
	n.tell(1900, keeper.RenewalOver, failing(vault.RoleGone, credsPath, "could not find role"))
	g := active()
	g.Leases[0].Term.Final = true
	n.grants = []grant.Grant{g}
	e := n.explain(t, "app", 2000)
	var text strings.Builder
	if err := e.Write(&text, time.Date(2000, 1, 1, 0, 0, 2000, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	golden(t, "explain.txt", text.String())
	encoded, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "explain.json", string(encoded)+"\n")
}

// Every trouble has a cause in words and something to check that names what it is about.
func TestExplainsEachTrouble(t *testing.T) {
	for trouble, want := range map[vault.Trouble]string{
		vault.Sealed:           "vault operator unseal -address=https://vault:8200",
		vault.Away:             "curl https://vault:8200/v1/sys/health",
		vault.Busy:             "raft list-peers",
		vault.Broken:           "Vault's own log",
		vault.Strange:          "vaultCACertPath",
		vault.BackEnd:          `the engine "database" works with`,
		vault.LoginRefused:     "vault read auth/kubernetes/role/web with service account shop/app-sa",
		vault.RoleGone:         "vault list database/roles",
		vault.PolicyDenied:     `must allow "database/creds/app"`,
		vault.NothingThere:     "vault read database/creds/app",
		vault.WrongRequest:     `SecretProviderClass "db"`,
		vault.RevokedElsewhere: "Vault's audit log",
		keeper.NoCredentials:   "tokenRequests",
		keeper.WrongClass:      "leasehold validate",
		keeper.ClassUnread:     "rights are missing",
		keeper.StoreFull:       "--state-max",
		keeper.Crowded:         "leasehold leases -n shop",
		keeper.BreakerOpen:     "is the API server the right one",
		keeper.UnclearEnd:      "/var/lib/kubelet/pods/uid-app",
	} {
		n := newNight(t)
		n.tell(1, keeper.ReadFailed, func(c *keeper.Change) { failing(trouble, credsPath, "it failed")(c); c.Grant = "" })
		checks := n.explain(t, "app", 2).Checks
		if len(checks) != 1 || checks[0].Over || checks[0].Trouble != string(trouble) || checks[0].What == "" || !strings.Contains(checks[0].Next, want) {
			t.Errorf("%s: %+v, want %q", trouble, checks, want)
		}
	}
}

func TestExplainsTheRoleOfALogin(t *testing.T) {
	n := newNight(t)
	n.tell(1, keeper.LoginFailed, func(c *keeper.Change) { failing(vault.RoleGone, "", "invalid role name")(c); c.Grant = "" })
	if checks := n.explain(t, "app", 2).Checks; len(checks) != 1 || !strings.Contains(checks[0].Next, "vault read auth/kubernetes/role/web") {
		t.Errorf("%+v", checks)
	}
}

// What failed is over when something shows that it works, and not before.
func TestKnowsWhatIsOver(t *testing.T) {
	for name, c := range map[string]struct {
		failed, later keeper.Kind
		grants        []grant.Grant
		seconds       int // after the failure
		over          bool
	}{
		"a renewal, at once":                 {failed: keeper.RenewalFailed, grants: []grant.Grant{active()}},
		"a renewal, and none since":          {failed: keeper.RenewalFailed, grants: []grant.Grant{active()}, seconds: 3600},
		"a renewal, renewed":                 {failed: keeper.RenewalFailed, later: keeper.Renewed, grants: []grant.Grant{active()}, over: true},
		"a renewal, its grant gone":          {failed: keeper.RenewalFailed, over: true},
		"no further renewal, renewed":        {failed: keeper.RenewalOver, later: keeper.Renewed, grants: []grant.Grant{active()}},
		"no further renewal, rotated":        {failed: keeper.RenewalOver, later: keeper.Rotated, grants: []grant.Grant{active()}, over: true},
		"a mount, tried again":               {failed: keeper.LoginFailed, seconds: 3600},
		"a mount, mounted":                   {failed: keeper.LoginFailed, later: keeper.Mounted, over: true},
		"a republish, minutes ago":           {failed: keeper.ReadFailed, grants: []grant.Grant{active()}, seconds: 300},
		"a republish, not heard of for long": {failed: keeper.ReadFailed, grants: []grant.Grant{active()}, seconds: 700, over: true},
		"a revocation, another login":        {failed: keeper.RevocationFailed, later: keeper.LoggedIn, grants: []grant.Grant{active()}},
		"a revocation, revoked":              {failed: keeper.RevocationFailed, later: keeper.Revoked, over: true},
		"an unclear end, ended":              {failed: keeper.EndUnclear, later: keeper.PodEnded, grants: []grant.Grant{active()}, over: true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNight(t)
			n.grants = c.grants
			n.tell(10, c.failed, func(change *keeper.Change) {
				failing(vault.Sealed, "", "it failed")(change)
				if c.failed == keeper.LoginFailed || c.failed == keeper.ReadFailed {
					change.Grant = ""
				}
			})
			if c.later != "" {
				n.tell(20, c.later, nil)
			}
			if checks := n.explain(t, "app", 10+c.seconds).Checks; len(checks) != 1 || checks[0].Over != c.over {
				t.Errorf("%+v, want over: %t", checks, c.over)
			}
		})
	}
}

// Of a failure from before the provider's start there is only what the store knows.
func TestExplainsFromTheStore(t *testing.T) {
	n := newNight(t)
	g := active()
	g.Problem = "renewing a lease: Vault is sealed"
	n.grants = []grant.Grant{g}
	if checks := n.explain(t, "app", 2).Checks; len(checks) != 1 || checks[0].Next != g.Problem {
		t.Errorf("%+v", checks)
	}
}

func TestExplainsAnUnknownPod(t *testing.T) {
	n := newNight(t)
	n.tell(1, keeper.LoggedIn, nil)
	e := n.explain(t, "other", 2)
	var text strings.Builder
	if err := e.Write(&text, time.Date(2000, 1, 1, 0, 0, 2, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"kubectl -n shop get pod other -o wide, against the node node-1", "describe pod other", "provider: vault"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%s\nwant %s", &text, want)
		}
	}
	if strings.Contains(text.String(), "logged in") {
		t.Errorf("it tells of another pod:\n%s", &text)
	}
}
