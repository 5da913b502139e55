// Package span names the spans in which Leasehold tells of its work to OpenTelemetry, and what they say. A call of the driver begins one,
// and so does what a grant needs later; every request to Vault is one below these.
//
// What is put into a span leaves the node: names, paths and words that are fit for anybody's eyes. A token, a JWT, a value, an accessor
// or the id of a lease is none of them.
package span

import (
	"context"
	"net/url"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// Scope is the name of the tracer that makes all spans.
const Scope = "github.com/leasehold-csi/leasehold"

// The spans besides those of requests to Vault, which are named by their operation.
const (
	// Mount is a call of the driver.
	Mount = "Mount"
	// Renew is a renewal of what is due of a grant.
	Renew = "Renew"
	// Revoke is a try to give a grant back.
	Revoke = "Revoke"
)

// MaxText bounds a text in a span, in bytes.
const MaxText = 1024

// text is an attribute of a tenant's making. One that is not UTF-8 would have every span dropped that is sent together with it.
func text(key attribute.Key, value string) attribute.KeyValue {
	return key.String(strings.ToValidUTF8(value, "?"))
}

// Volume says whose work a span is: the pod, its volume, and whom Vault takes it for.
func Volume(pod spec.Pod, volume, class string, auth spec.Auth) []attribute.KeyValue {
	return []attribute.KeyValue{
		text(semconv.K8SNamespaceNameKey, pod.Namespace), text(semconv.K8SPodNameKey, pod.Name), text(semconv.K8SPodUIDKey, pod.UID),
		text("leasehold.volume", volume), text("leasehold.class", class),
		text("leasehold.vault.auth_mount", auth.Mount), text("leasehold.vault.role", auth.Role),
	}
}

// Request begins the span of one request to Vault, below the one that ctx carries, by whose maker it is made.
func Request(ctx context.Context, operation string, attributes ...attribute.KeyValue) (context.Context, trace.Span) {
	tracer := trace.SpanFromContext(ctx).TracerProvider().Tracer(Scope)
	return tracer.Start(ctx, operation, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attributes...))
}

// Server says which server an address leads to. Neither a user nor a path in it is told.
func Server(address string) []attribute.KeyValue {
	if socket, ok := strings.CutPrefix(address, "unix://"); ok {
		return []attribute.KeyValue{text(semconv.ServerAddressKey, socket)}
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil
	}
	of := []attribute.KeyValue{text(semconv.ServerAddressKey, u.Hostname())}
	if port, err := strconv.Atoi(u.Port()); err == nil {
		of = append(of, semconv.ServerPort(port))
	}
	return of
}

// Path is the path in Vault that a request is about.
func Path(path string) attribute.KeyValue { return text("leasehold.vault.path", path) }

// Namespace is the namespace of Vault's that a request is made in.
func Namespace(namespace string) attribute.KeyValue {
	return text("leasehold.vault.namespace", namespace)
}

// End ends a span with what came of it.
func End(s trace.Span, err error) {
	if err != nil && s.IsRecording() {
		said := err.Error()
		s.SetStatus(codes.Error, strings.ToValidUTF8(said[:min(len(said), MaxText)], "?"))
	}
	s.End()
}
