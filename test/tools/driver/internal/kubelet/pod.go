package kubelet

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// killGrace is the least that kubelet gives a container, also when forced.
	killGrace = 2 * time.Second
	// housekeeping is the time from the end of a pod to the removal of its folder.
	housekeeping = 1500 * time.Millisecond

	// kubelet's pauses between tries of one volume operation.
	firstBackoff = 500 * time.Millisecond
	maxBackoff   = 2*time.Minute + 2*time.Second
)

// latch is an event that happens once.
type latch struct {
	once sync.Once
	c    chan struct{}
}

func newLatch() *latch { return &latch{c: make(chan struct{})} }

func (l *latch) close() { l.once.Do(func() { close(l.c) }) }

func (l *latch) closed() bool {
	select {
	case <-l.c:
		return true
	default:
		return false
	}
}

// worker leads one pod through its life. Its goroutine alone touches the fields
// that are not safe for concurrent use.
type worker struct {
	*kubelet
	uid    types.UID
	latest atomic.Pointer[corev1.Pod]
	// ending: the end was asked for. vanished: the API object is gone.
	ending, vanished *latch
	tokens           tokenCache
	// started is when the containers started; zero while none runs.
	started time.Time
}

func newWorker(k *kubelet, pod *corev1.Pod) *worker {
	w := &worker{kubelet: k, uid: pod.UID, ending: newLatch(), vanished: newLatch()}
	w.latest.Store(pod)
	return w
}

// pod returns the newest version seen; the last one if the object has vanished.
func (w *worker) pod() *corev1.Pod { return w.latest.Load() }

func (w *worker) observe(pod *corev1.Pod) {
	w.latest.Store(pod)
	if pod.DeletionTimestamp != nil {
		w.ending.close()
	}
}

func (w *worker) vanish() {
	w.vanished.close()
	w.ending.close()
}

// run is the life of a pod. A step fails only when ctx ends.
func (w *worker) run(ctx context.Context) {
	steps := []func(context.Context) error{
		w.live, w.stopContainers, w.reportEnd, // skipped by a pod that has ended
		w.unmountAll, w.deleteObject, w.removeFolder,
	}
	if terminal(w.pod()) {
		steps = steps[3:]
	}
	for _, step := range steps {
		if step(ctx) != nil {
			return
		}
	}
}

func terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// live mounts the volumes, runs the containers and publishes the volumes again
// from time to time. It returns when the containers ended by themselves or are to end.
func (w *worker) live(ctx context.Context) error {
	w.started = runningSince(w.pod())
	if w.ending.closed() {
		return nil
	}
	pause := time.Duration(0) // kubelet publishes at once what it finds mounted at its own start
	if w.started.IsZero() {
		if !w.mountAll(ctx, w.ending.c) {
			return ctx.Err()
		}
		if err := w.reportRunning(ctx); err != nil {
			return err
		}
		pause = w.resync()
	}

	life, cancel := w.containerLife(ctx)
	defer cancel()
	for sleep(life, pause) == nil {
		if w.republishes() {
			w.mountAll(ctx, life.Done())
		}
		pause = w.resync()
	}
	return ctx.Err()
}

// containerLife ends when the containers end by themselves or are asked to.
func (w *worker) containerLife(ctx context.Context) (context.Context, context.CancelFunc) {
	var life context.Context
	var cancel context.CancelFunc
	if d := w.runFor(); d > 0 {
		life, cancel = context.WithDeadline(ctx, w.started.Add(d))
	} else {
		life, cancel = context.WithCancel(ctx)
	}
	w.running.Go(func() {
		select {
		case <-w.ending.c:
			cancel()
		case <-life.Done():
		}
	})
	return life, cancel
}

// stopContainers waits until preStop is through, or until the containers are killed
// because the object was deleted by force. The API server announces a forced delete
// with a grace period of zero right before the object vanishes.
func (w *worker) stopContainers(ctx context.Context) error {
	if w.started.IsZero() || !w.ending.closed() {
		return nil
	}
	patience := killGrace
	grace := w.pod().DeletionGracePeriodSeconds
	forced := w.vanished.closed() || (grace != nil && *grace == 0)
	if !forced {
		deadline := time.Now().Add(preStop(w.pod()))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(deadline)):
			return nil
		case <-w.vanished.c:
			patience = min(killGrace, time.Until(deadline))
		}
	}
	return sleep(ctx, patience)
}

// removeFolder removes what is left of the pod on disk.
func (w *worker) removeFolder(ctx context.Context) error {
	if err := sleep(ctx, housekeeping); err != nil {
		return err
	}
	if err := os.RemoveAll(w.podDir()); err != nil {
		w.Log.Error("pod folder not removed", "uid", w.uid, "error", err)
	}
	w.Log.Info("pod folder removed", "uid", w.uid)
	return nil
}

func (w *worker) podDir() string { return filepath.Join(w.Dir, "pods", string(w.uid)) }

// sleep waits for d, or returns the error of ctx when that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// retry calls f with kubelet's pauses until it succeeds. It returns false when
// stop was closed or ctx ended first; a call under way is not cut short by stop.
func retry(ctx context.Context, stop <-chan struct{}, f func() error) bool {
	for pause := firstBackoff; ; pause = min(2*pause, maxBackoff) {
		if f() == nil {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-stop:
			return false
		case <-time.After(pause):
		}
	}
}
