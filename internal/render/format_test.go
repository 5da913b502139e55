package render_test

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/joho/godotenv"
	"github.com/magiconair/properties"
	"go.yaml.in/yaml/v3"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/render"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// rendered is the one file of an object.
func rendered(o spec.Object, body string) (string, error) {
	o.Name, o.Read = "file", creds
	files, err := render.Files([]spec.Object{o}, answers(body))
	if err != nil {
		return "", err
	}
	return string(files[0].Contents), nil
}

func TestFormats(t *testing.T) {
	const kv = `{"data":{"data":{"user":"app","port":5432,"deep":{"list":["a",1e3,null],"a.b":"<&>"},"on":true},"metadata":{"version":3}}}`
	tests := []struct {
		name   string
		object spec.Object
		body   string
		want   string
	}{
		{"json of all", spec.Object{Format: spec.JSON}, kv, `{"deep":{"a.b":"<&>","list":["a",1e3,null]},"on":true,"port":5432,"user":"app"}` + "\n"},
		{"json of no keys", spec.Object{Format: spec.JSON}, `{"data":{"data":{}}}`, "{}\n"},
		{"json of keys", spec.Object{Format: spec.JSON, Keys: []string{"user", "deep.list.1", "on"}}, kv, `{"deep.list.1":1e3,"on":true,"user":"app"}` + "\n"},
		{"json of a key", spec.Object{Format: spec.JSON, Key: "user"}, kv, "\"app\"\n"},
		{"json of a list's item", spec.Object{Format: spec.JSON, Key: "deep.list"}, kv, "[\"a\",1e3,null]\n"},

		{"yaml of all", spec.Object{Format: spec.YAML}, kv, "deep: {a.b: \"<&>\", list: [a, 1.0e+3, null]}\n\"on\": true\nport: 5432\nuser: app\n"},
		{"yaml of no keys", spec.Object{Format: spec.YAML}, `{"data":{"data":{}}}`, "{}\n"},
		{"yaml of keys", spec.Object{Format: spec.YAML, Keys: []string{"user", "deep.a\\.b"}}, kv, "deep.a.b: \"<&>\"\nuser: app\n"},
		{"yaml of a key", spec.Object{Format: spec.YAML, Key: "deep"}, kv, "{a.b: \"<&>\", list: [a, 1.0e+3, null]}\n"},
		{"yaml texts", spec.Object{Format: spec.YAML}, `{"data":{"a":"yes","b":"1","c":"","d":"a: b","e":"l1\nl2\n","f":"\u0085\ufeff","g":"Null","h":"v-a_b@c.d/e","i":"=","j":"2020-01-01"}}`,
			`a: "yes"` + "\n" + `b: "1"` + "\n" + `c: ""` + "\n" + `d: "a: b"` + "\n" + `e: "l1\nl2\n"` + "\n" + `f: "\u0085\ufeff"` + "\n" +
				`g: "Null"` + "\n" + `h: v-a_b@c.d/e` + "\n" + `i: "="` + "\n" + `j: "2020-01-01"` + "\n"},
		{"yaml numbers", spec.Object{Format: spec.YAML}, `{"data":{"a":12345678901234567890,"b":1.10,"c":-1E-7,"d":2.5e8}}`, "a: 12345678901234567890\nb: 1.10\nc: -1.0e-7\nd: 2.5e+8\n"},

		{"dotenv of all", spec.Object{Format: spec.Dotenv}, kv, "deep='{\"a.b\":\"\\u003c\\u0026\\u003e\",\"list\":[\"a\",1e3,null]}'\non='true'\nport='5432'\nuser='app'\n"},
		{"dotenv in the order asked for", spec.Object{Format: spec.Dotenv, Keys: []string{"user", "port", "on"}}, kv, "user='app'\nport='5432'\non='true'\n"},
		{"dotenv of a key", spec.Object{Format: spec.Dotenv, Key: "user"}, kv, "user='app'\n"},
		{"dotenv of no keys", spec.Object{Format: spec.Dotenv}, `{"data":{"data":{}}}`, ""},
		{"dotenv quotes", spec.Object{Format: spec.Dotenv}, `{"data":{"A":"$x \"y\" #z","B":"it's","C":"it's $1 \"` + "`" + `","D":"C:\\\\x","E":"end\\","F":"","G":"a\nb"}}`,
			`A='$x "y" #z'` + "\n" + `B="it's"` + "\n" + `C="it's \$1 \"\` + "`" + `"` + "\n" + `D="C:\\\\x"` + "\n" + `E="end\\"` + "\n" + `F=''` + "\n" + "G='a\nb'\n"},

		{"properties of all", spec.Object{Format: spec.Properties}, `{"data":{"spring.datasource.url":"jdbc:x://h/d?a=b#c!","a key":"  two","t":"\t\r\n\\","ü":"€😀","n":1.0}}`,
			`a\ key=\ \ two` + "\n" + `n=1.0` + "\n" + `spring.datasource.url=jdbc\:x\://h/d?a\=b\#c\!` + "\n" + `t=\t\r\n\\` + "\n" + `\u00FC=\u20AC\uD83D\uDE00` + "\n"},
		{"properties of keys", spec.Object{Format: spec.Properties, Keys: []string{"user", "deep.list.0"}}, kv, "user=app\ndeep.list.0=a\n"},

		{"a key with a dot before one that is deeper", spec.Object{Key: "a.b", Encoding: spec.UTF8}, `{"data":{"a.b":"x","a":{"b":"y"}}}`, "x"},
		{"a deeper key", spec.Object{Key: "a.b", Encoding: spec.UTF8}, `{"data":{"a":{"b":"y"}}}`, "y"},
		{"a deeper key with a dot", spec.Object{Key: `a\.b.c\\`, Encoding: spec.UTF8}, `{"data":{"a.b":{"c\\":"z"}}}`, "z"},
		{"a key with a backslash", spec.Object{Key: `a\.b`, Encoding: spec.UTF8}, `{"data":{"a\\.b":"x","a.b":"y"}}`, "x"},
		{"a star", spec.Object{Key: `\*`, Encoding: spec.UTF8}, `{"data":{"*":"x"}}`, "x"},
		{"a list's item", spec.Object{Key: "a.1", Encoding: spec.Hex}, `{"data":{"a":["00","ff"]}}`, "\xff"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := rendered(test.object, test.body)
			if err != nil {
				t.Fatal(err)
			}
			if got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

func TestFormatErrors(t *testing.T) {
	long := strings.Repeat("k", 1100)
	tests := []struct {
		name   string
		object spec.Object
		body   string
		want   string // behind what names the answer
	}{
		{"key missing", spec.Object{Format: spec.JSON, Keys: []string{"a", "b"}}, `{"data":{"a":"canary"}}`, `has no key "b"; its keys are "a"`},
		{"one key missing", spec.Object{Format: spec.YAML, Key: "b"}, `{"data":{"a":"canary"}}`, `has no key "b"; its keys are "a"`},
		{"deeper key missing", spec.Object{Key: "a.c"}, `{"data":{"a":{"b":"canary"}}}`, `has no key "a.c"; its keys are "a"`},
		{"below a text", spec.Object{Key: "a.b"}, `{"data":{"a":"canary"}}`, `has no key "a.b"; its keys are "a"`},
		{"no such item", spec.Object{Key: "a.1"}, `{"data":{"a":["canary"]}}`, `has no key "a.1"; its keys are "a"`},
		{"another form of a number", spec.Object{Key: "a.+0"}, `{"data":{"a":["canary"]}}`, `has no key "a.+0"; its keys are "a"`},
		{"dotenv key", spec.Object{Format: spec.Dotenv}, `{"data":{"a-b":"canary"}}`, `cannot become format dotenv: the key "a-b" is no name for a variable (letters, digits and _)`},
		{"dotenv digit", spec.Object{Format: spec.Dotenv}, `{"data":{"1a":"canary"}}`, `cannot become format dotenv: the key "1a" is no name for a variable (letters, digits and _)`},
		{"dotenv NUL", spec.Object{Format: spec.Dotenv}, `{"data":{"a":"canary\u0000"}}`, `cannot become format dotenv: what is under the key "a" holds a NUL, which no variable can`},
		{"yaml key", spec.Object{Format: spec.YAML}, `{"data":{"` + long + `":"canary"}}`, `has a key that is too long for YAML, "` + long[:61] + `..."`},
		{"yaml key in a list", spec.Object{Format: spec.YAML}, `{"data":{"a":[{"` + long + `":"canary"}]}}`, `has a key that is too long for YAML, "` + long[:61] + `..."`},
		{"format of a newer version", spec.Object{Format: "toml"}, `{"data":{"a":"canary"}}`, `cannot be written in the format "toml"`},
		{"pem of what is no certificate", spec.Object{Format: spec.PEM}, `{"data":{"a":"canary"}}`, `has no key "certificate", as a PKI engine's would, so that format pem needs secretKey; its keys are "a"`},
		{"pem of a text", spec.Object{Format: spec.PEM, Key: "a"}, `{"data":{"a":"canary"}}`, `has under key "a" what is not PEM: it holds no block`},
		{"pem of a number", spec.Object{Format: spec.PEM, Keys: []string{"a"}}, `{"data":{"a":1}}`, `has under key "a" what is not PEM: it holds no block`},
		{"pem cut off", spec.Object{Format: spec.PEM, Key: "a"}, `{"data":{"a":"` + strings.ReplaceAll(block("X", "canary")+"-----BEGIN X-----\ncanary", "\n", `\n`) + `"}}`, `has under key "a" what is not PEM: it holds a broken block`},
		{"each of nothing", spec.Object{Each: true}, `{"data":{"data":{}}}`, "has no keys"},
		{"each of a folder", spec.Object{Each: true}, `{"data":{"a/b":"canary"}}`, `cannot become a file for each key: the key "a/b" holds what a file name cannot hold, a slash or NUL`},
		{"each of dots", spec.Object{Each: true}, `{"data":{"..":"canary"}}`, `cannot become a file for each key: the key ".." is no name for a file`},
		{"each of no name", spec.Object{Each: true}, `{"data":{"":"canary"}}`, `cannot become a file for each key: the key "" is no name for a file`},
		{"each of a long name", spec.Object{Each: true}, `{"data":{"` + long + `":"canary"}}`, `cannot become a file for each key: the key "` + long[:61] + `..." is longer than the 255 bytes of a file name`},
		{"each badly encoded", spec.Object{Each: true, Encoding: spec.Base64}, `{"data":{"a":"canary!"}}`, `has under key "a" what is not valid base64`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := rendered(test.object, test.body)
			if want := `object "file": the answer of "database/creds/my-app" ` + test.want; err == nil || err.Error() != want {
				t.Errorf("got %q\n%v, want\n%s", got, err, want)
			}
			if err != nil && strings.Contains(err.Error(), "canary") {
				t.Error("the error repeats a value")
			}
		})
	}
}

func block(kind, text string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: []byte(text)}))
}

func TestPEM(t *testing.T) {
	cert, issuer, root, key := block("CERTIFICATE", "cert"), block("CERTIFICATE", "issuer"), block("CERTIFICATE", "root"), block("RSA PRIVATE KEY", "key")
	trim := func(text string) string { return strings.TrimSuffix(text, "\n") } // as Vault sends them
	answer := func(data map[string]any) string {
		body, err := json.Marshal(map[string]any{"data": data})
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	issued := map[string]any{
		"certificate": trim(cert), "issuing_ca": trim(issuer), "ca_chain": []string{trim(issuer), trim(root)}, "private_key": trim(key),
		"private_key_type": "rsa", "serial_number": "1", "expiration": 1,
	}
	with := func(changes map[string]any) map[string]any {
		data := maps.Clone(issued)
		maps.Copy(data, changes)
		return data
	}
	for _, test := range []struct {
		name string
		data map[string]any
		keys []string
		want string
	}{
		{"issued", issued, nil, cert + issuer + root + key},
		{"signed", with(map[string]any{"private_key": nil}), nil, cert + issuer + root},
		{"without a chain", with(map[string]any{"ca_chain": nil}), nil, cert + issuer + key},
		{"an empty chain", with(map[string]any{"ca_chain": []string{}, "issuing_ca": ""}), nil, cert + key},
		{"a root", with(map[string]any{"issuing_ca": cert, "ca_chain": []string{cert}}), nil, cert + key},
		{"as a bundle", with(map[string]any{"certificate": key + cert + issuer}), nil, cert + issuer + root + key},
		{"keys in their order", issued, []string{"private_key", "ca_chain.0", "certificate", "issuing_ca"}, key + issuer + cert},
		{"one key", issued, []string{"ca_chain"}, issuer + root},
		{"text around, other line ends", map[string]any{"a": "subject=x\r\n" + strings.ReplaceAll(cert, "\n", "\r\n") + "issuer:\n\n" + issuer}, []string{"a"}, cert + issuer},
	} {
		got, err := rendered(spec.Object{Format: spec.PEM, Keys: test.keys}, answer(test.data))
		if err != nil || got != test.want {
			t.Errorf("%s: got\n%s%v, want\n%s", test.name, got, err, test.want)
		}
	}
}

func TestFormatsOfRawAnswers(t *testing.T) {
	cert := block("CERTIFICATE", "cert")
	object := spec.Object{Name: "file", Read: creds, Format: spec.PEM}
	of := func(body string) map[spec.Read]grant.Answer {
		return map[spec.Read]grant.Answer{creds: {Read: creds, Body: []byte(body), Raw: true}}
	}
	files, err := render.Files([]spec.Object{object}, of(strings.TrimSpace(cert)))
	if err != nil || string(files[0].Contents) != cert {
		t.Errorf("%q, %v", files, err)
	}
	refused := func(o spec.Object, body, want string) {
		t.Helper()
		if _, err := render.Files([]spec.Object{o}, of(body)); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("error %v, want ... %s", err, want)
		}
	}
	refused(object, "0\x82", "is not PEM: it holds no block")
	for _, object.Format = range []spec.Format{spec.YAML, spec.PKCS12} {
		refused(object, cert, "can be written in the formats raw and pem only")
	}
	object.Format, object.Each = spec.Raw, true
	refused(object, cert, "has no keys to choose: leave out secretKey")
}

func TestEach(t *testing.T) {
	folder := spec.Object{Name: "conf/app", Read: creds, Each: true, Mode: 0o400, Encoding: spec.UTF8}
	files, err := render.Files([]spec.Object{folder, {Name: "conf/b", Read: creds, Key: "b", Mode: 0o444}},
		answers(`{"data":{"data":{"b":"2","..a":"1","c.d":{"x":[1]}},"metadata":{}}}`))
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, f := range files {
		got += fmt.Sprintf("%s %#o %s\n", f.Path, f.Mode, f.Contents)
	}
	if want := "conf/app/..a 0400 1\nconf/app/b 0400 2\nconf/app/c.d 0400 {\"x\":[1]}\nconf/b 0444 2\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// TestOptional: what is missing leaves out its own file and no other, and nothing else is forgiven.
func TestOptional(t *testing.T) {
	other := spec.Read{Method: "GET", Path: "kv/other"}
	absent := grant.Answer{Read: other, Absent: true}
	holds := func(body string) grant.Answer { return grant.Answer{Read: other, Body: []byte(body)} }
	for _, test := range []struct {
		name    string
		object  spec.Object
		answer  grant.Answer
		missing bool
	}{
		{"path", spec.Object{}, absent, true},
		{"path of a key", spec.Object{Key: "a"}, absent, true},
		{"path of a folder", spec.Object{Each: true}, absent, true},
		{"key", spec.Object{Key: "b"}, holds(`{"data":{"a":"1"}}`), true},
		{"deeper key", spec.Object{Key: "a.b"}, holds(`{"data":{"a":"1"}}`), true},
		{"one of several keys", spec.Object{Format: spec.Dotenv, Keys: []string{"a", "b"}}, holds(`{"data":{"a":"1"}}`), true},
		{"deleted version", spec.Object{Format: spec.JSON}, holds(`{"data":{"data":null,"metadata":{}}}`), true},
		{"all keys", spec.Object{Each: true}, holds(`{"data":{"data":{}}}`), true},
		{"certificate", spec.Object{Format: spec.PEM, Key: "b"}, holds(`{"data":{"a":"1"}}`), true},
		{"store", spec.Object{Format: spec.PKCS12, Keys: []string{"a", "b"}}, holds(`{"data":{"a":"1"}}`), true},
		{"key that is there", spec.Object{Key: "a"}, holds(`{"data":{"a":""}}`), false},
	} {
		for _, optional := range []bool{true, false} {
			test.object.Name, test.object.Read, test.object.Optional = "file", other, optional
			given := answers(credentials)
			given[other] = test.answer
			files, err := render.Files([]spec.Object{test.object, {Name: "user", Read: creds, Key: "username"}}, given)
			if (err != nil) != (test.missing && !optional) || err == nil && (len(files) == 1) != test.missing {
				t.Errorf("%s, optional %t: %q, %v", test.name, optional, files, err)
			}
		}
	}
	for _, body := range []string{"canary", `{"data":"x"}`} {
		o := spec.Object{Name: "file", Read: creds, Key: "b", Optional: true}
		if _, err := render.Files([]spec.Object{o}, answers(body)); err == nil {
			t.Errorf("%s was taken for nothing", body)
		}
	}
}

// TestFormatsAreBounded: neither keys that hold one another nor many keys make more than the driver takes.
func TestFormatsAreBounded(t *testing.T) {
	body, key, keys := `"`+strings.Repeat("x", 1<<20)+`"`, "", []string(nil)
	for range 500 {
		body, key = `{"a":`+body+`}`, key+".a"
		keys = append(keys, key[1:])
	}
	body = `{"data":` + body + `}`
	for _, f := range []spec.Format{spec.JSON, spec.YAML, spec.Properties} {
		_, err := rendered(spec.Object{Format: f, Keys: keys}, body)
		if want := "makes a file larger than the 4128768 bytes that the driver takes"; err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v", f, err)
		}
	}
	var many strings.Builder
	for i := range 2048 {
		fmt.Fprintf(&many, `,"k%04d":""`, i)
	}
	all := spec.Object{Name: "all", Read: creds, Each: true}
	if files, err := render.Files([]spec.Object{all}, answers(`{"data":{`+many.String()[1:]+`}}`)); err != nil || len(files) != 2048 {
		t.Errorf("%d files, %v", len(files), err)
	}
	_, err := render.Files([]spec.Object{all}, answers(`{"data":{"more":""`+many.String()+`}}`))
	if want := "the volume has more than 2048 files"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	large := strings.Repeat("x", 1<<20)
	_, err = render.Files([]spec.Object{all}, answers(fmt.Sprintf(`{"data":{"a":%q,"b":%q,"c":%q,"d":%q}}`, large, large, large, large)))
	if err == nil || !strings.Contains(err.Error(), `the largest: "all/a" (1048576 bytes)`) {
		t.Errorf("four large keys: %v", err)
	}
}

// A shell is what reads format dotenv; the values are those that it could read otherwise.
func TestDotenvInShell(t *testing.T) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Skip(err)
	}
	for _, value := range []string{"", " a ", "$HOME", "${HOME}", "$(id)", "`id`", `"`, `'`, `\`, `\\`, `a\`, `'\`, `'"`, `it's "$x"`, "a\nb\n", "'a\nb\\\n", "a#b", "#", "~", "!!", "'!!", "*", "a;b", `\n`, `'\n`, "\r\n", "é'€"} {
		line, err := rendered(spec.Object{Format: spec.Dotenv}, bodyOf(t, map[string]any{"A_1": value}))
		if err != nil {
			t.Fatal(err)
		}
		got, err := exec.CommandContext(t.Context(), shell, "-c", line+`printf '%s|' "$A_1"`).Output()
		if err != nil || string(got) != value+"|" {
			t.Errorf("%q is written as %q and read as %q, %v", value, line, got, err)
		}
	}
}

func bodyOf(t *testing.T, data map[string]any) string {
	t.Helper()
	body, err := json.Marshal(map[string]any{"data": data})
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// FuzzRoundTrip: every reader of a format finds the keys and values that were written.
func FuzzRoundTrip(f *testing.F) {
	for _, text := range []string{"", "a", "yes", "~", "- a", "a: b", "\"'\\$`", "'\"", `\\`, `a\`, " \t\r\n\f\x00", "\u0085\u2028\ufeff\uffff", "😀\x80", "<<", "=", "0x1f", "1_0", "1:20", "%s", "#!"} {
		f.Add(text, text, "1e3")
		f.Add("KEY_1", text, "-0.10E-5")
	}
	f.Fuzz(func(t *testing.T, key, value, number string) {
		key, value = strings.ToValidUTF8(key, "\ufffd"), strings.ToValidUTF8(value, "\ufffd")
		data := map[string]any{key: value, "deep": map[string]any{key: []any{value, nil, true}}}
		if _, err := strconv.ParseFloat(number, 64); err == nil && json.Valid([]byte(number)) {
			data["number"] = json.Number(number)
		}
		body := bodyOf(t, data)
		var wanted struct{ Data map[string]any }
		if err := json.Unmarshal([]byte(body), &wanted); err != nil {
			t.Fatal(err)
		}
		want := wanted.Data
		checkTree(t, spec.JSON, body, want, func(text string, into any) error { return json.Unmarshal([]byte(text), into) })
		checkTree(t, spec.YAML, body, want, func(text string, into any) error { return yaml.Unmarshal([]byte(text), into) })
		texts := make(map[string]string)
		for key, value := range want {
			text, ok := value.(string)
			if !ok {
				text = compact(t, body, key)
			}
			texts[key] = text
		}
		checkProperties(t, body, texts)
		checkDotenv(t, body, texts)
	})
}

// compact is the JSON of what is no text.
func compact(t *testing.T, body, key string) string {
	t.Helper()
	var message struct{ Data map[string]json.RawMessage }
	if err := json.Unmarshal([]byte(body), &message); err != nil {
		t.Fatal(err)
	}
	return string(message.Data[key])
}

func checkTree(t *testing.T, f spec.Format, body string, want map[string]any, parse func(string, any) error) {
	t.Helper()
	text, err := rendered(spec.Object{Format: f}, body)
	if err != nil {
		if f != spec.YAML || !strings.Contains(err.Error(), "too long for YAML") {
			t.Errorf("%s: %v", f, err)
		}
		return
	}
	var got map[string]any
	if err := parse(text, &got); err != nil || !equal(got, want) {
		t.Errorf("%s: %q was read as\n%#v, %v, want\n%#v", f, text, got, err, want)
	}
}

// equal takes all numbers for those of JSON.
func equal(got, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		got, ok := got.(map[string]any)
		return ok && maps.EqualFunc(got, want, func(a, b any) bool { return equal(a, b) })
	case []any:
		got, ok := got.([]any)
		return ok && slices.EqualFunc(got, want, func(a, b any) bool { return equal(a, b) })
	case float64:
		switch got := got.(type) {
		case int:
			return float64(got) == want
		case int64:
			return float64(got) == want
		case uint64:
			return float64(got) == want
		}
	}
	return got == want
}

func checkProperties(t *testing.T, body string, want map[string]string) {
	t.Helper()
	text, err := rendered(spec.Object{Format: spec.Properties}, body)
	if err != nil {
		t.Fatal(err)
	}
	if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && (r < ' ' || r > '~') }); i >= 0 {
		t.Errorf("properties: not ASCII: %q", text)
	}
	got, err := readProperties(text)
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("properties: %q was read as\n%q, %v, want\n%q", text, got, err, want)
	}
	unknown := func(r rune) bool { return r > '\uffff' }
	if _, empty := want[""]; empty || strings.ContainsFunc(body, unknown) || strings.Contains(text, `\u0000`) {
		return // what this reader does not know: pairs of surrogates, NUL, the empty key
	}
	loader := properties.Loader{Encoding: properties.ISO_8859_1, DisableExpansion: true}
	loaded, err := loader.LoadBytes([]byte(text))
	if err != nil {
		t.Fatalf("properties: %q: %v", text, err)
	}
	if got := loaded.Map(); !maps.Equal(got, want) {
		t.Errorf("properties: %q was loaded as\n%q, want\n%q", text, got, want)
	}
}

func checkDotenv(t *testing.T, body string, want map[string]string) {
	t.Helper()
	text, err := rendered(spec.Object{Format: spec.Dotenv}, body)
	var e *render.Error
	if errors.As(err, &e) && (strings.Contains(e.Problem, "no name for a variable") || strings.Contains(e.Problem, "holds a NUL")) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := sourced(text); !maps.Equal(got, want) {
		t.Errorf("dotenv: a shell reads %q as\n%q, want\n%q", text, got, want)
	}
	for _, value := range want {
		if strings.HasSuffix(value, `\`) || strings.HasSuffix(value, `"`) || strings.Contains(value, "\r") {
			return // see the reference: here readers differ
		}
	}
	got, err := godotenv.Unmarshal(text)
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("dotenv: %q was read as\n%q, %v, want\n%q", text, got, err, want)
	}
}
