package kubelet

import (
	"context"
	"fmt"
	"runtime"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// kubelet's periods for its node Lease.
const (
	leaseInterval = 10 * time.Second
	leaseDuration = 40 * time.Second
)

// heartbeat registers the node, then renews its Lease until ctx ends.
func (k *kubelet) heartbeat(ctx context.Context) {
	var node *corev1.Node
	registered := retry(ctx, nil, func() (err error) {
		if node, err = k.register(ctx); err != nil && ctx.Err() == nil {
			k.Log.Error("node not registered", "error", err)
		}
		return err
	})
	if !registered {
		return
	}
	for {
		if err := k.renewLease(ctx, node); err != nil && ctx.Err() == nil {
			k.Log.Error("node Lease not renewed", "error", err)
		}
		if sleep(ctx, leaseInterval) != nil {
			return
		}
	}
}

// register creates the Node object and makes it Ready.
func (k *kubelet) register(ctx context.Context) (*corev1.Node, error) {
	nodes := k.Client.CoreV1().Nodes()
	node, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: k.NodeName,
		Labels: map[string]string{
			corev1.LabelHostname:   k.NodeName,
			corev1.LabelOSStable:   runtime.GOOS,
			corev1.LabelArchStable: runtime.GOARCH,
		},
	}}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		node, err = nodes.Get(ctx, k.NodeName, metav1.GetOptions{})
	}
	if err != nil {
		return nil, fmt.Errorf("creating Node: %w", err)
	}
	now := metav1.Now()
	node.Status.Capacity = corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("64"),
		corev1.ResourceMemory: resource.MustParse("256Gi"),
		corev1.ResourcePods:   resource.MustParse("10k"),
	}
	node.Status.Allocatable = node.Status.Capacity
	node.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "the light node has no kubelet",
		LastHeartbeatTime: now, LastTransitionTime: now,
	}}
	if node, err = nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{}); err != nil {
		return nil, fmt.Errorf("writing status of Node: %w", err)
	}
	return node, nil
}

// renewLease creates the node's Lease or sets its renew time to now.
func (k *kubelet) renewLease(ctx context.Context, node *corev1.Node) error {
	ctx, cancel := context.WithTimeout(ctx, leaseInterval)
	defer cancel()
	leases := k.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	now := metav1.NowMicro()
	lease, err := leases.Get(ctx, k.NodeName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		seconds := int32(leaseDuration.Seconds())
		_, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{
				Name:            k.NodeName,
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}},
			},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: &k.NodeName, LeaseDurationSeconds: &seconds, RenewTime: &now},
		}, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	lease.Spec.RenewTime = &now
	_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	return err
}
