package keeper

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/render"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

const (
	// claimLife covers the time in which a Mount begins requests, and Vault's own limit for the last of them.
	claimLife = beginWithin + grant.RequestLimit + 20*time.Second
	// beginWithin is how long after its start a Mount begins requests; each then has the time that Vault gives it.
	beginWithin = 90 * time.Second
	// roomPerMount is what must be free for content before a login is made, in bytes.
	roomPerMount = 1 << 20
)

// mount makes the volume's files with Vault's help, and returns them with the grant that they come from. Only one runs for a
// volume at a time.
func (k *Keeper) mount(ctx context.Context, req *spec.Request) ([]render.File, grant.Grant, error) {
	files, g, err := k.mountWith(ctx, req, "")
	if refused, ok := errors.AsType[*refusedTokenError](err); ok { // whoever made the token, this Vault wants another
		return k.mountWith(ctx, req, refused.grant)
	}
	return files, g, err
}

// refusedTokenError: Vault does not know the token of a grant that an earlier Mount made.
type refusedTokenError struct {
	grant string
	error
}

// Unwrap returns Vault's refusal.
func (e *refusedTokenError) Unwrap() error { return e.error }

// mountWith is mount with any grant of the volume but one; none is excluded when except is empty.
func (k *Keeper) mountWith(ctx context.Context, req *spec.Request, except string) ([]render.File, grant.Grant, error) {
	if err := k.mayBegin(req); err != nil {
		return nil, grant.Grant{}, err
	}
	client, err := k.Vaults.Client(req.Spec.Server, req.Pod.Namespace)
	if err != nil {
		return nil, grant.Grant{}, err
	}
	if err := k.Store.Room(req.Pod.Namespace, roomPerMount); err != nil {
		return nil, grant.Grant{}, err
	}
	began := k.Now()
	c, err := k.claim(req, except)
	if err != nil {
		return nil, grant.Grant{}, fmt.Errorf("recording the mount: %w", err)
	}
	synced := k.askSynced(ctx, c.grant, req)
	files, inDoubt, err := k.fill(ctx, client, c.grant, req)
	if c.first { // now rather than before, because the cache may have come to know the pod meanwhile
		k.tellOverridden(req)
	}
	if err == nil {
		c.findings, err = k.settleSynced(c.grant, req, synced)
	}
	c.busy = max(c.busy, inDoubt)
	if err != nil {
		failure := errors.Join(err, k.setBack(c, err))
		if vault.KindOf(err) == vault.InvalidToken && !c.grant.Token.IsZero() {
			_, _ = k.tokenRefused(ctx, client, c.grant, err)
			failure = &refusedTokenError{c.grant.ID, failure}
		}
		return nil, grant.Grant{}, failure
	}
	g, err := k.activate(c)
	if err != nil {
		return nil, grant.Grant{}, err
	}
	if c.shown {
		k.tellRotated(g, began, c.ends)
	}
	return files, g, nil
}

// mayBegin returns what speaks against the volume's first grant: its end could not be seen. A volume that has one is kept up whatever
// is seen now.
func (k *Keeper) mayBegin(req *spec.Request) error {
	grants, err := k.Store.OfVolume(req.Volume)
	if err != nil {
		return fmt.Errorf("reading the store: %w", err)
	}
	if len(grants) > 0 {
		return nil
	}
	return k.Sees(req.Volume, req.KubeletDir)
}

// tellOverridden says which parameters are the pod's own: whoever looks at the class would not find why the volume differs, or why
// its login is denied.
func (k *Keeper) tellOverridden(req *spec.Request) {
	names := k.Overrides(req.Volume.PodUID, req.Volume.Volume)
	if len(names) == 0 {
		return
	}
	k.notice(wished(req, noticed), "ClassOverridden", fmt.Sprintf("volume %q: the pod's volumeAttributes %q win over SecretProviderClass %q", req.Volume.Volume, names, req.Class))
}

// tellRotated says which credentials took the place of others since a Mount began, and whether those had ended before: ends is when;
// zero when not at all.
func (k *Keeper) tellRotated(g grant.Grant, began, ends grant.Instant) {
	var paths []string
	for _, l := range g.Leases {
		if !l.Superseded && l.Term.Issued >= began {
			paths = append(paths, strconv.Quote(l.Read.Path))
		}
	}
	if len(paths) == 0 {
		return
	}
	eventtype, before := "Normal", "run out by themselves"
	if now := k.Now(); ends != 0 && ends < now {
		eventtype, before = "Warning", fmt.Sprintf("ended %s ago", max(now.Sub(ends), time.Second).Round(time.Second))
	}
	k.Event(g.Pod, eventtype, "Rotated", fmt.Sprintf("volume %q shows new credentials of %s; those before %s", g.Volume.Volume, strings.Join(paths, ", "), before))
}

// fill logs in unless g has a token, reads what is due and renders. inDoubt is until when Vault may be working on a request
// that nobody waits for any more; zero when there is none.
func (k *Keeper) fill(ctx context.Context, client *vault.Client, g grant.Grant, req *spec.Request) (files []render.File, inDoubt grant.Instant, err error) {
	s := session(&g)
	if g.Token.IsZero() {
		with, err := k.credentials(ctx, client, g, req)
		if err != nil {
			return nil, 0, err
		}
		if s, err = k.logIn(ctx, client, g, with); err != nil {
			return nil, 0, k.refusedSecretID(g, err)
		}
		if g, err = k.Store.Get(g.ID); err != nil {
			return nil, 0, err
		}
	}
	if g.Unleasable != "" && len(g.Leases) > 0 { // an earlier try met it; another read would make another lease
		return nil, 0, &RefusedError{Path: g.Leases[0].Read.Path, Why: leasedBut + g.Unleasable}
	}
	answers, err := k.Store.Answers(g.ID)
	if err != nil {
		return nil, 0, err
	}
	if inDoubt, err = k.readAll(ctx, client, s, g, &req.Spec, due(&g, req.Spec.Objects, answers, k.Now())); err != nil {
		return nil, inDoubt, err
	}
	if answers, err = k.Store.Answers(g.ID); err != nil {
		return nil, 0, err
	}
	if inDoubt, err = k.renderTemplates(ctx, client, s, g.ID, &req.Spec, answers); err != nil {
		return nil, inDoubt, err
	}
	files, err = render.Files(req.Spec.Objects, answers)
	return files, 0, err
}

// claim is what a Mount works with.
type claim struct {
	grant grant.Grant
	// first: the volume had no grant before.
	first bool
	// shown: the volume shows something already.
	shown bool
	// ends is when the first of what it shows ends that nothing lengthens any more; zero for never.
	ends grant.Instant
	// busy is what the grant's BusyUntil must at least be when the work is over: requests of an earlier try may linger.
	busy grant.Instant
	// findings are recorded with how the work ended.
	findings findings
}

// claim picks the grant to work with, not the one excepted, or records a new one, and marks it busy. Whatever else the volume has
// that no Mount will use again is let go.
func (k *Keeper) claim(req *spec.Request, except string) (c claim, err error) {
	now := k.Now()
	busy := now.Add(claimLife)
	var dropped []string
	var before grant.Grant
	fresh := newGrant(req, now)
	fresh.BusyUntil = busy
	err = k.Store.UpdateVolume(req.Volume, func(grants []*grant.Grant) (*grant.Grant, error) {
		c, dropped, before = claim{first: len(grants) == 0}, nil, grant.Grant{}
		for _, g := range grants {
			fresh.Created = min(fresh.Created, g.Created)
			// What was seen of the pod holds, whatever grant of its volume it was seen for: there may be no second look.
			fresh.Grace, fresh.FolderSeen = max(fresh.Grace, g.Grace), fresh.FolderSeen || g.FolderSeen
			same := g.Digest == req.Spec.Digest
			if same && !g.SecretID.IsZero() {
				fresh.SecretID = g.SecretID
			}
			switch {
			case g.State == grant.Active:
				c.shown, c.ends = true, grant.Earliest(c.ends, g.Ends(now))
				fresh.Gap, fresh.Unanswered, fresh.Answered = g.Gap, g.Unanswered, g.Answered
				if same { // what was found out of the class holds
					fresh.SyncAsked, fresh.Expire = g.SyncAsked, g.Expire
				}
				if !same || g.ID == except || !g.Readable(now) || g.TokenDue(now) {
					if same {
						before = *g
					}
					continue
				}
			case g.State == grant.Partial && same && g.ID != except && (g.Token.IsZero() || g.Readable(now)):
				g.State = grant.Pending // a crash from here on leaves reads that nobody knows of
			case g.State == grant.Partial, g.State == grant.Pending:
				g.GiveUp("a later mount of the volume cannot go on from it", now)
				g.Expire = ""
				dropped = append(dropped, g.ID)
				continue
			default:
				continue
			}
			c.busy, g.BusyUntil, g.Tried = g.BusyUntil, busy, now
			c.grant = *g
		}
		if c.grant.ID != "" {
			return nil, nil
		}
		c.grant = fresh
		return &fresh, nil
	})
	if err != nil {
		return c, err
	}
	for _, id := range dropped {
		k.queue.Add(id)
	}
	if c.grant.ID == fresh.ID {
		k.warnOfClass(req)
		if before.ID != "" { // what hangs on no token is no reason to issue a certificate anew
			err = k.Store.CopyAnswers(before.ID, fresh.ID, func(a grant.Answer) bool { return !a.Leased && !before.AnswerDue(a, now) })
		}
		if err != nil { // there was no request under it, and is none
			return c, errors.Join(err, k.letGo(fresh.ID, "what its volume shows could not be taken over"))
		}
	}
	// A look now sees kubelet's folder: after a failed mount it is gone for a while, and one never seen proves nothing later.
	k.queue.Add(c.grant.ID)
	return c, nil
}

// warnOfClass tells once for a grant what its class may not mean as it says.
func (k *Keeper) warnOfClass(req *spec.Request) {
	if len(req.Warnings) > 0 {
		k.notice(wished(req, noticed), "ClassWarning", fmt.Sprintf("volume %q, SecretProviderClass %q: %s", req.Volume.Volume, req.Class, strings.Join(req.Warnings, "; ")))
	}
}

func newGrant(req *spec.Request, now grant.Instant) grant.Grant {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	expire := ""
	if req.Spec.OnPodEnd == spec.ExpireOnPodEnd {
		expire = "the class says onPodEnd: expire"
	}
	return grant.Grant{
		ID:     fmt.Sprintf("%016x-%s", int64(now), hex.EncodeToString(random[:])),
		Volume: req.Volume, Pod: req.Pod, Class: req.Class,
		Server: req.Spec.Server, Namespace: req.Spec.Namespace, Auth: req.Spec.Auth, Digest: req.Spec.Digest,
		State: grant.Pending, Created: now, Tried: now, Unanswered: true, Expire: expire,
	}
}

var errEnded = errors.New("the pod ended during the mount")

// activate makes the claimed grant what the volume shows, and what it showed before a superseded one.
func (k *Keeper) activate(c claim) (active grant.Grant, err error) {
	ended, failed, now := false, false, k.Now()
	err = k.Store.UpdateVolume(c.grant.Volume, func(grants []*grant.Grant) (*grant.Grant, error) {
		i := slices.IndexFunc(grants, func(g *grant.Grant) bool { return g.ID == c.grant.ID })
		if i < 0 {
			return nil, store.ErrNotFound
		}
		g := grants[i]
		c.findings.note(g)
		g.BusyUntil = c.busy
		if ended = g.State == grant.Revoking; ended {
			return nil, nil
		}
		failed = g.Problem != ""
		g.State, g.Problem = grant.Active, ""
		for _, other := range grants {
			if other != g && (other.State == grant.Active || other.State == grant.Superseded) {
				other.State = grant.Superseded
				g.Inherit(other, now)
			}
		}
		active = *g
		return nil, nil
	})
	if err != nil {
		return active, fmt.Errorf("recording the mount: %w", err)
	}
	if ended {
		return active, errEnded
	}
	switch {
	case !c.shown:
		k.say(of(active, Mounted))
	case failed:
		k.say(of(active, Recovered))
	}
	return active, nil
}

// setBack records that the work failed. Without a token or an unwrapped secret-id there is nothing to keep; what found no room would only be read, and
// leased, again at the next try.
func (k *Keeper) setBack(c claim, failure error) error {
	now := k.Now()
	g, err := k.Store.Update(c.grant.ID, func(g *grant.Grant) error {
		if g.State == grant.Pending {
			g.State = grant.Partial
		}
		c.findings.note(g)
		g.BusyUntil, g.Tried, g.Problem = c.busy, now, failure.Error()
		return nil
	})
	switch {
	case err != nil:
	case g.Token.IsZero() && g.SecretID.IsZero():
		err = k.Store.Delete(g.ID)
	case g.State == grant.Partial && errors.Is(failure, store.ErrFull):
		err = k.letGo(g.ID, "its answers found no room in the store")
	}
	if err != nil {
		return fmt.Errorf("recording the failure: %w", err)
	}
	return nil
}
