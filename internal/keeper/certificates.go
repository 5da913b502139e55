package keeper

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// revocable is the certificate that a read brought if it is to be revoked at the pod's end, and nothing else would; the zero value if
// not.
func revocable(r spec.Read, care spec.Care, reply vault.Reply, from grant.Instant) grant.Certificate {
	if !care.RevokeOnEnd || reply.Certificate == nil || !reply.LeaseID.IsZero() {
		return grant.Certificate{}
	}
	return grant.Certificate{Serial: reply.Certificate.Serial, Mount: r.Issuer(), Term: grant.NewTerm(from, reply.Certificate.Validity.Life(), false)}
}

func (k *Keeper) revokeCertificate(ctx context.Context, client *vault.Client, s vault.Session, c grant.Certificate) error {
	_, err := within(ctx, grant.RequestTimeout, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, client.RevokeCertificate(ctx, s, c.Mount, c.Serial)
	})
	return err
}

// revokeCertificates revokes what the revocation of the token does not, and forgets each that is. What Vault will not revoke is told of
// when all have been tried, and forgotten too. An error says that trying again may help.
func (k *Keeper) revokeCertificates(ctx context.Context, client *vault.Client, g grant.Grant) (grant.Grant, error) {
	refusals := map[string]error{} // by mount
	for _, c := range g.Certificates {
		if vault.KindOf(refusals[c.Mount]) == vault.Denied {
			continue
		}
		err := k.revokeCertificate(ctx, client, session(&g), c)
		switch vault.KindOf(err) {
		case vault.Denied, vault.Invalid, vault.NotFound:
			refusals[c.Mount] = err
			continue
		case vault.InvalidToken:
			return g, nil // what it means, the token's own revocation tells
		}
		if err != nil {
			return g, err
		}
		k.say(of(g, CertificateRevoked).at(c.Mount, 0))
		if g, err = k.forgetCertificates(g, c); err != nil {
			return g, err
		}
	}
	if len(refusals) == 0 {
		return g, nil
	}
	var why []string
	for mount, err := range refusals {
		next := "no_store of its role must be off"
		if vault.KindOf(err) == vault.Denied {
			next = fmt.Sprintf(`add to a policy of role %q: path "%s/revoke" { capabilities = ["update"] }`, g.Auth.Role, mount)
		}
		why = append(why, fmt.Sprintf("%v; %s", err, next))
	}
	slices.Sort(why)
	k.tellKept(g, strings.Join(why, "; "))
	return k.forgetCertificates(g, g.Certificates...)
}

func (k *Keeper) forgetCertificates(g grant.Grant, gone ...grant.Certificate) (grant.Grant, error) {
	return k.Store.Update(g.ID, func(g *grant.Grant) error {
		g.Certificates = slices.DeleteFunc(g.Certificates, func(c grant.Certificate) bool { return slices.Contains(gone, c) })
		return nil
	})
}

// tellKept says of certificates that were to be revoked that they live on, and for how long at most.
func (k *Keeper) tellKept(g grant.Grant, why string) {
	now, live, longest := k.Now(), 0, time.Duration(0)
	for _, c := range g.Certificates {
		if left := c.Term.Left(now); left > 0 {
			live, longest = live+1, max(longest, left)
		}
	}
	if live == 0 {
		return
	}
	k.notice(of(g, noticed), "CertificateKept", fmt.Sprintf("volume %q: certificates that were to be revoked at the pod's end live on (%d, until %s at the latest): %s",
		g.Volume.Volume, live, wall(longest), why))
}
