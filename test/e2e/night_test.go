//go:build e2e

package e2e_test

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/test/prometheus"
)

const (
	// nightPace is by how much sooner the night's alerts are than those of manifests/monitoring: their `for`, and what they compare seconds
	// with. An hour that they look back becomes nightHour. Looks back for minutes stay: kubelet's pace stays, too.
	nightPace = 5
	nightHour = 5 * time.Minute
	// nightTTL is the life of a night's credentials: none lapses while Vault is sealed, and their renewals are due before it is unsealed.
	nightTTL = 16 * time.Minute
	// shortLife is that of the role that is deleted: its credentials can be seen to near their end.
	shortLife = 6 * time.Minute
)

// TestBadNight lets happen, one after another, what people on call dread, while a real Prometheus evaluates the rules: the alerts fire and
// resolve, `leasehold explain` names each cause, and no pod loses a credential that could have been kept. What was seen is written to
// NIGHT_OUT, for people.
func TestBadNight(t *testing.T) {
	s := start(t)
	if !s.hasKubelet() {
		t.Fatal("a bad night needs the full bed: BED=full")
	}
	sealed, err := time.ParseDuration(cmp.Or(os.Getenv("NIGHT_SEALED"), "10m"))
	if err != nil {
		t.Fatalf("NIGHT_SEALED: %v", err)
	}
	n := s.newNight(t)
	n.evening()
	n.vaultIsSealed(sealed)
	n.databaseIsDown()
	n.roleIsDeleted()
	n.nodeIsOutOfMemory()
	n.morning()
	t.Run("nothing is left", s.nothingIsLeft)
	t.Run("no secret was told", s.noSecretWasTold)
}

type night struct {
	*place
	began  time.Time
	alerts *prometheus.Server
	out    *os.File
	apps   []*corev1.Pod
	kept   map[string]login // what the apps showed when they had started

	mu     sync.Mutex
	firing map[string]time.Time // :: alert → since when
	fired  map[string]bool
}

func (s *suite) newNight(t *testing.T) *night {
	t.Helper()
	n := &night{place: s.newPlace(t, "night"), began: time.Now(), kept: map[string]login{}, firing: map[string]time.Time{}, fired: map[string]bool{}}
	dir := cmp.Or(os.Getenv("NIGHT_OUT"), t.TempDir())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if n.out, err = os.Create(filepath.Join(dir, "transcript.md")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.out.Close(); err != nil {
			t.Error(err)
		}
	})
	rules, err := prometheus.Rules(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	if n.alerts, err = prometheus.Start(t.Context(), t.TempDir(), sooner(rules)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.alerts.Stop)
	watching, stop := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() { n.watch(watching) })
	t.Cleanup(func() { stop(); watch.Wait() })
	return n
}

var ruleTimes = regexp.MustCompile(`(for: |_seconds [<>] |\[)(\d+)(m|h|\n)`)

// sooner returns rules whose alerts come sooner by nightPace.
func sooner(rules []byte) []byte {
	return ruleTimes.ReplaceAllFunc(rules, func(match []byte) []byte {
		parts := ruleTimes.FindSubmatch(match)
		before, unit := string(parts[1]), string(parts[3])
		number, _ := strconv.Atoi(string(parts[2]))
		switch {
		case before == "[" && unit == "m":
			return match
		case unit == "h":
			return fmt.Appendf(nil, "%s%ds", before, number*int(nightHour.Seconds()))
		case unit == "m":
			return fmt.Appendf(nil, "%s%ds", before, number*60/nightPace)
		}
		return fmt.Appendf(nil, "%s%d%s", before, number/nightPace, unit)
	})
}

// tellf writes a line of the transcript, with the time since the evening.
func (n *night) tellf(format string, args ...any) {
	line := fmt.Sprintf("- `+%s` %s\n", time.Since(n.began).Round(time.Second), fmt.Sprintf(format, args...))
	fmt.Print("  night: ", line)
	n.write(line)
}

func (n *night) write(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, err := n.out.WriteString(text); err != nil {
		n.t.Error(err)
	}
}

func (n *night) heading(text string) { n.write("\n## " + text + "\n\n") }

// watch has the provider scraped, whichever pod is the provider's, and tells when an alert begins or ends to fire.
func (n *night) watch(ctx context.Context) {
	scraped := ""
	for ctx.Err() == nil {
		if address, err := n.metricsAddress(ctx); err == nil && address != scraped {
			if err := n.alerts.Scrape(n.bed.State().Node, address); err != nil {
				n.t.Error(err)
			}
			scraped = address
		}
		active, err := n.alerts.Alerts(ctx)
		if err != nil && ctx.Err() == nil {
			n.t.Error(err)
		}
		if err == nil {
			n.note(active)
		}
		wait(ctx, time.Second)
	}
}

func (n *night) note(active []prometheus.Active) {
	now := map[string]string{}
	for _, a := range active {
		if a.State == "firing" {
			now[a.Labels["alertname"]] = a.Annotations["summary"]
		}
	}
	n.mu.Lock()
	var lines []string
	for name, summary := range now {
		if _, before := n.firing[name]; !before {
			n.firing[name], n.fired[name] = time.Now(), true
			lines = append(lines, fmt.Sprintf("**%s** fires: %s", name, summary))
		}
	}
	for name, since := range n.firing {
		if _, still := now[name]; !still {
			delete(n.firing, name)
			lines = append(lines, fmt.Sprintf("**%s** is resolved, after %s", name, time.Since(since).Round(time.Second)))
		}
	}
	n.mu.Unlock()
	slices.Sort(lines)
	for _, line := range lines {
		n.tellf("%s", line)
	}
}

// awaitFiring waits until each of these alerts has fired since the last calm.
func (n *night) awaitFiring(alerts ...string) {
	n.t.Helper()
	n.eventually(n.t, fmt.Sprintf("the alerts %v have fired", alerts), func(context.Context) error {
		n.mu.Lock()
		defer n.mu.Unlock()
		missing := slices.DeleteFunc(slices.Clone(alerts), func(name string) bool { return n.fired[name] })
		if len(missing) > 0 {
			return fmt.Errorf("missing are %v", missing)
		}
		return nil
	})
}

// awaitCalm waits until no alert fires but those that look back for long. An hour of the rules is what the longest of them looks back.
func (n *night) awaitCalm(but ...string) {
	n.t.Helper()
	calm := func(context.Context) error {
		n.mu.Lock()
		defer n.mu.Unlock()
		firing := slices.DeleteFunc(slices.Sorted(maps.Keys(n.firing)), func(name string) bool { return slices.Contains(but, name) })
		if len(firing) > 0 {
			return fmt.Errorf("firing: %v", firing)
		}
		n.fired = map[string]bool{}
		return nil
	}
	err := n.poll(n.t.Context(), pace, calm)
	for deadline := time.Now().Add(nightHour + patience); err != nil && time.Now().Before(deadline); {
		err = n.poll(n.t.Context(), pace, calm)
	}
	if err != nil {
		n.t.Fatalf("waiting until no alert fires: %v", err)
	}
	n.tellf("no alert fires any more%s", strings.Join(append([]string{""}, but...), ", but perhaps "))
}

// explained has `leasehold explain` name the cause of what happened to a pod.
func (n *night) explained(pod *corev1.Pod, says ...string) {
	n.t.Helper()
	var text string
	n.eventually(n.t, fmt.Sprintf("leasehold explain says %q of %s", says, pod.Name), func(ctx context.Context) error {
		out, err := n.bed.Leasehold(ctx, "explain", n.ns+"/"+pod.Name)
		if err != nil {
			return err
		}
		text = string(out)
		for _, part := range says {
			if !strings.Contains(text, part) {
				return fmt.Errorf("it says\n%s", text)
			}
		}
		return nil
	})
	n.tellf("`leasehold explain %s/%s`:", n.ns, pod.Name)
	n.write("\n```\n" + strings.TrimSpace(text) + "\n```\n\n")
}

// picture takes one of the provider's page, through a forwarded port, as a person would see it.
func (n *night) picture(name, about string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	state := n.bed.State()
	_, port, err := net.SplitHostPort(state.Provider.UIAddress)
	if err != nil {
		n.t.Fatal(err)
	}
	forward, err := n.bed.Shell(ctx, state.Provider.Namespace, "kubectl port-forward daemonset/"+state.Provider.DaemonSet+" :"+port)
	if err != nil {
		n.t.Fatal(err)
	}
	forwarded, err := forward.StdoutPipe()
	if err == nil {
		err = forward.Start()
	}
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = forward.Wait()
	}()
	line, err := bufio.NewReader(forwarded).ReadString('\n')
	if err != nil {
		n.t.Fatalf("forwarding a port: %v", err)
	}
	address := strings.TrimPrefix(strings.Fields(line)[2], "127.0.0.1:")
	file := filepath.Join(filepath.Dir(n.out.Name()), name+".png")
	shot := exec.CommandContext(ctx, "chromium", "--headless", "--no-sandbox", "--hide-scrollbars", "--user-data-dir="+n.t.TempDir(),
		"--window-size=1280,1000", "--virtual-time-budget=2000", "--screenshot="+file, "http://localhost:"+address+"/")
	if output, err := shot.CombinedOutput(); err != nil {
		n.t.Fatalf("taking a picture of the page: %v\n%s", err, output)
	}
	n.tellf("the page of the node:")
	n.write(fmt.Sprintf("\n![%s](%s.png)\n\n", about, name))
}

// allKept wants every pod that lives to show the credentials that it showed before, and them to work.
func (n *night) allKept() {
	n.t.Helper()
	for _, pod := range n.apps {
		n.eventually(n.t, "pod "+pod.Name+" logs in with its credentials", func(ctx context.Context) error {
			l := n.login(pod)
			if l != n.kept[pod.Name] {
				n.t.Fatalf("pod %s has other credentials than before, although those could have been kept", pod.Name)
			}
			return n.bed.CanLogIn(ctx, l.user, l.password)
		})
	}
	n.tellf("all %d pods log in with the credentials that they had before", len(n.apps))
}

func (n *night) app(name, class string) *corev1.Pod {
	pod := newPod(name, class)
	pod.Spec.TerminationGracePeriodSeconds = new(int64(2))
	n.logInAlways(pod)
	pod = n.create(pod)
	n.apps = append(n.apps, pod)
	return pod
}

// awaitApp waits until an app runs, and keeps what it shows.
func (n *night) awaitApp(pod *corev1.Pod) {
	n.t.Helper()
	n.awaitRunning(pod)
	n.kept[pod.Name] = n.login(pod)
}

func (n *night) evening() {
	n.write(fmt.Sprintf(`# A bad night

What %s wrote on %s, on the full test bed: a real kubelet, Vault and PostgreSQL, and a real Prometheus with the rules of
[manifests/monitoring](../../manifests/monitoring), whose 'for' is shorter by the factor %d; where they look back an hour, it is %s here. The times are
since the evening began.
`, "`make night`", n.began.UTC().Format(time.DateOnly), nightPace, nightHour))
	n.heading("The evening")
	n.makeRole(n.role, map[string]any{"default_ttl": nightTTL.String(), "max_ttl": "24h"})
	n.databaseClass()
	for i := range 3 {
		n.app(fmt.Sprintf("shop-%d", i), "db")
	}
	for _, pod := range n.apps {
		n.awaitApp(pod)
	}
	n.tellf("%d pods run, and log in to the database twice a second", len(n.apps))
	n.awaitCalm()
}

func (n *night) vaultIsSealed(length time.Duration) {
	n.heading("Vault is sealed for " + length.String())
	ctx := n.t.Context()
	if err := n.bed.SealVault(ctx); err != nil {
		n.t.Fatal(err)
	}
	sealed := true
	n.t.Cleanup(func() {
		if sealed {
			if err := n.bed.UnsealVault(context.WithoutCancel(ctx)); err != nil {
				n.t.Error(err)
			}
		}
	})
	unseal := time.Now().Add(length)
	n.tellf("Vault is sealed")
	late := n.app("late", "db")
	n.tellf("pod %s is created", late.Name)
	n.awaitComplaint(late.Name, "Vault is sealed")
	n.explained(late, "Vault is sealed")
	n.awaitFiring("LeaseholdVaultFailing", "LeaseholdMountsRefused", "LeaseholdRenewalsFailing")
	n.picture("sealed", "The page of the node while Vault is sealed: which pods' renewals fail, and the pod that waits")
	wait(ctx, time.Until(unseal))
	if err := n.bed.UnsealVault(ctx); err != nil {
		n.t.Fatal(err)
	}
	sealed = false
	n.tellf("Vault is unsealed")
	n.awaitApp(late)
	n.tellf("pod %s runs", late.Name)
	n.awaitCalm("LeaseholdMountsRefused")
	n.allKept()
}

func (n *night) databaseIsDown() {
	n.heading("The database is down")
	ctx := n.t.Context()
	if err := n.bed.Stop(ctx, "postgres"); err != nil {
		n.t.Fatal(err)
	}
	n.tellf("PostgreSQL is stopped")
	gone := n.apps[0]
	n.apps = n.apps[1:]
	n.delete(gone, metav1.DeleteOptions{})
	n.tellf("pod %s is deleted", gone.Name)
	n.awaitObjectGone(gone)
	n.explained(gone, "the back end of", "is down")
	n.explained(n.apps[0], "is down")
	n.awaitFiring("LeaseholdRevocationsPending", "LeaseholdRenewalsFailing")
	n.picture("database", "The page of the node while the database is down: what waits to be given back")
	if err := n.bed.Start(ctx, "postgres"); err != nil {
		n.t.Fatal(err)
	}
	n.tellf("PostgreSQL runs again")
	n.eventually(n.t, "what pod "+gone.Name+" left is given back", func(ctx context.Context) error {
		report, err := n.report(ctx)
		if err == nil && slices.ContainsFunc(report.Grants, func(g admin.Grant) bool { return g.UID == string(gone.UID) }) {
			err = errors.New("it is held")
		}
		return err
	})
	if err := n.bed.CanLogIn(ctx, n.kept[gone.Name].user, n.kept[gone.Name].password); err == nil {
		n.t.Error("the credentials of a pod that is gone still work")
	}
	n.tellf("what pod %s left is revoked", gone.Name)
	n.awaitCalm("LeaseholdMountsRefused")
	n.allKept()
}

func (n *night) roleIsDeleted() {
	n.heading("A role is deleted in Vault")
	ctx := n.t.Context()
	role := n.role + "x"
	makeRole := func() { n.makeRole(role, map[string]any{"default_ttl": shortLife.String(), "max_ttl": "24h"}) }
	makeRole()
	n.class("ledger", map[string]string{"roleName": "my-app-role", "objects": credentials(role)})
	ledger := n.app("ledger", "ledger")
	n.awaitApp(ledger)
	n.tellf("pod %s runs", ledger.Name)
	if _, err := n.vault.Logical().DeleteWithContext(ctx, "database/roles/"+role); err != nil {
		n.t.Fatal(err)
	}
	n.tellf("its database role is deleted")
	n.explained(ledger, "cannot be renewed any more", "could not find role", "vault list database/roles")
	n.awaitFiring("LeaseholdCredentialsNotReplaced")
	makeRole()
	n.tellf("the role is made again, before the credentials lapsed")
	n.eventually(n.t, "pod ledger has new credentials", func(ctx context.Context) error {
		l := n.login(ledger)
		if l == n.kept[ledger.Name] {
			return errors.New("it shows those of before")
		}
		return n.bed.CanLogIn(ctx, l.user, l.password)
	})
	n.kept[ledger.Name] = n.login(ledger)
	n.tellf("pod %s has new credentials: those before could not be renewed any more, and still live", ledger.Name)
	n.awaitCalm("LeaseholdMountsRefused")
	n.allKept()
}

// nodeIsOutOfMemory has the kernel kill a pod that takes what the node has, and then the provider, again and again.
func (n *night) nodeIsOutOfMemory() {
	n.heading("The node is out of memory")
	lift, err := n.bed.LimitMemory(256 << 20)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := lift(); err != nil {
			n.t.Error(err)
		}
	})
	n.tellf("the node has 256 MiB left")
	greedy := newPod("greedy", "db")
	greedy.Spec.Containers[0].Args = []string{"grow", "2048"}
	greedy = n.create(greedy)
	n.eventually(n.t, "the kernel kills the pod that takes too much", func(ctx context.Context) error {
		now, err := n.pods().Get(ctx, greedy.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, status := range now.Status.ContainerStatuses {
			if ended := status.State.Terminated; ended != nil && ended.Reason == "OOMKilled" {
				return nil
			}
		}
		return fmt.Errorf("its status is %+v", now.Status)
	})
	n.tellf("pod %s took 2 GiB, and was killed for want of memory", greedy.Name)
	n.explained(greedy, "the pod is over", "OOMKilled")
	var seen float64
	n.eventually(n.t, "Prometheus knows of the process", func(ctx context.Context) error {
		if seen = n.processStart(ctx); seen == 0 {
			return errors.New("it does not")
		}
		return nil
	})
	for range 3 {
		was := n.incarnation(n.t)
		if err := n.bed.KillProvider(); err != nil {
			n.t.Fatal(err)
		}
		n.tellf("the provider is killed")
		n.eventually(n.t, "kubelet starts the provider again", func(ctx context.Context) error {
			if pod, err := n.providerPod(ctx); err != nil {
				return err
			} else if fmt.Sprintf("%s, restarted %d times", pod.UID, pod.Status.ContainerStatuses[0].RestartCount) == was {
				return errors.New("it is the one before")
			}
			return nil
		})
		n.eventually(n.t, "Prometheus knows of the new process", func(ctx context.Context) error {
			now := n.processStart(ctx)
			if now == seen || now == 0 {
				return errors.New("it does not")
			}
			seen = now
			return nil
		})
	}
	n.explained(n.apps[0], "took over what its store holds")
	n.awaitFiring("LeaseholdRestarting")
	n.picture("memory", "The page of the node after its provider was killed three times: what was held is held")
	if err := lift(); err != nil {
		n.t.Fatal(err)
	}
	n.delete(greedy, metav1.DeleteOptions{})
	n.awaitCalm()
	n.allKept()
}

// processStart is when the provider's process was started, by what Prometheus knows; zero when it knows of none at present.
func (n *night) processStart(ctx context.Context) float64 {
	found, err := n.alerts.Query(ctx, "process_start_time_seconds")
	if err != nil || len(found) != 1 {
		return 0
	}
	return found[0].Value
}

// morning ends every pod, after a look at what the apps have seen.
func (n *night) morning() {
	n.heading("The morning")
	paths, err := filepath.Glob(filepath.Join(n.bed.State().Logs, "pods", n.ns+"_*", "app", "*.log"))
	if err != nil || len(paths) < len(n.apps) {
		n.t.Fatalf("there are logs of %d apps, %v", len(paths), err)
	}
	logins := 0
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			n.t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			logins++
			if strings.Contains(line, "failed:") && refusedLogin(line) {
				n.t.Errorf("%s said %.200s", filepath.Base(filepath.Dir(filepath.Dir(path))), line)
			}
		}
	}
	n.tellf("of %d logins of the pods the database refused none", logins)
	n.deleteAll()
	n.awaitNothing()
	n.tellf("every pod is deleted, and nothing of them is left in Vault, in the database or on the node")
}
