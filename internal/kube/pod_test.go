//nolint:forbidigo // sleeps inside synctest bubbles only
package kube_test

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
	secretsstorev1 "sigs.k8s.io/secrets-store-csi-driver/apis/v1"
	"sigs.k8s.io/secrets-store-csi-driver/pkg/client/clientset/versioned"
	fakeclasses "sigs.k8s.io/secrets-store-csi-driver/pkg/client/clientset/versioned/fake"
	classesv1 "sigs.k8s.io/secrets-store-csi-driver/pkg/client/clientset/versioned/typed/apis/v1"

	"github.com/leasehold-csi/leasehold/internal/kube"
)

// Why a pod failed is told as its status has it, also from the cache.
func TestEndedBecause(t *testing.T) {
	killed := corev1.ContainerStatus{Name: "app", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "OOMKilled"}}}
	done := corev1.ContainerStatus{Name: "done", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed"}}}
	for want, status := range map[string]corev1.PodStatus{
		"": {ContainerStatuses: []corev1.ContainerStatus{done}},
		"Evicted: The node was low on resource: memory.":                               {Reason: "Evicted", Message: "The node was low on resource: memory."},
		`OOMKilled: container "app" wanted more memory than its limit or the node had`: {ContainerStatuses: []corev1.ContainerStatus{done, killed}},
	} {
		synctest.Test(t, func(t *testing.T) {
			pod := newPod("web", "u1")
			pod.Status = status
			if got := kube.EndedBecause(pod); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			c, _ := start(t, fake.NewSimpleClientset(pod))
			cached, _ := c.Pod("u1")
			if got := kube.EndedBecause(cached); got != want {
				t.Errorf("from the cache: got %q, want %q", got, want)
			}
		})
	}
}

// TestStarted: the first start of any container counts, also of one that has ended or was restarted, and it survives the cache.
func TestStarted(t *testing.T) {
	at := func(second int) metav1.Time { return metav1.Unix(int64(1000+second), 0) }
	running := func(second int) corev1.ContainerStatus {
		return corev1.ContainerStatus{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at(second)}}}
	}
	ended := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{StartedAt: at(3)}}
	tests := map[string]struct {
		init, app []corev1.ContainerStatus
		want      int // 0: none was started
	}{
		"waiting":                         {app: []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}}}},
		"two containers":                  {app: []corev1.ContainerStatus{running(7), running(5)}, want: 5},
		"an init container before":        {init: []corev1.ContainerStatus{{State: ended}}, app: []corev1.ContainerStatus{running(5)}, want: 3},
		"a container that was restarted":  {app: []corev1.ContainerStatus{{State: running(9).State, LastTerminationState: ended}}, want: 3},
		"one that waits to be restarted ": {app: []corev1.ContainerStatus{{LastTerminationState: ended}}, want: 3},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pod := newPod("web", "u1")
				pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses = tt.init, tt.app
				var want time.Time
				if tt.want > 0 {
					want = at(tt.want).Time
				}
				if got := kube.Started(pod); !got.Equal(want) {
					t.Errorf("got %s, want %s", got, want)
				}
				c, _ := start(t, fake.NewSimpleClientset(pod))
				cached, _ := c.Pod("u1")
				if got := kube.Started(cached); !got.Equal(want) {
					t.Errorf("from the cache: got %s, want %s", got, want)
				}
			})
		})
	}
}

func TestSubPath(t *testing.T) {
	mounts := func(name string, mounts ...corev1.VolumeMount) corev1.Container {
		return corev1.Container{Name: name, VolumeMounts: mounts}
	}
	byPath := corev1.VolumeMount{Name: "creds", SubPath: "password"}
	sidecar := mounts("proxy", byPath)
	sidecar.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
	tests := map[string]struct {
		init, app []corev1.Container
		want      string
	}{
		"the whole volume":   {app: []corev1.Container{mounts("app", corev1.VolumeMount{Name: "creds"})}},
		"subPath":            {app: []corev1.Container{mounts("other"), mounts("app", byPath)}, want: "app"},
		"subPathExpr":        {app: []corev1.Container{mounts("app", corev1.VolumeMount{Name: "creds", SubPathExpr: "$(X)"})}, want: "app"},
		"another volume's":   {app: []corev1.Container{mounts("app", corev1.VolumeMount{Name: "config", SubPath: "x"})}},
		"an init container":  {init: []corev1.Container{mounts("setup", byPath)}, app: []corev1.Container{mounts("app")}},
		"a native sidecar's": {init: []corev1.Container{sidecar}, app: []corev1.Container{mounts("app")}, want: "proxy"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pod := newPod("web", "u1")
				pod.Spec.InitContainers, pod.Spec.Containers = tt.init, tt.app
				c, _ := start(t, fake.NewSimpleClientset(pod))
				if got := c.SubPath("u1", "creds"); got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
				if got := c.SubPath("u2", "creds"); got != "" {
					t.Errorf("of a pod that is not known: %q", got)
				}
			})
		})
	}
}

func TestOverrides(t *testing.T) {
	volume := func(name, driver string, attributes map[string]string) corev1.Volume {
		return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: driver, VolumeAttributes: attributes}}}
	}
	const ours = "secrets-store.csi.k8s.io"
	many := map[string]string{}
	for i := range 100 {
		many[fmt.Sprintf("%03d", i)+strings.Repeat("x", 1000)] = ""
	}
	synctest.Test(t, func(t *testing.T) {
		pod := newPod("web", "u1")
		pod.Spec.Volumes = []corev1.Volume{
			{Name: "plain"},
			volume("class", ours, map[string]string{"secretProviderClass": "c", "csi.storage.k8s.io/pod.uid": "u2"}),
			volume("pod", ours, map[string]string{"secretProviderClass": "c", "vaultAddress": "canary", "roleName": "canary"}),
			volume("other", "csi.example.com", map[string]string{"roleName": "x"}),
			volume("many", ours, many),
		}
		c, _ := start(t, fake.NewSimpleClientset(pod))
		for name, want := range map[string]string{"plain": "", "class": "", "pod": "roleName vaultAddress", "other": "", "none": ""} {
			if got := strings.Join(c.Overrides("u1", name), " "); got != want {
				t.Errorf("volume %s: got %q, want %q", name, got, want)
			}
		}
		if got := strings.Join(c.Overrides("u1", "many"), " "); len(got) > 32*65 || !strings.HasPrefix(got, "000x") {
			t.Errorf("of many long names: %q", got)
		}
		if got := c.Overrides("u2", "pod"); got != nil {
			t.Errorf("of a pod that is not known: %q", got)
		}
		cached, _ := c.Pod("u1")
		if text := fmt.Sprint(cached); strings.Contains(text, "canary") || len(text) > 8000 {
			t.Errorf("the cache keeps more than names: %d bytes", len(text))
		}
	})
}

// TestAnnounced: what the watch says announces an end, and what is merely missing in a list does not.
func TestAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset(newPod("asked", "u1"), newPod("over", "u2"), newPod("deleted", "u3"), newPod("unseen", "u4"), newPod("stays", "u5"))
		current := watches(client)
		c, _ := start(t, client)
		announced := func(when, uid string, want bool) {
			t.Helper()
			synctest.Wait()
			if got := c.Announced(uid); got != want {
				t.Errorf("%s: %s announced %v, want %v", when, uid, got, want)
			}
		}
		asked, over := newPod("asked", "u1"), newPod("over", "u2")
		asked.DeletionTimestamp = &metav1.Time{Time: time.Now()}
		over.Status.Phase = corev1.PodFailed
		current().Modify(asked)
		current().Modify(over)
		current().Delete(newPod("deleted", "u3"))
		for uid, want := range map[string]bool{"u1": true, "u2": true, "u3": true, "u4": false, "u5": false} {
			announced("by the watch", uid, want)
		}
		for _, name := range []string{"asked", "over", "deleted", "unseen"} {
			if err := client.Tracker().Delete(podResource, "shop", name); err != nil {
				t.Fatal(err)
			}
		}
		expire(current())
		for uid, want := range map[string]bool{"u1": true, "u2": true, "u3": true, "u4": false, "u5": false} {
			announced("after a list without them", uid, want)
		}
		time.Sleep(2 * time.Hour)
		announced("long after", "u3", false)
	})
}

// TestOnSynced: called once, not before the first list succeeded.
func TestOnSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset(newPod("web", "u1"))
		var away atomic.Bool
		away.Store(true)
		client.PrependReactor("list", "pods", func(k8stesting.Action) (bool, runtime.Object, error) { return away.Load(), nil, errTransport })
		c := kube.New(kube.Config{Client: client, Node: node, Log: slog.New(slog.DiscardHandler)})
		var called atomic.Int32
		c.OnSynced(func() {
			called.Add(1)
			if _, ok := c.Pod("u1"); !ok {
				t.Error("called although the cache is empty")
			}
		})
		run(t, c)
		time.Sleep(time.Minute)
		synctest.Wait()
		if called.Load() != 0 {
			t.Fatal("called before any list succeeded")
		}
		away.Store(false)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if called.Load() != 1 {
			t.Errorf("called %d times", called.Load())
		}
	})
}

func TestSyncedObjects(t *testing.T) {
	class := &secretsstorev1.SecretProviderClass{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"},
		Spec: secretsstorev1.SecretProviderClassSpec{SecretObjects: []*secretsstorev1.SecretObject{
			{SecretName: "a", Data: []*secretsstorev1.SecretObjectData{{ObjectName: "user", Key: "u"}, {ObjectName: "pass", Key: "p"}}},
			{SecretName: "b", Data: []*secretsstorev1.SecretObjectData{{ObjectName: "user", Key: "u"}}},
		}},
	}
	resource := schema.GroupResource{Group: "secrets-store.csi.x-k8s.io", Resource: "secretproviderclasses"}
	tests := map[string]struct {
		class   string
		answer  error
		want    string
		wantErr string // empty: none
	}{
		"a class with synced objects": {class: "db", want: "user pass user"},
		"no such class":               {class: "other", wantErr: `reading SecretProviderClass shop/other: secretproviderclasses.secrets-store.csi.x-k8s.io "other" not found`},
		"no rule for it":              {class: "db", answer: apierrors.NewForbidden(resource, "db", nil), wantErr: "its ClusterRole must allow it"},
		"the API server is away":      {class: "db", answer: errTransport, wantErr: "reading SecretProviderClass shop/db: connection refused"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			classes := fakeclasses.NewSimpleClientset(class)
			if tt.answer != nil {
				classes.PrependReactor("get", "*", func(k8stesting.Action) (bool, runtime.Object, error) { return true, nil, tt.answer })
			}
			c := kube.New(kube.Config{Client: fake.NewSimpleClientset(), Classes: classes, Node: node, Log: slog.New(slog.DiscardHandler)})
			got, err := c.SyncedObjects(t.Context(), "shop", tt.class)
			if strings.Join(got, " ") != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if (err == nil) != (tt.wantErr == "") || err != nil && !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("error %v, want %q", err, tt.wantErr)
			}
		})
	}
}

// slowClasses takes a second for each read, unless it is quick, and counts them.
type slowClasses struct {
	versioned.Interface
	reads *atomic.Int32
	quick *atomic.Bool
}

// SecretsstoreV1 implements versioned.Interface.
func (s slowClasses) SecretsstoreV1() classesv1.SecretsstoreV1Interface {
	s.reads.Add(1)
	if !s.quick.Load() {
		time.Sleep(time.Second)
	}
	return s.Interface.SecretsstoreV1()
}

// TestSyncedObjectsAreReadOnce: all pods of a class that start together share one read, but none that may be from before a change.
func TestSyncedObjectsAreReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int32
		classes := slowClasses{fakeclasses.NewSimpleClientset(&secretsstorev1.SecretProviderClass{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}}), &reads, new(atomic.Bool)}
		c := kube.New(kube.Config{Client: fake.NewSimpleClientset(), Classes: classes, Node: node, Log: slog.New(slog.DiscardHandler)})
		var pods sync.WaitGroup
		ask := func() {
			if _, err := c.SyncedObjects(t.Context(), "shop", "db"); err != nil {
				t.Error(err)
			}
		}
		for range 100 {
			pods.Go(ask)
		}
		time.Sleep(time.Second / 2) // the class may have been changed since that read began
		ask()
		pods.Wait()
		time.Sleep(time.Second)
		classes.quick.Store(true)
		for range 100 { // over a second
			ask()
			time.Sleep(10 * time.Millisecond)
		}
		if n := reads.Load(); n < 2+9 || n > 2+11 {
			t.Errorf("read %d times", n)
		}
	})
}
