//go:build e2e

package e2e_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	restclient "k8s.io/client-go/rest"

	"github.com/leasehold-csi/leasehold/internal/kube"
)

// provider is the name of Leasehold's service account, of its roles, and of its namespace.
const provider = "leasehold"

// rightsAreTold takes each rule of the manifest away, one at a time, and wants a sentence for each right in it, and no other.
func (s *suite) rightsAreTold(t *testing.T) {
	ctx, rbac := context.WithoutCancel(t.Context()), s.bed.Client().RbacV1()
	answer, err := s.bed.Client().CoreV1().ServiceAccounts(provider).CreateToken(ctx, provider, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := restclient.AnonymousClientConfig(s.bed.RESTConfig())
	config.BearerToken = answer.Status.Token
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	rights := kube.Rights(s.bed.State().Node, provider, "vault-csi-provider-hmac-key")
	missing := func() []string {
		var log strings.Builder
		kube.TellMissing(ctx, client, rights, slog.New(slog.NewTextHandler(&log, nil)))
		var found []string
		for _, r := range rights {
			if strings.Contains(strings.ReplaceAll(log.String(), `\"`, `"`), fmt.Sprintf("the provider may not %s: %s", r, r.Without)) {
				found = append(found, r.Verb+" "+r.Resource)
			}
		}
		return found
	}
	if found := missing(); len(found) > 0 {
		t.Fatalf("the manifest does not allow %q", found)
	}
	// put has a role's rules in the place of those that it has, from when the API server obeys them.
	put := map[string]func([]rbacv1.PolicyRule) error{}
	rules := map[string][]rbacv1.PolicyRule{}
	cluster, err := rbac.ClusterRoles().Get(ctx, provider, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rules["the cluster"], put["the cluster"] = cluster.Rules, func(r []rbacv1.PolicyRule) error {
		cluster.Rules = r
		cluster.ResourceVersion = ""
		_, err := rbac.ClusterRoles().Update(ctx, cluster, metav1.UpdateOptions{})
		return err
	}
	for _, namespace := range []string{corev1.NamespaceNodeLease, provider} {
		role, err := rbac.Roles(namespace).Get(ctx, provider, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		rules[namespace], put[namespace] = role.Rules, func(r []rbacv1.PolicyRule) error {
			role.Rules = r
			role.ResourceVersion = ""
			_, err := rbac.Roles(namespace).Update(ctx, role, metav1.UpdateOptions{})
			return err
		}
	}
	for where, all := range rules {
		t.Cleanup(func() { _ = put[where](all) })
		for i, taken := range all {
			var want []string
			for _, verb := range taken.Verbs {
				want = append(want, verb+" "+taken.Resources[0])
			}
			if err := put[where](slices.Delete(slices.Clone(all), i, i+1)); err != nil {
				t.Fatal(err)
			}
			s.awaitMissing(t, missing, want)
			if err := put[where](all); err != nil {
				t.Fatal(err)
			}
			s.awaitMissing(t, missing, nil)
		}
	}
}

// awaitMissing waits until these rights are told of: the API server learns of a changed role a moment later.
func (s *suite) awaitMissing(t *testing.T, missing func() []string, want []string) {
	t.Helper()
	slices.Sort(want)
	s.eventually(t, fmt.Sprintf("the provider may do all but %q", want), func(context.Context) error {
		found := missing()
		slices.Sort(found)
		if !slices.Equal(found, want) {
			return fmt.Errorf("it may do all but %q", found)
		}
		return nil
	})
}
