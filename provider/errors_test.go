package provider_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

// vaultSays are Vault's errors as it sends them.
func vaultSays(messages ...string) string {
	body, err := json.Marshal(map[string][]string{"errors": append([]string{}, messages...)})
	if err != nil {
		panic(err)
	}
	return string(body)
}

// among is how Vault sends the errors of a call that several parts of it judged.
func among(message string) string { return "1 error occurred:\n\t* " + message + "\n\n" }

// versionBody is Vault's 404 for a version of KV version 2 that is no more.
func versionBody(deleted string, destroyed string) string {
	return `{"request_id":"x","lease_id":"","renewable":false,"lease_duration":0,"data":{"data":null,"metadata":{"created_time":"2026-11-25T01:40:17.03Z",` +
		`"custom_metadata":null,"deletion_time":"` + deleted + `","destroyed":` + destroyed + `,"version":1}},"wrap_info":null,"warnings":null,"auth":null,"mount_type":""}`
}

func warningBody(warning string) string {
	return `{"request_id":"x","lease_id":"","renewable":false,"lease_duration":0,"data":null,"wrap_info":null,"warnings":["` + warning + `"],"auth":null,"mount_type":""}`
}

// explained is what Vault, or the way to it, is known to do, and what a person must read then.
type explained struct {
	name   string
	change func(*node, *call)
	code   codes.Code
	say    []string
}

// appRole is a class that logs in by AppRole, with what the pod's Secret holds under a key.
func appRole(key string, value func(*node) string) func(*node, *call) {
	return func(n *node, c *call) {
		n.vault.AppRole("role-id", vaulttest.Role{})
		delete(c.params, "roleName")
		c.params["roleId"], c.secrets = "role-id", map[string]string{key: value(n)}
	}
}

// byCert is a class that logs in with the pod's certificate, and what Vault says to that.
func byCert(ttl time.Duration, says string) func(*node, *call) {
	return func(n *node, c *call) {
		delete(c.params, "roleName")
		cert, key := vaulttest.Pair("app", ttl)
		c.params["authMethod"], c.secrets = "cert", map[string]string{"tls.crt": cert, "tls.key": key}
		fail("PUT auth/cert/login", vaulttest.Fault{Status: 400, Body: vaultSays(says)})(n, c)
	}
}

// loginSays is a login that is answered so, by a Vault in a namespace.
func loginSays(status int, body string) func(*node, *call) {
	return func(n *node, c *call) {
		c.params["vaultNamespace"] = "team"
		fail(loginRequest, vaulttest.Fault{Status: status, Body: body})(n, c)
	}
}

// readSays is a read of a path that is answered so.
func readSays(path string, status int, body string) func(*node, *call) {
	return func(n *node, c *call) {
		c.params["objects"] = "- {objectName: x, secretPath: " + path + "}"
		fail("GET "+path, vaulttest.Fault{Status: status, Body: body})(n, c)
	}
}

// putSays is the same for an object with arguments.
func putSays(path string, status int, body string) func(*node, *call) {
	return func(n *node, c *call) {
		c.params["objects"] = "- {objectName: x, secretPath: " + path + ", method: PUT, secretArgs: {password: canary-of-an-argument}}"
		fail("PUT "+path, vaulttest.Fault{Status: status, Body: body})(n, c)
	}
}

// token logs in with another token.
func token(i vaulttest.Identity, then func(*node, *call)) func(*node, *call) {
	return func(n *node, c *call) {
		i.Namespace, i.ServiceAccount = "shop", "app-sa"
		c.params[tokensKey] = `{"vault":{"token":"` + i.JWT() + `"}}`
		then(n, c)
	}
}

// wire fails on the way to Vault.
func wire(failure error) func(*node, *call) {
	return func(n *node, c *call) {
		c.params["vaultAddress"] = "https://vault.example"
		n.wire = func(*http.Request) (*http.Response, error) { return nil, failure }
	}
}

func dial(failure error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: failure} }

func untrusted(failure error) error { return &tls.CertificateVerificationError{Err: failure} }

const (
	badAudience = "invalid audience (aud) claim: audience claim does not match any expected audience"
	judged      = `(namespace "team", auth mount "kubernetes", role "my-app-role", service account shop/app-sa, token issuer "https://kubernetes.default.svc", audience ["vault"])`
	reader      = `(auth mount "kubernetes", role "my-app-role", service account shop/app-sa)`
	unversioned = "Invalid path for a versioned K/V secrets engine. See the API docs for the appropriate API endpoints to use. If using the Vault CLI, use 'vault kv get' for this operation."
)

// loginTable holds replies of the kubernetes method (403) and the jwt method (400) to a login. Those marked [S] are from sources,
// the others were seen on Vault 1.21.2.
func loginTable() []explained {
	const denied, invalid, failing = codes.PermissionDenied, codes.InvalidArgument, codes.FailedPrecondition
	return []explained{
		{"secret-id refused", appRole("secretId", func(*node) string { return "stale" }), codes.InvalidArgument,
			[]string{`Vault said 400 "invalid role or secret ID"; issue a new secret-id`, `(auth mount "approle", AppRole, service account shop/app-sa)`}},
		{"wrapping token used", appRole("wrappedSecretId", func(*node) string { return "used" }), codes.InvalidArgument,
			[]string{"unwrapping the secret-id at", "wrap a new secret-id for the pod's nodePublishSecretRef"}},
		{"no certificate arrives", byCert(time.Hour, "client certificate must be supplied"), invalid,
			[]string{`name an https:// address that leads to Vault itself`, `if "cert" is to log in by certificate`}},
		{"no TLS", byCert(time.Hour, "tls connection required"), invalid, []string{`name an https:// address`}},
		{"certificate refused", byCert(-time.Hour, "failed to match all constraints for this login certificate"), invalid,
			[]string{`compare the certificate in the pod's nodePublishSecretRef with the roles of auth mount "cert" (roleName chooses one)`,
				`(auth mount "cert", any role, service account shop/app-sa, client certificate of "CN=app", issuer "CN=vaulttest", expired at `}},
		{"no certificate", func(_ *node, c *call) { c.params["authMethod"] = "cert" }, failing,
			[]string{"the Secret that nodePublishSecretRef of the pod's volume names must hold tls.crt and tls.key", "--cert-auth-namespaces"}},
		{"half a certificate", func(_ *node, c *call) {
			c.params["authMethod"], c.secrets = "cert", map[string]string{"tls.crt": "x", "tls.key": "canary"}
		}, failing, []string{"pairing tls.crt and tls.key of the pod's nodePublishSecretRef", "failed to find any PEM data"}},
		{"service account", loginSays(403, vaultSays("service account name not authorized")), denied,
			[]string{`Vault said 403 "service account name not authorized"; add "app-sa" to bound_service_account_names of role "my-app-role"`, judged}},
		{"namespace", loginSays(403, vaultSays("namespace not authorized")), denied,
			[]string{`add "shop" to bound_service_account_namespaces of role "my-app-role"`, judged}},
		{"namespace by label [S]", loginSays(403, vaultSays("namespace not authorized err=failed to get namespace")), denied,
			[]string{`let Vault read the labels of namespace "shop"`}},
		{"audience", token(vaulttest.Identity{Audience: "elsewhere"}, loginSays(403, vaultSays(badAudience))), denied,
			[]string{`of role "my-app-role" to ["elsewhere"]`, `tokenRequests of the CSIDriver object`, `issuer "https://kubernetes.default.svc", audience ["elsewhere"])`}},
		{"audience, jwt", loginSays(400, vaultSays("error validating token: "+badAudience)), invalid, []string{`of role "my-app-role" to ["vault"]`}},
		{"role without audience, jwt", loginSays(400, vaultSays("audience claim found in JWT but no audiences bound to the role")), invalid,
			[]string{`set bound_audiences of role "my-app-role" to ["vault"]`}},
		{"issuer, jwt", loginSays(400, vaultSays("error validating token: invalid issuer (iss) claim")), invalid,
			[]string{`in auth/kubernetes/config to "https://kubernetes.default.svc"`}},
		{"issuer [S]", loginSays(403, vaultSays("invalid issuer (iss) claim")), denied, []string{`set bound_issuer (jwt method) or issuer (kubernetes method)`}},
		{"subject, jwt", loginSays(400, vaultSays("error validating token: invalid subject (sub) claim")), invalid,
			[]string{`set bound_subject of role "my-app-role" to "system:serviceaccount:shop:app-sa"`}},
		{"claims, jwt", loginSays(400, vaultSays(`error validating claims: claim "/kubernetes.io/namespace" does not match any associated bound claim values`)), invalid,
			[]string{`compare bound_claims of role "my-app-role"`}},
		{"expired", token(vaulttest.Identity{TTL: -time.Hour}, loginSays(403, vaultSays("invalid expiration time (exp) claim: token is expired"))), denied,
			[]string{"kubelet brings a new token", "expired at 1999-12-31T23:00:00Z)"}},
		{"not yet valid, jwt [S]", loginSays(400, vaultSays("error validating token: invalid not before (nbf) claim: token not yet valid")), invalid,
			[]string{"compare the clocks of Vault and the API server"}},
		{"keys out of reach, jwt", loginSays(400, vaultSays("error validating token: error verifying token signature: failed to verify signature: fetching keys oidc: get keys failed Get \"http://127.0.0.1:9\": dial tcp 127.0.0.1:9: connect: connection refused")), invalid,
			[]string{"let Vault reach the address in jwks_url or oidc_discovery_url of auth/kubernetes/config"}},
		{"another cluster, jwt", loginSays(400, vaultSays("error validating token: error verifying token signature: no known key successfully validated the token signature")), invalid,
			[]string{`the cluster whose tokens have the issuer "https://kubernetes.default.svc"`}},
		{"reviewer refused [S]", loginSays(403, vaultSays("lookup failed: service account unauthorized; this could mean it has been deleted or recreated with a new token")), denied,
			[]string{"put a token into token_reviewer_jwt of auth/kubernetes/config"}},
		{"review failed [S]", loginSays(403, vaultSays("lookup failed: service account jwt not valid")), denied, []string{"check that the pod and its service account still exist"}},
		{"role", loginSays(400, vaultSays(`invalid role name "my-app-role"`)), invalid,
			[]string{`create role "my-app-role" on auth mount "kubernetes" in namespace "team", or correct roleName`}},
		{"role, jwt", loginSays(400, vaultSays(`role "my-app-role" could not be found`)), invalid, []string{`create role "my-app-role" on auth mount "kubernetes"`}},
		{"role for OIDC", loginSays(400, vaultSays("role with oidc role_type is not allowed")), invalid, []string{`set role_type=jwt on role "my-app-role"`}},
		{"mount without configuration", loginSays(500, vaultSays("could not load backend configuration")), failing, []string{"write auth/kubernetes/config"}},
		{"mount without configuration, jwt", loginSays(400, vaultSays("could not load configuration")), invalid, []string{"write auth/kubernetes/config"}},
		{"mount of AppRole", loginSays(500, vaultSays("failed to determine alias name from login request")), failing, []string{`"kubernetes" is of another one`}},
		{"mount not found [S]", loginSays(404, vaultSays(`no handler for route "auth/kubernetes/login". route entry not found.`)), codes.NotFound,
			[]string{`enable "kubernetes" in namespace "team", or correct vaultAuthMountPath`}},
		{"no such mount, before 1.15 [S]", loginSays(400, vaultSays("missing client token")), invalid, []string{`enable auth mount "kubernetes" in namespace "team"`}},
		{"denied without a reason", loginSays(403, vaultSays("permission denied")), denied,
			[]string{"Vault does not say why", `exists in namespace "team"`, `whose issuer is "https://kubernetes.default.svc"`, "system:auth-delegator", "token_bound_cidrs", judged}},
		{"invalid", loginSays(400, vaultSays("something else")), invalid, []string{`check role "my-app-role" and auth/kubernetes/config`}},
		{"failing", loginSays(500, vaultSays("internal error")), failing, []string{`whether Vault reaches what auth mount "kubernetes" asks`}},
		{"nothing", loginSays(200, " "), failing, []string{"that the auth mount is one for Kubernetes"}},
		{"no token", loginSays(200, "{}"), failing, []string{"that the auth mount is one for Kubernetes"}},
	}
}

// readTable holds replies to reads, and to whatever is asked.
func readTable() []explained {
	const denied, invalid, missing, failing = codes.PermissionDenied, codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition
	return []explained{
		{"policy", readSays("secret/data/app", 403, vaultSays(among("permission denied"))), denied,
			[]string{`add to a policy of role "my-app-role": path "secret/data/app" { capabilities = ["read"] }; Vault says`, reader}},
		{"policy for PUT", putSays("pki/issue/x", 403, vaultSays(among("permission denied"))), denied, []string{`path "pki/issue/x" { capabilities = ["update"] }; Vault says`}},
		{"policy, no /data/", readSays("secret/app", 403, vaultSays(among("permission denied"))), denied,
			[]string{`(if "secret" is a KV version 2 engine: "secret/data/app")`}},
		{"login gone", readSays("secret/data/app", 403, vaultSays("2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")), denied, []string{"the next try makes a new one"}},
		{"version 2 without /data/", readSays("secret/a/b", 404, warningBody(unversioned)), missing,
			[]string{`Vault said 404 "Invalid path for a versioned`, `as KV version 2 wants it: "secret/data/a/b"`}},
		{"root of version 2", readSays("secret/data", 404, warningBody("Non-listing operations on the root of a K/V v2 mount are not supported.")), missing,
			[]string{`name a secret below "secret/data"`}},
		{"deleted", readSays("secret/data/app", 404, versionBody("2026-11-25T01:40:17.08Z", "false")), missing,
			[]string{`Vault said 404 "version 1 was deleted at 2026-11-25T01:40:17.08Z"`, "undelete the version"}},
		{"destroyed", readSays("secret/data/app", 404, versionBody("", "true")), missing,
			[]string{`Vault said 404 "version 1 was destroyed"`, "write the secret again"}},
		{"no mount", readSays("nomount/x", 404, vaultSays(`no handler for route "nomount/x". route entry not found.`)), missing, []string{"mount an engine there, or correct secretPath"}},
		{"no such path", readSays("pki/nosuch", 404, vaultSays(among("unsupported path"))), missing, []string{"the engine is there and has no such path"}},
		{"nothing there", readSays("kv1/none", 404, vaultSays()), missing, []string{`Vault said 404 Not Found; check the path (if "kv1" is a KV version 2 engine: "kv1/data/none"), its version`}},
		{"method", readSays("pki/issue/x", 405, vaultSays(among("unsupported operation"))), invalid, []string{`"pki/issue/x" does not take GET`}},
		{"engine's role", readSays("database/creds/none", 400, vaultSays("unknown role: none")), invalid, []string{`create the role that "database/creds/none" names`}},
		{"last use", readSays("database/creds/my-app", 400, vaultSays("Secret cannot be returned; token had one use left, so leased credentials were immediately revoked.")), invalid,
			[]string{`set token_num_uses of role "my-app-role" to 0`}},
		{"missing argument", putSays("pki/issue/x", 400, vaultSays(`the common_name field is required, or must be provided in a CSR with "use_csr_common_name" set to true, unless "require_cn" is set to false`)), invalid,
			[]string{`correct secretArgs, or the query in secretPath: "pki/issue/x"`}},
		{"bad argument", readSays("secret/data/app", 400, vaultSays(`Field validation failed: error converting input for field "version": cannot parse '' as int`)), invalid, []string{"correct secretArgs"}},
		{"invalid", readSays("secret/data/app", 400, vaultSays("something else")), invalid, []string{"check the path, and the method and secretArgs"}},
		{"sealed", readSays("secret/data/app", 503, vaultSays("Vault is sealed")), failing, []string{"unseal Vault", reader}},
		{"no leader", readSays("secret/data/app", 500, vaultSays("local node not active but active cluster node not found")), failing, []string{"why Vault has no leader"}},
		{"locked namespace [S]", readSays("secret/data/app", 503, vaultSays("API access to this namespace has been locked by an administrator")), failing, []string{"vault namespace unlock"}},
		{"overloaded [S]", readSays("secret/data/app", 503, vaultSays("overloaded, try again later")), failing, []string{"is not limiting requests"}},
		{"lease quota [S]", readSays("secret/data/app", 429, vaultSays(`request path "x": lease count quota exceeded`)), failing, []string{"raise Vault's lease count quota"}},
		{"rate quota", readSays("secret/data/app", 429, vaultSays(`request path "secret/data/app": rate limit quota exceeded`)), failing, []string{"raise Vault's rate limit quota"}},
		{"limited behind Vault [S]", readSays("secret/data/app", 502, vaultSays(among("upstream rate limited"))), failing, []string{"what the engine asks limits Vault's requests"}},
		{"not replicated yet [S]", readSays("secret/data/app", 412, vaultSays("required index state not present")), failing, []string{"lags behind its primary"}},
		{"secondary's health [S]", readSays("secret/data/app", 472, `{"initialized":true,"sealed":false,"standby":true}`), invalid, []string{"a disaster recovery secondary answered"}},
		{"secondary [S]", readSays("secret/data/app", 400, vaultSays("path disabled in replication DR secondary mode")), invalid, []string{"a disaster recovery secondary answered"}},
		{"standby's health [S]", readSays("secret/data/app", 473, `{"initialized":true,"sealed":false,"standby":true}`), invalid, []string{"a performance standby answered"}},
		{"forwards", readSays("secret/data/app", 307, " "), failing, []string{"use the address of the active node or of a load balancer"}},
		{"no TLS spoken", readSays("secret/data/app", 400, "Client sent an HTTP request to an HTTPS server.\n"), failing, []string{"write https:// in vaultAddress"}},
		{"a proxy's page", readSays("secret/data/app", 503, "<html>canary of a page</html>"), failing,
			[]string{"the answer was 503 Service Unavailable, and not in Vault's words; check that the address is Vault's: a proxy"}},
		{"another server's JSON", readSays("secret/data/app", 404, `{"kind":"Status","message":"canary of a page"}`), missing,
			[]string{"the answer was 404 Not Found, and not in Vault's words", "check that the address is Vault's: a proxy"}},
		{"back end", readSays("database/creds/my-app", 500, vaultSays("1 error occurred:\n\t* unable to start transaction: failed to connect to `user=x database=y`: 127.0.0.1:5432: dial error: connection refused\n\n")), failing,
			[]string{`see whether Vault reaches the back end of "database/creds/my-app"`}},
		{"failing", readSays("secret/data/app", 500, vaultSays("internal error")), failing, []string{"check Vault's log, and whether the engine's back end"}},
		{"nothing", readSays("secret/data/app", 200, " "), failing, []string{"Vault answered without content", "that its method is right"}},
		{"a page", readSays("secret/data/app", 200, "<html>canary of a page</html>"), failing, []string{"not Vault's JSON", "that its method is right"}},
	}
}

// wayTable holds what happens on the way to Vault. The texts are those of Go's net, tls and x509 packages.
func wayTable() []explained {
	const failing = codes.FailedPrecondition
	named := x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"vault.internal", "vault.svc"}}, Host: "vault.example"}
	return []explained{
		{"server without TLS", wire(dial(errors.New("http: server gave HTTP response to HTTPS client"))), failing, []string{"write http:// in vaultAddress"}},
		{"client certificate", wire(errors.New("remote error: tls: certificate required")), failing, []string{"set vaultTLSClientCertPath and vaultTLSClientKeyPath"}},
		{"unknown CA", wire(untrusted(x509.UnknownAuthorityError{})), failing, []string{"signed by unknown authority; set vaultCACertPath"}},
		{"other name", wire(untrusted(named)), failing,
			[]string{"certificate is valid for vault.internal, vault.svc, not vault.example; use one of the certificate's names in vaultAddress, or set vaultTLSServerName"}},
		{"old certificate", wire(untrusted(x509.CertificateInvalidError{Reason: x509.Expired})), failing, []string{"renew the certificate of Vault's listener"}},
		{"bad certificate", wire(untrusted(x509.CertificateInvalidError{Reason: x509.TooManyIntermediates})), failing, []string{"check vaultCACertPath"}},
		{"no such host", wire(dial(&net.DNSError{Err: "no such host", Name: "vault.example", Server: "10.96.0.10:53", IsNotFound: true})), failing,
			[]string{"lookup vault.example on 10.96.0.10:53: no such host; check the host in vaultAddress"}},
		{"refused", wire(dial(os.NewSyscallError("connect", syscall.ECONNREFUSED))), failing, []string{"connection refused; check the address, the port", `service account shop/app-sa)`}},
		{"timeout", wire(dial(os.ErrDeadlineExceeded)), failing, []string{"NetworkPolicy"}},
		{"unreachable", wire(dial(errors.New("something else"))), failing, []string{"check the address, the network between this node and Vault, and that Vault runs"}},
		{"cut off", wire(&net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}), failing, []string{"connection reset by peer; check whether vaultAddress should begin with https://"}},
		{"no answer", wire(context.DeadlineExceeded), failing, []string{"no answer in time; check whether Vault is overloaded"}},
		{"unusable CA file", param("vaultCACertPath", "/nonexistent/ca.crt"), failing, []string{"check vaultAddress and the TLS files"}},
	}
}

// TestExplained: each known fault is told in one sentence with the next step, with a final code and without anything secret; and
// every row of docs/troubleshooting.md is met.
func TestExplained(t *testing.T) {
	met, left := "", 0
	for kind, table := range map[string][]explained{"login": loginTable(), "read": readTable(), "way": wayTable()} {
		left += len(table)
		for _, test := range table {
			t.Run(kind+"/"+test.name, func(t *testing.T) {
				bubble(t, 0, func(n *node) {
					c := n.validCall()
					test.change(n, c)
					got := n.refused(c, test.code)
					met, left = met+got+"\n", left-1
					for _, want := range test.say {
						if !strings.Contains(got, want) {
							t.Errorf("%s\nwant %s", got, want)
						}
					}
					for _, never := range []string{"canary", "\n", "{in", "{role", "eyJ"} {
						if strings.Contains(got, never) {
							t.Errorf("%s\nholds %q", got, never)
						}
					}
					if len(got) > 1000 {
						t.Errorf("%d bytes: %s", len(got), got)
					}
				})
			})
		}
	}
	if left > 0 {
		return // only some were asked for
	}
	text, err := os.ReadFile("../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	steps := regexp.MustCompile(`(?m)^\| [^|]* \| [^|]* \| (.*) \|$`).FindAllStringSubmatch(string(text), -1)
	if len(steps) < 50 {
		t.Fatalf("the document has %d rows", len(steps))
	}
	for _, step := range steps[2:] { // the table's head
		pattern := regexp.MustCompile(`\\{[a-z0-9 ]+\\}`).ReplaceAllString(regexp.QuoteMeta(step[1]), `.*`)
		if !regexp.MustCompile(pattern).MatchString(met) {
			t.Errorf("no row of the tests above is told: %s", step[1])
		}
	}
}

// TestExplanationIsBounded: whatever tenants and Vault write, the next step fits into an event.
func TestExplanationIsBounded(t *testing.T) {
	bubble(t, 0, func(n *node) {
		long, words := strings.Repeat("long/", 500), strings.Repeat("denied ", 1000)
		c := n.validCall()
		c.params["roleName"] = strings.Repeat("r", 3000)
		c.params["vaultNamespace"], c.params["vaultAuthMountPath"] = long+"ns", long+"mount"
		n.vault.FailNext("PUT auth/"+long+"mount/login", 1000, vaulttest.Fault{Status: 403, Body: vaultSays(words, words, words)})
		got := n.refused(c, codes.PermissionDenied)
		if len(got) > 1000 || !strings.Contains(got, "Vault does not say why") || !strings.Contains(got, "may create tokenreviews") {
			t.Errorf("%d bytes: %s", len(got), got)
		}
	})
}
