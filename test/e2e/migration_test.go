//go:build e2e

package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
	"sigs.k8s.io/yaml"
)

// existing stands for the provider that people have: it does what HashiCorp's does with its socket and with Vault, and forgets what it was
// given. That one's module cannot be had, and neither can OpenBao's.
type existing struct {
	v1alpha1.UnimplementedCSIDriverProviderServer
	vault  string
	grpc   *grpc.Server
	mounts atomic.Int64
}

const existingName = "vault-csi-provider"

// startExisting listens as that provider does: what is at the path is removed first, and Go removes what is there when the listener closes.
func (s *suite) startExisting(t *testing.T, path string) *existing {
	t.Helper()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	e := &existing{vault: s.bed.State().Vault.Address, grpc: grpc.NewServer()}
	v1alpha1.RegisterCSIDriverProviderServer(e.grpc, e)
	served := make(chan error, 1)
	go func() { served <- e.grpc.Serve(listener) }()
	t.Cleanup(func() {
		e.grpc.Stop()
		if err := <-served; err != nil {
			t.Errorf("the existing provider: %v", err)
		}
	})
	return e
}

func (e *existing) Version(context.Context, *v1alpha1.VersionRequest) (*v1alpha1.VersionResponse, error) {
	return &v1alpha1.VersionResponse{Version: "v1alpha1", RuntimeName: existingName, RuntimeVersion: "v1.7.4"}, nil
}

// Mount logs in and reads every path once, at each call.
func (e *existing) Mount(ctx context.Context, in *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
	e.mounts.Add(1)
	var attributes map[string]string
	var tokens map[string]struct{ Token string }
	var objects []struct{ ObjectName, SecretPath, SecretKey string }
	if err := errors.Join(
		json.Unmarshal([]byte(in.GetAttributes()), &attributes),
		json.Unmarshal([]byte(attributes["csi.storage.k8s.io/serviceAccount.tokens"]), &tokens),
		yaml.Unmarshal([]byte(attributes["objects"]), &objects),
	); err != nil {
		return nil, err
	}
	client, err := api.NewClient(&api.Config{Address: e.vault})
	if err != nil {
		return nil, err
	}
	login, err := client.Logical().WriteWithContext(ctx, "auth/kubernetes/login", map[string]any{
		"role": attributes["roleName"], "jwt": tokens["vault"].Token,
	})
	if err != nil {
		return nil, err
	}
	client.SetToken(login.Auth.ClientToken)
	answers := map[string]*api.Secret{}
	response := &v1alpha1.MountResponse{}
	for _, o := range objects {
		if answers[o.SecretPath] == nil {
			if answers[o.SecretPath], err = client.Logical().ReadWithContext(ctx, o.SecretPath); err != nil {
				return nil, err
			}
		}
		content := fmt.Sprint(answers[o.SecretPath].Data[o.SecretKey])
		response.Files = append(response.Files, &v1alpha1.File{Path: o.ObjectName, Mode: 0o644, Contents: []byte(content)})
		response.ObjectVersion = append(response.ObjectVersion, &v1alpha1.ObjectVersion{Id: o.ObjectName, Version: time.Now().String()})
	}
	return response, nil
}

// whoListens asks at a socket; "nobody" where none answers.
func whoListens(ctx context.Context, path string) string {
	client, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err.Error()
	}
	defer func() { _ = client.Close() }()
	version, err := v1alpha1.NewCSIDriverProviderClient(client).Version(ctx, &v1alpha1.VersionRequest{Version: "v1alpha1"})
	if err != nil {
		return "nobody"
	}
	return version.GetRuntimeName()
}

// migration is one node's.
type migration struct {
	*place
	vaultSocket, ownSocket string
	args                   []string // of the provider, without its sockets
}

// owners checks who has which socket.
func (m *migration) owners(vaultSocket, ownSocket string) {
	m.t.Helper()
	for path, want := range map[string]string{m.vaultSocket: vaultSocket, m.ownSocket: ownSocket} {
		if got := whoListens(m.t.Context(), path); got != want {
			m.t.Errorf("%s belongs to %s, want %s", filepath.Base(path), got, want)
		}
	}
}

// leasehold makes the provider's pod anew, with these sockets.
func (m *migration) leasehold(sockets ...string) {
	m.t.Helper()
	args := slices.Clone(m.args)
	for _, socket := range sockets {
		args = append(args, "--endpoint", socket)
	}
	m.bed.SetProvider(args, nil)
	if err := m.bed.Restart(m.t.Context(), "provider"); err != nil {
		m.t.Fatal(err)
	}
}

// awaitOther waits until a pod has other credentials than these, which work, and returns them.
func (m *migration) awaitOther(pod *corev1.Pod, than login) login {
	m.t.Helper()
	var now login
	m.eventually(m.t, "pod "+pod.Name+" has other credentials", func(ctx context.Context) error {
		if now = m.login(pod); now.user == than.user || now.password == than.password { // the driver may be between the two files
			return errors.New("it has the same")
		}
		return m.bed.CanLogIn(ctx, now.user, now.password)
	})
	return now
}

// awaitDead waits until credentials that Leasehold gave have ended, which Vault does a moment after it was told to.
func (m *migration) awaitDead(l login) {
	m.t.Helper()
	m.eventually(m.t, "what Leasehold gave a pod ends with it", func(ctx context.Context) error {
		if m.bed.CanLogIn(ctx, l.user, l.password) == nil {
			return errors.New("it works")
		}
		return nil
	})
}

// awaitHeld waits until Leasehold holds the volumes of these pods and of no other.
func (m *migration) awaitHeld(pods ...string) {
	m.t.Helper()
	m.eventually(m.t, fmt.Sprintf("Leasehold holds the volumes of %q", pods), func(ctx context.Context) error {
		h, err := m.holds(ctx)
		if err != nil {
			return err
		}
		var held []string
		for _, g := range h.grants {
			held = append(held, g.Pod)
		}
		if slices.Sort(held); !slices.Equal(held, pods) {
			return fmt.Errorf("it holds those of %q", held)
		}
		return nil
	})
}

// awaitRepublishes waits until Leasehold has answered the driver twice more: what it answered before is in the volumes then.
func (m *migration) awaitRepublishes() {
	m.t.Helper()
	before, err := m.mounts(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	m.awaitMounts(m.t, before["OK"]+2)
}

// readyz is what the provider says of itself.
func (m *migration) readyz(ctx context.Context) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.bed.State().Provider.HealthAddress+"/readyz", nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return string(text), err
}

// migrates walks docs/migration.md on one node: the provider's process has the sockets that its pod has there after each step.
func (s *suite) migrates(t *testing.T) {
	p := s.newPlace(t, "migration")
	original := s.bed.Provider()
	m := &migration{place: p, vaultSocket: s.bed.State().Provider.Endpoint}
	m.ownSocket = filepath.Join(filepath.Dir(m.vaultSocket), "leasehold.sock")
	for i := 0; i < len(original); i++ {
		if original[i] == "--endpoint" {
			i++
			continue
		}
		m.args = append(m.args, original[i])
	}
	t.Cleanup(func() {
		s.bed.SetProvider(original, nil)
		if err := errors.Join(s.bed.Restart(context.WithoutCancel(t.Context()), "provider"), os.Remove(m.ownSocket)); err != nil {
			t.Error(err)
		}
	})

	// Before: it makes new credentials at each republish, and forgets those that it made.
	if err := s.bed.Stop(t.Context(), "provider"); err != nil {
		t.Fatal(err)
	}
	old := s.startExisting(t, m.vaultSocket)
	p.databaseClass()
	p.class("tried", map[string]string{"roleName": "my-app-role", "objects": credentials(p.role)})
	stays, moves := p.run(newPod("stays", "db")), p.run(newPod("moves", "tried"))
	m.owners(existingName, "nobody")
	theirs := p.login(stays)
	m.awaitOther(stays, theirs)
	p.mustLogIn(theirs)

	// What is leased from now on is renewed within the test.
	p.makeRole(p.role, map[string]any{"default_ttl": "2m"})

	// 1 and 2: Leasehold beside it, and a class that moves.
	m.leasehold(m.ownSocket)
	m.owners(existingName, "leasehold")
	p.shell(`kubectl patch secretproviderclass tried --type=merge -p '{"spec":{"provider":"leasehold"}}'`)
	m.awaitHeld("moves")
	m.awaitRepublishes()
	moved := p.login(moves)
	p.mustLogIn(moved)
	p.awaitEvent(moves.Name, "StartedEmpty")
	fresh := p.run(newPod("fresh", "tried"))
	m.awaitHeld("fresh", "moves")
	freshly := p.login(fresh)
	p.delete(fresh, metav1.DeleteOptions{})
	m.awaitHeld("moves")
	m.awaitDead(freshly)

	// 4: the existing provider leaves, and Leasehold's pod is made anew.
	old.grpc.GracefulStop()
	m.owners("nobody", "leasehold")
	theirs = p.login(stays)
	p.mustLogIn(theirs)
	m.leasehold(m.vaultSocket, m.ownSocket)
	m.owners("leasehold", "leasehold")
	m.awaitHeld("moves", "stays")
	ours := m.awaitOther(stays, theirs)
	p.awaitEvent(stays.Name, "StartedEmpty")
	m.awaitRepublishes()
	if p.login(stays) != ours || p.login(moves) != moved {
		t.Error("a republish changed credentials that Leasehold holds")
	}

	// An existing provider that returns too early takes the path, but not the driver's connection. Leasehold says who it was.
	early := s.startExisting(t, m.vaultSocket)
	m.owners(existingName, "leasehold")
	m.awaitRepublishes()
	if n := early.mounts.Load(); n > 0 {
		t.Errorf("the driver called the existing provider %d times", n)
	}
	if text, err := m.readyz(t.Context()); err != nil || !strings.Contains(text, "another provider listens in our place") || !strings.Contains(text, existingName) {
		t.Errorf("Leasehold says of its readiness %q, %v", text, err)
	}
	early.grpc.GracefulStop()
	s.eventually(t, "Leasehold has its socket again", func(ctx context.Context) error {
		if who := whoListens(ctx, m.vaultSocket); who != "leasehold" {
			return errors.New("it belongs to " + who)
		}
		return nil
	})

	// 5: back. What Leasehold gave is renewed until its pod ends.
	m.leasehold(m.ownSocket)
	m.owners("nobody", "leasehold")
	back := s.startExisting(t, m.vaultSocket)
	m.owners(existingName, "leasehold")
	m.awaitOther(stays, ours)
	if back.mounts.Load() == 0 {
		t.Error("it was not the existing provider that changed them")
	}
	m.awaitHeld("moves", "stays")
	p.mustLogIn(ours)
	p.delete(stays, metav1.DeleteOptions{})
	m.awaitHeld("moves")
	m.awaitDead(ours)

	// 4 again, and what the existing provider left.
	back.grpc.GracefulStop()
	m.leasehold(m.vaultSocket, m.ownSocket)
	m.owners("leasehold", "leasehold")
	m.revokesLeftovers(moves, moved)
	p.delete(moves, metav1.DeleteOptions{})
	m.endLogins()
	p.awaitNothing()
	p.mustNotComplain()
}

// revokesLeftovers runs the documented commands: they revoke what the existing provider forgot, and nothing that Leasehold holds.
func (m *migration) revokesLeftovers(living *corev1.Pod, its login) {
	m.t.Helper()
	m.eventually(m.t, "Leasehold has renewed its lease", func(ctx context.Context) error {
		h, err := m.holds(ctx)
		if err != nil {
			return err
		}
		for _, id := range h.leases {
			if found, err := m.lease(ctx, id); err != nil || found != nil && found.Data["last_renewal"] != nil {
				return err
			}
		}
		return errors.New("no lease was renewed")
	})
	if h, err := m.holds(m.t.Context()); err != nil || len(h.leases) < 3 {
		m.t.Fatalf("the existing provider should have left leases, and there are %v: %v", h, err)
	}
	m.shell(m.documented("    leases=", "creds/my-app", "creds/"+m.role, "'-15 minutes'", "now"))
	m.eventually(m.t, "only the lease of pod "+living.Name+" is left", func(ctx context.Context) error { // Vault revokes a moment later
		h, err := m.holds(ctx)
		if err == nil && (len(h.leases) != 1 || len(h.users) != 1 || h.users[0] != its.user) {
			err = fmt.Errorf("there are %v", h)
		}
		return err
	})
	m.mustLogIn(its)
}

// documented returns commands of docs/migration.md, an indented block from the line that begins so, with texts replaced, all of which must be there.
func (p *place) documented(begin string, replace ...string) string {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "migration.md"))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n"+begin)
	block, _, _ := strings.Cut(rest, "\n\n")
	for i := 0; i < len(replace); i += 2 {
		found = found && strings.Contains(begin+block, replace[i])
	}
	if !found {
		p.t.Fatalf("docs/migration.md has other commands at %q: %s", begin, block)
	}
	return strings.NewReplacer(replace...).Replace(begin+block) + "\n"
}

// existingLeaves runs the documented commands that have the existing provider leave a node and come back, for a DaemonSet of its name.
func (s *suite) existingLeaves(t *testing.T) {
	p := s.newPlace(t, "leaves")
	node := s.bed.State().Node
	labels := map[string]string{"app.kubernetes.io/name": existingName}
	sets := s.bed.Client().AppsV1().DaemonSets(p.ns)
	set := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: existingName},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "provider", Image: appImage, ImagePullPolicy: corev1.PullNever}}},
			},
		},
	}
	if _, err := sets.Create(t.Context(), set, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	runs := func(pods int32) {
		t.Helper()
		s.eventually(t, fmt.Sprintf("the existing provider has %d pods", pods), func(ctx context.Context) error {
			set, err := sets.Get(ctx, existingName, metav1.GetOptions{})
			if status := set.Status; err == nil && (status.ObservedGeneration < set.Generation || status.DesiredNumberScheduled != pods ||
				status.CurrentNumberScheduled != pods || status.UpdatedNumberScheduled != pods) {
				err = fmt.Errorf("its status is %+v", status)
			}
			return err
		})
	}
	runs(1)
	p.shell(p.documented("       kubectl -n vault patch daemonset", "-n vault ", "", "kubectl apply -k", ": kubectl apply -k"))
	runs(1)
	t.Cleanup(func() { p.shell(p.documented("       kubectl label node NODE vault-provider-", "NODE", node)) })
	p.shell(p.documented("       kubectl label node NODE vault-provider=", "NODE", node, "-n vault ", "", "kubectl -n leasehold", ": kubectl -n leasehold"))
	runs(0)
	p.shell(p.documented("       kubectl label node NODE vault-provider-", "NODE", node))
	runs(1)
}

// endLogins revokes the tokens that the existing provider forgot. They would end by themselves.
func (m *migration) endLogins() {
	m.t.Helper()
	m.awaitHeld()
	accessors, err := m.tokens(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	if len(accessors) == 0 {
		m.t.Error("the existing provider left no tokens")
	}
	for _, accessor := range accessors {
		if err := m.vault.Auth().Token().RevokeAccessorWithContext(m.t.Context(), accessor); err != nil {
			m.t.Error(err)
		}
	}
}
