package secret_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/secret"
)

const canary = "hvs.canary"

func TestValueIsNeverPrinted(t *testing.T) {
	v := secret.New(canary)
	type open struct {
		Token secret.Value `json:"token"`
	}
	type closed struct{ token secret.Value } // fmt calls no methods of what it cannot export
	marshalled, err := json.Marshal(map[string]any{"a": open{v}, "b": &v, "c": []secret.Value{v}})
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).Info("x", "v", v, "pointer", &v, "open", open{v}, "closed", closed{v}, slog.Group("g", "v", v))
	}
	texts := map[string]string{"JSON": string(marshalled), "slog": log.String(), "String": v.String(), "error": fmt.Errorf("x: %w", errors.New(v.String())).Error()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%50s", "%.3s"} {
		for _, value := range []any{v, &v, open{v}, closed{v}, []secret.Value{v}, map[string]secret.Value{"k": v}} {
			texts[fmt.Sprintf("%s of %T", verb, value)] = fmt.Sprintf(verb, value)
		}
	}
	for what, text := range texts {
		for _, form := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary), fmt.Sprintf("%d", []byte(canary)), "hvs"} {
			if strings.Contains(text, form) {
				t.Errorf("%s shows the secret: %s", what, text)
			}
		}
	}
	if want := `"a":{"token":"[REDACTED]"}`; !strings.Contains(string(marshalled), want) {
		t.Errorf("JSON %s\nwant %s", marshalled, want)
	}
}

func TestValue(t *testing.T) {
	tests := []struct {
		name string
		v    secret.Value
		text string
		zero bool
	}{
		{"zero", secret.Value{}, "", true},
		{"empty", secret.New(""), "", true},
		{"text", secret.New(canary), canary, false},
	}
	for _, test := range tests {
		if got := test.v.Reveal(); got != test.text {
			t.Errorf("%s: Reveal %q", test.name, got)
		}
		if got := test.v.IsZero(); got != test.zero {
			t.Errorf("%s: IsZero %t", test.name, got)
		}
		if test.v != secret.New(test.text) || test.v == secret.New("another") {
			t.Errorf("%s: values are not compared by their text", test.name)
		}
	}
}
