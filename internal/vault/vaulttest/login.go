package vaulttest

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Role is a role of a kubernetes auth method. The zero Role admits every service account and may use every secret.
type Role struct {
	Mount           string   // of the auth method; empty: "kubernetes"
	ServiceAccounts []string // admitted names, * as wildcard; nil: all
	Namespaces      []string // admitted namespaces, * as wildcard; nil: all
	Audience        string   // that the JWT must name; empty: any

	TTL         time.Duration // token_ttl; zero: the mount's 768h
	MaxTTL      time.Duration // token_max_ttl; zero: the mount's 768h
	ExplicitMax time.Duration // token_explicit_max_ttl; zero: none
	Period      time.Duration // token_period; zero: none
	Uses        int           // token_num_uses: every call counts, lookup and renew too; zero: unlimited
	Batch       bool          // token_type=batch: no accessor, no renewal, no revocation; its leases do not cascade

	// NoDefaultPolicy takes away the token's rights on itself and on leases: 403 "1 error occurred: permission denied".
	NoDefaultPolicy bool
	// Cert has the method be the cert method, which looks at the connection's certificate and at nothing that is sent.
	Cert bool
	// Paths are the paths that the token may use, with all below them; nil: every secret.
	Paths []string
}

func (r Role) limits() limits { return limits{r.TTL, r.MaxTTL, r.ExplicitMax, r.Period} }

func (r Role) policies() []string {
	if r.NoDefaultPolicy {
		return []string{"app"}
	}
	return []string{"app", "default"}
}

// Role creates or replaces a role. Tokens that were issued under it follow at their next renewal.
func (v *Vault) Role(name string, r Role) {
	v.enter()
	defer v.mu.Unlock()
	if r.Mount == "" {
		r.Mount = "kubernetes"
	}
	v.roles[r.Mount+"/"+name] = r
}

// DeleteRole removes a role of the auth method mounted at "kubernetes". Logging in answers 400 from then on, and
// renewing a token of the role 500.
func (v *Vault) DeleteRole(name string) {
	v.enter()
	defer v.mu.Unlock()
	delete(v.roles, "kubernetes/"+name)
}

// Identity is what a service account token of Kubernetes says.
type Identity struct {
	Namespace      string
	ServiceAccount string
	Pod            string        // empty: not bound to a pod
	Audience       string        // empty: "vault"
	TTL            time.Duration // zero: 1 h; negative: expired
}

// claims is the part of a service account token that logging in looks at.
type claims struct {
	Issuer     string   `json:"iss"`
	Audience   []string `json:"aud"`
	Expires    int64    `json:"exp"`
	Issued     int64    `json:"iat"`
	NotBefore  int64    `json:"nbf"`
	Subject    string   `json:"sub"`
	Kubernetes struct {
		Namespace string `json:"namespace"`
		Pod       *named `json:"pod,omitempty"`
		Account   named  `json:"serviceaccount"`
	} `json:"kubernetes.io"`
}

type named struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// JWT returns a well-formed token for i that login accepts; its signature is not one.
func (i Identity) JWT() string {
	if i.Audience == "" {
		i.Audience = "vault"
	}
	if i.TTL == 0 {
		i.TTL = time.Hour
	}
	now := time.Now()
	c := claims{
		Issuer:    "https://kubernetes.default.svc",
		Audience:  []string{i.Audience},
		Expires:   now.Add(i.TTL).Unix(),
		Issued:    now.Unix(),
		NotBefore: now.Unix(),
		Subject:   "system:serviceaccount:" + i.Namespace + ":" + i.ServiceAccount,
	}
	c.Kubernetes.Namespace = i.Namespace
	c.Kubernetes.Account = named{i.ServiceAccount, i.uid()}
	if i.Pod != "" {
		c.Kubernetes.Pod = &named{i.Pod, "uid-" + i.Namespace + "-" + i.Pod}
	}
	return segment(map[string]string{"alg": "RS256", "kid": "vaulttest"}) + "." + segment(c) + "." +
		base64.RawURLEncoding.EncodeToString([]byte("not a signature"))
}

func (i Identity) uid() string { return "uid-" + i.Namespace + "-" + i.ServiceAccount }

func segment(content any) string {
	b, err := json.Marshal(content)
	if err != nil {
		panic("vaulttest: encoding a JWT: " + err.Error())
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// JWT returns the token that kubelet would pass for a pod (none: an unbound one) with audience "vault".
func (v *Vault) JWT(namespace, serviceAccount string, pod ...string) string {
	return Identity{Namespace: namespace, ServiceAccount: serviceAccount, Pod: strings.Join(pod, "")}.JWT()
}

// PodGone makes the JWTs of a pod invalid, as after its deletion: logging in answers a plain 403 "permission denied".
func (v *Vault) PodGone(namespace, pod string) {
	v.enter()
	defer v.mu.Unlock()
	v.podsGone[namespace+"/"+pod] = true
}

// ReviewerDown makes every TokenReview fail, as when the API server is away: logging in answers the same 403 as for a
// deleted pod. Renewing needs no review.
func (v *Vault) ReviewerDown(down bool) {
	v.enter()
	defer v.mu.Unlock()
	v.reviewDown = down
}

// CacheLogins puts a Vault Agent with a cache before the server: a login that was made before is answered with the reply of that time.
// It says so by X-Cache, as an agent does, unless something behind it takes that away.
func (v *Vault) CacheLogins(tells bool) {
	v.enter()
	defer v.mu.Unlock()
	v.cachesLogin, v.tellsCached, v.cached = true, tells, map[string]reply{}
}

// login is auth/<mount>/login.
func (v *Vault) login(c *call, mount string) step {
	made := v.makeLogin(c, mount)
	return func(now time.Time) (reply, step) {
		key := mount + " " + string(c.body)
		out, known := v.cached[key]
		if !known {
			out, _ = made(now)
		}
		if !v.cachesLogin || out.status != http.StatusOK {
			return out, nil
		}
		v.cached[key] = out
		if v.tellsCached {
			out.header = out.header.Clone()
			out.header.Set("X-Cache", map[bool]string{true: "HIT", false: "MISS"}[known])
		}
		return out, nil
	}
}

func (v *Vault) makeLogin(c *call, mount string) step {
	return func(now time.Time) (reply, step) {
		f, bad := c.fields()
		if bad != nil {
			return *bad, nil
		}
		for name, role := range v.roles {
			if at, cert := strings.CutPrefix(name, mount+"/"); cert && role.Cert {
				t, warnings := v.issueLocked(role, now)
				t.role, t.path, t.orphan = at, "auth/"+mount+"/login", true
				return envelope{Auth: t.auth(t.creationTTL), Warnings: warnings}.reply(http.StatusOK), nil
			}
		}
		if f.RoleID != "" {
			return v.appRoleLocked(f, mount, now), nil
		}
		if f.Role == "" {
			return failure(http.StatusBadRequest, "missing role"), nil
		}
		if f.JWT == "" {
			return failure(http.StatusBadRequest, "missing jwt"), nil
		}
		v.issued = append(v.issued, f.JWT)
		role, known := v.roles[mount+"/"+f.Role]
		if !known {
			return failure(http.StatusBadRequest, "invalid role name "+strconv.Quote(f.Role)), nil
		}
		who, refusal := v.reviewLocked(role, f.JWT, now)
		if refusal != "" {
			return failure(http.StatusForbidden, refusal), nil
		}
		t, warnings := v.issueLocked(role, now)
		t.role, t.path, t.identity, t.orphan = f.Role, "auth/"+mount+"/login", who, true
		out := envelope{Auth: t.auth(t.creationTTL), Warnings: warnings}.reply(http.StatusOK)
		if v.lag > 0 {
			out.header.Set("X-Vault-Index", newID())
		}
		return out, nil
	}
}

// reviewLocked checks a JWT against a role and, as TokenReview would, against the cluster. An empty refusal is a yes.
func (v *Vault) reviewLocked(role Role, jwt string, now time.Time) (who Identity, refusal string) {
	c, ok := parse(jwt)
	if !ok {
		return who, "permission denied"
	}
	who = Identity{Namespace: c.Kubernetes.Namespace, ServiceAccount: c.Kubernetes.Account.Name}
	if c.Kubernetes.Pod != nil {
		who.Pod = c.Kubernetes.Pod.Name
	}
	switch {
	case now.After(time.Unix(c.Expires, 0)):
		return who, "invalid expiration time (exp) claim: token is expired"
	case role.Audience != "" && !slices.Contains(c.Audience, role.Audience):
		return who, "invalid audience (aud) claim: audience claim does not match any expected audience"
	case role.ServiceAccounts != nil && !admits(role.ServiceAccounts, who.ServiceAccount):
		return who, "service account name not authorized"
	case role.Namespaces != nil && !admits(role.Namespaces, who.Namespace):
		return who, "namespace not authorized"
	case v.reviewDown, v.podsGone[who.Namespace+"/"+who.Pod]:
		return who, "permission denied"
	}
	return who, ""
}

func parse(jwt string) (c claims, ok bool) {
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return c, false
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	return c, err == nil && json.Unmarshal(body, &c) == nil
}

func admits(patterns []string, name string) bool {
	for _, p := range patterns {
		if ok, err := path.Match(p, name); ok && err == nil {
			return true
		}
	}
	return false
}

// issueLocked makes a token with a role's full TTL. Where it came from is for the caller to say.
func (v *Vault) issueLocked(r Role, now time.Time) (*token, []string) {
	ttl, warnings, err := r.limits().extend(now, now, 0)
	if err != nil {
		panic("vaulttest: a new token past its max TTL: " + err.Error())
	}
	prefix := "hvs."
	if r.Batch {
		prefix = "hvb."
	}
	t := &token{
		id:          v.secretLocked(prefix),
		batch:       r.Batch,
		uses:        r.Uses,
		grant:       r,
		issued:      now,
		known:       now.Add(v.lag),
		creationTTL: ttl,
		expires:     now.Add(ttl),
	}
	if !t.batch {
		t.accessor = newID()
	}
	v.tokens = append(v.tokens, t)
	v.byID[t.id] = t
	v.planLocked(t)
	return t, warnings
}

// auth is the block that login and renewal answer with. No pod is named in it: Vault does not know which one it is.
func (t *token) auth(ttl time.Duration) map[string]any {
	return map[string]any{
		"client_token":    t.id,
		"accessor":        t.accessor,
		"policies":        t.grant.policies(),
		"token_policies":  t.grant.policies(),
		"metadata":        t.metadata(),
		"lease_duration":  seconds(ttl),
		"renewable":       !t.batch,
		"entity_id":       t.identity.uid(),
		"token_type":      t.kind(),
		"orphan":          t.orphan,
		"mfa_requirement": nil,
		"num_uses":        t.grant.Uses,
	}
}

func (t *token) metadata() map[string]string {
	if t.grant.Cert {
		return map[string]string{"cert_name": t.role, "common_name": "leasehold", "serial_number": "1", "subject_key_id": "01:02", "authority_key_id": "03:04"}
	}
	return map[string]string{
		"role":                        t.role,
		"service_account_name":        t.identity.ServiceAccount,
		"service_account_namespace":   t.identity.Namespace,
		"service_account_uid":         t.identity.uid(),
		"service_account_secret_name": "",
	}
}

func (t *token) kind() string {
	if t.batch {
		return "batch"
	}
	return "service"
}
