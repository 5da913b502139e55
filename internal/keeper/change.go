package keeper

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// Kind says what changed. A warning that is only told to the pod's owners has its event's reason as its kind.
type Kind string

// The kinds of change.
const (
	// TookOver: the provider started and found a grant in the store.
	TookOver Kind = "TookOver"
	// LoggedIn: there is a token.
	LoggedIn Kind = "LoggedIn"
	// LoginFailed, ReadFailed and MountRefused: the volume's files could not be made, or not anew, by what failed.
	LoginFailed  Kind = "LoginFailed"
	ReadFailed   Kind = "ReadFailed"
	MountRefused Kind = "MountRefused"
	// Issued: a lease or a certificate was made, and Rotated: another one in the place of what the volume shows.
	Issued  Kind = "Issued"
	Rotated Kind = "Rotated"
	// Refreshed: what Vault holds at a path changed, and the volume shows it.
	Refreshed Kind = "Refreshed"
	// Recovered: what failed before works again, and changed nothing.
	Recovered Kind = "Recovered"
	// Mounted: the volume's files could be made for the first time.
	Mounted Kind = "Mounted"
	// Renewed: the token, or the lease of a path, lives longer.
	Renewed Kind = "Renewed"
	// RenewalFailed: it is tried again.
	RenewalFailed Kind = "RenewalFailed"
	// RenewalOver: no renewal will succeed any more.
	RenewalOver Kind = "RenewalOver"
	// Lost: the token or a lease was revoked or expired, and not by Leasehold.
	Lost Kind = "Lost"
	// EndHeld: the pod seems to be over, and too many others do. EndUnclear: it does by one sign and not by another.
	EndHeld    Kind = "EndHeld"
	EndUnclear Kind = "EndUnclear"
	// PodEnded and LetGo: the grant is to be given back from here on, because of its pod's end or for another reason.
	PodEnded Kind = "PodEnded"
	LetGo    Kind = "LetGo"
	// RevocationFailed: it is tried again.
	RevocationFailed Kind = "RevocationFailed"
	// CertificateRevoked: one of the engine at the path was.
	CertificateRevoked Kind = "CertificateRevoked"
	// Revoked, AlreadyGone and RanOut: the end of a grant. NeverUsed: there was no login.
	Revoked     Kind = "Revoked"
	AlreadyGone Kind = "AlreadyGone"
	RanOut      Kind = "RanOut"
	NeverUsed   Kind = "NeverUsed"
)

// noticed stands for the reason of a warning that is only told to the pod's owners, which becomes its kind.
const noticed Kind = ""

// Final reports whether the grant is forgotten with the change.
func (k Kind) Final() bool { return k == Revoked || k == AlreadyGone || k == RanOut || k == NeverUsed }

// The troubles that are not Vault's.
const (
	// NoCredentials: there is nothing to log in with.
	NoCredentials vault.Trouble = "NoCredentials"
	// StoreFull: what is held on the node leaves no room for more.
	StoreFull vault.Trouble = "StoreFull"
	// Crowded: too many mounts of the namespace or node wait for Vault already.
	Crowded vault.Trouble = "Crowded"
	// WrongClass: the SecretProviderClass, or the pod's volume, says what cannot be done.
	WrongClass vault.Trouble = "WrongClass"
	// ClassUnread: what the driver copies into Secrets could not be found out.
	ClassUnread vault.Trouble = "ClassUnread"
	// BreakerOpen: more pods seem to end than the API server told of.
	BreakerOpen vault.Trouble = "BreakerOpen"
	// UnclearEnd: signs of the pod's end contradict each other.
	UnclearEnd vault.Trouble = "UnclearEnd"
)

// Change is one change of the state of a volume: what the log, the audit log and the history of the node are made of. No secret is in it.
type Change struct {
	At     time.Time
	Kind   Kind
	Pod    spec.Pod
	Volume string
	Class  string
	// Grant is the id of the grant; empty where there is none (yet).
	Grant string
	// Server and Namespace are those of Vault.
	Server    spec.Server
	Namespace string
	Auth      spec.Auth
	// Path is what was read, or whose lease it is; empty for the token and for all of a grant.
	Path string
	// TTL is the life that Vault stated; zero for none, or one without end.
	TTL time.Duration
	// Request is Vault's id of the request, as its own audit log has it; empty where it told none.
	Request string
	// Why is the failure, or the reason, in words.
	Why string
	// Trouble is where the cause of a failure lies, if that is known.
	Trouble vault.Trouble
	// Keeps says why a pod's end revokes nothing; empty when it does.
	Keeps string
	// Shown: the volume shows something, and keeps it.
	Shown bool
	// Again is when what failed is tried again; zero where that is not known.
	Again time.Duration
}

// of is a change of a grant.
func of(g grant.Grant, kind Kind) Change {
	return Change{Kind: kind, Pod: g.Pod, Volume: g.Volume.Volume, Class: g.Class, Grant: g.ID, Server: g.Server, Namespace: g.Namespace, Auth: g.Auth}
}

// wished is a change of what a Mount asks for.
func wished(req *spec.Request, kind Kind) Change {
	return Change{Kind: kind, Pod: req.Pod, Volume: req.Volume.Volume, Class: req.Class, Server: req.Spec.Server, Namespace: req.Spec.Namespace, Auth: req.Spec.Auth}
}

// at is the change with a path and a life.
func (c Change) at(path string, ttl time.Duration) Change {
	c.Path, c.TTL = path, ttl
	return c
}

// asking is the change with Vault's id of the request that made it.
func (c Change) asking(request string) Change {
	c.Request = request
	return c
}

// because is the change with its reason.
func (c Change) because(why string) Change {
	c.Why = why
	return c
}

// failed is the change with what failed, and what to do about it.
func (c Change) failed(err error, req *spec.Request) Change {
	c.Why, c.Trouble = vault.Explain(err, req), troubleOf(err)
	if e, ok := errors.AsType[*leaseError](err); ok {
		c.Path = e.path
	}
	return c
}

// leaseError is a failure that has to do with the lease of one path.
type leaseError struct {
	path string
	error
}

// Unwrap returns what failed.
func (e *leaseError) Unwrap() error { return e.error }

// refusal is the change that a failed Mount makes.
func refusal(err error, req *spec.Request) Change {
	kind, path := MountRefused, ""
	e, ofVault := errors.AsType[*vault.Error](err)
	switch {
	case troubleOf(err) == NoCredentials, ofVault && e.AtLogin():
		kind = LoginFailed
	case ofVault && e.Kind != vault.Unusable:
		kind, path = ReadFailed, e.Path
	}
	return wished(req, kind).at(path, 0).failed(err, req)
}

// asked is what a grant's Mount had asked for, as far as the grant tells: what explaining a failure needs.
func asked(g grant.Grant) *spec.Request {
	return &spec.Request{Pod: g.Pod, Volume: g.Volume, Class: g.Class, Spec: spec.Spec{Server: g.Server, Namespace: g.Namespace, Auth: g.Auth}}
}

func troubleOf(err error) vault.Trouble {
	_, wrong := errors.AsType[*spec.Error](err)
	_, refused := errors.AsType[*RefusedError](err)
	switch {
	case errors.Is(err, ErrNoToken), errors.Is(err, ErrNoCertificate):
		return NoCredentials
	case errors.Is(err, store.ErrFull):
		return StoreFull
	case errors.Is(err, ErrCrowded):
		return Crowded
	case errors.Is(err, ErrWorking):
		return vault.Away
	case errors.Is(err, errClassUnread):
		return ClassUnread
	case wrong, refused:
		return WrongClass
	}
	return vault.TroubleOf(err)
}

// say tells of a change: it is logged once, and handed on.
func (k *Keeper) say(c Change) {
	c.At = time.Now()
	if l, ok := lines[c.Kind]; ok {
		k.logger(l.level)(l.message, c.attributes()...)
	}
	k.Changed(c)
}

func (k *Keeper) logger(level slog.Level) func(message string, attributes ...any) {
	switch level {
	case slog.LevelDebug:
		return k.Log.Debug
	case slog.LevelWarn:
		return k.Log.Warn
	case slog.LevelError:
		return k.Log.Error
	default:
		return k.Log.Info
	}
}

// notice posts a warning on the pod that is no change by itself, and so not in the log, and tells of it. Its reason is its kind.
func (k *Keeper) notice(c Change, reason, message string) {
	c.Kind, c.Why = Kind(reason), message
	k.Event(c.Pod, "Warning", reason, message)
	k.say(c)
}

// lines are how the log says a change. A failed Mount is a call of the driver's, and logged as such at a higher level.
var lines = map[Kind]struct {
	level   slog.Level
	message string
}{
	TookOver:      {slog.LevelDebug, "took over a grant"},
	LoggedIn:      {slog.LevelInfo, "logged in"},
	LoginFailed:   {slog.LevelDebug, "login failed"},
	ReadFailed:    {slog.LevelDebug, "read failed"},
	MountRefused:  {slog.LevelDebug, "mount refused"},
	Issued:        {slog.LevelInfo, "credentials issued"},
	Rotated:       {slog.LevelInfo, "credentials rotated"},
	Refreshed:     {slog.LevelInfo, "secret changed"},
	Recovered:     {slog.LevelInfo, "recovered"},
	Mounted:       {slog.LevelInfo, "mounted"},
	Renewed:       {slog.LevelDebug, "renewed"},
	RenewalFailed: {slog.LevelWarn, "renewal failed"},
	RenewalOver:   {slog.LevelInfo, "cannot be renewed any more"},
	Lost:          {slog.LevelWarn, "credentials lost"},
	EndHeld: {slog.LevelError, "more pods ended at once than the Kubernetes API told of; revocations are held back: " +
		"is the API server the right one, and kubelet's folder mounted?"},
	EndUnclear:         {slog.LevelWarn, "end of a pod unclear"},
	PodEnded:           {slog.LevelInfo, "pod ended"},
	LetGo:              {slog.LevelInfo, "letting go of a grant"},
	RevocationFailed:   {slog.LevelWarn, "revocation failed"},
	CertificateRevoked: {slog.LevelInfo, "revoked a certificate"},
	Revoked:            {slog.LevelInfo, "gave a grant back"},
	AlreadyGone:        {slog.LevelInfo, "gave a grant back"},
	RanOut:             {slog.LevelInfo, "gave a grant back"},
	NeverUsed:          {slog.LevelInfo, "gave a grant back"},
}

func (c Change) attributes() []any {
	attributes := []any{
		slog.String("kind", string(c.Kind)), slog.String("pod", c.Pod.Namespace+"/"+c.Pod.Name), slog.String("uid", c.Pod.UID), slog.String("volume", c.Volume),
	}
	for _, a := range []slog.Attr{
		slog.String("grant", c.Grant), slog.String("role", c.Auth.Role), slog.String("path", c.Path), slog.Duration("ttl", c.TTL), slog.String("request", c.Request),
		slog.String("why", c.Why), slog.String("trouble", string(c.Trouble)), slog.String("keeps", c.Keeps), slog.Duration("again", c.Again.Round(time.Second)),
	} {
		if !a.Value.Equal(slog.StringValue("")) && !a.Value.Equal(slog.DurationValue(0)) {
			attributes = append(attributes, a)
		}
	}
	return attributes
}

// Warning reports whether somebody should look.
func (c Change) Warning() bool {
	switch l, known := lines[c.Kind]; {
	case !known, l.level >= slog.LevelWarn, c.Trouble != "":
		return true
	default:
		return c.Kind == LoginFailed || c.Kind == ReadFailed || c.Kind == MountRefused
	}
}

// Says is the change in a sentence, without a point at its end.
func (c Change) Says() string {
	life := "that does not end"
	if c.TTL != 0 {
		life = "for " + Span(c.TTL)
	}
	what := "the token"
	if c.Path != "" {
		what = fmt.Sprintf("the lease of %q", c.Path)
	}
	switch c.Kind {
	case TookOver:
		return "the provider started and took over what its store holds: " + c.Why
	case LoggedIn:
		return "logged in to " + c.login() + ", " + life
	case LoginFailed, ReadFailed, MountRefused:
		if c.Shown {
			return "the volume keeps its content, because it could not be made anew: " + c.Why
		}
		return "the volume could not be filled: " + c.Why
	case Issued:
		return fmt.Sprintf("%q issued credentials, %s", c.Path, life)
	case Rotated:
		return fmt.Sprintf("%q issued new credentials, %s; those before run out by themselves", c.Path, life)
	case Refreshed:
		return fmt.Sprintf("%s changed in Vault, and the volume shows it", cmp.Or(quoted(c.Path), "what a template shows"))
	case Recovered:
		return "what failed before works again"
	case Mounted:
		return "the volume has its files"
	case Renewed:
		return fmt.Sprintf("renewed %s, %s", what, life)
	case RenewalFailed:
		return "renewing failed: " + c.Why
	case RenewalOver:
		return fmt.Sprintf("%s cannot be renewed any more, and is to be replaced: %s", what, c.Why)
	case Lost:
		return c.Why + " outside of Leasehold; new credentials come with the next republish"
	case EndHeld:
		return "the pod seems to be over, but so do more pods than the API told of, so what it holds is kept for now: " + c.Why
	case EndUnclear:
		return "whether the pod is over is not clear: " + c.Why
	case PodEnded:
		return c.ending("the pod is over: " + c.Why)
	case LetGo:
		return c.ending("what is held is to be given back: " + c.Why)
	case RevocationFailed:
		return "giving back failed: " + c.Why
	case CertificateRevoked:
		return fmt.Sprintf("revoked a certificate of %q", c.Path)
	case Revoked:
		return "revoked the token and every lease under it"
	case AlreadyGone:
		return "the token was gone already"
	case RanOut:
		return "the token and its leases ran out by themselves"
	case NeverUsed:
		return "there was no login, so there is nothing to give back"
	default:
		return strings.TrimPrefix(c.Why, fmt.Sprintf("volume %q: ", c.Volume))
	}
}

func (c Change) ending(why string) string {
	if c.Keeps == "" {
		return why
	}
	return why + "; nothing is revoked, its leases run out (" + c.Keeps + ")"
}

// login is where and how a login is made.
func (c Change) login() string {
	method := cmp.Or(string(c.Auth.Method), "kubernetes")
	where := c.Server.Address
	if c.Namespace != "" {
		where += fmt.Sprintf(" (namespace %q)", c.Namespace)
	}
	if c.Auth.Role != "" {
		where += fmt.Sprintf(" as role %q", c.Auth.Role)
	}
	return fmt.Sprintf("%s by auth mount %q (%s)", where, c.Auth.Mount, method)
}

func quoted(text string) string {
	if text == "" {
		return ""
	}
	return fmt.Sprintf("%q", text)
}

// Span is a duration for people: 1h, not 1h0m0s.
func Span(d time.Duration) string {
	text := d.Round(time.Second).String()
	if whole, ok := strings.CutSuffix(text, "m0s"); ok {
		text = whole + "m"
	}
	if whole, ok := strings.CutSuffix(text, "h0m"); ok {
		text = whole + "h"
	}
	return text
}
