package kubelet

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// RunForAnnotation gives the duration, such as 5s, after which a pod's
	// containers end by themselves; without it they run until the pod is deleted.
	RunForAnnotation = "lightnode/run-for"
	// ExitCodeAnnotation gives the exit code of containers that end by
	// themselves; without it they exit with 0.
	ExitCodeAnnotation = "lightnode/exit-code"

	// Exit codes of containers that did not end by themselves.
	exitTerminated   = 143
	exitNeverStarted = 137
)

// runFor returns how long the containers run; zero means until they are stopped.
func (w *worker) runFor() time.Duration {
	text, ok := w.pod().Annotations[RunForAnnotation]
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		w.Log.Error("annotation ignored", "uid", w.uid, "error", err)
	}
	return d
}

// runningSince reads back when the containers started; zero when they did not.
func runningSince(pod *corev1.Pod) time.Time {
	if pod.Status.Phase != corev1.PodRunning {
		return time.Time{}
	}
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Running != nil {
			return c.State.Running.StartedAt.Time
		}
	}
	// A folder without an API object: containers may run, nobody knows since when.
	return time.Now()
}

// preStop returns how long the slowest preStop handler takes, at most the grace period.
func preStop(pod *corev1.Pod) time.Duration {
	var longest int64
	for _, c := range pod.Spec.Containers {
		if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
			longest = max(longest, handlerSeconds(c.Lifecycle.PreStop))
		}
	}
	if grace := pod.DeletionGracePeriodSeconds; grace != nil {
		longest = min(longest, *grace)
	}
	return time.Duration(longest) * time.Second
}

func handlerSeconds(h *corev1.LifecycleHandler) int64 {
	if h.Sleep != nil {
		return h.Sleep.Seconds
	}
	if h.Exec != nil && len(h.Exec.Command) == 2 && h.Exec.Command[0] == "sleep" {
		seconds, err := strconv.ParseInt(h.Exec.Command[1], 10, 32)
		if err == nil {
			return seconds
		}
	}
	return 0
}

// reportRunning starts the containers and says so.
func (w *worker) reportRunning(ctx context.Context) error {
	w.started = time.Now()
	started := metav1.NewTime(w.started)
	return w.report(ctx, corev1.PodRunning, corev1.ConditionTrue, "", corev1.ContainerState{
		Running: &corev1.ContainerStateRunning{StartedAt: started},
	})
}

// reportEnd writes the terminal phase of an object that is still there.
func (w *worker) reportEnd(ctx context.Context) error {
	if w.vanished.closed() {
		return ctx.Err()
	}
	code := w.exitCode()
	ended := &corev1.ContainerStateTerminated{ExitCode: code, Reason: "Completed", FinishedAt: metav1.Now()}
	phase, reason := corev1.PodSucceeded, "PodCompleted"
	if code != 0 {
		ended.Reason, phase, reason = "Error", corev1.PodFailed, "PodFailed"
	}
	if !w.started.IsZero() {
		ended.StartedAt = metav1.NewTime(w.started)
	}
	return w.report(ctx, phase, corev1.ConditionFalse, reason, corev1.ContainerState{Terminated: ended})
}

// exitCode tells how the containers ended. One that ends at the moment it is told
// to counts as told to.
func (w *worker) exitCode() int32 {
	switch {
	case w.started.IsZero():
		return exitNeverStarted
	case w.ending.closed():
		return exitTerminated
	}
	text, ok := w.pod().Annotations[ExitCodeAnnotation]
	if !ok {
		return 0
	}
	code, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		w.Log.Error("annotation ignored", "uid", w.uid, "error", err)
	}
	return int32(code)
}

// report writes the pod's status: phase, readiness and one state for all containers.
func (w *worker) report(ctx context.Context, phase corev1.PodPhase, ready corev1.ConditionStatus, reason string, state corev1.ContainerState) error {
	pod := w.pod()
	now := metav1.Now()
	status := corev1.PodStatus{Phase: phase, StartTime: pod.Status.StartTime}
	if status.StartTime == nil {
		status.StartTime = &now
	}
	condition := func(kind corev1.PodConditionType, s corev1.ConditionStatus, reason string) {
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: kind, Status: s, Reason: reason, LastTransitionTime: now})
	}
	condition(corev1.PodInitialized, corev1.ConditionTrue, "")
	condition(corev1.ContainersReady, ready, reason)
	condition(corev1.PodReady, ready, reason)
	running := state.Running != nil
	for _, c := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, State: state, Ready: running, Started: &running,
		})
	}
	return w.patchStatus(ctx, pod, status)
}

// patchStatus writes status until the API server takes it or has no such pod any more.
func (w *worker) patchStatus(ctx context.Context, pod *corev1.Pod, status corev1.PodStatus) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": status})
	if err != nil {
		return err
	}
	return w.write(ctx, "status", func() error {
		_, err := w.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		if err == nil {
			w.Log.Info("phase written", "uid", w.uid, "pod", pod.Namespace+"/"+pod.Name, "phase", status.Phase)
		}
		return err
	})
}

// deleteObject completes the deletion of the API object, once it is asked for, and
// waits until the object is gone.
func (w *worker) deleteObject(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-w.ending.c:
	}
	pod := w.pod()
	err := w.write(ctx, "deletion", func() error {
		return w.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: new(int64),
			Preconditions:      metav1.NewUIDPreconditions(string(pod.UID)),
		})
	})
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-w.vanished.c:
		return nil
	}
}

// write repeats one write to the API object until it is done or the object has
// vanished. Conflict means that the name belongs to another pod by now.
func (w *worker) write(ctx context.Context, what string, f func() error) error {
	if w.vanished.closed() {
		return nil
	}
	retry(ctx, w.vanished.c, func() error {
		err := f()
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		w.Log.Error("write failed", "what", what, "uid", w.uid, "error", err)
		return err
	})
	return ctx.Err()
}
