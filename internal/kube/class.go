package kube

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// classTimeout bounds the one read of a SecretProviderClass: a pod waits for it.
const classTimeout = 5 * time.Second

// SyncedObjects lists the objects of a SecretProviderClass that the driver copies into Secrets (spec.secretObjects). Who asks while
// the same class is being read shares the answer: that of a pod that came after a change of its class cannot be from before it, since
// a read takes less than the way from the API server to kubelet and here.
func (c *Cluster) SyncedObjects(ctx context.Context, namespace, class string) ([]string, error) {
	names, err, _ := c.reads.Do(namespace+"/"+class, func() (any, error) {
		return c.syncedObjects(context.WithoutCancel(ctx), namespace, class)
	})
	objects, _ := names.([]string)
	return objects, err
}

func (c *Cluster) syncedObjects(ctx context.Context, namespace, class string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, classTimeout)
	defer cancel()
	found, err := c.classes.SecretsstoreV1().SecretProviderClasses(namespace).Get(ctx, class, metav1.GetOptions{})
	if apierrors.IsForbidden(err) {
		return nil, fmt.Errorf("the provider's service account may not get secretproviderclasses.secrets-store.csi.x-k8s.io; its ClusterRole must allow it: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading SecretProviderClass %s/%s: %w", namespace, class, err)
	}
	var names []string
	for _, secret := range found.Spec.SecretObjects {
		for _, data := range secret.Data {
			names = append(names, data.ObjectName)
		}
	}
	return names, nil
}
