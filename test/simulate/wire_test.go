//nolint:forbidigo // sleeps inside synctest bubbles only
package simulate_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

// The kinds of what can happen to one request to Vault.
const (
	requestLost = "request lost"
	replyLost   = "reply lost"
	killBefore  = "kill before a request"
	killAfter   = "kill after a reply"
	refused     = "connection refused"
	internal    = "500 before the effect"
	failedLate  = "500 after the effect"
	sealedOnce  = "503 sealed, once"
	limited     = "429 with Retry-After"
	redirected  = "307 of a leader change"
	noLeader    = "500 without a leader"
	slow        = "slow reply"
)

var perRequest = odds{
	{requestLost, 0.006}, {replyLost, 0.006}, {killBefore, 0.003}, {killAfter, 0.004}, {refused, 0.006}, {internal, 0.006},
	{failedLate, 0.004}, {sealedOnce, 0.006}, {limited, 0.006}, {redirected, 0.006}, {noLeader, 0.006}, {slow, 0.01},
}

// asked is what the wire knows of a request.
type asked struct {
	op  string // login, read (of credentials), kv, static, issue, revoke-certificate, renew, renew-self, revoke-self, health
	pod string // whose, as far as the request tells
}

// wire is one process's way to Vault. A kill raises the generation: what an old process still sends never arrives.
type wire struct {
	w *world
	p *process
}

var errKilled = errors.New("the process was killed")

// RoundTrip implements http.RoundTripper.
func (x *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := body(r)
	if err != nil {
		return nil, err
	}
	a := x.w.whose(r, body)
	if x.p.dead() {
		return nil, errKilled
	}
	fault := ""
	if !x.w.calm() {
		fault = x.w.dice.pick(a.pod, a.op, perRequest)
	}
	if fault != "" {
		x.w.happened(fault, "%s of %s", a.op, a.pod)
	}
	if fault != slow { // some way, so that a process can die between a reply and the next request
		time.Sleep(x.w.dice.between(a.pod, "way of "+a.op, time.Millisecond, 20*time.Millisecond))
		if x.p.dead() {
			return nil, errKilled
		}
	}
	if x.w.again(a) {
		x.w.violated("in doubt", a.pod, "is sent a read again within the Mount in which the one before was cut off")
	}
	switch fault {
	case killBefore:
		x.p.kill()
		return nil, errKilled
	case requestLost:
		x.w.doubt(a)
		return nil, cut(r)
	case refused:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	case internal:
		return answer(r, http.StatusInternalServerError, "internal error"), nil
	case sealedOnce:
		return answer(r, http.StatusServiceUnavailable, "Vault is sealed"), nil
	case noLeader:
		return answer(r, http.StatusInternalServerError, "local node not active but active cluster node not found"), nil
	case limited:
		out := answer(r, http.StatusTooManyRequests, "request path: rate limit quota exceeded")
		out.Header.Set("Retry-After", strconv.Itoa(1+int(x.w.dice.roll(a.pod, "retry-after")*20)))
		return out, nil
	case redirected:
		out := answer(r, http.StatusTemporaryRedirect)
		out.Header.Set("Location", "http://other.test:8200"+r.URL.Path)
		return out, nil
	case slow:
		type result struct {
			resp *http.Response
			err  error
		}
		came := make(chan result, 1)
		release := func() {}
		if a.op == "read" { // Vault has let it in, and is at it
			release = x.w.vault.Hold(r.Method+" "+strings.TrimPrefix(r.URL.Path, "/v1/"), vaulttest.BeforeEffect).Release
		}
		slowness := x.w.dice.between(a.pod, "slowness of "+a.op, time.Second, 50*time.Second)
		x.w.background.Go(func() { time.Sleep(slowness); release() })
		if a.op == "read" && x.w.dice.roll(a.pod, "killed while it waits") < 0.3 {
			x.w.background.Go(func() { time.Sleep(min(time.Second, slowness/2)); x.p.kill() })
		}
		x.w.background.Go(func() {
			if a.op != "read" {
				time.Sleep(slowness)
			}
			resp, err := x.deliver(r, a, slow) //nolint:bodyclose // the caller's, or nobody's: it is no socket
			came <- result{resp, err}
		})
		select {
		case out := <-came:
			return out.resp, out.err
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	return x.deliver(r, a, fault)
}

// deliver has Vault do what the request asks for: what has left is done, whoever still waits for it.
func (x *wire) deliver(r *http.Request, a asked, fault string) (*http.Response, error) {
	if fault != slow && x.p.dead() { // a slow one had left before
		return nil, errKilled
	}
	if a.op == "revoke-self" && x.w.backEndIsDown(r.Header.Get("X-Vault-Token")) {
		x.w.violated("I2", a.pod, "is revoked while its leases' back end is down: Vault would try a few times and leave them for ever")
	}
	if a.op == "revoke-self" {
		x.w.mu.Lock()
		x.w.gaveBack[x.w.accessors[r.Header.Get("X-Vault-Token")]] = true
		x.w.mu.Unlock()
	}
	resp, err := x.w.vault.RoundTrip(r.WithContext(context.WithoutCancel(r.Context())))
	if err != nil {
		return nil, err
	}
	lost := fault == replyLost || fault == killAfter || fault == failedLate || x.p.dead() || r.Context().Err() != nil
	if a.op != "health" {
		x.w.say("Vault answers %s of %s with %d, lost %t", a.op, a.pod, resp.StatusCode, lost)
	}
	x.w.replied(a, resp, lost)
	switch {
	case fault == killAfter:
		x.p.kill()
		return nil, errKilled
	case fault == replyLost:
		x.w.doubt(a)
		return nil, cut(r)
	case fault == failedLate:
		return answer(r, http.StatusInternalServerError, "internal error"), nil
	case x.p.dead():
		return nil, errKilled
	case r.Context().Err() != nil:
		return nil, r.Context().Err()
	}
	return resp, nil
}

func trace(r *http.Request) *httptrace.ClientTrace {
	if t := httptrace.ContextClientTrace(r.Context()); t != nil {
		return t
	}
	return &httptrace.ClientTrace{}
}

// cut is a connection that ends after the request was sent.
func cut(r *http.Request) error {
	t := trace(r)
	if t.GetConn != nil {
		t.GetConn(r.URL.Host)
	}
	if t.GotConn != nil {
		t.GotConn(httptrace.GotConnInfo{})
	}
	return io.EOF
}

func body(r *http.Request) ([]byte, error) {
	if r.Body == nil {
		return nil, nil
	}
	b, err := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(b))
	return b, err
}

func answer(r *http.Request, status int, texts ...string) *http.Response {
	b, _ := json.Marshal(map[string][]string{"errors": texts})
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(b)), ContentLength: int64(len(b)), Request: r,
	}
}

// whose tells what a request is and for which pod: roles and paths bear the pod's name, tokens are known from their login.
func (w *world) whose(r *http.Request, body []byte) asked {
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	var in struct {
		Role  string `json:"role"`
		Lease string `json:"lease_id"`
	}
	_ = json.Unmarshal(body, &in)
	owner := func(path string) string { return strings.Split(path+"//", "/")[2] }
	switch {
	case strings.HasSuffix(path, "/login"):
		return asked{"login", in.Role}
	case path == "sys/leases/renew":
		return asked{"renew", owner(in.Lease)}
	case strings.HasPrefix(path, "auth/token/"):
		w.mu.Lock()
		defer w.mu.Unlock()
		return asked{strings.TrimPrefix(path, "auth/token/"), w.tokens[r.Header.Get("X-Vault-Token")]}
	case strings.HasPrefix(path, "sys/"):
		return asked{"health", "node"}
	}
	switch {
	case strings.HasPrefix(path, "secret/"):
		return asked{"kv", owner(path)}
	case strings.HasPrefix(path, "database/static-creds/"):
		return asked{"static", owner(path)}
	case path == "pki/revoke":
		w.mu.Lock()
		defer w.mu.Unlock()
		return asked{"revoke-certificate", w.tokens[r.Header.Get("X-Vault-Token")]}
	case strings.HasPrefix(path, "pki/"):
		return asked{"issue", owner(path)}
	}
	return asked{"read", owner(path)}
}

// backEndIsDown tells whether it has been for a while, and the token, not revoked before, has leases that somebody knows of and that Vault has not given up,
// living ones or such as ended and wait for the back end.
func (w *world) backEndIsDown(token string) bool {
	leases, tokens := w.vault.Leases(), w.vault.Tokens()
	w.mu.Lock()
	defer w.mu.Unlock()
	// What ran out by itself is revoked by Vault already, whoever asks for it.
	lives := slices.ContainsFunc(tokens, func(t vaulttest.Token) bool { return t.Accessor == w.accessors[token] && !t.Revoked && t.TTL > 0 })
	return lives && !w.backEndDown.IsZero() && time.Since(w.backEndDown) > time.Minute &&
		slices.ContainsFunc(leases, func(l vaulttest.Lease) bool {
			return l.Accessor == w.accessors[token] && !w.gaveBack[l.Accessor] && w.heard[l.ID] && !l.Revoked && !l.Irrevocable
		})
}

// doubt notes that a read of credentials was cut off in the Mount under way; again tells of another one in the same Mount.
func (w *world) doubt(a asked) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.podLocked(a.pod); p != nil && a.op == "read" {
		p.doubtful = p.mounts
	}
}

func (w *world) again(a asked) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.podLocked(a.pod)
	return p != nil && a.op == "read" && p.doubtful != 0 && p.doubtful == p.mounts
}

func (w *world) podLocked(name string) *pod {
	i := slices.IndexFunc(w.pods, func(p *pod) bool { return p.name == name })
	if i < 0 {
		return nil
	}
	return w.pods[i]
}

// replied remembers what Vault gave out, and whether anybody was there to take it.
func (w *world) replied(a asked, resp *http.Response, lost bool) {
	b, _ := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(bytes.NewReader(b))
	var out struct {
		Lease string `json:"lease_id"`
		Data  struct {
			Username, Password, Certificate string
			Serial                          string `json:"serial_number"`
			Key                             string `json:"private_key"`
		}
		Auth *struct {
			Token    string `json:"client_token"`
			Accessor string
		}
	}
	if json.Unmarshal(b, &out) != nil || resp.StatusCode != http.StatusOK {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case a.op == "login" && out.Auth != nil:
		w.tokens[out.Auth.Token], w.accessors[out.Auth.Token], w.born[out.Auth.Accessor] = a.pod, out.Auth.Accessor, time.Now()
		if lost {
			w.lost[out.Auth.Accessor] = true
		}
		w.gaveLocked(a)
	case a.op == "read" && out.Data.Username != "":
		w.pairs[out.Data.Username] = out.Data.Password
		w.issued[out.Data.Username] = out.Lease
		w.heard[out.Lease] = !lost
		w.gaveLocked(a)
	case a.op == "issue" && out.Data.Serial != "":
		w.count["certificates issued"]++
		w.certificates[out.Data.Serial] = &certificate{pem: out.Data.Certificate, key: out.Data.Key, born: time.Now(), lost: lost}
		w.issuedLocked(a)
	case a.op == "revoke-certificate":
		w.count["certificates revoked"]++
	case strings.HasPrefix(a.op, "renew"):
		w.count["renewals"]++
		if a.op == "renew" && lost {
			w.vague[out.Lease] = true
		}
	case a.op == "revoke-self":
		w.count["revocations"]++
	}
}
