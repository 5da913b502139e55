// Package page serves one page, for a browser, of what a node holds and what happened to it. It is looked at only: nothing behind it
// changes anything.
//
// It is meant for a loopback address and for a port that is forwarded to it. It needs no login, so that it answers no page but its own:
// requests for another host, which a hostile name server can send a browser to, and requests of other sites are refused.
package page

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

var (
	//go:embed page.html
	frame string
	//go:embed page.css
	style string
	//go:embed page.js
	script string

	// document is all that the browser gets, but for the reports.
	document = strings.NewReplacer("{{style}}", style, "{{script}}", script).Replace(frame)
	// policy lets the browser run this script and no other, and ask nobody but this server.
	policy = strings.Join([]string{
		"default-src 'none'", "script-src " + hash(script), "style-src " + hash(style), "img-src data:", "connect-src 'self'",
		"base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'",
	}, "; ")
)

// hash is how a policy names a text between tags.
func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// Handler answers with the page at /, and below /v1/ with the reports that the page shows, which reports must answer.
func Handler(reports http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, document)
	})
	mux.Handle("GET /v1/", reports)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{
			"Content-Security-Policy":      policy,
			"X-Content-Type-Options":       "nosniff",
			"Referrer-Policy":              "no-referrer",
			"Cross-Origin-Opener-Policy":   "same-origin",
			"Cross-Origin-Resource-Policy": "same-origin",
			"Cache-Control":                "no-store",
		} {
			w.Header().Set(name, value)
		}
		switch {
		case !Loopback(hostname(r.Host)):
			http.Error(w, "this page is at localhost and at loopback addresses only", http.StatusMisdirectedRequest)
		case foreign(r):
			http.Error(w, "this page is not for other sites", http.StatusForbidden)
		default:
			mux.ServeHTTP(w, r)
		}
	})
}

// Loopback reports whether host is localhost or a loopback address.
func Loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// hostname is a Host header without its port.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}

// foreign reports whether another site's page makes the request, as browsers tell. A link on it may lead here: what it opens it cannot
// read.
func foreign(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
		return false
	}
	return r.Header.Get("Sec-Fetch-Mode") != "navigate" || r.Header.Get("Sec-Fetch-Dest") != "document"
}
