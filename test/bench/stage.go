package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	secretsstorev1 "sigs.k8s.io/secrets-store-csi-driver/apis/v1"
	"sigs.k8s.io/secrets-store-csi-driver/pkg/client/clientset/versioned"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/test/bed"
)

const (
	namespace = "bench"
	// node has no kubelet: its pods are objects, and their volumes' folders are made here.
	node    = "bench"
	account = "my-app"
	// role gives tokens of 20 min, below the orphan TTL; longRole of 2 h, above it.
	role, longRole = "my-app-role", "bench-long"
	// kvPaths and databaseRoles are how many there are to read; shortRole gives credentials of 20 s.
	kvPaths, databaseRoles = 50, 4
	shortRole              = "bench-short"

	patience = 5 * time.Minute
	// crowd is how many requests to the API are under way at a time when pods are made.
	crowd = 16
)

// stage is the bed with a provider of its own node.
type stage struct {
	options
	bed      *bed.Bed
	kubelet  string // its folder
	args     []string
	driver   v1alpha1.CSIDriverProviderClient
	conn     *grpc.ClientConn
	made     atomic.Int64 // pods
	machine  string
	commit   string
	finished []func() error
}

// newStage raises a light bed. It must be closed, also when there is an error.
func newStage(ctx context.Context, o options) (*stage, error) {
	s := &stage{options: o, machine: machine(), commit: commit(ctx)}
	if s.provider == "" {
		s.provider = "bin/leasehold"
		if err := build(ctx, s.provider); err != nil {
			return s, err
		}
	}
	s.finished = append(s.finished, func() error { return bed.Down(context.WithoutCancel(ctx), o.dir) })
	var err error
	if s.bed, err = bed.Up(ctx, bed.Options{Form: bed.Light, Dir: o.dir, Log: os.Stdout, Provider: s.provider}); err != nil {
		return s, err
	}
	s.kubelet = filepath.Join(o.dir, "bench-kubelet")
	if err := os.MkdirAll(filepath.Join(s.kubelet, "pods"), 0o700); err != nil {
		return s, fmt.Errorf("making kubelet's folder: %w", err)
	}
	if err := errors.Join(s.fillCluster(ctx), s.fillVault(ctx)); err != nil {
		return s, err
	}
	s.conn, err = grpc.NewClient("unix:"+s.bed.State().Provider.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: time.Millisecond, Multiplier: 1, MaxDelay: time.Millisecond}, MinConnectTimeout: time.Second}))
	if err != nil {
		return s, fmt.Errorf("making the driver's client: %w", err)
	}
	s.finished = append(s.finished, s.conn.Close)
	s.driver = v1alpha1.NewCSIDriverProviderClient(s.conn)
	s.args = slices.Concat(without(s.bed.Provider(), "--log-format", "--audit-log", "--ui-addr"), []string{
		"--node-name", node, "--kubelet-dir", s.kubelet, "--log-level", "info", "--state-max", "33554432",
	})
	return s, s.restart(ctx)
}

// without drops flags with their values: those that the bed sets for its own tests, and that not every version knows that is measured.
func without(args []string, flags ...string) []string {
	var kept []string
	for i := 0; i < len(args); i++ {
		if slices.Contains(flags, args[i]) {
			i++
			continue
		}
		kept = append(kept, args[i])
	}
	return kept
}

// build makes the binary as `make build` does.
func build(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, "make", "build")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", path, err, output)
	}
	return nil
}

func (s *stage) close() (err error) {
	for _, finish := range slices.Backward(s.finished) {
		err = errors.Join(err, finish())
	}
	return err
}

// restart starts the provider anew, with more flags; later ones win. Its memory limit is that of manifests/base.
func (s *stage) restart(ctx context.Context, flags ...string) error {
	return s.restartAs(ctx, s.args[0], flags...)
}

// restartAs is restart with another binary.
func (s *stage) restartAs(ctx context.Context, binary string, flags ...string) error {
	env := []string{"GOMEMLIMIT=64MiB"}
	if s.env != "" {
		env = append(env, s.env)
	}
	s.bed.SetProvider(slices.Concat([]string{binary}, s.args[1:], flags), env)
	return s.bed.Restart(ctx, "provider")
}

// fillCluster makes the node, the namespace and the service account.
func (s *stage) fillCluster(ctx context.Context) error {
	core := s.bed.Client().CoreV1()
	_, err := core.Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, metav1.CreateOptions{})
	if err == nil {
		_, err = core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	}
	if err == nil {
		_, err = core.ServiceAccounts(namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("preparing the cluster: %w", err)
	}
	return makeClass(ctx, s.bed, "bench", nil)
}

// makeClass makes a SecretProviderClass.
func makeClass(ctx context.Context, b *bed.Bed, name string, parameters map[string]string) error {
	client, err := versioned.NewForConfig(b.RESTConfig())
	if err != nil {
		return fmt.Errorf("making a client for classes: %w", err)
	}
	_, err = client.SecretsstoreV1().SecretProviderClasses(namespace).Create(ctx, &secretsstorev1.SecretProviderClass{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       secretsstorev1.SecretProviderClassSpec{Provider: "vault", Parameters: parameters},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("making a class: %w", err)
	}
	return nil
}

// fillVault makes what is read.
func (s *stage) fillVault(ctx context.Context) error {
	client, err := s.bed.Vault()
	if err != nil {
		return err
	}
	writes := map[string]map[string]any{
		"auth/kubernetes/role/" + longRole: {
			"bound_service_account_names": account, "bound_service_account_namespaces": "*", "audience": "vault", "token_ttl": "2h", "token_policies": "my-app",
		},
	}
	for i := range kvPaths {
		writes[kvPath(i)] = map[string]any{"data": map[string]any{"username": fmt.Sprint("user-", i), "password": "a password of some length"}}
	}
	like, err := client.Logical().ReadWithContext(ctx, "database/roles/my-app")
	if err != nil {
		return fmt.Errorf("preparing Vault: %w", err)
	}
	for i := range databaseRoles {
		writes[fmt.Sprint("database/roles/bench-", i)] = like.Data
	}
	if writes["database/roles/"+shortRole], err = shortened(like.Data); err != nil {
		return err
	}
	for path, data := range writes {
		if _, err := client.Logical().WriteWithContext(ctx, path, data); err != nil {
			return fmt.Errorf("preparing Vault: %w", err)
		}
	}
	return nil
}

// shortened is a database role with credentials of 20 s that can be renewed for long.
func shortened(role map[string]any) (map[string]any, error) {
	content, err := json.Marshal(role)
	out := map[string]any{}
	if err == nil {
		err = json.Unmarshal(content, &out)
	}
	out["default_ttl"], out["max_ttl"] = "20s", "24h"
	return out, err
}

func kvPath(i int) string { return fmt.Sprint("secret/data/bench-", i) }

// pod is an object of the API with a token for Vault, and folders that kubelet would have made.
type pod struct{ name, uid, jwt string }

// pods makes n pods.
func (s *stage) pods(ctx context.Context, n int) ([]*pod, error) {
	pods := make([]*pod, n)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(crowd)
	for i := range pods {
		group.Go(func() (err error) { pods[i], err = s.pod(ctx); return err })
	}
	return pods, group.Wait()
}

func (s *stage) pod(ctx context.Context) (*pod, error) {
	name := fmt.Sprint("pod-", s.made.Add(1))
	core := s.bed.Client().CoreV1()
	made, err := core.Pods(namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: account, AutomountServiceAccountToken: new(bool),
			Containers: []corev1.Container{{Name: "app", Image: "none"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("making a pod: %w", err)
	}
	token, err := core.ServiceAccounts(namespace).CreateToken(ctx, account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences: []string{"vault"}, ExpirationSeconds: new(int64(8 * 3600)),
			BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: name, UID: made.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("making a pod's token: %w", err)
	}
	return &pod{name: name, uid: string(made.UID), jwt: token.Status.Token}, nil
}

// end ends every pod of the node and waits until the provider has given back all that it held.
func (s *stage) end(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(s.kubelet, "pods"))
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(s.kubelet, "pods", e.Name())))
	}
	if err != nil {
		return fmt.Errorf("removing kubelet's folders: %w", err)
	}
	err = s.bed.Client().CoreV1().Pods(namespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("deleting the pods: %w", err)
	}
	err = s.await(ctx, "everything is given back", func() error {
		report, err := admin.Fetch(ctx, s.bed.State().Provider.StateDir)
		if err == nil && len(report.Grants) > 0 {
			err = fmt.Errorf("%d grants are left", len(report.Grants))
		}
		return err
	})
	return errors.Join(err, s.settle(ctx, 0))
}

// settle waits until Vault, which revokes leases after it has revoked their token, has no more database leases than some.
func (s *stage) settle(ctx context.Context, most int) error {
	return s.await(ctx, "Vault has revoked the leases", func() error {
		leases, err := s.bed.VaultLeases(ctx, "database/creds")
		if err == nil && len(leases) > most {
			err = fmt.Errorf("%d leases are left", len(leases))
		}
		return err
	})
}

// leases is how many database leases Leasehold holds.
func (s *stage) leases(ctx context.Context) (held int, err error) {
	m, err := s.providerMetrics(ctx)
	for _, state := range m["leasehold_leases"].GetMetric() {
		held += int(state.GetGauge().GetValue())
	}
	return held, err
}

// revoke gives back what the floor holds, and waits until its leases are gone too.
func (s *stage) revoke(ctx context.Context, f *floor) error {
	if err := f.revoke(ctx); err != nil {
		return err
	}
	held, err := s.leases(ctx)
	if err != nil {
		return err
	}
	return s.settle(ctx, held)
}

// await looks until check returns nil.
func (s *stage) await(ctx context.Context, what string, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, err)
		case <-tick.C:
		}
	}
}

// wish is what a volume asks for: the parameters of a class.
type wish struct {
	role  string
	paths []string
	// vault is an address; empty for the provider's own.
	vault string
	// namespace is that of the pod; empty for that of all others.
	namespace string
	// templates has files rendered from templates that show what plain ones do.
	templates bool
}

func kv(n int) wish {
	w := wish{role: role}
	for i := range n {
		w.paths = append(w.paths, kvPath(i))
	}
	return w
}

func database(roles int) wish {
	w := wish{role: role}
	for i := range roles {
		w.paths = append(w.paths, fmt.Sprint("database/creds/bench-", i))
	}
	return w
}

// request makes kubelet's folder of a volume and returns the driver's call for it.
func (s *stage) request(p *pod, volume string, w wish) (*v1alpha1.MountRequest, error) {
	var objects strings.Builder
	for i, path := range w.paths {
		if w.templates {
			fmt.Fprintf(&objects, "- {objectName: file-%d, template: '{{ with secret %q }}{{ .Data.data.username }}{{ end }}'}\n", i, path)
			continue
		}
		fmt.Fprintf(&objects, "- {objectName: file-%d, secretPath: %s, secretKey: username}\n", i, path)
	}
	tokens, err := json.Marshal(map[string]any{"vault": map[string]string{"token": p.jwt}})
	if err != nil {
		return nil, fmt.Errorf("encoding a pod's token: %w", err)
	}
	attributes := map[string]string{
		"secretProviderClass": "bench", "roleName": w.role, "objects": objects.String(),
		"csi.storage.k8s.io/pod.name": p.name, "csi.storage.k8s.io/pod.namespace": cmp.Or(w.namespace, namespace), "csi.storage.k8s.io/pod.uid": p.uid,
		"csi.storage.k8s.io/serviceAccount.name": account, "csi.storage.k8s.io/serviceAccount.tokens": string(tokens),
	}
	if w.vault != "" {
		attributes["vaultAddress"] = w.vault
	}
	encoded, err := json.Marshal(attributes)
	if err != nil {
		return nil, fmt.Errorf("encoding a call: %w", err)
	}
	folder := filepath.Join(s.kubelet, "pods", p.uid, "volumes", "kubernetes.io~csi", volume)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("making a volume's folder: %w", err)
	}
	return &v1alpha1.MountRequest{
		Attributes: string(encoded), Permission: "420",
		TargetPath: "/var/lib/kubelet/pods/" + p.uid + "/volumes/kubernetes.io~csi/" + volume + "/mount",
	}, nil
}

// requests are the calls for a volume of each of n pods' volumes, in turn over the pods.
func (s *stage) requests(pods []*pod, prefix string, n int, w wish) ([]*v1alpha1.MountRequest, error) {
	calls := make([]*v1alpha1.MountRequest, n)
	for i := range calls {
		var err error
		if calls[i], err = s.request(pods[i%len(pods)], fmt.Sprint(prefix, "-", i), w); err != nil {
			return nil, err
		}
	}
	return calls, nil
}

// mount calls the provider and returns how long that took.
func (s *stage) mount(ctx context.Context, in *v1alpha1.MountRequest, files int) (time.Duration, error) {
	start := time.Now()
	out, err := s.driver.Mount(ctx, in)
	took := time.Since(start)
	if err != nil {
		return took, fmt.Errorf("mounting: %w", err)
	}
	if len(out.GetFiles()) != files {
		return took, fmt.Errorf("mounting: %d files, not %d", len(out.GetFiles()), files)
	}
	return took, nil
}

// version makes the smallest of calls and returns how long that took.
func (s *stage) version(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	_, err := s.driver.Version(ctx, &v1alpha1.VersionRequest{Version: "v1alpha1"})
	return time.Since(start), err
}

// serving waits until the provider's socket takes connections, without the pauses of a client library.
func (s *stage) serving(ctx context.Context) error {
	for {
		conn, err := net.Dial("unix", s.bed.State().Provider.Endpoint)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the provider's socket: %w", err)
		case <-time.After(time.Millisecond):
		}
	}
}

// result begins the result of a row.
func (s *stage) result(row, title string) result {
	return result{Row: row, Title: title, Commit: s.commit, Date: time.Now().Format(time.DateOnly), Machine: s.machine, Variant: s.variant}
}
