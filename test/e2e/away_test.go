//go:build e2e

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// without runs f while a part of the bed is away.
func (s *suite) without(t *testing.T, part string, f func()) {
	t.Helper()
	if err := s.bed.Stop(t.Context(), part); err != nil {
		t.Fatal(err)
	}
	defer func() { // also when f ended the test: the scenarios after this one need the part
		if err := s.bed.Start(context.WithoutCancel(t.Context()), part); err != nil {
			t.Error(err)
		}
	}()
	f()
}

// kubeletPart is the part of the bed that is kubelet, or stands in for it and for the driver.
func (s *suite) kubeletPart() string {
	if s.hasKubelet() {
		return "kubelet"
	}
	return "driver"
}

// ends runs a pod, has f end it while a part is away, and wants nothing left once the part is back. What f must not see end is what it
// gets.
func (s *suite) ends(t *testing.T, name, part string, f func(p *place, pod *corev1.Pod, credentials login)) {
	t.Helper()
	p := s.newPlace(t, name)
	p.databaseClass()
	pod := newPod(name, "db")
	pod.Spec.TerminationGracePeriodSeconds = new(int64(2))
	pod = p.run(pod)
	held, credentials := p.mustHold(1), p.login(pod)
	s.without(t, part, func() { f(p, pod, credentials) })
	p.awaitNothing()
	p.mustNotBeHeld(held, credentials)
}

func (s *suite) endsWithoutProvider(t *testing.T) {
	s.ends(t, "no-provider", "provider", func(p *place, pod *corev1.Pod, credentials login) {
		p.delete(pod, metav1.DeleteOptions{})
		p.awaitObjectGone(pod)
		p.mustLogIn(credentials)
	})
}

func (s *suite) endsWithoutVault(t *testing.T) {
	s.ends(t, "no-vault", "vault", func(p *place, pod *corev1.Pod, _ login) {
		p.delete(pod, metav1.DeleteOptions{})
		p.awaitObjectGone(pod)
		p.awaitEvent(pod.Name, "RevocationFailing", "could not be given back yet")
	})
}

// endsWithoutDatabase wants the token kept for as long as the database is away: Vault would give the lease up after six tries.
func (s *suite) endsWithoutDatabase(t *testing.T) {
	s.ends(t, "no-database", "postgres", func(p *place, pod *corev1.Pod, _ login) {
		p.delete(pod, metav1.DeleteOptions{})
		p.awaitObjectGone(pod)
		p.awaitEvent(pod.Name, "RevocationFailing", "the back end of", "is down, so the revocation waits for it")
		p.awaitCause(pod.Name, "BackEndDown", false, `the engine "database" works with`)
		if tokens, err := p.tokens(t.Context()); err != nil || len(tokens) != 1 {
			t.Errorf("the token should live on: %v, %v", tokens, err)
		}
	})
	count, err := s.vault.Logical().ReadWithDataWithContext(t.Context(), "sys/leases/count", map[string][]string{"type": {"irrevocable"}})
	if err != nil || count == nil || fmt.Sprint(count.Data["lease_count"]) != "0" {
		t.Errorf("Vault should have given up no lease: %+v, %v", count, err)
	}
}

// endsWithoutAPIServer has kubelet end a pod's containers and unmount its volume with nobody there to hear of it.
func (s *suite) endsWithoutAPIServer(t *testing.T) {
	p := s.newPlace(t, "no-api")
	p.databaseClass()
	pod := newPod("no-api", "db")
	pod.Spec.TerminationGracePeriodSeconds = new(int64(60))
	pod.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 10}}}
	pod = p.run(pod)
	held, credentials := p.mustHold(1), p.login(pod)
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitEvent(pod.Name, "Killing") // else kubelet may not have heard of the deletion
	s.without(t, "apiserver", func() {
		s.eventually(t, "kubelet has unmounted the volume", func(context.Context) error {
			if _, err := os.Stat(p.volumeFolder(pod, volume)); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("its folder is there: %w", err)
			}
			return nil
		})
		// The API server may have told of the end before it was stopped: then kubelet's folder was all that was missing.
		p.mustHoldOn(credentials)
	})
	p.awaitNothing()
	p.mustNotBeHeld(held, credentials)
}

// mustHoldOn has the provider look a few times at a pod of which it cannot know whether it ended.
func (p *place) mustHoldOn(credentials login) {
	p.t.Helper()
	for begin := time.Now(); time.Since(begin) < 25*time.Second; wait(p.t.Context(), time.Second) {
		p.mustLogIn(credentials)
	}
}

// endsWithoutDriver leaves kubelet unable to unmount what no container uses any more.
func (s *suite) endsWithoutDriver(t *testing.T) {
	s.ends(t, "no-driver", "driver", func(p *place, pod *corev1.Pod, credentials login) {
		p.delete(pod, metav1.DeleteOptions{})
		s.eventually(t, "kubelet says that the containers are dead", func(ctx context.Context) error {
			now, err := p.pods().Get(ctx, pod.Name, metav1.GetOptions{})
			if err == nil && now.Status.Phase != corev1.PodFailed && now.Status.Phase != corev1.PodSucceeded {
				err = errors.New("the pod is " + string(now.Status.Phase))
			}
			return err
		})
		p.mustHoldOn(credentials)
	})
}

// endsWithoutKubelet takes pods from the API whose containers run on, in both ways in which that happens: by force, and by the garbage
// collector, which first writes that they failed. Its event says that the provider looked and holds them.
func (s *suite) endsWithoutKubelet(t *testing.T) {
	p := s.newPlace(t, "no-kubelet")
	p.databaseClass()
	var pods []*corev1.Pod
	for _, name := range []string{"forced", "collected"} {
		pod := newPod(name, "db")
		pod.Spec.TerminationGracePeriodSeconds = new(int64(1))
		pods = append(pods, p.run(pod))
	}
	forced, collected := pods[0], pods[1]
	held := p.mustHold(2)
	credentials := []login{p.login(forced), p.login(collected)}
	s.without(t, s.kubeletPart(), func() {
		p.delete(forced, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
		now, err := p.pods().Get(t.Context(), collected.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		now.Status.Phase = corev1.PodFailed
		now.Status.Conditions = append(now.Status.Conditions, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC",
		})
		if _, err := p.pods().UpdateStatus(t.Context(), now, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		for i, pod := range pods {
			p.awaitEvent(pod.Name, "EndUnclear", "its containers may still run")
			p.mustLogIn(credentials[i])
		}
		p.delete(collected, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
		p.awaitObjectGone(collected)
		for i := range pods {
			p.mustLogIn(credentials[i])
		}
	})
	p.awaitNothing()
	p.mustNotBeHeld(held, credentials[0])
	p.mustNotBeHeld(held, credentials[1])
}

// storeIsLost takes the provider's memory away, as a node's loss of power does, while the pods keep their UIDs. The next republish brings
// new credentials; what nobody knows of any more ends with its token's own TTL.
func (s *suite) storeIsLost(t *testing.T) {
	p := s.newPlace(t, "store-lost")
	p.logins60s()
	p.class("db", map[string]string{"roleName": p.role, "objects": credentials(p.role)})
	pod := p.run(newPod("store-lost", "db"))
	before, lost := p.mustHold(1), p.login(pod)
	dir := s.bed.State().Provider.StateDir
	if s.hasKubelet() {
		dir = filepath.Join(nodeRoot(s.bed.State()), dir)
	}
	s.without(t, "provider", func() {
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("the store's files: %v, %v", files, err)
		}
		for _, file := range files {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	})
	s.eventually(t, "a republish shows new credentials", func(ctx context.Context) error {
		now := p.login(pod)
		if now == lost {
			return errors.New("they are those before")
		}
		return s.bed.CanLogIn(ctx, now.user, now.password)
	})
	s.eventually(t, "what was lost has run out", func(ctx context.Context) error {
		h, err := p.holds(ctx)
		if err == nil && (len(h.leases) != 1 || len(h.tokens) != 1 || len(h.users) != 1 || h.leases[0] == before.leases[0]) {
			err = fmt.Errorf("there are %v", h)
		}
		return err
	})
	p.mustLogIn(p.login(pod))
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitNothing()
}
