package template_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/template"
)

// TestSharedReads renders several templates of one Mount: equal reads are made once, however they are written, and each output knows its own.
func TestSharedReads(t *testing.T) {
	v := newVault(t)
	var rounds [][]string
	read := func(ctx context.Context, reads []spec.Read) (map[spec.Read]template.Reply, error) {
		var round []string
		for _, r := range reads {
			round = append(round, strings.TrimSuffix(r.Method+" "+r.Path+"?"+r.Query, "?"))
		}
		slices.Sort(round)
		rounds = append(rounds, round)
		return v.read(ctx, reads)
	}
	out, err := newRenderer("", patient).Render(t.Context(), "shop", []template.Template{
		{Object: "user", Text: `{{ with secret "database/creds/app" }}{{ .Data.username }}{{ end }}`},
		{Object: "password", Text: `{{ with secret "/database/creds/app/" }}{{ .Data.password }}{{ with secret "kv1/app" }}{{ .Data.secret }}{{ end }}{{ end }}`},
		{Object: "cert", Text: `{{ with secret "pki/issue/web" "common_name=a" }}{{ .Data.serial_number }}{{ end }}`},
		{Object: "cert again", Text: `{{ with pkiCert "pki/issue/web" "common_name=a" }}{{ len .CAChain }}{{ end }}`},
		{Object: "none", Text: `text`},
		{Object: "empty", Text: ``},
		{Object: "loop", Text: `{{ range secrets "secret/metadata/users" }}{{ if ne . "team/" }}{{ with secret (printf "secret/data/users/%s" .) }}{{ .Data.data.user_name }} {{ end }}{{ end }}{{ end }}`},
		{Object: "else", Text: `{{ with secret "kv1/app" }}yes{{ else }}{{ secret "database/creds/never" }}{{ end }}`},
		{Object: "or", Text: `{{ $x := or (secret "kv1/app") (secret "database/creds/never") }}{{ $x.Data.apikey }}`},
	}, read)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range out {
		var paths []string
		for _, r := range o.Reads {
			paths = append(paths, r.Path)
		}
		got = append(got, fmt.Sprintf("%s %s", o.Contents, paths))
	}
	want := []string{
		"v-kube-app-x1 [database/creds/app]",
		`p4ss-"w'rd$<&>s-1 [database/creds/app kv1/app]`,
		"01:02 [pki/issue/web]", "2 [pki/issue/web]", "text []", " []",
		"ann bob  [secret/data/users/ann secret/data/users/bob secret/metadata/users]",
		"yes [kv1/app]", "k-1 [kv1/app]",
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %q, want %q", got[i], want[i])
		}
	}
	wantRounds := [][]string{
		{"GET database/creds/app", "GET kv1/app", "GET secret/metadata/users?list=true", "PUT pki/issue/web"},
		{"GET secret/data/users/ann"}, {"GET secret/data/users/bob"},
	}
	if fmt.Sprint(rounds) != fmt.Sprint(wantRounds) {
		t.Errorf("read in rounds\n%q, want\n%q", rounds, wantRounds)
	}
}

// TestShortPaths looks at a mount only where Vault does not know a path, or does not show it.
func TestShortPaths(t *testing.T) {
	v := newVault(t)
	var paths []string
	read := func(ctx context.Context, reads []spec.Read) (map[spec.Read]template.Reply, error) {
		for _, r := range reads {
			paths = append(paths, r.Path)
		}
		return v.read(ctx, reads)
	}
	for path, want := range map[string]string{
		"secret/data/app":    "[secret/data/app]",
		"secret/app":         "[secret/app sys/internal/ui/mounts/secret/app secret/data/app]",
		"secret/data/nope":   "[secret/data/nope sys/internal/ui/mounts/secret/data/nope] permission denied",
		"secret/nope":        "[secret/nope sys/internal/ui/mounts/secret/nope secret/data/nope] permission denied",
		"kv1/nope":           `[kv1/nope sys/internal/ui/mounts/kv1/nope] object "file", line 1, column 4: function secret: the answer of "kv1/nope" is not there: Vault has nothing at that path`,
		"database/creds/not": `[database/creds/not sys/internal/ui/mounts/database/creds/not] object "file", line 1, column 4: function secret: the answer of "database/creds/not" is not there: Vault has nothing at that path`,
	} {
		paths = nil
		_, err := render(t, `{{ secret "`+path+`" }}`, read)
		got := fmt.Sprint(paths)
		if err != nil {
			got += " " + err.Error()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

// TestNobodysBusiness: what stands beside a secret's data is told, but what ends it or names its request.
func TestNobodysBusiness(t *testing.T) {
	v := newVault(t)
	got, err := render(t, `{{ with secret "database/creds/app" }}[{{ .LeaseID }}{{ .RequestID }}] {{ .LeaseDuration }} {{ . | toJSON }}{{ spew_sdump . }}{{ end }}`, v.read)
	if err != nil || !strings.HasPrefix(got, "[] 3600 ") || strings.Contains(got, "canary") {
		t.Errorf("%q, %v", got, err)
	}
}

// TestFailures: what is said of a failing template names the object, the place and the function, and nothing that came from Vault.
func TestFailures(t *testing.T) {
	const canary = "canary-5f3a"
	bodies := answers(map[string]string{"kv/a": `{"lease_id":"` + canary + `","data":{"a":"` + canary + `","m":{"` + canary + `":"` + canary + `"},"n":5,"l":["` + canary + `"],"json":"{\"` + canary + `\""}}`})
	const in, out = `{{ with secret "kv/a" }}`, `{{ end }}`
	for text, want := range map[string]string{
		`{{ .Data.a | base64Decode }}`:                                      `line 1, column 38: function base64Decode fails`,
		`{{ .Data.json | parseJSON }}`:                                      `line 1, column 41: function parseJSON fails`,
		`{{ .Data.json | parseYAML }}`:                                      `function parseYAML fails`,
		"\n\n {{ .Data.a | parseInt }}":                                     `line 3, column 15: function parseInt fails`,
		`{{ .Data.a | parseBool }}`:                                         `function parseBool fails`,
		`{{ .Data.a | parseFloat }}`:                                        `function parseFloat fails`,
		`{{ .Data.a | parseUint }}`:                                         `function parseUint fails`,
		`{{ sprig_fail .Data.a }}`:                                          `function sprig_fail fails`,
		`{{ .Data.a | sprig_mustFromJson }}`:                                `function sprig_mustFromJson fails`,
		`{{ sprig_mustRegexFind (print "(" .Data.a) "x" }}`:                 `function sprig_mustRegexFind fails`,
		`{{ regexMatch (print "(" .Data.a) "x" }}`:                          `function regexMatch fails`,
		`{{ regexReplaceAll (print "(" .Data.a) "x" "y" }}`:                 `function regexReplaceAll fails`,
		`{{ sprig_semver .Data.a }}`:                                        `function sprig_semver fails`,
		`{{ sprig_buildCustomCert .Data.a .Data.a }}`:                       `function sprig_buildCustomCert fails`,
		`{{ sprig_decryptAES .Data.a .Data.a }}`:                            `function sprig_decryptAES fails`,
		`{{ sprig_toDecimal .Data.a | sprig_substr 0 1 }}`:                  `a value is of another type`,
		`{{ sprig_first .Data.a }}`:                                         `function sprig_first fails`,
		`{{ sprig_urlParse (print "%zz" .Data.a) }}`:                        `function sprig_urlParse fails`,
		`{{ index .Data.l 7 }}`:                                             `function index fails`,
		`{{ index .Data.a .Data.a }}`:                                       `function index fails`,
		`{{ slice .Data.a 90 }}`:                                            `function slice fails`,
		`{{ .Data.a.b }}`:                                                   `a field is asked of a value that has none`,
		`{{ .Data.a.b.c }}`:                                                 `a field is asked of a value that has none`,
		`{{ .Nope }}`:                                                       `a field is asked of a value that has none`,
		`{{ range .Data.a.x }}{{ end }}`:                                    `a field is asked of a value that has none`,
		`{{ range .Data.l }}{{ . | parseInt }}{{ end }}`:                    `function parseInt fails`,
		`{{ range $x := .Renewable }}{{ end }}`:                             `range is given something that is neither a list nor a map`,
		`{{ add .Data.a 1 }}`:                                               `function add fails`,
		`{{ divide 0 1 }}`:                                                  `function divide fails`,
		`{{ loop .Data.a }}`:                                                `function loop fails`,
		`{{ toUpper .Data.m }}`:                                             `a value is of another type than what it is used for`,
		`{{ toUpper }}`:                                                     `a function is given more or fewer arguments than it takes`,
		`{{ toUpper .Data.nope }}`:                                          `a value is of another type than what it is used for`,
		`{{ explodeMap (sprig_dict "a" .Data.a "a/b" 1) }}`:                 `function explodeMap fails`,
		`{{ toJSON (sprig_dict "f" (loop 1)) }}`:                            `function toJSON fails`,
		`{{ indent -1 .Data.a }}`:                                           `function indent fails`,
		`{{ scratch.Set "x" .Data.a }}{{ scratch.MapSet "x" "y" .Data.a }}`: `a function fails`,
		`{{ executeTemplate .Data.a }}`:                                     `function executeTemplate fails`,
		`{{ secret .Data.a .Data.a }}`:                                      `function secret: an argument after the path is not key=value`,
		`{{ secret "" }}`:                                                   `function secret: "" names no path`,
		`{{ secret (printf "%s/../x" "kv") }}`:                              `function secret: "kv/../x" holds ".."`,
		`{{ secrets "kv/a" }}{{ pkiCert "kv/a" "a=b" }}{{ range secrets "kv/a" }}{{ .x }}{{ end }}{{ .Data.a | parseInt }}`: `function parseInt fails`,
		`{{ eq .Data.m .Data.m }}`:                   `function eq fails`,
		`{{ call .Data.a }}`:                         `function call fails`,
		`{{ timestamp .Data.a .Data.a }}`:            `function timestamp fails`,
		`{{ sprig_dig "a" "b" .Data.a }}`:            `function sprig_dig fails`,
		`{{ sprig_mergeOverwrite .Data.m .Data.a }}`: `a value is of another type`,
	} {
		_, err := render(t, in+text+out, bodies)
		e, ok := errors.AsType[*template.Error](err)
		switch {
		case err == nil:
			t.Errorf("%s: rendered, want %q", text, want)
		case strings.Contains(err.Error(), canary):
			t.Errorf("%s: the error says a value: %v", text, err)
		case !ok || !strings.Contains(err.Error(), want) || e.Line == 0:
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// TestRefusedAtOnce: what is wrong with a template's text is told before anything is read.
func TestRefusedAtOnce(t *testing.T) {
	read := func(context.Context, []spec.Read) (map[spec.Read]template.Reply, error) {
		t.Error("something is read")
		return nil, nil
	}
	_, err := newRenderer("", patient).Render(t.Context(), "shop", []template.Template{
		{Object: "a", Text: `{{ with secret "kv/a" }}{{ .Data.x }}{{ end }}`},
		{Object: "b", Text: "x\n{{ env \"HOME\" }}"},
	}, read)
	if err == nil || err.Error() != `object "b", line 2, column 4: function env is refused: it reads the environment` {
		t.Error(err)
	}
}

// TestAnswers refuses what cannot be the answer to a function.
func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		reply template.Reply
		want  string
	}{
		"raw":      {template.Reply{Body: []byte("-----BEGIN"), Raw: true}, "is no JSON but a certificate"},
		"no JSON":  {template.Reply{Body: []byte("canary")}, "is not a JSON object"},
		"a list":   {template.Reply{Body: []byte(`["canary"]`)}, "function secret fails"},
		"too long": {template.Reply{Body: []byte(`{"data":{"a":"` + strings.Repeat("canary", 1<<20/6) + `"}}`)}, "are more than the 1048576 bytes"},
		"absent":   {template.Reply{Absent: true}, "Vault has nothing at that path"},
	} {
		_, err := render(t, someone, func(_ context.Context, reads []spec.Read) (map[spec.Read]template.Reply, error) {
			replies := make(map[spec.Read]template.Reply)
			for _, r := range reads {
				replies[r] = c.reply
			}
			return replies, nil
		})
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLarge: what is allowed fits into a child's memory.
func TestLarge(t *testing.T) {
	var body strings.Builder
	body.WriteString(`{"data":{"a":"b"`)
	for i := range 9000 {
		fmt.Fprintf(&body, `,"key-%05d":"%s"`, i, strings.Repeat("v", 90))
	}
	body.WriteString(`}}`)
	got, err := render(t, `{{ with secret "kv/a" }}{{ range $k, $v := .Data }}{{ $k }}={{ $v | toUpper | trimSpace }}
{{ end }}{{ end }}`, answers(map[string]string{"kv/a": body.String()}))
	if err != nil || len(got) < 900_000 {
		t.Errorf("%d bytes of %d, %v", len(got), body.Len(), err)
	}
}

// BenchmarkRender is a child's start and end, with a text that reads nothing, and a small template of the agent's.
func BenchmarkRender(b *testing.B) {
	read := answers(map[string]string{"database/creds/app": `{"data":{"username":"v-app","password":"a password of some length"}}`})
	for _, c := range []struct{ name, text string }{
		{"start", "text"},
		{"agent", `{{ with secret "database/creds/app" }}spring.datasource.username={{ .Data.username }}
spring.datasource.password={{ .Data.password }}{{ end }}`},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newRenderer("", patient)
			one := []template.Template{{Object: "file", Text: c.text}}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Render(b.Context(), "shop", one, read); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
