package keeper

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/template"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// unrendered are the objects, one for each template, of which nothing was rendered from the answers that are held now: an answer
// changed, and perhaps this process died before it could render. What was rendered before does not fit the other files any more.
func unrendered(objects []spec.Object, answers map[spec.Read]grant.Answer) (stale []spec.Object) {
	var seen map[spec.Read]bool
	for _, o := range objects {
		if o.Template == "" || seen[o.Read] {
			continue
		}
		if seen == nil {
			seen = make(map[spec.Read]bool)
		}
		seen[o.Read] = true
		if a, ok := answers[o.Read]; !ok || a.Sum != sumOf(a.Uses, answers) {
			stale = append(stale, o)
		}
	}
	return stale
}

// sumOf is a digest of answers.
func sumOf(reads []spec.Read, answers map[spec.Read]grant.Answer) string {
	h := sha256.New()
	for _, r := range reads {
		a, ok := answers[r]
		length := int64(len(a.Body))
		if !ok || a.Absent {
			length = -1
		}
		_ = binary.Write(h, binary.BigEndian, length) // a hash never fails
		_, _ = h.Write(a.Body)
	}
	return base64.RawStdEncoding.EncodeToString(h.Sum(nil))
}

// renderTemplates renders what is unrendered, and records and adds it to answers, with what it had to have read for that. inDoubt is
// as for fill.
func (k *Keeper) renderTemplates(ctx context.Context, client *vault.Client, s vault.Session, id string, wish *spec.Spec, answers map[spec.Read]grant.Answer) (inDoubt grant.Instant, err error) {
	objects := unrendered(wish.Objects, answers)
	if len(objects) == 0 {
		return 0, nil
	}
	g, err := k.Store.Get(id)
	if err != nil {
		return 0, err
	}
	templates := make([]template.Template, len(objects))
	for i, o := range objects {
		templates[i] = template.Template{Object: o.Name, Text: o.Template}
	}
	k.rendering(g.Volume, true)
	defer k.rendering(g.Volume, false)
	outputs, err := k.Templates.Render(ctx, g.Pod.Namespace, templates, func(ctx context.Context, reads []spec.Read) (map[spec.Read]template.Reply, error) {
		k.rendering(g.Volume, false)
		defer k.rendering(g.Volume, true)
		var replies map[spec.Read]template.Reply
		var err error
		replies, inDoubt, err = k.replies(ctx, client, s, g, wish, reads, answers)
		return replies, err
	})
	if err != nil {
		return inDoubt, err
	}
	for i, o := range objects {
		out := grant.Answer{Read: o.Read, Raw: true, Body: outputs[i].Contents, Uses: outputs[i].Reads, Sum: sumOf(outputs[i].Reads, answers)}
		if _, err := k.Store.PutAnswer(id, out, func(*grant.Grant) error { return nil }); err != nil {
			return 0, fmt.Errorf("recording what was rendered for object %s: %w", spec.Quote(o.Name), err)
		}
		answers[o.Read] = out
	}
	return 0, nil
}

// replies answers a template's reads from answers, to which it adds what it has to read for that.
func (k *Keeper) replies(ctx context.Context, client *vault.Client, s vault.Session, g grant.Grant, wish *spec.Spec, reads []spec.Read,
	answers map[spec.Read]grant.Answer,
) (replies map[spec.Read]template.Reply, inDoubt grant.Instant, err error) {
	var missing []spec.Read
	for _, r := range reads {
		if a, ok := answers[r]; !ok || g.AnswerDue(a, k.Now()) {
			missing = append(missing, r)
		}
	}
	replies = make(map[spec.Read]template.Reply, len(reads))
	for i, e := range k.readEach(ctx, client, s, g, wish, missing) {
		switch vault.KindOf(e) {
		case vault.Denied:
			replies[missing[i]] = template.Reply{Denied: e}
			continue
		case vault.InDoubt:
			inDoubt = k.Now().Add(grant.RequestLimit)
		}
		if err == nil {
			err = e
		}
	}
	if err != nil {
		return nil, inDoubt, err
	}
	held, err := k.Store.Answers(g.ID)
	if err != nil {
		return nil, 0, err
	}
	for _, r := range reads {
		if a, ok := held[r]; ok && replies[r].Denied == nil {
			answers[r], replies[r] = a, template.Reply{Body: a.Body, Raw: a.Raw, Absent: a.Absent}
		}
	}
	return replies, 0, nil
}
