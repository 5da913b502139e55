// Package syntax reads templates without running them: what they call, where, and which secrets they certainly need.
//
// A template is text that a tenant wrote, in the language of the Vault Agent: text/template with the functions of consul-template.
// Here it is only parsed, which costs no more than its bounded text. What runs it is package template.
package syntax

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"text/template/parse"
	"unicode"
)

const (
	// MaxText is the largest template, in bytes.
	MaxText = 64 << 10
	// maxNesting bounds how deep the parser can get: neither actions nor parentheses nest deeper than there are of them.
	maxNesting = 4000
	maxName    = 64 // bytes of a tenant's word in a sentence
)

// Call is a call of a function that reads from Vault, with texts for arguments.
type Call struct {
	Func string
	Args []string
}

// Position is a place in a template, both counted from 1; the column in bytes. The zero value is no place.
type Position struct{ Line, Column int }

// Fault says what is wrong with a template. Its words repeat names of functions, variables and templates; never a text between quotes,
// which may be a password.
type Fault struct {
	Position
	Problem string
}

// Error implements error.
func (f *Fault) Error() string {
	switch {
	case f.Line == 0:
		return f.Problem
	case f.Column == 0:
		return fmt.Sprintf("line %d: %s", f.Line, f.Problem)
	}
	return fmt.Sprintf("line %d, column %d: %s", f.Line, f.Column, f.Problem)
}

// Need is a call that every rendering makes, and where.
type Need struct {
	Call
	Position
}

// Check parses a template. It returns the calls that every rendering makes, whatever Vault answers, so that their secrets can be read
// ahead; others show only while it is rendered. Every error is a *[Fault], the first one in the text.
func Check(text string) (needs []Need, err error) {
	switch {
	case len(text) > MaxText:
		return nil, &Fault{Problem: fmt.Sprintf("the template is larger than %d bytes", MaxText)}
	case strings.Count(text, "{{") > maxNesting, strings.Count(text, "(") > maxNesting:
		return nil, &Fault{Problem: fmt.Sprintf("the template has more than %d actions or parentheses", maxNesting)}
	}
	defer func() {
		if recover() != nil { // the parser's own panics are errors; what else there may be is not worth the process
			needs, err = nil, &Fault{Problem: "the template cannot be parsed"}
		}
	}()
	trees := make(map[string]*parse.Tree)
	main := parse.New("")
	main.Mode = parse.SkipFuncCheck
	if _, err := main.Parse(text, "", "", trees); err != nil {
		return nil, fault(err)
	}
	w := walker{text: text, trees: trees}
	for name, tree := range trees {
		w.node(tree.Root, name == "")
	}
	if w.first != nil {
		return nil, w.first
	}
	return w.needs, nil
}

// walker visits every node of a template.
type walker struct {
	text  string
	trees map[string]*parse.Tree
	needs []Need
	first *Fault
}

func (w *walker) position(pos parse.Pos) Position {
	before := w.text[:pos]
	return Position{Line: 1 + strings.Count(before, "\n"), Column: len(before) - strings.LastIndex(before, "\n")}
}

func (w *walker) faultf(pos parse.Pos, format string, args ...any) {
	at := w.position(pos)
	if w.first == nil || at.Line < w.first.Line || at.Line == w.first.Line && at.Column < w.first.Column {
		w.first = &Fault{at, fmt.Sprintf(format, args...)}
	}
}

// node visits a node and what is below it. It is certain when every rendering gets there.
func (w *walker) node(n parse.Node, certain bool) {
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil { // of an else that is not there
			return
		}
		for _, child := range n.Nodes {
			w.node(child, certain)
		}
	case *parse.ActionNode:
		w.pipe(n.Pipe, certain)
	case *parse.IfNode:
		w.branch(&n.BranchNode, certain, false)
	case *parse.RangeNode:
		w.branch(&n.BranchNode, certain, false)
	case *parse.WithNode:
		w.branch(&n.BranchNode, certain, isRead(n.Pipe))
	case *parse.TemplateNode:
		w.templateName(n.Pos, n.Name)
		w.pipe(n.Pipe, certain)
	case *parse.PipeNode:
		w.pipe(n, certain)
	case *parse.ChainNode:
		w.node(n.Node, certain)
	case *parse.IdentifierNode:
		if p := problem(n.Ident); p != "" {
			w.faultf(n.Pos, "%s", p)
		}
	}
}

// branch visits an if, range or with. Its condition holds certainly if that is a secret.
func (w *walker) branch(b *parse.BranchNode, certain, holds bool) {
	w.pipe(b.Pipe, certain)
	w.node(b.List, certain && holds)
	w.node(b.ElseList, false)
}

func (w *walker) pipe(p *parse.PipeNode, certain bool) {
	if p == nil {
		return
	}
	for i, command := range p.Cmds {
		w.command(command, certain, i == 0)
	}
}

// command visits a call with its arguments; alone says that no result of another is passed to it.
func (w *walker) command(c *parse.CommandNode, certain, alone bool) {
	name := ""
	if f, ok := c.Args[0].(*parse.IdentifierNode); ok {
		name = f.Ident
		if call, ok := constant(name, c.Args[1:]); ok && alone {
			switch {
			case name == "executeTemplate" && len(call.Args) > 0:
				w.templateName(c.Pos, call.Args[0])
			case certain && isReader(name) && len(call.Args) > 0:
				w.needs = append(w.needs, Need{call, w.position(f.Pos)})
			}
		}
	}
	for _, arg := range c.Args {
		w.node(arg, certain && name != "and" && name != "or") // which need not look at all of theirs
	}
}

// templateName looks whether a template is there: of another file it is not.
func (w *walker) templateName(pos parse.Pos, name string) {
	if w.trees[name] == nil {
		w.faultf(pos, "the template defines no template %s; those of other objects cannot be used", strconv.Quote(shorten(name)))
	}
}

func isReader(name string) bool { return name == Secret || name == Secrets || name == PKICert }

// isRead reports whether a pipeline is a read of one secret, so that it is never empty.
func isRead(p *parse.PipeNode) bool {
	f, ok := p.Cmds[0].Args[0].(*parse.IdentifierNode)
	return ok && len(p.Cmds) == 1 && (f.Ident == Secret || f.Ident == PKICert)
}

// constant returns a call whose arguments are all texts.
func constant(name string, args []parse.Node) (Call, bool) {
	call := Call{Func: name}
	for _, arg := range args {
		text, ok := arg.(*parse.StringNode)
		if !ok {
			return Call{}, false
		}
		call.Args = append(call.Args, text.Text)
	}
	return call, true
}

var (
	parseError = regexp.MustCompile(`(?s)^template: :(\d+): (.*)$`)
	quoted     = regexp.MustCompile(`"(?:[^"\\]|\\.)*"(?:\.\.\.)?|<[^>]*>`)
	// plain is a name or a sign of the language.
	plain = regexp.MustCompile(`^["<](?:\{\{)?(?:[$.]?[A-Za-z_][A-Za-z0-9_.]*|[^A-Za-z0-9"<>]{1,3})(?:\}\})?[">]$`)
)

// fault keeps of the parser's error the line and its words, without the pieces of the template that are neither names nor signs.
func fault(err error) *Fault {
	parts := parseError.FindStringSubmatch(err.Error())
	if parts == nil {
		return &Fault{Problem: "the template cannot be parsed"}
	}
	line, _ := strconv.Atoi(parts[1])
	words := quoted.ReplaceAllStringFunc(parts[2], func(piece string) string {
		if len(piece) <= maxName && plain.MatchString(piece) {
			return piece
		}
		return "..."
	})
	if strings.HasPrefix(words, "malformed character constant") { // the one text that is not quoted
		words = "malformed character constant"
	}
	if strings.ContainsFunc(words, unicode.IsControl) || len(words) > 4*maxName {
		words = "the template cannot be parsed"
	}
	return &Fault{Position{Line: line}, words}
}

func shorten(text string) string {
	if len(text) <= maxName {
		return text
	}
	return strings.ToValidUTF8(text[:maxName-len("...")], "") + "..."
}
