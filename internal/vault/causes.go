package vault

import "net/http"

// causes is the table of what Vault is known to answer; the first row that fits wins, so that those with phrases come before those
// that only know the kind. The phrases were measured on Vault 1.21.2 with the kubernetes method (plugin 0.23.1) and the jwt method
// (0.25.0), and the end-to-end tests meet most of them there again; those of other versions and of Vault Enterprise are from the sources.
//
// A next step is one imperative. It does not guess: where Vault gives one text for many reasons, it lists them.
//
// docs/troubleshooting.md shows this table.
var causes = []cause{
	// The reply is not Vault's.
	{says: []string{plainHTTP},
		next: `write https:// in vaultAddress`},
	{says: []string{foreign},
		next: `check that the address is Vault's: a proxy, or another server, answered`},

	// The service account token, as the kubernetes method (403) and the jwt method (400) judge it.
	{op: login, says: []string{"invalid role or secret ID", "invalid secret id", "invalid role ID", "invalid role_id", "missing secret_id"}, // [S]
		next: `issue a new secret-id for the pod's nodePublishSecretRef, which has run out, was used up or belongs to another role, and compare roleId with that of the role`},
	{says: []string{"wrapping token is not valid or does not exist"},
		next: `wrap a new secret-id for the pod's nodePublishSecretRef: a wrapping token can be used once, and this one has run out or was used, maybe by somebody else`},
	{op: login, says: []string{"client certificate must be supplied", "no client certificate found", "tls connection"}, // the cert method
		next: `name an https:// address that leads to Vault itself, not to what ends TLS before it, if {mount} is to log in by certificate (authMethod cert); else another auth mount`},
	{op: login, says: []string{"failed to match all constraints for this login certificate"},
		next: `compare the certificate in the pod's nodePublishSecretRef with the roles of auth mount {mount} (roleName chooses one): its authority, its names, and whether it has run out or was revoked`},
	{op: login, says: []string{"service account name not authorized"},
		next: `add {account} to bound_service_account_names of role {role}, or run the pod with a service account that is listed there`},
	{op: login, says: []string{"namespace not authorized err="},
		next: `let Vault read the labels of namespace {pod namespace} (role {role} selects namespaces by label), or list it in bound_service_account_namespaces`},
	{op: login, says: []string{"namespace not authorized"},
		next: `add {pod namespace} to bound_service_account_namespaces of role {role}`},
	{op: login, says: []string{"invalid audience (aud) claim", "aud claim does not match any bound audience"},
		next: `set audience (kubernetes method) or bound_audiences (jwt method) of role {role} to {audience}; or name what the role wants as the parameter audience, and in tokenRequests of the CSIDriver object`},
	{op: login, says: []string{"no audiences bound to the role"},
		next: `set bound_audiences of role {role} to {audience}`},
	{op: login, says: []string{"invalid issuer (iss) claim"},
		next: `set bound_issuer (jwt method) or issuer (kubernetes method) in {config} to {issuer}, if that is this cluster's`},
	{op: login, says: []string{"invalid subject (sub) claim"},
		next: `set bound_subject of role {role} to {subject}, or bind the role by bound_claims`},
	{op: login, says: []string{"error validating claims"},
		next: `compare bound_claims of role {role} with the claims of a token of service account {subject}`},
	{op: login, says: []string{"token is expired"},
		next: `wait for the next try, to which kubelet brings a new token; if it stays so, compare the clocks of Vault, this node and the API server`},
	{op: login, says: []string{"token not yet valid", "token issued in the future"},
		next: `compare the clocks of Vault and the API server: Vault's is behind`},
	{op: login, says: []string{"fetching keys", "get keys failed"},
		next: `let Vault reach the address in jwks_url or oidc_discovery_url of {config}`},
	{op: login, says: []string{"verifying token signature"},
		next: `give Vault the keys of the cluster whose tokens have the issuer {issuer}: jwt_validation_pubkeys, jwks_url or oidc_discovery_url in {config}`},
	{op: login, says: []string{"service account unauthorized"}, // kubernetes method before 1.9
		next: `put a token into token_reviewer_jwt of {config} that the API server accepts: Vault's own was refused`},
	{op: login, says: []string{"lookup failed"}, // the same; it is a plain "permission denied" today
		next: `check that the pod and its service account still exist, and that {config} names the API server of the cluster whose issuer is {issuer}`},

	// The role and the auth mount.
	{op: login, says: []string{"invalid role name", "could not be found"},
		next: `create role {role} on auth mount {mount}{in namespace}, or correct roleName in the SecretProviderClass`},
	{op: login, says: []string{"oidc role_type is not allowed"},
		next: `set role_type=jwt on role {role}`},
	{op: login, says: []string{"could not load backend configuration", "could not load configuration"},
		next: `configure the auth mount: write {config}`},
	{op: login, says: []string{"failed to determine alias name", "missing role_id", "unsupported path", "unsupported operation"},
		next: `name an auth mount of the kubernetes or jwt method as vaultAuthMountPath: {mount} is of another one`},
	{op: login, kind: NotFound,
		next: `check the name of the auth mount: enable {mount}{in namespace}, or correct vaultAuthMountPath`},
	{op: login, says: []string{"missing client token"},
		next: `enable auth mount {mount}{in namespace}, or correct vaultAuthMountPath: nothing is mounted there`},
	{op: login, kind: Denied,
		next: `Vault does not say why, so check that the auth mount exists{in namespace} and is of the kubernetes or jwt method; ` +
			`that the API server in {config} is that of the cluster whose issuer is {issuer}, and that Vault reaches it; ` +
			`that its token_reviewer_jwt may create tokenreviews there (ClusterRole system:auth-delegator); that the pod still exists; and token_bound_cidrs of the role`},

	// Paths and policies.
	{op: read, kind: InvalidToken,
		next: `find out who revoked the login; the next try makes a new one`},
	{op: read, kind: Denied,
		next: `add to a policy of role {role}: path {path} { capabilities = ["{capability}"] }{version 2}; Vault says the same where nothing is mounted`},
	{op: read, says: []string{saidMisnamed},
		next: `put /data/ after the mount, as KV version 2 wants it: {data path}`},
	{op: read, says: []string{"Non-listing operations on the root of a K/V v2 mount"},
		next: `name a secret below {path}`},
	{op: read, kind: NotFound, says: []string{saidDestroyed},
		next: `write the secret again, or pin another version (?version=N)`},
	{op: read, kind: NotFound, says: []string{saidDeleted},
		next: `undelete the version (vault kv undelete), write the secret again, or pin another version (?version=N)`},
	{op: read, says: []string{"no handler for route"},
		next: `mount an engine there{in namespace}, or correct secretPath`},
	{op: read, says: []string{"unsupported path"},
		next: `correct secretPath: the engine is there and has no such path`},
	{op: read, kind: NotFound,
		next: `check the path{version 2}, its version and the namespace: there is nothing (KV version 2 has /data/ in its paths, version 1 has not)`},

	// What the call itself was like.
	{op: read, status: http.StatusMethodNotAllowed,
		next: `set another method on the object: {path} does not take {method} (secrets are read with GET, issued with PUT)`},
	{op: read, says: []string{"unknown role"},
		next: `create the role that {path} names in its engine, or correct secretPath`},
	{op: read, says: []string{"token had one use left"},
		next: `set token_num_uses of role {role} to 0`},
	{op: read, kind: Invalid, says: []string{"field", "missing", "no data provided", "must be provided", "required"},
		next: `correct secretArgs, or the query in secretPath: {path} wants other arguments`},

	// Vault cannot serve now.
	{says: []string{"Vault is sealed"},
		next: `unseal Vault; it is tried again`},
	{says: []string{"local node not active"},
		next: `see why Vault has no leader (vault operator raft list-peers); it is tried again`},
	{says: []string{"API access to this namespace has been locked"},
		next: `unlock the namespace (vault namespace unlock); it is tried again`},
	{says: []string{"lease count quota exceeded"},
		next: `raise Vault's lease count quota or find what makes so many leases; it is tried again`},
	{says: []string{"quota exceeded"},
		next: `raise Vault's rate limit quota for this path; it is tried again`},
	{says: []string{"upstream rate limited"},
		next: `wait: what the engine asks limits Vault's requests`},
	{says: []string{"required index state not present"},
		next: `nothing, unless it lasts: the node that answered lags behind its primary; it is tried again`},
	{status: statusSecondary,
		next: `use the address of the primary cluster: a disaster recovery secondary answered`},
	{says: []string{"replication DR secondary"},
		next: `use the address of the primary cluster: a disaster recovery secondary answered`},
	{status: statusStandby,
		next: `use the address of the active node or of a load balancer: a performance standby answered`},
	{says: []string{saidForwards},
		next: `use the address of the active node or of a load balancer in vaultAddress, or https:// if that is where it forwards to`},

	// The engine's back end.
	{op: read, kind: Failing, says: backEndWords,
		next: `see whether Vault reaches the back end of {path} (a database, for example) and may log in there; Vault's log has more`},
	{op: login, kind: Failing,
		next: `check Vault's log, and whether Vault reaches what auth mount {mount} asks (the API server in {config}, for example)`},
	{kind: Failing,
		next: `check Vault's log, and whether the engine's back end (a database, for example) can be reached from Vault`},

	// TLS.
	{op: way, says: []string{"server gave HTTP response to HTTPS client", "first record does not look like a TLS handshake"},
		next: `write http:// in vaultAddress, or give Vault's listener a certificate: it speaks no TLS`},
	{op: way, says: []string{"certificate required", "bad certificate", "tls: unknown certificate authority", "tls: handshake failure"},
		next: `set vaultTLSClientCertPath and vaultTLSClientKeyPath to a client certificate that Vault takes`},
	{op: way, kind: Distrusted, says: []string{"unknown authority"},
		next: `set vaultCACertPath (or --vault-tls-ca-cert) to the CA that signed Vault's certificate, a file in the provider's container`},
	{op: way, kind: Distrusted, says: []string{"certificate is valid for", "certificate is not valid for", "IP SANs", "legacy Common Name"},
		next: `use one of the certificate's names in vaultAddress, or set vaultTLSServerName (or --vault-tls-server-name) to one`},
	{op: way, kind: Distrusted, says: []string{"expired"},
		next: `renew the certificate of Vault's listener; or this node's clock is wrong`},
	{op: way, kind: Distrusted,
		next: `check vaultCACertPath or --vault-tls-ca-cert, and vaultTLSServerName`},

	// The network.
	{op: way, kind: Unreachable, says: []string{"no such host", "server misbehaving", "lookup "},
		next: `check the host in vaultAddress, and the DNS that the provider's pod uses (a Service needs its namespace: vault.NAMESPACE.svc)`},
	{op: way, kind: Unreachable, says: []string{"connection refused"},
		next: `check the address, the port in it, and that Vault runs: nobody listens there; it is tried again`},
	{op: way, kind: Unreachable, says: []string{"timeout", "deadline", "no route to host", "network is unreachable"},
		next: `check the address, the network between this node and Vault (NetworkPolicy, firewall, routes), and that Vault runs; it is tried again`},
	{op: way, kind: Unreachable,
		next: `check the address, the network between this node and Vault, and that Vault runs; it is tried again`},
	{op: way, kind: InDoubt, says: []string{"connection reset", "EOF", "broken pipe"}, // a TLS listener may also cut off whom it cannot understand
		next: `check whether vaultAddress should begin with https://, and what cut the connection (a proxy, or a restart of Vault); it is tried again`},
	{op: way, kind: InDoubt,
		next: `check whether Vault is overloaded or its back end slow; it is tried again`},

	// What is left of each kind.
	{op: login, kind: Invalid,
		next: `check role {role} and {config}`},
	{kind: Invalid,
		next: `check the path, and the method and secretArgs that it wants`},
	{kind: NotExecuted,
		next: `check whether Vault is unsealed, has a leader and is not limiting requests; it is tried again`},
	{op: login, kind: Empty,
		next: `check that the address is Vault's, and that the auth mount is one for Kubernetes`},
	{op: login, kind: NotVault,
		next: `check that the address is Vault's, and that the auth mount is one for Kubernetes`},
	{kind: Empty,
		next: `check that the path is one to read a secret from, that its method is right, and that the address is Vault's`},
	{kind: NotVault,
		next: `check that the path is one to read a secret from, that its method is right, and that the address is Vault's`},
	{kind: Unusable,
		next: `check vaultAddress and the TLS files in the provider's container`},
}

// Statuses of sys/health that a load balancer may pass on.
const (
	statusSecondary = 472
	statusStandby   = 473
)
