package kube

import (
	"context"
	"errors"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// tokenSeconds is the life of a requested token, as in the existing provider. It is used at once, for one login.
const tokenSeconds = 900

// RequestToken has the API server make a token for the pod's service account, bound to the pod; an empty audience means the API
// server's own. The pod is found by its UID, which must be kubelet's word. Whatever else pod says is taken for what a tenant may
// have written: it finds a pod that the cache does not have yet, and what differs from the pod that was found is refused.
func (c *Cluster) RequestToken(ctx context.Context, pod spec.Pod, audience string) (secret.Value, error) {
	found, err := c.identify(ctx, pod)
	if err != nil {
		return secret.Value{}, err
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: new(int64(tokenSeconds)),
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: found.Name, UID: found.UID},
	}}
	if audience != "" {
		request.Spec.Audiences = []string{audience}
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	made, err := c.client.CoreV1().ServiceAccounts(found.Namespace).CreateToken(ctx, found.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	switch {
	case apierrors.IsForbidden(err):
		return secret.Value{}, fmt.Errorf("the provider's service account may not create serviceaccounts/token, which manifests/components/token-request allows: %w", err)
	case err != nil:
		return secret.Value{}, fmt.Errorf("requesting a token of service account %s/%s: %w", found.Namespace, found.Spec.ServiceAccountName, err)
	case made.Status.Token == "":
		return secret.Value{}, errors.New("the API server answered a request for a token without one")
	}
	return secret.New(made.Status.Token), nil
}

// Identify returns what speaks against pod being the one of its UID, which must be kubelet's word; nil when nothing does.
func (c *Cluster) Identify(ctx context.Context, pod spec.Pod) error {
	_, err := c.identify(ctx, pod)
	return err
}

// identify returns the pod of that UID, if it is the one that pod describes.
func (c *Cluster) identify(ctx context.Context, pod spec.Pod) (*corev1.Pod, error) {
	found, ok := c.Pod(pod.UID)
	if !ok {
		var err error
		if found, err = c.LivePod(ctx, pod.Namespace, pod.Name); err != nil {
			return nil, err
		}
		if found == nil || string(found.UID) != pod.UID {
			return nil, fmt.Errorf("the API server knows no pod %s/%s of UID %s", pod.Namespace, pod.Name, pod.UID)
		}
	}
	if found.Namespace != pod.Namespace || found.Name != pod.Name || found.Spec.ServiceAccountName != pod.ServiceAccount {
		return nil, fmt.Errorf("the Mount names pod %s/%s with service account %s, but the pod of UID %s is %s/%s with service account %s",
			pod.Namespace, pod.Name, pod.ServiceAccount, pod.UID, found.Namespace, found.Name, found.Spec.ServiceAccountName)
	}
	return found, nil
}
