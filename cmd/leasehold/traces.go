package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"github.com/leasehold-csi/leasehold/internal/span"
)

const (
	// lastTraces is how long the process waits at its end for the last spans to be taken.
	lastTraces = 5 * time.Second
	// traceTroubleEvery is how often it is logged at most that spans cannot be sent.
	traceTroubleEvery = time.Minute
)

// startTraces has spans sent to where OpenTelemetry's variables say, until stop. The tracer is nil when they say nowhere, or what is not
// understood: traces are no reason not to serve.
func startTraces(ctx context.Context, node string, log *slog.Logger) (tracer trace.Tracer, stop func()) {
	off := func() {}
	if !tracesWanted(log) {
		return nil, off
	}
	protocol := cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"), os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL"), "http/protobuf")
	exporter, err := newExporter(ctx, protocol)
	if err != nil {
		log.Warn("no traces are sent", "err", err)
		return nil, off
	}
	sometimes := rate.Sometimes{Interval: traceTroubleEvery}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		sometimes.Do(func() { log.Warn("traces are lost", "err", err) })
	}))
	source, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(semconv.ServiceName("leasehold"), semconv.ServiceVersion(version), semconv.K8SNodeName(node)),
		resource.WithFromEnv()) // last, so that it wins
	if err != nil {
		otel.Handle(fmt.Errorf("reading OTEL_RESOURCE_ATTRIBUTES: %w", err))
	}
	limits := sdktrace.NewSpanLimits() // those of the environment
	if limits.AttributeValueLengthLimit < 0 {
		limits.AttributeValueLengthLimit = span.MaxText
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(source), sdktrace.WithRawSpanLimits(limits))
	log.Info("sending traces", "endpoint", tracesEndpoint(), "protocol", protocol)
	return provider.Tracer(span.Scope), func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTraces)
		defer cancel()
		if err := provider.Shutdown(limited); err != nil {
			log.Warn("the last traces are lost", "err", err)
		}
	}
}

// tracesWanted: OpenTelemetry's specification has traces sent unless that is said otherwise, to a receiver beside the process, where a node
// has none; so something must ask for them here.
func tracesWanted(log *slog.Logger) bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	switch exporter := os.Getenv("OTEL_TRACES_EXPORTER"); exporter {
	case "":
		return cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")) != ""
	case "otlp":
		return true
	case "none":
		return false
	default:
		log.Warn("no traces are sent: OTEL_TRACES_EXPORTER may be otlp or none", "exporter", exporter)
		return false
	}
}

// newExporter makes an exporter that is told by the environment where to send. It connects later, when there is something to be sent.
func newExporter(ctx context.Context, protocol string) (sdktrace.SpanExporter, error) {
	switch protocol {
	case "grpc":
		return otlptracegrpc.New(ctx)
	case "http/protobuf":
		return otlptracehttp.New(ctx)
	}
	return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL is %q, and may be grpc or http/protobuf", protocol)
}

// tracesEndpoint is where traces go, for people.
func tracesEndpoint() string {
	text := cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT"))
	switch u, err := url.Parse(text); {
	case text == "":
		return "OpenTelemetry's default, on localhost"
	case err != nil || u.Host == "":
		return "unreadable"
	default:
		return u.Scheme + "://" + u.Host // without a user's password
	}
}
