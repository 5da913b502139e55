package template

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log"
	"os"
	"regexp"
	"sort"
	"strconv"
	"strings"
	texttemplate "text/template"

	"github.com/hashicorp/consul-template/dependency"
	consul "github.com/hashicorp/consul-template/template"
	"github.com/hashicorp/vault/api"

	"github.com/leasehold-csi/leasehold/internal/template/syntax"
)

// work is what a child is given.
type work struct {
	Texts []string
	// Answers are Vault's by the key of the call, null where it has none.
	Answers map[string]json.RawMessage
}

// result is what a child says of one text, as soon as it has it: contents, a call whose answer is missing, or a failure.
type result struct {
	Contents []byte       `json:",omitempty"`
	Used     []string     `json:",omitempty"` // keys of the calls that Contents are made of
	Missing  *syntax.Need `json:",omitempty"`
	Failure  *failure     `json:",omitempty"`
}

// sound reports whether a result is one. A child has run a tenant's code: nothing that it says is trusted.
func (r *result) sound() bool {
	switch {
	case r.Failure != nil:
		return r.Missing == nil && r.Contents == nil && r.Failure.sound()
	case r.Missing != nil:
		return r.Contents == nil && functions[r.Missing.Func]
	}
	return true
}

// functions are those that read from Vault.
var functions = map[string]bool{syntax.Secret: true, syntax.Secrets: true, syntax.PKICert: true}

const exitUnlimited = 3 // of a child that could not limit itself

// A process that was started to render does so, and exits, before main begins: at this point of its start the packages that are not for
// rendering, such as the Kubernetes clients', are not initialised yet, which would take half of its time. (Go initialises packages that
// are ready in the order of their import paths; where it did otherwise, rendering would only be slower.)
func init() {
	if len(os.Args) != 2 || os.Args[1] != childArg {
		return
	}
	if limit() != nil {
		os.Exit(exitUnlimited)
	}
	report := os.Stdout
	os.Stdout = os.Stderr
	log.SetOutput(io.Discard) // the libraries'
	if serve(os.Stdin, report) != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(in io.Reader, out io.Writer) error {
	var w work
	if err := json.NewDecoder(in).Decode(&w); err != nil {
		return err
	}
	left := MaxBytes
	report := json.NewEncoder(out)
	for _, text := range w.Texts {
		r := execute(text, w.Answers)
		if left -= len(r.Contents); left < 0 {
			r = result{Failure: &failure{Kind: large}}
		}
		if err := report.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// execute renders one template.
func execute(text string, answers map[string]json.RawMessage) (r result) {
	if text == "" { // which consul-template takes for none
		return result{}
	}
	e := engine{answers: answers, values: make(map[string]any)}
	defer func() {
		if recover() != nil {
			r = result{Failure: &failure{Kind: other}}
		}
	}()
	t, err := consul.NewTemplate(&consul.NewTemplateInput{
		Contents:         text,
		ExtFuncMap:       texttemplate.FuncMap{syntax.Secret: e.secret, syntax.Secrets: e.secrets, syntax.PKICert: e.pkiCert},
		FunctionDenylist: syntax.Refused(),
	})
	if err != nil {
		return result{Failure: &failure{Kind: other}}
	}
	rendered, err := t.Execute(&consul.ExecuteInput{Brain: consul.NewBrain()})
	switch {
	case err != nil && e.missing != nil:
		return result{Missing: &syntax.Need{Call: *e.missing, Position: failureOf(err).Position}}
	case err != nil:
		return result{Failure: failureOf(err)}
	}
	for key := range e.values {
		r.Used = append(r.Used, key)
	}
	sort.Strings(r.Used)
	r.Contents = rendered.Output
	return r
}

// engine has the functions that read from Vault, for one template.
type engine struct {
	answers map[string]json.RawMessage
	// values are the answers that were used, parsed. As in consul-template, the same call gives the same value.
	values map[string]any
	// missing is the call at which the template was given up, because its answer is not there.
	missing *syntax.Call
}

// errStop ends a template. Its text is seen by nobody.
var errStop = errors.New("stop")

// value returns what a call gives.
func (e *engine) value(name string, args []string, parse func(body []byte) (any, error)) (any, error) {
	call := syntax.Call{Func: name, Args: args}
	key := keyOf(call)
	if v, ok := e.values[key]; ok {
		return v, nil
	}
	body, ok := e.answers[key]
	if !ok {
		e.missing = &call
		return nil, errStop
	}
	if bytes.Equal(body, []byte("null")) {
		body = nil
	}
	v, err := parse(body)
	if err == nil {
		e.values[key] = v
	}
	return v, err
}

func (e *engine) secret(args ...string) (any, error) {
	if len(args) == 0 { // as there
		return nil, nil
	}
	return e.value(syntax.Secret, args, func(body []byte) (any, error) { return parseSecret(body) })
}

// parseSecret returns an answer as templates see it: without the ids of its request and its lease, which are nobody's business, and
// without what a token would come in. It is nil where Vault answered without content.
func parseSecret(body []byte) (*dependency.Secret, error) {
	if body == nil {
		return nil, nil
	}
	theirs, err := api.ParseSecret(bytes.NewReader(body))
	if err != nil || theirs == nil {
		return nil, err
	}
	ours := &dependency.Secret{LeaseDuration: theirs.LeaseDuration, Renewable: theirs.Renewable, Warnings: theirs.Warnings}
	if len(theirs.Data) > 0 {
		ours.Data = theirs.Data
	}
	return ours, nil
}

func (e *engine) secrets(path string) ([]string, error) {
	if path == "" { // as there
		return nil, nil
	}
	v, err := e.value(syntax.Secrets, []string{path}, func(body []byte) (any, error) {
		s, err := parseSecret(body)
		if s == nil || err != nil {
			return []string(nil), err
		}
		return keysOf(s.Data["keys"])
	})
	names, _ := v.([]string)
	return names, err
}

var errNoList = errors.New("the answer is no list of names")

func keysOf(v any) (names []string, err error) {
	if v == nil {
		return nil, nil
	}
	list, ok := v.([]any)
	for _, item := range list {
		name, isText := item.(string)
		ok = ok && isText
		names = append(names, name)
	}
	if !ok {
		return nil, errNoList
	}
	sort.Strings(names)
	return names, nil
}

func (e *engine) pkiCert(args ...string) (any, error) {
	if len(args) == 0 { // as there
		return nil, nil
	}
	return e.value(syntax.PKICert, args, parseCert)
}

// kind is why a template failed, as a child may say it.
type kind string

const (
	other kind = ""
	large kind = "large"
	calls kind = "function"
	lacks kind = "field"
	types kind = "type"
	loops kind = "range"
	count kind = "arguments"
	depth kind = "depth"
)

// sentences are all that comes of an error of a template: the library's own quote values.
var sentences = map[kind]string{
	other: "the template fails",
	large: tooLarge,
	calls: "a function fails",
	lacks: "a field is asked of a value that has none of that name, or of nothing",
	types: "a value is of another type than what it is used for",
	loops: "range is given something that is neither a list nor a map",
	count: "a function is given more or fewer arguments than it takes",
	depth: "templates call each other too deeply",
}

// failure is why a template failed, and where.
type failure struct {
	Kind kind
	// Func is the function that failed; empty for none.
	Func string `json:",omitempty"`
	syntax.Position
}

func (f *failure) sound() bool {
	_, known := sentences[f.Kind]
	return known && (f.Func == "" || syntax.Allowed(f.Func))
}

func (f *failure) sentence() string {
	if f.Kind == calls && f.Func != "" {
		return "function " + f.Func + " fails"
	}
	return sentences[f.Kind]
}

var (
	execError = regexp.MustCompile(`(?s)^execute: template: :(\d+):(\d+): executing (.*)$`)
	calling   = regexp.MustCompile(`>: error calling (\w+): `)
)

// causes are how text/template's errors are told apart.
var causes = []struct {
	words string
	kind  kind
}{
	{">: error calling ", calls},
	{">: nil pointer evaluating ", lacks},
	{">: nil data; no entry for key ", lacks},
	{">: can't evaluate field ", lacks},
	{"is not a method but has arguments", lacks},
	{">: wrong type for value; ", types},
	{">: invalid value; expected ", types},
	{">: range can't iterate over ", loops},
	{">: wrong number of args for ", count},
	{">: exceeded maximum template depth", depth},
}

func failureOf(err error) *failure {
	parts := execError.FindStringSubmatch(err.Error())
	if parts == nil {
		return &failure{Kind: other}
	}
	f := &failure{Kind: other}
	f.Line, _ = strconv.Atoi(parts[1])
	f.Column, _ = strconv.Atoi(parts[2])
	f.Column++ // there it is counted from 0
	for _, c := range causes {
		if strings.Contains(parts[3], c.words) {
			f.Kind = c.kind
			break
		}
	}
	if name := calling.FindStringSubmatch(parts[3]); f.Kind == calls && name != nil && syntax.Allowed(name[1]) {
		f.Func = name[1]
	}
	return f
}
