package spec_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// FuzzParse: what is accepted parses to the same again and can be written by the driver; what is refused says why, in bounds.
func FuzzParse(f *testing.F) {
	seed := func(changes ...func(*call)) {
		c := validCall()
		for _, change := range changes {
			change(c)
		}
		in := c.input(f)
		f.Add(in.Attributes, in.Secrets, in.TargetPath, in.Permission)
	}
	seed()
	seed(names("a/b", "a-b", "..a", `"a\0b"`))
	seed(item("method: put", "secretArgs: {a: &a [1, 2.5, 2020-01-01], b: *a}", "filePermission: 0600", "encoding: HEX"))
	seed(item("<<: {secretKey: k}"), param("vaultAddress", "https://u:p@[::1%25eth0]:8200/?q#f"))
	seed(param("vaultAuthMountPath", "/v1/..%2f"), param("vaultSkipTLSVerify", "f"), param("objects", "- &a [*a]"))
	f.Add(`{"objects":"- {objectName: a, secretPath: /v1/a?b=c&a, secretArgs: {}}","roleName":"r"}`, "null", "/pods/a/volumes/kubernetes.io~csi/b/mount", "0")
	f.Add("{", "{", "//", "-1")
	seed(param("refreshInterval", "90"), item("method: POST", "refreshInterval: 1h", "renewAt: 50%", "revokeOnEnd: false"))
	seed(param("authMethod", "cert"), func(c *call) { c.secrets = map[string]string{"tls.crt": "a", "tls.key": "b", "secretId": "c"} })

	defaults := validCall().defaults
	f.Fuzz(func(t *testing.T, attributes, secrets, target, permission string) {
		checkParse(t, spec.Input{Attributes: attributes, Secrets: secrets, TargetPath: target, Permission: permission}, defaults)
	})
}

// FuzzParseObjects reaches deeper into the YAML, which inside of JSON is hard to mutate.
func FuzzParseObjects(f *testing.F) {
	f.Add(objects)
	f.Add("- {objectName: a/b, secretPath: '/v1/a?version=2&a', method: put, encoding: hex, filePermission: 0o600}")
	f.Add("- &a {objectName: a, secretPath: b, secretArgs: &b {c: [1, 2.5, 2020-01-01, !!binary YQ==]}}\n- {<<: *a, objectName: c}")
	f.Add("- {objectName: a, secretPath: b, secretKey: '*', optional: true}\n- {objectName: c, secretPath: b, secretKey: [a.b, 'c\\.d', 1], format: dotenv}")
	f.Add("- {objectName: a, secretPath: b, format: pkcs12, password: changeit}\n- {objectName: c, secretPath: b, secretKey: [a, b], format: PKCS12, password: \" ~é\"}\n- {objectName: d, secretPath: b, password: ''}")
	f.Add("- {objectName: a, secretPath: pki/issuer/x/issue/b, method: PUT, renewAt: 95%, revokeOnEnd: yes, refreshInterval: 10s}\n- {objectName: b, secretPath: pki/issuer/x/issue/b, method: POST, renewAt: 10}")
	f.Add("- {objectName: a, secretPath: b, secretArgs: {? [a] : b}, filePermission: \"0600\"}")
	f.Fuzz(func(t *testing.T, objects string) {
		c := validCall()
		c.params["objects"] = objects
		checkParse(t, c.input(t), c.defaults)
	})
}

// FuzzPaths: whatever of a class ends up in a URL leads nowhere else than it says.
func FuzzPaths(f *testing.F) {
	f.Add("/v1/secret/data/a?version=2", "/kubernetes/", "team/a", "https://vault:8200")
	f.Add("a//b/./c?x=%2f&x=..", "auth/%2E%2e/x", "../root", "http://[::ffff:127.0.0.1]:8200/")
	f.Add("sys/raw#?", "a?b", " /", "https://user@vault.test:0")
	f.Add("a%00", "%00", "%", "https://vault.test")
	f.Add("v1/v1/..%2Fsys", "ünter/wegs", "\u2028", "http://LOCALHOST.:80")
	f.Fuzz(func(t *testing.T, secretPath, mount, namespace, address string) {
		quoted, err := json.Marshal(secretPath)
		if err != nil {
			t.Fatal(err)
		}
		c := validCall()
		c.params["objects"] = "- {objectName: f, secretPath: " + string(quoted) + "}"
		c.params["vaultAuthMountPath"], c.params["vaultNamespace"], c.params["vaultAddress"] = mount, namespace, address
		req, err := c.parse(t)
		if err != nil {
			checkFaults(t, err)
			return
		}
		for _, path := range []string{req.Spec.Objects[0].Read.Path, "auth/" + req.Spec.Auth.Mount + "/login", "ns/" + req.Spec.Namespace} {
			arrives := (&url.URL{Path: path}).EscapedPath()
			for range 2 { // Vault decodes once, and a proxy before it may
				if next, err := url.PathUnescape(arrives); err == nil {
					arrives = next
				}
			}
			arrives = strings.TrimSuffix(arrives, "/") // of no namespace
			if filepath.Clean(arrives) != arrives || strings.Count(arrives, "/") != strings.Count(strings.TrimSuffix(path, "/"), "/") {
				t.Errorf("path %q may arrive as %q", path, arrives)
			}
		}
		s := req.Spec.Server
		at, err := url.Parse(s.Address)
		if err != nil || at.Host == "" || at.Path+at.RawQuery+at.Fragment != "" || at.User != nil || at.Scheme != "http" && at.Scheme != "https" {
			t.Errorf("address %q", s.Address)
		}
		if ip, err := netip.ParseAddr(at.Hostname()); err == nil && spec.Reserved(ip) || !s.Guarded && s.Address != c.defaults.Server.Address {
			t.Errorf("address %q, guarded: %t", s.Address, s.Guarded)
		}
	})
}

func checkParse(t *testing.T, in spec.Input, defaults spec.Defaults) {
	req, err := spec.Parse(in, defaults)
	if err != nil {
		checkFaults(t, err)
		return
	}
	defaults.Lists = spec.NewLists()
	for _, again := range []string{"for the second time", "from memory"} {
		if got, err := spec.Parse(in, defaults); err != nil || !reflect.DeepEqual(req, got) {
			t.Errorf("parsed %s: %+v, %v\nfirst: %+v", again, got, err, req)
		}
	}
	checkNames(t, req.Spec.Objects)
	for _, o := range req.Spec.Objects {
		checkRead(t, o.Read)
		checkCare(t, req.Spec.Care(o.Read), o)
		if o.Mode < 1 || o.Mode > 0o777 {
			t.Errorf("mode %#o", o.Mode)
		}
		several := len(o.Keys) > 0
		if o.Key != "" && (several || o.Each) || several && (o.Each || o.Format == spec.Raw) || o.Each && o.Format != spec.Raw || o.Format != spec.Raw && o.Encoding != spec.UTF8 {
			t.Errorf("an object that contradicts itself: %+v", o)
		}
		if (o.Password != "") != (o.Format == spec.PKCS12) || !regexp.MustCompile(`^[ -~]{0,128}$`).MatchString(o.Password) {
			t.Errorf("password %q for format %q", o.Password, o.Format)
		}
	}
}

// checkCare: whatever is said, nothing is read or issued without a pause, and what is to be revoked has an engine to be revoked at.
func checkCare(t *testing.T, c spec.Care, o spec.Object) {
	if c.Refresh < 10*time.Second || c.Refresh > 365*24*time.Hour || c.RenewAt < 10 || c.RenewAt > 95 {
		t.Errorf("care %+v", c)
	}
	mount := o.Read.Issuer()
	if o.Care.RevokeOnEnd && (mount == "" || !strings.HasPrefix(o.Read.Path, mount+"/") || o.Read.Method == "GET") || o.Care.RevokeOnEnd && !c.RevokeOnEnd {
		t.Errorf("certificates of %s %q are to be revoked at %q: %+v", o.Read.Method, o.Read.Path, mount, c)
	}
}

func checkFaults(t *testing.T, err error) {
	var e *spec.Error
	if !errors.As(err, &e) || len(e.Faults) == 0 || len(e.Faults) > 16 {
		t.Fatalf("not a bounded *Error: %v", err)
	}
	for _, fault := range e.Faults {
		if fault == "" || len(fault) > 512 {
			t.Errorf("fault of %d bytes", len(fault))
		}
	}
}

// checkNames applies the driver's rules, said in another way than the parser does.
func checkNames(t *testing.T, objects []spec.Object) {
	files := make(map[string]bool)
	for _, o := range objects {
		if !filepath.IsLocal(o.Name) || filepath.Clean(o.Name) != o.Name || o.Name == "." || strings.HasPrefix(o.Name, "..") || len(o.Name) > 4096 {
			t.Errorf("name %q", o.Name)
		}
		for element := range strings.SplitSeq(o.Name, "/") {
			if element == ".." || len(element) > 255 {
				t.Errorf("element %q of name %q", element, o.Name)
			}
		}
		if files[o.Name] {
			t.Errorf("name %q is there twice", o.Name)
		}
		files[o.Name] = true
		if file := o.Name + "/" + strings.Repeat("k", 255); o.Each && (len(file) > 4096 || !o.Writes(file)) {
			t.Errorf("a file of folder %q has a name of %d bytes", o.Name, len(file))
		}
	}
	for name := range files {
		for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
			if files[dir] {
				t.Errorf("%q is a file and a folder", dir)
			}
		}
	}
}

func checkRead(t *testing.T, r spec.Read) {
	if r.Path == "" || r.Path != strings.Trim(filepath.Clean("/"+r.Path), "/") || strings.ContainsAny(r.Path, "?#\n\x00") {
		t.Errorf("path %q", r.Path)
	}
	if r.Args != "" && !json.Valid([]byte(r.Args)) {
		t.Errorf("args %q", r.Args)
	}
}
