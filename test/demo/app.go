package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-csi/leasehold/test/bed"
)

// What the ends of an app's things are called.
const (
	containerStopped = "container stopped"
	volumeUnmounted  = "volume unmounted"
	leaseGone        = "lease gone"
	tokenGone        = "token gone"
	roleGone         = "database role gone"
)

// app is one pod of the story.
type app struct {
	s   *story
	pod *corev1.Pod // nil until it is made
	// asked is when the pod was asked for; running, how long after that it ran.
	asked   time.Time
	running time.Duration
	// mark is the end of the audit log before there was the pod.
	mark bed.AuditMark
	// files holds what was mounted at first, by name.
	files map[string]string
	// logins is how many of its own the container was seen to make.
	logins int
}

// newApp is for a pod that is made right after it.
func (s *story) newApp() (*app, error) {
	mark, err := s.bed.AuditMark()
	return &app{s: s, mark: mark, asked: time.Now()}, err
}

// start waits until the pod runs, and reads what it has mounted.
func (a *app) start(ctx context.Context) error {
	err := await(ctx, a.s.printer, "pod "+a.pod.Name+" to run", func(ctx context.Context) error {
		pod, err := a.s.bed.Client().CoreV1().Pods(namespace).Get(ctx, a.pod.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if pod.Status.Phase == corev1.PodRunning {
			return nil
		}
		return fmt.Errorf("it is %s; %s", pod.Status.Phase, a.lastWarning(ctx))
	})
	if err != nil {
		return err
	}
	a.running = time.Since(a.asked)
	if a.files, err = a.read(); err != nil {
		return err
	}
	a.s.done("pod "+a.pod.Name+" is Running", seconds(a.running)+" after it was asked for")
	return nil
}

// lastWarning is the newest complaint about the pod.
func (a *app) lastWarning(ctx context.Context) string {
	events, err := a.s.bed.Client().CoreV1().Events(namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "type=Warning,involvedObject.uid=" + string(a.pod.UID),
	})
	if err != nil {
		return "its events cannot be read: " + err.Error()
	}
	if len(events.Items) == 0 {
		return "no event warns"
	}
	newest := slices.MaxFunc(events.Items, func(x, y corev1.Event) int { return x.LastTimestamp.Compare(y.LastTimestamp.Time) })
	return newest.Reason + ": " + newest.Message
}

// volumeDir is kubelet's folder of the pod's volume.
func (a *app) volumeDir() string {
	return filepath.Join(a.s.bed.State().KubeletDir, "pods", string(a.pod.UID), "volumes", "kubernetes.io~csi", a.s.example.volume())
}

// path is where the node has a mounted file.
func (a *app) path(name string) string { return filepath.Join(a.volumeDir(), "mount", name) }

func (a *app) read() (map[string]string, error) {
	files := map[string]string{}
	for _, name := range []string{userFile, passwordFile} {
		content, err := os.ReadFile(a.path(name))
		if err != nil {
			return nil, fmt.Errorf("reading a mounted file: %w", err)
		}
		files[name] = string(content)
	}
	return files, nil
}

// sameFiles fails when a mounted file has changed.
func (a *app) sameFiles() error {
	now, err := a.read()
	if err != nil {
		return err
	}
	for name, content := range now {
		if content != a.files[name] {
			return fmt.Errorf("file %s has changed since the pod started", name)
		}
	}
	return nil
}

// logIn proves that the mounted credentials work now, and says who proved it. A container of the full form logs in every
// second by itself and writes a line about it; the light form has none, and the story does it in its place.
func (a *app) logIn(ctx context.Context) (string, error) {
	if a.s.form == bed.Light {
		if err := a.s.bed.CanLogIn(ctx, a.files[userFile], a.files[passwordFile]); err != nil {
			return "", fmt.Errorf("logging in with what is mounted: %w", err)
		}
		return "the story does, with the bytes that are mounted", nil
	}
	var tries attempts
	err := await(ctx, a.s.printer, "the app to log in", func(ctx context.Context) error {
		log, err := a.s.bed.Client().CoreV1().Pods(namespace).GetLogs(a.pod.Name, &corev1.PodLogOptions{}).DoRaw(ctx)
		if err != nil {
			return fmt.Errorf("reading its log: %w", err)
		}
		if tries = countAttempts(string(log)); tries.ok == a.logins && tries.failed == 0 {
			return fmt.Errorf("its log has %s that worked and %d that failed", count(tries.ok, "login"), tries.failed)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if tries.failed > 0 {
		return "", fmt.Errorf("the app's log has %s that worked and %d that failed", count(tries.ok, "login"), tries.failed)
	}
	a.logins = tries.ok
	return fmt.Sprintf("the app does, in its container: %s so far, none failed", count(tries.ok, "login")), nil
}

// made counts what Vault was asked for since before there was the pod.
func (a *app) made() (requests, error) {
	entries, err := a.s.bed.AuditSince(a.mark)
	if err != nil {
		return requests{}, err
	}
	return countRequests(entries, a.s.example.secret), nil
}

// things are what is there because of the app, in the order in which it may go.
func (a *app) things() []thing {
	things := []thing{
		{containerStopped, "pod status", a.containerRuns},
		{volumeUnmounted, "kubelet's folder", func(context.Context) (bool, error) {
			_, err := os.Lstat(filepath.Join(a.volumeDir(), "mount"))
			if errors.Is(err, fs.ErrNotExist) {
				return false, nil
			}
			return true, err
		}},
		{tokenGone, "Vault: auth/token/accessors", func(ctx context.Context) (bool, error) {
			tokens, err := a.s.bed.LoginTokens(ctx)
			return len(tokens) > 0, err
		}},
	}
	if a.s.bare {
		return things
	}
	return append(things,
		thing{leaseGone, "Vault: sys/leases/lookup", func(ctx context.Context) (bool, error) {
			leases, err := a.s.bed.VaultLeases(ctx, credsPath)
			return len(leases) > 0, err
		}},
		thing{roleGone, "PostgreSQL: pg_roles", func(ctx context.Context) (bool, error) {
			roles, err := a.s.bed.DatabaseRoles(ctx)
			return len(roles) > 0, err
		}},
	)
}

func (a *app) containerRuns(ctx context.Context) (bool, error) {
	pod, err := a.s.bed.Client().CoreV1().Pods(namespace).Get(ctx, a.pod.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	for _, status := range pod.Status.ContainerStatuses {
		if status.State.Running != nil {
			return true, nil
		}
	}
	return false, nil
}
