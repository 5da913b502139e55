package keeper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

var errClassUnread = errors.New("finding out whether leases are synced into Secrets (the class can say syncedLeases: revoke)")

// maxDigests bounds what is remembered of which wishes bring leases.
const maxDigests = 4096

// digests are wishes that brought leases before. The zero value is ready to use.
type digests struct {
	mu    sync.Mutex
	known map[string]bool
}

func (d *digests) has(digest string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.known[digest]
}

// add keeps what is known; any other digest makes room.
func (d *digests) add(digest string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil {
		d.known = make(map[string]bool)
	}
	if len(d.known) >= maxDigests && !d.known[digest] {
		for other := range d.known {
			delete(d.known, other)
			break
		}
	}
	d.known[digest] = true
}

// askSynced returns what asks, once, for the names of the class's objects that the driver copies into Secrets. Where leases are to be
// expected it asks at once, so that the answer comes while Vault works.
func (k *Keeper) askSynced(ctx context.Context, g grant.Grant, req *spec.Request) func() ([]string, error) {
	ask := sync.OnceValues(func() ([]string, error) { return k.Synced(ctx, req.Pod.Namespace, req.Class) })
	if unsettled(g, req) && k.leased.has(req.Spec.Digest) {
		go func() {
			defer func() { _ = recover() }() // who waits for the answer panics as well, and that is told
			_, _ = ask()
		}()
	}
	return ask
}

// unsettled tells whether it matters, and is not known, what the driver copies into Secrets.
func unsettled(g grant.Grant, req *spec.Request) bool {
	return req.Class != "" && req.Spec.SyncedLeases != spec.RevokeSynced && !g.SyncAsked
}

// findings are what was found out of a grant's class. The zero value is nothing.
type findings struct {
	asked              bool
	expire, unleasable string
}

func (f findings) note(g *grant.Grant) {
	if f.asked {
		g.SyncAsked, g.Expire, g.Unleasable = true, cmp.Or(f.expire, g.Expire), cmp.Or(f.unleasable, g.Unleasable)
	}
}

// settleSynced finds out, when the grant's first lease has come, or certificate to be revoked, whether the driver copies an object of
// such into a Secret, which other pods may use and which outlives this one.
func (k *Keeper) settleSynced(g grant.Grant, req *spec.Request, names func() ([]string, error)) (found findings, err error) {
	if !unsettled(g, req) {
		return findings{}, nil
	}
	if g, err = k.Store.Get(g.ID); err != nil || len(g.Leases)+len(g.Certificates) == 0 {
		return findings{}, err
	}
	k.leased.add(req.Spec.Digest)
	objects, err := names()
	if err != nil {
		return findings{}, fmt.Errorf("%w: %w", errClassUnread, err)
	}
	found.asked = true
	if len(objects) == 0 { // as most classes
		return found, nil
	}
	answers, err := k.Store.Answers(g.ID)
	if err != nil {
		return findings{}, err
	}
	leased := func(r spec.Read) bool { return g.Lease(r) != nil }
	certified := func(r spec.Read) bool { return req.Spec.Care(r).RevokeOnEnd }
	for _, o := range req.Spec.Objects {
		if !slices.ContainsFunc(objects, o.Writes) {
			continue
		}
		reads := append([]spec.Read{o.Read}, answers[o.Read].Uses...)
		if i := slices.IndexFunc(reads, leased); i >= 0 {
			return k.syncedLease(req, o, reads[i], found)
		}
		if i := slices.IndexFunc(reads, certified); i >= 0 {
			return k.syncedCertificate(req, o, reads[i], found)
		}
	}
	return found, nil
}

func (k *Keeper) syncedLease(req *spec.Request, o spec.Object, r spec.Read, found findings) (findings, error) {
	found.expire = fmt.Sprintf("object %q is synced into a Secret", o.Name)
	if req.Spec.SyncedLeases == spec.RefuseSynced {
		found.unleasable, found.expire = found.expire+", and the class says syncedLeases: refuse", ""
		return found, &RefusedError{Path: r.Path, Why: leasedBut + found.unleasable}
	}
	k.tellSynced(req, "leased object", o)
	return found, nil
}

func (k *Keeper) syncedCertificate(req *spec.Request, o spec.Object, r spec.Read, found findings) (findings, error) {
	found.expire = fmt.Sprintf("object %q is synced into a Secret", o.Name)
	if req.Spec.SyncedLeases == spec.RefuseSynced { // and nothing is noted: the next try is to be refused too
		return findings{}, &RefusedError{Path: r.Path, Why: "it is to be revoked at the pod's end, but " + found.expire + ", and the class says syncedLeases: refuse"}
	}
	k.tellSynced(req, "certificate", o)
	return found, nil
}

func (k *Keeper) tellSynced(req *spec.Request, what string, o spec.Object) {
	k.notice(wished(req, noticed), "SyncedLease", fmt.Sprintf("volume %q: the %s %q is synced into a Secret that other pods may use, so it is not revoked at the pod's end but runs out: "+
		"say syncedLeases: revoke or refuse in SecretProviderClass %q to choose otherwise", req.Volume.Volume, what, o.Name, req.Class))
}
