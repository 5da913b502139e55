package vault_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// says is a server that answers everything alike.
type says struct {
	status             int
	contentType, index string
	body               string
}

func (s says) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: s.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {s.contentType}, "X-Vault-Index": {s.index}, "Retry-After": {s.index}},
		Body:   io.NopCloser(strings.NewReader(s.body)),
	}, nil
}

// FuzzReply: whatever a server answers, a call returns what was asked for or one of our errors, with a text that is bounded, in one
// line and without the secrets of the request.
func FuzzReply(f *testing.F) {
	f.Add(200, "application/json", "", `{"auth":{"client_token":"hvs.x","accessor":"a","lease_duration":3600,"renewable":true},"data":{"a":"b"},"lease_id":"l","lease_duration":60}`)
	f.Add(400, "application/json", "1", `{"errors":["1 error occurred:\n\t* invalid role name \"canary-jwt\"\n\n"]}`)
	f.Add(404, "application/json", "", `{"data":{"data":null,"metadata":{"deletion_time":"x","destroyed":true}},"warnings":["Invalid path"]}`)
	f.Add(502, "text/html", "", `<html>canary-token</html>`)
	f.Add(204, "", "", "")
	f.Add(200, "application/pem-certificate-chain", "", "-----BEGIN")
	f.Add(307, "", "", "")
	f.Add(200, "application/json", "", `{"data":{"certificate":"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n","expiration":1795629635,"serial_number":"20:9f"}}`)
	f.Add(200, "application/json", "", `{"data":{"ttl":3,"rotation_period":60,"last_vault_rotation":"2026-01-01T00:00:00Z"}}`)
	f.Add(400, "application/json", "", `{"errors":["certificate with serial canary-serial not found."]}`)
	f.Fuzz(func(t *testing.T, status int, contentType, index, body string) {
		if status < 200 || status > 599 || status == 429 || status == 412 || status == 503 || status >= 300 && status < 400 || status == 500 {
			t.Skip("these may be tried again, for seconds")
		}
		client, err := (&vault.Pool{RoundTripper: says{status, contentType, index, body}}).Client(spec.Server{Address: "http://vault.test"}, "shop")
		if err != nil {
			t.Fatal(err)
		}
		req := &spec.Request{
			Pod: spec.Pod{Namespace: "shop", Name: "app", UID: "u", ServiceAccount: "app"}, Audience: "vault", JWT: secret.New("canary-jwt"),
			Spec: spec.Spec{Auth: spec.Auth{Mount: "kubernetes", Role: "app"}},
		}
		session := vault.Session{Token: secret.New("canary-token")}
		ctx := t.Context()
		_, loginErr := client.LogIn(ctx, "", req.Spec.Auth, vault.Credentials{JWT: req.JWT})
		_, readErr := client.Read(ctx, session, spec.Read{Method: "GET", Path: "kv/a"})
		reply, issueErr := client.Read(ctx, session, spec.Read{Method: "PUT", Path: "pki/issue/a"})
		if c := reply.Certificate; c != nil {
			const longest = 100 * 365 * 24 * time.Hour
			if after, _ := c.Validity.ReissueAfter(70, 0); after <= 0 || after > longest || c.Validity.Life() > longest {
				t.Errorf("issued again after %s: %+v", after, c.Validity)
			}
		}
		_, renewErr := client.RenewSelf(ctx, session, 0)
		_, leaseErr := client.RenewLease(ctx, session, grant.Lease{ID: secret.New("canary-lease")}, 0)
		for _, call := range []struct {
			err  error
			sent string
		}{{loginErr, "canary-jwt"}, {readErr, "canary-token"}, {issueErr, "canary-token"}, {renewErr, "canary-token"}, {leaseErr, "canary-lease"}, {client.RevokeSelf(ctx, session), "canary-token"},
			{client.RevokeCertificate(ctx, session, "pki", secret.New("canary-serial")), "canary-serial"}} {
			if call.err == nil {
				continue
			}
			if _, ok := errors.AsType[*vault.Error](call.err); !ok {
				t.Errorf("not one of our errors: %v", call.err)
			}
			told := vault.Explain(call.err, req)
			if strings.Contains(told, call.sent) || strings.ContainsAny(told, "\n\r\x00") || len(told) > 1024 || len(call.err.Error()) > 4096 {
				t.Errorf("told %q", told)
			}
		}
	})
}
