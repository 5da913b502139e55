package template

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/template/syntax"
)

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
