//nolint:forbidigo // sleeps inside synctest bubbles only
package keeper_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/render"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/template"
	"github.com/leasehold-csi/leasehold/internal/template/templatetest"
)

// withTemplate adds an object with a template to a request.
func withTemplate(req *spec.Request, name, text string) {
	req.Spec.Objects = append(req.Spec.Objects, spec.Object{Name: name, Template: text, Read: spec.Read{Method: spec.Rendered, Args: text}, Mode: 0o644})
}

const url = `{{ with secret "` + creds + `" }}postgres://{{ .Data.username }}:{{ .Data.password }}@db/{{ end }}`

func rendering(t *testing.T, test func(*testing.T, *node)) {
	t.Helper()
	renderer := templatetest.Renderer(t)
	bubble(t, func(t *testing.T, n *node) {
		n.configure = func(c *keeper.Config) { c.Templates = renderer }
		n.stop()
		n.start()
		test(t, n)
	})
}

// TestTemplateSharesTheAnswer: a template and other objects show the same credentials, of one lease, also after a rotation and a restart;
// a republish renders nothing.
func TestTemplateSharesTheAnswer(t *testing.T) {
	rendering(t, func(t *testing.T, n *node) {
		req := n.request("p", wantCreds...)
		withTemplate(req, "url", url)
		withTemplate(req, "url-again", url)
		shown := func() string {
			t.Helper()
			files := n.mount(req)
			want := "postgres://" + string(files[0].Contents) + ":" + string(files[1].Contents) + "@db/"
			for _, f := range files[2:] {
				if string(f.Contents) != want {
					t.Errorf("%s: %q, want %q", f.Path, f.Contents, want)
				}
			}
			return want
		}
		first := shown()
		n.expect("mounted", 1, 1, 1)
		reads, working := n.vault.Count("GET "+creds), n.configure
		n.stop()
		n.configure = func(c *keeper.Config) { c.Templates = &template.Renderer{Binary: "/nonexistent"} } // rendering again would fail
		n.start()
		if shown() != first || n.vault.Count("GET "+creds) != reads {
			t.Error("a republish read again")
		}
		n.stop()
		n.configure = working
		n.start()
		for range 24 * 10 { // to the lease's last day
			time.Sleep(time.Hour)
			shown()
		}
		if shown() == first {
			t.Error("the credentials were never replaced")
		}
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}

// TestTemplateTakesLong: a Mount whose time is up meanwhile is not told to wait for Vault.
func TestTemplateTakesLong(t *testing.T) {
	dir := t.TempDir()
	began, end, binary := filepath.Join(dir, "began"), filepath.Join(dir, "end"), filepath.Join(dir, "binary")
	script := "#!/bin/sh\n: >" + began + "\nuntil [ -e " + end + " ]; do sleep 0.1; done\n"
	if err := os.WriteFile(binary, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	bubble(t, func(t *testing.T, n *node) {
		n.reconfigure(func(c *keeper.Config) { c.Templates = &template.Renderer{Binary: binary} })
		req := n.request("p")
		withTemplate(req, "url", url)
		ctx, cancel := context.WithCancel(t.Context())
		answer := make(chan error)
		go func() { _, err := n.keeper.Acquire(ctx, req); answer <- err }()
		for _, err := os.Stat(began); err != nil; _, err = os.Stat(began) { // a bubble's time stands still
			runtime.Gosched()
		}
		cancel()
		if err := <-answer; !errors.Is(err, keeper.ErrRendering) {
			t.Error(err)
		}
		if err := os.WriteFile(end, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}

// TestTemplateFindsItsReads: what only shows while it is rendered is read as well, once for all, and revoked with the rest.
func TestTemplateFindsItsReads(t *testing.T) {
	rendering(t, func(t *testing.T, n *node) {
		n.vault.KV2(kv, map[string]any{"role": "database/creds/my-app"})
		req := n.request("p")
		withTemplate(req, "file", `{{ with secret "`+kv+`" }}{{ with secret .Data.data.role }}{{ .Data.username }}{{ end }}{{ end }}`)
		if files := n.mount(req); len(files) != 1 || len(files[0].Contents) == 0 {
			t.Fatalf("files %v", files)
		}
		n.expect("mounted", 1, 1, 1)
		if c := n.vault.Count("GET " + kv); c != 1 {
			t.Errorf("%d reads of what one read answers", c)
		}
		n.end("p")
		n.expect("pod ended", 0, 0, 0)
	})
}

// TestTemplateFollowsItsSecrets: a template is rendered again when a secret changes, and shows what it showed when that fails.
func TestTemplateFollowsItsSecrets(t *testing.T) {
	rendering(t, func(t *testing.T, n *node) {
		n.vault.KV2(kv, map[string]any{"n": "8"})
		req := n.request("p", "plain="+kv+"#n")
		withTemplate(req, "half", `{{ with secret "`+kv+`" }}{{ parseInt .Data.data.n | divide 2 }}{{ end }}`)
		check := func(files []render.File, plain, half string) {
			t.Helper()
			if len(files) != 2 || string(files[0].Contents) != plain || string(files[1].Contents) != half {
				t.Fatalf("files %q, want %s and %s", files, plain, half)
			}
		}
		shows := func(plain, half string) { t.Helper(); check(n.mount(req), plain, half) }
		shows("8", "4")
		n.vault.KV2(kv, map[string]any{"n": "6"})
		time.Sleep(3 * time.Minute)
		shows("6", "3")

		n.vault.KV2(kv, map[string]any{"n": "canary"})
		for range 3 { // neither file goes ahead of the other; the driver keeps both when it gets an error
			time.Sleep(3 * time.Minute)
			if files, err := n.keeper.Acquire(t.Context(), req); err == nil {
				check(files, "6", "3")
			} else if text := err.Error(); !strings.Contains(text, `object "half", line 1, column`) || strings.Contains(text, "canary") {
				t.Fatal(err)
			}
		}
		if !n.had("RefreshFailed") {
			t.Error("nobody was told")
		}
		n.vault.KV2(kv, map[string]any{"n": "2"})
		time.Sleep(3 * time.Minute)
		shows("2", "1")
	})
}
