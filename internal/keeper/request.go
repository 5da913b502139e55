package keeper

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// readers is how many reads of one Mount are under way at a time.
const readers = 8

// begin returns the context of a login or read. It outlives the Mount: what is cut off can leave a token or credentials that
// nobody knows of. Nothing is begun when the Mount's own time is up or the process is leaving.
func (k *Keeper) begin(ctx context.Context) (context.Context, context.CancelFunc, error) {
	select {
	case <-k.leaving:
		return nil, nil, ErrLeaving
	case <-ctx.Done():
		return nil, nil, ErrWorking
	default:
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grant.RequestLimit)
	return ctx, cancel, nil
}

// readAll is readEach when each is needed. inDoubt is as for fill.
func (k *Keeper) readAll(ctx context.Context, client *vault.Client, s vault.Session, g grant.Grant, wish *spec.Spec, reads []spec.Read) (inDoubt grant.Instant, err error) {
	for _, e := range k.readEach(ctx, client, s, g, wish, reads) {
		if vault.KindOf(e) == vault.InDoubt {
			inDoubt = k.Now().Add(grant.RequestLimit)
		}
		if err == nil {
			err = e
		}
	}
	return inDoubt, err
}

// readEach makes reads, a few at a time, and waits for every one: a read that is given up can leave credentials that nobody
// knows. It returns what came of each, and after these why answers could not be recorded.
func (k *Keeper) readEach(ctx context.Context, client *vault.Client, s vault.Session, g grant.Grant, wish *spec.Spec, reads []spec.Read) []error {
	errs := make([]error, len(reads))
	free := make(chan struct{}, readers)
	var plain gathered
	var all sync.WaitGroup
	for i, r := range reads {
		free <- struct{}{}
		all.Go(func() {
			defer func() { <-free }()
			errs[i] = k.read(ctx, client, s, g, wish, r, &plain)
		})
	}
	all.Wait()
	if err := k.putGathered(g.ID, plain.answers); err != nil {
		errs = append(errs, err)
	}
	return errs
}

// maxGathered bounds, in bytes, what answers of one Mount wait in memory to be recorded.
const maxGathered = 256 << 10

// gathered are answers that are recorded together, because a commit for each would cost as much as reading it. With them nothing is lost
// that reading again would not bring back.
type gathered struct {
	mu      sync.Mutex
	answers []grant.Answer
	bytes   int
}

// take reports whether an answer is among them now.
func (p *gathered) take(a grant.Answer) bool {
	if a.Leased || a.Read.Method != http.MethodGet {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes+len(a.Body) > maxGathered {
		return false
	}
	p.answers, p.bytes = append(p.answers, a), p.bytes+len(a.Body)
	return true
}

func (k *Keeper) putGathered(id string, answers []grant.Answer) error {
	if len(answers) == 0 {
		return nil
	}
	now := k.Now()
	_, err := k.Store.PutAnswers(id, answers, func(g *grant.Grant) error {
		for _, a := range answers {
			g.Supersede(a.Read, now)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("recording answers: %w", err)
	}
	return nil
}

// read makes one read and records the answer with its lease; also, of what the volume can do without, that there is nothing.
func (k *Keeper) read(ctx context.Context, client *vault.Client, s vault.Session, g grant.Grant, wish *spec.Spec, r spec.Read, plain *gathered) (err error) {
	defer func() {
		if p := recover(); p != nil {
			k.Log.Error("panic during a read", "grant", g.ID, "panic", fmt.Sprintf("%T", p))
			err = errPanic
		}
	}()
	care := wish.Care(r)
	reply, from, err := k.settled(ctx, client, s, r)
	absent := vault.Absent(err) && wish.Optional(r)
	if err != nil && !absent {
		return err
	}
	if !reply.Token.IsZero() {
		return k.refuseToken(g, r, reply)
	}
	term := grant.NewTerm(from, reply.TTL, reply.Renewable).WithMax(k.lives.of(kind{g.Digest, r}))
	lease := grant.Lease{ID: reply.LeaseID, Read: r, Term: term}
	leased := !lease.ID.IsZero()
	certificate := revocable(r, care, reply, from)
	change := func(g *grant.Grant) error {
		g.Supersede(r, from)
		if leased {
			g.Leases = append(g.Leases, lease)
		}
		if !certificate.Serial.IsZero() {
			g.Certify(certificate, from)
		}
		return nil
	}
	if leased && g.Unleasable != "" {
		if _, err := k.Store.Update(g.ID, change); err != nil {
			return fmt.Errorf("recording the lease of %q: %w", r.Path, err)
		}
		k.sayIssued(g, r, reply)
		return &RefusedError{Path: r.Path, Why: leasedBut + g.Unleasable}
	}
	answer := grant.Answer{Read: r, Body: reply.Body, Raw: reply.Raw, Absent: absent, Leased: leased, RefreshAt: k.refreshAt(g, r, care, reply, from)}
	if absent {
		answer.RefreshAt = from.Add(care.Refresh)
	}
	if plain.take(answer) {
		return nil
	}
	if _, err := k.Store.PutAnswer(g.ID, answer, change); err != nil {
		if !certificate.Serial.IsZero() && !errors.Is(err, store.ErrFull) { // what cannot be recorded must not stay
			err = errors.Join(err, k.revokeCertificate(context.WithoutCancel(ctx), client, s, certificate))
		}
		return fmt.Errorf("recording the answer of %q: %w", r.Path, err)
	}
	switch { // a volume that was never answered has nothing to replace
	case g.Unanswered:
	case reply.Certificate != nil:
		k.Rotated(RotatedCertificate)
	case leased:
		k.Rotated(RotatedLease)
	}
	if leased || reply.Certificate != nil {
		k.sayIssued(g, r, reply)
	}
	return nil
}

// sayIssued tells of a lease, or a certificate, and whether it takes another's place.
func (k *Keeper) sayIssued(g grant.Grant, r spec.Read, reply vault.Reply) {
	kind, ttl := Issued, reply.TTL
	if !g.Unanswered {
		kind = Rotated
	}
	if reply.Certificate != nil {
		ttl = reply.Certificate.Validity.Life()
	}
	k.say(of(g, kind).at(r.Path, ttl).asking(reply.Request))
}

// rotationTries is how often a password that is about to change is read until it has: Vault may be a few seconds late with it.
const rotationTries = 4

// settled makes one read, and another when what it brought may be old already, because Vault is about to change it. from is when the
// one that counts was sent.
func (k *Keeper) settled(ctx context.Context, client *vault.Client, s vault.Session, r spec.Read) (reply vault.Reply, from grant.Instant, err error) {
	for try := 1; ; try++ {
		from = k.Now()
		if reply, err = k.readOnce(ctx, client, s, r); err != nil || reply.Rotation == nil || !reply.Rotation.Imminent() || try == rotationTries {
			return reply, from, err
		}
		select {
		case <-time.After(reply.Rotation.Over()):
		case <-k.leaving: // and the next read is not begun
		case <-ctx.Done():
		}
	}
}

func (k *Keeper) readOnce(ctx context.Context, client *vault.Client, s vault.Session, r spec.Read) (vault.Reply, error) {
	ctx, cancel, err := k.begin(ctx)
	if err != nil {
		return vault.Reply{}, err
	}
	defer cancel()
	return client.Read(ctx, s, r)
}

// refreshAt is when a republish should make a read again whose request was sent at from; zero for never, and for what its lease tells.
func (k *Keeper) refreshAt(g grant.Grant, r spec.Read, care spec.Care, reply vault.Reply, from grant.Instant) grant.Instant {
	switch {
	case reply.Certificate != nil:
		after, odd := reply.Certificate.Validity.ReissueAfter(care.RenewAt, g.Gap)
		if odd {
			k.tellClock(g, r, reply.Certificate.Validity, after)
		}
		return from.Add(after)
	case !reply.LeaseID.IsZero():
		return 0
	case reply.Rotation != nil:
		return from.Add(reply.Rotation.RefreshAfter(care.Refresh))
	case r.Method == http.MethodGet:
		return from.Add(care.Refresh)
	}
	return 0
}

// tellClock says that a certificate is next to useless on this node, by this node's clock.
func (k *Keeper) tellClock(g grant.Grant, r spec.Read, validity grant.Validity, next time.Duration) {
	ends := fmt.Sprintf("ends in %s", validity.Left.Round(time.Second))
	if validity.Left <= 0 {
		ends = fmt.Sprintf("ended %s ago", -validity.Left.Round(time.Second))
	}
	k.notice(of(g, noticed), "ClockWrong", fmt.Sprintf("volume %q: by this node's clock the certificate that %q just issued %s: compare the clocks of this node and of Vault, "+
		"and the ttl that is asked for; the next one is issued in %s", g.Volume.Volume, r.Path, ends, next.Round(time.Second)))
}

const leasedBut = "its secret is leased, but "

// RefusedError says why an answer of Vault's is not put into a volume.
type RefusedError struct {
	Path, Why string
}

// Error implements error.
func (e *RefusedError) Error() string { return fmt.Sprintf("%q cannot be used: %s", e.Path, e.Why) }

// refuseToken records a token that a read brought, as a grant of its own to be revoked: it would outlive the pod.
func (k *Keeper) refuseToken(g grant.Grant, r spec.Read, reply vault.Reply) error {
	stray := g
	stray.ID += "-" + hex.EncodeToString(fmt.Appendf(nil, "%x", k.Now()))
	stray.GiveUp("a token that reading a secret brought", k.Now())
	stray.Expire = ""
	stray.Token, stray.Accessor, stray.Leases, stray.BusyUntil = reply.Token, secret.Value{}, nil, 0
	const unknown = 32 * 24 * time.Hour // Vault's default maximum
	stray.Login = grant.NewTerm(k.Now(), max(reply.TTL, unknown), false)
	if err := k.Store.Put(stray); err != nil {
		return fmt.Errorf("recording a token to be revoked: %w", err)
	}
	k.queue.Add(stray.ID)
	return &RefusedError{Path: r.Path, Why: "the answer is a Vault token (it has an auth block), and tokens are not secrets to mount; the token is being revoked"}
}
