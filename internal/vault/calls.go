package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// Session is what a call is made with.
type Session struct {
	Namespace string
	Token     secret.Value
	// Index is the X-Vault-Index of the login, which a performance standby must have reached; empty on most servers.
	Index string
}

// Login is the reply to a login.
type Login struct {
	Session
	Accessor  secret.Value
	TTL       time.Duration // zero for a token without end
	Renewable bool
	// Request is Vault's id of the request, as its audit log has it; empty when it did not tell.
	Request string
	// Unleasable says why leases must not be made under this token, in words; empty when they may.
	Unleasable string
	// ByCert: it was the client certificate that logged in, whatever the login's body says: an auth mount of the cert method looks at
	// nothing but the connection, which shows that certificate to every server that asks.
	ByCert bool
}

// Life is the reply to a renewal.
type Life struct {
	TTL       time.Duration
	Renewable bool
	// Request is as in Login.
	Request string
}

// Reply is the reply to a read.
type Reply struct {
	// Body is the JSON as sent, or whatever was sent if Raw.
	Body []byte
	// Raw: the reply is no JSON but a certificate, a revocation list or a public key by itself.
	Raw bool
	// LeaseID is zero when nothing is leased.
	LeaseID   secret.Value
	TTL       time.Duration
	Renewable bool
	// Request is as in Login.
	Request string
	// Token is a token that the reply carries, which must not stay; zero for none.
	Token secret.Value
	// Certificate is what was issued; nil when nothing was.
	Certificate *Certificate
	// Rotation tells of a password that Vault changes by itself; nil when it is none. It comes with no lease.
	Rotation *grant.Rotation
}

type authBlock struct {
	ClientToken   string   `json:"client_token"`
	Accessor      string   `json:"accessor"`
	LeaseDuration int64    `json:"lease_duration"`
	Renewable     bool     `json:"renewable"`
	TokenType     string   `json:"token_type"`
	NumUses       int      `json:"num_uses"`
	Policies      []string `json:"policies"`
	// Metadata is told by the auth method. The cert method's has these keys (builtin/credential/cert/path_login.go, 1.21.2).
	Metadata struct {
		CertName string `json:"cert_name"`
		SignedBy string `json:"authority_key_id"`
	} `json:"metadata"`
}

type envelope struct {
	RequestID     requestID       `json:"request_id"`
	Auth          *authBlock      `json:"auth"`
	LeaseID       string          `json:"lease_id"`
	LeaseDuration int64           `json:"lease_duration"`
	Renewable     bool            `json:"renewable"`
	Data          json.RawMessage `json:"data"`
}

// requestID is a UUID, or empty: what else a server sends might be anything.
type requestID string

// UnmarshalJSON implements json.Unmarshaler, for any JSON.
func (r *requestID) UnmarshalJSON(text []byte) error {
	if uuid := requestIDShape.FindSubmatch(text); uuid != nil {
		*r = requestID(uuid[1])
	}
	return nil
}

var requestIDShape = regexp.MustCompile(`^"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"$`)

// century is as long as for ever, and can be added to an instant.
const century = 100 * 365 * 24 * time.Hour

func seconds(n int64) time.Duration {
	return time.Duration(min(max(n, 0), int64(century/time.Second))) * time.Second
}

const (
	// OpLogin is Error.Op of a login.
	OpLogin = "logging in"
	// opUnwrapping is that of what AppRole does before it, and opReading begins that of a read.
	opUnwrapping = "unwrapping the secret-id"
	opReading    = "reading "
)

// Credentials are what a login is made with, besides what spec.Auth says.
type Credentials struct {
	// JWT is a service account token.
	JWT secret.Value
	// SecretID is AppRole's; zero for a role that binds none.
	SecretID secret.Value
}

// logins make the body of a login, by method. The path is auth/<mount>/login for all of them.
var logins = map[spec.AuthMethod]func(spec.Auth, Credentials) map[string]string{
	spec.Kubernetes: func(auth spec.Auth, c Credentials) map[string]string {
		return map[string]string{"role": auth.Role, "jwt": c.JWT.Reveal()}
	},
	spec.AppRole: func(auth spec.Auth, c Credentials) map[string]string {
		body := map[string]string{"role_id": auth.RoleID}
		if !c.SecretID.IsZero() {
			body["secret_id"] = c.SecretID.Reveal()
		}
		return body
	},
	spec.Cert: func(auth spec.Auth, _ Credentials) map[string]string { // the connection shows what is looked at
		return map[string]string{"name": auth.Role}
	},
}

// LogIn logs in. What a Vault Agent answers from its cache is refused: the token is somebody's already.
func (c *Client) LogIn(ctx context.Context, namespace string, auth spec.Auth, with Credentials) (Login, error) {
	bodyOf, ok := logins[auth.Method]
	if !ok { // of a newer version's record
		return Login{}, &Error{Kind: Unusable, Op: OpLogin, Server: c.server.Address, Err: fmt.Errorf("the auth method %q is not known", auth.Method)}
	}
	body, err := json.Marshal(bodyOf(auth, with))
	if err != nil {
		return Login{}, fmt.Errorf("encoding the login: %w", err)
	}
	const op = OpLogin
	out, err := c.retry(ctx, call{
		counted: opLogin, op: op, method: http.MethodPut, path: "auth/" + auth.Mount + "/login", namespace: namespace, body: body, hide: []secret.Value{with.JWT, with.SecretID},
	})
	if err != nil {
		return Login{}, err
	}
	var e envelope
	if err := c.decode(op, out.body, &e); err != nil {
		return Login{}, err
	}
	if e.Auth == nil || e.Auth.ClientToken == "" {
		return Login{}, &Error{Kind: NotVault, Op: op, Server: c.server.Address, Err: errors.New("the reply to the login holds no token")}
	}
	if out.header.Get("X-Cache") == "HIT" { // measured on the agent of Vault 1.21.2, for a login with the same JWT
		return Login{}, &Error{Kind: Shared, Op: op, Server: c.server.Address,
			Err: errors.New("the reply is from the cache of a Vault Agent (X-Cache: HIT), and two volumes would share one token: name Vault's own address, or an agent that does not cache")}
	}
	return Login{
		Session:    Session{Namespace: namespace, Token: secret.New(e.Auth.ClientToken), Index: out.header.Get("X-Vault-Index")},
		Accessor:   secret.New(e.Auth.Accessor),
		TTL:        seconds(e.Auth.LeaseDuration),
		Renewable:  e.Auth.Renewable,
		Request:    string(e.RequestID),
		Unleasable: unleasable(e.Auth),
		ByCert:     e.Auth.Metadata.CertName != "" && e.Auth.Metadata.SignedBy != "",
	}, nil
}

// unleasable says why a token cannot carry leases that end with the pod. Measured on Vault 1.21.2: leases under an orphan
// batch token do not end with it; a token of n uses takes its leases along at the last; without the default policy a token
// cannot revoke itself.
func unleasable(a *authBlock) string {
	if a.TokenType == "batch" {
		return "the role gives batch tokens (token_type=batch), which cannot be renewed or revoked; use service tokens for leased secrets"
	}
	if a.NumUses > 0 {
		return "the role gives tokens of a limited number of uses (token_num_uses), and leases end with the last; use 0 for leased secrets"
	}
	for _, p := range a.Policies {
		if p == "default" || p == "root" {
			return ""
		}
	}
	return "the role's tokens lack the policy \"default\" (token_no_default_policy), so that they could not be renewed or revoked; add it for leased secrets"
}

// Unwrap returns the secret-id behind a wrapping token, which is used up by it.
func (c *Client) Unwrap(ctx context.Context, namespace string, wrapping secret.Value) (secret.Value, error) {
	const op = opUnwrapping
	out, err := c.retry(ctx, call{counted: opUnwrap, op: op, method: http.MethodPut, path: "sys/wrapping/unwrap", namespace: namespace, token: wrapping})
	if err != nil {
		return secret.Value{}, err
	}
	var e struct {
		Data struct {
			SecretID string `json:"secret_id"`
		} `json:"data"`
	}
	if err := c.decode(op, out.body, &e); err != nil {
		return secret.Value{}, err
	}
	if e.Data.SecretID == "" {
		return secret.Value{}, &Error{Kind: NotVault, Op: op, Server: c.server.Address, Err: errors.New("what was wrapped holds no secret_id")}
	}
	return secret.New(e.Data.SecretID), nil
}

// Read makes one request of a spec. It is sent once, unless Vault proved that it did not execute it.
func (c *Client) Read(ctx context.Context, s Session, r spec.Read) (Reply, error) {
	op := opReading + strconv.Quote(r.Path)
	in := call{counted: opRead, op: op, method: r.Method, path: r.Path, query: r.Query, namespace: s.Namespace, token: s.Token, index: s.Index}
	if r.Args != "" {
		in.body = []byte(r.Args)
	}
	out, err := c.retry(ctx, in)
	if err != nil {
		return Reply{}, err
	}
	var e envelope
	if err := c.decode(op, out.body, &e); err != nil {
		if KindOf(err) == NotVault && raw(out) {
			return Reply{Body: out.body, Raw: true}, nil
		}
		return Reply{}, err
	}
	reply := Reply{Body: out.body, LeaseID: secret.New(e.LeaseID), TTL: seconds(e.LeaseDuration), Renewable: e.Renewable, Request: string(e.RequestID)}
	if e.Auth != nil {
		reply.Token = secret.New(e.Auth.ClientToken)
	}
	reply.look(r.Method, e.Data)
	return reply, nil
}

// raw reports whether Vault means a reply that is no JSON: the types of certificates and revocation lists of a PKI engine, in PEM and
// DER, and of an SSH engine's public key (Vault 1.21.2).
func raw(a answer) bool {
	kind, _, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if err != nil || a.status != http.StatusOK {
		return false
	}
	switch kind {
	case "application/pkix-cert", "application/pkix-crl", "application/pem-certificate-chain", "application/x-pem-file", "text/plain":
		return true
	}
	return false
}

// RenewSelf lengthens, or with a small increment shortens, the token's life. An increment of zero asks for the role's TTL.
func (c *Client) RenewSelf(ctx context.Context, s Session, increment time.Duration) (Life, error) {
	const op = "renewing the token"
	var e envelope
	in := call{counted: opRenewToken, op: op, path: "auth/token/renew-self", namespace: s.Namespace, token: s.Token}
	if err := c.put(ctx, in, map[string]any{"increment": int64(increment / time.Second)}, &e); err != nil {
		return Life{}, err
	}
	if e.Auth == nil {
		return Life{}, &Error{Kind: NotVault, Op: op, Server: c.server.Address, Err: errors.New("the reply states no life")}
	}
	return Life{TTL: seconds(e.Auth.LeaseDuration), Renewable: e.Auth.Renewable, Request: string(e.RequestID)}, nil
}

// RenewLease lengthens, or with a small increment shortens, a lease. An increment of zero asks for the role's TTL.
func (c *Client) RenewLease(ctx context.Context, s Session, l grant.Lease, increment time.Duration) (Life, error) {
	var e envelope
	args := map[string]any{"lease_id": l.ID.Reveal(), "increment": int64(increment / time.Second)}
	in := call{counted: opRenewLease, op: "renewing a lease", path: "sys/leases/renew", secret: l.Read.Path, namespace: s.Namespace, token: s.Token, hide: []secret.Value{l.ID}}
	if err := c.put(ctx, in, args, &e); err != nil {
		return Life{}, err
	}
	return Life{TTL: seconds(e.LeaseDuration), Renewable: e.Renewable, Request: string(e.RequestID)}, nil
}

// RevokeCertificate revokes a certificate of a PKI engine, which may have been revoked or have ended before.
func (c *Client) RevokeCertificate(ctx context.Context, s Session, mount string, serial secret.Value) error {
	body, err := json.Marshal(map[string]string{"serial_number": serial.Reveal()})
	if err != nil {
		return fmt.Errorf("encoding a serial number: %w", err)
	}
	_, err = c.do(ctx, call{counted: opRevokeCertificate, op: fmt.Sprintf("revoking a certificate of %q", mount), method: http.MethodPut, path: mount + "/revoke",
		namespace: s.Namespace, token: s.Token, body: body, hide: []secret.Value{serial}})
	return err
}

// RevokeSelf revokes the token, and with it every lease under it. Vault takes over the leases: they go moments later, and it
// tries again by itself when their back end is down.
func (c *Client) RevokeSelf(ctx context.Context, s Session) error {
	_, err := c.do(ctx, call{counted: opRevoke, op: "revoking the token", method: http.MethodPut, path: "auth/token/revoke-self", namespace: s.Namespace, token: s.Token})
	return err
}

// put sends args as the body of in.
func (c *Client) put(ctx context.Context, in call, args map[string]any, into *envelope) (err error) {
	in.method = http.MethodPut
	if in.body, err = json.Marshal(args); err != nil {
		return fmt.Errorf("%s: encoding the request: %w", in.op, err)
	}
	out, err := c.do(ctx, in)
	if err != nil {
		return err
	}
	return c.decode(in.op, out.body, into)
}

// clusterMemo remembers the cluster id for a while, so that a storm of Mounts asks once.
type clusterMemo struct {
	mu    sync.Mutex
	id    string
	asked time.Time
}

const (
	clusterMemory   = time.Minute
	clusterPatience = 10 * time.Second
)

// RecentCluster returns the server's cluster id, at most a minute old; empty when the server does not tell.
func (c *Client) RecentCluster(ctx context.Context) string {
	c.cluster.mu.Lock()
	id, age := c.cluster.id, time.Since(c.cluster.asked)
	c.cluster.mu.Unlock()
	if id != "" && age < clusterMemory {
		return id
	}
	return c.Cluster(ctx)
}

// Cluster asks for the server's cluster id; empty when the server does not tell.
func (c *Client) Cluster(ctx context.Context) string {
	var health struct {
		ClusterID string `json:"cluster_id"`
	}
	op := "asking for the cluster"
	ctx, cancel := context.WithTimeout(ctx, clusterPatience)
	defer cancel()
	out, err := c.do(ctx, call{counted: opHealth, op: op, method: http.MethodGet, path: "sys/health", query: "standbyok=true&perfstandbyok=true"})
	if err != nil || c.decode(op, out.body, &health) != nil {
		return ""
	}
	c.cluster.mu.Lock()
	c.cluster.id, c.cluster.asked = health.ClusterID, time.Now()
	c.cluster.mu.Unlock()
	return health.ClusterID
}
