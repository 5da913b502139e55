package page_test

import (
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/page"
)

// get asks a page at localhost, whose reports say what they are asked, after change has made the request a special one.
func get(method, path string, change func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	r.Host = "localhost:8081"
	change(r)
	w := httptest.NewRecorder()
	page.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "report "+r.URL.RequestURI())
	})).ServeHTTP(w, r)
	return w
}

func asItIs(*http.Request) {}

func TestPaths(t *testing.T) {
	for _, test := range []struct {
		method, path string
		code         int
		body         string // its beginning
	}{
		{"GET", "/", 200, "<!doctype html>"},
		{"HEAD", "/", 200, ""},
		{"GET", "/v1/leases", 200, "report /v1/leases"},
		{"GET", "/v1/events?limit=9", 200, "report /v1/events?limit=9"},
		{"POST", "/", 405, "Method Not Allowed"},
		{"POST", "/v1/drain?force=true", 405, "Method Not Allowed"},
		{"POST", "/v1/revoke", 405, "Method Not Allowed"},
		{"DELETE", "/v1/leases", 405, "Method Not Allowed"},
		{"OPTIONS", "/v1/leases", 405, "Method Not Allowed"},
		{"GET", "/index.html", 404, "404"},
		{"GET", "/debug/pprof/heap", 404, "404"},
	} {
		w := get(test.method, test.path, asItIs)
		if w.Code != test.code || !strings.HasPrefix(w.Body.String(), test.body) {
			t.Errorf("%s %s: %d %.40q", test.method, test.path, w.Code, w.Body)
		}
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
			"Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin", "Access-Control-Allow-Origin": "",
		} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s %s: %s is %q, want %q", test.method, test.path, name, got, want)
			}
		}
		if policy := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none'; ") || !strings.Contains(policy, "frame-ancestors 'none'") ||
			strings.Contains(policy, "unsafe") {
			t.Errorf("%s %s: the policy is %q", test.method, test.path, policy)
		}
	}
}

// The page has all that it needs in it, and its policy knows its script and its style, and no others.
func TestSelfContained(t *testing.T) {
	w := get("GET", "/", asItIs)
	document, policy := w.Body.String(), w.Header().Get("Content-Security-Policy")
	for _, kind := range []string{"script", "style"} {
		texts := regexp.MustCompile(`(?s)<`+kind+`>(.*?)</`+kind+`>`).FindAllStringSubmatch(document, -1)
		if len(texts) != 1 {
			t.Fatalf("the page has %d of %s", len(texts), kind)
		}
		sum := sha256.Sum256([]byte(texts[0][1]))
		if source := kind + "-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "';"; !strings.Contains(policy, source) {
			t.Errorf("the policy does not say %s: %s", source, policy)
		}
	}
	for _, address := range regexp.MustCompile(`(?:src|href|url|import|action)\s*[=(]\s*["']?([^"')\s>]+)`).FindAllStringSubmatch(document, -1) {
		if !strings.HasPrefix(address[1], "#") && !strings.HasPrefix(address[1], "data:") {
			t.Errorf("the page refers to %s", address[1])
		}
	}
	if found := regexp.MustCompile(`(?i)\son[a-z]+\s*=\s*["']|\sstyle\s*=|innerHTML|document\.write|\beval\(`).FindAllString(document, -1); found != nil {
		t.Errorf("the page has %q", found)
	}
	if len(document) > 64<<10 {
		t.Errorf("the page has %d bytes", len(document))
	}
}

// A name server that sends a browser to 127.0.0.1 for evil.example does not make the page evil.example's.
func TestHosts(t *testing.T) {
	for host, code := range map[string]int{
		"localhost:8081": 200, "localhost": 200, "LOCALHOST:1": 421, "127.0.0.1:8081": 200, "127.9.9.9": 200, "[::1]:8081": 200, "[::1]": 200,
		"evil.example:8081": 421, "localhost.evil.example": 421, "127.0.0.1.evil.example:8081": 421, "10.0.0.1:8081": 421, "0.0.0.0": 421, "": 421,
		"[fe80::1]:8081": 421, "2130706433": 421,
	} {
		for _, path := range []string{"/", "/v1/leases"} {
			if w := get("GET", path, func(r *http.Request) { r.Host = host }); w.Code != code || code != 200 && strings.Contains(w.Body.String(), "report") {
				t.Errorf("%q, %s: %d %.40q, want %d", host, path, w.Code, w.Body, code)
			}
		}
	}
}

// Pages of other sites may lead here, and neither fetch nor embed anything.
func TestOtherSites(t *testing.T) {
	for _, test := range []struct {
		site, mode, dest string
		code             int
	}{
		{"", "", "", 200}, // curl
		{"none", "navigate", "document", 200},
		{"same-origin", "cors", "empty", 200},
		{"cross-site", "navigate", "document", 200},
		{"cross-site", "navigate", "iframe", 403},
		{"cross-site", "cors", "empty", 403},
		{"same-site", "cors", "empty", 403}, // another port of localhost
		{"cross-site", "no-cors", "script", 403},
		{"cross-site", "no-cors", "image", 403},
		{"cross-site", "", "", 403},
	} {
		w := get("GET", "/v1/leases", func(r *http.Request) {
			for name, value := range map[string]string{"Site": test.site, "Mode": test.mode, "Dest": test.dest} {
				if value != "" {
					r.Header.Set("Sec-Fetch-"+name, value)
				}
			}
		})
		if w.Code != test.code {
			t.Errorf("%+v: %d", test, w.Code)
		}
	}
}
