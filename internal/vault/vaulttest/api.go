package vaulttest

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// arrive logs a request and decides, before anything happens, whether it is refused (a reply) or done (a step).
func (v *Vault) arrive(c *call) (reply, step) {
	now := v.enter()
	defer v.mu.Unlock()
	r := Request{At: now, Method: c.method, Path: c.path, Query: c.query.Encode(), Header: c.header.Clone()}
	r.Header.Del("X-Vault-Token")
	v.log = append(v.log, r)
	if v.down {
		return reply{}, nil
	}
	if f := take(v.faults, c); f != nil {
		return f.reply(), nil
	}
	if c.path == "sys/health" {
		return reply{}, v.health(c)
	}
	switch {
	case v.quota.exceeded(now):
		return v.quota.reply(c.path), nil
	case v.sealed:
		return failure(http.StatusServiceUnavailable, "Vault is sealed"), nil
	case v.standby:
		return failure(http.StatusInternalServerError, "local node not active but active cluster node not found"), nil
	}
	return v.routeLocked(c, now)
}

func (v *Vault) routeLocked(c *call, now time.Time) (reply, step) {
	if mount, ok := strings.CutPrefix(strings.TrimSuffix(c.path, "/login"), "auth/"); ok &&
		strings.HasSuffix(c.path, "/login") && c.writes() {
		if !v.authMountLocked(mount) {
			return failure(http.StatusForbidden, "permission denied"), nil
		}
		return reply{}, v.login(c, mount)
	}
	if c.path == "sys/wrapping/unwrap" && c.writes() {
		return reply{}, func(time.Time) (reply, step) { return v.unwrapLocked(c.header.Get("X-Vault-Token")), nil }
	}
	t, refusal := v.admitLocked(c, now)
	if t == nil {
		return refusal, nil
	}
	next := v.operation(c, t)
	if t.spent {
		next = v.lastUse(t, next)
	}
	return reply{}, next
}

func (v *Vault) authMountLocked(mount string) bool {
	for name := range v.roles {
		if strings.HasPrefix(name, mount+"/") {
			return true
		}
	}
	return false
}

// admitLocked checks the token and what it may do, and counts the use. A nil token means the refusal.
func (v *Vault) admitLocked(c *call, now time.Time) (*token, reply) {
	id := c.header.Get("X-Vault-Token")
	if id == "" {
		return nil, failure(http.StatusForbidden, "permission denied")
	}
	t := v.byID[id]
	if t != nil && t.known.After(now) && c.header.Get("X-Vault-Index") != "" {
		return nil, failure(http.StatusPreconditionFailed, "required index state not present")
	}
	if t == nil || t.revoked || t.spent || t.known.After(now) {
		return nil, wrapped(http.StatusForbidden, "permission denied", "invalid token")
	}
	if t.uses > 0 {
		t.uses--
		t.spent = t.uses == 0
	}
	if t.may(c) {
		return t, reply{}
	}
	if t.spent {
		v.revokeTokenLocked(t, now)
	}
	return nil, wrapped(http.StatusForbidden, "permission denied")
}

// defaultPolicy is what Vault's policy of that name allows of the paths served here. sys/leases/revoke is not in it.
var defaultPolicy = map[string]string{
	"auth/token/lookup-self": http.MethodGet,
	"auth/token/renew-self":  http.MethodPut,
	"auth/token/revoke-self": http.MethodPut,
	"sys/leases/lookup":      http.MethodPut,
	"sys/leases/renew":       http.MethodPut,
}

func (t *token) may(c *call) bool {
	if method, ok := defaultPolicy[c.path]; ok {
		return method == c.method && !t.grant.NoDefaultPolicy
	}
	if strings.HasPrefix(c.path, "sys/") || strings.HasPrefix(c.path, "auth/") {
		return false
	}
	for _, p := range t.grant.Paths {
		if c.path == p || strings.HasPrefix(c.path, strings.TrimSuffix(p, "/")+"/") {
			return true
		}
	}
	return t.grant.Paths == nil
}

// operation is what an admitted request does.
func (v *Vault) operation(c *call, t *token) step {
	return func(now time.Time) (reply, step) {
		f, bad := c.fields()
		if bad != nil {
			return *bad, nil
		}
		switch c.path {
		case "auth/token/lookup-self":
			return t.lookup(now), nil
		case "auth/token/renew-self":
			return v.renewTokenLocked(t, now, time.Duration(f.Increment)), nil
		case "auth/token/revoke-self":
			if t.batch {
				return failure(http.StatusBadRequest, "batch tokens cannot be revoked"), nil
			}
			v.revokeTokenLocked(t, now)
			return reply{status: http.StatusNoContent}, nil
		case "sys/leases/lookup":
			return v.lookupLeaseLocked(f.LeaseID, now), nil
		case "sys/leases/renew":
			return v.renewLeaseLocked(f.LeaseID, now, time.Duration(f.Increment)), nil
		}
		if answer, ok := v.secrets[c.path]; ok {
			return answer(c, t, now)
		}
		mount, _, _ := strings.Cut(c.path, "/")
		if answer, ok := v.mounts[mount]; ok {
			return answer(c.path), nil
		}
		return wrapped(http.StatusForbidden, "permission denied"), nil
	}
}

// lastUse ends a token of limited use after its last operation. A lease made by that one goes with it.
func (v *Vault) lastUse(t *token, s step) step {
	return func(now time.Time) (reply, step) {
		out, next := s(now)
		if next != nil {
			return out, v.lastUse(t, next)
		}
		v.revokeTokenLocked(t, now)
		if out.leased {
			out = failure(http.StatusBadRequest, "Secret cannot be returned; token had one use left, "+
				"so leased credentials were immediately revoked.")
		}
		return out, nil
	}
}

// fields are the parameters of all writes served here.
type fields struct {
	Role       string
	JWT        string
	RoleID     string `json:"role_id"`
	SecretID   string `json:"secret_id"`
	LeaseID    string `json:"lease_id"`
	Increment  wireDuration
	CommonName string `json:"common_name"`
	TTL        wireDuration

	SerialNumber string `json:"serial_number"`
}

// wireDuration is a number of seconds or a text such as "5s".
type wireDuration time.Duration

func (d *wireDuration) UnmarshalJSON(b []byte) error {
	text := strings.Trim(string(b), `"`)
	unit := ""
	if _, err := strconv.Atoi(text); err == nil {
		unit = "s"
	}
	parsed, err := time.ParseDuration(text + unit)
	if err != nil {
		return err
	}
	if parsed < 0 {
		return fmt.Errorf("cannot provide negative value '%s'", text)
	}
	*d = wireDuration(parsed)
	return nil
}

func (c *call) fields() (f fields, bad *reply) {
	if len(c.body) == 0 {
		return f, nil
	}
	err := json.Unmarshal(c.body, &f)
	if err == nil {
		return f, nil
	}
	out := failure(http.StatusBadRequest, `Field validation failed: error converting input for field "increment": `+err.Error())
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
		out = failure(http.StatusInternalServerError, err.Error())
	}
	return f, &out
}

func (t *token) lookup(now time.Time) reply {
	data := map[string]any{
		"id":               t.id,
		"accessor":         t.accessor,
		"policies":         t.grant.policies(),
		"path":             t.path,
		"meta":             t.metadata(),
		"display_name":     "kubernetes-" + t.identity.Namespace + "-" + t.identity.ServiceAccount,
		"num_uses":         t.uses,
		"orphan":           t.orphan,
		"creation_time":    t.issued.Unix(),
		"creation_ttl":     seconds(t.creationTTL),
		"issue_time":       t.issued,
		"expire_time":      t.expires,
		"ttl":              seconds(t.expires.Sub(now)),
		"explicit_max_ttl": seconds(t.grant.ExplicitMax),
		"entity_id":        t.identity.uid(),
		"renewable":        !t.batch,
		"type":             t.kind(),
	}
	if t.grant.Period > 0 {
		data["period"] = seconds(t.grant.Period)
	}
	return envelope{Data: data}.reply(http.StatusOK)
}

// renewTokenLocked follows the role as it is now, and asks nobody whether the pod still exists.
func (v *Vault) renewTokenLocked(t *token, now time.Time, increment time.Duration) reply {
	if t.batch {
		return failure(http.StatusBadRequest, "batch tokens cannot be renewed")
	}
	role, ok := v.roles[t.grant.Mount+"/"+t.role]
	if !ok && t.orphan {
		return wrapped(http.StatusInternalServerError,
			"failed to renew entry: role "+t.role+" does not exist during renewal")
	}
	if !ok {
		role = t.grant
	}
	ttl, warnings, err := role.limits().extend(t.issued, now, increment)
	if err != nil {
		return wrapped(http.StatusInternalServerError, err.Error())
	}
	t.expires = now.Add(ttl)
	v.planLocked(t)
	auth := t.auth(ttl)
	auth["orphan"] = false // a renewal says so of every token
	return envelope{Auth: auth, Warnings: warnings}.reply(http.StatusOK)
}

func (v *Vault) lookupLeaseLocked(id string, now time.Time) reply {
	l, ok := v.byLease[id]
	switch {
	case id == "":
		return failure(http.StatusBadRequest, "lease_id must be specified")
	case !ok || l.revoked:
		return failure(http.StatusBadRequest, "invalid lease")
	}
	data := map[string]any{
		"id":           l.id,
		"issue_time":   l.issued,
		"expire_time":  l.expires,
		"last_renewal": nil,
		"renewable":    l.refusal(now) == "",
		"ttl":          seconds(l.expires.Sub(now)),
	}
	if !l.renewed.IsZero() {
		data["last_renewal"] = l.renewed
	}
	return envelope{Data: data}.reply(http.StatusOK)
}

// refusal says why a lease cannot be renewed; empty if it can.
func (l *lease) refusal(now time.Time) string {
	switch {
	case l.irrevocable:
		return "lease is expired and has failed previous revocation attempts"
	case !l.expires.After(now):
		return "lease expired"
	case !l.renewable:
		return "lease is not renewable"
	}
	return ""
}

// renewFailed begins every error of a lease's back end.
const renewFailed = "failed to renew entry: resp: (*logical.Response)(nil) err: "

// renewLeaseLocked renews for anybody who knows the id: whose token issued the lease does not matter.
func (v *Vault) renewLeaseLocked(id string, now time.Time, increment time.Duration) reply {
	l, ok := v.byLease[id]
	role, configured := Dynamic{}, false
	refusal := "lease not found"
	if ok && !l.revoked {
		refusal = l.refusal(now)
		role, configured = v.dynamics[l.path]
	}
	switch {
	case id == "":
		refusal = "lease_id must be specified"
	case refusal != "":
	case !configured:
		refusal = fmt.Sprintf(renewFailed+"error during renew: could not find role with name %q", base(l.path))
	case v.backendDown:
		refusal = renewFailed + "unable to update user: rpc error: code = Internal desc = unable to update user: " +
			"1 error occurred:\n\t* " + dialError + "\n\n"
	}
	if refusal != "" {
		return failure(http.StatusBadRequest, refusal)
	}
	ttl, warnings, err := role.limits().extend(l.issued, now, increment)
	if err != nil {
		return failure(http.StatusBadRequest, err.Error())
	}
	ttl = l.within(now, ttl)
	l.expires, l.renewed = now.Add(ttl), now
	l.due = l.expires
	v.planLocked(l)
	return envelope{
		LeaseID: l.id, Renewable: true, LeaseDuration: seconds(ttl), Warnings: warnings,
	}.reply(http.StatusOK)
}

// within cuts a TTL at the end of the batch token that the lease belongs to. Service tokens do not bound their leases.
func (l *lease) within(now time.Time, ttl time.Duration) time.Duration {
	if l.bound.IsZero() {
		return ttl
	}
	return min(ttl, l.bound.Sub(now))
}

// health is sys/health: no token, no quota.
func (v *Vault) health(c *call) step {
	return func(now time.Time) (reply, step) {
		status := http.StatusOK
		switch {
		case v.sealed:
			status = http.StatusServiceUnavailable
		case v.standby && c.query.Get("standbyok") != "true":
			status = http.StatusTooManyRequests
		}
		body := map[string]any{
			"initialized":                  true,
			"sealed":                       v.sealed,
			"standby":                      v.standby || v.sealed,
			"performance_standby":          false,
			"replication_performance_mode": "disabled",
			"replication_dr_mode":          "disabled",
			"server_time_utc":              now.Unix(),
			"version":                      "1.21.2",
			"enterprise":                   false,
		}
		if !v.sealed { // a sealed server cannot read its own name
			body["cluster_name"] = "vault-" + v.cluster
			body["cluster_id"] = v.cluster
		}
		return jsonReply(status, body), nil
	}
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

// newID is an id that is not a secret, in the form of a UUID.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
