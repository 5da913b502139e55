package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/leasehold-csi/leasehold/test/bed"
	"github.com/leasehold-csi/leasehold/test/bed/tool"
)

// binary is the provider, where `make build` puts it too.
const binary = "bin/leasehold"

// choice is a form of the bed.
type choice struct {
	form bed.Form
	// why ends the sentence "this form, because".
	why string
	// install is the command that would make the full form run; empty when it runs, or when no package is missing.
	install string
	// bare says that there is no PostgreSQL: the app mounts a key-value secret.
	bare bool
}

// choose takes the full form of the bed where it can run.
func choose(noKubelet bool) (choice, error) {
	full := bed.CanRunFull()
	if noKubelet {
		full = &bed.MissingError{Form: bed.Full, Reason: "--no-kubelet asks for the light one"}
	}
	return chooseFrom(full, bed.CanRunLight())
}

// chooseFrom decides by what each form answered to whether it can run.
func chooseFrom(full, light error) (choice, error) {
	if full == nil {
		return choice{form: bed.Full, why: "this is root, and all that it needs is here."}, nil
	}
	var noFull, noLight *bed.MissingError
	if !errors.As(full, &noFull) {
		return choice{}, full
	}
	c := choice{form: bed.Light, why: "the full one cannot run here: " + strings.TrimSuffix(noFull.Reason, ".") + ".", install: installLine(noFull)}
	if errors.As(light, &noLight) {
		c.bare = true
		if c.install == "" {
			c.install = installLine(noLight)
		}
		return c, nil
	}
	return c, light
}

// installLine is empty when no package would help.
func installLine(missing *bed.MissingError) string {
	if len(missing.Packages) == 0 {
		return ""
	}
	return "apt-get install -y " + strings.Join(missing.Packages, " ")
}

// dir is the bed's folder: not that of tests, so that nobody's bed is taken away.
func dir(form bed.Form) string {
	return filepath.Join(os.TempDir(), "leasehold-demo-"+string(form))
}

func (s *story) raise(ctx context.Context) error {
	s.line("  … building " + binary)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, "./cmd/leasehold")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building leasehold: %w\n%s", err, output)
	}
	options := bed.Options{Form: s.form, Dir: dir(s.form), Log: s.printer, Provider: binary, NoDatabase: s.bare}
	if err := bed.Build(ctx, options); err != nil {
		return err
	}
	s.times.Build = time.Since(s.begun)
	started := time.Now()
	var err error
	s.bed, err = bed.Up(ctx, options)
	s.times.Start = time.Since(started)
	return err
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
	s.gap()
	s.say("The test bed is still up. To look around, and then to take it down:")
	for _, line := range []string{
		"export KUBECONFIG=" + state.Kubeconfig,
		"export PATH=$PATH:" + filepath.Dir(s.kubectl()[0]),
		"export VAULT_ADDR=" + state.Vault.Address,
		"export VAULT_TOKEN=$(cat " + state.Vault.RootTokenFile + ")",
		"kubectl get all,secretproviderclasses --namespace " + namespace,
		strings.Replace(strings.Join(s.leasesCommand(), " "), strings.Join(s.kubectl(), " "), "kubectl", 1),
		"ls " + state.Logs,
		"go run ./test/bed/cmd down --dir " + state.Dir,
	} {
		s.line("    " + line)
	}
}
