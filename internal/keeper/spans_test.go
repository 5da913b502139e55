//nolint:forbidigo // sleeps inside synctest bubbles only
package keeper_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/render"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

// spans are those that a node makes.
type spans struct {
	*node
	*tracetest.InMemoryExporter
	tracer trace.Tracer
	seen   int // of them, by told
}

// traced runs f on a node that makes spans, and then searches all of them for what nobody may be told.
func traced(t *testing.T, f func(*spans)) {
	bubble(t, func(_ *testing.T, n *node) {
		s := &spans{node: n, InMemoryExporter: tracetest.NewInMemoryExporter()}
		s.tracer = sdktrace.NewTracerProvider(sdktrace.WithSyncer(s)).Tracer("test")
		n.reconfigure(func(c *keeper.Config) { c.Tracer = s.tracer })
		f(s)
		n.stop()
		for _, secret := range append(n.vault.Secrets(), n.vault.JWT("default", "my-app")) {
			for _, span := range s.GetSpans() {
				if text := fmt.Sprintf("%+v", span); strings.Contains(text, secret) {
					n.t.Errorf("a span holds a secret: %s", text)
				}
			}
		}
		n.start() // which bubble stops
	})
}

// call is a Mount below a span of its own, as the server makes it.
func (s *spans) call(req *spec.Request) ([]render.File, error) {
	ctx, call := s.tracer.Start(s.t.Context(), "Mount "+req.Pod.UID)
	defer call.End()
	return s.keeper.Acquire(ctx, req)
}

// told are the spans since it was last called, each with those below it in brackets.
func (s *spans) told() string {
	synctest.Wait()
	all := s.GetSpans()[s.seen:]
	s.seen += len(all)
	slices.SortFunc(all, func(a, b tracetest.SpanStub) int {
		return cmp.Or(a.StartTime.Compare(b.StartTime), cmp.Compare(a.Name, b.Name))
	})
	var tree func(trace.SpanID) string
	tree = func(parent trace.SpanID) string {
		var names []string
		for _, span := range all {
			if span.Parent.SpanID() != parent {
				continue
			}
			name := span.Name
			if below := tree(span.SpanContext.SpanID()); below != "" {
				name += "(" + below + ")"
			}
			names = append(names, name)
		}
		return strings.Join(names, " ")
	}
	return tree(trace.SpanID{})
}

func (s *spans) expectTold(when, want string) {
	s.t.Helper()
	if got := s.told(); got != want {
		s.t.Errorf("%s: the spans %q, want %q", when, got, want)
	}
}

func TestSpansOfALife(t *testing.T) {
	traced(t, func(s *spans) {
		req := s.request("p", append([]string{"k=" + kv + "#k"}, wantCreds...)...)
		if _, err := s.call(req); err != nil {
			s.t.Fatal(err)
		}
		s.expectTold("first mount", "Mount p(health login read read)")
		if _, err := s.call(req); err != nil {
			s.t.Fatal(err)
		}
		s.expectTold("republish", "Mount p")
		time.Sleep(45 * time.Minute)
		const renewal = "Renew(renew_lease renew_token)"
		if got := s.told(); !strings.HasPrefix(got, renewal) || strings.Trim(strings.ReplaceAll(got, renewal, ""), " ") != "" {
			s.t.Errorf("45 minutes later: the spans %q, want nothing but %s", got, renewal)
		}
		s.end("p")
		s.expectTold("the pod's end", "Revoke(renew_lease revoke)")
		s.expect("pod ended", 0, 0, 0)
	})
}

// What a request was about, and what came of it.
func TestSpanOfARequest(t *testing.T) {
	traced(t, func(s *spans) {
		req := s.request("p", wantCreds...)
		if _, err := s.call(req); err != nil {
			s.t.Fatal(err)
		}
		s.vault.BackendDown(true)
		s.end("p")
		time.Sleep(time.Minute)
		all := s.GetSpans()
		requests := slices.DeleteFunc(slices.Clone(all), func(span tracetest.SpanStub) bool { return span.Name != "renew_lease" })
		revocations := slices.DeleteFunc(all, func(span tracetest.SpanStub) bool { return span.Name != "Revoke" })
		if len(requests) == 0 || len(revocations) == 0 {
			s.t.Fatalf("%d requests, %d revocations", len(requests), len(revocations))
		}
		for span, want := range map[*tracetest.SpanStub][]string{
			&requests[0]: {
				"http.request.method=PUT", "http.response.status_code=400", "error.type=back_end_down", "leasehold.vault.path=" + creds, "server.address=vault.test",
			},
			&revocations[0]: {
				"k8s.namespace.name=default", "k8s.pod.name=pod-p", "k8s.pod.uid=p", "leasehold.volume=secrets", "leasehold.vault.role=my-app-role",
			},
		} {
			var got []string
			for _, a := range span.Attributes {
				got = append(got, string(a.Key)+"="+a.Value.String())
			}
			for _, a := range want {
				if !slices.Contains(got, a) {
					s.t.Errorf("the span %s has the attributes %q, and not %q", span.Name, got, a)
				}
			}
			if span.Status.Code != codes.Error || !strings.Contains(span.Status.Description, "failed to renew entry") {
				s.t.Errorf("the span %s has the status %+v", span.Name, span.Status)
			}
		}
		s.vault.BackendDown(false)
	})
}

func TestSpansOfAFailedLogin(t *testing.T) {
	traced(t, func(s *spans) {
		s.vault.DeleteRole("my-app-role")
		if _, err := s.call(s.request("p", wantCreds...)); err == nil {
			s.t.Fatal("it logged in")
		}
		for _, span := range s.GetSpans() {
			if failed := span.Status.Code == codes.Error; failed != (span.Name == "login") {
				s.t.Errorf("the span %s has the status %+v", span.Name, span.Status)
			}
		}
		s.expectTold("failed mount", "Mount p(health login)")
	})
}

// A Mount that waited for its turn is begun at the end of another's work, and its requests are told of below its own span nevertheless.
func TestSpansOfMountsThatWait(t *testing.T) {
	traced(t, func(s *spans) {
		hold := s.vault.Hold(creds, vaulttest.BeforeEffect)
		ctx, leave := context.WithCancel(s.t.Context())
		defer leave()
		for i := range 64 { // as many as one namespace may have under way
			go func() { _, _ = s.keeper.Acquire(ctx, s.request(fmt.Sprint(i), wantCreds...)) }()
		}
		synctest.Wait()
		answered := make(chan error, 1)
		go func() { _, err := s.call(s.request("last", wantCreds...)); answered <- err }()
		synctest.Wait()
		hold.Release()
		if err := <-answered; err != nil {
			s.t.Error(err)
		}
		s.expectTold("the one that waited", "Mount last(login read)")
	})
}

// A retry that joins the work of the Mount before it has a link to the span below which the work is told.
func TestSpanOfARetry(t *testing.T) {
	traced(t, func(s *spans) {
		hold := s.vault.Hold(creds, vaulttest.BeforeEffect)
		req := s.request("p", wantCreds...)
		answered := make(chan error, 2)
		for range 2 {
			go func() { _, err := s.call(req); answered <- err }()
			synctest.Wait()
			time.Sleep(time.Second)
		}
		hold.Release()
		for range 2 {
			if err := <-answered; err != nil {
				s.t.Error(err)
			}
		}
		var linked, worked trace.SpanID
		for _, span := range s.GetSpans() {
			for _, link := range span.Links {
				linked = link.SpanContext.SpanID()
			}
			if span.Name == "login" {
				worked = span.Parent.SpanID()
			}
		}
		if !linked.IsValid() || linked != worked {
			s.t.Errorf("the retry's span links to %s, and the work is below %s", linked, worked)
		}
		s.expectTold("both", "Mount p(health login read) Mount p")
	})
}
