package bed

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-csi/leasehold/test/bed/tool"
)

func (b *Bed) upLight(ctx context.Context) error {
	b.state.Host = "127.0.0.1"
	b.state.Node = "light"
	b.state.KubeletDir = b.path("kubelet")
	if err := os.MkdirAll(filepath.Join(b.state.KubeletDir, "pods"), 0o700); err != nil { // kubelet makes it before anything else
		return err
	}
	port, err := b.freePort()
	if err != nil {
		return err
	}
	at := address{ip: b.state.Host, port: port, serviceNet: "10.96.0.0/16", serviceIP: "10.96.0.1"}
	if err := b.upServers(ctx, at); err != nil {
		return err
	}
	err = b.progress.step("driver's API objects", func() (string, error) { return "", b.applyDriver(ctx) })
	if err != nil {
		return err
	}
	if b.traces {
		if err := b.startCollector(ctx); err != nil {
			return err
		}
	}
	if b.state.Provider.Binary != "" {
		if err := b.startLightProvider(ctx); err != nil {
			return err
		}
	}
	return b.startLightNode(ctx)
}

// upServers starts what both forms have alike.
func (b *Bed) upServers(ctx context.Context, at address) error {
	if b.database {
		if err := b.startPostgres(ctx); err != nil {
			return err
		}
	}
	if err := b.startVault(ctx); err != nil {
		return err
	}
	if err := b.startControlPlane(ctx, at); err != nil {
		return err
	}
	if err := b.setUpVault(ctx); err != nil {
		return err
	}
	return b.writeManifests(ctx)
}

// startLightProvider runs Leasehold as a process that may do in the cluster what its manifests allow, and no more.
func (b *Bed) startLightProvider(ctx context.Context) error {
	return b.progress.step("leasehold", func() (string, error) {
		kubeconfig := b.path("kubeconfig-provider")
		if err := b.makeProviderAccount(ctx, kubeconfig); err != nil {
			return "", err
		}
		port, err := b.freePort()
		if err != nil {
			return "", err
		}
		uiPort, err := b.freePort()
		if err != nil {
			return "", err
		}
		b.state.Provider.HealthAddress = net.JoinHostPort(b.state.Host, strconv.Itoa(port))
		b.state.Provider.UIAddress = net.JoinHostPort("127.0.0.1", strconv.Itoa(uiPort))
		b.state.Provider.Endpoint = b.path("providers", "vault.sock")
		b.state.Provider.StateDir = b.lightStateDir()
		if err := os.MkdirAll(b.state.Provider.StateDir, 0o700); err != nil {
			return "", fmt.Errorf("making the provider's state folder: %w", err)
		}
		args := []string{
			b.state.Provider.Binary, "serve",
			"--endpoint", b.state.Provider.Endpoint,
			"--endpoint", b.path("providers", "openbao.sock"),
			"--node-name", b.state.Node,
			"--kubeconfig", kubeconfig,
			"--state-dir", b.state.Provider.StateDir,
			"--kubelet-dir", b.state.KubeletDir,
			"--vault-addr", b.state.Vault.Address,
			"--health-addr", b.state.Provider.HealthAddress, "--ui-addr", b.state.Provider.UIAddress,
			"--log-level", "debug", "--log-format", "json",
			"--audit-log", b.AuditLog(),
		}
		for _, pattern := range b.openAddresses() {
			args = append(args, "--allow-vault-addr", pattern)
		}
		if err = b.start(ctx, "provider", &process{Args: args, Env: b.tracesEnv()}); err != nil {
			return "", err
		}
		return b.state.Provider.Endpoint, b.await(ctx, "provider", b.lightProviderReady)
	})
}

// AuditLog is the file of the provider's audit log in the light form; in the others it goes to the standard output.
func (b *Bed) AuditLog() string { return b.log("provider-audit") }

// Provider returns the command line of the provider's process in the light form.
func (b *Bed) Provider() []string { return slices.Clone(b.process("provider").Args) }

// SetProvider gives the provider's process of the light form another command line and environment, from its next start on.
func (b *Bed) SetProvider(args, env []string) {
	p := b.process("provider")
	b.mu.Lock()
	defer b.mu.Unlock()
	p.Args, p.Env = args, env
}

// lightStateDir is on a tmpfs of every Linux machine, and so outside of the bed's folder.
func (b *Bed) lightStateDir() string {
	return filepath.Join("/dev/shm", "leasehold-"+b.digest())
}

func (b *Bed) lightProviderReady(ctx context.Context) error {
	return get(ctx, "http://"+b.state.Provider.HealthAddress+"/readyz")
}

// makeProviderAccount applies Leasehold's manifests without the DaemonSet and writes access as its service account.
func (b *Bed) makeProviderAccount(ctx context.Context, kubeconfig string) error {
	if err := b.writeProviderManifests(); err != nil {
		return err
	}
	documents, err := b.render(ctx, "provider")
	if err != nil {
		return err
	}
	rest, daemonSet, err := splitDaemonSet(documents)
	if err != nil {
		return err
	}
	if err := b.apply(ctx, rest); err != nil {
		return err
	}
	token, err := b.serviceAccountToken(ctx, daemonSet.Namespace, daemonSet.Spec.Template.Spec.ServiceAccountName)
	if err != nil {
		return err
	}
	return b.writeKubeconfig(kubeconfig, token, daemonSet.Namespace)
}

func (b *Bed) startLightNode(ctx context.Context) error {
	return b.progress.step("light node", func() (string, error) {
		err := b.start(ctx, "driver", &process{Args: []string{
			b.program(tool.Driver, "lightnode"),
			"--kubeconfig", b.state.Kubeconfig,
			"--node-name", b.state.Node,
			"--kubelet-dir", b.state.KubeletDir,
			"--providers-dir", b.path("providers"),
			"--sync-frequency", "10s",
			"--rotation-poll-interval", "5s",
		}})
		if err != nil {
			return "", err
		}
		return "node " + b.state.Node, b.await(ctx, "driver", b.lightNodeReady)
	})
}

func (b *Bed) lightNodeReady(ctx context.Context) error {
	_, err := b.client.CoreV1().Nodes().Get(ctx, b.state.Node, metav1.GetOptions{})
	return err
}
