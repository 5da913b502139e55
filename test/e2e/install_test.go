//go:build e2e

package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	clientrest "k8s.io/client-go/rest"

	"github.com/leasehold-csi/leasehold/test/bed"
)

// installed takes Leasehold away and puts it on again as manifests/README.md says, by its chart and by its kustomization: what a pod holds
// goes from one to the other and through upgrades, and in the end nothing is left.
func (s *suite) installed(t *testing.T) {
	p := s.newPlace(t, "installed")
	t.Cleanup(func() {
		if err := s.bed.ApplyProvider(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	p.databaseClass()
	pod := p.run(newPod("survivor", "db"))
	held, credentials, mark := p.mustHold(1), p.login(pod), s.auditMark(t)
	untouched := func(after string) {
		t.Helper()
		if err := s.awaitRollOut(t.Context()); err != nil {
			t.Fatalf("%s: %v", after, err)
		}
		s.awaitMounts(t, 2) // the new process counts from zero, and there is no other pod
		for request, count := range s.audit(t, mark, p.ns) {
			if request == "update auth/kubernetes/login" || strings.HasPrefix(request, "read ") {
				t.Errorf("after %s Vault was asked %d times: %s", after, count, request)
			}
		}
		p.mustStillHold(held)
		p.mustHold(1)
		if p.login(pod) != credentials {
			t.Errorf("%s changed the mounted credentials", after)
		}
		p.mustLogIn(credentials)
	}

	if found, err := s.inCluster(t.Context()); err != nil || len(found) < 8 {
		t.Fatalf("Leasehold is installed, but the look at the cluster finds only %q, %v", found, err)
	}
	if s.nodeHoldsNothing(t.Context()) == nil {
		t.Fatal("Leasehold is installed, but the look at the node finds nothing")
	}
	p.deleteBase()
	p.helm("install", "--create-namespace")
	untouched("the chart took the kustomization's place")
	p.helm("upgrade", "--set logLevel=info")
	untouched("an upgrade with another value")
	another := filepath.Join(nodeRoot(s.bed.State()), "run", "another-kubelet")
	if err := os.MkdirAll(filepath.Join(another, "pods"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.helm("upgrade", "--set kubeletRootDir=/run/another-kubelet")
	untouched("an upgrade with a kubelet folder of nobody's")
	blind := p.create(newPod("blind", "db"))
	p.awaitComplaint(blind.Name, `below "/var/lib/kubelet"`, "does not see in its --kubelet-dir /run/another-kubelet")
	p.delete(blind, metav1.DeleteOptions{})
	p.awaitObjectGone(blind)
	if s.bed.State().Form == bed.Full {
		if err := s.bed.TagImage(t.Context(), "leasehold:dev", "leasehold:next"); err != nil {
			t.Fatal(err)
		}
		p.helm("upgrade", "--set image.tag=next")
		untouched("an upgrade with another image")
	}
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitNothing()
	p.mustNotBeHeld(held, credentials)
	p.drain()
	p.shell(`helm uninstall leasehold --namespace leasehold --wait; command kubectl delete namespace leasehold`)
	s.mustBeGone(t)
	if err := os.RemoveAll(another); err != nil {
		t.Error(err)
	}

	if err := s.bed.ApplyProvider(t.Context()); err != nil {
		t.Fatal(err)
	}
	pod = p.run(newPod("newcomer", "db"))
	held, credentials = p.mustHold(1), p.login(pod)
	p.mustLogIn(credentials)
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitNothing()
	p.mustNotBeHeld(held, credentials)
	p.drain()
	p.deleteBase()
	s.mustBeGone(t)
}

// helm installs or upgrades the chart with the bed's values.
func (p *place) helm(verb, more string) {
	p.t.Helper()
	chart, err := filepath.Abs("../../manifests/chart")
	if err != nil {
		p.t.Fatal(err)
	}
	p.shell(fmt.Sprintf(`helm %s leasehold '%s' --namespace leasehold --wait --timeout 3m \
		--set image.tag=dev --set image.pullPolicy=Never --set logLevel=debug --set vaultAddr='%s' %s`, verb, chart, p.bed.State().Vault.Address, more))
}

func (p *place) deleteBase() {
	p.t.Helper()
	p.shell(fmt.Sprintf("command kubectl delete --kustomize '%s'", p.bed.ProviderManifests()))
}

// drain must find nothing that a running pod uses.
func (p *place) drain() {
	p.t.Helper()
	said, err := p.bed.Leasehold(p.t.Context(), "drain")
	if err != nil || !strings.HasPrefix(string(said), "Nothing is held on node ") {
		p.t.Fatalf("%s, %v", said, err)
	}
}

// mustBeGone waits until there is nothing of Leasehold's any more but what manifests/README.md says.
func (s *suite) mustBeGone(t *testing.T) {
	t.Helper()
	s.eventually(t, "nothing of Leasehold's is in the cluster", func(ctx context.Context) error {
		found, err := s.inCluster(ctx)
		if err == nil && len(found) > 0 {
			err = fmt.Errorf("there are %q", found)
		}
		return err
	})
	s.eventually(t, "nothing of Leasehold's is on the node", s.nodeHoldsNothing)
	s.eventually(t, "nothing is in Vault", s.vaultHoldsNothing)
}

// inCluster lists every object whose metadata name Leasehold, of whatever kind the API server has. Events are left out: they tell what was.
func (s *suite) inCluster(ctx context.Context) (found []string, err error) {
	kinds, err := s.bed.Client().Discovery().ServerPreferredResources()
	if err != nil {
		return nil, err
	}
	config := s.bed.RESTConfig()
	config.WarningHandler = clientrest.NoWarnings{}
	client, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	for _, list := range kinds {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, err
		}
		for _, kind := range list.APIResources {
			if !slices.Contains(kind.Verbs, "list") || kind.Name == "events" || kind.Name == "componentstatuses" {
				continue
			}
			objects, err := client.Resource(version.WithResource(kind.Name)).List(ctx, metav1.ListOptions{})
			if err != nil {
				return nil, fmt.Errorf("listing %s: %w", kind.Name, err)
			}
			for _, object := range objects.Items {
				text, err := json.Marshal(object.ObjectMeta)
				if err != nil {
					return nil, err
				}
				if strings.Contains(string(text), "leasehold") || object.Name == "vault-csi-provider-hmac-key" {
					found = append(found, strings.Join([]string{kind.Name, object.Namespace, object.Name}, "/"))
				}
			}
		}
	}
	return found, nil
}

// nodeHoldsNothing looks for processes, files, logs, and pods' folders.
func (s *suite) nodeHoldsNothing(ctx context.Context) error {
	state := s.bed.State()
	root := nodeRoot(state)
	processes, err := filepath.Glob(filepath.Join(root, "proc", "[0-9]*", "cmdline"))
	if err != nil || len(processes) == 0 {
		return errors.Join(err, errors.New("the node's processes cannot be seen"))
	}
	for _, process := range processes {
		if line, err := os.ReadFile(process); err == nil && strings.HasPrefix(string(line), "/leasehold\x00") {
			return errors.New("a process of it runs: " + strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	var left []string
	for _, folder := range []string{"leasehold", "secrets-store-csi-providers"} {
		files, err := os.ReadDir(filepath.Join(root, "run", folder))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, file := range files {
			if info, err := file.Info(); err != nil || file.Name() != "lock" || info.Size() > 0 {
				left = append(left, filepath.Join("/run", folder, file.Name()))
			}
		}
	}
	pods, err := s.bed.Client().CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	folders, err := os.ReadDir(filepath.Join(state.KubeletDir, "pods"))
	if err != nil {
		return err
	}
	for _, folder := range folders {
		if !slices.ContainsFunc(pods.Items, func(pod corev1.Pod) bool { return string(pod.UID) == folder.Name() }) {
			left = append(left, "kubelet's folder of pod "+folder.Name())
		}
	}
	if left != nil {
		return fmt.Errorf("there are %q", left)
	}
	return nil
}
