//go:build e2e

package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/test/bed"
)

const (
	driverName = "secrets-store.csi.k8s.io"
	volume     = "secrets"
	mountPath  = "/mnt/secrets"
	appImage   = "bed-app:dev"
)

// place is where a scenario happens: a namespace with the service account my-app, and a database role.
type place struct {
	*suite
	t    *testing.T
	ns   string
	role string
	// logins are the accessors of the tokens made here and not yet seen dead, up to mark.
	logins []string
	mark   bed.AuditMark
}

// newPlace makes a place whose database credentials live as long as the role my-app's. It is removed at the end of the test;
// that of a failed test first tells what happened in it.
func (s *suite) newPlace(t *testing.T, name string) *place {
	t.Helper()
	select {
	case <-s.interrupted:
		t.Fatal("interrupted")
	default:
	}
	// The name of a database user holds the first eight characters of its role.
	role := strings.ToLower(rand.Text()[:8])
	p := &place{suite: s, t: t, ns: "e2e-" + name + "-" + role, role: role, mark: s.auditMark(t)}
	p.makeRole(role, nil)
	ctx := t.Context()
	namespaces := s.bed.Client().CoreV1().Namespaces()
	if _, err := namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: p.ns}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if t.Failed() {
			p.tell(ctx)
		}
		if err := namespaces.Delete(ctx, p.ns, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	p.makeAccount("my-app")
	return p
}

// makeRole makes a database role like my-app, with changes.
func (p *place) makeRole(name string, changes map[string]any) {
	p.t.Helper()
	like, err := p.vault.Logical().ReadWithContext(p.t.Context(), "database/roles/my-app")
	if err != nil {
		p.t.Fatal(err)
	}
	maps.Copy(like.Data, changes)
	if _, err := p.vault.Logical().WriteWithContext(p.t.Context(), "database/roles/"+name, like.Data); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) makeAccount(name string) {
	p.t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := p.bed.Client().CoreV1().ServiceAccounts(p.ns).Create(p.t.Context(), account, metav1.CreateOptions{}); err != nil {
		p.t.Fatal(err)
	}
}

// credentials lists the two files that show one read of a database role.
func credentials(role string) string {
	return fmt.Sprintf(`
- objectName: db_user
  secretPath: database/creds/%[1]s
  secretKey: username
- objectName: db_pass
  secretPath: database/creds/%[1]s
  secretKey: password
`, role)
}

// class makes a SecretProviderClass.
func (p *place) class(name string, parameters map[string]string) {
	p.t.Helper()
	p.apply(newClass(name, parameters))
}

// newClass returns a SecretProviderClass; synced are names of files that the driver copies into a Secret of the class's name, under keys
// of their names with dots for slashes.
func newClass(name string, parameters map[string]string, synced ...string) *unstructured.Unstructured {
	values := map[string]any{}
	for key, value := range parameters {
		values[key] = value
	}
	spec := map[string]any{"provider": "vault", "parameters": values}
	var data []any
	for _, file := range synced {
		data = append(data, map[string]any{"objectName": file, "key": strings.ReplaceAll(file, "/", ".")})
	}
	if data != nil {
		spec["secretObjects"] = []any{map[string]any{"secretName": name, "type": "Opaque", "data": data}}
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "secrets-store.csi.x-k8s.io/v1", "kind": "SecretProviderClass", "metadata": map[string]any{"name": name}, "spec": spec,
	}}
}

func (p *place) apply(class *unstructured.Unstructured) {
	p.t.Helper()
	if _, err := p.classes.Namespace(p.ns).Create(p.t.Context(), class, metav1.CreateOptions{}); err != nil {
		p.t.Fatal(err)
	}
}

// databaseClass makes a class "db" with the credentials of the place's own role.
func (p *place) databaseClass() {
	p.t.Helper()
	p.class("db", map[string]string{"roleName": "my-app-role", "objects": credentials(p.role)})
}

func (p *place) pods() typedcorev1.PodInterface { return p.bed.Client().CoreV1().Pods(p.ns) }

// newPod returns a pod that waits for its end, with one volume.
func newPod(name, class string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			ServiceAccountName: "my-app",
			RestartPolicy:      corev1.RestartPolicyNever,
			Containers:         []corev1.Container{{Name: "app", Image: appImage, ImagePullPolicy: corev1.PullNever}},
		},
	}
	addVolume(pod, volume, mountPath, class)
	return pod
}

func addVolume(pod *corev1.Pod, name, path, class string) {
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
		Driver: driverName, ReadOnly: new(true), VolumeAttributes: map[string]string{"secretProviderClass": class},
	}}})
	app := &pod.Spec.Containers[0]
	app.VolumeMounts = append(app.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: path, ReadOnly: true})
}

// logInAlways has the pod's container log in to PostgreSQL twice a second, for as long as it lives (full form).
func (p *place) logInAlways(pod *corev1.Pod, more ...string) {
	pg := p.bed.State().Postgres
	pod.Spec.Containers[0].Args = append([]string{
		"run", "--dsn", fmt.Sprintf("postgres://%s:%d/%s?sslmode=disable", pg.Host, pg.Port, pg.Database),
		"--user-file", mountPath + "/db_user", "--pass-file", mountPath + "/db_pass", "--probe-every", "500ms",
	}, more...)
}

func (p *place) create(pod *corev1.Pod) *corev1.Pod {
	p.t.Helper()
	created, err := p.pods().Create(p.t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	return created
}

func (p *place) awaitRunning(pod *corev1.Pod) {
	p.t.Helper()
	p.eventually(p.t, "pod "+pod.Name+" runs", func(ctx context.Context) error {
		now, err := p.pods().Get(ctx, pod.Name, metav1.GetOptions{})
		if err == nil && now.Status.Phase != corev1.PodRunning {
			err = errors.New("it is " + string(now.Status.Phase))
		}
		return err
	})
}

// run makes a pod and returns it when its containers run.
func (p *place) run(pod *corev1.Pod) *corev1.Pod {
	p.t.Helper()
	created := p.create(pod)
	p.awaitRunning(created)
	return created
}

func (p *place) delete(pod *corev1.Pod, options metav1.DeleteOptions) {
	p.t.Helper()
	if err := p.pods().Delete(p.t.Context(), pod.Name, options); err != nil {
		p.t.Fatal(err)
	}
}

// deleteAll deletes every pod of the place.
func (p *place) deleteAll() {
	p.t.Helper()
	if err := p.pods().DeleteCollection(p.t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		p.t.Fatal(err)
	}
}

// podFolder is kubelet's folder of a pod.
func (p *place) podFolder(pod *corev1.Pod) string {
	return filepath.Join(p.bed.State().KubeletDir, "pods", string(pod.UID))
}

// volumeFolder is kubelet's folder of a pod's volume.
func (p *place) volumeFolder(pod *corev1.Pod, name string) string {
	return filepath.Join(p.podFolder(pod), "volumes", "kubernetes.io~csi", name)
}

// makeFolder makes kubelet's folder of the volume of a pod that no kubelet runs. It holds a file, as it always does: kubelet removes empty
// ones of pods that it does not know.
func (p *place) makeFolder(pod *corev1.Pod) {
	folder := p.volumeFolder(pod, volume)
	if err := errors.Join(os.MkdirAll(folder, 0o700), os.WriteFile(filepath.Join(folder, "vol_data.json"), []byte("{}"), 0o600)); err != nil {
		p.t.Error(err)
	}
}

// read returns a file of a pod's volume, and has it never appear in a log.
func (p *place) read(pod *corev1.Pod, volume, file string) string {
	p.t.Helper()
	content, err := os.ReadFile(filepath.Join(p.volumeFolder(pod, volume), "mount", file))
	if err != nil {
		p.t.Fatal(err)
	}
	if len(content) == 0 {
		p.t.Fatalf("file %s of pod %s is empty", file, pod.Name)
	}
	p.secrets.add("the file "+file, string(content))
	return string(content)
}

// login is what a pod's application would use.
type login struct{ user, password string }

func (p *place) login(pod *corev1.Pod) login {
	p.t.Helper()
	return login{user: p.read(pod, volume, "db_user"), password: p.read(pod, volume, "db_pass")}
}

func (p *place) mustLogIn(l login) {
	p.t.Helper()
	if err := p.bed.CanLogIn(p.t.Context(), l.user, l.password); err != nil {
		p.t.Fatalf("logging in with the mounted credentials: %v", err)
	}
}

// holding is what exists for a place.
type holding struct {
	leases []string // ids of leases of its database role
	tokens []string // accessors of logins of its namespace
	users  []string // in PostgreSQL, of its database role
	grants []admin.Grant
}

func (h holding) String() string {
	return fmt.Sprintf("%d leases, %d tokens, %d database users, %d grants %+v", len(h.leases), len(h.tokens), len(h.users), len(h.grants), h.grants)
}

func (h holding) none() bool { return len(h.leases)+len(h.tokens)+len(h.users)+len(h.grants) == 0 }

func (p *place) holds(ctx context.Context) (h holding, err error) {
	if h.leases, err = p.bed.VaultLeases(ctx, "database/creds/"+p.role); err != nil {
		return h, err
	}
	if h.tokens, err = p.tokens(ctx); err != nil {
		return h, err
	}
	if h.users, err = p.users(ctx, p.role); err != nil {
		return h, err
	}
	report, err := p.report(ctx)
	if err != nil {
		return h, err
	}
	for _, g := range report.Grants {
		if g.Namespace == p.ns {
			h.grants = append(h.grants, g)
		}
	}
	for _, id := range h.leases {
		p.secrets.addLease(id)
	}
	for _, accessor := range h.tokens {
		p.secrets.add("a token's accessor", accessor)
	}
	return h, nil
}

// tokens returns the accessors of the live tokens that logins of the namespace's service accounts made.
func (p *place) tokens(ctx context.Context) ([]string, error) {
	mark, err := p.bed.AuditMark()
	if err != nil {
		return nil, err
	}
	entries, err := p.bed.AuditSince(p.mark)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		// What was answered after mark will be found again.
		if entry.Namespace == p.ns && entry.Accessor != "" && !slices.Contains(p.logins, entry.Accessor) {
			p.logins = append(p.logins, entry.Accessor)
		}
	}
	p.mark = mark
	p.logins, err = p.bed.LiveTokens(ctx, p.logins)
	return slices.Clone(p.logins), err
}

// mustHold checks, once, that there are as many logins, leases, database users and grants of the provider.
func (p *place) mustHold(each int) holding {
	p.t.Helper()
	h, err := p.holds(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	if len(h.leases) != each || len(h.tokens) != each || len(h.users) != each || len(h.grants) != each {
		p.t.Fatalf("there should be %d of each, but there are %v", each, h)
	}
	return h
}

// mustStillHold checks that Vault holds exactly what it held before.
func (p *place) mustStillHold(before holding) {
	p.t.Helper()
	now, err := p.holds(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	if !slices.Equal(now.leases, before.leases) || !slices.Equal(now.tokens, before.tokens) || !slices.Equal(now.users, before.users) {
		p.t.Fatalf("what is held has changed from %v to %v", before, now)
	}
}

func (p *place) awaitNothing() {
	p.t.Helper()
	p.eventually(p.t, "nothing is held for "+p.ns, func(ctx context.Context) error {
		h, err := p.holds(ctx)
		if err == nil && !h.none() {
			err = fmt.Errorf("there are %v", h)
		}
		return err
	})
}

// complaints returns the messages of FailedMount events, of one pod or, for "", of all pods. It leaves out the tokens that
// Kubernetes itself mounts, which a busy kubelet can be late with.
func (p *place) complaints(ctx context.Context, pod string) ([]string, error) {
	selector := fields.Set{"reason": "FailedMount"}
	if pod != "" {
		selector["involvedObject.name"] = pod
	}
	events, err := p.bed.Client().CoreV1().Events(p.ns).List(ctx, metav1.ListOptions{FieldSelector: selector.AsSelector().String()})
	if err != nil {
		return nil, err
	}
	var messages []string
	for _, event := range events.Items {
		if !strings.Contains(event.Message, `for volume "kube-api-access-`) {
			messages = append(messages, event.Message)
		}
	}
	return messages, nil
}

// awaitComplaint waits for a FailedMount event of the pod that says all of that.
func (p *place) awaitComplaint(pod string, says ...string) {
	p.t.Helper()
	p.eventually(p.t, fmt.Sprintf("an event of pod %s says %q", pod, says), func(ctx context.Context) error {
		messages, err := p.complaints(ctx, pod)
		if err != nil {
			return err
		}
		for _, message := range messages {
			if !slices.ContainsFunc(says, func(part string) bool { return !strings.Contains(message, part) }) {
				return nil
			}
		}
		return fmt.Errorf("the events say %q", messages)
	})
}

func (p *place) mustNotComplain() {
	p.t.Helper()
	messages, err := p.complaints(p.t.Context(), "")
	if err != nil {
		p.t.Fatal(err)
	}
	if len(messages) > 0 {
		p.t.Errorf("a mount failed: %q", messages)
	}
}

// appLog follows the log of a pod's container until that has ended. The function that it returns waits for that.
func (p *place) appLog(pod *corev1.Pod) (whole func() string) {
	p.t.Helper()
	stream, err := p.pods().GetLogs(pod.Name, &corev1.PodLogOptions{Follow: true}).Stream(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	var text bytes.Buffer
	read := make(chan error, 1)
	go func() {
		_, err := io.Copy(&text, stream)
		read <- errors.Join(err, stream.Close())
	}()
	return func() string {
		p.t.Helper()
		select {
		case err := <-read:
			if err != nil {
				p.t.Fatalf("reading the app's log: %v", err)
			}
		case <-time.After(patience):
			p.t.Fatal("the app's log did not end")
		}
		return text.String()
	}
}

// awaitObjectGone waits until the API server has no such pod any more.
func (p *place) awaitObjectGone(pod *corev1.Pod) {
	p.t.Helper()
	p.eventually(p.t, "the object of pod "+pod.Name+" is gone", func(ctx context.Context) error {
		_, err := p.pods().Get(ctx, pod.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return err
		}
		return errors.New("it is there")
	})
}

// mustNotBeHeld checks that a lease and its user are gone, by their names.
func (p *place) mustNotBeHeld(h holding, l login) {
	p.t.Helper()
	for _, id := range h.leases {
		if found, err := p.lease(p.t.Context(), id); err != nil || found != nil {
			p.t.Errorf("a lease should be gone: %v", err)
		}
	}
	if err := p.bed.CanLogIn(p.t.Context(), l.user, l.password); err == nil {
		p.t.Error("the credentials of a pod that is gone still work")
	}
}

// tell logs what one wants to know of a scenario that failed.
func (p *place) tell(ctx context.Context) {
	events, err := p.bed.Client().CoreV1().Events(p.ns).List(ctx, metav1.ListOptions{})
	if err == nil {
		for _, event := range events.Items {
			p.t.Logf("event of %s: %s: %s", event.InvolvedObject.Name, event.Reason, event.Message)
		}
	}
	if report, err := p.report(ctx); err == nil {
		p.t.Logf("leasehold leases: %+v", report.Grants)
	} else {
		p.t.Logf("leasehold leases: %v", err)
	}
	if value, err := getJSON(ctx, admin.Client(p.adminDir()), "http://leasehold/v1/events?namespace="+p.ns); err == nil {
		p.t.Logf("what happened: %v", value)
	}
	if text, err := p.logs.text(); err == nil {
		lines := strings.Split(strings.TrimSpace(text), "\n")
		p.t.Logf("the provider's log ends with\n%s", strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
}
