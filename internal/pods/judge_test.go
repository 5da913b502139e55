//nolint:forbidigo // sleeps inside synctest bubbles only
package pods_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/kube"
	"github.com/leasehold-csi/leasehold/internal/pods"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

const (
	node = "node-a"
	uid  = "0b1c5a52-9c7e-4a5e-8a53-0a4f5f0e7d11"
)

// bed is a node with one pod and one volume: an API server, kubelet's folders, and a grant as the keeper would hold it.
// It lives in a synctest bubble, whose clock is the node's.
type bed struct {
	t       *testing.T
	client  *fake.Clientset
	cluster *kube.Cluster
	dir     string
	judge   *pods.Judge
	grant   grant.Grant
	// beside is called whenever ask is; nil for nothing.
	beside func()
}

func newBed(t *testing.T, prepare ...func(*fake.Clientset)) *bed {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-0", UID: uid},
		Spec:       corev1.PodSpec{NodeName: node, TerminationGracePeriodSeconds: new(int64(20))},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: node}}
	b := &bed{
		t: t, client: fake.NewSimpleClientset(pod, lease), dir: t.TempDir(),
		grant: grant.Grant{
			Volume: spec.VolumeKey{PodUID: uid, Volume: "creds"},
			Pod:    spec.Pod{Namespace: "shop", Name: "db-0", UID: uid},
		},
	}
	for _, p := range prepare {
		p(b.client)
	}
	if err := os.MkdirAll(b.folder(), 0o755); err != nil {
		t.Fatal(err)
	}
	b.cluster = kube.New(kube.Config{Client: b.client, Node: node, Log: slog.New(slog.DiscardHandler)})
	b.restart()

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.cluster.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
	return b
}

// restart begins with a Judge that remembers nothing.
func (b *bed) restart() {
	boot := time.Now().Add(-time.Hour)
	b.judge = pods.New(pods.Config{
		Cluster: b.cluster, KubeletDir: b.dir,
		Now: func() grant.Instant { return grant.Instant(time.Since(boot)) },
		Log: slog.New(slog.DiscardHandler),
	})
}

func (b *bed) folder() string {
	return filepath.Join(b.dir, "pods", uid, "volumes", "kubernetes.io~csi", "creds")
}

func (b *bed) unmount() {
	b.t.Helper()
	if err := os.RemoveAll(b.folder()); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) phase(phase corev1.PodPhase, conditions ...corev1.PodCondition) {
	b.t.Helper()
	api := b.client.CoreV1().Pods("shop")
	pod, err := api.Get(b.t.Context(), "db-0", metav1.GetOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	pod.Status.Phase, pod.Status.Conditions = phase, conditions
	if _, err := api.UpdateStatus(b.t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) terminating(grace int64) {
	b.t.Helper()
	api := b.client.CoreV1().Pods("shop")
	pod, err := api.Get(b.t.Context(), "db-0", metav1.GetOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &metav1.Time{Time: time.Now()}, &grace
	if _, err := api.Update(b.t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) remove() {
	b.t.Helper()
	if err := b.client.CoreV1().Pods("shop").Delete(b.t.Context(), "db-0", metav1.DeleteOptions{}); err != nil {
		b.t.Fatal(err)
	}
}

// renew lets kubelet renew its Lease every ten seconds for that long, and the keeper ask as often.
func (b *bed) renew(d time.Duration) grant.Verdict {
	b.t.Helper()
	var v grant.Verdict
	for end := time.Now().Add(d); time.Now().Before(end); {
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: node}}
		lease.Spec.RenewTime = &metav1.MicroTime{Time: time.Now()}
		if _, err := b.client.CoordinationV1().Leases(lease.Namespace).Update(b.t.Context(), lease, metav1.UpdateOptions{}); err != nil {
			b.t.Fatal(err)
		}
		v = b.ask()
		time.Sleep(10 * time.Second)
	}
	return v
}

// ask asks the Judge as the keeper does: what the verdict saw is kept in the grant.
func (b *bed) ask() grant.Verdict {
	synctest.Wait()
	if b.beside != nil {
		b.beside()
	}
	v := b.judge.Ended(b.t.Context(), b.grant)
	b.grant.FolderSeen = b.grant.FolderSeen || v.FolderSeen
	if v.Grace != 0 {
		b.grant.Grace = v.Grace
	}
	return v
}

func (b *bed) expect(when string, ended bool) grant.Verdict {
	b.t.Helper()
	v := b.ask()
	if v.Ended != ended {
		b.t.Errorf("%s: ended %v (%s), want %v", when, v.Ended, v.Reason, ended)
	}
	return v
}

// fault is an API server that fails with the error it holds; the zero value works.
type fault struct{ err atomic.Pointer[error] }

func (f *fault) set(err error) { f.err.Store(&err) }

// of makes requests of that kind fail while the fault holds an error.
func (f *fault) of(verb, resource string) func(*fake.Clientset) {
	return func(client *fake.Clientset) {
		client.PrependReactor(verb, resource, func(k8stesting.Action) (bool, runtime.Object, error) {
			err := f.err.Load()
			if err == nil || *err == nil {
				return false, nil, nil
			}
			return true, nil, *err
		})
	}
}

func (b *bed) gets(resource string) int {
	n := 0
	for _, a := range b.client.Actions() {
		if a.Matches("get", resource) {
			n++
		}
	}
	return n
}

func TestNormalDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		v := b.expect("running", false)
		if v.Check != 0 || !v.FolderSeen || v.Grace != 20*time.Second {
			t.Errorf("running: %+v; want no check, the folder seen, 20s of grace", v)
		}
		b.terminating(45)
		if v := b.expect("draining", false); v.Grace != 45*time.Second {
			t.Errorf("grace %v, want the deletion's 45s", v.Grace)
		}
		time.Sleep(8 * time.Second)
		b.phase(corev1.PodFailed)
		if v := b.expect("containers dead", false); v.Check != 50*time.Millisecond {
			t.Errorf("check in %v, want 50ms", v.Check)
		}
		if n := b.gets("pods") - 2; n != 0 { // the two are the test's own
			t.Errorf("%d live reads of a pod that is in the cache", n)
		}
		b.unmount()
		b.expect("unmounted", true)
		b.remove()
		b.expect("object gone", true)
	})
}

func TestForceDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.expect("running", false)
		b.remove()
		v := b.expect("object gone, container running", false)
		if v.Check != 50*time.Millisecond || v.Warning != "" {
			t.Errorf("just gone: %+v; want a check in 50ms and no warning", v)
		}
		time.Sleep(2 * time.Second)
		b.expect("container still running", false)
		b.unmount()
		b.expect("unmounted", true)
		if n := b.gets("pods"); n != 1 {
			t.Errorf("%d live reads, want one: the pod does not come back", n)
		}
	})
}

// Why the pod failed is part of the reason.
func TestEviction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.ask()
		api := b.client.CoreV1().Pods("shop")
		pod, err := api.Get(t.Context(), "db-0", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pod.Status = corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "The node was low on resource: memory."}
		if _, err := api.UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		b.unmount()
		if v := b.expect("evicted", true); !strings.Contains(v.Reason, "(Evicted: The node was low on resource: memory.)") {
			t.Errorf("the reason is %q", v.Reason)
		}
	})
}

func TestJobCompletion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.expect("running", false)
		b.phase(corev1.PodSucceeded)
		b.expect("phase before unmount", false)
		b.unmount()
		b.expect("unmounted, object stays", true)
	})
}

func TestDriverDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.expect("running", false)
		b.phase(corev1.PodSucceeded)
		asked := 0
		for start := time.Now(); ; asked++ {
			v := b.ask()
			if v.Ended {
				if took := time.Since(start); took != 5*time.Minute {
					t.Errorf("ended after %v, want 5m", took)
				}
				if !strings.Contains(v.Warning, "CSI driver") {
					t.Errorf("warning %q", v.Warning)
				}
				break
			}
			time.Sleep(v.Check)
		}
		if asked > 25 {
			t.Errorf("asked %d times in five minutes", asked)
		}
		b.expect("for another grant of the volume", true)
	})
}

func TestOtherVolumesDisturbNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.phase(corev1.PodSucceeded)
		other := b.grant
		for minute := range 5 {
			b.expect("over", false)
			other.Volume = spec.VolumeKey{PodUID: fmt.Sprintf("other-%d", minute), Volume: "creds"}
			b.judge.Ended(t.Context(), other)
			time.Sleep(time.Minute)
		}
		b.expect("over for five minutes", true)
	})
}

func TestReplacedByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.expect("running", false)
		b.remove()
		next := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-0", UID: types.UID("another")}}
		if err := b.client.Tracker().Add(next); err != nil {
			t.Fatal(err)
		}
		b.expect("another pod of the name, still mounted", false)
		b.unmount()
		b.expect("another pod of the name", true)
	})
}

func TestLiveReadDecidesWhatTheCacheLacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var api fault
		b := newBed(t, api.of("get", "pods"))
		b.expect("running", false)
		b.remove()
		b.unmount()
		for _, err := range []error{
			errors.New("connection refused"),
			apierrors.NewForbidden(corev1.Resource("pods"), "db-0", nil),
			apierrors.NewInternalError(errors.New("etcd")),
		} {
			api.set(err)
			if v := b.expect(err.Error(), false); v.Check != 10*time.Second {
				t.Errorf("%v: check in %v, want 10s", err, v.Check)
			}
		}
		time.Sleep(24 * time.Hour)
		b.expect("a day later", false)
		api.set(nil)
		b.expect("the API server is back", true)
	})
}

func TestPodOutsideTheCacheIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, func(client *fake.Clientset) {
			client.PrependReactor("list", "pods", func(k8stesting.Action) (bool, runtime.Object, error) {
				return true, &corev1.PodList{}, nil
			})
		})
		if v := b.expect("missing in the cache", false); v.Check != 10*time.Second {
			t.Errorf("check in %v, want 10s, since no change of the pod will wake", v.Check)
		}
	})
}

func TestNothingBeforeTheCacheIsFilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var api fault
		api.set(errors.New("connection refused"))
		b := newBed(t, api.of("list", "pods"))
		b.ask()
		b.remove()
		b.unmount()
		b.expect("not synced", false)
		if n := b.gets("pods"); n != 0 {
			t.Errorf("%d live reads before the cache is filled", n)
		}
		api.set(nil)
		time.Sleep(2 * time.Minute)
		b.expect("synced", true)
	})
}

func TestPodGC(t *testing.T) {
	disrupted := corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}
	for reason, ended := range map[string]bool{
		"DeletionByPodGC":      false, // kubelet said nothing
		"TerminationByKubelet": true,  // it did
	} {
		t.Run(reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t)
				b.expect("running", false)
				disrupted.Reason = reason
				b.phase(corev1.PodFailed, disrupted)
				b.expect("failed", false)
				time.Sleep(6 * time.Minute)
				b.expect("after six minutes, still mounted", ended)
				b.unmount()
				b.expect("unmounted", true)
			})
		})
	}
}

func TestGoneWhileTheFolderStays(t *testing.T) {
	const enough = 10*time.Minute + 20*time.Second // the margin and the pod's grace period
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.expect("running", false)
		if b.judge.Held(b.grant.Volume) {
			t.Error("the end is held while the pod runs")
		}
		b.remove()
		b.expect("gone", false)

		time.Sleep(time.Hour)
		if v := b.expect("kubelet silent for an hour", false); !strings.Contains(v.Warning, "held") {
			t.Errorf("warning %q", v.Warning)
		}
		if !b.judge.Held(b.grant.Volume) {
			t.Error("the end is not held")
		}
		time.Sleep(time.Minute)
		if v := b.expect("a minute later", false); v.Warning != "" {
			t.Errorf("warned again: %q", v.Warning)
		}
		if v := b.renew(enough - 10*time.Second); v.Ended {
			t.Errorf("ended before kubelet was alive for %v: %s", enough, v.Reason)
		}
		time.Sleep(2 * time.Minute) // a gap: all starts anew
		if v := b.renew(enough - 10*time.Second); v.Ended {
			t.Errorf("ended though kubelet's run was broken: %s", v.Reason)
		}
		if v := b.renew(30 * time.Second); !v.Ended {
			t.Errorf("not ended after an unbroken run of %v: %s", enough, v.Reason)
		}
		if b.judge.Held(b.grant.Volume) {
			t.Error("the end is held after it")
		}
	})
}

func TestAliveCountsFromTheGoing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		// Another volume is held all the time, so the Lease is followed all the time.
		held := grant.Grant{
			Volume: spec.VolumeKey{PodUID: "long-gone", Volume: "creds"},
			Pod:    spec.Pod{Namespace: "shop", Name: "long-gone", UID: "long-gone"},
		}
		b.beside = func() { b.judge.Ended(t.Context(), held) }
		b.renew(time.Hour)
		b.phase(corev1.PodSucceeded)
		b.renew(4 * time.Minute)
		b.remove()
		if v := b.renew(10 * time.Minute); v.Ended {
			t.Errorf("life before the pod's going was counted: %s", v.Reason)
		}
		if v := b.renew(time.Minute); !v.Ended {
			t.Errorf("not ended after eleven minutes: %s", v.Reason)
		}
	})
}

func TestStandingLeaseProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.expect("running", false)
		b.remove()
		b.renew(10 * time.Second) // once
		for range 360 {
			b.expect("kubelet is silent", false)
			time.Sleep(10 * time.Second)
		}
	})
}

func TestLeaseIsReadOnlyForHeldVolumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.expect("running", false)
		b.phase(corev1.PodSucceeded)
		b.expect("over", false)
		if n := b.gets("leases"); n != 0 {
			t.Errorf("%d reads of the Lease for a pod that is there", n)
		}
		b.remove()
		for range 100 { // many volumes asking, within ten seconds
			b.expect("gone", false)
			time.Sleep(99 * time.Millisecond)
		}
		if n := b.gets("leases"); n != 1 {
			t.Errorf("%d reads of the Lease in ten seconds, want 1", n)
		}
	})
}

func TestUnknownKubeletProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var api fault
		api.set(errors.New("connection refused"))
		b := newBed(t, api.of("get", "leases"))
		b.expect("running", false)
		b.remove()
		if v := b.renew(time.Hour); v.Ended {
			t.Errorf("ended though the Lease could not be read: %s", v.Reason)
		}
	})
}

func TestFolderThatCannotBeSeen(t *testing.T) {
	tests := map[string]func(*testing.T, *bed){
		"pods folder missing": func(t *testing.T, b *bed) {
			if err := os.RemoveAll(filepath.Join(b.dir, "pods")); err != nil {
				t.Fatal(err)
			}
		},
		"pods folder is none": func(t *testing.T, b *bed) {
			pods := filepath.Join(b.dir, "pods")
			if err := os.RemoveAll(pods); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(pods, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"UID leads elsewhere":         func(_ *testing.T, b *bed) { b.grant.Volume.PodUID = "../" + uid },
		"UID is the folder above":     func(_ *testing.T, b *bed) { b.grant.Volume.PodUID = ".." },
		"volume's name has a slash":   func(_ *testing.T, b *bed) { b.grant.Volume.Volume = "a/b" },
		"volume's name is empty":      func(_ *testing.T, b *bed) { b.grant.Volume.Volume = "" },
		"volume's name is the folder": func(_ *testing.T, b *bed) { b.grant.Volume.Volume = "." },
		"volume's name has a zero":    func(_ *testing.T, b *bed) { b.grant.Volume.Volume = "a\x00" },
	}
	for name, breakIt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t)
				b.expect("running", false)
				breakIt(t, b)
				b.remove()
				v := b.expect("gone", false)
				if v.FolderSeen || !strings.Contains(v.Reason, "cannot be looked up") {
					t.Errorf("folder seen %v, reason %q", v.FolderSeen, v.Reason)
				}
			})
		})
	}
}

// TestNoFolder: without a view of kubelet's folders a removal proves nothing, and time decides as it does for a folder that stays.
func TestNoFolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.dir = ""
		b.restart()
		b.expect("running", false)
		b.phase(corev1.PodSucceeded)
		b.expect("completed", false)
		time.Sleep(5 * time.Minute)
		if v := b.expect("completed five minutes ago", true); !strings.Contains(v.Warning, "cannot be looked up") {
			t.Errorf("warning %q", v.Warning)
		}
		b.phase(corev1.PodRunning)
		b.remove()
		b.expect("deleted", false)
		b.renew(10 * time.Minute)
		b.expect("deleted, and its grace period not over", false)
		if v := b.renew(time.Minute); !v.Ended {
			t.Errorf("deleted eleven minutes ago: %s", v.Reason)
		}
	})
}

// TestSees: a folder of pods that lacks what kubelet has just made is not that kubelet's.
func TestSees(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		sees := func(when string, want bool) {
			t.Helper()
			err := b.judge.Sees(b.grant.Volume, "/var/lib/k0s/kubelet")
			if (err == nil) != want {
				t.Errorf("%s: %v", when, err)
			}
			if err != nil && (!strings.Contains(err.Error(), `"/var/lib/k0s/kubelet"`) || !strings.Contains(err.Error(), "--kubelet-dir "+b.dir)) {
				t.Errorf("%s: %v does not name both folders", when, err)
			}
		}
		sees("kubelet's", true)
		b.unmount()
		sees("kubelet's, which takes the volume away meanwhile", true)
		if err := os.RemoveAll(filepath.Join(b.dir, "pods", uid)); err != nil {
			t.Fatal(err)
		}
		sees("another one's", false)
		if err := os.RemoveAll(filepath.Join(b.dir, "pods")); err != nil {
			t.Fatal(err)
		}
		sees("one that cannot be listed, which proves nothing", true)
		b.dir = ""
		b.restart()
		sees("none that is mounted", true)
	})
}

func TestAbsentFolderThatNobodySaw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.unmount()
		b.expect("failed publish", false)
		b.remove()
		if v := b.expect("gone", false); !strings.Contains(v.Reason, "never seen") {
			t.Errorf("reason %q", v.Reason)
		}
	})
}

func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.expect("running", false)
		b.phase(corev1.PodSucceeded)
		b.expect("over", false)
		time.Sleep(4 * time.Minute)
		b.restart()
		b.expect("restarted", false)
		time.Sleep(4 * time.Minute)
		b.expect("four minutes after the restart", false)
		b.restart()
		b.unmount()
		b.remove()
		b.expect("all went while the provider was away", true)
	})
}
