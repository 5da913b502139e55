package bed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
)

// kindConfig makes republishes as frequent as in the full form.
const kindConfig = `kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
- role: control-plane
  kubeadmConfigPatches:
  - |
    kind: KubeletConfiguration
    syncFrequency: 10s
`

// kindCluster is the name of the bed's cluster.
func (b *Bed) kindCluster() string { return "leasehold-" + b.digest() }

// upKind lets kind make the cluster. Vault and PostgreSQL are processes of this machine, at the address that Docker's
// network knows it by.
func (b *Bed) upKind(ctx context.Context) error {
	b.state.Node = b.kindCluster() + "-control-plane"
	if err := b.createKindCluster(ctx); err != nil {
		return err
	}
	for _, part := range []func(context.Context) error{
		b.startPostgres, b.startVault, b.setUpVault, b.writeManifests,
	} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	err := b.loadImages(ctx, func(ctx context.Context, archive string) error {
		_, err := command(ctx, "kind", "load", "image-archive", archive, "--name", b.kindCluster())
		return err
	})
	if err != nil {
		return err
	}
	return b.rollOut(ctx)
}

func (b *Bed) createKindCluster(ctx context.Context) error {
	return b.progress.step("kind cluster", func() (string, error) {
		config := b.path("kind.yaml")
		if err := os.WriteFile(config, []byte(kindConfig), 0o644); err != nil {
			return "", fmt.Errorf("writing kind's configuration: %w", err)
		}
		_, err := command(ctx, "kind", "create", "cluster", "--name", b.kindCluster(),
			"--config", config, "--kubeconfig", b.state.Kubeconfig, "--wait", "3m")
		if err != nil {
			return "", err
		}
		if err := b.connect(); err != nil {
			return "", err
		}
		b.state.Server = b.config.Host
		if err := os.WriteFile(b.path("pki", "ca.crt"), b.config.CAData, 0o644); err != nil {
			return "", fmt.Errorf("writing the certificate authority: %w", err)
		}
		if b.state.KubeletDir, err = b.kindKubeletDir(ctx); err != nil {
			return "", err
		}
		b.state.Host, err = kindGateway(ctx)
		return b.kindCluster(), err
	})
}

// kindKubeletDir names kubelet's folder in the node's container so that this machine's root can read it.
func (b *Bed) kindKubeletDir(ctx context.Context) (string, error) {
	pid, err := command(ctx, "docker", "inspect", b.state.Node, "--format", "{{.State.Pid}}")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("/proc/%s/root/var/lib/kubelet", bytes.TrimSpace(pid)), nil
}

// kindGateway returns this machine's IPv4 address in Docker's network for kind.
func kindGateway(ctx context.Context) (string, error) {
	output, err := command(ctx, "docker", "network", "inspect", "kind", "--format",
		"{{range .IPAM.Config}}{{.Gateway}} {{end}}")
	if err != nil {
		return "", err
	}
	for field := range strings.FieldsSeq(string(output)) {
		if ip := net.ParseIP(field); ip != nil && ip.To4() != nil {
			return field, nil
		}
	}
	return "", errors.New("docker's network kind has no IPv4 gateway")
}

// removeKindCluster succeeds also when there is none.
func (b *Bed) removeKindCluster(ctx context.Context) error {
	_, err := command(ctx, "kind", "delete", "cluster", "--name", b.kindCluster(), "--kubeconfig", b.state.Kubeconfig)
	return err
}

// command runs a tool of this machine to its end; the error holds what it printed.
func command(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		var detail string
		if len(args) > 0 {
			detail = " " + args[0]
		}
		return nil, fmt.Errorf("running %s%s: %w: %s", name, detail, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return output, nil
}
