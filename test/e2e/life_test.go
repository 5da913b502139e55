//go:build e2e

package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
)

// authRole makes a role to log in by, like my-app-role, with changes.
func (p *place) authRole(name string, changes map[string]any) {
	p.t.Helper()
	like, err := p.vault.Logical().ReadWithContext(p.t.Context(), "auth/kubernetes/role/my-app-role")
	if err != nil {
		p.t.Fatal(err)
	}
	maps.Copy(like.Data, changes)
	if _, err := p.vault.Logical().WriteWithContext(p.t.Context(), "auth/kubernetes/role/"+name, like.Data); err != nil {
		p.t.Fatal(err)
	}
}

// logins60s makes a role to log in by, of the place's name, whose tokens end soon when nobody renews them.
func (p *place) logins60s() { p.authRole(p.role, map[string]any{"token_ttl": "60s"}) }

// awaitEvent waits for an event on a pod, which may be gone, that says all of that.
func (p *place) awaitEvent(pod, reason string, says ...string) {
	p.t.Helper()
	selector := fields.Set{"reason": reason, "involvedObject.name": pod}.AsSelector().String()
	p.eventually(p.t, fmt.Sprintf("an event %s of pod %s says %q", reason, pod, says), func(ctx context.Context) error {
		events, err := p.bed.Client().CoreV1().Events(p.ns).List(ctx, metav1.ListOptions{FieldSelector: selector})
		if err != nil {
			return err
		}
		var messages []string
	next:
		for _, e := range events.Items {
			messages = append(messages, e.Message)
			for _, part := range says {
				if !strings.Contains(e.Message, part) {
					continue next
				}
			}
			return nil
		}
		return fmt.Errorf("the events say %q", messages)
	})
}

// nameIsUsedAgain deletes a StatefulSet's pod: the one after it has its name, and nothing else of it.
func (s *suite) nameIsUsedAgain(t *testing.T) {
	p := s.newPlace(t, "stateful")
	p.databaseClass()
	pod := newPod("", "db")
	pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	pod.Spec.TerminationGracePeriodSeconds = new(int64(2))
	labels := map[string]string{"app": "stateful"}
	sets := s.bed.Client().AppsV1().StatefulSets(p.ns)
	_, err := sets.Create(t.Context(), &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: new(int32(1)), ServiceName: "db", Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod.Spec},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var was *corev1.Pod
	awaitPod := func(what string) (running *corev1.Pod) {
		s.eventually(t, what, func(ctx context.Context) error {
			now, err := p.pods().Get(ctx, "db-0", metav1.GetOptions{})
			switch {
			case err != nil:
				return err
			case now.Status.Phase != corev1.PodRunning, was != nil && now.UID == was.UID:
				return fmt.Errorf("pod %s is %s", now.UID, now.Status.Phase)
			}
			running = now
			return nil
		})
		return running
	}
	was = awaitPod("the first pod runs")
	held, credentials := p.mustHold(1), p.login(was)
	p.delete(was, metav1.DeleteOptions{})
	is := awaitPod("another pod of its name runs")
	s.eventually(t, "only what the other pod uses is left", func(ctx context.Context) error {
		h, err := p.holds(ctx)
		if err == nil && (len(h.leases) != 1 || len(h.tokens) != 1 || len(h.users) != 1 || len(h.grants) != 1 || h.grants[0].UID != string(is.UID)) {
			err = fmt.Errorf("there are %v", h)
		}
		return err
	})
	p.mustNotBeHeld(held, credentials)
	p.mustLogIn(p.login(is))
	if err := sets.Delete(t.Context(), "db", metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationForeground)}); err != nil {
		t.Fatal(err)
	}
	p.awaitNothing()
}

// classChanges edits and then deletes the class of a pod that runs. What it showed before works until its end.
func (s *suite) classChanges(t *testing.T) {
	p := s.newPlace(t, "class-changes")
	p.databaseClass()
	pod := newPod("class-changes", "db")
	p.logInAlways(pod)
	pod = p.run(pod)
	first, before := p.mustHold(1), p.login(pod)
	classes := p.classes.Namespace(p.ns)
	class, err := classes.Get(t.Context(), "db", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	objects := credentials(p.role) + object("more", "kv1/my-app", "username")
	if err := unstructured.SetNestedField(class.Object, objects, "spec", "parameters", "objects"); err != nil {
		t.Fatal(err)
	}
	if _, err := classes.Update(t.Context(), class, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.eventually(t, "a republish follows the class", func(context.Context) error {
		_, err := os.Stat(filepath.Join(p.volumeFolder(pod, volume), "mount", "more"))
		return err
	})
	after := p.login(pod)
	if after == before {
		t.Error("a changed class should bring a grant of its own")
	}
	p.mustLogIn(before)
	p.mustLogIn(after)
	held := p.mustHold(2)
	states := map[string]int{}
	for _, g := range held.grants {
		states[g.State]++
	}
	if states["Active"] != 1 || states["Superseded"] != 1 {
		t.Errorf("the grants are %v", states)
	}
	if err := classes.Delete(t.Context(), "db", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.awaitComplaint(pod.Name, "not found")
	p.mustLogIn(after)
	var log func() string
	if s.hasKubelet() {
		log = p.appLog(pod)
	}
	p.delete(pod, metav1.DeleteOptions{})
	if log != nil {
		mustNeverFail(t, log())
	}
	p.awaitNothing()
	p.mustNotBeHeld(first, before)
	p.mustNotBeHeld(held, after)
}

// keptAtTheEnd ends pods whose leases are not to be revoked: one shares them through a Secret, the other's class says so. They run out.
func (s *suite) keptAtTheEnd(t *testing.T) {
	p := s.newPlace(t, "kept")
	p.logins60s()
	parameters := map[string]string{"roleName": p.role, "objects": credentials(p.role)}
	p.apply(newClass("synced", parameters, "db_pass"))
	parameters["onPodEnd"] = "expire"
	p.class("expires", parameters)
	mark := s.auditMark(t)
	synced, expires := p.run(newPod("synced", "synced")), p.run(newPod("expires", "expires"))
	held := p.mustHold(2)
	credentials := []login{p.login(synced), p.login(expires)}
	p.awaitEvent(synced.Name, "SyncedLease", `the leased object "db_pass" is synced into a Secret`)
	p.deleteAll()
	p.awaitObjectGone(synced)
	p.awaitObjectGone(expires)
	p.awaitNothing()
	p.mustNotBeHeld(held, credentials[0])
	p.mustNotBeHeld(held, credentials[1])
	if requests := s.audit(t, mark, p.ns); requests["update auth/token/revoke-self"] != 0 {
		t.Errorf("something was revoked: %v", requests)
	}
}

// tokensThatCannotCarry has pods log in by roles whose tokens cannot keep or give back a lease.
func (s *suite) tokensThatCannotCarry(t *testing.T) {
	p := s.newPlace(t, "tokens")
	table := []badClass{
		{"batch", nil, "token_type=batch"},
		{"few-uses", nil, "token_num_uses"},
		{"no-default", nil, "token_no_default_policy"},
	}
	for i, changes := range []map[string]any{
		{"token_type": "batch"}, {"token_num_uses": 9}, {"token_no_default_policy": true},
	} {
		changes["token_ttl"] = "60s"
		role := p.role + "-" + table[i].name
		p.authRole(role, changes)
		table[i].change = func(parameters map[string]string) { parameters["roleName"] = role }
	}
	p.mustAllComplain(table, map[string]string{"objects": credentials(p.role)})
}

// evicted has kubelet evict a pod that writes more than it may, and keeps its object.
func (s *suite) evicted(t *testing.T) {
	p := s.newPlace(t, "evicted")
	p.databaseClass()
	pod := newPod("greedy", "db")
	pod.Spec.TerminationGracePeriodSeconds = new(int64(2))
	limit := resource.MustParse("1Mi")
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
		Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}},
	})
	app := &pod.Spec.Containers[0]
	app.VolumeMounts = append(app.VolumeMounts, corev1.VolumeMount{Name: "scratch", MountPath: "/scratch"})
	pod = p.run(pod)
	held, credentials := p.mustHold(1), p.login(pod)
	scratch := filepath.Join(s.bed.State().KubeletDir, "pods", string(pod.UID), "volumes", "kubernetes.io~empty-dir", "scratch")
	if err := os.WriteFile(filepath.Join(scratch, "file"), make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	p.awaitEvent(pod.Name, "Evicted", "exceeds the limit") // kubelet's own
	p.awaitNothing()
	p.mustNotBeHeld(held, credentials)
	now, err := p.pods().Get(t.Context(), pod.Name, metav1.GetOptions{})
	// Kubelet may say Succeeded: it evicts by SIGTERM, and the app ends with 0.
	if err != nil || now.Status.Phase != corev1.PodFailed && now.Status.Phase != corev1.PodSucceeded {
		t.Errorf("the evicted pod should still be there: %v, %+v", err, now)
	}
	p.deleteAll()
}

// willLapse starts a pod whose credentials end for good, and whose container would not see others.
func (s *suite) willLapse(t *testing.T) {
	p := s.newPlace(t, "lapse")
	p.makeRole(p.role, map[string]any{"default_ttl": 100, "max_ttl": 100})
	p.databaseClass()
	pod := newPod("lapse", "db")
	app := &pod.Spec.Containers[0]
	app.VolumeMounts[0].SubPath, app.VolumeMounts[0].MountPath = "db_user", "/mnt/user"
	pod = p.run(pod)
	p.awaitEvent(pod.Name, "WillLapse", "cannot be extended", `container "app" mounts them by subPath`)
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitNothing()
}

// revokedByHand takes a running pod's credentials away, and no other's; it is given new ones.
func (s *suite) revokedByHand(t *testing.T) {
	p := s.newPlace(t, "by-hand")
	p.databaseClass()
	pod, other := p.run(newPod("leaked", "db")), p.run(newPod("other", "db"))
	before, kept := p.login(pod), p.login(other)
	if said, err := s.bed.Leasehold(t.Context(), "revoke", "--pod", p.ns+"/leaked", "--yes"); err != nil {
		t.Fatalf("%s, %v", said, err)
	}
	if err := p.bed.CanLogIn(t.Context(), before.user, before.password); err == nil {
		t.Error("what was revoked still works")
	}
	p.awaitEvent("leaked", "RevokedByHand", "an operator had its credentials revoked")
	s.eventually(t, "the pod has other credentials", func(ctx context.Context) error {
		l := p.login(pod)
		return p.bed.CanLogIn(ctx, l.user, l.password)
	})
	p.mustLogIn(kept)
	if p.login(other) != kept {
		t.Error("another pod's credentials changed")
	}
	p.deleteAll()
	p.awaitNothing()
}
