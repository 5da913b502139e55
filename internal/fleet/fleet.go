// Package fleet runs a command in the provider's pod of every node, through the API server's pods/exec: the rights are those of whoever
// asks, and none of the provider's. A node is not believed: what it answers is bounded in size and time, and it is named by the API server.
package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

const (
	// selector finds the provider's pods and DaemonSets: all manifests give them this label, whatever they are named.
	selector = "app.kubernetes.io/name=leasehold"
	// container and program are the provider's in such a pod.
	container = "leasehold"
	program   = "/leasehold"

	// atOnce bounds how many nodes are asked at a time.
	atOnce = 16
	// listWithin bounds the search for the pods.
	listWithin = 30 * time.Second
	// maxErrors bounds what a node may write to its standard error, in bytes.
	maxErrors = 1 << 20
)

// Fleet is the provider on every node of a cluster.
type Fleet struct {
	// Config reaches the API server; required.
	Config *rest.Config
	// Namespace is that of the provider's pods; required.
	Namespace string
}

// Command is what the provider's program does on every node.
type Command struct {
	// Args are what follows the program's name; required.
	Args []string
	// Within bounds how long one node may take; required.
	Within time.Duration
	// MaxOutput bounds what one node may write to its standard output, in bytes; required.
	MaxOutput int
	// Told is called with each line that a node writes to its standard error, by many goroutines at a time; nil for nobody.
	Told func(node, line string)
}

// Answer is what one node said.
type Answer struct {
	// Node is the node's name; empty when it is one of those where a pod is wanted and none is.
	Node string
	// Pod is the name of its provider's pod, which may be empty likewise.
	Pod string
	// Output is what the command wrote to its standard output. It may be whole although the command failed.
	Output []byte
	// Err says why there is no answer, or that the command failed, in its own last words.
	Err error
}

// Run runs a command on every node that has a pod of the provider, or should have one, and returns what each said, in the order of their
// names. Its error says that the pods could not be found.
func (f Fleet) Run(ctx context.Context, c Command) ([]Answer, error) {
	client, err := kubernetes.NewForConfig(f.Config)
	if err != nil {
		return nil, fmt.Errorf("setting up a client of the Kubernetes API: %w", err)
	}
	pods, missing, err := f.find(ctx, client)
	if err != nil {
		return nil, err
	}
	answers := make([]Answer, len(pods))
	var asked errgroup.Group
	asked.SetLimit(atOnce)
	for i, pod := range pods {
		asked.Go(func() error {
			answers[i] = f.ask(ctx, client, &pod, c)
			return nil
		})
	}
	_ = asked.Wait()
	return append(answers, missing...), nil
}

// find returns the provider's pods, and an answer for the nodes of each DaemonSet that have none.
func (f Fleet) find(ctx context.Context, client kubernetes.Interface) ([]corev1.Pod, []Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, listWithin)
	defer cancel()
	ours := metav1.ListOptions{LabelSelector: selector}
	pods, err := client.CoreV1().Pods(f.Namespace).List(ctx, ours)
	if err != nil {
		return nil, nil, fmt.Errorf("listing the provider's pods: %w", err)
	}
	sets, err := client.AppsV1().DaemonSets(f.Namespace).List(ctx, ours)
	if err != nil {
		return nil, nil, fmt.Errorf("listing the provider's DaemonSets: %w", err)
	}
	if len(pods.Items)+len(sets.Items) == 0 {
		return nil, nil, fmt.Errorf("no pod and no DaemonSet with the label %s is in namespace %s: is it the provider's?", selector, f.Namespace)
	}
	var missing []Answer
	for _, set := range sets.Items {
		nodes := map[string]bool{}
		for _, pod := range pods.Items {
			if metav1.IsControlledBy(&pod, &set) {
				nodes[nodeOf(&pod)] = true
			}
		}
		if wanted := int(set.Status.DesiredNumberScheduled); len(nodes) < wanted {
			missing = append(missing, Answer{Err: fmt.Errorf("DaemonSet %s is to run on %d nodes and has pods for %d: its events say why", set.Name, wanted, len(nodes))})
		}
	}
	slices.SortFunc(pods.Items, func(a, b corev1.Pod) int {
		return cmp.Or(strings.Compare(nodeOf(&a), nodeOf(&b)), strings.Compare(a.Name, b.Name))
	})
	return pods.Items, missing, nil
}

var errLate = errors.New("it did not answer in time")

// ask runs the command on one node.
func (f Fleet) ask(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod, c Command) Answer {
	a := Answer{Node: nodeOf(pod), Pod: pod.Name}
	if a.Err = running(pod); a.Err != nil {
		return a
	}
	ctx, end := context.WithTimeoutCause(ctx, c.Within, errLate)
	defer end()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	tooMuch := func() { stop(errors.New("it answered without end")) }
	stdout, stderr := &output{max: c.MaxOutput, exceeded: tooMuch}, &output{max: maxErrors, exceeded: tooMuch}
	if c.Told != nil {
		stderr.told = func(line string) { c.Told(a.Node, line) }
	}
	err := f.exec(ctx, client, pod.Name, c.Args, stdout, stderr)
	a.Output = stdout.take()
	said := strings.TrimSpace(string(stderr.take()))
	_, failed := errors.AsType[exec.CodeExitError](err)
	switch {
	case ctx.Err() != nil:
		a.Err = context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded): // the connection's, which is ctx's or that of a sign of life
		a.Err = errLate
	case failed && said != "":
		a.Err = errors.New(strings.TrimPrefix(said[strings.LastIndexByte(said, '\n')+1:], "leasehold: "))
	case apierrors.IsForbidden(err):
		a.Err = fmt.Errorf("you may not run commands in the provider's pods: %w", err)
	case err != nil:
		a.Err = fmt.Errorf("running the command in the pod: %w", err)
	}
	return a
}

// exec runs the program in a pod until it has ended, or ctx has: over a WebSocket, or as kubectl does over SPDY where that is refused, as by
// API servers before 1.30 and by roles that allow to create pods/exec and not to get it.
func (f Fleet) exec(ctx context.Context, client kubernetes.Interface, pod string, args []string, stdout, stderr io.Writer) error {
	url := client.CoreV1().RESTClient().Post().Namespace(f.Namespace).Resource("pods").Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: append([]string{program}, args...), Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	websocket, err := remotecommand.NewWebSocketExecutor(f.Config, http.MethodGet, url.String())
	if err != nil {
		return err
	}
	spdy, err := remotecommand.NewSPDYExecutor(f.Config, http.MethodPost, url)
	if err != nil {
		return err
	}
	executor, err := remotecommand.NewFallbackExecutor(websocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return err
	}
	// Over SPDY client-go waits for the API server's first answer whether or not ctx has ended: it is left to that then.
	ended := make(chan error, 1)
	go func() {
		ended <- executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: stdout, Stderr: stderr})
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// running says why no command can be run in a pod; nil when one can.
func running(pod *corev1.Pod) error {
	for _, status := range pod.Status.ContainerStatuses {
		if status.Name != container {
			continue
		}
		switch state := status.State; {
		case state.Running != nil:
			return nil
		case state.Waiting != nil:
			return fmt.Errorf("its pod does not run: %s", strings.TrimSpace(state.Waiting.Reason+" "+state.Waiting.Message))
		}
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			return fmt.Errorf("its pod does not run: %s", condition.Message)
		}
	}
	return fmt.Errorf("its pod does not run: it is %s", pod.Status.Phase)
}

// nodeOf names the node of a pod of a DaemonSet, also of one that is not scheduled yet: the DaemonSet's controller ties each to its node.
func nodeOf(pod *corev1.Pod) string {
	if pod.Spec.NodeName != "" || pod.Spec.Affinity == nil || pod.Spec.Affinity.NodeAffinity == nil ||
		pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return pod.Spec.NodeName
	}
	for _, term := range pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, field := range term.MatchFields {
			if field.Key == metav1.ObjectNameField && len(field.Values) == 1 {
				return field.Values[0]
			}
		}
	}
	return ""
}
