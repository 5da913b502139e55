//nolint:forbidigo // sleeps inside synctest bubbles only
package simulate_test

import (
	"errors"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
)

var errAway = errors.New("connect: connection refused")

// apiWeather is the API server as the provider meets it: it lags, it closes watches, it is away, it answers a list with nothing.
type apiWeather struct {
	w      *world
	client *fake.Clientset

	mu      sync.Mutex
	away    bool
	empty   bool          // the next list is
	dropped chan struct{} // closed when every watch is
}

func newAPI(w *world) *apiWeather {
	a := &apiWeather{w: w, client: fake.NewSimpleClientset(), dropped: make(chan struct{})}
	a.client.PrependReactor("*", "*", a.react)
	a.client.PrependWatchReactor("*", a.watch)
	return a
}

func (a *apiWeather) react(action k8stesting.Action) (bool, runtime.Object, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.away:
		return true, nil, errAway
	case action.Matches("list", "pods") && a.empty:
		a.empty = false
		a.w.happened("empty list", "")
		return true, &corev1.PodList{}, nil
	case action.GetResource().Resource == "events":
		return true, &corev1.Event{}, nil
	}
	return false, nil, nil
}

// watch relays the tracker's watch with a lag that differs from event to event, in their order.
func (a *apiWeather) watch(action k8stesting.Action) (bool, watch.Interface, error) {
	a.mu.Lock()
	away, dropped := a.away, a.dropped
	a.mu.Unlock()
	if away {
		return true, nil, errAway
	}
	source, err := a.client.Tracker().Watch(action.GetResource(), action.GetNamespace())
	if err != nil {
		return true, nil, err
	}
	r := &relay{events: make(chan watch.Event), stopped: make(chan struct{})}
	a.w.background.Go(func() {
		defer source.Stop()
		defer close(r.events)
		for {
			select {
			case <-dropped: // the tracker replays nothing, so what waits here is seen by another list only
				expired := apierrors.NewResourceExpired("too old resource version").Status()
				r.tell(watch.Event{Type: watch.Error, Object: &expired})
				return
			case <-r.stopped:
				return
			case <-a.w.over:
				return
			case event, ok := <-source.ResultChan():
				if !ok {
					return
				}
				if lag := a.w.dice.between(nameOf(event.Object), "lag", -4*time.Second, 3*time.Second); lag > 0 && !a.w.calm() {
					a.w.add("watch lag")
					time.Sleep(lag)
				}
				r.tell(event)
			}
		}
	})
	return true, r, nil
}

func nameOf(object runtime.Object) string {
	named, err := meta.Accessor(object)
	if err != nil {
		return ""
	}
	return named.GetName()
}

// relay is a watch that passes events on.
type relay struct {
	events  chan watch.Event
	stopped chan struct{}
	once    sync.Once
}

// Stop implements watch.Interface.
func (r *relay) Stop() { r.once.Do(func() { close(r.stopped) }) }

// ResultChan implements watch.Interface.
func (r *relay) ResultChan() <-chan watch.Event { return r.events }

// tell passes an event on, unless the informer has stopped its watch.
func (r *relay) tell(event watch.Event) {
	select {
	case r.events <- event:
	case <-r.stopped:
	}
}

// drop closes every watch, so that pods are listed anew.
func (a *apiWeather) drop(empty bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.empty = empty
	close(a.dropped)
	a.dropped = make(chan struct{})
}

func (a *apiWeather) setAway(away bool) {
	a.mu.Lock()
	a.away = away
	a.mu.Unlock()
	if away {
		a.drop(false)
	}
}

// kubeletBeats renews the node's Lease as kubelet does.
func (a *apiWeather) kubeletBeats() {
	leases := coordinationv1.SchemeGroupVersion.WithResource("leases")
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: nodeName}}
	_ = a.client.Tracker().Add(lease)
	for {
		select {
		case <-a.w.over:
			return
		case <-time.After(10 * time.Second):
		}
		a.w.awaitKubelet()
		lease = lease.DeepCopy()
		lease.Spec.RenewTime = &metav1.MicroTime{Time: a.w.kubeNow().Time}
		_ = a.client.Tracker().Update(leases, lease, corev1.NamespaceNodeLease)
	}
}
