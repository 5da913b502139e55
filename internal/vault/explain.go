package vault

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// Bounds of an explanation, in bytes. An event holds 1024, and kubelet and the driver begin it with some 200 of their own.
const (
	maxExplanation = 1000
	maxSaid        = 400 // of what was tried and what Vault said
	maxName        = 128 // of a path, an issuer, an address
)

// Explain says what was tried, what Vault said, what to do next and whose login it was, most useful first. It knows no more than
// Vault told, and tells no secret: of the request's token only who made it, for whom and until when. An error that is not Vault's
// explains itself.
func Explain(err error, req *spec.Request) string {
	said := shorten(strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' }), "; "), maxSaid)
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return said
	}
	next := ""
	if c := causeOf(e); c != nil {
		next = "; " + placeholders(e, req).Replace(c.next)
	}
	// What the token or certificate says of itself matters once somebody has judged it.
	judged := e.Op == OpLogin && (e.Kind == Denied || e.Kind == Invalid || e.Kind == Failing)
	return shorten(said+next+who(req, judged), maxExplanation)
}

// Who names the login that was used or tried.
func Who(req *spec.Request) string { return who(req, false) }

// who names the login, and what its token or certificate says of itself where that may be the reason.
func who(req *spec.Request, claims bool) string {
	var b strings.Builder
	b.WriteString(" (")
	if ns := req.Spec.Namespace; ns != "" {
		fmt.Fprintf(&b, "namespace %s, ", quote(ns))
	}
	auth, pod := req.Spec.Auth, req.Pod
	role := "role " + quote(auth.Role)
	switch {
	case auth.Method == spec.AppRole:
		role = "AppRole"
	case auth.Role == "":
		role = "any role"
	}
	fmt.Fprintf(&b, "auth mount %s, %s, service account %s/%s", quote(auth.Mount), role, shorten(pod.Namespace, maxName), shorten(pod.ServiceAccount, maxName))
	if claims && !req.JWT.IsZero() {
		b.WriteString(", " + claimsOf(req.JWT).describe(subject(pod)))
	}
	if pair := req.Spec.Server.Pair; claims && !pair.IsZero() {
		b.WriteString(", " + describeCertificate(pair))
	}
	b.WriteString(")")
	return b.String()
}

// cause is a row of the table: a reply that Vault is known to give, and what to do about it.
type cause struct {
	// op says what it is for; zero for everything.
	op operation
	// kind and status are those of the reply; zero for any.
	kind   Kind
	status int
	// says are phrases, of which the reply holds one; empty for any reply.
	says []string
	// next is the next step, with {placeholders}.
	next string
}

type operation int

const (
	anything operation = iota
	login
	read // or any other call
	way  // whatever was called, no reply came
)

// operation tells for which rows an error is.
func (e *Error) operation() operation {
	switch {
	case e.Kind == Unreachable, e.Kind == Distrusted, e.Kind == InDoubt:
		return way
	case e.Op == OpLogin:
		return login
	}
	return read
}

// causeOf returns the first row that fits; nil when none does.
func causeOf(e *Error) *cause {
	op, said := e.operation(), e.said()
	for i := range causes {
		c := &causes[i]
		if (c.op == anything || c.op == op) && (c.kind == Unknown || c.kind == e.Kind) && (c.status == 0 || c.status == e.Status) &&
			(len(c.says) == 0 || slices.ContainsFunc(c.says, func(phrase string) bool { return strings.Contains(said, phrase) })) {
			return c
		}
	}
	return nil
}

// said is Vault's reply or, when there was none, what the network or TLS said.
func (e *Error) said() string {
	switch {
	case e.Status == 0 && e.Err != nil:
		return e.Err.Error()
	case e.Foreign:
		return foreign
	}
	return strings.Join(e.Messages, "\n")
}

// placeholders fills a row in with what the request and the error know. Names are quoted.
func placeholders(e *Error, req *spec.Request) *strings.Replacer {
	auth, pod := req.Spec.Auth, req.Pod
	claims, audience := claimsOf(req.JWT), quote(req.Audience)
	if req.JWT.IsZero() && auth.Audience == "" { // it was requested, and what the API server prefers is not known here
		audience = "the API server's own"
	}
	in := ""
	if ns := req.Spec.Namespace; ns != "" {
		in = " in namespace " + quote(ns)
	}
	capability := "read"
	if e.Method != http.MethodGet {
		capability = "update"
	}
	role := quote(auth.Role)
	switch {
	case auth.Method == spec.AppRole:
		role = "that roleId names"
	case auth.Role == "":
		role = "that the certificate is for"
	}
	return strings.NewReplacer(
		"{role}", role,
		"{mount}", quote(auth.Mount),
		"{config}", "auth/"+shorten(auth.Mount, maxName)+"/config",
		"{in namespace}", in,
		"{account}", quote(pod.ServiceAccount),
		"{pod namespace}", quote(pod.Namespace),
		"{subject}", quote(subject(pod)),
		"{issuer}", claims.issuerOr("that its claim iss names"),
		"{audience}", claims.audienceOr(audience),
		"{path}", quote(e.Path),
		"{version 2}", version2(e),
		"{data path}", quote(dataPath(e.Path)),
		"{capability}", capability,
		"{method}", e.Method,
	)
}

func subject(pod spec.Pod) string {
	return "system:serviceaccount:" + pod.Namespace + ":" + pod.ServiceAccount
}

// version2 says what the path would be in KV version 2, for one that looks as if its /data/ were forgotten; empty for others.
func version2(e *Error) string {
	if e.Method != http.MethodGet || !strings.Contains(e.Path, "/") || strings.Contains(e.Path, "/data/") || strings.Contains(e.Path, "creds/") {
		return ""
	}
	mount, _, _ := strings.Cut(e.Path, "/")
	return " (if " + quote(mount) + " is a KV version 2 engine: " + quote(dataPath(e.Path)) + ")"
}

// dataPath takes the first element of a path for the mount; most are.
func dataPath(path string) string {
	mount, secret, _ := strings.Cut(path, "/")
	return mount + "/data/" + secret
}

func quote(text string) string { return strconv.Quote(shorten(text, maxName)) }

func shorten(text string, limit int) string {
	const dots = "..."
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit-len(dots)], "") + dots
}
