//nolint:forbidigo // sleeps inside synctest bubbles only
package pods_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/kube"
	"github.com/leasehold-csi/leasehold/internal/pods"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// patience bounds what takes no time unless something is broken.
const patience = 30 * time.Second

// live is a node whose Judge hears from the kernel: outside of synctest's bubbles, whose clocks would stand still meanwhile. Its
// own clock moves by hand. A pod that the API server does not have is over.
type live struct {
	t       *testing.T
	client  *fake.Clientset
	dir     string
	clock   atomic.Int64
	judge   *pods.Judge
	changed chan string // the pods whose news are in the cache
	woken   chan string // the pods of which a folder was removed
	told    bytes.Buffer
}

func goLive(t *testing.T, objects ...*corev1.Pod) *live {
	t.Helper()
	l := &live{t: t, client: fake.NewSimpleClientset(), dir: t.TempDir(), changed: make(chan string, 100), woken: make(chan string, 1000)}
	for _, pod := range objects {
		if err := l.client.Tracker().Add(pod); err != nil {
			t.Fatal(err)
		}
	}
	l.clock.Store(int64(time.Hour))
	cluster := kube.New(kube.Config{Client: l.client, Node: node, Log: slog.New(slog.DiscardHandler)})
	l.judge = pods.New(pods.Config{
		Cluster: cluster, KubeletDir: l.dir, Log: slog.New(slog.NewTextHandler(&l.told, nil)),
		Now: func() grant.Instant { return grant.Instant(l.clock.Load()) },
	})
	synced := make(chan string, 1)
	cluster.OnSynced(func() { synced <- "" })
	cluster.OnPod(func(uid string) { l.changed <- uid })
	l.judge.OnUnmount(func(uid string) { l.woken <- uid })
	background(t, cluster.Run)
	stop := background(t, l.judge.Run)
	t.Cleanup(func() {
		stop()
		if open, _ := inotify(t); open != 0 {
			t.Errorf("%d instances of inotify are left", open)
		}
	})
	receive(t, synced)
	first := l.mount("first", "creds")
	eventually(t, "watched anything", func() bool {
		l.expect("mounted", &first, false)
		_, watches := inotify(t)
		return watches == 1
	})
	l.mustUnmount(first)
	receive(t, l.woken)
	return l
}

// background runs something until the end of the test, or until stop is called.
func background(t *testing.T, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func receive(t *testing.T, from <-chan string) string {
	t.Helper()
	select {
	case what := <-from:
		return what
	case <-time.After(patience):
		t.Fatal("nothing came")
		return ""
	}
}

func eventually(t *testing.T, what string, met func() bool) {
	t.Helper()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for limit := time.After(patience); !met(); {
		select {
		case <-again.C:
		case <-limit:
			t.Fatalf("never %s", what)
		}
	}
}

// inotify counts this process's instances of inotify and their watches, as the kernel knows them.
func inotify(t *testing.T) (open, watches int) {
	t.Helper()
	descriptors, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range descriptors {
		if target, _ := os.Readlink("/proc/self/fd/" + d.Name()); target != "anon_inode:inotify" {
			continue
		}
		info, err := os.ReadFile("/proc/self/fdinfo/" + d.Name())
		if errors.Is(err, fs.ErrNotExist) { // it was closed meanwhile
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		open++
		watches += bytes.Count(info, []byte("inotify wd:"))
	}
	return open, watches
}

func (l *live) watches(when string, want int) {
	l.t.Helper()
	if _, got := inotify(l.t); got != want {
		l.t.Errorf("%s: %d watches, want %d", when, got, want)
	}
}

// mount makes kubelet's folder of a volume and returns the grant of it.
func (l *live) mount(uid, volume string) grant.Grant {
	l.t.Helper()
	g := grant.Grant{Volume: spec.VolumeKey{PodUID: uid, Volume: volume}, Pod: spec.Pod{Namespace: "shop", Name: uid, UID: uid}}
	if err := os.MkdirAll(l.folder(g), 0o750); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.folder(g), "vol_data.json"), []byte("{}"), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return g
}

func (l *live) folder(g grant.Grant) string {
	return filepath.Join(l.dir, "pods", g.Volume.PodUID, "volumes", "kubernetes.io~csi", g.Volume.Volume)
}

// unmount removes what kubelet removes, in its order.
func (l *live) unmount(g grant.Grant) error {
	return errors.Join(os.Remove(filepath.Join(l.folder(g), "vol_data.json")), os.Remove(l.folder(g)))
}

func (l *live) mustUnmount(g grant.Grant) {
	l.t.Helper()
	if err := l.unmount(g); err != nil {
		l.t.Fatal(err)
	}
}

func (l *live) expect(when string, g *grant.Grant, ended bool) {
	l.t.Helper()
	v := l.judge.Ended(l.t.Context(), *g)
	g.FolderSeen = g.FolderSeen || v.FolderSeen
	if v.Ended != ended {
		l.t.Errorf("%s: ended %v (%s), want %v", when, v.Ended, v.Reason, ended)
	}
}

func (l *live) pass(d time.Duration) { l.clock.Add(int64(d)) }

func podOf(uid string, phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: uid, UID: types.UID(uid)},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{Phase: phase},
	}
}

func TestUnmountWakes(t *testing.T) {
	l := goLive(t, podOf("running", corev1.PodRunning), podOf("succeeded", corev1.PodSucceeded))
	running, succeeded, gone, other := l.mount("running", "creds"), l.mount("succeeded", "creds"), l.mount("gone", "creds"), l.mount("gone", "more")
	for _, g := range []*grant.Grant{&running, &succeeded, &gone, &other, &gone} {
		l.expect("mounted", g, false)
	}
	l.watches("one pod running, three volumes of pods that are over", 3)

	// The kernel tells in the order of what happened: what should not wake comes first.
	l.mustUnmount(running)
	l.mustUnmount(succeeded)
	if uid := receive(t, l.woken); uid != "succeeded" {
		t.Errorf("woken: %s, want the pod that ended", uid)
	}
	l.expect("unmounted", &succeeded, true)
	l.watches("one is unmounted", 2)
	l.mustUnmount(other)
	if uid := receive(t, l.woken); uid != "gone" {
		t.Errorf("woken: %s, want the pod that is gone", uid)
	}
	l.expect("unmounted", &other, true)
	l.expect("the other volume is unmounted", &gone, false)
	l.watches("two are unmounted", 1)
	l.mustUnmount(gone)
	receive(t, l.woken)
	l.expect("unmounted", &gone, true)
	l.watches("all are unmounted", 0)
}

func TestUnmountBeforeTheWatch(t *testing.T) {
	l := goLive(t)
	g := l.mount("gone", "creds")
	g.FolderSeen = true
	l.mustUnmount(g)
	l.expect("unmounted before it was watched", &g, true)
	l.watches("unmounted", 0)
	if len(l.woken) != 0 {
		t.Error("woken by a folder that was not watched")
	}
}

// However a removal and a look fall together, the one sees the other, or the pod is woken.
func TestUnmountBesideTheLook(t *testing.T) {
	l := goLive(t)
	for round := range 300 {
		g := l.mount(fmt.Sprintf("pod-%d", round), "creds")
		g.FolderSeen = true
		removed := make(chan error, 1)
		go func() { removed <- l.unmount(g) }()
		v := l.judge.Ended(t.Context(), g)
		if err := <-removed; err != nil {
			t.Fatal(err)
		}
		for woken := ""; !v.Ended && woken != g.Volume.PodUID; {
			woken = receive(t, l.woken) // or an earlier pod, whose look saw the removal too
		}
		l.expect("unmounted", &g, true)
	}
	l.watches("all are unmounted", 0)
}

func TestWatchEndsWithItsReason(t *testing.T) {
	t.Run("the containers are dead for long", func(t *testing.T) {
		l := goLive(t, podOf("succeeded", corev1.PodSucceeded))
		g := l.mount("succeeded", "creds")
		l.expect("over", &g, false)
		l.watches("over", 1)
		l.pass(5 * time.Minute)
		for range 2 {
			l.expect("over for five minutes", &g, true)
			l.watches("over for five minutes", 0)
		}
	})
	t.Run("the pod is there after all", func(t *testing.T) {
		l := goLive(t)
		g := l.mount("late", "creds")
		l.expect("not in the API", &g, false)
		l.watches("not in the API", 1)
		if err := l.client.Tracker().Add(podOf("late", corev1.PodRunning)); err != nil {
			t.Fatal(err)
		}
		receive(t, l.changed)
		l.expect("running", &g, false)
		l.watches("running", 0)
	})
	t.Run("its object goes and the wait goes on", func(t *testing.T) {
		l := goLive(t, podOf("failed", corev1.PodFailed))
		g := l.mount("failed", "creds")
		l.expect("over", &g, false)
		receive(t, l.changed)
		if err := l.client.CoreV1().Pods("shop").Delete(t.Context(), "failed", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		receive(t, l.changed)
		l.expect("gone", &g, false)
		l.watches("gone", 1)
	})
	t.Run("nobody asks any more", func(t *testing.T) {
		l := goLive(t)
		g := l.mount("forgotten", "creds")
		l.expect("over", &g, false)
		l.pass(11 * time.Minute)
		another := l.mount("another", "creds")
		l.expect("over", &another, false)
		l.watches("only another is asked for", 1)
		l.mustUnmount(g)
		l.mustUnmount(another)
		if uid := receive(t, l.woken); uid != "another" {
			t.Errorf("woken: %s, want another", uid)
		}
	})
}

func TestWatchStaysInItsPlace(t *testing.T) {
	outside := t.TempDir()
	l := goLive(t)
	for _, hostile := range []spec.VolumeKey{
		{PodUID: "..", Volume: "creds"}, {PodUID: "../gone", Volume: "creds"}, {PodUID: "", Volume: "creds"},
		{PodUID: "gone", Volume: ".."}, {PodUID: "gone", Volume: "a/b"}, {PodUID: "gone", Volume: "."}, {PodUID: "gone", Volume: ""},
	} {
		g := l.mount(hostile.PodUID, hostile.Volume) // so that there would be something to watch
		l.judge.Ended(t.Context(), g)
		l.watches(fmt.Sprintf("%q", hostile), 0)
	}

	g := l.mount("gone", "creds")
	l.mustUnmount(g)
	if err := os.Symlink(outside, l.folder(g)); err != nil {
		t.Fatal(err)
	}
	next := l.mount("next", "creds")
	l.expect("mounted", &next, false)
	l.expect("a link to another folder", &g, false)
	if err := os.Remove(outside); err != nil { // wakes nobody, or it would be told before the next
		t.Fatal(err)
	}
	l.mustUnmount(next)
	if uid := receive(t, l.woken); uid != "next" {
		t.Errorf("woken: %s, want the next pod", uid)
	}
	if err := os.Remove(l.folder(g)); err != nil {
		t.Fatal(err)
	}
	if uid := receive(t, l.woken); uid != "gone" {
		t.Errorf("woken: %s, want the pod that is gone", uid)
	}
	l.expect("the link is removed", &g, true)
}

func TestNoInotifyBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.expect("running", false)
		b.remove()
		b.expect("gone", false)
		if open, _ := inotify(t); open != 0 {
			t.Errorf("%d instances of inotify, though nobody would read them", open)
		}
	})
}

// A process in a user namespace of its own sets its own limits of inotify.
func TestLimitsOfInotify(t *testing.T) {
	const variable = "LEASEHOLD_TEST_INOTIFY_LIMIT"
	tests := map[string]func(t *testing.T, set func(string)){
		"max_inotify_instances": testInstances,
		"max_inotify_watches":   testWatches,
	}
	if name := os.Getenv(variable); name != "" {
		tests[name](t, func(limit string) {
			if err := os.WriteFile("/proc/sys/user/"+name, []byte(limit), 0); err != nil {
				t.Skip(err)
			}
		})
		return
	}
	for name := range tests {
		t.Run(name, func(t *testing.T) {
			again := exec.Command(os.Args[0], "-test.run=^TestLimitsOfInotify$", "-test.v", "-test.timeout=1m")
			again.Env = append(os.Environ(), variable+"="+name)
			again.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER,
				UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
			}
			out, err := again.CombinedOutput()
			_, ran := errors.AsType[*exec.ExitError](err)
			switch {
			case err != nil && !ran, bytes.Contains(out, []byte("--- SKIP")):
				t.Skipf("no user namespace can be had: %v\n%s", err, out)
			case err != nil:
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func testInstances(t *testing.T, set func(string)) {
	set("0")
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		var told bytes.Buffer
		boot := time.Now().Add(-time.Hour)
		b.judge = pods.New(pods.Config{
			Cluster: b.cluster, KubeletDir: b.dir, Log: slog.New(slog.NewTextHandler(&told, nil)),
			Now: func() grant.Instant { return grant.Instant(time.Since(boot)) },
		})
		woken := make(chan string, 1)
		b.judge.OnUnmount(func(uid string) { woken <- uid })
		background(t, b.judge.Run)

		b.remove()
		if v := b.expect("gone", false); v.Check != 50*time.Millisecond {
			t.Errorf("check in %v, want 50ms", v.Check)
		}
		time.Sleep(10 * time.Minute)
		b.expect("still mounted", false)
		expectOnce(t, told.String(), "fs.inotify.max_user_instances")

		set("1")
		time.Sleep(time.Minute)
		for watches := 0; watches == 0; _, watches = inotify(t) { // no sleep: the bubble's clock stands still while inotify is read
			runtime.Gosched()
			b.judge.Ended(t.Context(), b.grant)
		}
		b.unmount()
		if got := <-woken; got != uid {
			t.Errorf("woken: %s", got)
		}
	})
}

func testWatches(t *testing.T, set func(string)) {
	set("1")
	l := goLive(t)
	lucky, second, third := l.mount("lucky", "creds"), l.mount("second", "creds"), l.mount("third", "creds")
	for _, g := range []*grant.Grant{&lucky, &second, &third} {
		l.expect("mounted", g, false)
	}
	l.watches("as many as may be", 1)
	expectOnce(t, l.told.String(), "fs.inotify.max_user_watches")
	l.mustUnmount(second)
	l.expect("found by looking", &second, true)

	set("2")
	l.expect("mounted", &third, false)
	l.watches("one more may be", 2)
	l.mustUnmount(third)
	if uid := receive(t, l.woken); uid != "third" {
		t.Errorf("woken: %s, want the third", uid)
	}
}

func expectOnce(t *testing.T, told, limit string) {
	t.Helper()
	if strings.Count(told, "\n") != 1 || !strings.Contains(told, "level=WARN") || !strings.Contains(told, limit) {
		t.Errorf("told, want one warning that names %s:\n%s", limit, told)
	}
}
