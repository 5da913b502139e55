package kube

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
)

const (
	// rightsPause is the time between two tries to ask what the provider may do.
	rightsPause = time.Minute
	// missingPause is the time after which what it may not do is asked for again.
	missingPause = 10 * time.Minute
)

// Right is something that the provider does in the cluster. The zero values of the other fields mean all.
type Right struct {
	Verb, Group, Resource, Namespace, Name string
	// Without is what becomes of a provider that may not.
	Without string
}

// Rights are those of manifests/base/rbac.yaml, for a provider in a namespace whose key of object versions has that name.
func Rights(node, namespace, keySecret string) []Right {
	const (
		blind    = "no pod's end is seen, so nothing is given back, and the provider does not become ready"
		doubtful = "no pod's end is believed, so nothing is given back before it runs out"
		silent   = "nobody is told on the pods of credentials that cannot be renewed or given back"
		unsynced = "volumes with leased secrets are mounted only if their class says syncedLeases: revoke"
		held     = "the leases of pods that were deleted while their volume was not seen to go are held until they run out"
		keyless  = "object versions differ from node to node"
	)
	return []Right{
		{Verb: "list", Resource: "pods", Without: blind},
		{Verb: "watch", Resource: "pods", Without: blind},
		{Verb: "get", Resource: "pods", Without: doubtful},
		{Verb: "create", Resource: "events", Without: silent},
		{Verb: "patch", Resource: "events", Without: silent},
		{Verb: "get", Group: "secrets-store.csi.x-k8s.io", Resource: "secretproviderclasses", Without: unsynced},
		{Verb: "get", Group: "coordination.k8s.io", Resource: "leases", Namespace: corev1.NamespaceNodeLease, Name: node, Without: held},
		{Verb: "get", Resource: "secrets", Namespace: namespace, Name: keySecret, Without: keyless},
		{Verb: "list", Resource: "secrets", Namespace: namespace, Name: keySecret, Without: keyless},
		{Verb: "watch", Resource: "secrets", Namespace: namespace, Name: keySecret, Without: keyless},
		{Verb: "create", Resource: "secrets", Namespace: namespace, Without: keyless + " until somebody makes the Secret " + keySecret},
	}
}

// FollowMissing tells which rights are missing whenever it asked, until none is or ctx ends: what was granted meanwhile is missing no more.
func FollowMissing(ctx context.Context, client kubernetes.Interface, rights []Right, told func(missing []Right), log *slog.Logger) {
	for {
		rights = TellMissing(ctx, client, rights, log)
		told(rights)
		if len(rights) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(missingPause):
		}
	}
}

// TellMissing asks the API server, once it answers, for each right whether this process has it, and returns those that it does not have,
// with a sentence for each in the log. It returns when all were asked for, or ctx ends.
func TellMissing(ctx context.Context, client kubernetes.Interface, rights []Right, log *slog.Logger) (missing []Right) {
	for _, r := range rights {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: r.Verb, Group: r.Group, Resource: r.Resource, Namespace: r.Namespace, Name: r.Name},
		}}
		_ = wait.PollUntilContextCancel(ctx, rightsPause, true, func(ctx context.Context) (bool, error) {
			ctx, cancel := context.WithTimeout(ctx, requestTimeout)
			defer cancel()
			answer, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
			if err != nil {
				log.Debug("asking what the provider may do", "right", r.String(), "err", err)
				return false, nil
			}
			if !answer.Status.Allowed {
				missing = append(missing, r)
				log.Warn("a right is missing", "what", fmt.Sprintf("the provider may not %s: %s", r, r.Without))
			}
			return true, nil
		})
	}
	return missing
}

// String is the right in words.
func (r Right) String() string {
	text := r.Verb + " " + r.Resource
	if r.Name != "" {
		text = fmt.Sprintf("%s %q of %s", r.Verb, r.Name, r.Resource)
	}
	if r.Namespace != "" {
		text += " in namespace " + r.Namespace
	}
	return text
}
