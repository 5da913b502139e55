package bed

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/template"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-csi/leasehold/test/bed/tool"
)

//go:embed node
var nodeFiles embed.FS

// containerdSocket is in the node's own /run.
const containerdSocket = "/run/containerd/containerd.sock"

// network is the addresses of the full form: one private /16, of which the node and its pods have the first /24 and
// the cluster's services the second.
type network byte

func (n network) node() string { return fmt.Sprintf("10.%d.0.1", n) }

// hardware is the bridge's own hardware address. Without one it would take that of one of its pods and change it as
// pods come and go, and the others would send to a dead address until they ask again.
func (n network) hardware() string { return fmt.Sprintf("0a:58:0a:%02x:00:01", byte(n)) }

// service is the address of the API server, as a service and in truth.
func (n network) service() string { return fmt.Sprintf("10.%d.1.1", n) }

func (b *Bed) upFull(ctx context.Context) error {
	b.state.Node = "full"
	addresses, err := b.makeLink(ctx)
	if err != nil {
		return err
	}
	b.state.Host = addresses.node()
	at := address{
		ip: addresses.service(), port: 443,
		serviceNet: fmt.Sprintf("10.%d.1.0/24", addresses), serviceIP: addresses.service(),
	}
	if err := b.upServers(ctx, at); err != nil {
		return err
	}
	if err := b.startNode(ctx, addresses); err != nil {
		return err
	}
	err = b.loadImages(ctx, func(ctx context.Context, archive string) error {
		return b.ctr(ctx, "images", "import", archive)
	})
	if err != nil {
		return err
	}
	if err := b.startKubelet(ctx); err != nil {
		return err
	}
	return b.rollOut(ctx)
}

// makeLink makes the bridge that carries every address of the bed.
func (b *Bed) makeLink(ctx context.Context) (network, error) {
	chosen, err := b.freeNetwork()
	if err != nil {
		return 0, err
	}
	return chosen, b.progress.step("network link", func() (string, error) {
		for _, args := range [][]string{
			{"link", "add", "name", b.link(), "address", chosen.hardware(), "type", "bridge"},
			{"address", "add", chosen.node() + "/24", "dev", b.link()},
			{"address", "add", chosen.service() + "/32", "dev", b.link()},
			{"link", "set", b.link(), "up"},
		} {
			if _, err := command(ctx, "ip", args...); err != nil {
				return "", err
			}
		}
		return b.link() + " " + chosen.node(), nil
	})
}

// freeNetwork picks a private network that this machine has no address in.
func (b *Bed) freeNetwork() (network, error) {
	used, err := net.InterfaceAddrs()
	if err != nil {
		return 0, fmt.Errorf("reading this machine's addresses: %w", err)
	}
	for candidate := network(100); candidate < 200; candidate++ {
		_, block, err := net.ParseCIDR(candidate.node() + "/16")
		if err != nil {
			return 0, fmt.Errorf("choosing a network: %w", err)
		}
		free := true
		for _, address := range used {
			ip, _, err := net.ParseCIDR(address.String())
			free = free && (err != nil || !block.Contains(ip))
		}
		if free {
			return candidate, nil
		}
	}
	return 0, errors.New("choosing a network: this machine has addresses in all of 10.100.0.0 to 10.199.0.0")
}

// startNode makes the node's namespaces and runs containerd in them.
func (b *Bed) startNode(ctx context.Context, addresses network) error {
	return b.progress.step("containerd", func() (string, error) {
		if err := b.writeNodeFiles(addresses); err != nil {
			return "", err
		}
		err := b.start(ctx, "node", &process{
			Args: []string{
				"unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc",
				"sh", b.path("node.sh"), b.state.Dir,
			},
			Forks: true,
			Stop:  syscall.SIGKILL, // nothing in it is worth an orderly end
		})
		if err != nil {
			return "", err
		}
		err = b.await(ctx, "node", func(context.Context) error {
			_, err := os.Stat(b.path("node-ready"))
			return err
		})
		if err != nil {
			return "", err
		}
		b.state.KubeletDir = fmt.Sprintf("/proc/%d/root/var/lib/kubelet", b.process("node").PID)
		err = b.start(ctx, "containerd", &process{Args: []string{"containerd", "--config", b.path("containerd.toml")}, InNode: true, Forks: true})
		if err != nil {
			return "", err
		}
		return b.path("containerd"), b.await(ctx, "containerd", func(ctx context.Context) error {
			return b.ctr(ctx, "version")
		})
	})
}

// LimitMemory leaves the node's containers that many bytes beside what they use now, until the limit is lifted. It holds for those of any
// other bed on this machine as well: containerd puts all of them into one cgroup.
func (b *Bed) LimitMemory(more int64) (lift func() error, err error) {
	dir, used, limit, none := "/sys/fs/cgroup/k8s.io", "memory.current", "memory.max", "max"
	if _, err := os.Stat(dir); err != nil { // version 1 of cgroups
		dir, used, limit, none = "/sys/fs/cgroup/memory/k8s.io", "memory.usage_in_bytes", "memory.limit_in_bytes", "-1"
	}
	text, err := os.ReadFile(filepath.Join(dir, used))
	if err != nil {
		return nil, fmt.Errorf("looking what memory the node uses: %w", err)
	}
	use, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("looking what memory the node uses: %w", err)
	}
	set := func(value string) error { return os.WriteFile(filepath.Join(dir, limit), []byte(value), 0o600) }
	return func() error { return set(none) }, set(strconv.FormatInt(use+more, 10))
}

// writeNodeFiles fills in the templates in folder node. The CNI configuration gets a folder of its own.
func (b *Bed) writeNodeFiles(addresses network) error {
	templates, err := template.ParseFS(nodeFiles, "node/*")
	if err != nil {
		return fmt.Errorf("reading the node's files: %w", err)
	}
	for _, dir := range []string{"cni", "containerd", "volume-plugins"} {
		if err := os.Mkdir(b.path(dir), 0o711); err != nil {
			return fmt.Errorf("making the node's folders: %w", err)
		}
	}
	facts := map[string]string{
		"Dir": b.state.Dir, "Link": b.link(), "Cgroup": b.cgroup(), "Host": b.state.Host, "ContainerdSocket": containerdSocket,
		"PodNet": fmt.Sprintf("10.%d.0.0/24", addresses), "FirstPod": fmt.Sprintf("10.%d.0.10", addresses),
	}
	for _, t := range templates.Templates() {
		var content bytes.Buffer
		if err := t.Execute(&content, facts); err != nil {
			return fmt.Errorf("filling in %s: %w", t.Name(), err)
		}
		path := b.path(t.Name())
		if filepath.Ext(t.Name()) == ".conflist" {
			path = b.path("cni", t.Name())
		}
		if err := os.WriteFile(path, content.Bytes(), 0o644); err != nil {
			return fmt.Errorf("writing %s: %w", t.Name(), err)
		}
	}
	return nil
}

// enterNode is the command line that runs what follows it in the node's namespaces.
func (b *Bed) enterNode() []string {
	return []string{"nsenter", "--target", strconv.Itoa(b.process("node").PID), "--mount", "--pid", "--wd=/", "--"}
}

// ctr speaks to the node's containerd about the containers and images of Kubernetes.
func (b *Bed) ctr(ctx context.Context, args ...string) error {
	line := append(b.enterNode(), "ctr", "--address", containerdSocket, "--namespace", "k8s.io")
	_, err := command(ctx, line[0], append(line[1:], args...)...)
	return err
}

func (b *Bed) startKubelet(ctx context.Context) error {
	return b.progress.step("kubelet", func() (string, error) {
		err := b.start(ctx, "kubelet", &process{InNode: true, Forks: true, Args: []string{
			b.program(tool.Kubernetes, "kubelet"),
			"--config=" + b.path("kubelet.yaml"),
			"--kubeconfig=" + b.path("kubeconfig-kubelet"),
			"--hostname-override=" + b.state.Node,
			"--node-ip=" + b.state.Host,
			"--root-dir=/var/lib/kubelet", "--cert-dir=/var/lib/kubelet/pki",
			"--v=2",
		}})
		if err != nil {
			return "", err
		}
		return "node " + b.state.Node + " is ready", b.await(ctx, "kubelet", b.kubeletReady)
	})
}

// kubeletReady succeeds when kubelet answers and its Node is Ready.
func (b *Bed) kubeletReady(ctx context.Context) error {
	if err := get(ctx, "http://"+net.JoinHostPort(b.state.Host, "10248")+"/healthz"); err != nil {
		return err
	}
	node, err := b.client.CoreV1().Nodes().Get(ctx, b.state.Node, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading the node: %w", err)
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status != corev1.ConditionTrue {
			return errors.New("the node is not ready: " + condition.Message)
		}
	}
	return nil
}
