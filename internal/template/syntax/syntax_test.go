package syntax_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	texttemplate "text/template"

	"github.com/Masterminds/sprig/v3"

	"github.com/leasehold-csi/leasehold/internal/template/syntax"
)

// TestEveryFunction: each function that a template could call is either allowed or refused on purpose. After an upgrade somebody must look
// at what is new.
func TestEveryFunction(t *testing.T) {
	var known []string
	for name := range sprig.HermeticTxtFuncMap() { // as consul-template takes them
		known = append(known, "sprig_"+name)
		if !syntax.Allowed("sprig_" + name) {
			t.Errorf("sprig's function %s is not listed", name)
		}
	}
	for _, name := range consulFunctions(t) {
		known = append(known, name)
		if allowed := syntax.Allowed(name); allowed == slices.Contains(syntax.Refused(), name) {
			t.Errorf("consul-template's function %s is allowed: %v, or refused as well, or neither", name, allowed)
		}
	}
	for name := range strings.FieldsSeq("and call eq ge gt html index js le len lt ne not or print printf println slice urlquery") {
		known = append(known, name)
		if _, err := texttemplate.New("").Parse("{{ " + name + " }}"); err != nil || !syntax.Allowed(name) {
			t.Errorf("function %s: %v", name, err)
		}
	}
	for _, name := range append(syntax.Refused(), syntax.All()...) {
		if !slices.Contains(known, name) {
			t.Errorf("%s is listed, but is no function", name)
		}
	}
}

// consulFunctions are the keys of the map that funcMap makes, in the library's source: it is told nowhere else.
func consulFunctions(t *testing.T) (names []string) {
	t.Helper()
	dir, err := exec.Command("go", "list", "-f", "{{ .Dir }}", "github.com/hashicorp/consul-template/template").Output()
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(strings.TrimSpace(string(dir)), "template.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); !ok || f.Name.Name != "funcMap" {
			continue
		}
		ast.Inspect(d, func(n ast.Node) bool {
			if pair, ok := n.(*ast.KeyValueExpr); ok {
				if key, ok := pair.Key.(*ast.BasicLit); ok {
					name, err := strconv.Unquote(key.Value)
					if err != nil {
						t.Fatal(err)
					}
					names = append(names, name)
				}
			}
			return true
		})
	}
	if len(names) < 90 {
		t.Fatalf("only %d functions were found", len(names))
	}
	return names
}

func TestCheck(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "plain": "",
		`{{ env "HOME" }}`:                       "line 1, column 4: function env is refused: it reads the environment",
		"a\nb {{ if true }}\n  {{ x }}{{ end }}": "line 3, column 6: there is no function x",
		`{{ "a" | upper }}`:                      "line 1, column 10: there is no function upper; sprig's is called sprig_upper",
		`{{ now }}`:                              "line 1, column 4: there is no function now",
		`{{ sprig_env "a" }}`:                    "line 1, column 4: there is no function sprig_env",
		`{{ sprig_getHostByName "a" }}`:          "line 1, column 4: there is no function sprig_getHostByName",
		`{{ with $x := key "a" }}{{ end }}`:      "line 1, column 15: function key is refused: it reads Consul",
		`{{ (file "/etc/passwd").x }}`:           "line 1, column 5: function file is refused: it reads files",
		`{{ define "a" }}{{ range ls "x" }}{{ else }}{{ end }}{{ end }}`:       "line 1, column 26: function ls is refused: it reads Consul",
		`{{ if true }}{{ else if plugin "x" }}{{ end }}`:                       "line 1, column 25: function plugin is refused: it runs programs",
		`{{ "x" | writeToFile "/a" "" "" "" }}`:                                "line 1, column 10: function writeToFile is refused: it writes files, and each file is an object of its own here",
		`{{ template "other" }}`:                                               `line 1, column 13: the template defines no template "other"; those of other objects cannot be used`,
		`{{ executeTemplate "other" }}`:                                        `line 1, column 4: the template defines no template "other"; those of other objects cannot be used`,
		`{{ define "a" }}{{ end }}{{ template "a" }}{{ executeTemplate "a" }}`: "",
		"{{ sockaddr \"GetPrivateIP\" }}{{ nomadService \"x\" }}":              "line 1, column 4: function sockaddr is refused: it reads the node's addresses",
		`{{ spew_dump "x" }}`:                                                  "line 1, column 4: function spew_dump is refused: it prints elsewhere than in the file",
		"x\n{{ end }}":                                                         "line 2: unexpected {{end}}",
		"{{ if }}{{ end }}":                                                    "line 1: missing value for if",
		"{{ if true }}":                                                        "line 1: unexpected EOF",
		"{{ $x }}":                                                             `line 1: undefined variable "$x"`,
		`{{ secret "canary" "pass`:                                             "line 1: unterminated quoted string",
		`{{ secret x "canary" ) }}`:                                            "line 1: unexpected right paren",
		`{{ "canary" "canary" = }}`:                                            `line 1: unexpected "=" in operand`,
		`{{ "canary"."canary" }}`:                                              "line 1: bad character U+0022 '\"'",
		`{{ break }}`:                                                          "line 1: {{break}} outside {{range}}",
		`{{ 12canary }}`:                                                       "line 1: bad number syntax: ...",
		"{{ 'canary' }}":                                                       "line 1: malformed character constant",
		"{{/* canary":                                                          "line 1: unclosed comment",
		strings.Repeat("{{ 1 }}", 4001):                                        "the template has more than 4000 actions or parentheses",
		strings.Repeat("x", 64<<10+1):                                          "the template is larger than 65536 bytes",
	} {
		_, err := syntax.Check(text)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%.60s: %q, want %q", text, got, want)
		}
	}
}

// TestNeeds: what is certainly read, and only that.
func TestNeeds(t *testing.T) {
	for text, want := range map[string]string{
		`{{ with secret "a" }}{{ with secret "b" "k=v" }}{{ end }}{{ else }}{{ secret "no" }}{{ end }}`:                               `secret[a]1:9 secret[b k=v]1:30`,
		`{{ $x := secret "a" }}{{ (secret "b").Data.x }}{{ (secret "c").Data.y | toUpper }}`:                                          `secret[a]1:10 secret[b]1:27 secret[c]1:52`,
		`{{ if secret "a" }}{{ secret "no" }}{{ else if secret "no" }}{{ end }}`:                                                      `secret[a]1:7`,
		`{{ range secrets "a" }}{{ secret "no" }}{{ else }}{{ secret "no" }}{{ end }}`:                                                `secrets[a]1:10`,
		`{{ secret (printf "no") }}{{ "no" | secret "x" }}{{ secret }}{{ $f := "no" }}{{ secret $f }}`:                                ``,
		`{{ or (secret "no") (secret "no") }}{{ and 1 (secret "no") }}{{ not (secret "a") }}`:                                         `secret[a]1:70`,
		`{{ define "t" }}{{ secret "no" }}{{ end }}{{ with pkiCert "p" "a=b" }}{{ secret "c" }}{{ end }}`:                             `pkiCert[p a=b]1:51 secret[c]1:74`,
		"x\n{{ with (secret \"a\").Data }}{{ secret \"no\" }}{{ end }}{{ template \"t\" (secret \"b\") }}{{ define \"t\" }}{{ end }}": `secret[a]2:10 secret[b]2:72`,
	} {
		needs, err := syntax.Check(text)
		var got []string
		for _, n := range needs {
			got = append(got, fmt.Sprintf("%s%v%d:%d", n.Func, n.Args, n.Line, n.Column))
		}
		if strings.Join(got, " ") != want || err != nil {
			t.Errorf("%s: %v, want %s, %v", text, got, want, err)
		}
	}
}

// FuzzCheck: what is accepted is a template, and no error repeats a text between quotes.
func FuzzCheck(f *testing.F) {
	f.Add(`{{ with secret "a" "b=canary" }}{{ .Data.x | toUpper }}{{ else }}{{ end }}`)
	f.Add("{{ define \"a\" }}{{ $x := `canary` }}{{ range secrets $x }}{{ . }}{{ end }}{{ end }}{{ template \"a\" }}")
	f.Add("{{'\x000'")
	f.Add(`{{ env "canary" }}{{/* c */}}{{- (secret "canary").Data.a.b -}}`)
	functions := texttemplate.FuncMap{}
	for _, name := range syntax.All() {
		functions[name] = func(...any) string { return "" }
	}
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := syntax.Check(text); err != nil {
			if len(err.Error()) > 512 || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("%q: %q", text, err)
			}
			return
		}
		if _, err := texttemplate.New("").Funcs(functions).Parse(text); err != nil {
			t.Errorf("%q is accepted, but %v", text, err)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	text := strings.Repeat(`{{ with secret "database/creds/app" }}{{ .Data.username | toUpper }}{{ end }}`, 3)
	for b.Loop() {
		if _, err := syntax.Check(text); err != nil {
			b.Fatal(err)
		}
	}
}
