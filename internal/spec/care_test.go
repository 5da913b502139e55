package spec_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

func TestRefreshInterval(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 0, "10": 10 * time.Second, "90s": 90 * time.Second, "1h30m": 90 * time.Minute, "8760h": 365 * 24 * time.Hour,
	} {
		c := validCall()
		c.params["refreshInterval"] = text
		item("refreshInterval: " + text)(c)
		if got := c.mustParse(t).Spec; got.Refresh != want || got.Objects[0].Care.Refresh != want {
			t.Errorf("%q: class %s, object %s, want %s", text, got.Refresh, got.Objects[0].Care.Refresh, want)
		}
	}
	for _, text := range []string{"0", "9", "9.9s", "-1h", "soon", "8761h", "1d", "9223372036", "99999999999999999999", "2m0", "[1]"} {
		for name, change := range map[string]func(*call){"class": param("refreshInterval", text), "object": item("refreshInterval: " + text)} {
			c := validCall()
			change(c)
			_, err := c.parse(t)
			if got := faults(t, err); len(got) != 1 || !strings.Contains(got[0], "refreshInterval") {
				t.Errorf("%s: %q: faults %q", name, text, got)
			}
		}
	}
}

func TestRenewAt(t *testing.T) {
	issue := []string{"method: PUT", "secretPath: pki/issue/app"}
	object := func(lines ...string) func(*call) {
		return param("objects", "- objectName: x\n  "+strings.Join(append(issue, lines...), "\n  "))
	}
	for text, want := range map[string]int{"~": 0, "10": 10, "70%": 70, "'95%'": 95} {
		c := validCall()
		object("renewAt: " + text)(c)
		if got := c.mustParse(t).Spec.Objects[0].Care.RenewAt; got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	for _, text := range []string{"9", "96%", "0.7", "-70", "70%%", "1h", "{}"} {
		c := validCall()
		object("renewAt: " + text)(c)
		_, err := c.parse(t)
		if got := faults(t, err); len(got) != 1 || !strings.Contains(got[0], "renewAt") {
			t.Errorf("%q: faults %q", text, got)
		}
	}
}

func TestRevokeOnEnd(t *testing.T) {
	for name, test := range map[string]struct {
		lines []string
		fault string // empty: it is taken
	}{
		"issue":         {[]string{"method: PUT", "secretPath: pki/issue/app", "revokeOnEnd: true"}, ""},
		"POST":          {[]string{"method: POST", "secretPath: pki/issue/app", "revokeOnEnd: 'true'"}, ""},
		"GET":           {[]string{"secretPath: pki/issue/app", "revokeOnEnd: true"}, "the method must be PUT"},
		"another path":  {[]string{"method: PUT", "secretPath: transit/encrypt/app", "revokeOnEnd: true"}, "secretPath MOUNT/issue/ROLE"},
		"not a truth":   {[]string{"method: PUT", "secretPath: pki/issue/app", "revokeOnEnd: later"}, "neither true nor false"},
		"faulty path":   {[]string{"method: PUT", "secretPath: pki/../x", "revokeOnEnd: true"}, "holds \"..\""},
		"faulty method": {[]string{"method: DELETE", "secretPath: pki/issue/app", "revokeOnEnd: true"}, "is none of"},
	} {
		t.Run(name, func(t *testing.T) {
			c := validCall()
			c.params["objects"] = "- objectName: x\n  " + strings.Join(test.lines, "\n  ")
			req, err := c.parse(t)
			if test.fault == "" {
				if err != nil || !req.Spec.Objects[0].Care.RevokeOnEnd {
					t.Errorf("not taken: %v", err)
				}
				return
			}
			if got := faults(t, err); len(got) != 1 || !strings.Contains(got[0], test.fault) {
				t.Errorf("faults %q", got)
			}
		})
	}
}

func TestIssuer(t *testing.T) {
	for path, want := range map[string]string{
		"pki/issue/app": "pki", "team/a/pki/issue/app": "team/a/pki", "pki/sign/app": "pki", "pki/sign-verbatim/app": "pki", "pki/sign-verbatim": "pki",
		"pki/issuer/old/issue/app": "pki", "pki/issuer/old/sign-verbatim/app": "pki", "pki/issuer/old/sign-verbatim": "pki",
		"issue/issue/issue": "issue", "issuer/issue/app": "issuer", "a/issuer/issue/app": "a/issuer",
		"issue/app": "", "pki/issue": "", "pki/cert/ca": "", "secret/data/issue": "", "sign-verbatim": "", "pki/root/sign-intermediate": "",
	} {
		if got := (spec.Read{Path: path}).Issuer(); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// TestCareOfARead: what objects with one read say differently is settled, and what none says is the class's or the default.
func TestCareOfARead(t *testing.T) {
	c := validCall()
	c.params["refreshInterval"] = "10m"
	c.params["objects"] = `
- {objectName: a, secretPath: kv/a}
- {objectName: b1, secretPath: kv/b, refreshInterval: 1h}
- {objectName: b2, secretPath: kv/b, refreshInterval: 30m}
- {objectName: b3, secretPath: kv/b}
- {objectName: c1, secretPath: pki/issue/c, method: PUT, renewAt: 80, revokeOnEnd: true}
- {objectName: c2, secretPath: pki/issue/c, method: PUT, renewAt: 50%, revokeOnEnd: false}
- {objectName: c3, secretPath: pki/issue/c, method: PUT}
`
	s := c.mustParse(t).Spec
	for name, want := range map[string]spec.Care{
		"a": {10 * time.Minute, 70, false}, "b1": {30 * time.Minute, 70, false}, "b3": {30 * time.Minute, 70, false},
		"c1": {10 * time.Minute, 50, true}, "c3": {10 * time.Minute, 50, true},
	} {
		o := s.Objects[slices.IndexFunc(s.Objects, func(o spec.Object) bool { return o.Name == name })]
		if got := s.Care(o.Read); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	if got, want := new(spec.Spec).Care(spec.Read{}), (spec.Care{Refresh: 2 * time.Minute, RenewAt: 70}); got != want {
		t.Errorf("nothing said: %+v", got)
	}
}

// TestOneIssueForOneCertificate: PUT and POST are one verb for Vault, so that a certificate and its key share a read whichever each says.
func TestOneIssueForOneCertificate(t *testing.T) {
	c := validCall()
	c.params["objects"] = `
- {objectName: crt, secretPath: pki/issue/a, method: POST, secretArgs: {common_name: a}}
- {objectName: key, secretPath: pki/issue/a, method: PUT, secretArgs: {common_name: a}}
- {objectName: other, secretPath: pki/issue/a, method: PUT, secretArgs: {common_name: b}}
- {objectName: plain, secretPath: pki/issue/a}
`
	reads := map[spec.Read]bool{}
	objects := c.mustParse(t).Spec.Objects
	for _, o := range objects {
		reads[o.Read] = true
	}
	if len(reads) != 3 || objects[0].Read != objects[1].Read || objects[2].Read.Method != "PUT" || objects[3].Read.Method != "GET" {
		t.Errorf("reads %+v", reads)
	}
}
