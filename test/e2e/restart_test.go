//go:build e2e

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// awaitMounts waits until the provider's process has answered that many Mounts well.
func (s *suite) awaitMounts(t *testing.T, count int) {
	t.Helper()
	s.eventually(t, fmt.Sprintf("the provider has answered %d mounts", count), func(ctx context.Context) error {
		answered, err := s.mounts(ctx)
		if err == nil && answered["OK"] < count {
			err = fmt.Errorf("it has answered %v", answered)
		}
		return err
	})
}

// republishMintsNothing runs without other pods: every Mount that is counted is a republish of this one.
func (s *suite) republishMintsNothing(t *testing.T) {
	p := s.newPlace(t, "republish")
	p.databaseClass()
	pod := p.run(newPod("mounted", "db"))
	held, credentials := p.mustHold(1), p.login(pod)
	before, err := s.mounts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mark := s.auditMark(t)
	s.awaitMounts(t, before["OK"]+3)
	if requests := s.audit(t, mark, p.ns); len(requests) > 0 {
		t.Errorf("three republishes asked Vault %v", requests)
	}
	p.mustStillHold(held)
	p.mustHold(1)
	if p.login(pod) != credentials {
		t.Error("a republish changed the mounted credentials")
	}
	p.mustNotComplain()
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitNothing()
	p.mustNotBeHeld(held, credentials)
}

// providerComesBack ends the provider while an app runs. Its successor knows the grant and goes on.
func (s *suite) providerComesBack(t *testing.T) {
	p := s.newPlace(t, "comes-back")
	p.databaseClass()
	pod := p.run(newPod("survivor", "db"))
	held, credentials := p.mustHold(1), p.login(pod)
	mark, was := s.auditMark(t), s.incarnation(t)

	s.replace(t)
	if s.incarnation(t) == was {
		t.Fatal("the provider was not replaced")
	}
	p.mustLogIn(credentials)
	if e, text, err := p.explain(t.Context(), pod.Name); err != nil || !e.Killed && !s.hasKubelet() || !strings.Contains(text, "took over what its store holds: a grant") {
		t.Errorf("leasehold explain says\n%s%v", text, err)
	}
	s.awaitMounts(t, 2) // the new process counts from zero, and there is no other pod
	for request, count := range s.audit(t, mark, p.ns) {
		if request == "update auth/kubernetes/login" || request == "read database/creds/"+p.role {
			t.Errorf("the new provider asked Vault %d times: %s", count, request)
		}
	}
	p.mustStillHold(held)
	p.mustHold(1)
	if p.login(pod) != credentials {
		t.Error("the new provider changed the mounted credentials")
	}
	p.mustNotComplain()
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitNothing()
	p.mustNotBeHeld(held, credentials)
}

// restartUnderMounts restarts the provider while pods start one after the other. All of them mount, and none at the second try.
func (s *suite) restartUnderMounts(t *testing.T) {
	const atLeast = 12
	p := s.newPlace(t, "rollout")
	p.databaseClass()
	restarted := make(chan error, 1)
	var pods []*corev1.Pod
	more := func() {
		pods = append(pods, p.create(newPod(fmt.Sprintf("stream-%02d", len(pods)), "db")))
	}
	ticker := time.NewTicker(400 * time.Millisecond)
	defer ticker.Stop()
	for started, over := false, false; !over || len(pods) < atLeast; {
		more()
		if len(pods) == atLeast/3 && !started {
			started = true
			go func() { restarted <- s.restart(t.Context()) }()
		}
		select {
		case err := <-restarted:
			if over = true; err != nil {
				t.Fatal(err)
			}
		case <-ticker.C:
		}
	}
	var longest time.Duration
	for _, pod := range pods {
		p.awaitRunning(pod)
		longest = max(longest, p.startTook(pod))
	}
	p.mustNotComplain()
	if answered, err := s.mounts(t.Context()); err != nil || len(answered) != 1 || answered["OK"] == 0 {
		t.Errorf("the new provider has answered %v: %v", answered, err)
	}
	p.mustHold(len(pods))
	p.deleteAll()
	p.awaitNothing()
	t.Logf("%d pods were started around the restart; the longest start took %s (%s bed)", len(pods), longest, s.bed.State().Form)
}

// startTook is how long after its creation the container of a pod that runs was started, to a second.
func (p *place) startTook(pod *corev1.Pod) time.Duration {
	p.t.Helper()
	now, err := p.pods().Get(p.t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	var started time.Time
	for _, container := range now.Status.ContainerStatuses {
		if container.State.Running != nil {
			started = container.State.Running.StartedAt.Time
		}
	}
	return started.Sub(now.CreationTimestamp.Time)
}

// otherVolumes makes sure that the provider, which sees kubelet's pods folder, does not hold the mounts below it.
func (s *suite) otherVolumes(t *testing.T) {
	p := s.newPlace(t, "volumes")
	pod := newPod("others", "unused")
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc"}}},
		{Name: "memory", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
	}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{
		{Name: "host", MountPath: "/host", ReadOnly: true}, {Name: "memory", MountPath: "/memory"},
	}
	pod = p.run(pod)
	// Beside the two, the pod has its service account's token, on another tmpfs.
	folder := filepath.Join(s.bed.State().KubeletDir, "pods", string(pod.UID))
	if _, err := os.Stat(filepath.Join(folder, "volumes", "kubernetes.io~empty-dir", "memory")); err != nil {
		t.Fatal(err)
	}
	if err := s.restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitObjectGone(pod)
	s.eventually(t, "kubelet has removed the pod's folder", func(context.Context) error {
		if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
}

// sealedVault starts a pod while Vault is sealed.
func (s *suite) sealedVault(t *testing.T) {
	p := s.newPlace(t, "sealed")
	p.databaseClass()
	was := s.incarnation(t)
	if err := s.bed.SealVault(t.Context()); err != nil {
		t.Fatal(err)
	}
	unsealed := false
	t.Cleanup(func() { // the scenarios after this one need Vault
		if !unsealed {
			if err := s.bed.UnsealVault(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		}
	})
	pod := p.create(newPod("patient", "db"))
	p.awaitComplaint(pod.Name, "Vault is sealed", "unseal Vault; it is tried again")
	p.awaitCause(pod.Name, "VaultSealed", false, "vault operator unseal -address="+s.bed.State().Vault.Address)
	if err := s.bed.UnsealVault(t.Context()); err != nil {
		t.Fatal(err)
	}
	unsealed = true
	p.awaitRunning(pod)
	p.awaitCause(pod.Name, "VaultSealed", true, "What failed before", "nothing fails now")
	credentials := p.login(pod)
	p.mustLogIn(credentials)
	held := p.mustHold(1)
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitNothing()
	p.mustNotBeHeld(held, credentials)
	if s.incarnation(t) != was {
		t.Error("the provider did not live through it")
	}
}
