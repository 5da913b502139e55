//go:build e2e

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-csi/leasehold/internal/admin"
)

// source is one way in which the provider tells something to somebody.
type source struct {
	name string
	text func(context.Context) (string, error)
	// proof is in the text when it is what it should be.
	proof string
}

// sources are all of them: whatever the provider writes or answers, but volumes, must be in one.
func (s *suite) sources() []source {
	sources := []source{
		{"the provider's log, with the errors of its calls", func(context.Context) (string, error) { return s.logs.text() }, s.debugLine()},
		{"the audit log", s.auditText, `"action":"revoke"`},
		{"what the admin socket told", s.heard.text, "logged in to"},
		{"the events", s.events.text, "Successfully assigned"},
		{"the metrics", s.metrics, "leasehold_build_info"},
	}
	if !s.hasKubelet() {
		sources = append(sources, source{"the traces", s.tracesText, `"login"`}, source{"the page", s.pageText, "<title>Leasehold</title>"})
	}
	return sources
}

// noSecretWasTold searches all that the provider told, at debug level, while the scenarios ran.
func (s *suite) noSecretWasTold(t *testing.T) {
	for _, source := range s.sources() {
		text, err := source.text(t.Context())
		if err != nil {
			t.Errorf("%s: %v", source.name, err)
			continue
		}
		if !strings.Contains(text, source.proof) {
			t.Errorf("%s, of %d bytes, does not hold %q, so it proves nothing", source.name, len(text), source.proof)
		}
		if found := s.secrets.foundIn(text); len(found) > 0 {
			t.Errorf("%s: it holds %q", source.name, found)
		}
	}
}

// debugLine is in each line of the provider's log at debug level: JSON in the light form, text in the others.
func (s *suite) debugLine() string {
	if s.hasKubelet() {
		return "level=DEBUG"
	}
	return `"level":"DEBUG"`
}

// auditText is the audit log, which goes to the standard output, and so to the provider's log, where a kubelet runs it.
func (s *suite) auditText(context.Context) (string, error) {
	if s.hasKubelet() {
		return s.logs.text()
	}
	text, err := os.ReadFile(s.bed.AuditLog())
	return string(text), err
}

// pageText is the page with what it is made of, at this moment.
func (s *suite) pageText(ctx context.Context) (string, error) {
	var all strings.Builder
	for _, path := range []string{"/", "/v1/leases", "/v1/events"} {
		text, err := get(ctx, http.DefaultClient, "http://"+s.bed.State().Provider.UIAddress+path)
		if err != nil {
			return "", err
		}
		all.Write(text)
	}
	return all.String(), nil
}

// heard are texts that were told while the tests ran, and can be asked for no more at their end; each once.
type heard struct {
	mu    sync.Mutex
	texts map[string]bool
}

func (h *heard) add(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.texts == nil {
		h.texts = map[string]bool{}
	}
	h.texts[text] = true
}

// addAll adds every text in a JSON value.
func (h *heard) addAll(value any) {
	switch value := value.(type) {
	case string:
		h.add(value)
	case []any:
		for _, v := range value {
			h.addAll(v)
		}
	case map[string]any:
		for _, v := range value {
			h.addAll(v)
		}
	}
}

func (h *heard) text(context.Context) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(slices.Sorted(maps.Keys(h.texts)), "\n"), nil
}

// adminDir is the provider's state folder as this process sees it.
func (s *suite) adminDir() string {
	state := s.bed.State()
	if !s.hasKubelet() {
		return state.Provider.StateDir
	}
	return filepath.Join(nodeRoot(state), state.Provider.StateDir)
}

// askAdmin hears what the admin socket tells: grants go, and what is remembered with the process. One that does not answer is not there.
func (s *suite) askAdmin(ctx context.Context, h *heard) {
	client := admin.Client(s.adminDir())
	defer client.CloseIdleConnections()
	for _, path := range []string{"/v1/leases", "/v1/events"} {
		if value, err := getJSON(ctx, client, "http://leasehold"+path); err == nil {
			h.addAll(value)
		}
	}
}

// askEvents hears all events, which go with their namespaces.
func (s *suite) askEvents(ctx context.Context, h *heard) {
	events, err := s.bed.Client().CoreV1().Events("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return // the API server is away; it is asked again
	}
	for _, event := range events.Items {
		h.add(event.Reason + " " + event.Message)
	}
}

// listen asks again and again until the test ends.
func listen(t *testing.T, ask func(context.Context, *heard)) *heard {
	t.Helper()
	h := &heard{}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var listening sync.WaitGroup
	listening.Go(func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			ask(ctx, h)
		}
	})
	t.Cleanup(func() {
		stop()
		listening.Wait()
	})
	return h
}

func getJSON(ctx context.Context, client *http.Client, url string) (value any, err error) {
	text, err := get(ctx, client, url)
	if err == nil {
		err = json.Unmarshal(text, &value)
	}
	return value, err
}

func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	return io.ReadAll(response.Body)
}

// explain is what `leasehold explain` says of a pod of the place: as JSON, and for people.
func (p *place) explain(ctx context.Context, pod string) (e admin.Explanation, text string, err error) {
	output, err := p.bed.Leasehold(ctx, "explain", p.ns+"/"+pod, "-o", "json")
	if err != nil {
		return e, "", err
	}
	if err := json.Unmarshal(output, &e); err != nil {
		return e, "", fmt.Errorf("decoding what leasehold explain says: %w", err)
	}
	told, err := p.bed.Leasehold(ctx, "explain", p.ns+"/"+pod)
	p.heard.add(string(output))
	p.heard.add(string(told))
	return e, string(told), err
}

// awaitCause waits until leasehold explain names a trouble that is not over, or one that is, and says parts of a sentence.
func (p *place) awaitCause(pod, trouble string, over bool, says ...string) {
	p.t.Helper()
	p.eventually(p.t, fmt.Sprintf("leasehold explain %s/%s names %s, over: %t, and says %q", p.ns, pod, trouble, over, says), func(ctx context.Context) error {
		e, text, err := p.explain(ctx, pod)
		if err != nil {
			return err
		}
		named := slices.ContainsFunc(e.Checks, func(c admin.Check) bool { return c.Trouble == trouble && c.Over == over })
		for _, part := range says {
			named = named && strings.Contains(text, part)
		}
		if !named {
			return fmt.Errorf("it says\n%s", text)
		}
		return nil
	})
}

// explains asks what became of a pod that never starts, and of one whose role goes and comes back before the pod does.
func (s *suite) explains(t *testing.T) {
	p := s.newPlace(t, "explain")
	p.makeRole(p.role, map[string]any{"default_ttl": "30s"}) // and so it is renewed every 10 s
	p.databaseClass()
	p.class("wrong", map[string]string{"roleName": "role-" + p.role, "objects": credentials(p.role)})
	wrong, pod := p.create(newPod("wrong", "wrong")), p.run(newPod("app", "db"))
	held, credentials := p.mustHold(1), p.login(pod)
	p.awaitCause(wrong.Name, "RoleGone", false, "the volume could not be filled", "vault read auth/kubernetes/role/role-"+p.role, "service account my-app", "  nothing\n")
	p.delete(wrong, metav1.DeleteOptions{})

	e, text, err := p.explain(t.Context(), pod.Name)
	if err != nil || len(e.Checks) > 0 || len(e.Grants) != 1 {
		t.Errorf("of a pod that is well it says\n%s%v", text, err)
	}
	for _, want := range []string{`as role "my-app-role" by auth mount "kubernetes"`, "issued credentials, for 30s", "the volume has its files", "nothing fails now", "the next renewal is in"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s\nwant %s", text, want)
		}
	}
	if _, err := s.vault.Logical().DeleteWithContext(t.Context(), "database/roles/"+p.role); err != nil {
		t.Fatal(err)
	}
	p.awaitCause(pod.Name, "RoleGone", false, "cannot be renewed any more", "vault list database/roles")
	p.makeRole(p.role, nil)
	p.awaitCause(pod.Name, "RoleGone", true, "issued new credentials")
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitNothing()
	p.mustNotBeHeld(held, credentials)
	if _, text, err = p.explain(t.Context(), pod.Name); err != nil || !strings.Contains(text, "the pod is over") || !strings.Contains(text, "revoked the token") {
		t.Errorf("of a pod that is over it says\n%s%v", text, err)
	}
	if _, text, err = p.explain(t.Context(), "nobody"); err != nil || !strings.Contains(text, "is it on this node?") {
		t.Errorf("of a pod that never was it says\n%s%v", text, err)
	}
}
