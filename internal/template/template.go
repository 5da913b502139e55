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
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
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

// mount is the state of one Render.
type mount struct {
	outputs []Output
	// left are the indexes of the templates that are not rendered yet.
	left []int
	// known are the calls that were met, by their key.
	known map[string]*known
	// answers are Vault's, and wanted the reads that have none yet.
	answers map[spec.Read]Reply
	wanted  []spec.Read
	bytes   int
}

// known is a call and what it reads.
type known struct {
	object string
	need   syntax.Need
	read   spec.Read
	// settled: read is not to be replaced by that of a longer path.
	settled bool
}

// want notes that a template needs a call's answer. What it asks for is a tenant's word, whoever passes it on.
func (m *mount) want(object string, n syntax.Need) error {
	key := keyOf(n.Call)
	if _, ok := m.known[key]; ok {
		return nil
	}
	read, err := readOf(n.Call)
	if err != nil {
		return &Error{object, n.Position, "function " + n.Func + ": " + err.Error()}
	}
	k := &known{object: object, need: n, read: read}
	m.known[key] = k
	return m.wantRead(k, read)
}

// wantRead notes that a read must be made for a call, unless it was or will be anyway.
func (m *mount) wantRead(k *known, read spec.Read) error {
	if _, ok := m.answers[read]; ok || slices.Contains(m.wanted, read) {
		return nil
	}
	if len(m.answers)+len(m.wanted) == MaxReads {
		return &Error{k.object, k.need.Position, fmt.Sprintf("the templates of a volume may make %d reads, and this is one more", MaxReads)}
	}
	m.wanted = append(m.wanted, read)
	return nil
}

// read has everything read that is wanted, until each call that was met has its answer.
func (m *mount) read(ctx context.Context, read Reader) error {
	for len(m.wanted) > 0 {
		replies, err := read(ctx, m.wanted)
		if err != nil {
			return err
		}
		for _, w := range m.wanted {
			reply, ok := replies[w]
			if !ok {
				return fmt.Errorf("rendering: %s was not read", spec.Quote(w.Path))
			}
			m.answers[w] = reply
			m.bytes += len(reply.Body)
		}
		m.wanted = nil
		for _, key := range slices.Sorted(maps.Keys(m.known)) {
			if err := m.settle(m.known[key]); err != nil {
				return err
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(m.known)) {
		k := m.known[key]
		if err := m.answers[k.read].Denied; err != nil {
			return err
		}
		if problem := m.unusable(k); problem != "" {
			return &Error{k.object, k.need.Position, fmt.Sprintf("function %s: the answer of %s %s", k.need.Func, spec.Quote(k.read.Path), problem)}
		}
	}
	return nil
}

// settle looks whether a call whose path Vault does not know, or does not show, means a secret of KV version 2: consul-template looks at
// the mount of every path for that. Who writes the whole path saves both requests.
func (m *mount) settle(k *known) error {
	reply := m.answers[k.read]
	if k.settled || k.read.Method != "GET" || reply.Denied == nil && !reply.Absent {
		k.settled = true
		return nil
	}
	about := spec.Read{Method: "GET", Path: "sys/internal/ui/mounts/" + k.read.Path}
	reply, ok := m.answers[about]
	if !ok {
		return m.wantRead(k, about)
	}
	k.settled = true
	if path, ok := versioned(reply.Body, k.read.Path, k.need.Func == syntax.Secrets); ok {
		k.read.Path = path
		return m.wantRead(k, k.read)
	}
	return nil
}

// versioned inserts into a path what that of a secret, or of a list, of KV version 2 has after its mount.
func versioned(about []byte, path string, list bool) (string, bool) {
	var reply struct {
		Data struct {
			Path, Type string
			Options    struct{ Version string }
		}
	}
	if json.Unmarshal(about, &reply) != nil || reply.Data.Type != "kv" || reply.Data.Options.Version != "2" {
		return "", false
	}
	mount := strings.Trim(reply.Data.Path, "/")
	for !strings.HasPrefix(path+"/", mount+"/") { // it may begin with a namespace, in which the path lies anyway
		var ok bool
		if _, mount, ok = strings.Cut(mount, "/"); !ok {
			return "", false
		}
	}
	rest := strings.Trim(strings.TrimPrefix(path, mount), "/")
	kinds := []string{"data", "metadata", "subkeys"}
	if list {
		kinds = []string{"metadata"}
	}
	if first, _, _ := strings.Cut(rest, "/"); slices.Contains(kinds, first) {
		return "", false
	}
	return strings.Trim(mount+"/"+kinds[0]+"/"+rest, "/"), true
}

// unusable says why an answer is of no use to the function that asked for it; empty when it is.
func (m *mount) unusable(k *known) string {
	switch reply := m.answers[k.read]; {
	case reply.Absent && k.need.Func != syntax.Secrets:
		return "is not there: Vault has nothing at that path"
	case reply.Raw:
		return "is no JSON but a certificate, a revocation list or a key by itself"
	case len(reply.Body) > 0 && !json.Valid(reply.Body):
		return "is not a JSON object"
	case m.bytes > maxAnswers:
		return fmt.Sprintf("and those before it are more than the %d bytes that the templates of a volume may use", maxAnswers)
	}
	return ""
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

var (
	errNoPath    = errors.New("it is given no path")
	errNoPair    = errors.New("an argument after the path is not key=value")
	errLargeArgs = fmt.Errorf("its arguments are larger than %d bytes", maxArgs)
)

const maxArgs = 16 << 10

// keyOf is one text for each call.
func keyOf(c syntax.Call) string { return c.Func + "\x00" + strings.Join(c.Args, "\x00") }

// readOf is the request that consul-template makes for a call: a GET of a path with its query; with arguments a PUT of them; and a list,
// which is a GET with a query as well.
func readOf(c syntax.Call) (r spec.Read, err error) {
	if len(c.Args) == 0 {
		return r, errNoPath
	}
	path := strings.Trim(strings.TrimSpace(c.Args[0]), "/")
	writes := c.Func == syntax.PKICert || c.Func == syntax.Secret && len(c.Args) > 1
	if !writes || c.Func == syntax.PKICert { // as there: a write's path is taken as it is
		u, err := url.Parse(path)
		if err != nil || u.Scheme != "" || u.Host != "" || u.Fragment != "" {
			return r, fmt.Errorf("%s is not a path of Vault's", spec.Quote(path))
		}
		if path = u.Path; !writes && u.RawQuery != "" {
			path += "?" + u.RawQuery
		}
	}
	if r.Path, r.Query, err = spec.SplitPath(path); err != nil {
		return r, err
	}
	switch {
	case writes:
		r.Method = "PUT"
		r.Args, err = body(c.Args[1:])
	case c.Func == syntax.Secrets:
		r.Method, r.Query = "GET", "list=true"
	default:
		r.Method = "GET"
	}
	return r, err
}

// body is a request body of k=v pairs, in the form of spec.Read.
func body(pairs []string) (string, error) {
	args := make(map[string]string)
	for _, pair := range pairs {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return "", errNoPair
		}
		args[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	if len(args) == 0 {
		return "", nil
	}
	text, err := json.Marshal(args)
	if err != nil {
		return "", errNoPair
	}
	if len(text) > maxArgs {
		return "", errLargeArgs
	}
	return string(text), nil
}
