package vaulttest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"
)

// call is one request as it arrived.
type call struct {
	method string // PUT for POST
	path   string // without /v1/
	query  url.Values
	header http.Header
	body   []byte
	gone   func() error // non-nil once the client gave up
	heldAt Stage        // the last stage at which it was held
}

func newCall(r *http.Request) (*call, error) {
	c := &call{
		method: strings.Replace(r.Method, http.MethodPost, http.MethodPut, 1),
		path:   strings.TrimPrefix(r.URL.Path, "/v1/"),
		query:  r.URL.Query(),
		header: r.Header.Clone(),
		gone:   r.Context().Err,
	}
	if r.Body == nil {
		return c, nil
	}
	defer func() { _ = r.Body.Close() }()
	var err error
	c.body, err = io.ReadAll(r.Body)
	return c, err
}

func (c *call) writes() bool { return c.method == http.MethodPut }

// reply is an answer about to be sent. The zero reply is a connection that is cut instead.
type reply struct {
	status int
	header http.Header
	body   []byte
	leased bool
}

// envelope is the JSON form of every answer that is not an error.
type envelope struct {
	RequestID     string   `json:"request_id"`
	LeaseID       string   `json:"lease_id"`
	Renewable     bool     `json:"renewable"`
	LeaseDuration int64    `json:"lease_duration"`
	Data          any      `json:"data"`
	WrapInfo      any      `json:"wrap_info"`
	Warnings      []string `json:"warnings"`
	Auth          any      `json:"auth"`
}

func (e envelope) reply(status int) reply {
	e.RequestID = newID()
	r := jsonReply(status, e)
	r.leased = e.LeaseID != ""
	return r
}

func jsonReply(status int, body any) reply {
	b, err := json.Marshal(body)
	if err != nil {
		panic(fmt.Sprintf("vaulttest: encoding an answer: %v", err))
	}
	return reply{
		status: status,
		header: http.Header{"Content-Type": {"application/json"}, "Cache-Control": {"no-store"}},
		body:   append(b, '\n'),
	}
}

// failure is an error answer; without texts it is the empty list that Vault sends for a plain 404.
func failure(status int, texts ...string) reply {
	return jsonReply(status, map[string][]string{"errors": append([]string{}, texts...)})
}

// wrapped is how Vault shows errors that passed through its request handler.
func wrapped(status int, texts ...string) reply {
	count := "1 error"
	if len(texts) > 1 {
		count = fmt.Sprintf("%d errors", len(texts))
	}
	return failure(status, fmt.Sprintf("%s occurred:\n\t* %s\n\n", count, strings.Join(texts, "\n\t* ")))
}

// ServeHTTP implements [http.Handler].
func (v *Vault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.requests.Add(1)
	defer v.requests.Done()
	c, err := newCall(r)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	out := v.serve(c)
	if out.status == 0 {
		panic(http.ErrAbortHandler)
	}
	maps.Copy(w.Header(), out.header)
	w.WriteHeader(out.status)
	_, _ = w.Write(out.body)
}

// RoundTrip implements [http.RoundTripper]. As with a socket, a caller that gives up (its context ends) leaves the
// request behind: what it does in Vault may still happen.
func (v *Vault) RoundTrip(r *http.Request) (*http.Response, error) {
	c, err := newCall(r)
	if err != nil {
		return nil, fmt.Errorf("reading the request body: %w", err)
	}
	v.mu.Lock()
	down, cut := v.down, v.cut
	v.mu.Unlock()
	trace := httptrace.ContextClientTrace(r.Context()) // clients learn from it whether a request was ever sent
	if trace != nil && trace.GetConn != nil {
		trace.GetConn(r.URL.Host)
	}
	if down {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	if trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	answered := make(chan reply, 1)
	v.requests.Go(func() { answered <- v.serve(c) })
	select {
	case out := <-answered:
		if out.status == 0 {
			return nil, io.EOF
		}
		return out.response(r), nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	case <-cut:
		return nil, &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
	}
}

func (r reply) response(request *http.Request) *http.Response {
	return &http.Response{
		Status:        fmt.Sprintf("%d %s", r.status, http.StatusText(r.status)),
		StatusCode:    r.status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        r.header.Clone(),
		Body:          io.NopCloser(bytes.NewReader(r.body)),
		ContentLength: int64(len(r.body)),
		Request:       request,
	}
}

// step is one indivisible part of a request's effect. It returns the answer, or the step to take after it.
type step func(now time.Time) (reply, step)

// serve takes a request from arrival to answer. The lock is never held across a hold.
func (v *Vault) serve(c *call) reply {
	out, next := v.arrive(c)
	if next == nil {
		return out
	}
	for stage := BeforeEffect; next != nil; stage = MidEffect {
		v.hold(c, stage)
		now := v.enter()
		if v.down { // the server went away under the request
			v.mu.Unlock()
			return reply{}
		}
		out, next = next(now)
		v.mu.Unlock()
	}
	v.hold(c, AfterEffect)
	if v.dropped(c) {
		return reply{}
	}
	return out
}

// listener is the socket side. It exists so that Down can refuse connections and come back on the same address.
type listener struct {
	t      testing.TB
	addr   string
	server *http.Server
}

// Serve makes the server reachable on a loopback socket until the test ends and returns its URL.
func (v *Vault) Serve(t testing.TB) string {
	l := &listener{t: t, addr: "127.0.0.1:0"}
	l.start(v)
	t.Cleanup(l.stop)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.listener, v.URL = l, "http://"+l.addr
	return v.URL
}

func (l *listener) start(v *Vault) {
	socket, err := net.Listen("tcp", l.addr)
	if err != nil {
		l.t.Errorf("vaulttest: listening: %v", err)
		return
	}
	l.addr = socket.Addr().String()
	server := &http.Server{Handler: v, ReadHeaderTimeout: time.Minute}
	l.server = server
	v.requests.Go(func() {
		if err := server.Serve(socket); !errors.Is(err, http.ErrServerClosed) {
			l.t.Errorf("vaulttest: serving: %v", err)
		}
	})
}

// stop closes the socket and every connection; requests that are being served go on without a client.
func (l *listener) stop() { _ = l.server.Close() }
