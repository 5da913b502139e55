package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/render"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// Errors of Acquire that are neither Vault's nor the request's fault.
var (
	// ErrWorking: Vault has not answered yet; the work goes on, and the next try finds its result.
	ErrWorking = errors.New("Vault has not answered yet; the work goes on and the next try picks it up") //nolint:staticcheck // a name
	// ErrRendering: what ErrWorking says, of templates in the place of Vault.
	ErrRendering = errors.New("the volume's templates are not rendered yet: they take long, or wait for their turn among those of other volumes; " +
		"the work goes on and the next try picks it up")
	// ErrLeaving: the provider is shutting down, or was drained by force.
	ErrLeaving = errors.New("the provider is being restarted or was drained (leasehold drain --force); the next try after its start reaches the new one")
	// ErrNoToken: a login is needed, kubelet sent no service account token, and none could be requested.
	ErrNoToken = errors.New("kubelet sent no service account token")
	// ErrNoCertificate: a login is needed, and neither did the pod bring a client certificate nor may it use the provider's own.
	ErrNoCertificate = errors.New("there is no client certificate to log in with: the Secret that nodePublishSecretRef of the pod's volume names must hold tls.crt and tls.key " +
		"(the provider's own is for the pods of --cert-auth-namespaces)")
	// ErrCrowded: the pod's namespace, or the node, has its full share of mounts that wait for Vault.
	ErrCrowded = errors.New("too many mounts of this namespace or node wait for Vault already; it is tried again")
	errPanic   = errors.New("the provider failed; its log says where")
)

// Refused notes that a Mount was refused for what its class says now.
func (k *Keeper) Refused(e *spec.Error) {
	k.tell(Change{Kind: MountRefused, Pod: e.Pod, Volume: e.Volume.Volume, Why: e.Error(), Trouble: WrongClass}, e.Volume)
}

// tell says that a volume's files could not be made, and posts an event when it shows something: the driver hides errors of republishes.
func (k *Keeper) tell(c Change, volume spec.VolumeKey) {
	grants, err := k.Store.OfVolume(volume)
	c.Shown = err == nil && slices.ContainsFunc(grants, func(g grant.Grant) bool { return g.State == grant.Active })
	if c.Shown {
		k.Event(c.Pod, "Warning", "RefreshFailed", fmt.Sprintf("volume %q keeps its content: %s", c.Volume, c.Why))
	}
	k.say(c)
}

// flight is one piece of work for one volume, which every Mount of that volume meanwhile waits for.
type flight struct {
	// req is what the work is for: until it begins, what the Mount asks that came last.
	req *spec.Request
	// span is that of the Mount which asks for it.
	span trace.Span
	// callers are the Mounts that wait.
	callers int
	begun   bool
	// rendering: no answer of Vault's is waited for.
	rendering bool
	done      chan struct{}
	files     []render.File
	grant     grant.Grant
	err       error
}

// Mounts that wait for Vault at a time: on the node, and of one namespace, whose Vault may never answer.
const (
	maxFlights          = 256
	maxNamespaceFlights = 64
)

// Acquire answers the files that req asks for: from the store when nothing is due, else with Vault's help. The work goes on
// when ctx ends first, because an aborted login or read can leave tokens and credentials that nobody knows.
func (k *Keeper) Acquire(ctx context.Context, req *spec.Request) ([]render.File, error) {
	for asked := false; ; asked = true {
		held, err := k.held(req)
		if err != nil {
			return nil, err
		}
		if held.files != nil && !asked {
			k.noteGap(held.grant, k.volumes.ask(req.Volume, k.Now()))
			k.notePair(held.grant, req)
		}
		if held.fresh {
			return held.files, k.answered(ctx, held.grant)
		}
		f, err := k.join(ctx, req)
		if err != nil {
			return held.filesOr(err)
		}
		select {
		case <-f.done:
			switch {
			case f.req.Spec.Digest != req.Spec.Digest: // somebody else's work; now ours
			case f.err != nil:
				return held.filesOr(f.err)
			default:
				if !slices.EqualFunc(held.files, f.files, sameFile) {
					k.volumes.change(req.Volume, k.Now())
					k.sayRefreshed(f, held.files)
				}
				return f.files, k.answered(ctx, f.grant)
			}
		case <-ctx.Done():
			err := k.leave(f, ErrWorking)
			c := refusal(err, req)
			c.Shown = held.files != nil
			k.say(c)
			return held.filesOr(err)
		case <-k.leaving:
			return held.filesOr(k.leave(f, ErrLeaving))
		}
	}
}

// sayRefreshed tells which paths hold something new since the files before, of those that no lease and no certificate tells of.
func (k *Keeper) sayRefreshed(f *flight, before []render.File) {
	if before == nil {
		return
	}
	told := make(map[string]bool)
	for _, file := range f.files {
		if slices.ContainsFunc(before, func(b render.File) bool { return sameFile(file, b) }) {
			continue
		}
		for _, o := range f.req.Spec.Objects {
			minted := o.Read.Method != http.MethodGet && o.Read.Method != spec.Rendered || f.grant.Lease(o.Read) != nil
			if o.Writes(file.Path) && !minted && !told[o.Read.Path] {
				told[o.Read.Path] = true
				k.say(of(f.grant, Refreshed).at(o.Read.Path, 0))
			}
		}
	}
}

func sameFile(a, b render.File) bool {
	return a.Path == b.Path && a.Mode == b.Mode && bytes.Equal(a.Contents, b.Contents)
}

// noteGap keeps the longest time between a change of a volume's files and the Mount after it: replacements are sought that much
// earlier.
func (k *Keeper) noteGap(g grant.Grant, gap time.Duration) {
	if gap <= g.Gap {
		return
	}
	_, err := k.Store.Update(g.ID, func(g *grant.Grant) error { g.Gap = max(g.Gap, gap); return nil })
	if err != nil {
		k.Log.Warn("keeping the pace of republishes", "grant", g.ID, "err", err)
	}
}

// notePair keeps the certificate that the pod's Secret holds now, with which the token is renewed from here on: Vault takes a new one
// of the same authority, and that from before runs out. One that cannot be used is told of, and does not take the place of what can:
// with it the token could not be given back either.
func (k *Keeper) notePair(g grant.Grant, req *spec.Request) {
	pair := req.Spec.Server.Pair
	if pair.IsZero() || pair == g.Server.Pair {
		return
	}
	if _, err := k.Vaults.Client(req.Spec.Server, req.Pod.Namespace); err != nil {
		k.tell(refusal(err, req), req.Volume)
		return
	}
	_, err := k.Store.Update(g.ID, func(g *grant.Grant) error { g.Server.Pair = pair; return nil })
	if err != nil {
		k.Log.Warn("keeping the new client certificate", "grant", g.ID, "err", err)
	}
}

// answered notes when the volume's files are first handed out. A container that was started before then was given an empty volume:
// see startedEmpty.
func (k *Keeper) answered(ctx context.Context, g grant.Grant) error {
	if caller := ctx.Err(); caller != nil || !g.Unanswered {
		return caller
	}
	if _, err := k.Store.Update(g.ID, func(g *grant.Grant) error { g.Unanswered, g.Answered = false, time.Now(); return nil }); err != nil {
		return fmt.Errorf("recording the answer: %w", err)
	}
	k.queue.Add(g.ID)
	return nil
}

// Leave has every waiting Mount answered now. Their requests under way come to their end; no more are begun.
func (k *Keeper) Leave() { k.leavingOnce.Do(func() { close(k.leaving) }) }

// Drain begins no more logins and reads and waits until those under way are over, or ctx ends.
func (k *Keeper) Drain(ctx context.Context) error {
	k.Leave()
	k.mounts.Lock()
	k.mounts.closed = true
	k.mounts.Unlock()
	idle := make(chan struct{})
	go func() { k.mounts.running.Wait(); close(idle) }()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for logins and reads: %w", context.Cause(ctx))
	}
}

// holding is what the store can answer.
type holding struct {
	files []render.File
	grant grant.Grant
	// fresh: nothing of it is due.
	fresh bool
}

func (h holding) filesOr(err error) ([]render.File, error) {
	if h.files != nil {
		return h.files, nil
	}
	return nil, err
}

// held answers from the store: no request to anybody.
func (k *Keeper) held(req *spec.Request) (holding, error) {
	grants, err := k.Store.OfVolume(req.Volume)
	if err != nil {
		return holding{}, fmt.Errorf("reading the store: %w", err)
	}
	g := serving(grants, req.Spec.Digest)
	if g == nil {
		return holding{}, nil
	}
	answers, err := k.Store.Answers(g.ID)
	if err != nil {
		return holding{}, fmt.Errorf("reading the store: %w", err)
	}
	files, err := render.Files(req.Spec.Objects, answers)
	if err != nil || len(unrendered(req.Spec.Objects, answers)) > 0 {
		return holding{}, nil //nolint:nilerr // content is droppable: what does not render is read again
	}
	now := k.Now()
	return holding{files: files, grant: *g, fresh: !g.TokenDue(now) && len(due(g, req.Spec.Objects, answers, now)) == 0}, nil
}

// serving is the grant whose answers the volume shows, when it was made for the same wish.
func serving(grants []grant.Grant, digest string) *grant.Grant {
	for i := range grants {
		if g := &grants[i]; g.State == grant.Active && g.Digest == digest {
			return g
		}
	}
	return nil
}

// due lists the distinct reads of objects, and of what was rendered for them, that have no answer or one that should be read again.
func due(g *grant.Grant, objects []spec.Object, answers map[spec.Read]grant.Answer, now grant.Instant) []spec.Read {
	var reads []spec.Read
	seen := make(map[spec.Read]bool, len(objects))
	look := func(r spec.Read) {
		if seen[r] {
			return
		}
		seen[r] = true
		if a, ok := answers[r]; !ok || g.AnswerDue(a, now) {
			reads = append(reads, r)
		}
	}
	for _, o := range objects {
		if o.Template == "" {
			look(o.Read)
			continue
		}
		for _, r := range answers[o.Read].Uses {
			look(r)
		}
	}
	return reads
}

// join returns the volume's flight, which begins now or, when too many are under way, in its turn. Who does not wait until it is
// done must leave it.
func (k *Keeper) join(ctx context.Context, req *spec.Request) (*flight, error) {
	m := &k.mounts
	m.Lock()
	defer m.Unlock()
	f := m.underway[req.Volume]
	if f == nil {
		if m.closed {
			return nil, ErrLeaving
		}
		f = &flight{done: make(chan struct{})}
		m.underway[req.Volume] = f
		m.waiting = append(m.waiting, f)
	}
	f.callers++
	if asks := trace.SpanFromContext(ctx); f.begun { // the work's spans are found there
		asks.AddLink(trace.Link{SpanContext: f.span.SpanContext()})
	} else {
		f.req, f.span = req, asks
		k.beginFlights(context.WithoutCancel(ctx))
	}
	return f, nil
}

// leave is for a Mount that waits no longer. It returns why: the reason given, unless the work did not even begin.
func (k *Keeper) leave(f *flight, reason error) error {
	m := &k.mounts
	m.Lock()
	defer m.Unlock()
	f.callers--
	switch {
	case reason != ErrWorking: //nolint:errorlint // it is the caller's own
	case !f.begun:
		return ErrCrowded
	case f.rendering:
		return ErrRendering
	}
	return reason
}

// rendering notes whether a volume's flight renders, or waits for Vault.
func (k *Keeper) rendering(v spec.VolumeKey, does bool) {
	m := &k.mounts
	m.Lock()
	defer m.Unlock()
	if f := m.underway[v]; f != nil {
		f.rendering = does
	}
}

// beginFlights begins those whose turn it is, and drops those that nobody waits for any more. The caller holds the lock.
func (k *Keeper) beginFlights(ctx context.Context) {
	m := &k.mounts
	kept := m.waiting[:0]
	for _, f := range m.waiting {
		switch namespace := f.req.Pod.Namespace; {
		case f.callers == 0:
			delete(m.underway, f.req.Volume)
		case m.closed, m.flying >= maxFlights, m.namespace[namespace] >= maxNamespaceFlights:
			kept = append(kept, f)
		default:
			f.begun = true
			m.flying++
			m.namespace[namespace]++
			m.running.Go(func() { k.fly(ctx, f) })
		}
	}
	clear(m.waiting[len(kept):])
	m.waiting = kept
}

func (k *Keeper) fly(ctx context.Context, f *flight) {
	k.drained.Store(false)
	work, cancel := context.WithTimeout(trace.ContextWithSpan(ctx, f.span), beginWithin) // ctx may be another's
	defer cancel()
	k.mountGuarded(work, f.req, f)
	m, namespace := &k.mounts, f.req.Pod.Namespace
	m.Lock()
	delete(m.underway, f.req.Volume)
	m.flying--
	if m.namespace[namespace]--; m.namespace[namespace] == 0 {
		delete(m.namespace, namespace)
	}
	k.beginFlights(ctx)
	m.Unlock()
	close(f.done)
	k.wake(k.Store.OfVolume(f.req.Volume))
}

// mountGuarded is mount with a panic turned into an error.
func (k *Keeper) mountGuarded(ctx context.Context, req *spec.Request, f *flight) {
	defer func() {
		if p := recover(); p != nil {
			k.Log.Error("panic during a mount", "pod", req.Pod.Namespace+"/"+req.Pod.Name, "panic", fmt.Sprintf("%T", p))
			f.files, f.err = nil, errPanic
		}
	}()
	begin := time.Now()
	if f.files, f.grant, f.err = k.mount(ctx, req); f.err != nil {
		k.tell(refusal(f.err, req), req.Volume)
	}
	k.Log.Debug("mount work done", "pod", req.Pod.Namespace+"/"+req.Pod.Name, "volume", req.Volume.Volume, "took", time.Since(begin), "ok", f.err == nil)
}
