//go:build e2e

package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/test/bed"
)

// hasKubelet tells whether a real kubelet runs containers, the provider's among them.
func (s *suite) hasKubelet() bool { return s.bed.State().Form != bed.Light }

// nodeRoot is the root folder of a node with a kubelet, as this process sees it.
func nodeRoot(state *bed.State) string {
	return strings.TrimSuffix(state.KubeletDir, "/var/lib/kubelet")
}

// report is what `leasehold leases -o json` says.
func (s *suite) report(ctx context.Context) (admin.Report, error) {
	var report admin.Report
	output, err := s.bed.Leases(ctx)
	if err != nil {
		return report, err
	}
	if err := json.Unmarshal(output, &report); err != nil {
		return report, fmt.Errorf("decoding what leasehold leases says: %w", err)
	}
	return report, nil
}

// providerPod returns the provider's one running pod where there is a kubelet.
func (s *suite) providerPod(ctx context.Context) (*corev1.Pod, error) {
	pods, err := s.bed.Client().CoreV1().Pods(s.bed.State().Provider.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=leasehold",
	})
	if err != nil {
		return nil, err
	}
	if len(pods.Items) != 1 {
		return nil, fmt.Errorf("there are %d pods of the provider", len(pods.Items))
	}
	pod := &pods.Items[0]
	// Whether it is Ready does not matter here: the node's controller takes that away when the node itself was busy.
	if containers := pod.Status.ContainerStatuses; pod.DeletionTimestamp == nil && len(containers) == 1 && containers[0].State.Running != nil {
		return pod, nil
	}
	return nil, fmt.Errorf("the provider's pod does not run: %+v", pod.Status)
}

// incarnation names the provider's process: it changes when that ends, for whatever reason.
func (s *suite) incarnation(t *testing.T) string {
	t.Helper()
	if !s.hasKubelet() {
		if !s.bed.Alive()["provider"] {
			t.Fatal("the provider has ended")
		}
		return strconv.Itoa(s.bed.State().Processes["provider"].PID)
	}
	var pod *corev1.Pod
	s.eventually(t, "the provider's pod runs", func(ctx context.Context) (err error) {
		pod, err = s.providerPod(ctx)
		return err
	})
	return fmt.Sprintf("%s, restarted %d times", pod.UID, pod.Status.ContainerStatuses[0].RestartCount)
}

// mounts counts the answered Mount calls of the provider's process, by gRPC code.
func (s *suite) mounts(ctx context.Context) (map[string]int, error) {
	text, err := s.metrics(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the provider's metrics: %w", err)
	}
	counts := map[string]int{}
	for line := range strings.Lines(text) {
		var code string
		labels, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if !strings.HasPrefix(labels, "leasehold_calls_total{") || !strings.Contains(labels, `/Mount"`) {
			continue
		}
		_, code, _ = strings.Cut(labels, `code="`)
		code, _, _ = strings.Cut(code, `"`)
		count, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return nil, fmt.Errorf("reading the provider's metrics: %w", err)
		}
		counts[code] = int(count)
	}
	return counts, nil
}

func (s *suite) metrics(ctx context.Context) (string, error) {
	if s.hasKubelet() {
		pod, err := s.providerPod(ctx)
		if err != nil {
			return "", err
		}
		text, err := s.bed.Client().CoreV1().RESTClient().Get().Namespace(pod.Namespace).Resource("pods").
			Name(pod.Name + ":8080").SubResource("proxy").Suffix("metrics").DoRaw(ctx)
		return string(text), err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.bed.State().Provider.HealthAddress+"/metrics", nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	return string(text), err
}

// restart does what `kubectl rollout restart` does, or restarts the process in an orderly way.
func (s *suite) restart(ctx context.Context) error {
	if !s.hasKubelet() {
		return s.bed.Restart(ctx, "provider")
	}
	provider := s.bed.State().Provider
	sets := s.bed.Client().AppsV1().DaemonSets(provider.Namespace)
	patch := fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`,
		time.Now().Format(time.RFC3339Nano))
	if _, err := sets.Patch(ctx, provider.DaemonSet, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("restarting the provider: %w", err)
	}
	return s.awaitRollOut(ctx)
}

// awaitRollOut waits until the provider runs as its DaemonSet says.
func (s *suite) awaitRollOut(ctx context.Context) error {
	provider := s.bed.State().Provider
	return s.poll(ctx, pace, func(ctx context.Context) error {
		set, err := s.bed.Client().AppsV1().DaemonSets(provider.Namespace).Get(ctx, provider.DaemonSet, metav1.GetOptions{})
		if err != nil {
			return err
		}
		status := set.Status
		if status.ObservedGeneration < set.Generation || status.UpdatedNumberScheduled < status.DesiredNumberScheduled ||
			status.NumberAvailable < status.DesiredNumberScheduled {
			return errors.New("the roll-out is not over")
		}
		return nil
	})
}

// replace ends the provider as an accident would, SIGKILL or the deletion of its pod, and waits for its successor.
func (s *suite) replace(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	if !s.hasKubelet() {
		if err := errors.Join(s.bed.Kill(ctx, "provider"), s.bed.Start(ctx, "provider")); err != nil {
			t.Fatal(err)
		}
		return
	}
	pod, err := s.providerPod(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.bed.Client().CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.eventually(t, "the provider has a new pod", func(ctx context.Context) error {
		successor, err := s.providerPod(ctx)
		if err == nil && successor.UID == pod.UID {
			err = errors.New("it is the old one")
		}
		return err
	})
}

// providerLogs is all that providers wrote while the tests ran. Its files stay open, because kubelet removes those of a pod
// that is gone.
type providerLogs struct {
	pattern string

	mu    sync.Mutex
	files map[string]*os.File
}

func followProvider(t *testing.T, b *bed.Bed) *providerLogs {
	t.Helper()
	state := b.State()
	l := &providerLogs{pattern: filepath.Join(state.Logs, "provider.log"), files: map[string]*os.File{}}
	containers := filepath.Join(state.Provider.Namespace+"_*", "*", "*.log")
	switch state.Form {
	case bed.Full:
		l.pattern = filepath.Join(state.Logs, "pods", containers)
	case bed.Kind:
		l.pattern = filepath.Join(nodeRoot(state), "var", "log", "pods", containers)
	}
	l.openNew()
	stop := make(chan struct{})
	var following sync.WaitGroup
	following.Go(func() {
		ticker := time.NewTicker(pace)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
				l.openNew()
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		following.Wait()
		for _, file := range l.files {
			_ = file.Close()
		}
	})
	return l
}

func (l *providerLogs) openNew() {
	paths, _ := filepath.Glob(l.pattern) // fails for bad patterns only
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, path := range paths {
		if l.files[path] != nil {
			continue
		}
		if file, err := os.Open(path); err == nil {
			l.files[path] = file
		}
	}
}

// text returns everything, one provider after the other in no order.
func (l *providerLogs) text() (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var text strings.Builder
	for _, file := range l.files {
		info, err := file.Stat()
		if err != nil {
			return "", err
		}
		if _, err := io.Copy(&text, io.NewSectionReader(file, 0, info.Size())); err != nil {
			return "", err
		}
	}
	return text.String(), nil
}
