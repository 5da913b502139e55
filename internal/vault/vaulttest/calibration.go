package vaulttest

// Step is one request and what a server must answer.
type Step struct {
	Method string
	Path   string // without /v1/
	Body   string // JSON; empty: none
	// Status is the answer's status code.
	Status int
	// Has are texts that the body must hold, in JSON without insignificant blanks.
	Has []string
}

// Sequence is a client's conversation, from its first request without a token.
//
// In path and body $jwt is a service account token that the role admits, $token and $lease are the client_token and
// lease_id last answered; $token is also what each request is sent with, once there is one.
type Sequence struct {
	Name  string
	Steps []Step
}

var logIn = Step{
	Method: "PUT", Path: "auth/kubernetes/login", Body: `{"role":"my-app-role","jwt":"$jwt"}`,
	Status: 200, Has: []string{
		`"lease_duration":1200`, `"renewable":true`, `"token_type":"service"`, `"orphan":true`, `"num_uses":0`,
		`"role":"my-app-role"`,
	},
}

var readCredentials = Step{
	Method: "GET", Path: "database/creds/my-app", Status: 200, Has: []string{
		`"lease_id":"database/creds/my-app/`, `"lease_duration":3600`, `"renewable":true`, `"username":"v-kubernet-my-app-`,
		`"password":"`, `"auth":null`,
	},
}

const (
	invalidToken = `{"errors":["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]}`
	noPolicy     = `{"errors":["1 error occurred:\n\t* permission denied\n\n"]}`
)

// Calibration is what this fake and a real server must agree on. It needs the kubernetes auth role my-app-role
// (token_ttl 20m, no maximum of its own, default policy), which may read database/creds/ and secret/data/, the database
// role my-app (default_ttl 1h, max_ttl 24h), and a KV version 2 engine at secret/. Nothing may be called "absent".
var Calibration = []Sequence{
	{"a token ends", []Step{
		logIn,
		{Method: "GET", Path: "auth/token/lookup-self", Status: 200, Has: []string{
			`"path":"auth/kubernetes/login"`, `"creation_ttl":1200`, `"type":"service"`, `"orphan":true`,
		}},
		{Method: "PUT", Path: "auth/token/revoke-self", Status: 204},
		{Method: "PUT", Path: "auth/token/revoke-self", Status: 403, Has: []string{invalidToken}},
		{Method: "GET", Path: "database/creds/my-app", Status: 403, Has: []string{invalidToken}},
	}},
	{"a token is renewed", []Step{
		logIn,
		{Method: "PUT", Path: "auth/token/renew-self", Body: `{"increment":"300s"}`, Status: 200,
			Has: []string{`"lease_duration":300`, `"client_token":"$token"`, `"warnings":null`}},
		{Method: "PUT", Path: "auth/token/renew-self", Body: `{"increment":7200}`, Status: 200,
			Has: []string{`"lease_duration":7200`}},
		{Method: "PUT", Path: "auth/token/renew-self", Status: 200, Has: []string{`"lease_duration":1200`}},
		{Method: "PUT", Path: "auth/token/renew-self", Body: `{"increment":-5}`, Status: 400,
			Has: []string{`Field validation failed: error converting input for field \"increment\": cannot provide negative value '-5'`}},
		{Method: "PUT", Path: "auth/token/renew-self", Body: `{bad`, Status: 500,
			Has: []string{`{"errors":["invalid character 'b' looking for beginning of `}},
		{Method: "GET", Path: "auth/token/renew-self", Status: 403, Has: []string{noPolicy}},
		{Method: "PUT", Path: "auth/token/renew-self", Body: `{"increment":10000000}`, Status: 200,
			Has: []string{`"lease_duration":2764`, `TTL of \"2777h46m40s\" exceeded the effective max_ttl of \"76`}},
		{Method: "PUT", Path: "auth/token/revoke-self", Status: 204},
	}},
	{"a lease is renewed", []Step{
		logIn,
		readCredentials,
		{Method: "PUT", Path: "sys/leases/lookup", Body: `{"lease_id":"$lease"}`, Status: 200,
			Has: []string{`"id":"$lease"`, `"renewable":true`, `"last_renewal":null`}},
		{Method: "PUT", Path: "sys/leases/renew", Body: `{"lease_id":"$lease","increment":30}`, Status: 200,
			Has: []string{`"lease_id":"$lease"`, `"lease_duration":30`, `"renewable":true`}},
		{Method: "PUT", Path: "sys/leases/renew", Body: `{"lease_id":"$lease"}`, Status: 200,
			Has: []string{`"lease_duration":3600`}},
		{Method: "PUT", Path: "sys/leases/revoke", Body: `{"lease_id":"$lease"}`, Status: 403, Has: []string{noPolicy}},
		{Method: "PUT", Path: "auth/token/revoke-self", Status: 204},
	}},
	{"no such lease", []Step{
		logIn,
		{Method: "PUT", Path: "sys/leases/renew", Body: `{"lease_id":"database/creds/my-app/x"}`, Status: 400,
			Has: []string{`{"errors":["lease not found"]}`}},
		{Method: "PUT", Path: "sys/leases/lookup", Body: `{"lease_id":"database/creds/my-app/x"}`, Status: 400,
			Has: []string{`{"errors":["invalid lease"]}`}},
		{Method: "PUT", Path: "sys/leases/renew", Body: `{}`, Status: 400, Has: []string{"lease_id must be specified"}},
		{Method: "PUT", Path: "auth/token/revoke-self", Status: 204},
	}},
	{"nothing there", []Step{
		logIn,
		{Method: "GET", Path: "database/creds/absent", Status: 400, Has: []string{`{"errors":["unknown role: absent"]}`}},
		{Method: "GET", Path: "secret/data/absent", Status: 404, Has: []string{`{"errors":[]}`}},
		{Method: "GET", Path: "elsewhere/x", Status: 403, Has: []string{noPolicy}},
		{Method: "PUT", Path: "auth/token/revoke-self", Status: 204},
	}},
	{"refused logins", []Step{
		{Method: "PUT", Path: "auth/kubernetes/login", Body: `{"jwt":"$jwt"}`, Status: 400, Has: []string{"missing role"}},
		{Method: "PUT", Path: "auth/kubernetes/login", Body: `{"role":"my-app-role"}`, Status: 400,
			Has: []string{`{"errors":["missing jwt"]}`}},
		{Method: "PUT", Path: "auth/kubernetes/login", Body: `{"role":"zzz","jwt":"$jwt"}`, Status: 400,
			Has: []string{`{"errors":["invalid role name \"zzz\""]}`}},
		{Method: "PUT", Path: "auth/kubernetes/login", Body: `{"role":"my-app-role","jwt":"garbage"}`, Status: 403,
			Has: []string{"permission denied"}},
		{Method: "PUT", Path: "auth/nowhere/login", Body: `{"role":"my-app-role","jwt":"$jwt"}`, Status: 403,
			Has: []string{"permission denied"}},
		{Method: "GET", Path: "database/creds/my-app", Status: 403, Has: []string{`{"errors":["permission denied"]}`}},
	}},
	{"health", []Step{
		{Method: "GET", Path: "sys/health", Status: 200, Has: []string{`"sealed":false`, `"cluster_id":"`}},
	}},
}
