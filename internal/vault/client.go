// Package vault speaks to Vault: one request function, the few calls that the life of a grant needs, and the one place that
// knows what Vault's status codes and texts mean.
//
// Nothing here is tried twice unless Vault, or the network, proved that it was not executed: a login or a read of a dynamic
// secret that is repeated after a cut connection makes a second token or a second set of credentials.
package vault

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/vault/api"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/leasehold-csi/leasehold/internal/effect"
	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/span"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

const (
	// MaxReply bounds the body of one reply, in bytes: more does not fit into the driver's answer anyway.
	MaxReply = 4 << 20

	dialTimeout      = 5 * time.Second
	handshakeTimeout = 10 * time.Second
	idleTimeout      = 2 * time.Minute // longer than the pause between two republishes
	maxConnections   = 64              // to one server without HTTP/2
	maxHeader        = 64 << 10        // of one reply, in bytes
	maxRetryAfter    = 5 * time.Minute // more is a mistake, or malice: no credential outlives such a pause by much
)

// Client speaks to one server. It holds no token: each call is given its own.
type Client struct {
	server    spec.Server
	api       *api.Client
	closeIdle func()
	cluster   clusterMemo
	answered  func(operation, outcome string, took time.Duration)
	about     []attribute.KeyValue // of the server, for spans

	files  string    // how the TLS files looked before they were read
	made   time.Time // when that was
	looked time.Time // when they were last looked at; guarded by the pool
}

func newClient(s spec.Server, rt http.RoundTripper, answered func(operation, outcome string, took time.Duration)) (*Client, error) {
	if answered == nil {
		answered = func(string, string, time.Duration) {}
	}
	trust, err := tlsConfig(s)
	if err != nil {
		return nil, &Error{Kind: Unusable, Op: "using the TLS files", Server: s.Address, Err: err}
	}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dialer(s).DialContext,
		TLSClientConfig:       trust,
		TLSHandshakeTimeout:   handshakeTimeout,
		ResponseHeaderTimeout: grant.RequestLimit,
		IdleConnTimeout:       idleTimeout,
		MaxIdleConnsPerHost:   maxConnections,
		MaxConnsPerHost:       maxConnections,
		ForceAttemptHTTP2:     true,

		MaxResponseHeaderBytes: maxHeader,
	}
	address := s.Address
	if socket, ok := strings.CutPrefix(address, "unix://"); ok {
		// The client library would do the same, with a dialer that knows no deadline.
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer(s).DialContext(ctx, "unix", socket)
		}
		address = "http://localhost" // which no proxy is asked for
	}
	config := &api.Config{
		Address:          address,
		HttpClient:       &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		DisableRedirects: true,
	}
	if rt == nil {
		rt = transport
	}
	config.HttpClient.Transport = careful{rt}
	client, err := api.NewClient(config)
	if err != nil {
		return nil, &Error{Kind: Unusable, Op: "using the address", Server: s.Address, Err: err}
	}
	client.ClearToken()
	client.SetMaxRetries(0)
	client.SetClientTimeout(0) // every call brings its own deadline
	return &Client{server: s, api: client, closeIdle: transport.CloseIdleConnections, answered: answered, about: span.Server(s.Address)}, nil
}

// dialer connects to a server. One that a tenant named may resolve to whatever its owner likes, so the address that is dialled
// decides. Behind a proxy that is the proxy's, which is the operator's, as are the rules of what it reaches.
func dialer(s spec.Server) *net.Dialer {
	d := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	if s.Guarded && !proxied(s.Address) {
		d.Control = func(_, address string, _ syscall.RawConn) error {
			if at, err := netip.ParseAddrPort(address); err != nil || spec.Reserved(at.Addr()) {
				return errReserved
			}
			return nil
		}
	}
	return d
}

func proxied(address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u})
	return err == nil && proxy != nil
}

var errReserved = errors.New("its host leads to a loopback, link-local or metadata address, and no --allow-vault-addr names that")

// careful cuts every body that is larger than MaxReply, and keeps net/http from sending a request again.
type careful struct{ next http.RoundTripper }

func (c careful) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil || r.Body == http.NoBody {
		// net/http repeats a GET without a body when a kept connection dies before the reply (Request.isReplayable), and a
		// read of a dynamic secret would mint twice. A body that it cannot rewind stops that; being empty, it is not sent.
		r = r.Clone(r.Context())
		r.Body, r.GetBody = io.NopCloser(strings.NewReader("")), nil
	}
	resp, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = &boundedBody{ReadCloser: resp.Body, left: MaxReply}
	return resp, nil
}

var errTooLarge = fmt.Errorf("the reply is larger than %d MiB", MaxReply>>20)

type boundedBody struct {
	io.ReadCloser
	left int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left+1)])
	if b.left -= n; b.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}

// The operations that requests are counted by.
const (
	opLogin             = "login"
	opUnwrap            = "unwrap"
	opRead              = "read"
	opRenewToken        = "renew_token"
	opRenewLease        = "renew_lease"
	opRevokeCertificate = "revoke_certificate"
	opRevoke            = "revoke"
	opHealth            = "health"
)

// call is one request.
type call struct {
	counted   string // as one of the operations
	op        string // what is being done, for errors
	method    string
	path      string // without v1/
	secret    string // path of the secret that it is about, when that is another one
	query     string
	namespace string
	token     secret.Value
	index     string // X-Vault-Index that the server must have reached; empty for none
	body      []byte
	hide      []secret.Value // never to be repeated in an error besides the token
}

// answer is a good reply, or what came of another one.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// do sends one request once and returns a good reply.
func (c *Client) do(ctx context.Context, in call) (out answer, err error) {
	began := time.Now()
	ctx, request := c.span(ctx, in)
	defer func() {
		c.answered(in.counted, Outcome(err), time.Since(began))
		tell(request, out.status, err)
	}()
	client := c.api
	if in.namespace != "" {
		client = client.WithNamespace(in.namespace)
	}
	req := client.NewRequest(in.method, "/v1/"+in.path)
	req.ClientToken = in.token.Reveal()
	req.Headers = http.Header{"X-Vault-Request": {"true"}}
	if in.namespace != "" {
		req.Headers.Set(api.NamespaceHeaderName, in.namespace)
	}
	if in.index != "" {
		req.Headers.Set(api.HeaderIndex, in.index)
	}
	if in.query != "" {
		if req.Params, err = url.ParseQuery(in.query); err != nil {
			return out, fmt.Errorf("%s: %w", in.op, err)
		}
	}
	req.BodyBytes = in.body

	var dialing, connected atomic.Bool
	sent := effect.Before("request sent")
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn:      func(string) { dialing.Store(true) },
		GotConn:      func(httptrace.GotConnInfo) { connected.Store(true) },
		WroteRequest: func(httptrace.WroteRequestInfo) { effect.After(sent) },
	})
	//nolint:staticcheck // deprecated for general use, but the one call that takes a token per request and retries nothing
	resp, err := client.RawRequestWithContext(ctx, req)
	if resp != nil {
		effect.After(effect.Before("reply received"))
		defer func() { _ = resp.Body.Close() }()
		out.status, out.header = resp.StatusCode, resp.Header
	}
	if err == nil {
		out.body, err = io.ReadAll(resp.Body)
	}
	if err != nil {
		neverSent := dialing.Load() && !connected.Load()
		return out, c.explain(in, resp, err, neverSent)
	}
	if out.status >= 300 {
		return out, &Error{Kind: NotExecuted, Op: in.op, Server: c.server.Address, Method: in.method, Path: in.path, Status: out.status,
			Messages: []string{saidForwards}}
	}
	return out, nil
}

// span begins the span of a request.
func (c *Client) span(ctx context.Context, in call) (context.Context, trace.Span) {
	ctx, request := span.Request(ctx, in.counted, c.about...)
	if request.IsRecording() {
		request.SetAttributes(semconv.HTTPRequestMethodKey.String(in.method), span.Path(cmp.Or(in.secret, in.path)), span.Namespace(in.namespace))
	}
	return ctx, request
}

// tell ends the span of a request with what came of it: the outcome is the word that it is counted by.
func tell(request trace.Span, status int, err error) {
	if status != 0 {
		request.SetAttributes(semconv.HTTPResponseStatusCode(status))
	}
	if err != nil {
		request.SetAttributes(semconv.ErrorTypeKey.String(Outcome(err)))
	}
	span.End(request, err)
}

// explain turns what the client library returned into an Error without anything that is secret.
func (c *Client) explain(in call, resp *api.Response, err error, neverSent bool) error {
	out := &Error{Op: in.op, Server: c.server.Address, Method: in.method, Path: in.path}
	var answered *api.ResponseError
	switch {
	case errors.Is(err, errTooLarge):
		out.Kind, out.Err = NotVault, errTooLarge
	case errors.Is(err, errReserved):
		out.Kind, out.Err = Unusable, errReserved
	case errors.As(err, &answered):
		out.Status = answered.StatusCode
		out.quote(answered, resp, append(in.hide, in.token))
		out.RetryAfter = retryAfter(resp.Header.Get("Retry-After"))
	default:
		if broken, ok := errors.AsType[*url.Error](err); ok { // its text repeats the URL
			err = broken.Err
		}
		out.Err = err
		out.Kind = classifyTransport(err, neverSent)
	}
	return out
}

// quote puts in what a reply with an error's status says, and what that means.
func (e *Error) quote(answered *api.ResponseError, resp *api.Response, hide []secret.Value) {
	switch {
	case answered.RawError && strings.Contains(strings.Join(answered.Errors, ""), plainHTTP):
		e.Kind, e.Messages = Unusable, []string{plainHTTP}
		return
	case answered.RawError: // what is not Vault's is not repeated
		e.Foreign = true
	case len(answered.Errors) == 0:
		body, _ := io.ReadAll(resp.Body) // the client library has read it, and left a copy
		told, ours := aside(body)
		e.Messages, e.Foreign = presentable(told, hide), !ours
	default:
		e.Messages = presentable(answered.Errors, hide)
	}
	e.Kind = classify(e.Status, e.Messages)
}

// retryAfter reads the header of that name: seconds, as Vault sends them, or a time, as a proxy before it may.
func retryAfter(text string) time.Duration {
	if at, err := http.ParseTime(text); err == nil {
		return min(max(time.Until(at), 0), maxRetryAfter)
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0
	}
	return time.Duration(min(n, uint64(maxRetryAfter/time.Second))) * time.Second
}

// presentable bounds and cleans texts of a server that may not be friendly.
func presentable(texts []string, hide []secret.Value) []string {
	const maxTexts, maxLength = 3, 300
	var out []string
	for _, t := range texts {
		for _, h := range hide {
			if !h.IsZero() {
				t = strings.ReplaceAll(t, h.Reveal(), h.String())
			}
		}
		t = strings.Join(strings.FieldsFunc(t, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' }), " ")
		if out = append(out, shorten(t, maxLength)); len(out) == maxTexts {
			break
		}
	}
	return out
}

// notExecutedPatience is how long a call that was not executed is repeated before its caller hears of it.
const notExecutedPatience = 10 * time.Second

// retry sends a request again for as long as it was proven not executed, up to notExecutedPatience.
func (c *Client) retry(ctx context.Context, in call) (out answer, err error) {
	patience, cancel := context.WithTimeout(ctx, notExecutedPatience)
	defer cancel()
	for pause := 200 * time.Millisecond; ; pause = min(2*pause, 3*time.Second) {
		out, err = c.do(ctx, in)
		var e *Error
		if err == nil || !errors.As(err, &e) || !e.Repeatable() {
			return out, err
		}
		timer := time.NewTimer(max(pause, e.RetryAfter))
		select {
		case <-timer.C:
		case <-patience.Done():
			timer.Stop()
			return out, err
		}
	}
}

// decode reads a reply's JSON.
func (c *Client) decode(op string, body []byte, into any) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return &Error{Kind: Empty, Op: op, Server: c.server.Address, Err: errors.New("Vault answered without content (204 or an empty body)")} //nolint:staticcheck // a name
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if err := dec.Decode(into); err != nil {
		// The decoder's message could quote the reply.
		return &Error{Kind: NotVault, Op: op, Server: c.server.Address, Err: errors.New("the reply is not Vault's JSON")}
	}
	return nil
}
