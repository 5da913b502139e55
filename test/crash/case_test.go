//go:build e2e

package crash_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/test/bed"
)

// scenario is a life of one pod, from its first mount to its end.
type scenario struct {
	name string
	// auth and role change the Vault roles that the pod logs in by and reads.
	auth, role map[string]any
	// objects are added to the class; %s is the case's own name.
	objects string
	// play does what happens between the first mount and the end; nil for nothing.
	play func(*life)
	// fromEnd: the effects that are tried are those from the pod's end on, else those before it.
	fromEnd bool
}

const (
	threePaths = `
- {objectName: other_user, secretPath: database/creds/%[1]sb, secretKey: username}
- {objectName: plain, secretPath: secret/data/%[1]s, secretKey: password}
`
	missingPath = `
- {objectName: plain, secretPath: secret/data/%[1]s-missing, secretKey: password}
`
)

var scenarios = []scenario{
	{name: "first mount", objects: threePaths},
	{name: "failed mount", objects: missingPath, play: func(l *life) {
		_ = l.tryMount(l.t.Context()) // it cannot succeed; whatever it says, the next goes on from it
		l.write("secret/data/"+l.name+"-missing", map[string]any{"data": map[string]any{"password": "x"}})
	}},
	{name: "rotation", role: map[string]any{"default_ttl": "90s", "max_ttl": "90s"}, play: func(l *life) {
		l.replaced()
	}},
	{name: "token replacement", auth: map[string]any{"token_ttl": "90s", "token_max_ttl": "90s"}, play: func(l *life) {
		l.replaced()
	}},
	{name: "revoke", fromEnd: true},
}

// life is one case: a scenario with a provider of its own.
type life struct {
	*matrix
	t    *testing.T
	s    scenario
	name string // of everything that is the case's own; eight characters, as much as Vault puts into a database user's name
	dir  string
	pod  *corev1.Pod
	jwt  string

	crash   string
	process *exec.Cmd
	exited  chan struct{}
	conn    *grpc.ClientConn
	files   map[string]string
}

// points are the effects of a scenario that are tried: the kinds of those after a number of others.
type points struct {
	after int
	kinds []string
}

// run plays a scenario with the provider killed at a point (empty: never) and checks what is left.
func (m *matrix) run(t *testing.T, s scenario, crash string) points {
	l := &life{matrix: m, t: t, s: s, name: strings.ToLower(rand.Text()[:8]), crash: crash}
	mark, err := m.bed.AuditMark()
	if err != nil {
		t.Fatal(err)
	}
	l.prepare()
	l.startProvider()
	if s.name == "failed mount" {
		s.play(l)
	}
	l.mustMount()
	if s.play != nil && s.name != "failed mount" {
		s.play(l)
	}
	before := l.effects()
	l.end()
	l.awaitNothing(mark)
	all := l.effects()
	l.stop()
	switch {
	case crash != "":
		return points{}
	case s.fromEnd:
		return points{len(before), all[len(before):]}
	default:
		return points{0, before}
	}
}

func (l *life) write(path string, data map[string]any) {
	l.t.Helper()
	if _, err := l.vault.Logical().WriteWithContext(l.t.Context(), path, data); err != nil {
		l.t.Fatal(err)
	}
}

func (l *life) like(path, name string, changes map[string]any) {
	l.t.Helper()
	found, err := l.vault.Logical().ReadWithContext(l.t.Context(), path)
	if err != nil || found == nil {
		l.t.Fatalf("reading %s: %v", path, err)
	}
	maps.Copy(found.Data, changes)
	l.write(filepath.Dir(path)+"/"+name, found.Data)
}

func (l *life) prepare() {
	l.t.Helper()
	ctx, t := l.t.Context(), l.t
	l.like("database/roles/my-app", l.name, l.s.role)
	l.like("database/roles/my-app", l.name+"b", nil)
	l.like("auth/kubernetes/role/my-app-role", l.name, l.s.auth)
	l.write("secret/data/"+l.name, map[string]any{"data": map[string]any{"password": "x"}})
	core := l.bed.Client().CoreV1()
	if _, err := core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: l.namespace()}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "my-app"}}
	if _, err := core.ServiceAccounts(l.namespace()).Create(ctx, account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var err error
	l.pod, err = core.Pods(l.namespace()).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "app"},
		Spec: corev1.PodSpec{
			ServiceAccountName: "my-app", NodeName: l.bed.State().Node, TerminationGracePeriodSeconds: new(int64(1)),
			AutomountServiceAccountToken: new(false),
			Containers:                   []corev1.Container{{Name: "app", Image: "none", ImagePullPolicy: corev1.PullNever}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	request, err := core.ServiceAccounts(l.namespace()).CreateToken(ctx, "my-app", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences: []string{"vault"}, ExpirationSeconds: new(int64(3600)),
		BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: l.pod.Name, UID: l.pod.UID},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l.jwt = request.Status.Token
	if l.dir, err = os.MkdirTemp("/dev/shm", "leasehold-crash-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(l.dir) })
	l.makeFolder()
}

func (l *life) namespace() string { return "crash-" + l.name }

func (l *life) folder() string {
	return filepath.Join(l.dir, "kubelet", "pods", string(l.pod.UID), "volumes", "kubernetes.io~csi", "secrets")
}

func (l *life) makeFolder() {
	l.t.Helper()
	if err := os.MkdirAll(l.folder(), 0o700); err != nil {
		l.t.Fatal(err)
	}
}

func (l *life) effectsFile() string { return filepath.Join(l.dir, "effects") }

// startProvider starts the provider; only the first process of a case is killed.
func (l *life) startProvider() {
	l.t.Helper()
	log, err := os.OpenFile(filepath.Join(l.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	state := l.bed.State()
	l.process = exec.Command(l.binary, "serve", "--endpoint", filepath.Join(l.dir, "sock"), "--node-name", state.Node, //nolint:noctx // it outlives every context here
		"--kubeconfig", state.Kubeconfig, "--state-dir", filepath.Join(l.dir, "state"), "--kubelet-dir", filepath.Join(l.dir, "kubelet"),
		"--vault-addr", state.Vault.Address, "--health-addr", "127.0.0.1:0", "--log-level", "debug")
	l.process.Env = append(os.Environ(), "LEASEHOLD_CRASH="+l.crash, "LEASEHOLD_EFFECTS="+l.effectsFile())
	l.process.Stdout, l.process.Stderr = log, log
	if err := l.process.Start(); err != nil {
		l.t.Fatal(err)
	}
	exited, process := make(chan struct{}), l.process
	l.exited = exited
	go func() { _ = process.Wait(); close(exited) }()
	if l.conn == nil {
		if l.conn, err = grpc.NewClient("unix:"+filepath.Join(l.dir, "sock"), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() { _ = l.conn.Close(); l.stop() })
	}
}

func (l *life) wasKilled() bool {
	select {
	case <-l.exited:
		return true
	default:
		return false
	}
}

// revive starts the provider again when it was killed.
func (l *life) revive() {
	if l.wasKilled() {
		l.crash = ""
		_ = os.Rename(l.effectsFile(), l.effectsFile()+".killed")
		l.startProvider()
	}
}

func (l *life) stop() {
	if l.process != nil && !l.wasKilled() {
		_ = l.process.Process.Signal(syscall.SIGKILL)
		<-l.exited
	}
	if l.t.Failed() {
		text, _ := os.ReadFile(filepath.Join(l.dir, "log"))
		lines := strings.Split(string(text), "\n")
		l.t.Logf("the provider's log:\n%s", strings.Join(lines[max(0, len(lines)-60):], "\n"))
	}
}

// effects are the kinds of the effects that the present process had.
func (l *life) effects() []string {
	text, _ := os.ReadFile(l.effectsFile())
	var kinds []string
	for line := range strings.Lines(string(text)) {
		_, kind, _ := strings.Cut(strings.TrimSpace(line), " ")
		kinds = append(kinds, kind)
	}
	return kinds
}

// tryMount is one Mount call of the driver's.
func (l *life) tryMount(ctx context.Context) error {
	l.revive()
	objects := fmt.Sprintf("- {objectName: user, secretPath: database/creds/%[1]s, secretKey: username}\n- {objectName: pass, secretPath: database/creds/%[1]s, secretKey: password}\n", l.name)
	if l.s.objects != "" {
		objects += strings.TrimLeft(fmt.Sprintf(l.s.objects, l.name), "\n")
	}
	tokens, _ := json.Marshal(map[string]any{"vault": map[string]string{"token": l.jwt}})
	attributes, err := json.Marshal(map[string]string{
		"secretProviderClass": "db", "roleName": l.name, "objects": objects, "syncedLeases": "revoke",
		"csi.storage.k8s.io/pod.name": l.pod.Name, "csi.storage.k8s.io/pod.namespace": l.namespace(), "csi.storage.k8s.io/pod.uid": string(l.pod.UID),
		"csi.storage.k8s.io/serviceAccount.name": "my-app", "csi.storage.k8s.io/serviceAccount.tokens": string(tokens),
	})
	if err != nil {
		return err
	}
	l.makeFolder()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	answer, err := v1alpha1.NewCSIDriverProviderClient(l.conn).Mount(ctx, &v1alpha1.MountRequest{
		Attributes: string(attributes), Permission: "420", TargetPath: filepath.Join(l.folder(), "mount"),
	}, grpc.WaitForReady(!l.wasKilled()))
	if err != nil {
		return err
	}
	files := map[string]string{}
	for _, f := range answer.GetFiles() {
		files[f.GetPath()] = string(f.GetContents())
	}
	l.files = files
	return nil
}

// mustMount mounts as kubelet does, until it succeeds, and logs in with what the volume shows.
func (l *life) mustMount() {
	l.t.Helper()
	eventually(l.t, "the volume is mounted", l.tryMount)
	l.mustLogIn()
}

func (l *life) mustLogIn() {
	l.t.Helper()
	if err := l.bed.CanLogIn(l.t.Context(), l.files["user"], l.files["pass"]); err != nil {
		l.t.Fatalf("what the volume shows does not log in: %v", err)
	}
}

// replaced republishes until other credentials are shown; those before must work until then.
func (l *life) replaced() {
	l.t.Helper()
	was := l.files
	every(l.t, 20*time.Second, "the credentials are replaced", func(ctx context.Context) error {
		if err := l.bed.CanLogIn(ctx, was["user"], was["pass"]); err != nil {
			l.t.Errorf("the credentials do not log in before they are replaced: %v", err)
		}
		if err := l.tryMount(ctx); err != nil {
			return err
		}
		if l.files["user"] == was["user"] {
			return errors.New("they are the same")
		}
		return nil
	})
	l.mustLogIn()
	if err := l.bed.CanLogIn(l.t.Context(), was["user"], was["pass"]); err != nil {
		l.t.Errorf("what was replaced does not log in any more: %v", err)
	}
}

// end deletes the pod and takes its volume away, as kubelet does.
func (l *life) end() {
	l.t.Helper()
	l.mustLogIn()
	pods := l.bed.Client().CoreV1().Pods(l.namespace())
	if err := os.RemoveAll(l.folder()); err != nil {
		l.t.Fatal(err)
	}
	if err := pods.Delete(l.t.Context(), l.pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
		l.t.Fatal(err)
	}
}

// awaitNothing waits until nothing of the pod is left in Vault, in PostgreSQL and in the store. A crash between the effect of a
// request in Vault and the reply's record may leave one token without leases, and one user that Vault made no lease for, or a lease
// whose user and token are gone, which nothing but its own end removes: Vault drops what it did for a request that was cut off.
func (l *life) awaitNothing(mark bed.AuditMark) {
	l.t.Helper()
	lost := 0
	if l.crash != "" || l.effectsKilled() {
		lost = 1
	}
	every(l.t, 5*time.Second, "nothing of the pod is left", func(ctx context.Context) error {
		l.revive()
		grants, err := l.grants(ctx)
		if err != nil {
			return err
		}
		if grants > 0 { // the audit log is long
			return fmt.Errorf("there are %d grants", grants)
		}
		var left []string
		for _, role := range []string{l.name, l.name + "b"} {
			leases, err := l.bed.VaultLeases(ctx, "database/creds/"+role+"/")
			if err != nil {
				return err
			}
			left = append(left, leases...)
		}
		users, err := l.bed.DatabaseRoles(ctx)
		if err != nil {
			return err
		}
		users = slices.DeleteFunc(users, func(user string) bool { return !strings.Contains(user, "-"+l.name) })
		tokens, err := l.liveTokens(ctx, mark)
		if err != nil {
			return err
		}
		if len(left) > lost || len(left) > 0 && len(users) > 0 || len(users) > lost || len(tokens) > lost {
			return fmt.Errorf("there are %d leases, %d users, %d tokens", len(left), len(users), len(tokens))
		}
		if len(left)+len(users)+len(tokens) > 0 {
			l.t.Logf("a request that was cut off left %d leases without a user, %d users without a lease and %d tokens", len(left), len(users), len(tokens))
		}
		return nil
	})
}

func (l *life) effectsKilled() bool {
	_, err := os.Stat(l.effectsFile() + ".killed")
	return err == nil
}

func (l *life) liveTokens(ctx context.Context, mark bed.AuditMark) ([]string, error) {
	entries, err := l.bed.AuditSince(mark)
	if err != nil {
		return nil, err
	}
	var accessors []string
	for _, e := range entries {
		if e.Accessor != "" && e.Namespace == l.namespace() {
			accessors = append(accessors, e.Accessor)
		}
	}
	if len(accessors) == 0 {
		return nil, nil
	}
	return l.bed.LiveTokens(ctx, accessors)
}

func (l *life) grants(ctx context.Context) (int, error) {
	output, err := exec.CommandContext(ctx, l.binary, "leases", "-o", "json", "--state-dir", filepath.Join(l.dir, "state")).Output()
	if err != nil {
		return 0, fmt.Errorf("asking the provider what it holds: %w", err)
	}
	var report admin.Report
	if err := json.Unmarshal(output, &report); err != nil {
		return 0, err
	}
	return len(report.Grants), nil
}
