// Package template renders templates that were written for the Vault Agent, byte for byte as the agent does.
//
// The language is consul-template's, whose package does the work; only its functions that read from Vault are ours (see package
// syntax for those that are refused). A template is a tenant's code, which cannot be interrupted and whose memory cannot be bounded
// within a process. So it runs in a short-lived child of the same binary, which first gives up all but computing: see limit.go.
//
// The child is a function: templates and Vault's answers go in, and files come out, or the call whose answer is not there yet. It
// then ends; its parent has the secret read and starts another. No child ever waits for Vault, which may be a tenant's own that never
// answers: so few of them are enough for a node, and their time can be short.
package template

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/template/syntax"
)

const (
	// MaxReads is how many distinct reads the templates of one Mount may make.
	MaxReads = 64
	// MaxBytes bounds the files of one Mount's templates together.
	MaxBytes = 1 << 20
	// maxAnswers bounds the answers that one Mount's templates use together, in bytes.
	maxAnswers = 1 << 20
)

// Template is the template of one object.
type Template struct {
	// Object is the object's name, for errors.
	Object, Text string
}

// Reply is what Vault answered.
type Reply struct {
	// Body is Vault's reply as sent; empty when it was one without content.
	Body []byte
	// Raw says that Body is no JSON.
	Raw bool
	// Absent says that there is nothing at that path. A list of it is empty; a read of it is an error.
	Absent bool
	// Denied is Vault's refusal to show that path to this token, and nothing but that; nil for none. As the agent's do, templates may
	// name a secret of KV version 2 without the data/ in its path, which no policy allows: so that it is looked for there then.
	Denied error
}

// Reader makes the reads that it is given, each once, and returns the reply of each. Those that were made before cost nothing: it
// answers from what is held.
type Reader func(context.Context, []spec.Read) (map[spec.Read]Reply, error)

// Output is a rendered template.
type Output struct {
	Contents []byte
	// Reads are those that Contents were made of. While none of their answers changes, nor do Contents.
	Reads []spec.Read
}

// Error says why a template cannot be rendered, in words fit for anybody's eyes.
type Error struct {
	Object string
	// Position is zero when it is the template as a whole.
	syntax.Position
	Problem string
}

// Error implements error.
func (e *Error) Error() string {
	separator := ","
	if e.Line == 0 {
		separator = ":"
	}
	return fmt.Sprintf("object %s%s %v", spec.Quote(e.Object), separator, &syntax.Fault{Position: e.Position, Problem: e.Problem})
}

// Renderer renders the templates of a node. The zero value is ready for use.
type Renderer struct {
	// Binary is that of the children; empty for this process's own.
	Binary string

	gate gate
	// Tests run other children, and have less patience. The zero values are childArg and computing.
	argument string
	patience time.Duration
}

// Render renders the templates of one Mount of a namespace; the outputs are in their order. Whatever several of them read is read
// once. Errors are *[Error]; those of read, which come as they are; and the context's.
func (r *Renderer) Render(ctx context.Context, namespace string, templates []Template, read Reader) ([]Output, error) {
	m := mount{answers: make(map[spec.Read]Reply), known: make(map[string]*known)}
	for i, t := range templates {
		needs, err := syntax.Check(t.Text)
		if f, ok := err.(*syntax.Fault); ok { //nolint:errorlint // Check returns nothing else
			return nil, &Error{t.Object, f.Position, f.Problem}
		}
		for _, n := range needs {
			if err := m.want(t.Object, n); err != nil {
				return nil, err
			}
		}
		m.left = append(m.left, i)
	}
	m.outputs = make([]Output, len(templates))
	b := budget{left: cmp.Or(r.patience, computing)}
	for {
		if err := m.read(ctx, read); err != nil {
			return nil, err
		}
		if len(m.left) == 0 {
			return m.outputs, nil
		}
		if err := r.pass(ctx, namespace, templates, &m, &b); err != nil {
			return nil, err
		}
	}
}

// pass lets a child render what is left with the answers that are there, and takes over what came of it.
func (r *Renderer) pass(ctx context.Context, namespace string, templates []Template, m *mount, b *budget) error {
	w := work{Answers: make(map[string]json.RawMessage, len(m.known))}
	for _, i := range m.left {
		w.Texts = append(w.Texts, templates[i].Text)
	}
	for key, k := range m.known {
		switch reply := m.answers[k.read]; {
		case reply.Absent, len(reply.Body) == 0:
			w.Answers[key] = json.RawMessage("null")
		default:
			w.Answers[key] = reply.Body
		}
	}
	results, err := r.run(ctx, namespace, w, b)
	if err != nil {
		if p, ok := err.(problem); ok { //nolint:errorlint // run returns it as it is
			return &Error{Object: templates[m.left[len(results)]].Object, Problem: string(p)}
		}
		return err
	}
	var left []int
	size := 0
	for n, result := range results {
		i := m.left[n]
		object := templates[i].Object
		switch {
		case result.Failure != nil:
			return &Error{object, result.Failure.Position, result.Failure.sentence()}
		case result.Missing != nil:
			if _, ok := m.known[keyOf(result.Missing.Call)]; ok {
				return &Error{object, result.Missing.Position, distrusted}
			}
			if err := m.want(object, *result.Missing); err != nil {
				return err
			}
			left = append(left, i)
		default:
			out := Output{Contents: result.Contents}
			for _, key := range result.Used {
				k, ok := m.known[key]
				if !ok {
					return &Error{Object: object, Problem: distrusted}
				}
				if !slices.Contains(out.Reads, k.read) {
					out.Reads = append(out.Reads, k.read)
				}
			}
			m.outputs[i] = out
		}
	}
	m.left = left
	largest := 0
	for i, out := range m.outputs {
		if size += len(out.Contents); len(out.Contents) > len(m.outputs[largest].Contents) {
			largest = i
		}
	}
	if size > MaxBytes {
		return &Error{Object: templates[largest].Object, Problem: tooLarge}
	}
	return nil
}

const (
	distrusted = "the process that renders it gave an answer that makes no sense"
	tooLarge   = "the templates of a volume make more than 1 MiB together"
)
