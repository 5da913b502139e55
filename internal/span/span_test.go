package span_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/leasehold-csi/leasehold/internal/span"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// What an address tells of its server.
func TestServer(t *testing.T) {
	for address, want := range map[string]string{
		"https://vault.example:8200":              "server.address=vault.example server.port=8200",
		"https://user:canary@vault.example/sub":   "server.address=vault.example",
		"https://[2001:db8::1]:8200":              "server.address=2001:db8::1 server.port=8200",
		"unix:///run/vault/agent.sock":            "server.address=/run/vault/agent.sock",
		"https://vault.%FF%FE.example":            "server.address=vault.?.example",
		"https://vault.example:8200/%zz?a=canary": "",
	} {
		var got []string
		for _, a := range span.Server(address) {
			got = append(got, fmt.Sprintf("%s=%s", a.Key, a.Value.String()))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", address, got, want)
		}
	}
}

// One text that is not UTF-8 has the exporter drop every span that it sends together with it.
func TestHostileTexts(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	_, s := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)).Tracer("test").Start(t.Context(), span.Mount)
	const hostile = "a\xffb"
	s.SetAttributes(span.Volume(spec.Pod{Namespace: hostile, Name: hostile, UID: hostile}, hostile, hostile, spec.Auth{Mount: hostile, Role: hostile})...)
	s.SetAttributes(span.Path(hostile), span.Namespace(hostile))
	span.End(s, errors.New("x"+strings.Repeat("é", span.MaxText))) // whose cut goes through a letter
	got := recorder.Ended()[0]
	var texts []string
	for _, a := range got.Attributes() {
		texts = append(texts, a.Value.String())
	}
	texts = append(texts, got.Status().Description)
	if slices.ContainsFunc(texts, func(text string) bool { return !utf8.ValidString(text) || len(text) > span.MaxText }) || len(texts) != 10 {
		t.Errorf("the texts %q", texts)
	}
}
