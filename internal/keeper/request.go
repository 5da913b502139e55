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

// credentials are what the pod's login is made with.
func (k *Keeper) credentials(ctx context.Context, client *vault.Client, g grant.Grant, req *spec.Request) (with vault.Credentials, err error) {
	switch req.Spec.Auth.Method {
	case spec.AppRole:
		with.SecretID, err = k.secretID(ctx, client, g, req)
	case spec.Cert:
		err = k.certificate(ctx, req)
	default:
		with.JWT, err = k.jwt(ctx, req)
	}
	return with, err
}

// certificate finds out whether there is one to log in with; it is the client that shows it. The provider's own is for pods of certain
// namespaces, and which pod this is must not be a tenant's word.
func (k *Keeper) certificate(ctx context.Context, req *spec.Request) error {
	switch server := req.Spec.Server; {
	case !server.Pair.IsZero():
		return nil
	case server.ClientCert == "" || k.Identify == nil:
		return ErrNoCertificate
	}
	return k.Identify(ctx, req.Pod)
}

// secretID is AppRole's, unwrapped. That can be done once, so that it is recorded right after, for the logins to come.
func (k *Keeper) secretID(ctx context.Context, client *vault.Client, g grant.Grant, req *spec.Request) (secret.Value, error) {
	if !req.Wrapped {
		return req.SecretID, nil
	}
	if !g.SecretID.IsZero() {
		return g.SecretID, nil
	}
	ctx, cancel, err := k.begin(ctx)
	if err != nil {
		return secret.Value{}, err
	}
	defer cancel()
	id, err := client.Unwrap(ctx, g.Namespace, req.SecretID)
	if err != nil {
		return secret.Value{}, err
	}
	if _, err := k.Store.Update(g.ID, func(g *grant.Grant) error { g.SecretID = id; return nil }); err != nil {
		return secret.Value{}, fmt.Errorf("recording the secret-id: %w", err)
	}
	return id, nil
}

// refusedSecretID forgets a secret-id that Vault refused, in every grant of the volume, since each hands it on: the next try unwraps
// what the pod's Secret holds then.
func (k *Keeper) refusedSecretID(g grant.Grant, refusal error) error {
	if g.Auth.Method != spec.AppRole || vault.KindOf(refusal) != vault.Invalid {
		return refusal
	}
	return errors.Join(refusal, k.Store.UpdateVolume(g.Volume, func(grants []*grant.Grant) (*grant.Grant, error) {
		for _, g := range grants {
			g.SecretID = secret.Value{}
		}
		return nil, nil
	}))
}

// jwt is the token to log in with: kubelet's, or else one that is requested. A request that is cut off leaves nothing in Vault, so it
// ends with ctx.
func (k *Keeper) jwt(ctx context.Context, req *spec.Request) (secret.Value, error) {
	if !req.JWT.IsZero() {
		return req.JWT, nil
	}
	if k.RequestToken == nil {
		return secret.Value{}, ErrNoToken
	}
	jwt, err := k.RequestToken(ctx, req.Pod, req.Spec.Auth.Audience)
	if err != nil {
		return secret.Value{}, fmt.Errorf("%w, and none could be requested: %w", ErrNoToken, err)
	}
	return jwt, nil
}

// logIn logs in, records the token, and then shortens its life to the orphan TTL.
func (k *Keeper) logIn(ctx context.Context, client *vault.Client, g grant.Grant, with vault.Credentials) (vault.Session, error) {
	ctx, cancel, err := k.begin(ctx)
	if err != nil {
		return vault.Session{}, err
	}
	defer cancel()
	// Asked before, since nothing may stand between the token's arrival and its record. It is mostly known already.
	cluster := client.RecentCluster(ctx)
	from := k.Now()
	login, err := client.LogIn(ctx, g.Namespace, g.Auth, with)
	if err != nil {
		return vault.Session{}, err
	}
	if !k.holders.take(login.Accessor, g.ID) {
		return vault.Session{}, sharedError(g)
	}
	term := grant.NewTerm(from, login.TTL, login.Renewable).WithMax(k.lives.of(kind{digest: g.Digest}))
	stray := login.ByCert && g.Auth.Method != spec.Cert // not the pod logged in: such a token must not be used, nor stay
	_, err = k.Store.Update(g.ID, func(g *grant.Grant) error {
		g.Token, g.Accessor, g.Login, g.Unleasable, g.Cluster = login.Token, login.Accessor, term, login.Unleasable, cluster
		if stray {
			g.GiveUp("the provider's own certificate had logged in", from)
			g.Expire = ""
		}
		return nil
	})
	if err != nil { // what cannot be recorded must not stay
		k.holders.drop(login.Accessor)
		return vault.Session{}, errors.Join(err, client.RevokeSelf(ctx, login.Session))
	}
	if stray {
		k.queue.Add(g.ID)
		return vault.Session{}, &RefusedError{Path: "auth/" + g.Auth.Mount + "/login", Why: "that auth mount is of the cert method, and it was the provider's own client certificate that logged in, " +
			"not the pod; the token is being revoked: name an auth mount of the kubernetes, jwt or approle method, or authMethod cert"}
	}
	ttl := login.TTL
	if login.Renewable && (ttl == 0 || ttl > k.OrphanTTL) {
		ttl, err = k.shorten(ctx, client, g.ID, login.Session)
	}
	k.say(of(g, LoggedIn).at("", ttl).asking(login.Request))
	k.tellLongToken(g, ttl)
	if !g.Unanswered {
		k.Rotated(RotatedLogin)
	}
	return login.Session, err
}

// shorten leaves a new token with the orphan TTL, and returns the life that it has then: a periodic one keeps its period.
func (k *Keeper) shorten(ctx context.Context, client *vault.Client, id string, s vault.Session) (ttl time.Duration, err error) {
	from, ttl := k.Now(), k.OrphanTTL
	life, failure := client.RenewSelf(ctx, s, k.OrphanTTL)
	_, err = k.Store.Update(id, func(g *grant.Grant) error {
		if failure == nil {
			ttl = life.TTL
			g.Login = grant.NewTerm(from, life.TTL, life.Renewable).WithMax(g.Login.Max)
		} else { // it may have been shortened or not: renew for the one, wait out the other
			g.Login.From, g.Login.TTL, g.Login.Full = from, ttl, ttl
		}
		return nil
	})
	return ttl, err
}

// tellLongToken says what a loss of the node would leave behind when a token's life cannot be bounded; zero is a life without end.
func (k *Keeper) tellLongToken(g grant.Grant, ttl time.Duration) {
	const rounding = 2 * time.Second // Vault states whole seconds
	if ttl != 0 && ttl <= k.OrphanTTL+rounding {
		return
	}
	life := "without end"
	if ttl != 0 {
		life = "of " + ttl.String()
	}
	k.notice(of(g, noticed), "LongToken", fmt.Sprintf("volume %q: role %q gives tokens whose life %s cannot be shortened to the orphan TTL of %s (token_period, or not renewable): "+
		"if this node is lost, its token and leases live on for so long; lower token_period, or use token_ttl instead", g.Volume.Volume, g.Auth.Role, life, k.OrphanTTL))
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
