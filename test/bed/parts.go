package bed

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// up starts all parts of the bed's form.
func (b *Bed) up(ctx context.Context) error {
	switch b.state.Form {
	case Full:
		return b.upFull(ctx)
	case Kind:
		return b.upKind(ctx)
	}
	return b.upLight(ctx)
}

// Stop ends one part in an orderly way: "vault", "postgres", "apiserver", "provider", "driver", "collector" (light form
// only) or "kubelet" (full form only). It returns when the part has ended.
func (b *Bed) Stop(ctx context.Context, part string) error {
	if name := b.daemonSet(part); name.Name != "" {
		return b.scaleDaemonSet(ctx, name, false)
	}
	p := b.process(part)
	if p == nil {
		return fmt.Errorf("stopping %s: this bed has no such part", part)
	}
	return p.stop(ctx, 2*time.Minute)
}

// Kill ends one part that is a process with SIGKILL.
func (b *Bed) Kill(ctx context.Context, part string) error {
	p := b.process(part)
	if p == nil {
		return fmt.Errorf("killing %s: it is no process of this bed", part)
	}
	killed := *p
	killed.Stop = syscall.SIGKILL
	return killed.stop(ctx, patience)
}

// Start starts a part that was stopped, and returns when it answers. Vault is unsealed.
func (b *Bed) Start(ctx context.Context, part string) error {
	if name := b.daemonSet(part); name.Name != "" {
		return b.scaleDaemonSet(ctx, name, true)
	}
	p := b.process(part)
	if p == nil {
		return fmt.Errorf("starting %s: this bed has no such part", part)
	}
	if p.alive() {
		return nil
	}
	again := *p
	if err := b.start(ctx, part, &again); err != nil {
		return err
	}
	if err := b.await(ctx, part, b.readiness(part)); err != nil {
		return err
	}
	if part == "vault" {
		return b.UnsealVault(ctx)
	}
	return nil
}

// Restart is Stop and Start.
func (b *Bed) Restart(ctx context.Context, part string) error {
	if err := b.Stop(ctx, part); err != nil {
		return err
	}
	return b.Start(ctx, part)
}

// Alive returns whether each part that is a process runs.
func (b *Bed) Alive() map[string]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	alive := make(map[string]bool, len(b.state.Processes))
	for name, p := range b.state.Processes {
		alive[name] = p.alive()
	}
	return alive
}

// readiness returns the check that tells whether a part answers.
func (b *Bed) readiness(part string) func(context.Context) error {
	switch part {
	case "vault":
		return b.vaultListens
	case "postgres":
		return b.postgresAnswers
	case "apiserver":
		return b.apiServerReady
	case "provider":
		return b.lightProviderReady
	case "kubelet":
		return b.kubeletReady
	case "collector":
		return b.collectorListens
	case "driver":
		return b.lightNodeReady
	}
	return func(context.Context) error { return nil }
}

// daemonSet returns the DaemonSet that a part is; in the light form no part is one.
func (b *Bed) daemonSet(part string) types.NamespacedName {
	if b.state.Form != Light {
		switch part {
		case "provider":
			return types.NamespacedName{Namespace: b.state.Provider.Namespace, Name: b.state.Provider.DaemonSet}
		case "driver":
			return types.NamespacedName{Namespace: "kube-system", Name: "csi-secrets-store"}
		}
	}
	return types.NamespacedName{}
}

// scaleDaemonSet ends a DaemonSet's pods by asking for a node that does not exist, or takes that wish back, and waits
// until the pods have followed.
func (b *Bed) scaleDaemonSet(ctx context.Context, name types.NamespacedName, run bool) error {
	selector := `"nobody"`
	if run {
		selector = "null"
	}
	patch := fmt.Appendf(nil, `{"spec":{"template":{"spec":{"nodeSelector":{"leasehold.test/stopped":%s}}}}}`, selector)
	sets := b.client.AppsV1().DaemonSets(name.Namespace)
	set, err := sets.Patch(ctx, name.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("changing DaemonSet %s: %w", name, err)
	}
	if run {
		return b.rolledOut(ctx, name)
	}
	pods := metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(set.Spec.Selector)}
	gone := poll(ctx, 3*time.Minute, func() bool {
		left, err := b.client.CoreV1().Pods(name.Namespace).List(ctx, pods)
		return err == nil && len(left.Items) == 0
	})
	if !gone {
		return fmt.Errorf("stopping DaemonSet %s: its pods did not end", name)
	}
	return nil
}

func (b *Bed) rolledOut(ctx context.Context, name types.NamespacedName) error {
	_, err := b.kubectl(ctx, nil, "rollout", "status", "daemonset/"+name.Name, "--namespace", name.Namespace, "--timeout=180s")
	return err
}

// KillProvider sends SIGKILL to the provider, where that runs in a container, and does not wait for the next one.
func (b *Bed) KillProvider() error {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return fmt.Errorf("looking for the provider's process: %w", err)
	}
	for _, process := range processes {
		line, _ := os.ReadFile(filepath.Join(process, "cmdline")) // it may have ended
		pid, _ := strconv.Atoi(filepath.Base(process))
		if !strings.HasPrefix(string(line), "/leasehold\x00") || !descends(pid, b.process("node").PID) {
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return fmt.Errorf("killing the provider: %w", err)
		}
	}
	return nil
}

// descends tells whether a process is another one's child, or a child's child.
func descends(pid, ancestor int) bool {
	for pid > 1 && pid != ancestor {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		_, parent, _ := strings.Cut(string(status), "\nPPid:\t")
		parent, _, _ = strings.Cut(parent, "\n")
		pid, _ = strconv.Atoi(parent)
	}
	return pid == ancestor
}

// Leases returns what `leasehold leases -o json` says in the running provider.
func (b *Bed) Leases(ctx context.Context) ([]byte, error) {
	return b.Leasehold(ctx, "leases", "-o", "json")
}

// Leasehold runs a command of leasehold's beside the running provider and returns what it prints. The error holds what it complains of.
func (b *Bed) Leasehold(ctx context.Context, args ...string) ([]byte, error) {
	if b.state.Form != Light {
		exec := []string{"exec", "--namespace", b.state.Provider.Namespace, "daemonset/" + b.state.Provider.DaemonSet, "--", "/leasehold"}
		return b.kubectl(ctx, nil, append(exec, args...)...)
	}
	cmd := exec.CommandContext(ctx, b.state.Provider.Binary, append(args, "--state-dir", b.state.Provider.StateDir)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		return output, fmt.Errorf("running leasehold %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return output, nil
}
