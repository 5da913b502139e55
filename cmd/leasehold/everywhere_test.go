package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/internal/fleet/fleettest"
)

// holds is a provider whose node holds one grant for a pod of that name, in that state, with a token that has seconds left; a drain of it
// fails when there is something. said gets the commands.
func holds(pod, state string, seconds int64, said chan<- string) fleettest.Command {
	return func(args []string, stdout, stderr io.Writer) int {
		said <- strings.Join(args, " ")
		report := admin.Report{Version: 1, Node: "a name of its own", Grants: []admin.Grant{}}
		if pod != "" {
			report.Grants = append(report.Grants, admin.Grant{ID: pod, State: state, Namespace: "shop", Pod: pod, TokenSeconds: &seconds})
		}
		if pod == "expiring" {
			report.Grants[0].LeftToExpire = "the class says onPodEnd: expire"
		}
		if args[0] == "drain" {
			fmt.Fprint(stderr, "2 being given back\n\x1b[2J\n1 being given back\n")
		}
		_ = json.NewEncoder(stdout).Encode(report)
		if args[0] == "drain" && pod != "" {
			fmt.Fprint(stderr, "leasehold: running pods use the above\n")
			return 1
		}
		return 0
	}
}

// nodes are the parts of a cluster that a case can have.
var nodes = map[string]func(s *fleettest.Server, said chan<- string){
	"late":  func(s *fleettest.Server, said chan<- string) { s.Add("a-late", holds("late", "Active", 3000, said)) },
	"soon":  func(s *fleettest.Server, said chan<- string) { s.Add("b-soon", holds("soon", "Active", 60, said)) },
	"stuck": func(s *fleettest.Server, said chan<- string) { s.Add("c-stuck", holds("stuck", "Revoking", 60, said)) },
	"expiring": func(s *fleettest.Server, said chan<- string) {
		s.Add("h-expiring", holds("expiring", "Revoking", 60, said))
	},
	"empty": func(s *fleettest.Server, said chan<- string) { s.Add("d-empty", holds("", "", 0, said)) },
	"garbage": func(s *fleettest.Server, _ chan<- string) {
		s.Add("e-garbage", func(_ []string, stdout, _ io.Writer) int {
			fmt.Fprint(stdout, "\x1b[2Jgarbage")
			return 0
		})
	},
	"refused": func(s *fleettest.Server, _ chan<- string) {
		s.Add("f-refused", nil)
		s.Refuse = func(w http.ResponseWriter, r *http.Request) bool {
			refused := strings.HasSuffix(r.URL.Path, "f-refused/exec")
			if refused {
				fleettest.Forbid(w, "no pods/exec")
			}
			return refused
		}
	},
	"down": func(s *fleettest.Server, _ chan<- string) {
		s.Add("g-down", nil).Status = corev1.PodStatus{Phase: corev1.PodPending}
	},
}

func TestAllNodes(t *testing.T) {
	const (
		partial = "leasehold: not every node was reached: "
		inUse   = "running pods use the above"
	)
	tests := []struct {
		args   string
		nodes  string
		code   int
		stdout []string // the beginnings of its lines, without what is between columns; or for JSON parts of it
		stderr []string // parts of it; none for nothing at all
		asked  string   // what each node was asked that was asked anything
	}{
		{"leases", "late soon empty", 0, []string{"NODE POD", "b-soon shop/soon", "a-late shop/late"}, nil, "leases -o json --state-dir /run/leasehold"},
		{"leases --state-dir /elsewhere", "late", 0, []string{"NODE POD", "a-late shop/late"}, nil, "leases -o json --state-dir /elsewhere"},
		{"leases -o wide", "late", 0, []string{"NODE POD VOLUME STATE ROLE LEASE LEFT TOKEN RENEWED", "a-late shop/late"}, nil, ""},
		{"leases --pod soon", "late soon", 0, []string{"NODE POD", "b-soon shop/soon"}, nil, ""},
		{"leases --expiring-within 1s", "late soon", 0, []string{"No grants found on the nodes that answered (2)."}, nil, ""},
		{"leases -o yaml", "late", 0, []string{"nodes:", "- grants:", "- authMount:"}, nil, ""},
		{"leases", "down garbage late refused", 3, []string{
			"NODE POD", "a-late shop/late", "", "UNREACHABLE PROVIDER'S POD PROBLEM",
			`e-garbage pod-of-e-garbage reading its report: invalid character '\x1b'`,
			"f-refused pod-of-f-refused you may not run commands in the provider's pods: no pods/exec",
			"g-down pod-of-g-down its pod does not run: it is Pending",
		}, []string{partial + "1 answered, and what the others hold is not known"}, ""},
		{"leases -o json", "down late", 3, []string{`"version":1,"nodes":[{"version":1,"node":"a-late",`, `"grants":[{"id":"late"`,
			`"unreachable":[{"node":"g-down","pod":"pod-of-g-down","problem":"its pod does not run: it is Pending"}]`}, []string{partial}, ""},
		{"leases", "down", 3, []string{"UNREACHABLE", "g-down"}, []string{partial + "0 answered"}, ""},
		{"leases", "", 1, nil, []string{"no pod and no DaemonSet with the label app.kubernetes.io/name=leasehold is in namespace leasehold"}, ""},
		{"leases --provider-namespace elsewhere", "late", 1, nil, []string{"listing the provider's pods"}, ""},

		{"drain", "empty", 0, []string{"No grants found"}, []string{"d-empty: 2 being given back\nd-empty: 1 being given back\n"},
			"drain -o json --force=false --timeout 5m0s --state-dir /run/leasehold"},
		{"drain --force --timeout 2m --state-dir /elsewhere", "empty", 0, []string{"No grants found"}, []string{"being given back"},
			"drain -o json --force=true --timeout 2m0s --state-dir /elsewhere"},
		{"drain", "late empty soon", 1, []string{"NODE POD VOLUME STATE HELD ENDS IN", "a-late shop/late", "b-soon shop/soon"}, []string{inUse}, ""},
		{"drain --leave", "late empty", 0, []string{"NODE POD", "a-late shop/late"}, []string{"being given back"}, "drain -o json --force=false --timeout 5m0s --state-dir /run/leasehold"},
		{"drain --leave", "stuck", 1, []string{"NODE POD", "c-stuck shop/stuck"}, []string{"not all was given back within 5m0s"}, ""},
		{"drain", "empty down", 3, []string{"No grants found", "", "UNREACHABLE", "g-down"}, []string{partial + "1 answered"}, ""},
		{"drain", "late down", 3, []string{"NODE POD", "a-late shop/late", "", "UNREACHABLE", "g-down"}, []string{partial, "; and " + inUse}, ""},
		{"drain", "expiring", 0, []string{"NODE POD", "h-expiring shop/expiring"}, []string{"being given back"}, ""},
		{"drain -o json", "late", 1, []string{`{"version":1,"nodes":[{"version":1,"node":"a-late",`, `"unreachable":[]`}, []string{inUse}, ""},
	}
	for _, test := range tests {
		t.Run(test.args+" of "+test.nodes, func(t *testing.T) {
			s, said := fleettest.New(t), make(chan string, 10)
			for node := range strings.FieldsSeq(test.nodes) {
				nodes[node](s, said)
			}
			args := strings.Fields(test.args)
			c := command(t, append(args, "--all-nodes", "--kubeconfig", s.Kubeconfig(t))...)
			var stdout, stderr bytes.Buffer
			c.Stdout, c.Stderr = &stdout, &stderr
			if _, ok := errors.AsType[*exec.ExitError](c.Run()); c.ProcessState == nil || ok != (test.code != 0) || c.ProcessState.ExitCode() != test.code {
				t.Errorf("it ended with %v, want %d", c.ProcessState, test.code)
			}
			if slices.Contains(args, "json") {
				var compact bytes.Buffer
				if err := json.Compact(&compact, stdout.Bytes()); err != nil {
					t.Errorf("%v: %s", err, stdout.String())
				}
				for _, part := range test.stdout {
					if !strings.Contains(compact.String(), part) {
						t.Errorf("stdout %s\nwant %s", compact.String(), part)
					}
				}
			} else {
				checkLines(t, stdout.String(), test.stdout, slices.Contains(args, "yaml"))
			}
			for _, part := range test.stderr {
				if !strings.Contains(stderr.String(), part) {
					t.Errorf("stderr %q\nwant %q", stderr.String(), part)
				}
			}
			if test.stderr == nil && stderr.Len() > 0 || strings.Contains(stdout.String()+stderr.String(), "\x1b") {
				t.Errorf("stdout %q\nstderr %q", stdout.String(), stderr.String())
			}
			for range len(said) {
				if asked := <-said; test.asked != "" && asked != test.asked {
					t.Errorf("a node was asked %q, want %q", asked, test.asked)
				}
			}
		})
	}
}

// checkLines wants lines that begin so; more may follow only if it says so.
func checkLines(t *testing.T, text string, beginnings []string, more bool) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	if len(lines) < len(beginnings) || len(lines) > len(beginnings) && !more {
		t.Fatalf("there are %d lines, want %d:\n%s", len(lines), len(beginnings), text)
	}
	for i, beginning := range beginnings {
		if !strings.HasPrefix(lines[i], beginning) {
			t.Errorf("line %q, want %q", lines[i], beginning)
		}
	}
}

// TestWatchAllNodes: a node that is not reached ends no watch, and an interrupt does.
func TestWatchAllNodes(t *testing.T) {
	s, said := fleettest.New(t), make(chan string, 100)
	nodes["late"](s, said)
	nodes["down"](s, said)
	watch := command(t, "leases", "-w", "--all-nodes", "--kubeconfig", s.Kubeconfig(t))
	shown, err := watch.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	for lines, looks := bufio.NewScanner(shown), 0; looks < 2 && lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "g-down ") {
			looks++
		}
	}
	if err := watch.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := watch.Wait(); err != nil {
		t.Error(err)
	}
	if len(said) < 2 {
		t.Errorf("the node was asked %d times", len(said))
	}
}

// asProgram runs leasehold as it would run in a provider's pod.
func asProgram(t *testing.T) fleettest.Command {
	return func(args []string, stdout, stderr io.Writer) int {
		c := command(t, args...)
		c.Stdout, c.Stderr = stdout, stderr
		_ = c.Run()
		return c.ProcessState.ExitCode()
	}
}
