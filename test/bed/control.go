package bed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-csi/leasehold/test/bed/tool"
)

// issuer is the name the API server signs service account tokens with.
const issuer = "https://kubernetes.default.svc"

// address is where the API server listens, and the service network whose first address it answers at.
type address struct {
	ip         string
	port       int
	serviceNet string
	serviceIP  string
}

func (b *Bed) startControlPlane(ctx context.Context, at address) error {
	b.state.Server = fmt.Sprintf("https://%s:%d", at.ip, at.port)
	if err := b.makePKI(at.serviceIP); err != nil {
		return err
	}
	if err := b.writeTokens(); err != nil {
		return err
	}
	etcd, err := b.startEtcd(ctx)
	if err != nil {
		return err
	}
	if err := b.startAPIServer(ctx, at, etcd); err != nil {
		return err
	}
	if err := b.connect(); err != nil {
		return err
	}
	if err := b.startController(ctx, "controller-manager", "kube-controller-manager", b.controllerFlags()...); err != nil {
		return err
	}
	if err := b.startController(ctx, "scheduler", "kube-scheduler"); err != nil {
		return err
	}
	return b.progress.step("controllers", func() (string, error) {
		return "controller-manager, scheduler", b.await(ctx, "controller-manager", func(ctx context.Context) error {
			_, err := b.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
			return err
		})
	})
}

// writeTokens gives each client of the API server a token of its own, and a kubeconfig that holds it.
func (b *Bed) writeTokens() error {
	clients := []struct{ kubeconfig, user, group string }{
		{b.state.Kubeconfig, "admin", "system:masters"},
		{b.path("kubeconfig-controller-manager"), "system:kube-controller-manager", ""},
		{b.path("kubeconfig-scheduler"), "system:kube-scheduler", ""},
		{b.path("kubeconfig-kubelet"), "system:node:" + b.state.Node, "system:nodes"},
	}
	var lines strings.Builder
	for _, c := range clients {
		token := rand.Text()
		fmt.Fprintf(&lines, "%s,%s,%s,%q\n", token, c.user, c.user, c.group)
		if err := b.writeKubeconfig(c.kubeconfig, token, ""); err != nil {
			return err
		}
	}
	if err := os.WriteFile(b.path("pki", "tokens.csv"), []byte(lines.String()), 0o600); err != nil {
		return fmt.Errorf("writing the token file: %w", err)
	}
	return nil
}

func (b *Bed) startEtcd(ctx context.Context) (string, error) {
	client, err := b.freeURL()
	if err != nil {
		return "", err
	}
	peer, err := b.freeURL()
	if err != nil {
		return "", err
	}
	return client, b.progress.step("etcd", func() (string, error) {
		err := b.start(ctx, "etcd", &process{Args: []string{
			b.program(tool.Etcd, "server"), // as its package is called
			"--name=bed", "--data-dir=" + b.path("etcd", "data"),
			"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
			"--initial-cluster=bed=" + peer,
			"--unsafe-no-fsync", "--log-level=warn",
		}})
		if err != nil {
			return "", err
		}
		return client, b.await(ctx, "etcd", func(ctx context.Context) error { return get(ctx, client+"/health") })
	})
}

func (b *Bed) startAPIServer(ctx context.Context, at address, etcd string) error {
	pki := func(name string) string { return b.path("pki", name) }
	return b.progress.step("kube-apiserver", func() (string, error) {
		// An orderly end would wait a minute for the clients' watches.
		err := b.start(ctx, "apiserver", &process{Stop: syscall.SIGKILL, Args: []string{
			b.program(tool.Kubernetes, "kube-apiserver"),
			"--etcd-servers=" + etcd,
			"--bind-address=" + at.ip, "--advertise-address=" + at.ip, fmt.Sprintf("--secure-port=%d", at.port),
			// The API server's own endpoints are of no use: clients use its address, and loopback is no valid one.
			"--endpoint-reconciler-type=none",
			"--service-cluster-ip-range=" + at.serviceNet,
			"--cert-dir=" + b.path("pki"),
			"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
			"--client-ca-file=" + pki("ca.crt"),
			"--kubelet-client-certificate=" + pki("kubelet-client.crt"), "--kubelet-client-key=" + pki("kubelet-client.key"),
			"--kubelet-preferred-address-types=InternalIP",
			"--token-auth-file=" + pki("tokens.csv"),
			"--service-account-issuer=" + issuer, "--api-audiences=" + issuer,
			"--service-account-key-file=" + pki("service-account.pub"),
			"--service-account-signing-key-file=" + pki("service-account.key"),
			"--authorization-mode=Node,RBAC",
			"--enable-admission-plugins=NodeRestriction",
			"--disable-admission-plugins=" + b.disabledAdmission(),
			"--allow-privileged=true",
			"--watch-cache=true", "--profiling=false", "--v=1",
		}})
		if err != nil {
			return "", err
		}
		if err := b.connect(); err != nil {
			return "", err
		}
		return b.state.Server, b.await(ctx, "apiserver", b.apiServerReady)
	})
}

func (b *Bed) apiServerReady(ctx context.Context) error {
	return b.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// disabledAdmission: without a kubelet nobody would ever take the taint off that new Nodes are born with.
func (b *Bed) disabledAdmission() string {
	if b.state.Form == Light {
		return "TaintNodesByCondition"
	}
	return ""
}

func (b *Bed) controllerFlags() []string {
	flags := []string{
		"--use-service-account-credentials=true",
		"--service-account-private-key-file=" + b.path("pki", "service-account.key"),
		"--root-ca-file=" + b.path("pki", "ca.crt"),
		"--cert-dir=" + b.path("pki"),
	}
	if b.state.Form == Light {
		// Load tests make Nodes that nobody renews; their pods must not be evicted for that.
		flags = append(flags, "--controllers=*,-node-lifecycle-controller,-taint-eviction-controller")
	}
	return flags
}

// startController starts a program that works for the cluster and leads without an election.
func (b *Bed) startController(ctx context.Context, name, program string, flags ...string) error {
	port, err := b.freePort()
	if err != nil {
		return err
	}
	kubeconfig := b.path("kubeconfig-" + name)
	return b.start(ctx, name, &process{Args: append([]string{
		b.program(tool.Kubernetes, program),
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=" + b.state.Host, fmt.Sprintf("--secure-port=%d", port),
		"--leader-elect=false",
	}, flags...)})
}

// freeURL is a free port of the bed's address as an HTTP URL.
func (b *Bed) freeURL() (string, error) {
	port, err := b.freePort()
	return fmt.Sprintf("http://%s:%d", b.state.Host, port), err
}

// get succeeds when the URL answers 200.
func get(ctx context.Context, address string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return fmt.Errorf("asking %s: %w", address, err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("asking %s: %w", address, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return errors.New(address + " answers " + response.Status)
	}
	return nil
}
