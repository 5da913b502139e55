package vaulttest

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
)

// engine answers at one path.
type engine func(c *call, t *token, now time.Time) (reply, step)

// missing answers below a mount where no engine is.
type missing func(path string) reply

func notFound(string) reply { return failure(http.StatusNotFound) }

func unknownRole(p string) reply { return failure(http.StatusBadRequest, "unknown role: "+base(p)) }

func base(p string) string { return path.Base(p) }

// dialError is how the database engine reports a back end that refuses connections.
const dialError = "failed to connect to `host=127.0.0.1 user=vault database=app`: " +
	"dial error (dial tcp 127.0.0.1:5432: connect: connection refused)"

var unsupported = wrapped(http.StatusMethodNotAllowed, "unsupported operation")

// mountLocked puts an engine at a path; absent answers the rest of the mount, which is the path's first segment.
func (v *Vault) mountLocked(at string, e engine, absent missing) {
	mount, _, _ := strings.Cut(at, "/")
	v.secrets[at] = e
	v.mounts[mount] = absent
}

// Remove takes away what answers at a path, as an operator would; its mount stays. Leases issued there can still be
// revoked, but not renewed: 400 "could not find role with name".
func (v *Vault) Remove(path string) {
	v.enter()
	defer v.mu.Unlock()
	delete(v.secrets, path)
	delete(v.dynamics, path)
	delete(v.versions, path)
}

// Raw answers at a path whatever Vault, or something between it and the client, might. An empty contentType sends none.
func (v *Vault) Raw(path string, status int, contentType, body string) {
	v.enter()
	defer v.mu.Unlock()
	v.mountLocked(path, func(*call, *token, time.Time) (reply, step) {
		out := reply{status: status, header: http.Header{}, body: []byte(body)}
		if contentType != "" {
			out.header.Set("Content-Type", contentType)
		}
		return out, nil
	}, notFound)
}

// Auth answers at a path with an auth block: a live token as if of role, a child of the token that asked.
func (v *Vault) Auth(path string, role Role) {
	v.enter()
	defer v.mu.Unlock()
	v.mountLocked(path, func(_ *call, parent *token, now time.Time) (reply, step) {
		t, warnings := v.issueLocked(role, now)
		t.path, t.identity = path, parent.identity
		parent.children = append(parent.children, t)
		return envelope{Auth: t.auth(t.creationTTL), Warnings: warnings}.reply(http.StatusOK), nil
	}, notFound)
}

// Dynamic is a role of the database engine.
type Dynamic struct {
	TTL    time.Duration // default_ttl; zero: the mount's 768h
	MaxTTL time.Duration // max_ttl; zero: the mount's 768h
}

func (d Dynamic) limits() limits { return limits{ttl: d.TTL, max: d.MaxTTL} }

// Dynamic makes a path of which every read creates a user in the back end and a lease, or changes the role there. The
// lease is not bound by the token's TTL, but ends with the token.
func (v *Vault) Dynamic(path string, d Dynamic) {
	v.enter()
	defer v.mu.Unlock()
	v.dynamics[path] = d
	v.mountLocked(path, func(c *call, t *token, now time.Time) (reply, step) {
		switch {
		case c.method != http.MethodGet:
			return unsupported, nil
		case v.backendDown:
			return wrapped(http.StatusInternalServerError, "unable to create new user: rpc error: code = Internal desc = "+
				"unable to create new user: unable to start transaction: "+dialError), nil
		}
		user := User{Name: fmt.Sprintf("v-kubernet-%.8s-%s-%d", base(path), rand.Text()[:20], now.Unix()), Path: path}
		v.users[user.Name] = user
		return reply{}, func(now time.Time) (reply, step) {
			if c.heldAt == MidEffect && c.gone() != nil {
				return reply{}, nil
			}
			ttl, warnings, _ := d.limits().extend(now, now, 0)
			data := map[string]string{"username": user.Name, "password": v.secretLocked("")}
			return v.leaseLocked(t, &lease{path: path, user: user.Name, renewable: true}, now, ttl, envelope{
				Data: data, Warnings: warnings,
			}), nil
		}
	}, unknownRole)
}

// leaseLocked completes l as a lease of t and answers e with it. If t was revoked meanwhile, the lease is left to
// itself until its own TTL.
func (v *Vault) leaseLocked(t *token, l *lease, now time.Time, ttl time.Duration, e envelope) reply {
	l.id = v.secretLocked(l.path + "/")
	l.accessor = t.accessor
	if t.batch {
		l.bound = t.expires
	} else {
		t.leases = append(t.leases, l)
	}
	ttl = l.within(now, ttl)
	l.issued, l.expires = now, now.Add(ttl)
	l.due = l.expires
	v.leases = append(v.leases, l)
	v.byLease[l.id] = l
	v.planLocked(l)
	e.LeaseID, e.Renewable, e.LeaseDuration = l.id, l.renewable, seconds(ttl)
	return e.reply(http.StatusOK)
}

// static is a static database role.
type static struct {
	period    time.Duration
	rotated   time.Time // the rotation that the others are reckoned from
	number    int       // of the password that came with it
	passwords map[int]string
}

// Static makes a static database role: no lease, data.ttl counts down to the next rotation, the password changes when
// it wraps. It answers while the back end is down.
func (v *Vault) Static(path string, period time.Duration) {
	now := v.enter()
	defer v.mu.Unlock()
	role := &static{period: period, rotated: now, passwords: map[int]string{}}
	v.statics[path] = role
	v.mountLocked(path, func(c *call, _ *token, now time.Time) (reply, step) {
		if c.method != http.MethodGet {
			return unsupported, nil
		}
		last, password := v.passwordLocked(role, now)
		return envelope{Data: map[string]any{
			"username":            base(path),
			"password":            password,
			"last_vault_rotation": last,
			"rotation_period":     seconds(period),
			"ttl":                 max(0, seconds(last.Add(period).Sub(now))),
		}}.reply(http.StatusOK), nil
	}, unknownRole)
}

// passwordLocked is what the back end takes now, and since when it should.
func (v *Vault) passwordLocked(role *static, now time.Time) (since time.Time, password string) {
	n := int(max(0, now.Sub(role.rotated)-v.rotation) / role.period)
	number := role.number + n
	if role.passwords[number] == "" {
		role.passwords[number] = v.secretLocked("")
	}
	return role.rotated.Add(time.Duration(n) * role.period), role.passwords[number]
}

// Password is what the back end takes of the user of a static role now.
func (v *Vault) Password(path string) string {
	now := v.enter()
	defer v.mu.Unlock()
	_, password := v.passwordLocked(v.statics[path], now)
	return password
}

// Rotate changes the password of a static role as an operator would (rotate-role); its period begins anew.
func (v *Vault) Rotate(path string) {
	now := v.enter()
	defer v.mu.Unlock()
	role := v.statics[path]
	since, _ := v.passwordLocked(role, now)
	role.number += int(since.Sub(role.rotated)/role.period) + 1
	role.rotated = now
}

// KV1 puts a secret into a KV version 1 engine. There is no lease; lease_duration is the secret's own ttl key, or the
// mount's 768h.
func (v *Vault) KV1(path string, data map[string]any) {
	v.enter()
	defer v.mu.Unlock()
	body := encode(data)
	ttl := wireDuration(mountTTL)
	_ = ttl.UnmarshalJSON(encode(data["ttl"])) // no ttl, or one that Vault would not understand: the mount's
	v.mountLocked(path, func(c *call, _ *token, _ time.Time) (reply, step) {
		if c.method != http.MethodGet {
			return unsupported, nil
		}
		return envelope{Data: body, LeaseDuration: seconds(time.Duration(ttl))}.reply(http.StatusOK), nil
	}, notFound)
}

// version is one version of a KV version 2 secret.
type version struct {
	data    json.RawMessage
	created time.Time
	deleted time.Time // zero: not
}

// KV2 adds a version of a secret in a KV version 2 engine; the path is the API's ("secret/data/x"). Reads understand
// the version parameter.
func (v *Vault) KV2(path string, data map[string]any) {
	now := v.enter()
	defer v.mu.Unlock()
	v.versions[path] = append(v.versions[path], version{data: encode(data), created: now})
	v.mountLocked(path, func(c *call, _ *token, _ time.Time) (reply, step) {
		if c.method != http.MethodGet {
			return unsupported, nil
		}
		return v.readVersionLocked(path, c.query.Get("version")), nil
	}, notFound)
}

// DeleteKV2 deletes the newest version of a secret: 404 from then on, with the version's metadata.
func (v *Vault) DeleteKV2(path string) {
	now := v.enter()
	defer v.mu.Unlock()
	if all := v.versions[path]; len(all) > 0 {
		all[len(all)-1].deleted = now
	}
}

func (v *Vault) readVersionLocked(path, wanted string) reply {
	all := v.versions[path]
	n, err := strconv.Atoi(wanted)
	if err != nil || n == 0 {
		n = len(all)
	}
	if n < 1 || n > len(all) {
		return failure(http.StatusNotFound)
	}
	this := all[n-1]
	status, body, deleted := http.StatusOK, any(this.data), ""
	if !this.deleted.IsZero() {
		status, body, deleted = http.StatusNotFound, nil, this.deleted.UTC().Format(time.RFC3339Nano)
	}
	return envelope{Data: map[string]any{
		"data": body,
		"metadata": map[string]any{
			"created_time":    this.created.UTC().Format(time.RFC3339Nano),
			"custom_metadata": nil,
			"deletion_time":   deleted,
			"destroyed":       false,
			"version":         n,
		},
	}}.reply(status)
}

func encode(content any) json.RawMessage {
	b, err := json.Marshal(content)
	if err != nil {
		panic(fmt.Sprintf("vaulttest: encoding a secret: %v", err))
	}
	return b
}
