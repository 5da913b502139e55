// Package fleettest is an API server that runs commands in the provider's pods, as the real one does at the wire: over WebSockets and SPDY,
// with the server's side of the Kubernetes libraries.
package fleettest

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/httpstream/spdy"
	"k8s.io/apimachinery/pkg/util/httpstream/wsstream"
	"k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"sigs.k8s.io/yaml"
)

// What the libraries log is of connections that tests have ended.
func init() { klog.SetSlogLogger(slog.New(slog.DiscardHandler)) }

// Namespace is that of the pods.
const Namespace = "leasehold"

// Command runs in a pod and returns its exit code. The test waits for it at its end.
type Command func(args []string, stdout, stderr io.Writer) int

// Server is such an API server. Its fields may be set, and nodes added, before its first request.
type Server struct {
	// Wanted is on how many nodes the DaemonSet is to run; 0 for as many as there are.
	Wanted int
	// Refuse answers a request in the API server's place, and returns whether it did; nil for none.
	Refuse func(w http.ResponseWriter, r *http.Request) bool

	url      string
	set      appsv1.DaemonSet
	pods     []*corev1.Pod
	commands map[string]Command
}

// manifest is that of the provider's DaemonSet, seen from where the tests are that use this package: its pods are as it says.
const manifest = "../../manifests/base/daemonset.yaml"

// New returns a Server that ends with the test.
func New(t *testing.T) *Server {
	t.Helper()
	s := &Server{commands: map[string]Command{}}
	text, err := os.ReadFile(manifest)
	if err == nil {
		err = yaml.Unmarshal(text, &s.set)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.set.UID = "uid-of-the-set"
	var running sync.WaitGroup
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/namespaces/"+Namespace+"/pods", func(w http.ResponseWriter, r *http.Request) {
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
		for _, pod := range s.pods {
			if selected(r, pod.Labels) {
				list.Items = append(list.Items, *pod)
			}
		}
		answer(w, http.StatusOK, list)
	})
	mux.HandleFunc("GET /apis/apps/v1/namespaces/"+Namespace+"/daemonsets", func(w http.ResponseWriter, r *http.Request) {
		list := appsv1.DaemonSetList{TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSetList"}}
		if wanted := max(s.Wanted, len(s.pods)); wanted > 0 && selected(r, s.set.Labels) {
			set := s.set
			set.Status.DesiredNumberScheduled = int32(wanted)
			list.Items = []appsv1.DaemonSet{set}
		}
		answer(w, http.StatusOK, list)
	})
	mux.HandleFunc("/api/v1/namespaces/"+Namespace+"/pods/{pod}/exec", func(w http.ResponseWriter, r *http.Request) {
		running.Add(1)
		defer running.Done()
		query := r.URL.Query()
		if query.Get("container") != s.set.Spec.Template.Spec.Containers[0].Name || query["command"][0] != "/leasehold" {
			t.Errorf("a command is to run that is not the provider's: %v", query)
		}
		run := func(stdout, stderr io.Writer) int {
			return s.commands[r.PathValue("pod")](query["command"][1:], stdout, stderr)
		}
		if wsstream.IsWebSocketRequest(r) {
			overWebSocket(w, r, run)
		} else {
			overSPDY(w, r, run)
		}
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.Refuse == nil || !s.Refuse(w, r) {
			mux.ServeHTTP(w, r)
		}
	}))
	s.url = server.URL
	t.Cleanup(func() {
		server.Close()
		running.Wait()
	})
	return s
}

// selected tells whether a list of what has these labels is asked for.
func selected(r *http.Request, has map[string]string) bool {
	selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	return err == nil && selector.Matches(labels.Set(has))
}

// Add adds a node with a pod that runs, in which command answers. The pod may be changed before the first request.
func (s *Server) Add(node string, command Command) *corev1.Pod {
	template := s.set.Spec.Template.DeepCopy()
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec, Status: corev1.PodStatus{
		Phase: corev1.PodRunning,
		ContainerStatuses: []corev1.ContainerStatus{
			{Name: template.Spec.Containers[0].Name, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
		},
	}}
	pod.Namespace, pod.Name, pod.Spec.NodeName = Namespace, "pod-of-"+node, node
	pod.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(&s.set, appsv1.SchemeGroupVersion.WithKind("DaemonSet"))}
	s.pods = append(s.pods, pod)
	s.commands[pod.Name] = command
	return pod
}

// Config reaches the server.
func (s *Server) Config() *rest.Config { return &rest.Config{Host: s.url} }

// Kubeconfig returns the path of a file that leads to the server.
func (s *Server) Kubeconfig(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"users":[{"name":"u","user":{}}],"clusters":[{"name":"c","cluster":{"server":%q}}]}`, s.url)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Forbid answers as the API server does when a caller lacks a right.
func Forbid(w http.ResponseWriter, what string) {
	answer(w, http.StatusForbidden, metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
		Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: what,
	})
}

func answer(w http.ResponseWriter, code int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object)
}

func overWebSocket(w http.ResponseWriter, r *http.Request, run func(stdout, stderr io.Writer) int) {
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{remotecommand.StreamProtocolV5Name: {Binary: true, Channels: []wsstream.ChannelType{
		remotecommand.StreamStdIn:  wsstream.IgnoreChannel,
		remotecommand.StreamStdOut: wsstream.WriteChannel,
		remotecommand.StreamStdErr: wsstream.WriteChannel,
		remotecommand.StreamErr:    wsstream.WriteChannel,
	}}})
	_, streams, err := conn.Open(w, r)
	if err != nil {
		return // the client went
	}
	defer func() { _ = conn.Close() }()
	code := run(streams[remotecommand.StreamStdOut], streams[remotecommand.StreamStdErr])
	_, _ = streams[remotecommand.StreamErr].Write(ended(code))
}

func overSPDY(w http.ResponseWriter, r *http.Request, run func(stdout, stderr io.Writer) int) {
	if _, err := httpstream.Handshake(r, w, []string{remotecommand.StreamProtocolV4Name}); err != nil {
		return // it has answered
	}
	made := make(chan httpstream.Stream, 3)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(stream httpstream.Stream, _ <-chan struct{}) error {
		made <- stream
		return nil
	})
	if conn == nil {
		return
	}
	defer func() { _ = conn.Close() }()
	streams := map[string]httpstream.Stream{}
	for len(streams) < cap(made) {
		select {
		case stream := <-made:
			streams[stream.Headers().Get(corev1.StreamType)] = stream
		case <-conn.CloseChan():
			return
		}
	}
	code := run(streams[corev1.StreamTypeStdout], streams[corev1.StreamTypeStderr])
	_, _ = streams[corev1.StreamTypeError].Write(ended(code))
	for _, stream := range streams {
		_ = stream.Close()
	}
}

// ended tells of a command's exit code as kubelet does.
func ended(code int) []byte {
	status := metav1.Status{Status: metav1.StatusSuccess}
	if code != 0 {
		status = metav1.Status{Status: metav1.StatusFailure, Reason: remotecommand.NonZeroExitCodeReason, Details: &metav1.StatusDetails{
			Causes: []metav1.StatusCause{{Type: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(code)}},
		}}
	}
	text, err := json.Marshal(status)
	if err != nil {
		panic(err)
	}
	return text
}
