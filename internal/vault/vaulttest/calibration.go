package vaulttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
)

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
// In body and Has $jwt is a service account token that the role admits, $token, $lease and $serial are the client_token, lease_id and
// serial_number last answered; $token is also what each request is sent with, once there is one.
type Sequence struct {
	Name  string
	Steps []Step
}

var answered = regexp.MustCompile(`"(client_token|lease_id|serial_number)":"([^"]+)"`)

// Run has the conversation with the server at url. The error says each answer that is not what it must be.
func (s Sequence) Run(ctx context.Context, client *http.Client, url, jwt string) error {
	last := map[string]string{}
	fill := func(text string) string {
		return strings.NewReplacer("$jwt", jwt, "$token", last["client_token"], "$lease", last["lease_id"], "$serial", last["serial_number"]).Replace(text)
	}
	var faults []error
	for _, step := range s.Steps {
		request, err := http.NewRequestWithContext(ctx, step.Method, url+"/v1/"+step.Path, strings.NewReader(fill(step.Body)))
		if err != nil {
			return err
		}
		request.Header.Set("X-Vault-Request", "true")
		request.Header.Set("X-Vault-Token", last["client_token"])
		answer, err := client.Do(request)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if err != nil {
			return err
		}
		text := string(body)
		for _, found := range answered.FindAllStringSubmatch(text, -1) {
			last[found[1]] = found[2]
		}
		if answer.StatusCode != step.Status {
			faults = append(faults, fmt.Errorf("%s %s: status %d, want %d: %s", step.Method, step.Path, answer.StatusCode, step.Status, text))
		}
		for _, want := range step.Has {
			if !strings.Contains(text, fill(want)) {
				faults = append(faults, fmt.Errorf("%s %s: %s\nlacks %s", step.Method, step.Path, text, want))
			}
		}
	}
	return errors.Join(faults...)
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
// (token_ttl 20m, no maximum of its own, default policy), which may read database/creds/, database/static-creds/ and secret/data/ and
// use all of pki/, the database roles my-app (default_ttl 1h, max_ttl 24h) and, static, fixed (rotation_period 1h), the role my-app of a PKI
// engine (keys of type ec), and a KV version 2 engine at secret/. Nothing may be called "absent".
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
	{"a certificate", []Step{
		logIn,
		{Method: "PUT", Path: "pki/issue/my-app", Body: `{"common_name":"app.local","ttl":"5m"}`, Status: 200, Has: []string{
			`"lease_id":""`, `"lease_duration":0`, `"renewable":false`, `"auth":null`, `"private_key_type":"ec"`, `"expiration":`,
			`"ca_chain":["-----BEGIN CERTIFICATE-----`, `"certificate":"-----BEGIN CERTIFICATE-----`, `"issuing_ca":"-----BEGIN CERTIFICATE-----`,
		}},
		{Method: "PUT", Path: "pki/issue/my-app", Body: `{"ttl":"5m"}`, Status: 400},
		{Method: "PUT", Path: "pki/revoke", Body: `{"serial_number":"$serial"}`, Status: 200, Has: []string{`"revocation_time":1`, `"state":"revoked"`}},
		{Method: "PUT", Path: "pki/revoke", Body: `{"serial_number":"$serial"}`, Status: 200, Has: []string{`"revocation_time":1`}},
		{Method: "PUT", Path: "pki/revoke", Body: `{"serial_number":"00:11:22"}`, Status: 400, Has: []string{"certificate with serial 00:11:22 not found"}},
		{Method: "PUT", Path: "auth/token/revoke-self", Status: 204},
	}},
	{"a static role", []Step{
		logIn,
		{Method: "GET", Path: "database/static-creds/fixed", Status: 200, Has: []string{
			`"lease_id":""`, `"lease_duration":0`, `"renewable":false`, `"username":"fixed"`, `"password":"`, `"rotation_period":3600`, `"ttl":3`,
			`"last_vault_rotation":"2`,
		}},
		{Method: "GET", Path: "database/static-creds/absent", Status: 400, Has: []string{"unknown role: absent"}},
		{Method: "PUT", Path: "auth/token/revoke-self", Status: 204},
	}},
	{"health", []Step{
		{Method: "GET", Path: "sys/health", Status: 200, Has: []string{`"sealed":false`, `"cluster_id":"`}},
	}},
}
