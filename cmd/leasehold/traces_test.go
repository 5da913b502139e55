package main

import (
	"bytes"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// setTraces leaves of OpenTelemetry's variables only those given.
func setTraces(t *testing.T, variables map[string]string) {
	t.Helper()
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "OTEL_") {
			t.Setenv(name, "") // which means the same as not to be set
		}
	}
	for name, value := range variables {
		t.Setenv(name, value)
	}
}

func TestWhenTracesAreSent(t *testing.T) {
	const endpoint = "http://127.0.0.1:1"
	for _, test := range []struct {
		variables map[string]string
		sent      bool
		logged    string // a part of it; empty for nothing at all
	}{
		{nil, false, ""},
		{map[string]string{"OTEL_SERVICE_NAME": "leasehold"}, false, ""},
		{map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, true, "OpenTelemetry's default"},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}, true, endpoint},
		{map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint + "/v1/traces", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, true, endpoint},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TRACES_EXPORTER": "none"}, false, ""},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SDK_DISABLED": "True"}, false, ""},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TRACES_EXPORTER": "zipkin"}, false, "OTEL_TRACES_EXPORTER may be otlp or none"},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, false, "may be grpc or http/protobuf"},
	} {
		setTraces(t, test.variables)
		var log bytes.Buffer
		tracer, stop := startTraces(t.Context(), "node-1", slog.New(slog.NewTextHandler(&log, nil)))
		stop()
		if sent := tracer != nil; sent != test.sent || !strings.Contains(log.String(), test.logged) || (test.logged == "") != (log.Len() == 0) {
			t.Errorf("with %v: traces are sent: %t, and the log says %q", test.variables, sent, log.String())
		}
		for name := range test.variables {
			t.Setenv(name, "")
		}
	}
}

// What is sent says where it comes from, and the environment has the last word.
func TestTracesNameTheirSource(t *testing.T) {
	got := map[string]string{}
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var in collector.ExportTraceServiceRequest
		if err != nil || proto.Unmarshal(body, &in) != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL, err)
			return
		}
		for _, a := range in.GetResourceSpans()[0].GetResource().GetAttributes() {
			got[a.GetKey()] = a.GetValue().GetStringValue()
		}
		got["span"] = in.GetResourceSpans()[0].GetScopeSpans()[0].GetSpans()[0].GetName()
	}))
	t.Cleanup(receiver.Close)
	source := map[string]string{"span": "Mount", "service.name": "leasehold", "service.version": version, "k8s.node.name": "node-1"}
	named := maps.Clone(source)
	named["service.name"], named["deployment.environment.name"] = "vault-leases", "test"
	for _, test := range []struct{ variables, want map[string]string }{
		{map[string]string{}, source},
		{map[string]string{"OTEL_SERVICE_NAME": "vault-leases", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}, named},
	} {
		test.variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.URL
		setTraces(t, test.variables)
		clear(got)
		tracer, stop := startTraces(t.Context(), "node-1", slog.New(slog.DiscardHandler))
		_, span := tracer.Start(t.Context(), "Mount")
		span.End()
		stop() // waits for the receiver
		maps.DeleteFunc(got, func(name, _ string) bool { return strings.HasPrefix(name, "telemetry.") })
		if !maps.Equal(got, test.want) {
			t.Errorf("received %v, want %v", got, test.want)
		}
	}
}
