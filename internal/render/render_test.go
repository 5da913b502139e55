package render_test

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/render"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

const credentials = `{"request_id":"r1","lease_id":"database/creds/my-app/x","renewable":true,"lease_duration":3600,` +
	`"data":{"username":"v-user","password":"p<&>\u00e9"},"wrap_info":null,"warnings":["w"],"auth":null,"mount_type":"database"}`

var creds = spec.Read{Method: "GET", Path: "database/creds/my-app"}

func answers(body string) map[spec.Read]grant.Answer {
	return map[spec.Read]grant.Answer{creds: {Read: creds, Body: []byte(body)}}
}

func object(key string, encoding spec.Encoding) []spec.Object {
	return []spec.Object{{Name: "file", Read: creds, Key: key, Mode: 0o640, Encoding: encoding}}
}

func TestFiles(t *testing.T) {
	other := spec.Read{Method: "GET", Path: "kv/other"}
	both := answers(credentials)
	both[other] = grant.Answer{Read: other, Body: []byte(`{"data":{"username":"from-kv"}}`)}
	got, err := render.Files([]spec.Object{
		{Name: "db/pass", Read: creds, Key: "password", Mode: 0o600, Encoding: spec.UTF8},
		{Name: "db/user", Read: creds, Key: "username", Mode: 0o644, Encoding: spec.UTF8},
		{Name: "kv", Read: other, Key: "username", Mode: 0o444, Encoding: spec.UTF8},
	}, both)
	want := []render.File{
		{Path: "db/pass", Mode: 0o600, Contents: []byte("p<&>é")},
		{Path: "db/user", Mode: 0o644, Contents: []byte("v-user")},
		{Path: "kv", Mode: 0o444, Contents: []byte("from-kv")},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, %v\nwant %q", got, err, want)
	}
}

func TestFilesContents(t *testing.T) {
	tests := []struct {
		name, body, key string
		encoding        spec.Encoding
		want            string
	}{
		{"text", `{"data":{"k":"a\nb"}}`, "k", spec.UTF8, "a\nb"},
		{"empty text", `{"data":{"k":""}}`, "k", spec.UTF8, ""},
		{"null", `{"data":{"k":null}}`, "k", spec.UTF8, "null"},
		{"large number", `{"data":{"k":12345678901234567890.10}}`, "k", spec.UTF8, "12345678901234567890.10"},
		{"list", `{"data":{"k":[ "a", 1e3 ]}}`, "k", spec.UTF8, `["a",1e3]`},
		{"key with a dot", `{"data":{"a.b":"x","a":{"b":"y"}}}`, "a.b", spec.UTF8, "x"},
		{"KV version 2", `{"data":{"data":{"k":"inner"},"metadata":{"version":3}}}`, "k", spec.UTF8, "inner"},
		{"wrapped like KV version 2", `{"data":{"data":{"k":"inner"},"k":"outer"}}`, "k", spec.UTF8, "inner"},
		{"key named data", `{"data":{"data":"x"}}`, "data", spec.UTF8, "x"},
		{"base64", `{"data":{"k":"AAH/"}}`, "k", spec.Base64, "\x00\x01\xff"},
		{"hex", `{"data":{"k":"00fF"}}`, "k", spec.Hex, "\x00\xff"},
		{"whole answer", credentials, "", spec.UTF8, `{"data":{"password":"p\u003c\u0026\u003eé","username":"v-user"}}`},
		{"whole answer has no encoding", `{"data":{"k":1.0}}`, "", spec.Hex, `{"data":{"k":1.0}}`},
		{"whole KV version 2", `{"data":{"metadata":{"version":3},"data":{"k":"v"}}}`, "", spec.UTF8, `{"data":{"data":{"k":"v"},"metadata":{"version":3}}}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := render.Files(object(test.key, test.encoding), answers(test.body))
			if err != nil {
				t.Fatal(err)
			}
			if string(got[0].Contents) != test.want {
				t.Errorf("got %q, want %q", got[0].Contents, test.want)
			}
		})
	}
}

func TestFilesErrors(t *testing.T) {
	var many strings.Builder
	for i := range 100 {
		fmt.Fprintf(&many, `,"k%03d":"canary"`, i)
	}
	const path = `object "file": the answer of "database/creds/my-app" `
	tests := []struct {
		name, body, key string
		encoding        spec.Encoding
		want            string
	}{
		{"key missing", `{"data":{"user":"canary","pass":"canary"}}`, "usr", spec.UTF8, path + `has no key "usr"; its keys are "pass", "user"`},
		{"key of the wrapper", `{"data":{"data":{},"metadata":{"canary":1}}}`, "metadata", spec.UTF8, path + `has no key "metadata"; it has no keys`},
		{"many keys", `{"data":{"k":1` + many.String() + `}}`, "x", spec.UTF8, path + `has no key "x"; its keys are "k", "k000", "k001", "k002", "k003", ` +
			`"k004", "k005", "k006", "k007", "k008", "k009", "k010", "k011", "k012", "k013", "k014" and 85 more`},
		{"empty body", ``, "k", spec.UTF8, path + "is not a JSON object"},
		{"not JSON", `canary`, "k", spec.UTF8, path + "is not a JSON object"},
		{"a list", `["canary"]`, "k", spec.UTF8, path + "is not a JSON object"},
		{"null", `null`, "k", spec.UTF8, path + "holds no data"},
		{"more behind", `{"data":{"k":"canary"}} canary`, "k", spec.UTF8, path + "is not one JSON object"},
		{"no data", `{"auth":"canary"}`, "", spec.UTF8, path + "holds no data"},
		{"data null", `{"data":null}`, "", spec.UTF8, path + "holds no data"},
		{"data empty", `{"data":{}}`, "", spec.UTF8, path + "holds no data"},
		{"data a text", `{"data":"canary"}`, "", spec.UTF8, path + "holds data that is not a JSON object"},
		{"deleted version", `{"data":{"data":null,"metadata":{"deletion_time":"canary"}}}`, "k", spec.UTF8,
			path + "holds no data: this version of the secret was deleted or destroyed"},
		{"bad base64", `{"data":{"k":"canary!"}}`, "k", spec.Base64, path + `has under key "k" what is not valid base64`},
		{"bad hex", `{"data":{"k":"canary"}}`, "k", spec.Hex, path + `has under key "k" what is not valid hex`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			files, err := render.Files(object(test.key, test.encoding), answers(test.body))
			var e *render.Error
			if !errors.As(err, &e) || e.Object != "file" || files != nil {
				t.Fatalf("got %q, %v", files, err)
			}
			if err.Error() != test.want {
				t.Errorf("error %q\n want %q", err, test.want)
			}
			if strings.Contains(err.Error(), "canary") {
				t.Error("the error repeats a value")
			}
		})
	}
}

func TestFilesWithoutAnswer(t *testing.T) {
	_, err := render.Files(object("k", spec.UTF8), nil)
	if want := `object "file": the answer of "database/creds/my-app" is not there`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// A certificate by itself is the file, even one that looks like JSON.
func TestFilesOfRawAnswers(t *testing.T) {
	for _, body := range []string{"-----BEGIN CERTIFICATE-----\n", "0\x82\x00\xff", `{"data":{}}`} {
		raw := map[spec.Read]grant.Answer{creds: {Read: creds, Body: []byte(body), Raw: true}}
		got, err := render.Files(object("", spec.Hex), raw)
		if want := []render.File{{Path: "file", Mode: 0o640, Contents: []byte(body)}}; err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %q, %v", got, err)
		}
		_, err = render.Files(object("certificate", spec.UTF8), raw)
		if err == nil || !strings.HasSuffix(err.Error(), "has no keys to choose: leave out secretKey") || strings.Contains(err.Error(), "BEGIN") {
			t.Errorf("with a key: %v", err)
		}
	}
}

// What Vault makes anew for each read of an unchanged secret must not change the file.
func TestFilesAreStable(t *testing.T) {
	again := strings.NewReplacer("r1", "r2", "my-app/x", "my-app/y", "3600", "3599", `["w"]`, "null").Replace(credentials)
	for _, key := range []string{"", "password"} {
		first, err := render.Files(object(key, spec.UTF8), answers(credentials))
		if err != nil {
			t.Fatal(err)
		}
		second, err := render.Files(object(key, spec.UTF8), answers(again))
		if err != nil || !reflect.DeepEqual(first, second) {
			t.Errorf("key %q: %q, then %q, %v", key, first, second, err)
		}
	}
}

func TestFilesAreBounded(t *testing.T) {
	body := `{"data":{"small":"s","large":"` + strings.Repeat("x", 1<<20) + `"}}`
	objects := make([]spec.Object, 512)
	for i := range objects {
		objects[i] = spec.Object{Name: fmt.Sprintf("f%03d", i), Read: creds, Key: "small"}
	}
	if _, err := render.Files(objects, answers(body)); err != nil {
		t.Fatalf("512 small files: %v", err)
	}
	for _, i := range []int{1, 2, 300} {
		objects[i].Key = "large"
	}
	if _, err := render.Files(objects, answers(body)); err != nil {
		t.Fatalf("3 MiB: %v", err)
	}
	objects[3].Key = "large"
	_, err := render.Files(objects, answers(body))
	var e *render.Error
	if !errors.As(err, &e) || e.Object != "" {
		t.Fatalf("4 MiB: %v", err)
	}
	want := fmt.Sprintf(`larger than the %d bytes that the driver takes; the largest: "f001" (1048576 bytes), "f002" (1048576 bytes), "f003" (1048576 bytes)`,
		render.MaxBytes)
	if !strings.HasSuffix(err.Error(), want) {
		t.Errorf("error %q\n want %q", err, want)
	}
}

// FuzzFiles: no body panics; what comes out is the same twice, and what fails says so as an *Error of bounded length.
func FuzzFiles(f *testing.F) {
	f.Add([]byte(credentials), "password", "utf-8")
	f.Add([]byte(`{"data":{"data":{"k":[1,{"a":null}]},"metadata":{"version":1}}}`), "k", "hex")
	f.Add([]byte(`{"data":{"data":null,"metadata":{}}}`), "k", "base64")
	f.Add([]byte(`{"data":{"":"AAH/"}}`), "", "base64")
	f.Fuzz(func(t *testing.T, body []byte, key, encoding string) {
		objects := append(object(key, spec.Encoding(encoding)), object("", spec.UTF8)...)
		files, err := render.Files(objects, answers(string(body)))
		if err != nil {
			var e *render.Error
			if !errors.As(err, &e) || files != nil || len(err.Error()) > 8192 {
				t.Errorf("got %q, %v", files, err)
			}
			return
		}
		again, err := render.Files(objects, answers(string(body)))
		if err != nil || !reflect.DeepEqual(files, again) {
			t.Errorf("%q, then %q, %v", files, again, err)
		}
		// The whole answer is an answer too, and renders to itself.
		whole, err := render.Files(object("", spec.UTF8), answers(string(files[1].Contents)))
		if err != nil || string(whole[0].Contents) != string(files[1].Contents) {
			t.Errorf("%q became %q, %v", files[1].Contents, whole, err)
		}
	})
}

// BenchmarkFormats is a secret of one key, and of a hundred, as one file and as a folder; and a certificate with its chain.
func BenchmarkFormats(b *testing.B) {
	run := func(name string, o spec.Object, given map[spec.Read]grant.Answer) {
		o.Name, o.Read = "file", creds
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := render.Files([]spec.Object{o}, given); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	for _, n := range []int{1, 100} {
		var keys []string
		for i := range n {
			keys = append(keys, fmt.Sprintf(`"KEY_%d":"a value, with 'quotes' and = signs"`, i))
		}
		kv := answers(`{"data":{"data":{` + strings.Join(keys, ",") + `},"metadata":{"version":3}}}`)
		for _, o := range []spec.Object{{}, {Each: true}, {Format: spec.JSON}, {Format: spec.YAML}, {Format: spec.Dotenv}, {Format: spec.Properties}} {
			name := cmp.Or(string(o.Format), "raw")
			if o.Each {
				name = "each"
			}
			run(fmt.Sprintf("%s/keys=%d", name, n), o, kv)
		}
	}
	pki := func(certificate, chain, key string) map[spec.Read]grant.Answer {
		return answers(strings.ReplaceAll(fmt.Sprintf(`{"data":{"certificate":"%s","ca_chain":["%s"],"private_key":"%s"}}`, certificate, chain, key), "\n", `\n`))
	}
	run("pem", spec.Object{Format: spec.PEM},
		pki(block("CERTIFICATE", strings.Repeat("c", 900)), block("CERTIFICATE", strings.Repeat("i", 900)), block("RSA PRIVATE KEY", strings.Repeat("k", 1200))))
	run("pkcs12", spec.Object{Format: spec.PKCS12, Password: "changeit"}, pki(fixedCertificate, fixedCertificate, fixedKey))
}

// BenchmarkFiles is the class of the README: user and password of one database credential.
func BenchmarkFiles(b *testing.B) {
	objects := []spec.Object{
		{Name: "db_user", Read: creds, Key: "username", Mode: 0o644, Encoding: spec.UTF8},
		{Name: "db_pass", Read: creds, Key: "password", Mode: 0o644, Encoding: spec.UTF8},
	}
	given := answers(credentials)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := render.Files(objects, given); err != nil {
			b.Fatal(err)
		}
	}
}
