//go:build e2e

package e2e_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
	"github.com/leasehold-csi/leasehold/test/bed"
)

// driver returns a client of the provider's socket, which is what the CSI driver uses.
func (s *suite) driver(t *testing.T) v1alpha1.CSIDriverProviderClient {
	t.Helper()
	connection, err := grpc.NewClient("unix:"+s.endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	return v1alpha1.NewCSIDriverProviderClient(connection)
}

// write sets Vault up for one test, and makes it forget what was mounted.
func (p *place) write(path string, data map[string]any) {
	p.t.Helper()
	if _, err := p.vault.Logical().WriteWithContext(p.t.Context(), path, data); err != nil {
		p.t.Fatal(err)
	}
	if strings.HasPrefix(path, "sys/") && !strings.HasPrefix(path, "sys/audit") {
		p.t.Cleanup(func() {
			if _, err := p.vault.Logical().DeleteWithContext(context.WithoutCancel(p.t.Context()), path); err != nil {
				p.t.Error(err)
			}
		})
	}
}

// token asks the API server for a service account's token, as kubelet does.
func (p *place) token(account, audience string) string {
	p.t.Helper()
	answer, err := p.bed.Client().CoreV1().ServiceAccounts(p.ns).CreateToken(p.t.Context(), account,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}, metav1.CreateOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	return answer.Status.Token
}

// badLogin is a login that Vault refuses, or that does not reach it, and what a person must read then. NS in
// it stands for the place's namespace.
type badLogin struct {
	name    string
	changes map[string]string
	account string // empty: my-app
	token   string // empty: one for the audience vault
	code    codes.Code
	says    []string
}

// explainedLogins has the provider log in in every way that fails, and finds that its sentences are for what the real Vault, with
// both of its methods, and the real network say. Vault's words are not repeated here: a row of the provider's table is found by them.
func (s *suite) explainedLogins(t *testing.T) {
	p := s.newPlace(t, "logins")
	p.makeAccount("somebody-else")
	p.makeAuthMounts()
	driver := s.driver(t)
	for _, c := range append(p.badLogins(), p.badWays()...) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			account := "my-app"
			if c.account != "" {
				account = c.account
			}
			token := c.token
			if token == "" {
				token = p.token(account, "vault")
			}
			uid := strings.ToLower(rand.Text())
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}}
			p.makeFolder(pod)
			t.Cleanup(func() {
				if err := os.RemoveAll(p.podFolder(pod)); err != nil {
					t.Error(err)
				}
			})
			tokens, err := json.Marshal(map[string]map[string]string{"vault": {"token": token}})
			if err != nil {
				t.Fatal(err)
			}
			attributes := map[string]string{
				"secretProviderClass": "db", "roleName": "my-app-role", "objects": credentials(p.role),
				"csi.storage.k8s.io/pod.name": "pod", "csi.storage.k8s.io/pod.namespace": p.ns, "csi.storage.k8s.io/pod.uid": uid,
				"csi.storage.k8s.io/serviceAccount.name": account, "csi.storage.k8s.io/serviceAccount.tokens": string(tokens),
			}
			maps.Copy(attributes, c.changes)
			text, err := json.Marshal(attributes)
			if err != nil {
				t.Fatal(err)
			}
			_, err = driver.Mount(t.Context(), &v1alpha1.MountRequest{
				Attributes: string(text), Permission: "420", TargetPath: "/var/lib/kubelet/pods/" + uid + "/volumes/kubernetes.io~csi/secrets/mount",
			})
			got := status.Convert(err)
			t.Log(got.Message())
			if got.Code() != c.code {
				t.Errorf("answered %s, want %s", got.Code(), c.code)
			}
			for _, want := range append(c.says, p.ns+"/"+account) {
				if want = strings.NewReplacer("NS", p.ns).Replace(want); !strings.Contains(got.Message(), want) {
					t.Errorf("%s\nwant %s", got.Message(), want)
				}
			}
			if found := s.secrets.foundIn(got.Message()); len(found) > 0 || len(got.Message()) > 1000 {
				t.Errorf("%d bytes with %q", len(got.Message()), found)
			}
		})
	}
}

// makeAuthMounts enables auth methods that all lack something, and roles that bind too much.
func (p *place) makeAuthMounts() {
	p.t.Helper()
	type data = map[string]any
	kubernetes, err := p.vault.Logical().ReadWithContext(p.t.Context(), "sys/auth/kubernetes")
	if err != nil || kubernetes == nil {
		p.t.Fatal(err)
	}
	method := kubernetes.Data["type"]
	bound := data{"bound_service_account_names": "my-app", "bound_service_account_namespaces": "*", "audience": "vault", "token_ttl": "1m"}
	with := func(changes data) data {
		role := maps.Clone(bound)
		maps.Copy(role, changes)
		return role
	}
	p.write("auth/kubernetes/role/"+p.role+"-namespace", with(data{"bound_service_account_namespaces": "elsewhere"}))
	p.write("auth/kubernetes/role/"+p.role+"-network", with(data{"token_bound_cidrs": "192.0.2.1/32"}))

	p.write("sys/auth/"+p.role+"/unconfigured", data{"type": method})
	p.write("auth/"+p.role+"/unconfigured/role/my-app-role", bound)

	p.write("sys/auth/"+p.role+"/no-review", data{"type": method})
	p.write("auth/"+p.role+"/no-review/config", data{"kubernetes_host": "https://127.0.0.1:9", "disable_local_ca_jwt": true})
	p.write("auth/"+p.role+"/no-review/role/my-app-role", bound)

	p.write("sys/auth/"+p.role+"/approle", data{"type": "approle"})

	p.write("sys/auth/"+p.role+"/empty", data{"type": "jwt"})

	p.write("sys/auth/"+p.role+"/jwt", data{"type": "jwt"})
	role := func(name string, changes data) {
		role := data{"role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault", "bound_subject": "system:serviceaccount:" + p.ns + ":my-app", "token_ttl": "1m"}
		maps.Copy(role, changes)
		p.write("auth/"+p.role+"/jwt/role/"+name, role)
	}
	role("my-app-role", nil)
	role("claims", data{"bound_claims": data{"/kubernetes.io/namespace": "elsewhere"}})
	role("no-audience", data{"bound_audiences": ""})
	role("oidc", data{"role_type": "oidc", "allowed_redirect_uris": "http://127.0.0.1"})

	if key := p.clusterKey(); key != "" {
		p.write("auth/"+p.role+"/jwt/config", data{"jwt_validation_pubkeys": key, "bound_issuer": "https://kubernetes.default.svc"})
		p.write("sys/auth/"+p.role+"/issuer", data{"type": "jwt"})
		p.write("auth/"+p.role+"/issuer/config", data{"jwt_validation_pubkeys": key, "bound_issuer": "https://elsewhere"})
		p.write("auth/"+p.role+"/issuer/role/my-app-role", data{"role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault"})
	}
	const nobodys = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9\nq9UU8I5mEovUf86QZ7kOBIjJwqnzD1omageEHWwHdBO6B+dFabmdT9POxg==\n-----END PUBLIC KEY-----"
	p.write("sys/auth/"+p.role+"/stranger", data{"type": "jwt"})
	p.write("auth/"+p.role+"/stranger/config", data{"jwt_validation_pubkeys": nobodys})
	p.write("auth/"+p.role+"/stranger/role/my-app-role", data{"role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault"})

	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprint(w, `{"keys":[]}`)
	}))
	p.write("sys/auth/"+p.role+"/keys", data{"type": "jwt"})
	p.write("auth/"+p.role+"/keys/config", data{"jwks_url": keys.URL})
	p.write("auth/"+p.role+"/keys/role/my-app-role", data{"role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault"})
	keys.Close()
}

// clusterKey is the public key of the cluster's service account tokens; empty where the bed does not have it.
func (p *place) clusterKey() string {
	key, err := os.ReadFile(filepath.Join(p.bed.State().Dir, "pki", "service-account.pub"))
	if err != nil && (p.bed.State().Form != bed.Kind || !errors.Is(err, os.ErrNotExist)) {
		p.t.Fatal(err)
	}
	return string(key)
}

// badLogins are refused by Vault.
func (p *place) badLogins() []badLogin {
	const denied, invalid, failing = codes.PermissionDenied, codes.InvalidArgument, codes.FailedPrecondition
	const issuer = `token issuer "https://kubernetes.default.svc", audience ["vault"])`
	at := func(mount string) map[string]string {
		return map[string]string{"vaultAuthMountPath": p.role + "/" + mount}
	}
	role := func(name string) map[string]string {
		return map[string]string{"roleName": name}
	}
	jwt := func(role string) map[string]string {
		return map[string]string{"vaultAuthMountPath": p.role + "/jwt", "roleName": role}
	}
	expired := vaulttest.Identity{Namespace: p.ns, ServiceAccount: "my-app", TTL: -3600e9}.JWT()
	all := []badLogin{
		{"role", role("no-such-role"), "", "", invalid, []string{`create role "no-such-role" on auth mount "kubernetes"`, issuer}},
		{"service account", nil, "somebody-else", "", denied, []string{`add "somebody-else" to bound_service_account_names of role "my-app-role"`, issuer}},
		{"namespace", role(p.role + "-namespace"), "", "", denied, []string{`add "NS" to bound_service_account_namespaces`, issuer}},
		{"audience", nil, "", p.token("my-app", "elsewhere"), denied, []string{`of role "my-app-role" to ["elsewhere"]`, `audience ["elsewhere"])`}},
		{"expired", nil, "", expired, denied, []string{"kubelet brings a new token", "expired at "}},
		{"network", role(p.role + "-network"), "", "", denied, []string{"token_bound_cidrs", issuer}},
		{"no mount", at("nothing"), "", "", denied, []string{"Vault does not say why, so check that the auth mount exists", issuer}},
		{"no review", at("no-review"), "", "", denied, []string{"system:auth-delegator", issuer}},
		{"unconfigured", at("unconfigured"), "", "", failing, []string{"configure the auth mount: write auth/" + p.role + "/unconfigured/config"}},
		{"another method", at("approle"), "", "", failing, []string{`/approle" is of another one`}},
		{"jwt, unconfigured", at("empty"), "", "", invalid, []string{"configure the auth mount"}},
		{"jwt, another cluster's keys", at("stranger"), "", "", invalid, []string{`the cluster whose tokens have the issuer "https://kubernetes.default.svc"`}},
		{"jwt, keys out of reach", at("keys"), "", "", invalid, []string{"let Vault reach the address in jwks_url"}},
	}
	if p.clusterKey() != "" {
		all = append(all, []badLogin{
			{"jwt, role", jwt("no-such-role"), "", "", invalid, []string{`create role "no-such-role"`}},
			{"jwt, service account", jwt("my-app-role"), "somebody-else", "", invalid, []string{`set bound_subject of role "my-app-role" to "system:serviceaccount:NS:somebody-else"`}},
			{"jwt, audience", jwt("my-app-role"), "", p.token("my-app", "elsewhere"), invalid, []string{`to ["elsewhere"]; or name`}},
			{"jwt, role without audience", jwt("no-audience"), "", "", invalid, []string{`set bound_audiences of role "no-audience" to ["vault"]`}},
			{"jwt, claims", jwt("claims"), "", "", invalid, []string{`compare bound_claims of role "claims"`}},
			{"jwt, role for OIDC", jwt("oidc"), "", "", invalid, []string{`set role_type=jwt on role "oidc"`}},
			{"jwt, issuer", at("issuer"), "", "", invalid, []string{`/issuer/config to "https://kubernetes.default.svc"`}},
		}...)
	}
	return all
}

// badWays do not reach Vault. The API server takes the place of a Vault with TLS.
func (p *place) badWays() []badLogin {
	const failing = codes.FailedPrecondition
	state := p.bed.State()
	at := func(address string) map[string]string { return map[string]string{"vaultAddress": address} }
	with := func(address, key, value string) map[string]string {
		return map[string]string{"vaultAddress": address, key: value}
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(state.Host, "0"))
	if err != nil {
		p.t.Fatal(err)
	}
	free := "http://" + listener.Addr().String()
	_ = listener.Close()
	all := []badLogin{
		{"unknown CA", at(state.Server), "", "", failing, []string{"set vaultCACertPath"}},
		{"nobody listens", at(free), "", "", failing, []string{"check the address, the port in it"}},
		{"no such host", at("http://vault.invalid:8200"), "", "", failing, []string{"check the host in vaultAddress"}},
		{"TLS to a server without", at(strings.Replace(state.Vault.Address, "http:", "https:", 1)), "", "", failing, []string{"write http:// in vaultAddress"}},
		// Go's TLS listener says so in plain text, or cuts the connection first: either way the next step names https.
		{"no TLS to a server with it", at(strings.Replace(state.Server, "https:", "http:", 1)), "", "", failing, []string{"https://"}},
		{"no file", with(state.Server, "vaultCACertPath", "/nonexistent/ca.crt"), "", "", failing, []string{"check vaultAddress and the TLS files"}},
		{"not Vault", with(state.Server, "vaultSkipTLSVerify", "true"), "", "", codes.PermissionDenied, []string{"and not in Vault's words; check that the address is Vault's"}},
	}
	if !p.hasKubelet() { // else the provider sees other files
		other := with(state.Server, "vaultCACertPath", filepath.Join(state.Dir, "pki", "ca.crt"))
		other["vaultTLSServerName"] = "vault.example"
		all = append(all, badLogin{"another name", other, "", "", failing,
			[]string{"kubernetes.default.svc, not vault.example; use one of the certificate's names in vaultAddress, or set vaultTLSServerName"}})
	}
	return all
}

// explainedReads starts a pod for everything that Vault can say of a path, and waits for the next step in its event.
func (s *suite) explainedReads(t *testing.T) {
	p := s.newPlace(t, "reads")
	type data = map[string]any
	p.write("sys/policies/acl/"+p.role, data{"policy": `path "*" { capabilities = ["create", "read", "update"] }`})
	for name, changes := range map[string]data{"": nil, "-once": {"token_num_uses": 1}} {
		role := data{
			"bound_service_account_names": "my-app", "bound_service_account_namespaces": p.ns, "audience": "vault", "token_ttl": "20m", "token_policies": p.role,
		}
		maps.Copy(role, changes)
		p.write("auth/kubernetes/role/"+p.role+name, role)
	}
	for _, name := range []string{"deleted", "destroyed"} {
		p.write("secret/data/"+p.role+"/"+name, data{"data": data{"k": "v"}})
	}
	if _, err := s.vault.Logical().DeleteWithContext(t.Context(), "secret/data/"+p.role+"/deleted"); err != nil {
		t.Fatal(err)
	}
	p.write("secret/destroy/"+p.role+"/destroyed", data{"versions": []int{1}})
	p.write("sys/mounts/"+p.role, data{"type": "kv", "options": data{"version": "1"}})
	p.write(p.role+"/limited", data{"k": "v"})
	p.write("sys/quotas/rate-limit/"+p.role, data{"path": p.role + "/", "rate": 0.001, "interval": "1h"})
	p.writeDeadDatabase()

	read := func(path string) func(map[string]string) {
		return func(parameters map[string]string) { parameters["objects"] = object("x", path, "k") }
	}
	asMyApp := func(path string) func(map[string]string) {
		return func(parameters map[string]string) { read(path)(parameters); parameters["roleName"] = "my-app-role" }
	}
	const issue = "- {objectName: x, secretPath: pki/issue/my-app, method: PUT, secretArgs: {ttl: 1h}}"
	p.mustAllComplain([]badClass{
		{"policy", asMyApp("sys/mounts"), `add to a policy of role "my-app-role": path "sys/mounts" { capabilities = ["read"] }`},
		{"policy-version-2", asMyApp("secret/my-app"), `(if "secret" is a KV version 2 engine: "secret/data/my-app")`},
		{"version-2", read("secret/my-app"), `as KV version 2 wants it: "secret/data/my-app"`},
		{"root", read("secret/data"), "name a secret below"},
		{"deleted", read("secret/data/" + p.role + "/deleted"), "undelete the version"},
		{"destroyed", read("secret/data/" + p.role + "/destroyed"), "write the secret again, or pin another version"},
		{"absent", read("secret/data/" + p.role + "/absent"), "check the path, its version and the namespace"},
		{"no-mount", read("nothing/mounted"), "mount an engine there, or correct secretPath"},
		{"no-path", read("database/nothing/x"), "the engine is there and has no such path"},
		{"method", read("pki/issue/my-app"), `"pki/issue/my-app" does not take GET`},
		{"arguments", func(parameters map[string]string) { parameters["objects"] = issue }, "correct secretArgs"},
		{"version", read("secret/data/my-app?version=x"), "correct secretArgs, or the query in secretPath"},
		{"engine-role", read("database/creds/" + p.role + "-none"), "create the role that"},
		{"back-end", read("database/creds/" + p.role + "-dead"), "see whether Vault reaches the back end"},
		{"uses", func(parameters map[string]string) {
			parameters["roleName"], parameters["objects"] = p.role+"-once", credentials(p.role)
		}, `set token_num_uses of role`},
		{"limited", func(parameters map[string]string) {
			parameters["objects"] = object("x", p.role+"/limited", "k") + object("y", p.role+"/limited?again=1", "k")
		}, "raise Vault's rate limit quota"},
	}, map[string]string{"roleName": p.role})
}

// writeDeadDatabase configures a database that nobody serves, with a role.
func (p *place) writeDeadDatabase() {
	p.t.Helper()
	config, err := p.vault.Logical().ReadWithContext(p.t.Context(), "database/config/postgres")
	if err != nil || config == nil {
		p.t.Fatal(err)
	}
	p.write("database/config/"+p.role, map[string]any{
		"plugin_name": config.Data["plugin_name"], "allowed_roles": "*", "verify_connection": false,
		"connection_url": "postgresql://{{username}}:{{password}}@127.0.0.1:9/app?sslmode=disable", "username": "nobody", "password": "nothing",
	})
	p.makeRole(p.role+"-dead", map[string]any{"db_name": p.role})
}
