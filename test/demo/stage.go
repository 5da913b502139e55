package main

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-csi/leasehold/test/bed"
	"github.com/leasehold-csi/leasehold/test/bed/tool"
)

// binary is the provider, where `make build` puts it too.
const binary = "bin/leasehold"

// choose takes the full form of the bed where it can run, and says why.
func choose(noKubelet bool) (form bed.Form, why string, err error) {
	light := bed.CanRunLight()
	if noKubelet {
		return bed.Light, "--no-kubelet asks for it.", light
	}
	return chooseFrom(bed.CanRunFull(), light)
}

// chooseFrom decides by what each form answered to whether it can run.
func chooseFrom(full, light error) (form bed.Form, why string, err error) {
	if full == nil {
		return bed.Full, "this is root, and all that it needs is here.", nil
	}
	var missing *bed.MissingError
	if !errors.As(full, &missing) {
		return "", "", full
	}
	if light != nil {
		if len(missing.Packages) > 0 {
			return "", "", full // its packages include those of the light form
		}
		return "", "", light
	}
	why = "the full one cannot run here: " + strings.TrimSuffix(missing.Reason, ".") + "."
	if len(missing.Packages) > 0 {
		why += " To have it: " + strings.TrimSpace(installLine(missing))
	}
	return bed.Light, why, nil
}

func installLine(missing *bed.MissingError) string {
	if len(missing.Packages) == 0 {
		return ""
	}
	return "    apt-get install -y " + strings.Join(missing.Packages, " ")
}

// dir is the bed's folder: not that of tests, so that nobody's bed is taken away.
func dir(form bed.Form) string {
	return filepath.Join(os.TempDir(), "leasehold-demo-"+string(form))
}

func (s *story) raise(ctx context.Context) error {
	s.wait("building " + binary)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, "./cmd/leasehold")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building leasehold: %w\n%s", err, output)
	}
	var err error
	s.bed, err = bed.Up(ctx, bed.Options{Form: s.form, Dir: dir(s.form), Log: s.printer, Provider: binary})
	return err
}

// versions names the parts that run, and asks each for its version.
func (s *story) versions(ctx context.Context) ([][]string, error) {
	state := s.bed.State()
	node, err := s.bed.Client().CoreV1().Nodes().Get(ctx, state.Node, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the node: %w", err)
	}
	kubernetes, err := s.bed.Client().Discovery().ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("asking Kubernetes for its version: %w", err)
	}
	client, err := s.bed.Vault()
	if err != nil {
		return nil, err
	}
	vault, err := client.Sys().HealthWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking Vault for its version: %w", err)
	}
	postgres, err := firstLine(ctx, state.Processes["postgres"].Args[0], "--version")
	if err != nil {
		return nil, err
	}
	etcd, err := firstLine(ctx, state.Processes["etcd"].Args[0], "--version")
	if err != nil {
		return nil, err
	}
	driver, err := driverVersion(state)
	if err != nil {
		return nil, err
	}
	provider, err := firstLine(ctx, binary, "version")
	if err != nil {
		return nil, err
	}
	rows := [][]string{
		{"Kubernetes", kubernetes.GitVersion, "API server, controller-manager, scheduler; etcd " + strings.TrimPrefix(etcd, "etcd Version: ")},
		{"node", "-", "a stand-in for kubelet, which runs no containers"},
		{"CSI driver", driver, "Secrets Store CSI driver: its node server, inside the stand-in"},
		{"Vault", "v" + vault.Version, "kubernetes auth, database engine; storage on disk, audit log on"},
		{"PostgreSQL", strings.TrimPrefix(postgres, "postgres (PostgreSQL) "), "the database that the app logs in to"},
		{"Leasehold", provider, "built from this checkout; may do what manifests/ allows it"},
	}
	if s.form == bed.Full {
		rows[1] = []string{"node", node.Status.NodeInfo.KubeletVersion, "kubelet, " + node.Status.NodeInfo.ContainerRuntimeVersion}
		rows[2][2] = "Secrets Store CSI driver, from its own DaemonSet"
		rows[5][2] = "built from this checkout; from manifests/"
	}
	return rows, nil
}

func firstLine(ctx context.Context, program string, args ...string) (string, error) {
	output, err := exec.CommandContext(ctx, program, args...).Output()
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", filepath.Base(program), err)
	}
	line, _, _ := strings.Cut(string(output), "\n")
	return line, nil
}

// driverVersion is what the driver's program was built from.
func driverVersion(state *bed.State) (string, error) {
	info, err := buildinfo.ReadFile(filepath.Join(state.Programs[tool.Driver.Name], "secrets-store-csi-driver"))
	if err != nil {
		return "", fmt.Errorf("reading the driver's version: %w", err)
	}
	return info.Main.Version, nil
}

// leasesCommand is the command line that lists what the bed's provider holds.
func (s *story) leasesCommand() []string {
	state := s.bed.State()
	if s.form == bed.Full {
		return append(s.kubectl(), "exec", "--namespace="+state.Provider.Namespace, "daemonset/"+state.Provider.DaemonSet,
			"--", "/leasehold", "leases")
	}
	return []string{binary, "leases", "--state-dir=" + state.Provider.StateDir}
}

func (s *story) kubectl() []string {
	state := s.bed.State()
	return []string{filepath.Join(state.Programs[tool.Kubernetes.Name], "kubectl"), "--kubeconfig=" + state.Kubeconfig}
}

// close takes the bed down, unless it is to be kept. told is how the story ended; a bad end keeps the logs.
func (s *story) close(ctx context.Context, told error, keep bool) error {
	if told != nil && ctx.Err() != nil {
		told = errors.New("interrupted")
	}
	if keep && s.bed != nil {
		s.lookAround()
		return told
	}
	if told != nil && ctx.Err() == nil {
		told = errors.Join(told, s.keepLogs())
	}
	return errors.Join(told, s.takeDown(context.WithoutCancel(ctx)))
}

// takeDown removes the bed, also one that did not come up.
func (s *story) takeDown(ctx context.Context) error {
	b, err := bed.Open(dir(s.form))
	if errors.Is(err, bed.ErrNoBed) {
		return nil
	}
	if err != nil {
		return err
	}
	s.wait("taking the test bed down")
	if err := b.Down(ctx); err != nil {
		return fmt.Errorf("taking the test bed down: %w", err)
	}
	s.gap()
	s.say("The test bed is down; nothing of it is left.")
	return nil
}

// keepLogs copies the logs of a story that failed out of the bed. Its error is the sentence that says where they are.
func (s *story) keepLogs() error {
	logs := filepath.Join(dir(s.form), "logs")
	if _, err := os.Stat(logs); err != nil {
		return nil //nolint:nilerr // there was no bed yet
	}
	kept, err := os.MkdirTemp("", "leasehold-demo-logs-")
	if err == nil {
		err = os.CopyFS(kept, os.DirFS(logs))
	}
	if err != nil {
		return fmt.Errorf("keeping the logs: %w", err)
	}
	return errors.New("the logs of all parts are kept in " + kept)
}

// lookAround says how to use the bed that is left up.
func (s *story) lookAround() {
	state := s.bed.State()
	folder := filepath.Dir(s.kubectl()[0])
	s.gap()
	s.say("The test bed is still up. To look around, and then to take it down:")
	for _, line := range []string{
		"export KUBECONFIG=" + state.Kubeconfig + " PATH=$PATH:" + folder,
		fmt.Sprintf("export VAULT_ADDR=%s VAULT_TOKEN=$(cat %s)", state.Vault.Address, state.Vault.RootTokenFile),
		"kubectl get all,secretproviderclasses --namespace " + namespace,
		strings.Replace(strings.Join(s.leasesCommand(), " "), strings.Join(s.kubectl(), " "), "kubectl", 1),
		"ls " + state.Logs,
		"go run ./test/bed/cmd down --dir " + state.Dir,
	} {
		s.line("    " + line)
	}
}
