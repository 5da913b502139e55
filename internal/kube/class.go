package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// classTimeout bounds the one read of a SecretProviderClass: a pod waits for it.
const classTimeout = 5 * time.Second

// shareFor is how long after its beginning a read of a class serves others. It is less than a pod takes from the API server to kubelet
// and here, so that what a pod is told of its class is never from before a change that came before the pod, however slow the read is.
const shareFor = 100 * time.Millisecond

// classRead is one read of a class, for all who ask while it serves them.
type classRead struct {
	done  chan struct{}
	names []string
	err   error
}

var errClassRead = errors.New("reading the SecretProviderClass failed")

// SyncedObjects lists the objects of a SecretProviderClass that the driver copies into Secrets (spec.secretObjects). Who asks when a
// read of the same class has just begun shares its answer.
func (c *Cluster) SyncedObjects(ctx context.Context, namespace, class string) ([]string, error) {
	r, first := c.classRead(namespace + "/" + class)
	if first {
		defer close(r.done) // also when it panics
		r.names, r.err = c.syncedObjects(context.WithoutCancel(ctx), namespace, class)
		return r.names, r.err
	}
	<-r.done
	return r.names, r.err
}

// classRead returns the read to share, and whether it is the caller who must make it.
func (c *Cluster) classRead(key string) (r *classRead, first bool) {
	c.reads.Lock()
	defer c.reads.Unlock()
	if r := c.reads.begun[key]; r != nil {
		return r, false
	}
	if c.reads.begun == nil {
		c.reads.begun = make(map[string]*classRead)
	}
	r = &classRead{done: make(chan struct{}), err: errClassRead}
	c.reads.begun[key] = r
	time.AfterFunc(shareFor, func() {
		c.reads.Lock()
		defer c.reads.Unlock()
		delete(c.reads.begun, key)
	})
	return r, true
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
