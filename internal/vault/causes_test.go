package vault

import (
	"encoding/base64"
	"flag"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

var update = flag.Bool("update", false, "write the table of docs/troubleshooting.md instead of comparing with it")

var kindWords = map[Kind]string{
	Unreachable: "no connection", Distrusted: "Vault's certificate is not trusted", InDoubt: "no answer", Failing: "any other 5xx",
	Denied: "any other 403", InvalidToken: "403 with `invalid token`", NotFound: "any other 404", Invalid: "any other 4xx", NotExecuted: "any other refusal to serve now",
	Empty: "nothing", NotVault: "what is not Vault's JSON", Unusable: "a file or address of ours cannot be used",
}

// Every kind of failure is counted under a word of its own.
func TestOutcomes(t *testing.T) {
	words := slices.Sorted(slices.Values(outcomes[:]))
	if len(words) != int(Shared)+1 || words[0] == "" || len(slices.Compact(words)) != len(outcomes) {
		t.Errorf("%d kinds, words %q", int(Shared)+1, words)
	}
}

// row is how the document shows a cause.
func (c *cause) row() string {
	var said []string
	for _, phrase := range c.says {
		said = append(said, "`"+phrase+"`")
	}
	switch {
	case c.status != 0:
		said = append(said, fmt.Sprint(c.status))
	case len(said) == 0:
		said = append(said, kindWords[c.kind])
	}
	when := map[operation]string{login: "logging in", read: "reading", way: "connecting", anything: "any"}[c.op]
	return fmt.Sprintf("| %s | %s | %s |\n", when, strings.Join(said, ", "), c.next)
}

// The document shows the table, row by row.
func TestTroubleshootingShowsTheCauses(t *testing.T) {
	const path, head = "../../docs/troubleshooting.md", "| while | what was said | next step |\n|---|---|---|\n"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), head)
	_, after, end := strings.Cut(rest, "\n\n")
	if !found || !end {
		t.Fatalf("%s has no table that begins with\n%s", path, head)
	}
	var table strings.Builder
	for i := range causes {
		if row := causes[i].row(); strings.Count(row, "|") == 4 {
			table.WriteString(row)
		} else {
			t.Errorf("not a row: %s", row)
		}
	}
	want := before + head + table.String() + "\n" + after
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(text) != want {
		t.Errorf("%s does not show the table of causes: go test ./internal/vault -run Troubleshooting -update", path)
	}
}

// A row after one that takes all it would take is never seen.
func TestNoCauseHidesAnother(t *testing.T) {
	for i := range causes {
		c := &causes[i]
		for j := range i {
			before := &causes[j]
			if (before.op == anything || before.op == c.op) && (before.kind == Unknown || before.kind == c.kind) &&
				(before.status == 0 || before.status == c.status) && takesAll(before.says, c.says) {
				t.Errorf("%q is hidden by %q", c.next, before.next)
			}
		}
	}
}

// takesAll tells whether each of the phrases holds one of the others.
func takesAll(general, special []string) bool {
	for _, s := range special {
		taken := len(general) == 0
		for _, g := range general {
			taken = taken || strings.Contains(s, g)
		}
		if !taken {
			return false
		}
	}
	return len(special) > 0 || len(general) == 0
}

// Every placeholder of the table is known.
func TestPlaceholders(t *testing.T) {
	fill := placeholders(&Error{Method: http.MethodGet, Path: "a/b"}, &spec.Request{})
	for i := range causes {
		if left := regexp.MustCompile(`\{[a-z0-9][a-z0-9 ]*\}`).FindString(fill.Replace(causes[i].next)); left != "" {
			t.Errorf("%s stays in %q", left, causes[i].next)
		}
	}
}

func TestClaims(t *testing.T) {
	const subject = "system:serviceaccount:shop:app"
	jwt := func(payload string) string {
		return "eyJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".signature"
	}
	long := strings.Repeat("x", 1000)
	for name, test := range map[string]struct{ token, want string }{
		"kubelet's":   {jwt(`{"iss":"https://issuer","aud":["vault","other"],"sub":"` + subject + `","exp":99999999999}`), `token issuer "https://issuer", audience ["vault", "other"]`},
		"one text":    {jwt(`{"iss":"i","aud":"vault","sub":"` + subject + `"}`), `token issuer "i", audience ["vault"]`},
		"expired":     {jwt(`{"iss":"i","aud":"a","sub":"` + subject + `","exp":1700000000.5}`), `token issuer "i", audience ["a"], expired at 2023-11-14T22:13:20Z`},
		"stranger":    {jwt(`{"iss":"i","aud":"a","sub":"somebody"}`), `token issuer "i", audience ["a"], subject "somebody"`},
		"nothing":     {jwt(`{"sub":"` + subject + `"}`), `token issuer none, audience none`},
		"control":     {jwt(`{"iss":"a\nb\u001b[31m","aud":"a","sub":"` + subject + `"}`), `token issuer "a\nb\x1b[31m", audience ["a"]`},
		"many":        {jwt(`{"iss":"i","aud":["1","2","3","4","5"],"sub":"` + subject + `"}`), `token issuer "i", audience ["1", "2", "3", "4", ...]`},
		"long":        {jwt(`{"iss":"` + long + `","aud":"a","sub":"` + subject + `"}`), `token issuer "` + long[:125] + `...", audience ["a"]`},
		"huge":        {jwt(`{"iss":"` + strings.Repeat(long, 20) + `"}`), "a token that is no JWT"},
		"end of time": {jwt(`{"iss":"i","aud":"a","sub":"` + subject + `","exp":-1e300}`), `token issuer "i", audience ["a"]`},
		"opaque":      {"secret-opaque-token", "a token that is no JWT"},
		"no base64":   {"a.secret!.c", "a token that is no JWT"},
		"no JSON":     {jwt("secret"), "a token that is no JWT"},
		"other types": {jwt(`{"iss":["secret"],"aud":{"secret":1}}`), "a token that is no JWT"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := claimsOf(secret.New(test.token)).describe(subject); got != test.want {
				t.Errorf("%s\nwant %s", got, test.want)
			}
		})
	}
}

func TestWhoseCertificate(t *testing.T) {
	cert, key := vaulttest.Pair("app\n", time.Hour)
	old, _ := vaulttest.Pair("app", -time.Hour)
	for name, test := range map[string]struct{ pair, want string }{
		"valid":     {cert + key, `client certificate of "CN=app\n", issuer "CN=vaulttest"`},
		"key first": {key + cert, `client certificate of "CN=app\n", issuer "CN=vaulttest"`},
		"expired":   {old + key, `client certificate of "CN=app", issuer "CN=vaulttest", expired at `},
		"none":      {key, "no client certificate"},
		"no PEM":    {"secret", "no client certificate"},
		"no DER":    {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no client certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := describeCertificate(secret.New(test.pair)); !strings.HasPrefix(got, test.want) {
				t.Errorf("%s\nwant %s", got, test.want)
			}
		})
	}
}
