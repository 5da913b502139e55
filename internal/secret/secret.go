// Package secret holds text that must not leave the path Vault -> memory -> tmpfs.
//
// A [Value] prints as [REDACTED] under every verb, in JSON and in slog, so that a careless log line or error cannot
// leak it. The text itself comes out through [Value.Reveal] only, whose callers are few and reviewed one by one.
package secret

import (
	"fmt"
	"io"
	"log/slog"
	"unique"
)

const redacted = "[REDACTED]"

// Value is a token, a JWT, a lease id or a secret's content. The zero value is the empty text.
// Values can be compared.
type Value struct {
	// A pointer inside, because fmt calls no methods on what sits in an unexported field: it prints an address there.
	text unique.Handle[string]
}

// New wraps text.
func New(text string) Value {
	if text == "" {
		return Value{}
	}
	return Value{unique.Make(text)}
}

// Reveal returns the text itself.
func (v Value) Reveal() string {
	if v.IsZero() {
		return ""
	}
	return v.text.Value()
}

// IsZero reports whether there is no text.
func (v Value) IsZero() bool { return v == Value{} }

// String implements fmt.Stringer.
func (v Value) String() string { return redacted }

// Format implements fmt.Formatter, so that no verb (%x, %q, %#v) prints the text.
func (v Value) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer.
func (v Value) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler: JSON and YAML of a struct that holds a Value are redacted too.
func (v Value) MarshalText() ([]byte, error) { return []byte(redacted), nil }
