package vault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Kind is what a failure means for whoever made the call. This file is the only one that knows how Vault tells.
type Kind int

// The kinds of failure. Texts and codes were measured on Vault 1.21.2.
const (
	// Unknown: none of the below.
	Unknown Kind = iota
	// NotExecuted: Vault refused before doing anything, and may accept the same call later: sealed, rate limited, state not
	// replicated yet, no leader, forwarding to another node.
	NotExecuted
	// Unreachable: the request never left: dialling or TLS failed.
	Unreachable
	// Distrusted: the request never left, because the server's certificate is not trusted. Repeating does not help.
	Distrusted
	// InDoubt: the request left and no answer came. It may have been executed, or still be.
	InDoubt
	// Failing: Vault, or the engine's back end, answered with an error of its own (5xx). It may have been executed.
	Failing
	// BackEndDown: a renewal was refused because the engine's back end failed; the lease is as it was (400, not terminal).
	BackEndDown
	// Denied: 403 by policy or, at a login, for any of many reasons, a lost API server of Vault's among them.
	Denied
	// InvalidToken: the token is revoked or expired, or was never this cluster's.
	InvalidToken
	// LeaseGone: the lease is revoked, or Vault has given it up.
	LeaseGone
	// LeaseEnded: the lease expired and is still to be revoked in its back end.
	LeaseEnded
	// Unrenewable: the token or lease lives, but no renewal will succeed any more: past its maximum TTL, its role deleted, or
	// of a kind that is never renewed.
	Unrenewable
	// Invalid: Vault found the call wrong: unknown role, missing parameter.
	Invalid
	// NotFound: there is nothing at this path.
	NotFound
	// Empty: a good status without content.
	Empty
	// NotVault: the reply is too large or not Vault's.
	NotVault
	// Unusable: the address or a TLS file of ours cannot be used, or a tenant's must not be.
	Unusable
	// Shared: a login was answered with a token that somebody holds already. It is theirs: it must not be revoked.
	Shared
)

// Error is a failed call. Its text is fit for anybody's eyes.
type Error struct {
	Kind   Kind
	Op     string // what was being done, for example `reading "secret/data/x"`
	Server string
	// Method and Path are those of the request, the path without v1/; empty when none was made.
	Method, Path string
	// Status is the HTTP status; zero when there was no reply.
	Status int
	// Messages are Vault's own words, bounded and cleaned.
	Messages []string
	// Foreign: the reply had an error's status and was not Vault's JSON. It is not repeated.
	Foreign bool
	// RetryAfter is Vault's wish; zero for none.
	RetryAfter time.Duration
	// Err is what went wrong when there was no usable reply.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s at %s: ", e.Op, e.Server)
	switch {
	case e.Foreign:
		fmt.Fprintf(&b, "the answer was %d %s, %s", e.Status, http.StatusText(e.Status), foreign)
	case e.Status != 0:
		fmt.Fprintf(&b, "Vault said %d", e.Status)
		if len(e.Messages) > 0 {
			fmt.Fprintf(&b, " %q", strings.Join(e.Messages, "; "))
		} else {
			fmt.Fprintf(&b, " %s", http.StatusText(e.Status))
		}
	case errors.Is(e.Err, context.DeadlineExceeded):
		b.WriteString("no answer in time")
	case e.Err != nil:
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

const (
	foreign = "and not in Vault's words"
	// plainHTTP is what a TLS listener of Go's, such as Vault's, says in plain text to whom speaks none.
	plainHTTP = "Client sent an HTTP request to an HTTPS server."
	// What Vault says without words: by the metadata of a version of KV version 2 that is no more, and by a redirect.
	saidDeleted   = "was deleted at"
	saidDestroyed = "was destroyed"
	saidMisnamed  = "Invalid path for a versioned K/V secrets engine"
	saidForwards  = "this node forwards to another one"
)

// aside returns what Vault tells beside errors in a reply that has none: it answers 404 with a warning for a path that is not
// KV version 2's, and with the metadata of a version that was deleted. ours is false for JSON that is not Vault's.
func aside(body []byte) (told []string, ours bool) {
	var reply struct {
		Errors   *[]string `json:"errors"`
		ID       *string   `json:"request_id"`
		Sealed   *bool     `json:"sealed"` // of sys/health
		Warnings []string  `json:"warnings"`
		Data     struct {
			Metadata struct {
				Version   json.Number `json:"version"`
				Deleted   string      `json:"deletion_time"`
				Destroyed bool        `json:"destroyed"`
			} `json:"metadata"`
		} `json:"data"`
	}
	if json.Unmarshal(body, &reply) != nil || reply.Errors == nil && reply.ID == nil && reply.Sealed == nil {
		return nil, false
	}
	switch of := reply.Data.Metadata; {
	case of.Destroyed:
		return append(reply.Warnings, fmt.Sprintf("version %s %s", of.Version, saidDestroyed)), true
	case of.Deleted != "":
		return append(reply.Warnings, fmt.Sprintf("version %s %s %s", of.Version, saidDeleted, of.Deleted)), true
	}
	return reply.Warnings, true
}

// Unwrap returns the error below, when there was no usable reply.
func (e *Error) Unwrap() error { return e.Err }

// Repeatable reports whether the same call may be sent again: it was proven not executed and may succeed.
func (e *Error) Repeatable() bool { return e.Kind == NotExecuted || e.Kind == Unreachable }

// Executed reports whether the call may have had its effect, so that something may exist that nobody was told of.
func (e *Error) Executed() bool { return e.Kind == InDoubt || e.Kind == Failing || e.Kind == Unknown }

// KindOf returns the kind of the first Error in err's chain; Unknown when there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Unknown
}

// outcomes are the kinds in a word each.
var outcomes = [...]string{
	Unknown: "unknown", NotExecuted: "not_executed", Unreachable: "unreachable", Distrusted: "distrusted", InDoubt: "in_doubt", Failing: "failing",
	BackEndDown: "back_end_down", Denied: "denied", InvalidToken: "invalid_token", LeaseGone: "lease_gone", LeaseEnded: "lease_ended",
	Unrenewable: "unrenewable", Invalid: "invalid", NotFound: "not_found", Empty: "empty", NotVault: "not_vault", Unusable: "unusable", Shared: "shared",
}

// Outcomes are the kinds in a word each.
func Outcomes() []string { return slices.Clone(outcomes[:]) }

// Outcome is what came of a request, in a word: "ok", or the kind of failure.
func Outcome(err error) string {
	if err == nil {
		return "ok"
	}
	return outcomes[KindOf(err)]
}

// Absent reports whether err is Vault's word that there is nothing at a path, or no more. A proxy's 404 is not, nor is what Vault says of a
// path under which its engine keeps nothing.
func Absent(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Kind == NotFound && !e.Foreign && !strings.Contains(e.said(), saidMisnamed)
}

// classify tells what a reply with an error status means.
func classify(status int, messages []string) Kind {
	text := strings.Join(messages, "\n")
	says := func(phrases ...string) bool {
		for _, p := range phrases {
			if strings.Contains(text, p) {
				return true
			}
		}
		return false
	}
	switch {
	case status == http.StatusForbidden && says("invalid token"):
		return InvalidToken
	case status == http.StatusForbidden:
		return Denied
	case status == http.StatusNotFound:
		return NotFound
	case status == http.StatusTooManyRequests, status == http.StatusPreconditionFailed:
		return NotExecuted
	case status == http.StatusServiceUnavailable && says("Vault is sealed", "overloaded", "API access to this namespace has been locked"):
		return NotExecuted
	case status == http.StatusInternalServerError && says("local node not active"):
		return NotExecuted
	case says("failed to renew entry") && says("does not exist during renewal", "could not find role", "past the max TTL"):
		return Unrenewable // whatever the status: 500 for a token, 400 for a lease
	case status >= 500:
		return Failing
	case status == http.StatusBadRequest && says("failed to renew entry", "failed to revoke entry"):
		return BackEndDown
	case status == http.StatusBadRequest && says("lease not found", "invalid lease", "lease is expired", "token not found"):
		return LeaseGone
	case status == http.StatusBadRequest && says("lease expired"):
		return LeaseEnded
	case status == http.StatusBadRequest && says("not renewable", "cannot be renewed", "past the max TTL", "could not find role"):
		return Unrenewable
	case status >= 400:
		return Invalid
	}
	return Unknown
}

// classifyTransport tells what it means that there was no reply.
func classifyTransport(err error, neverSent bool) Kind {
	var (
		dial      *net.OpError
		untrusted *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
	)
	switch {
	case errors.As(err, &untrusted), errors.As(err, &authority), errors.As(err, &hostname):
		return Distrusted
	case neverSent, errors.As(err, &dial) && dial.Op == "dial":
		return Unreachable
	}
	return InDoubt
}
