package kube_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/leasehold-csi/leasehold/internal/kube"
)

// TestRightsAreTheManifests: what the manifest allows is asked for, and nothing else.
func TestRightsAreTheManifests(t *testing.T) {
	text, err := os.ReadFile("../../manifests/base/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var allowed, asked []string
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var role rbacv1.Role
		if err := yaml.Unmarshal([]byte(document), &role); err != nil {
			t.Fatal(err)
		}
		for _, rule := range role.Rules {
			for _, verb := range rule.Verbs {
				allowed = append(allowed, fmt.Sprint(verb, " ", rule.APIGroups[0], "/", rule.Resources[0], " ", role.Namespace, rule.ResourceNames))
			}
		}
	}
	for _, r := range kube.Rights("node-1", "leasehold", "vault-csi-provider-hmac-key") {
		names := []string{r.Name}
		if r.Name == "" || r.Name == "node-1" { // of which the manifest cannot know the name
			names = nil
		}
		asked = append(asked, fmt.Sprint(r.Verb, " ", r.Group, "/", r.Resource, " ", r.Namespace, names))
	}
	slices.Sort(allowed)
	slices.Sort(asked)
	if !slices.Equal(allowed, asked) {
		t.Errorf("the manifest allows\n%s\nand the provider asks for\n%s", strings.Join(allowed, "\n"), strings.Join(asked, "\n"))
	}
}

// TestFollowMissing: what is missing is asked for again until it is granted, and nothing else is.
func TestFollowMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset()
		granted, asked := false, 0
		client.PrependReactor("create", "selfsubjectaccessreviews", func(a k8stesting.Action) (bool, runtime.Object, error) {
			asked++
			review := a.(k8stesting.CreateAction).GetObject().(*authorizationv1.SelfSubjectAccessReview).DeepCopy()
			review.Status.Allowed = granted || review.Spec.ResourceAttributes.Resource != "events"
			return true, review, nil
		})
		var told []int
		rights := kube.Rights("node-1", "leasehold", "key")
		kube.FollowMissing(t.Context(), client, rights, func(missing []kube.Right) {
			told = append(told, len(missing))
			granted = len(told) == 2
		}, slog.New(slog.DiscardHandler))
		if want := []int{2, 2, 0}; !slices.Equal(told, want) || asked != len(rights)+4 {
			t.Errorf("told of %v missing rights in %d questions, want %v in %d", told, asked, want, len(rights)+4)
		}
	})
}

// TestTellMissing: an API server that is away is asked again; a right that is missing is told once, in one sentence.
func TestTellMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset()
		asked := 0
		client.PrependReactor("create", "selfsubjectaccessreviews", func(a k8stesting.Action) (bool, runtime.Object, error) {
			if asked++; asked == 1 {
				return true, nil, errors.New("away")
			}
			review := a.(k8stesting.CreateAction).GetObject().(*authorizationv1.SelfSubjectAccessReview).DeepCopy()
			review.Status.Allowed = review.Spec.ResourceAttributes.Resource != "leases"
			return true, review, nil
		})
		var log strings.Builder
		kube.TellMissing(t.Context(), client, kube.Rights("node-1", "leasehold", "key"), slog.New(slog.NewTextHandler(&log, nil)))
		const want = `may not get \"node-1\" of leases in namespace kube-node-lease: the leases of pods that were deleted`
		if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), want) {
			t.Errorf("%q, want one line with %q", log.String(), want)
		}
	})
}
