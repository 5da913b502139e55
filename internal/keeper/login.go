package keeper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

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
