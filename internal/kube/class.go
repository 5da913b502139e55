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

// shareFor is how long after its beginning a read of a class is joined. It is less than a pod takes from the API server to kubelet and
// here, so that what a pod is told of its class is never from before a change that came before the pod, however slow the read is.
const shareFor = 50 * time.Millisecond

// SyncedObjects lists the objects of a SecretProviderClass that the driver copies into Secrets (spec.secretObjects). Who asks when a
// read of the same class has just begun shares its answer.
func (c *Cluster) SyncedObjects(ctx context.Context, namespace, class string) ([]string, error) {
	key := namespace + "/" + class
	names, err, _ := c.reads.Do(key, func() (any, error) {
		defer time.AfterFunc(shareFor, func() { c.reads.Forget(key) }).Stop()
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
