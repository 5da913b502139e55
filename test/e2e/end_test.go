//go:build e2e

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// gracefulEnd deletes a pod whose preStop takes its time. Until its containers are over, its credentials work.
func (s *suite) gracefulEnd(t *testing.T) {
	const preStop = 15 * time.Second
	p := s.newPlace(t, "graceful")
	p.databaseClass()
	pod := newPod("graceful", "db")
	pod.Spec.TerminationGracePeriodSeconds = new(int64(60))
	pod.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{
		Sleep: &corev1.SleepAction{Seconds: int64(preStop.Seconds())},
	}}
	p.logInAlways(pod)
	pod = p.run(pod)
	held, credentials := p.mustHold(1), p.login(pod)
	var log func() string
	if s.hasKubelet() {
		log = p.appLog(pod)
	}
	deleted := time.Now()
	p.delete(pod, metav1.DeleteOptions{})
	s.eventually(t, "the credentials have ended", func(ctx context.Context) error {
		if s.bed.CanLogIn(ctx, credentials.user, credentials.password) == nil {
			return errors.New("they work")
		}
		return nil
	})
	if used := time.Since(deleted); used < preStop {
		t.Errorf("the credentials ended %s after the delete, during a preStop of %s", used, preStop)
	}
	// What this read says was so before: an object that runs now ran when the login failed.
	if now, err := p.pods().Get(t.Context(), pod.Name, metav1.GetOptions{}); err == nil && now.Status.Phase == corev1.PodRunning {
		t.Error("the credentials ended before the pod did")
	}
	if log != nil {
		mustNeverFail(t, log())
	}
	p.awaitNothing()
	p.mustNotBeHeld(held, credentials)
}

// jobCompletes lets a Job end by itself and keeps its objects.
func (s *suite) jobCompletes(t *testing.T) {
	p := s.newPlace(t, "job")
	p.databaseClass()
	const life = "5s"
	pod := newPod("", "db")
	pod.Annotations = map[string]string{"lightnode/run-for": life}
	p.logInAlways(pod, "--for", life)
	jobs := s.bed.Client().BatchV1().Jobs(p.ns)
	_, err := jobs.Create(t.Context(), &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "report"},
		Spec: batchv1.JobSpec{
			BackoffLimit: new(int32),
			Template:     corev1.PodTemplateSpec{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var held holding
	s.eventually(t, "the job holds a lease", func(ctx context.Context) error {
		h, err := p.holds(ctx)
		if err == nil && len(h.leases) != 1 {
			err = fmt.Errorf("there are %v", h)
		}
		held = h
		return err
	})
	s.eventually(t, "the job is complete", func(ctx context.Context) error {
		job, err := jobs.Get(ctx, "report", metav1.GetOptions{})
		switch {
		case err != nil:
			return err
		case job.Status.Failed > 0:
			t.Fatal("the job failed")
		case job.Status.Succeeded != 1:
			return errors.New("it is not")
		}
		return nil
	})
	p.awaitNothing()
	if found, err := s.lease(t.Context(), held.leases[0]); err != nil || found != nil {
		t.Errorf("the job's lease should be gone: %v", err)
	}
	kept, err := p.pods().List(t.Context(), metav1.ListOptions{LabelSelector: "job-name=report"})
	if err != nil || len(kept.Items) != 1 || kept.Items[0].Status.Phase != corev1.PodSucceeded {
		t.Errorf("the job's pod should still be there, and have succeeded: %v", err)
	}
	if err := jobs.Delete(t.Context(), "report", metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)}); err != nil {
		t.Error(err)
	}
}

// forcedDelete takes the API object away first; kubelet ends the containers later.
func (s *suite) forcedDelete(t *testing.T) {
	p := s.newPlace(t, "forced")
	p.databaseClass()
	pod := p.run(newPod("forced", "db"))
	held, credentials := p.mustHold(1), p.login(pod)
	p.delete(pod, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
	p.awaitObjectGone(pod)
	p.awaitNothing()
	p.mustNotBeHeld(held, credentials)
	if _, err := os.Stat(p.volumeFolder(pod, volume)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the lease went before kubelet's folder of the volume: %v", err)
	}
}

// howSoon deletes twenty pods at once and measures the time from the removal of each volume, which is the end of all use of
// it, to the end of its lease.
func (s *suite) howSoon(t *testing.T) {
	const count = 20
	const glance = 20 * time.Millisecond
	p := s.newPlace(t, "soon")
	pods := make([]*corev1.Pod, count)
	for i := range pods {
		name := fmt.Sprintf("%s-%02d", p.role, i)
		p.makeRole(name, nil)
		p.class(name, map[string]string{"roleName": "my-app-role", "objects": credentials(name)})
		pods[i] = p.create(newPod(name, name))
	}
	leases := make([]string, count)
	for i, pod := range pods {
		p.awaitRunning(pod)
		found, err := s.bed.VaultLeases(t.Context(), "database/creds/"+pod.Name)
		if err != nil || len(found) != 1 {
			t.Fatalf("pod %s should hold one lease, but there are %d: %v", pod.Name, len(found), err)
		}
		leases[i] = found[0]
	}
	p.deleteAll()
	took, faults := make([]time.Duration, count), make([]error, count)
	var all sync.WaitGroup
	for i, pod := range pods {
		all.Go(func() {
			faults[i] = s.poll(t.Context(), glance, func(context.Context) error {
				if _, err := os.Stat(filepath.Join(p.volumeFolder(pod, volume), "vol_data.json")); !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("the volume of %s is there: %w", pod.Name, err)
				}
				return nil
			})
			ended := time.Now()
			faults[i] = errors.Join(faults[i], s.poll(t.Context(), glance, func(ctx context.Context) error {
				if found, err := s.lease(ctx, leases[i]); err != nil || found != nil {
					return fmt.Errorf("the lease of %s is there: %w", pod.Name, err)
				}
				return nil
			}))
			took[i] = time.Since(ended)
		})
	}
	all.Wait()
	if err := errors.Join(faults...); err != nil {
		t.Fatal(err)
	}
	p.awaitNothing()
	slices.Sort(took)
	median := (took[count/2-1] + took[count/2]) / 2
	t.Logf("pod end to lease gone: min %s, median %s, max %s (%d pods, %s bed)", round(took[0]), round(median), round(took[count-1]),
		count, strings.ToLower(string(s.bed.State().Form)))
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// drained takes what a running pod uses first for what it is, and away from it only by force; then nothing is mounted until the provider
// is started again.
func (s *suite) drained(t *testing.T) {
	p := s.newPlace(t, "drained")
	p.databaseClass()
	p.delete(p.run(newPod("over", "db")), metav1.DeleteOptions{})
	pod := p.run(newPod("running", "db"))
	credentials := p.login(pod)
	s.eventually(t, "only the running pod's is refused", func(ctx context.Context) error { // kubelet may not be done with the other
		list, err := s.bed.Leasehold(ctx, "drain")
		if err == nil || !strings.Contains(err.Error(), "running pods use the above") {
			t.Fatalf("a drain gives what a running pod uses back: %s, %v", list, err)
		}
		if strings.Contains(string(list), "/over ") || !strings.Contains(string(list), "/running ") {
			return fmt.Errorf("it is refused:\n%s", list)
		}
		return nil
	})
	held := p.mustHold(1)
	list, err := s.bed.Leasehold(t.Context(), "drain", "--leave")
	if err != nil || !strings.Contains(string(list), "database/creds/"+p.role) {
		t.Errorf("%s, %v", list, err)
	}
	p.mustLogIn(credentials)
	list, err = s.bed.Leasehold(t.Context(), "drain", "--force")
	if err != nil || !strings.HasPrefix(string(list), "Nothing is held on node ") {
		t.Errorf("%s, %v", list, err)
	}
	p.mustNotBeHeld(held, credentials)
	p.create(newPod("late", "db"))
	p.awaitComplaint("late", "was drained")
	if err := s.restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.eventually(t, "the running pod has credentials that work", func(ctx context.Context) error {
		l := p.login(pod)
		return p.bed.CanLogIn(ctx, l.user, l.password)
	})
	p.deleteAll()
	p.awaitNothing()
}
