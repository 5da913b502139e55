//go:build e2e

package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
)

// badClass is a class that cannot be mounted, and what a person must read on the pod.
type badClass struct {
	name   string
	change func(parameters map[string]string)
	says   string
}

// object returns one item of objects with that path and key.
func object(name, path, key string) string {
	return fmt.Sprintf("- {objectName: %q, secretPath: %q, secretKey: %q}\n", name, path, key)
}

func badClassTable(host, role string) []badClass {
	objects := func(text string) func(map[string]string) {
		return func(parameters map[string]string) { parameters["objects"] = text }
	}
	set := func(name, value string) func(map[string]string) {
		return func(parameters map[string]string) { parameters[name] = value }
	}
	drop := func(name string) func(map[string]string) {
		return func(parameters map[string]string) { delete(parameters, name) }
	}
	named := func(name string) func(map[string]string) { return objects(object(name, "kv1/my-app", "username")) }
	return []badClass{
		{"no-role", drop("roleName"), "roleName is missing"},
		{"no-objects", drop("objects"), "objects is missing"},
		{"empty-objects", objects("[]"), "objects is empty"},
		{"no-list", objects("objectName: user"), "objects is not a YAML list"},
		{"no-yaml", objects("- [user"), "objects is not valid YAML"},
		{"twice", objects(object("user", "kv1/my-app", "username") + object("user", "kv1/my-app", "password")), "objectName is given more than once"},
		{"absolute", named("/etc/passwd"), "objectName is an absolute path"},
		{"dot-dot", named("a/../b"), `objectName holds ".."`},
		{"unclean", named("a//b"), "objectName is not a clean path"},
		{"long", named(strings.Repeat("x", 256)), "longer than 255 bytes"},
		{"no-such-key", objects(object("user", "database/creds/"+role, "nickname")), `has no key "nickname"`},
		{"no-such-role", set("roleName", "no-such-role"), "invalid role name"},
		{"no-permission", set("roleName", "no-access-role"), "permission denied"},
		{"no-such-path", objects(object("user", "secret/data/no-such-path", "username")), "Vault said 404"},
		{"unreachable", set("vaultAddress", "http://"+net.JoinHostPort(host, "9")), "connection refused"},
		{"metadata", set("vaultAddress", "http://169.254.169.254"), "no --allow-vault-addr opens it"},
	}
}

// badClasses starts a pod for every bad class. Each says what is wrong, and nothing stays in Vault.
func (s *suite) badClasses(t *testing.T) {
	p := s.newPlace(t, "classes")
	p.mustAllComplain(badClassTable(s.bed.State().Host, p.role), map[string]string{"roleName": "my-app-role", "objects": credentials(p.role)})
}

// mustAllComplain starts a pod for every bad class, which is good with its own changes, waits for what it says and deletes it.
func (p *place) mustAllComplain(table []badClass, good map[string]string) {
	was := p.incarnation(p.t)
	pods := make([]*corev1.Pod, len(table))
	for i, c := range table {
		parameters := maps.Clone(good)
		c.change(parameters)
		p.class(c.name, parameters)
		pods[i] = p.create(newPod(c.name, c.name))
	}
	for _, c := range table {
		p.awaitComplaint(c.name, c.says)
	}
	p.deleteAll()
	for _, pod := range pods {
		p.awaitObjectGone(pod)
	}
	p.awaitNothing()
	if p.incarnation(p.t) != was {
		p.t.Error("the provider did not live through it")
	}
}

// crookedVault is the bed's Vault, but for the paths below kv1/answer/, which it answers itself and badly.
type crookedVault struct {
	address string
	// stray is the accessor of the token that an answer brings.
	stray string
}

// slowness is how long the slow path takes.
const slowness = 30 * time.Second

func (s *suite) startCrookedVault(t *testing.T) crookedVault {
	t.Helper()
	token, err := s.vault.Auth().Token().CreateWithContext(t.Context(), &api.TokenCreateRequest{Policies: []string{"default"}, TTL: "1h", NoParent: true})
	if err != nil {
		t.Fatal(err)
	}
	upstream, err := url.Parse(s.bed.State().Vault.Address)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", httputil.NewSingleHostReverseProxy(upstream))
	answer := func(name string, handler http.HandlerFunc) { mux.HandleFunc("/v1/kv1/answer/"+name, handler) }
	answer("no-content", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	answer("empty", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	answer("page", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>It works!</html>") })
	answer("large", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"data":{"value":%q}}`, strings.Repeat("x", 5<<20))
	})
	answer("token", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"auth": map[string]any{
			"client_token": token.Auth.ClientToken, "accessor": token.Auth.Accessor, "lease_duration": 3600, "renewable": true,
		}})
	})
	answer("slow", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(slowness):
			_, _ = io.WriteString(w, `{"data":{"value":"worth the wait"}}`)
		case <-r.Context().Done():
		}
	})
	listener, err := net.Listen("tcp", net.JoinHostPort(s.bed.State().Host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return crookedVault{address: "http://" + listener.Addr().String(), stray: token.Auth.Accessor}
}

// badAnswers has pods log in to a Vault that answers reads with what is no secret, or takes its time.
func (s *suite) badAnswers(t *testing.T) {
	crooked := s.startCrookedVault(t)
	p := s.newPlace(t, "answers")
	answers := func(name string) func(map[string]string) {
		return func(parameters map[string]string) {
			parameters["objects"] = credentials(p.role) + object("value", "kv1/answer/"+name, "value")
		}
	}
	good := map[string]string{"roleName": "my-app-role", "vaultAddress": crooked.address}

	p.class("slow", map[string]string{
		"roleName": "my-app-role", "vaultAddress": crooked.address, "objects": object("value", "kv1/answer/slow", "value"),
	})
	slow := p.run(newPod("slow", "slow"))
	if p.read(slow, volume, "value") != "worth the wait" {
		t.Error("the slow answer was not mounted")
	}
	p.mustNotComplain()

	p.mustAllComplain([]badClass{
		{"no-content", answers("no-content"), "Vault answered without content"},
		{"empty", answers("empty"), "Vault answered without content"},
		{"page", answers("page"), "the reply is not Vault's JSON"},
		{"large", answers("large"), "larger"},
		{"token", answers("token"), "the answer is a Vault token"},
	}, good)
	s.eventually(t, "the token of an answer is revoked", func(ctx context.Context) error {
		_, err := s.vault.Auth().Token().LookupAccessorWithContext(ctx, crooked.stray)
		if code := refusal(err); code == http.StatusForbidden || code == http.StatusBadRequest {
			return nil
		}
		return fmt.Errorf("it lives: %w", err)
	})
}

// badCalls makes Mount calls that no driver makes.
func (s *suite) badCalls(t *testing.T) {
	was := s.incarnation(t)
	provider := s.driver(t)

	const uid, other = "7f3c8d1e-5a0b-4b6e-9a55-0d8f4d0c1b2a", "0c1b2a7f-9a55-4b6e-5a0b-3c8d1e0d8f4d"
	attributes, err := json.Marshal(map[string]string{
		"secretProviderClass": "db", "roleName": "my-app-role", "objects": credentials("my-app"),
		"csi.storage.k8s.io/pod.name": "pod", "csi.storage.k8s.io/pod.namespace": "default",
		"csi.storage.k8s.io/pod.uid": uid, "csi.storage.k8s.io/serviceAccount.name": "my-app",
	})
	if err != nil {
		t.Fatal(err)
	}
	target := func(uid string) string {
		return "/var/lib/kubelet/pods/" + uid + "/volumes/kubernetes.io~csi/secrets/mount"
	}
	for name, call := range map[string]struct {
		request *v1alpha1.MountRequest
		says    string
	}{
		"malformed attributes": {
			&v1alpha1.MountRequest{Attributes: "{", TargetPath: target(uid), Permission: "420"},
			"the attributes are not a JSON object",
		},
		"another pod's folder": {
			&v1alpha1.MountRequest{Attributes: string(attributes), TargetPath: target(other), Permission: "420"},
			"the target path belongs to pod UID",
		},
	} {
		_, err := provider.Mount(t.Context(), call.request)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), call.says) {
			t.Errorf("%s: got %v, want InvalidArgument and %q", name, err, call.says)
		}
	}
	if s.incarnation(t) != was {
		t.Error("the provider did not live through it")
	}
}

// endpoint is the provider's socket as this process sees it.
func (s *suite) endpoint() string {
	state := s.bed.State()
	if !s.hasKubelet() {
		return state.Provider.Endpoint
	}
	return filepath.Join(nodeRoot(state), "run", "secrets-store-csi-providers", "vault.sock")
}
