package fleet_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/leasehold-csi/leasehold/internal/fleet"
	"github.com/leasehold-csi/leasehold/internal/fleet/fleettest"
)

// long is a deadline that no test meets, and short one for what never answers.
const (
	long  = time.Minute
	short = 100 * time.Millisecond
)

// says is a command that writes its arguments and the node's name.
func says(node string) fleettest.Command {
	return func(args []string, stdout, _ io.Writer) int {
		fmt.Fprint(stdout, node, args)
		return 0
	}
}

// hangs is a command that ends with the test.
func hangs(t *testing.T) fleettest.Command {
	return func([]string, io.Writer, io.Writer) int {
		<-t.Context().Done()
		return 1
	}
}

func run(t *testing.T, s *fleettest.Server, c fleet.Command) []fleet.Answer {
	t.Helper()
	if c.Within == 0 {
		c.Within = long
	}
	if c.MaxOutput == 0 {
		c.MaxOutput = 1 << 20
	}
	answers, err := fleet.Fleet{Config: s.Config(), Namespace: fleettest.Namespace}.Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return answers
}

// TestSixteenAtOnce holds sixteen commands back, for as long as it takes the server to answer hundreds of other requests: no other command
// begins meanwhile. Then they end, and the others run.
func TestSixteenAtOnce(t *testing.T) {
	const nodes, atOnce = 40, 16
	s := fleettest.New(t)
	begun, mayEnd := make(chan string, nodes), make(chan struct{})
	for i := range nodes {
		node := fmt.Sprintf("node-%02d", nodes-i)
		s.Add(node, func(args []string, stdout, stderr io.Writer) int {
			begun <- node
			<-mayEnd
			return says(node)(args, stdout, stderr)
		})
	}
	over := make(chan struct{})
	var holding sync.WaitGroup
	holding.Go(func() {
		defer close(mayEnd)
		for range atOnce {
			select {
			case <-begun:
			case <-over:
				return // the answers tell
			}
		}
		for range 300 {
			resp, err := http.Get(s.Config().Host + "/none")
			if err != nil {
				t.Error(err)
				return
			}
			_ = resp.Body.Close()
		}
		if more := len(begun); more > 0 {
			t.Errorf("%d commands run at once", atOnce+more)
		}
	})
	answers := run(t, s, fleet.Command{Args: []string{"leases", "-o", "json"}})
	close(over)
	holding.Wait()
	if len(answers) != nodes {
		t.Fatalf("%d answers", len(answers))
	}
	for i, a := range answers {
		node := fmt.Sprintf("node-%02d", i+1)
		if a.Node != node || a.Pod != "pod-of-"+node || string(a.Output) != node+"[leases -o json]" || a.Err != nil {
			t.Errorf("answer %d: %+v", i, a)
		}
	}
}

// TestUnreachable: each node that gives no answer says why, and the others answer.
func TestUnreachable(t *testing.T) {
	s := fleettest.New(t)
	s.Wanted = 11
	s.Add("broken", func(_ []string, stdout, stderr io.Writer) int {
		fmt.Fprint(stdout, "half an ans")
		fmt.Fprint(stderr, "Usage of leases:\n  -o\nleasehold: bad usage\n")
		return 2
	})
	s.Add("crashing", nil).Status.ContainerStatuses[0].State = corev1.ContainerState{
		Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 5m0s"}}
	s.Add("endless", func(_ []string, stdout, _ io.Writer) int {
		for t.Context().Err() == nil {
			if _, err := stdout.Write(make([]byte, 1000)); err != nil {
				break
			}
		}
		return 0
	})
	s.Add("evicted", nil).Status = corev1.PodStatus{Phase: corev1.PodFailed}
	s.Add("forbidden", nil)
	s.Refuse = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "pod-of-forbidden/exec") {
			fleettest.Forbid(w, `User "u" cannot create resource "pods/exec"`)
			return true
		}
		return false
	}
	s.Add("killed", func([]string, io.Writer, io.Writer) int { return 137 })
	s.Add("loud", func(_ []string, _, stderr io.Writer) int {
		for t.Context().Err() == nil {
			if _, err := stderr.Write(make([]byte, 1000)); err != nil {
				break
			}
		}
		return 0
	})
	unscheduled := s.Add("pending", nil)
	unscheduled.Spec = corev1.PodSpec{Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
			{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"pending"}}}},
		}}}}}
	unscheduled.Status = corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "Insufficient memory"}}}
	s.Add("well", says("well"))

	var got []string
	for _, a := range run(t, s, fleet.Command{}) {
		got = append(got, fmt.Sprintf("%s: %v", a.Node, a.Err))
	}
	want := []string{
		"broken: bad usage",
		"crashing: its pod does not run: CrashLoopBackOff back-off 5m0s",
		"endless: it answered without end",
		"evicted: its pod does not run: it is Failed",
		`forbidden: you may not run commands in the provider's pods: User "u" cannot create resource "pods/exec"`,
		"killed: running the command in the pod: command terminated with exit code 137",
		"loud: it answered without end",
		"pending: its pod does not run: Insufficient memory",
		"well: <nil>",
		": DaemonSet leasehold is to run on 11 nodes and has pods for 9: its events say why",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestFailedWithAnswer: what a command that fails printed is kept.
func TestFailedWithAnswer(t *testing.T) {
	s := fleettest.New(t)
	s.Add("node-1", func(_ []string, stdout, stderr io.Writer) int {
		fmt.Fprint(stdout, "all of it")
		fmt.Fprint(stderr, "leasehold: running pods use the above")
		return 1
	})
	if a := run(t, s, fleet.Command{})[0]; string(a.Output) != "all of it" || a.Err == nil || a.Err.Error() != "running pods use the above" {
		t.Errorf("%q, %v", a.Output, a.Err)
	}
}

// TestOverSPDY: an API server, or a role, that knows no exec by GET.
func TestOverSPDY(t *testing.T) {
	s := fleettest.New(t)
	s.Refuse = func(w http.ResponseWriter, r *http.Request) bool {
		refused := r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/exec")
		if refused {
			fleettest.Forbid(w, "no get")
		}
		return refused
	}
	s.Add("node-1", says("node-1"))
	s.Add("node-2", func(_ []string, _, stderr io.Writer) int {
		fmt.Fprint(stderr, "leasehold: broken")
		return 1
	})
	answers := run(t, s, fleet.Command{Args: []string{"leases"}})
	if a := answers[0]; string(a.Output) != "node-1[leases]" || a.Err != nil {
		t.Errorf("%q, %v", a.Output, a.Err)
	}
	if a := answers[1]; a.Err == nil || a.Err.Error() != "broken" {
		t.Errorf("%q, %v", a.Output, a.Err)
	}
}

// TestNoEnd: a command that hangs is left at its deadline.
func TestNoEnd(t *testing.T) {
	s := fleettest.New(t)
	s.Add("node-1", hangs(t))
	if a := run(t, s, fleet.Command{Within: short})[0]; a.Err == nil || a.Err.Error() != "it did not answer in time" {
		t.Error(a.Err)
	}
}

// TestNoFirstAnswer: an API server that takes the request and says nothing, over either protocol.
func TestNoFirstAnswer(t *testing.T) {
	for _, silent := range []string{http.MethodGet, http.MethodPost} {
		s := fleettest.New(t)
		s.Refuse = func(w http.ResponseWriter, r *http.Request) bool {
			switch {
			case !strings.HasSuffix(r.URL.Path, "/exec"):
				return false
			case r.Method == silent:
				<-t.Context().Done()
			default:
				fleettest.Forbid(w, "no "+r.Method)
			}
			return true
		}
		s.Add("node-1", hangs(t))
		if a := run(t, s, fleet.Command{Within: short})[0]; a.Err == nil || a.Err.Error() != "it did not answer in time" {
			t.Errorf("%s: %v", silent, a.Err)
		}
	}
}

// TestTold: what a node says on its standard error is told while it runs, line by line.
func TestTold(t *testing.T) {
	s := fleettest.New(t)
	heard := make(chan struct{})
	s.Add("node-1", func(_ []string, stdout, stderr io.Writer) int {
		fmt.Fprint(stderr, "2 being given")
		fmt.Fprint(stderr, " back\n1 being given back\n")
		<-heard
		fmt.Fprint(stdout, "done")
		return 0
	})
	var lines []string
	answers := run(t, s, fleet.Command{Told: func(node, line string) {
		if lines = append(lines, node+": "+line); len(lines) == 2 {
			close(heard)
		}
	}})
	if want := []string{"node-1: 2 being given back", "node-1: 1 being given back"}; !slices.Equal(lines, want) || string(answers[0].Output) != "done" {
		t.Errorf("%q, %+v", lines, answers)
	}
}

func TestPodsNotFound(t *testing.T) {
	for name, test := range map[string]struct{ refused, want string }{
		"no right to pods":       {"/pods", "listing the provider's pods: no list"},
		"no right to DaemonSets": {"/daemonsets", "listing the provider's DaemonSets: no list"},
		"nothing there":          {"none", "no pod and no DaemonSet with the label app.kubernetes.io/name=leasehold is in namespace leasehold"},
	} {
		t.Run(name, func(t *testing.T) {
			s := fleettest.New(t)
			s.Refuse = func(w http.ResponseWriter, r *http.Request) bool {
				refused := strings.HasSuffix(r.URL.Path, test.refused)
				if refused {
					fleettest.Forbid(w, "no list")
				}
				return refused
			}
			_, err := fleet.Fleet{Config: s.Config(), Namespace: fleettest.Namespace}.Run(t.Context(), fleet.Command{Within: long})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %s", err, test.want)
			}
		})
	}
}
