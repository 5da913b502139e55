package server_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	otelcodes "go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/internal/server"
)

// service answers Mount with a function.
type service struct {
	v1alpha1.UnimplementedCSIDriverProviderServer
	mount func(context.Context) error
}

func (s service) Mount(ctx context.Context, _ *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
	return &v1alpha1.MountResponse{}, s.mount(ctx)
}

// logBuffer may be written to by many.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// running is a server that runs until stop, which returns what Run returned.
type running struct {
	path    string
	client  v1alpha1.CSIDriverProviderClient
	log     *logBuffer
	metrics *prometheus.Registry
	spans   *tracetest.SpanRecorder
	cancel  context.CancelFunc
	stop    func() error
}

func run(t *testing.T, mount func(context.Context) error) *running {
	t.Helper()
	r := &running{path: socketPath(t), log: new(logBuffer), metrics: prometheus.NewRegistry(), spans: tracetest.NewSpanRecorder()}
	s, err := server.New(server.Config{
		Socket: server.NewSocket(r.path), Service: service{mount: mount}, Leave: func() {}, Metrics: r.metrics,
		Log:    slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Tracer: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(r.spans)).Tracer("test"),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r.cancel = cancel
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = r.stop() })
	r.client = dial(t, r.path)
	return r
}

func dial(t *testing.T, path string) v1alpha1.CSIDriverProviderClient {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return v1alpha1.NewCSIDriverProviderClient(conn)
}

// call mounts as the driver does: it waits for the socket.
func call(client v1alpha1.CSIDriverProviderClient) codes.Code {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := client.Mount(ctx, &v1alpha1.MountRequest{Secrets: "canary"}, grpc.WaitForReady(true))
	return status.Code(err)
}

func TestPanicFailsOneCall(t *testing.T) {
	panics := make(chan bool, 2)
	panics <- true
	panics <- false
	r := run(t, func(context.Context) error {
		if <-panics {
			panic(errors.New("canary"))
		}
		return nil
	})
	if got := call(r.client); got != codes.Internal {
		t.Errorf("the panic was answered with %s", got)
	}
	if got := call(r.client); got != codes.OK {
		t.Errorf("the next call was answered with %s", got)
	}
	if err := r.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	log := r.log.String()
	if !strings.Contains(log, "*errors.errorString") || strings.Contains(log, "canary") {
		t.Errorf("the log tells the panic's text, or not its type:\n%s", log)
	}
	families, err := r.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := map[string]float64{}
	for _, m := range families[0].GetMetric() {
		counted[m.GetLabel()[0].GetValue()] += m.GetCounter().GetValue()
	}
	if families[0].GetName() != "leasehold_calls_total" || counted["Internal"] != 1 || counted["OK"] != 1 {
		t.Errorf("%s counted %v", families[0].GetName(), counted)
	}
}

// A Mount is told of in a span below the caller's, whatever comes of it, and nothing else is.
func TestSpansOfCalls(t *testing.T) {
	const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	below := make(chan trace.SpanContext, 3)
	ends := map[string]error{"": nil, "login denied": status.Error(codes.PermissionDenied, "login denied")}
	next := make(chan error, 1)
	r := run(t, func(ctx context.Context) error {
		below <- trace.SpanContextFromContext(ctx)
		return <-next
	})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", traceparent)
	if _, err := r.client.Version(ctx, &v1alpha1.VersionRequest{}, grpc.WaitForReady(true)); status.Code(err) != codes.Unimplemented {
		t.Errorf("Version: %v", err)
	}
	for _, want := range ends {
		next <- want
		if _, err := r.client.Mount(ctx, &v1alpha1.MountRequest{}); status.Code(err) != status.Code(want) {
			t.Errorf("Mount: %v, want %v", err, want)
		}
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if got := len(r.spans.Ended()); got != len(ends) {
		t.Errorf("%d spans of two Mounts", got)
	}
	for _, span := range r.spans.Ended() {
		want, known := ends[span.Status().Description]
		if !known || span.Name() != "Mount" || (span.Status().Code == otelcodes.Error) != (want != nil) {
			t.Errorf("the span %s has the status %+v", span.Name(), span.Status())
		}
		if at := "00-" + span.Parent().TraceID().String() + "-" + span.Parent().SpanID().String() + "-01"; at != traceparent {
			t.Errorf("a Mount is below %s, want the caller's %s", at, traceparent)
		}
		if work := <-below; work.SpanID() != span.SpanContext().SpanID() {
			t.Errorf("the work of a Mount is below %s, want %s", work.SpanID(), span.SpanContext().SpanID())
		}
	}
}

func TestShutdownAnswersMountsUnderWay(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	r := run(t, func(context.Context) error {
		close(began)
		<-release
		return status.Error(codes.NotFound, "nothing there")
	})
	answer := make(chan codes.Code, 1)
	go func() { answer <- call(r.client) }()
	<-began
	r.cancel()
	for code := codes.OK; code != codes.Unavailable; { // until it takes no new calls, on the connection of the one under way either
		_, err := r.client.Version(t.Context(), &v1alpha1.VersionRequest{})
		code = status.Code(err)
	}
	close(release)
	if code := <-answer; code != codes.NotFound {
		t.Errorf("the Mount under way was answered with %s", code)
	}
	if err := r.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Stat(r.path); err != nil {
		t.Errorf("the socket was removed at exit: %v", err)
	}
}

func TestListensAgainWhenItsSocketVanishes(t *testing.T) {
	t.Parallel()
	r := run(t, func(context.Context) error { return nil })
	if got := call(r.client); got != codes.OK {
		t.Fatalf("answered with %s", got)
	}
	if err := os.Remove(r.path); err != nil {
		t.Fatal(err)
	}
	if got := call(dial(t, r.path)); got != codes.OK {
		t.Errorf("answered with %s", got)
	}
	if err := r.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestRunFailsWhereItCannotListen(t *testing.T) {
	s, err := server.New(server.Config{
		Socket: server.NewSocket("/nonexistent/vault.sock"), Service: service{}, Leave: func() {}, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "/nonexistent/") {
		t.Errorf("Run: %v", err)
	}
}

func TestHealth(t *testing.T) {
	reserved, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := reserved.Addr().String()
	_ = reserved.Close()
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "leasehold_test_total", Help: "."}))
	var (
		mu            sync.Mutex
		dead, missing error
	)
	is := func(what *error) func(context.Context) error {
		return func(context.Context) error { mu.Lock(); defer mu.Unlock(); return *what }
	}
	h := server.Health{Addr: addr, Metrics: metrics, Alive: is(&dead), Ready: is(&missing)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()

	tests := []struct {
		path          string
		dead, missing error
		code          int
		body          string
	}{
		{"/livez", nil, errors.New("no pods"), 200, "ok\n"},
		{"/livez", errors.New("a loop stands still"), nil, 503, "a loop stands still\n"},
		{"/readyz", errors.New("a loop stands still"), errors.New("the pods are not listed yet"), 503, "the pods are not listed yet\n"},
		{"/readyz", nil, nil, 200, "ok\n"},
		{"/metrics", nil, nil, 200, "leasehold_test_total 0"},
		{"/", nil, nil, 404, ""},
	}
	for _, test := range tests {
		mu.Lock()
		dead, missing = test.dead, test.missing
		mu.Unlock()
		if code, body := get(t, "http://"+addr+test.path); code != test.code || !strings.Contains(body, test.body) {
			t.Errorf("%s while %v, %v: %d %q", test.path, test.dead, test.missing, code, body)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := (server.Health{Addr: "127.0.0.1:-1", Metrics: metrics}).Run(t.Context()); err == nil {
		t.Error("an impossible address was accepted")
	}
}

// get asks until the server listens.
func get(t *testing.T, url string) (code int, body string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		resp, err := http.Get(url)
		if err != nil {
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			continue
		}
		text, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
}
