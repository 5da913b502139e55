package kube

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// Started is when the first container of a pod, init containers included, was started; zero when none was, as far as its status
// tells.
func Started(pod *corev1.Pod) (first time.Time) {
	see := func(at metav1.Time) {
		if first.IsZero() || at.Time.Before(first) {
			first = at.Time
		}
	}
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, s := range statuses {
			if s.State.Running != nil {
				see(s.State.Running.StartedAt)
			}
			for _, ended := range []*corev1.ContainerStateTerminated{s.State.Terminated, s.LastTerminationState.Terminated} {
				if ended != nil {
					see(ended.StartedAt)
				}
			}
		}
	}
	return first
}

// EndedBecause says why a pod failed, as far as its status tells: because of the node, such as Evicted with the resource that was low, or for want
// of memory. Empty when it does not tell.
func EndedBecause(pod *corev1.Pod) string {
	reason, message := endOf(pod)
	return strings.TrimSuffix(reason+": "+message, ": ")
}

func endOf(pod *corev1.Pod) (reason, message string) {
	if pod.Status.Reason != "" {
		return pod.Status.Reason, cut(pod.Status.Message)
	}
	for _, s := range pod.Status.ContainerStatuses {
		if ended := s.State.Terminated; ended != nil && ended.Reason == "OOMKilled" {
			return ended.Reason, fmt.Sprintf("container %q wanted more memory than its limit or the node had", s.Name)
		}
	}
	return "", ""
}

// SubPath names a container of the pod that mounts the volume by subPath, and so never sees its files change; empty when there
// is none, or the cache does not know the pod.
func (c *Cluster) SubPath(uid, volume string) (container string) {
	pod, ok := c.Pod(uid)
	if !ok {
		return ""
	}
	for _, c := range pod.Spec.Containers {
		for _, mount := range c.VolumeMounts {
			if mount.Name == volume {
				return c.Name
			}
		}
	}
	return ""
}

// driverName is the Secrets Store CSI driver's.
const driverName = "secrets-store.csi.k8s.io"

// Overrides names the parameters that the pod gives the volume itself, and which win over its SecretProviderClass; nil when there
// are none, or the cache does not know the pod.
func (c *Cluster) Overrides(uid, volume string) []string {
	pod, ok := c.Pod(uid)
	if !ok {
		return nil
	}
	for _, v := range pod.Spec.Volumes {
		if v.Name == volume {
			return spec.Overrides(v.CSI.VolumeAttributes)
		}
	}
	return nil
}

// overrides reduces a pod's volumes to the names of what Overrides tells.
func overrides(pod *corev1.PodSpec) (kept []corev1.Volume) {
	for _, v := range pod.Volumes {
		if v.CSI == nil || v.CSI.Driver != driverName {
			continue
		}
		names := make(map[string]string)
		for _, name := range spec.Overrides(v.CSI.VolumeAttributes) {
			names[name] = ""
		}
		if len(names) > 0 {
			kept = append(kept, corev1.Volume{Name: v.Name, VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{VolumeAttributes: names}}})
		}
	}
	return kept
}

// started reduces the containers' statuses to what Started tells of them.
func started(pod *corev1.Pod) []corev1.ContainerStatus {
	first := Started(pod)
	if first.IsZero() {
		return nil
	}
	running := &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(first)}
	return []corev1.ContainerStatus{{State: corev1.ContainerState{Running: running}}}
}

// subPaths reduces a pod's containers, native sidecars among them, to their mounts by subPath.
func subPaths(pod *corev1.PodSpec) (kept []corev1.Container) {
	// An init container that is no sidecar has ended before anything changes.
	sidecars := slices.DeleteFunc(slices.Clone(pod.InitContainers), func(c corev1.Container) bool { return c.RestartPolicy == nil })
	for _, c := range slices.Concat(sidecars, pod.Containers) {
		var mounts []corev1.VolumeMount
		for _, m := range c.VolumeMounts {
			if m.SubPath != "" || m.SubPathExpr != "" {
				mounts = append(mounts, corev1.VolumeMount{Name: m.Name})
			}
		}
		if len(mounts) > 0 {
			kept = append(kept, corev1.Container{Name: c.Name, VolumeMounts: mounts})
		}
	}
	return kept
}

// announcedFor is how long the announcement of an end is remembered after it was last seen: longer than kubelet needs to unmount.
const announcedFor = time.Hour

// announcements are the pods whose end the API server told of. The zero value is ready to use.
type announcements struct {
	mu   sync.Mutex
	pods map[string]time.Time
}

// Announced tells whether the watch told of the pod's end: that its deletion was asked for, that it reached a terminal phase, or
// that it was deleted. That a pod is merely missing in a list announces nothing.
func (c *Cluster) Announced(uid string) bool {
	if pod, ok := c.Pod(uid); ok && ending(pod) {
		return true
	}
	a := &c.announced
	a.mu.Lock()
	defer a.mu.Unlock()
	seen, ok := a.pods[uid]
	return ok && time.Since(seen) < announcedFor
}

func (a *announcements) look(pod *corev1.Pod) {
	if ending(pod) {
		a.add(string(pod.UID))
	}
}

func (a *announcements) add(uid string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pods == nil {
		a.pods = make(map[string]time.Time)
	}
	for other, seen := range a.pods {
		if time.Since(seen) >= announcedFor {
			delete(a.pods, other)
		}
	}
	a.pods[uid] = time.Now()
}

func ending(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}
