package kube_test

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/leasehold-csi/leasehold/internal/kube"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// tokenServer has one pod, and answers each TokenRequest with a token or an error.
func tokenServer(token string, answer error) (client *fake.Clientset, requests func() []k8stesting.CreateActionImpl) {
	pod := newPod("web", "u1")
	pod.Spec.ServiceAccountName = "app"
	client = fake.NewSimpleClientset(pod)
	client.PrependReactor("create", "serviceaccounts", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{Token: token}}, answer
	})
	return client, func() (made []k8stesting.CreateActionImpl) {
		for _, a := range client.Actions() {
			if create, ok := a.(k8stesting.CreateActionImpl); ok && a.Matches("create", "serviceaccounts/token") {
				made = append(made, create)
			}
		}
		return made
	}
}

// TestRequestToken: the token is for the pod of the UID, from the cache or from the API server, and bound to it.
func TestRequestToken(t *testing.T) {
	mount := spec.Pod{Namespace: "shop", Name: "web", UID: "u1", ServiceAccount: "app"}
	for name, cached := range map[string]bool{"a pod in the cache": true, "a pod that the cache does not have yet": false} {
		for audience, audiences := range map[string][]string{"vault": {"vault"}, "": nil} {
			t.Run(name+", audience "+audience, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					client, requests := tokenServer("a token", nil)
					c := kube.New(kube.Config{Client: client, Node: node, Log: slog.New(slog.DiscardHandler)})
					if cached {
						run(t, c)
						client.ClearActions()
					}
					got, err := c.RequestToken(t.Context(), mount, audience)
					if err != nil || got.Reveal() != "a token" {
						t.Fatalf("got %v, %v", got, err)
					}
					live := slices.ContainsFunc(client.Actions(), func(a k8stesting.Action) bool { return a.Matches("get", "pods") })
					if live == cached {
						t.Errorf("asked the API server for the pod: %v", live)
					}
					made := requests()
					if len(made) != 1 || made[0].GetNamespace() != "shop" || made[0].Name != "app" {
						t.Fatalf("requests %+v, want one of shop/app", made)
					}
					wish := made[0].Object.(*authenticationv1.TokenRequest).Spec
					bound := authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "web", UID: "u1"}
					if *wish.BoundObjectRef != bound || *wish.ExpirationSeconds != 900 || !slices.Equal(wish.Audiences, audiences) {
						t.Errorf("requested %+v", wish)
					}
				})
			})
		}
	}
}

// TestRequestTokenRefusals: whatever a Mount says, no token is requested for another pod than that of its UID; and each refusal says
// why.
func TestRequestTokenRefusals(t *testing.T) {
	mount := spec.Pod{Namespace: "shop", Name: "web", UID: "u1", ServiceAccount: "app"}
	tests := map[string]struct {
		change   func(*spec.Pod)
		uncached bool
		answer   error
		asked    bool
		want     string
	}{
		"another service account":   {change: func(p *spec.Pod) { p.ServiceAccount = "admin" }, want: "names pod shop/web with service account admin, but the pod of UID u1 is shop/web with service account app"},
		"another namespace":         {change: func(p *spec.Pod) { p.Namespace = "kube-system" }, want: "names pod kube-system/web"},
		"another name":              {change: func(p *spec.Pod) { p.Name = "db" }, want: "names pod shop/db"},
		"another pod's UID":         {change: func(p *spec.Pod) { p.UID = "u2" }, want: "knows no pod shop/web of UID u2"},
		"no such pod":               {change: func(p *spec.Pod) { p.Name, p.UID = "db", "u2" }, want: "knows no pod shop/db of UID u2"},
		"another account, uncached": {change: func(p *spec.Pod) { p.ServiceAccount = "admin" }, uncached: true, want: "names pod shop/web with service account admin"},
		"no rule for it": {answer: apierrors.NewForbidden(corev1.Resource("serviceaccounts"), "app", nil), asked: true,
			want: "may not create serviceaccounts/token, which manifests/components/token-request allows"},
		"the API server is away":     {answer: errTransport, asked: true, want: "requesting a token of service account shop/app: connection refused"},
		"an answer without a token ": {asked: true, want: "without one"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, requests := tokenServer("", tt.answer)
				c := kube.New(kube.Config{Client: client, Node: node, Log: slog.New(slog.DiscardHandler)})
				if !tt.uncached {
					run(t, c)
				}
				pod := mount
				if tt.change != nil {
					tt.change(&pod)
				}
				got, err := c.RequestToken(t.Context(), pod, "vault")
				if err == nil || !strings.Contains(err.Error(), tt.want) || !got.IsZero() {
					t.Errorf("got %v, want %q", err, tt.want)
				}
				if asked := len(requests()) > 0; asked != tt.asked {
					t.Errorf("a token was requested: %v, want %v", asked, tt.asked)
				}
			})
		})
	}
}
