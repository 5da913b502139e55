package bed

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/leasehold-csi/leasehold/test/bed/tool"
)

//go:embed manifests
var manifests embed.FS

const driverModule = "sigs.k8s.io/secrets-store-csi-driver"

// uiAddress is that of the provider's page within its pod.
const uiAddress = "127.0.0.1:8081"

// kubectl runs the bed's own kubectl as administrator and returns its output.
func (b *Bed) kubectl(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, b.program(tool.Kubernetes, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+b.state.Kubeconfig, "HOME="+b.state.Dir)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		return output, fmt.Errorf("running kubectl %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return output, nil
}

// writeManifests puts all kustomizations below the bed's manifests folder: the driver's own files as "stock", what the
// bed makes of them as "driver".
func (b *Bed) writeManifests(ctx context.Context) error {
	if err := os.CopyFS(b.state.Dir, manifests); err != nil {
		return fmt.Errorf("writing the manifests: %w", err)
	}
	source, err := b.moduleFolder(ctx, tool.Driver, driverModule)
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(source, "deploy", "*.yaml"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("reading the driver's manifests: none in %s", source)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reading the driver's manifests: %w", err)
		}
		if err := os.WriteFile(b.path("manifests", "stock", filepath.Base(file)), content, 0o644); err != nil {
			return fmt.Errorf("writing the driver's manifests: %w", err)
		}
	}
	return nil
}

// moduleFolder returns where the sources of a dependency of one of the tool modules are.
func (b *Bed) moduleFolder(ctx context.Context, of tool.Module, dependency string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", dependency)
	cmd.Dir = filepath.Join(b.root, "test", "tools", of.Name)
	output, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("finding module %s: %w", dependency, err)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(output, &module); err != nil {
		return "", fmt.Errorf("finding module %s: %w", dependency, err)
	}
	return module.Dir, nil
}

func (b *Bed) render(ctx context.Context, kustomization string) ([]byte, error) {
	return b.kubectl(ctx, nil, "kustomize", b.path("manifests", kustomization))
}

// apply creates what the documents describe and waits until its custom resources can be used.
func (b *Bed) apply(ctx context.Context, documents []byte) error {
	_, err := b.kubectl(ctx, documents, "apply", "--server-side", "-f", "-")
	return err
}

// applyDriver makes the driver's API objects; its DaemonSet only where there is a kubelet to run it.
func (b *Bed) applyDriver(ctx context.Context) error {
	documents, err := b.render(ctx, "driver")
	if err != nil {
		return err
	}
	if b.state.Form == Light {
		if documents, _, err = splitDaemonSet(documents); err != nil {
			return err
		}
	}
	if err := b.apply(ctx, documents); err != nil {
		return err
	}
	_, err = b.kubectl(ctx, nil, "wait", "--for=condition=Established", "--timeout=60s", "crd",
		"secretproviderclasses.secrets-store.csi.x-k8s.io", "secretproviderclasspodstatuses.secrets-store.csi.x-k8s.io")
	return err
}

// writeProviderManifests copies manifests/base of the project and patches in what is particular to the bed: Vault's
// address, and an image that no registry has.
func (b *Bed) writeProviderManifests() error {
	base := os.DirFS(filepath.Join(b.root, "manifests", "base"))
	if err := os.CopyFS(b.path("manifests", "base"), base); err != nil {
		return fmt.Errorf("copying Leasehold's manifests: %w", err)
	}
	var kustomization strings.Builder
	_, _ = fmt.Fprintf(&kustomization, `resources:
- ../base
images:
- name: leasehold
  newName: leasehold
  newTag: dev
patches:
- target: {kind: DaemonSet}
  patch: |
    - {op: replace, path: /spec/template/spec/containers/0/imagePullPolicy, value: Never}
    - {op: add, path: /spec/template/spec/containers/0/args/-, value: --vault-addr=%s}
    - {op: add, path: /spec/template/spec/containers/0/args/-, value: --log-level=debug}
    - {op: add, path: /spec/template/spec/containers/0/args/-, value: --audit-log=-}
    - {op: add, path: /spec/template/spec/containers/0/args/-, value: --ui-addr=%s}
`, b.state.Vault.Address, uiAddress)
	for _, pattern := range b.openAddresses() {
		_, _ = fmt.Fprintf(&kustomization, "    - {op: add, path: /spec/template/spec/containers/0/args/-, value: %q}\n", "--allow-vault-addr="+pattern)
	}
	dir := b.path("manifests", "provider")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("writing Leasehold's patch: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(kustomization.String()), 0o644); err != nil {
		return fmt.Errorf("writing Leasehold's patch: %w", err)
	}
	return nil
}

// openAddresses are patterns of what a test's class may name: the bed's own servers, and what no server has.
func (b *Bed) openAddresses() []string {
	patterns := []string{"http://*.invalid:*"}
	hosts := []string{b.state.Host}
	if api, err := url.Parse(b.config.Host); err == nil && api.Hostname() != b.state.Host {
		hosts = append(hosts, api.Hostname())
	}
	for _, host := range hosts {
		patterns = append(patterns, "http://"+host+":*", "https://"+host+":*")
	}
	return patterns
}

// splitDaemonSet separates the one DaemonSet of a set of documents from the rest.
func splitDaemonSet(documents []byte) (rest []byte, daemonSet *appsv1.DaemonSet, err error) {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(documents)))
	var others bytes.Buffer
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("reading manifests: %w", err)
		}
		candidate := &appsv1.DaemonSet{}
		if err := yaml.Unmarshal(document, candidate); err == nil && candidate.Kind == "DaemonSet" {
			daemonSet = candidate
			continue
		}
		others.WriteString("---\n")
		others.Write(document)
	}
	if daemonSet == nil {
		return nil, nil, errors.New("reading manifests: no DaemonSet among them")
	}
	return others.Bytes(), daemonSet, nil
}
