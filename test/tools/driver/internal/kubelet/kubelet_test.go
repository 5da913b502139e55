package kubelet_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	clientfake "k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	secretsstorev1 "sigs.k8s.io/secrets-store-csi-driver/apis/v1"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/test/tools/driver/internal/driver"
	"github.com/leasehold-csi/leasehold/test/tools/driver/internal/kubelet"
)

const (
	patience = time.Minute // for a condition that must come true, however slow the machine
	uid      = types.UID("11111111-2222-3333-4444-555555555555")
)

// node is a light node over the driver's real node server and fakes at the wire.
type node struct {
	t        *testing.T
	dir      string
	api      *clientfake.Clientset
	objects  client.Client
	watching chan struct{} // closed when the stand-in watches pods
	provider *provider
	sync     time.Duration
	stop     func()

	mu       sync.Mutex
	timeline []string // writes to the pod, with the state of its volume folder
	tokens   int
}

// newNode returns a node that does not run yet. It publishes again at its start only.
func newNode(t *testing.T) *node {
	t.Helper()
	// Not t.TempDir: the path of a unix socket must be short.
	dir, err := os.MkdirTemp("", "lightnode")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	n := &node{t: t, dir: dir, sync: time.Hour, provider: startProvider(t, dir)}
	yes := true
	n.api = clientfake.NewSimpleClientset(&storagev1.CSIDriver{
		ObjectMeta: metav1.ObjectMeta{Name: driver.Name},
		Spec: storagev1.CSIDriverSpec{
			PodInfoOnMount: &yes, RequiresRepublish: &yes,
			TokenRequests: []storagev1.TokenRequest{{Audience: "vault"}},
		},
	})
	n.api.PrependReactor("create", "serviceaccounts", n.issueToken)
	n.api.PrependReactor("patch", "pods", n.note)
	n.api.PrependReactor("delete", "pods", n.note)
	n.api.PrependWatchReactor("pods", n.watchPods)
	scheme, err := driver.Scheme()
	must(t, err)
	n.objects = fake.NewClientBuilder().WithScheme(scheme).WithObjects(&secretsstorev1.SecretProviderClass{
		ObjectMeta: metav1.ObjectMeta{Name: "creds", Namespace: "default"},
		Spec:       secretsstorev1.SecretProviderClassSpec{Provider: "vault", Parameters: map[string]string{"roleName": "app"}},
	}).Build()
	return n
}

func (n *node) issueToken(action clienttesting.Action) (bool, runtime.Object, error) {
	request := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenRequest)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tokens++
	request.Status = authenticationv1.TokenRequestStatus{
		Token:               strings.Join(request.Spec.Audiences, ",") + " for " + string(request.Spec.BoundObjectRef.UID),
		ExpirationTimestamp: metav1.NewTime(time.Now().Add(time.Hour)),
	}
	return true, request, nil
}

// note records a write to the pod, then lets it happen.
func (n *node) note(action clienttesting.Action) (bool, runtime.Object, error) {
	entry := action.GetVerb()
	if patch, ok := action.(clienttesting.PatchAction); ok {
		var pod corev1.Pod
		if err := json.Unmarshal(patch.GetPatch(), &pod); err != nil {
			return true, nil, err
		}
		entry = string(pod.Status.Phase)
	}
	if exists(n.volume("vol_data.json")) {
		entry += ", mounted"
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.timeline = append(n.timeline, entry)
	return false, nil, nil
}

func (n *node) watchPods(action clienttesting.Action) (bool, watch.Interface, error) {
	w, err := n.api.Tracker().Watch(action.GetResource(), action.GetNamespace())
	close(n.watching)
	return true, w, err
}

// start runs driver and stand-in until stop or the end of the test.
func (n *node) start() {
	n.t.Helper()
	ctx, cancel := context.WithCancel(n.t.Context())
	endpoint := filepath.Join(n.dir, "csi.sock")
	n.watching = make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		err := driver.Serve(ctx, driver.Config{NodeName: "light", Endpoint: endpoint, ProvidersDir: n.dir}, n.objects, n.objects)
		if err != nil {
			n.t.Error(err)
		}
	})
	running.Go(func() {
		err := kubelet.Run(ctx, kubelet.Config{
			NodeName: "light", Dir: n.dir, Endpoint: endpoint, SyncFrequency: n.sync, Client: n.api, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			n.t.Error(err)
		}
	})
	n.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	n.t.Cleanup(n.stop)
	<-n.watching
}

// newPod returns a pod of the node with one volume.
func newPod(change ...func(*corev1.Pod)) *corev1.Pod {
	yes := true
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Namespace: "default", UID: uid, Annotations: map[string]string{}},
		Spec: corev1.PodSpec{
			NodeName: "light", ServiceAccountName: "app",
			Containers: []corev1.Container{{Name: "app", Image: "app"}},
			Volumes: []corev1.Volume{{Name: "creds", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
				Driver: driver.Name, ReadOnly: &yes, VolumeAttributes: map[string]string{"secretProviderClass": "creds"},
			}}}},
		},
	}
	for _, c := range change {
		c(pod)
	}
	return pod
}

func (n *node) create(pod *corev1.Pod) {
	n.t.Helper()
	_, err := n.api.CoreV1().Pods(pod.Namespace).Create(n.t.Context(), pod, metav1.CreateOptions{})
	must(n.t, err)
}

// deleteGracefully does what the API server does first on a delete.
func (n *node) deleteGracefully(grace int64) {
	n.t.Helper()
	pod, err := n.api.CoreV1().Pods("default").Get(n.t.Context(), "app", metav1.GetOptions{})
	must(n.t, err)
	now := metav1.Now()
	pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &now, &grace
	_, err = n.api.CoreV1().Pods("default").Update(n.t.Context(), pod, metav1.UpdateOptions{})
	must(n.t, err)
}

// deleteByForce does what the API server does on a delete without grace.
func (n *node) deleteByForce() {
	n.t.Helper()
	n.deleteGracefully(0)
	pods := corev1.SchemeGroupVersion.WithResource("pods")
	must(n.t, n.api.Tracker().Delete(pods, "default", "app"))
}

func (n *node) phase() corev1.PodPhase {
	pod, err := n.api.CoreV1().Pods("default").Get(n.t.Context(), "app", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "gone"
	}
	must(n.t, err)
	return pod.Status.Phase
}

func (n *node) await(what string, condition func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(patience); !condition(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("gave up waiting: %s", what)
		}
	}
}

func (n *node) awaitPhase(want corev1.PodPhase) {
	n.t.Helper()
	n.await("phase "+string(want), func() bool { return n.phase() == want })
}

func (n *node) wantTimeline(want ...string) {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if got := strings.Join(n.timeline, "; "); got != strings.Join(want, "; ") {
		n.t.Errorf("writes to the pod: got %q, want %q", got, want)
	}
}

func (n *node) podDir() string { return filepath.Join(n.dir, "pods", string(uid)) }

// volume returns a path in the folder of the pod's volume.
func (n *node) volume(elem ...string) string {
	return filepath.Join(append([]string{n.podDir(), "volumes", "kubernetes.io~csi", "creds"}, elem...)...)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// provider is a provider whose answers the test sets.
type provider struct {
	v1alpha1.UnimplementedCSIDriverProviderServer
	mu     sync.Mutex
	calls  []*v1alpha1.MountRequest
	answer func(call int) error
}

func startProvider(t *testing.T, dir string) *provider {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(dir, "vault.sock"))
	must(t, err)
	p := &provider{answer: func(int) error { return nil }}
	server := grpc.NewServer()
	v1alpha1.RegisterCSIDriverProviderServer(server, p)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(listener); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	return p
}

func (p *provider) Mount(_ context.Context, r *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, r)
	if err := p.answer(len(p.calls)); err != nil {
		return nil, err
	}
	return &v1alpha1.MountResponse{
		ObjectVersion: []*v1alpha1.ObjectVersion{{Id: "user", Version: "1"}},
		Files:         []*v1alpha1.File{{Path: "user", Mode: 0o644, Contents: []byte("v-app")}},
	}, nil
}

// failFirst makes the first call fail with code.
func (p *provider) failFirst(code codes.Code) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer = func(call int) error {
		if call == 1 {
			return status.Error(code, "no such role")
		}
		return nil
	}
}

func (p *provider) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.calls)
}

func TestMount(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.create(newPod())
	n.start()
	n.awaitPhase(corev1.PodRunning)
	n.wantTimeline("Running, mounted")

	content, err := os.ReadFile(n.volume("mount", "user"))
	must(t, err)
	if string(content) != "v-app" {
		t.Errorf("file in the volume: got %q", content)
	}
	var data map[string]string
	text, err := os.ReadFile(n.volume("vol_data.json"))
	must(t, err)
	must(t, json.Unmarshal(text, &data))
	if data["driverName"] != driver.Name || data["specVolID"] != "creds" || !strings.HasPrefix(data["volumeHandle"], "csi-") ||
		data["nodeName"] != "light" || data["volumeLifecycleMode"] != "Ephemeral" || !strings.HasPrefix(data["attachmentID"], "csi-") {
		t.Errorf("vol_data.json: got %v", data)
	}

	request := n.provider.calls[0]
	if request.GetTargetPath() != n.volume("mount") {
		t.Errorf("target path: got %q", request.GetTargetPath())
	}
	var attributes map[string]string
	must(t, json.Unmarshal([]byte(request.GetAttributes()), &attributes))
	for key, want := range map[string]string{
		"roleName":                               "app",
		"secretProviderClass":                    "creds",
		"csi.storage.k8s.io/pod.name":            "app",
		"csi.storage.k8s.io/pod.namespace":       "default",
		"csi.storage.k8s.io/pod.uid":             string(uid),
		"csi.storage.k8s.io/serviceAccount.name": "app",
		"csi.storage.k8s.io/ephemeral":           "true",
	} {
		if attributes[key] != want {
			t.Errorf("attribute %s: got %q, want %q", key, attributes[key], want)
		}
	}
	var tokens map[string]authenticationv1.TokenRequestStatus
	must(t, json.Unmarshal([]byte(attributes["csi.storage.k8s.io/serviceAccount.tokens"]), &tokens))
	if want := "vault for " + string(uid); tokens["vault"].Token != want {
		t.Errorf("token: got %q, want %q", tokens["vault"].Token, want)
	}

	var mounted secretsstorev1.SecretProviderClassPodStatus
	must(t, n.objects.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "app-default-creds"}, &mounted))
	if mounted.Status.TargetPath != n.volume("mount") || mounted.OwnerReferences[0].UID != uid {
		t.Errorf("SecretProviderClassPodStatus: got %+v", mounted)
	}
}

func TestPublishSecret(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	_, err := n.api.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "login"}, Data: map[string][]byte{"key": []byte("value")},
	}, metav1.CreateOptions{})
	must(t, err)
	n.create(newPod(func(p *corev1.Pod) {
		p.Spec.Volumes[0].CSI.NodePublishSecretRef = &corev1.LocalObjectReference{Name: "login"}
	}))
	n.start()
	n.awaitPhase(corev1.PodRunning)
	if got := n.provider.calls[0].GetSecrets(); got != `{"key":"value"}` {
		t.Errorf("secrets: got %s", got)
	}
}

func TestRepublish(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sync = 10 * time.Millisecond
	n.create(newPod())
	n.start()
	n.await("four publishes", func() bool { return n.provider.count() >= 4 })
	n.mu.Lock()
	if n.tokens != 1 {
		t.Errorf("token requests: got %d, want 1", n.tokens)
	}
	n.mu.Unlock()

	n.deleteGracefully(30)
	n.awaitPhase("gone")
	calls := n.provider.count()
	n.await("pod folder removed", func() bool { return !exists(n.podDir()) })
	if got := n.provider.count(); got != calls {
		t.Errorf("published after the end: %d calls, then %d", calls, got)
	}
}

func TestGracefulDelete(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		preStop corev1.LifecycleHandler
		grace   int64
		takes   time.Duration
	}{
		"no preStop":                   {takes: 0, grace: 30},
		"sleep":                        {preStop: corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 1}}, grace: 30, takes: time.Second},
		"exec":                         {preStop: corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sleep", "1"}}}, grace: 30, takes: time.Second},
		"longer than the grace period": {preStop: corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 3600}}, grace: 1, takes: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.create(newPod(func(p *corev1.Pod) {
				p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &c.preStop}
			}))
			n.start()
			n.awaitPhase(corev1.PodRunning)
			asked := time.Now()
			n.deleteGracefully(c.grace)
			n.await("end of containers", func() bool { return n.phase() != corev1.PodRunning })
			if took := time.Since(asked); took < c.takes {
				t.Errorf("containers ended after %v, want at least %v", took, c.takes)
			}
			n.await("pod folder removed", func() bool { return !exists(n.podDir()) })
			n.wantTimeline("Running, mounted", "Failed, mounted", "delete")
		})
	}
}

func TestForcedDelete(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.create(newPod())
	n.start()
	n.awaitPhase(corev1.PodRunning)
	asked := time.Now()
	n.deleteByForce()
	n.await("volume folder removed", func() bool { return !exists(n.volume()) })
	if took := time.Since(asked); took < 2*time.Second {
		t.Errorf("the volume outlived the object by %v, want at least 2s", took)
	}
	n.await("pod folder removed", func() bool { return !exists(n.podDir()) })
	n.wantTimeline("Running, mounted")
}

func TestForcedDuringPreStop(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.create(newPod(func(p *corev1.Pod) {
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 3600}}}
	}))
	n.start()
	n.awaitPhase(corev1.PodRunning)
	n.deleteGracefully(3600)
	n.deleteByForce()
	n.await("volume folder removed", func() bool { return !exists(n.volume()) })
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	for exitCode, want := range map[string]corev1.PodPhase{"": corev1.PodSucceeded, "1": corev1.PodFailed} {
		t.Run(string(want), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.create(newPod(func(p *corev1.Pod) {
				p.Annotations[kubelet.RunForAnnotation] = "10ms"
				if exitCode != "" {
					p.Annotations[kubelet.ExitCodeAnnotation] = exitCode
				}
			}))
			n.start()
			n.awaitPhase(want)
			n.await("volume folder removed", func() bool { return !exists(n.volume()) })
			n.wantTimeline("Running, mounted", string(want)+", mounted")
			if !exists(n.podDir()) {
				t.Error("the pod folder went before the object")
			}
			n.deleteGracefully(0)
			n.awaitPhase("gone")
			n.await("pod folder removed", func() bool { return !exists(n.podDir()) })
		})
	}
}

func TestFailedPublish(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		code  codes.Code
		keeps bool
	}{
		"final":     {code: codes.PermissionDenied},
		"not final": {code: codes.ResourceExhausted, keeps: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.provider.failFirst(c.code)
			n.create(newPod())
			n.start()
			n.awaitPhase(corev1.PodRunning)
			n.await("event", func() bool { return n.event() != "" })
			want := `MountVolume.SetUp failed for volume "creds" : rpc error: code = ` + c.code.String() + ` desc = failed to mount secrets store objects for pod default/app, err: rpc error: code = ` + c.code.String() + ` desc = no such role`
			if got := n.event(); got != want {
				t.Errorf("event: got %q, want %q", got, want)
			}
		})
		t.Run(name+", then deleted", func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.provider.mu.Lock()
			n.provider.answer = func(int) error { return status.Error(c.code, "no such role") }
			n.provider.mu.Unlock()
			n.create(newPod())
			n.start()
			n.await("event", func() bool { return n.event() != "" })
			n.await("volume folder", func() bool { return exists(n.volume("vol_data.json")) == c.keeps })
			n.deleteGracefully(30)
			n.await("pod folder removed", func() bool { return !exists(n.podDir()) })
		})
	}
}

// event returns the message of the FailedMount event, if any.
func (n *node) event() string {
	events, err := n.api.CoreV1().Events("default").List(n.t.Context(), metav1.ListOptions{})
	must(n.t, err)
	for _, e := range events.Items {
		if e.Reason == "FailedMount" && e.Type == corev1.EventTypeWarning && e.InvolvedObject.UID == uid {
			return e.Message
		}
	}
	return ""
}

func TestRestart(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.create(newPod())
	n.start()
	n.awaitPhase(corev1.PodRunning)
	n.stop()
	if !exists(n.volume("mount", "user")) {
		t.Fatal("the volume went with the stand-in")
	}

	n.start()
	n.await("publish at the start", func() bool { return n.provider.count() == 2 })
	n.wantTimeline("Running, mounted")
	n.stop()

	n.deleteByForce()
	n.start()
	n.await("pod folder removed", func() bool { return !exists(n.podDir()) })
}

func TestNodeObjects(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start()
	n.await("node Lease", func() bool {
		lease, err := n.api.CoordinationV1().Leases("kube-node-lease").Get(t.Context(), "light", metav1.GetOptions{})
		return err == nil && lease.Spec.RenewTime != nil
	})
	created, err := n.api.CoreV1().Nodes().Get(t.Context(), "light", metav1.GetOptions{})
	must(t, err)
	if c := created.Status.Conditions; len(c) != 1 || c[0].Type != corev1.NodeReady || c[0].Status != corev1.ConditionTrue {
		t.Errorf("conditions: got %v", c)
	}
}
