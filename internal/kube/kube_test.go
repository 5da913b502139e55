//nolint:forbidigo // sleeps inside synctest bubbles only
package kube_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/leasehold-csi/leasehold/internal/kube"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

const node = "node-a"

var (
	podResource  = corev1.SchemeGroupVersion.WithResource("pods")
	podKind      = schema.GroupResource{Resource: "pods"}
	errTransport = errors.New("connection refused")
)

func newPod(name, uid string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(uid)},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
}

// woken collects the UIDs that OnPod was told.
type woken struct {
	mu   sync.Mutex
	uids []string
}

func (w *woken) add(uid string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.uids = append(w.uids, uid)
}

// take returns what came since the last call, once everything has settled.
func (w *woken) take() []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	uids := w.uids
	w.uids = nil
	slices.Sort(uids)
	return uids
}

// start runs a Cluster until the bubble's test ends, which fails if Run leaves a goroutine behind.
func start(t *testing.T, client *fake.Clientset) (*kube.Cluster, *woken) {
	t.Helper()
	c := kube.New(kube.Config{Client: client, Node: node, Log: slog.New(slog.DiscardHandler)})
	w := &woken{}
	c.OnPod(w.add)
	run(t, c)
	return c, w
}

func run(t *testing.T, c *kube.Cluster) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
}

func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: woken for %q, want %q", what, got, want)
	}
}

func TestCacheFollowsThePods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset(newPod("web", "u1"))
		c, w := start(t, client)
		pods := client.CoreV1().Pods("shop")
		ctx := t.Context()

		expect(t, "pods that were there", w.take(), "u1")
		if !c.Synced() {
			t.Fatal("not synced after the first list")
		}
		if _, err := pods.Create(ctx, newPod("job", "u2"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		expect(t, "a new pod", w.take(), "u2")

		probed := newPod("job", "u2")
		probed.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		if _, err := pods.UpdateStatus(ctx, probed, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		expect(t, "a change of no matter", w.take())

		done := newPod("job", "u2")
		done.Status.Phase = corev1.PodSucceeded
		if _, err := pods.UpdateStatus(ctx, done, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		expect(t, "a phase", w.take(), "u2")
		if pod, ok := c.Pod("u2"); !ok || pod.Status.Phase != corev1.PodSucceeded {
			t.Errorf("cache has %v, want the pod in phase Succeeded", pod)
		}

		going := newPod("web", "u1")
		going.DeletionTimestamp = &metav1.Time{Time: time.Now()}
		if _, err := pods.Update(ctx, going, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		expect(t, "a deletion timestamp", w.take(), "u1")

		if err := pods.Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		expect(t, "a deletion", w.take(), "u1")
		if _, ok := c.Pod("u1"); ok {
			t.Error("the cache still has the deleted pod")
		}
	})
}

func TestCacheAsksForThisNodeOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset()
		start(t, client)
		for _, action := range client.Actions() {
			var fields string
			switch a := action.(type) {
			case k8stesting.ListActionImpl:
				fields = a.GetListRestrictions().Fields.String()
			case k8stesting.WatchActionImpl:
				fields = a.GetWatchRestrictions().Fields.String()
			}
			if fields != "spec.nodeName="+node {
				t.Errorf("%s with field selector %q", action.GetVerb(), fields)
			}
		}
	})
}

func TestCacheKeepsWhatMattersOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pod := newPod("web", "u1")
		grace, deletion := int64(45), int64(90)
		pod.Annotations = map[string]string{"large": strings.Repeat("x", 1000)}
		pod.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}
		pod.Spec.Containers = []corev1.Container{{Name: "app"}}
		pod.Spec.TerminationGracePeriodSeconds = &grace
		pod.DeletionGracePeriodSeconds = &deletion
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app"}}
		pod.Status.Conditions = []corev1.PodCondition{
			{Type: corev1.PodReady}, {Type: corev1.DisruptionTarget, Reason: "DeletionByPodGC"},
		}
		c, _ := start(t, fake.NewSimpleClientset(pod))
		got, ok := c.Pod("u1")
		if !ok {
			t.Fatal("the pod is not in the cache")
		}
		if *got.Spec.TerminationGracePeriodSeconds != grace || *got.DeletionGracePeriodSeconds != deletion ||
			len(got.Status.Conditions) != 1 || got.Status.Conditions[0].Reason != "DeletionByPodGC" {
			t.Errorf("lost something that pods are judged by: %+v", got)
		}
		if got.Annotations != nil || got.ManagedFields != nil || got.Spec.Containers != nil || got.Status.ContainerStatuses != nil {
			t.Errorf("keeps more than pods are judged by: %+v", got)
		}
	})
}

// watches hands the test the watch that the informer opened last.
func watches(client *fake.Clientset) func() *watch.FakeWatcher {
	var mu sync.Mutex
	var last *watch.FakeWatcher
	client.PrependWatchReactor("pods", func(k8stesting.Action) (bool, watch.Interface, error) {
		mu.Lock()
		defer mu.Unlock()
		last = watch.NewFake()
		return true, last, nil
	})
	return func() *watch.FakeWatcher {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
}

// expire makes the informer list again, as after a long absence of the API server.
func expire(w *watch.FakeWatcher) {
	status := apierrors.NewResourceExpired("too old resource version").Status()
	w.Error(&status)
	time.Sleep(time.Minute)
}

func TestRelistTellsOfPodsThatWentUnseen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset(newPod("gone", "u1"), newPod("stays", "u2"), newPod("db-0", "u3"))
		current := watches(client)
		c, w := start(t, client)
		w.take()

		// None of this is seen by the watch.
		for _, name := range []string{"gone", "db-0"} {
			if err := client.Tracker().Delete(podResource, "shop", name); err != nil {
				t.Fatal(err)
			}
		}
		if err := client.Tracker().Add(newPod("db-0", "u4")); err != nil {
			t.Fatal(err)
		}
		expect(t, "before the relist", w.take())
		expire(current())

		expect(t, "after the relist", w.take(), "u1", "u3", "u4")
		for uid, want := range map[string]bool{"u1": false, "u2": true, "u3": false, "u4": true} {
			if _, ok := c.Pod(uid); ok != want {
				t.Errorf("%s in the cache: %v, want %v", uid, ok, want)
			}
		}
	})
}

func TestAbsentServerChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset(newPod("web", "u1"))
		current := watches(client)
		c, w := start(t, client)
		w.take()
		client.PrependReactor("list", "pods", func(k8stesting.Action) (bool, runtime.Object, error) {
			return true, nil, errTransport
		})
		expire(current())
		time.Sleep(time.Hour)

		expect(t, "while the API server is away", w.take())
		if _, ok := c.Pod("u1"); !ok || !c.Synced() {
			t.Errorf("pod in the cache: %v, synced: %v; want both", ok, c.Synced())
		}
	})
}

func TestNotSyncedBeforeTheFirstList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset()
		client.PrependReactor("list", "pods", func(k8stesting.Action) (bool, runtime.Object, error) {
			return true, nil, errTransport
		})
		c, _ := start(t, client)
		time.Sleep(time.Minute)
		if c.Synced() {
			t.Error("synced though no list succeeded")
		}
	})
}

func TestLivePod(t *testing.T) {
	mirror := newPod("static-node-a", "mirror-uid")
	mirror.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "static-uid"}
	fromProxy := apierrors.NewGenericServerResponse(http.StatusNotFound, "get", podKind, "web", "<html>no such page</html>", 0, true)

	tests := map[string]struct {
		name    string
		answer  error
		uid     string // empty: no pod
		wantErr bool
	}{
		"there":                         {name: "web", uid: "u1"},
		"not there":                     {name: "other"},
		"a static pod's mirror":         {name: "static-node-a", uid: "static-uid"},
		"no name":                       {name: "", wantErr: true},
		"connection refused":            {name: "web", answer: errTransport, wantErr: true},
		"forbidden":                     {name: "web", answer: apierrors.NewForbidden(podKind, "web", nil), wantErr: true},
		"a 404 not of the API's making": {name: "web", answer: fromProxy, wantErr: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			client := fake.NewSimpleClientset(newPod("web", "u1"), mirror)
			if tt.answer != nil {
				client.PrependReactor("get", "pods", func(k8stesting.Action) (bool, runtime.Object, error) {
					return true, nil, tt.answer
				})
			}
			c := kube.New(kube.Config{Client: client, Node: node, Log: slog.New(slog.DiscardHandler)})
			pod, err := c.LivePod(t.Context(), "shop", tt.name)
			if (err != nil) != tt.wantErr {
				t.Fatalf("error %v, want one: %v", err, tt.wantErr)
			}
			var uid string
			if pod != nil {
				uid = string(pod.UID)
			}
			if uid != tt.uid {
				t.Errorf("UID %q, want %q", uid, tt.uid)
			}
		})
	}
}

func TestKubeletRenewed(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: node}}
	client := fake.NewSimpleClientset()
	c := kube.New(kube.Config{Client: client, Node: node, Log: slog.New(slog.DiscardHandler)})
	if _, err := c.KubeletRenewed(t.Context()); err == nil {
		t.Error("no error without a lease")
	}
	if err := client.Tracker().Add(lease); err != nil {
		t.Fatal(err)
	}
	if _, err := c.KubeletRenewed(t.Context()); err == nil {
		t.Error("no error for a lease that was never renewed")
	}
	lease.Spec.RenewTime = &metav1.MicroTime{Time: at}
	if _, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Update(t.Context(), lease, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := c.KubeletRenewed(t.Context()); err != nil || !got.Equal(at) {
		t.Errorf("got %v, %v; want %v", got, err, at)
	}
}

var web = spec.Pod{Namespace: "shop", Name: "web", UID: "u1"}

func events(t *testing.T, client *fake.Clientset) []corev1.Event {
	t.Helper()
	synctest.Wait()
	list, err := client.CoreV1().Events("shop").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func TestEqualEventsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset()
		c, _ := start(t, client)
		for range 3 {
			c.Event(web, corev1.EventTypeWarning, "LeaseHeld", "The pod is gone.")
			time.Sleep(time.Second)
		}
		got := events(t, client)
		if len(got) != 1 || got[0].Count != 3 {
			t.Fatalf("got %v, want one event counted three times", got)
		}
		e := got[0]
		if e.InvolvedObject.Kind != "Pod" || e.InvolvedObject.UID != "u1" || e.InvolvedObject.Name != "web" ||
			e.Type != corev1.EventTypeWarning || e.Reason != "LeaseHeld" || e.Message != "The pod is gone." ||
			e.Source.Host != node || e.Source.Component != "leasehold" {
			t.Errorf("event says %+v", e)
		}
	})
}

// TestWarningIsNotDrowned: too much of one reason leaves room for another.
func TestWarningIsNotDrowned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset()
		c, _ := start(t, client)
		for range 40 {
			c.Event(web, corev1.EventTypeNormal, "Rotated", "There are new credentials.")
			time.Sleep(time.Second)
		}
		c.Event(web, corev1.EventTypeWarning, "WillLapse", "They will end.")
		synctest.Wait()
		counts := map[string]int32{}
		for _, e := range events(t, client) {
			counts[e.Reason] += e.Count
		}
		if counts["Rotated"] >= 40 || counts["WillLapse"] != 1 {
			t.Errorf("posted %v", counts)
		}
	})
}

func TestEventThatTheServerForgotIsPostedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset()
		c, _ := start(t, client)
		c.Event(web, corev1.EventTypeWarning, "LeaseHeld", "The pod is gone.")
		first := events(t, client)[0].Name
		if err := client.CoreV1().Events("shop").Delete(t.Context(), first, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.Event(web, corev1.EventTypeWarning, "LeaseHeld", "The pod is gone.")
		if got := events(t, client); len(got) != 1 || got[0].Count != 2 {
			t.Errorf("got %v, want one event counted twice", got)
		}
	})
}

func TestEventsNeverBlockNorPile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset()
		c := kube.New(kube.Config{Client: client, Node: node, Log: slog.New(slog.DiscardHandler)})
		for i := range 2000 { // nobody posts them yet
			pod := spec.Pod{Namespace: "shop", Name: fmt.Sprintf("web-%d", i), UID: fmt.Sprintf("u%d", i)}
			c.Event(pod, corev1.EventTypeNormal, "Test", "Something happened.")
		}
		run(t, c)
		if got := len(events(t, client)); got == 0 || got == 2000 {
			t.Errorf("%d events posted, want the first ones only", got)
		}
	})
}

func TestEventsOutlastAnAbsentServer(t *testing.T) {
	for name, answer := range map[string]error{
		"connection refused": errTransport,
		"unavailable":        apierrors.NewServiceUnavailable("starting"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := fake.NewSimpleClientset()
				until := time.Now().Add(time.Minute)
				client.PrependReactor("create", "events", func(k8stesting.Action) (bool, runtime.Object, error) {
					return time.Now().Before(until), nil, answer
				})
				c, _ := start(t, client)
				c.Event(web, corev1.EventTypeNormal, "Test", "Something happened.")
				time.Sleep(2 * time.Minute)
				if got := len(events(t, client)); got != 1 {
					t.Errorf("%d events posted, want 1", got)
				}
			})
		})
	}
}

func TestRefusedEventHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset()
		client.PrependReactor("create", "events", func(a k8stesting.Action) (bool, runtime.Object, error) {
			event := a.(k8stesting.CreateAction).GetObject().(*corev1.Event)
			return event.Reason == "Refused", nil, apierrors.NewForbidden(corev1.Resource("events"), event.Name, nil)
		})
		c, _ := start(t, client)
		c.Event(web, corev1.EventTypeNormal, "Refused", "This is refused.")
		c.Event(web, corev1.EventTypeNormal, "Taken", "This is taken.")
		if got := events(t, client); len(got) != 1 || got[0].Reason != "Taken" {
			t.Errorf("posted %v, want the second event at once", got)
		}
	})
}

func TestLongMessageIsCutBetweenCharacters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset()
		c, _ := start(t, client)
		c.Event(web, corev1.EventTypeNormal, "Test", "x"+strings.Repeat("é", 2000))
		message := events(t, client)[0].Message
		if len(message) > 1024 || len(message) < 1000 || !utf8.ValidString(message) || !strings.HasSuffix(message, "é…") {
			t.Errorf("message of %d bytes ends %q", len(message), message[len(message)-8:])
		}
	})
}
