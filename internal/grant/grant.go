// Package grant says what is held: one Vault login made for one pod volume, and every lease issued under its token.
//
// It is data and pure arithmetic: when to renew, what is due, whether a pod's end was proven. It does no I/O and reads no
// clock; every function takes the instant it should reckon with, and jitter as an argument.
package grant

import (
	"time"

	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// State is where a grant stands. The order of effects is told in package keeper.
type State string

// The states of a grant.
const (
	// Pending: a login or the first reads are under way, in this process or in one that died.
	Pending State = "Pending"
	// Partial: something failed after the login; the next try of the same wish goes on from here.
	Partial State = "Partial"
	// Active: the volume's files can be answered from it.
	Active State = "Active"
	// Superseded: the volume has a newer grant. It is no longer renewed, nor shortened; it goes at the pod's end or by itself.
	Superseded State = "Superseded"
	// Revoking: it must go. Nothing is read or renewed under it any more.
	Revoking State = "Revoking"
)

// States are all states, in the order in which a grant may go through them.
func States() []State { return []State{Pending, Partial, Active, Superseded, Revoking} }

// Grant is one login and what was issued under it.
type Grant struct {
	// ID is random and no secret.
	ID     string
	Volume spec.VolumeKey
	Pod    spec.Pod
	Class  string

	Server    spec.Server
	Namespace string
	Auth      spec.Auth
	// Digest is that of the spec it was made for.
	Digest string

	State State
	// Created is when a Mount of the volume was first heard of, as far as its grants tell.
	Created Instant
	// Cluster is Vault's cluster id at login; empty when Vault did not tell.
	Cluster string
	// Token is zero until the login's reply is recorded.
	Token    secret.Value
	Accessor secret.Value
	// SecretID is what a wrapped secret-id was unwrapped to, which can be done once: later logins of the volume need it. Zero when none
	// was.
	SecretID secret.Value
	// Login is the token's life.
	Login Term
	// Unleasable says why nothing leased may be read under the token; empty when it may.
	Unleasable string
	Leases     []Lease
	// Certificates are to be revoked before the token is. Those without a lease only: the others go with it.
	Certificates []Certificate

	// BusyUntil is when Vault can no longer be working on a read under this token that nobody waits for (the process that
	// sent it died, or its connection was cut). Zero when there is none. Revoking earlier could leave a lease of a dead token.
	BusyUntil Instant
	// Tried is when a Mount last asked for this grant.
	Tried Instant
	// FolderSeen says that kubelet's folder of the volume was seen where this node's provider looks, so its absence means something.
	FolderSeen bool
	// Grace is the pod's termination grace period as last seen; zero when never seen.
	Grace time.Duration
	// Gap is the longest time seen between a change of the volume's files and the republish after it; zero before one was seen.
	Gap time.Duration
	// Unanswered: no answer with the volume's files was handed out yet.
	Unanswered bool
	// Answered is when the first answer was handed out, by the wall clock, until it was compared with the start of the pod's
	// containers; zero before and after.
	Answered time.Time
	// Expire says why the pod's end revokes nothing, so that all runs out by itself; empty when it does revoke.
	Expire string
	// SyncAsked: whether its leased objects are copied into Secrets was asked; Expire holds the answer.
	SyncAsked bool
	// Cause says in a few words why the grant is being revoked.
	Cause string
	// GivenUp is when it became Revoking; zero before, and in the records of earlier versions.
	GivenUp Instant
	// Failures counts tries to renew or revoke since the last success; it sets the pace of the next.
	Failures int
	// Problem is the last failure in words fit for anybody's eyes; empty when the last try went well.
	Problem string
}

// GiveUp makes it one that must go, from now on; cause says why, in a few words for people.
func (g *Grant) GiveUp(cause string, now Instant) {
	if g.State != Revoking {
		g.GivenUp = now
	}
	g.State, g.Cause = Revoking, cause
}

// Lease is one lease under the grant's token.
type Lease struct {
	ID   secret.Value
	Read spec.Read
	Term Term
	// Superseded leases are no longer renewed: a newer answer of the same read took their place.
	Superseded bool
	// Warned are the warnings that were given about it.
	Warned []Warning
}

// Certificate is one that was issued, shown by the volume or before it.
type Certificate struct {
	// Serial is no secret by itself, but who may revoke by serial could end it.
	Serial secret.Value
	// Mount is that of the PKI engine.
	Mount string
	// Term ends when the certificate does at the latest, whatever clock was wrong when it came.
	Term Term
}

// Answer is one reply of Vault, kept so that a republish needs no Vault.
type Answer struct {
	Read spec.Read
	// Body is Vault's reply, as sent.
	Body []byte
	// Raw says that Body is no JSON but what the file holds.
	Raw bool
	// Absent: there was nothing, which nobody minds. Body is empty.
	Absent bool
	// Leased says that one of the grant's leases is behind it.
	Leased bool
	// RefreshAt is when a republish should read it again; zero for never. Leased answers are replaced by their lease's Term, unless they
	// are certificates.
	RefreshAt Instant
	// Uses are the reads from whose answers Body was rendered, and Sum is a digest of these; empty for what Vault answered.
	Uses []spec.Read
	Sum  string
}

// Verdict is what is known of a pod's end.
type Verdict struct {
	// Ended: the pod is over and no container of it can use the volume any more.
	Ended bool
	// Reason says by which row of the table, or what is waited for; fit for people.
	Reason string
	// FolderSeen: kubelet's folder of the volume is there now.
	FolderSeen bool
	// Grace is the pod's termination grace period; zero when the pod object was not seen.
	Grace time.Duration
	// Check is how soon to ask again even when nothing wakes; zero when a change of the pod will wake.
	Check time.Duration
	// Started is when the pod's first container was started, by the wall clock; zero when none was or it is not known.
	Started time.Time
	// Announced: the watch told of the end; it was not only concluded from the pod's absence.
	Announced bool
	// Warning is the text of an event that is due on the pod; empty for none.
	Warning string
}
