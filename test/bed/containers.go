package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/leasehold-csi/leasehold/test/bed/tool"
)

// loadImages makes an image of every program that runs in a container, and hands each archive to load.
func (b *Bed) loadImages(ctx context.Context, load func(ctx context.Context, archive string) error) error {
	busybox := []string{"-file", "/usr/bin/busybox=/bin/busybox"}
	for _, applet := range []string{"sh", "cat", "ls", "mount", "umount", "sleep"} {
		busybox = append(busybox, "-link", "/bin/"+applet+"=busybox")
	}
	images := map[string][]string{
		"bed-app":       append([]string{"-entrypoint", "/app", "-file", b.program(tool.App, "app") + "=/app"}, busybox...),
		"bed-registrar": {"-entrypoint", "/registrar", "-file", b.program(tool.Driver, "registrar") + "=/registrar"},
		"bed-driver": append([]string{
			"-entrypoint", "/secrets-store-csi-driver",
			"-file", b.program(tool.Driver, "secrets-store-csi-driver") + "=/secrets-store-csi-driver",
		}, busybox...),
	}
	if b.state.Provider.Binary != "" {
		images["leasehold"] = []string{"-ca", "-entrypoint", "/leasehold", "-file", b.state.Provider.Binary + "=/leasehold"}
	}
	return b.progress.step("images", func() (string, error) {
		for name, args := range images {
			archive := b.path("images", name+".tar")
			args = append([]string{"-o", archive, "-tag", name + ":dev"}, args...)
			if _, err := command(ctx, b.program(tool.Image, "image"), args...); err != nil {
				return "", err
			}
			if err := load(ctx, archive); err != nil {
				return "", err
			}
		}
		return fmt.Sprintf("%d of them", len(images)), nil
	})
}

// rollOut runs the driver, and Leasehold if the bed has one, from their own manifests.
func (b *Bed) rollOut(ctx context.Context) error {
	if err := b.rollOutDriver(ctx); err != nil {
		return err
	}
	if b.state.Provider.Binary == "" {
		return nil
	}
	return b.rollOutProvider(ctx)
}

// rollOutDriver applies the driver's own manifests as the bed changes them, and shows the changes.
func (b *Bed) rollOutDriver(ctx context.Context) error {
	return b.progress.step("driver", func() (string, error) {
		if err := b.showDriverChanges(ctx); err != nil {
			return "", err
		}
		if err := b.applyDriver(ctx); err != nil {
			return "", err
		}
		return "its own DaemonSet, changed as above", b.rolledOut(ctx, b.daemonSet("driver"))
	})
}

func (b *Bed) showDriverChanges(ctx context.Context) error {
	for _, name := range []string{"stock", "driver"} {
		documents, err := b.render(ctx, name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(b.path("manifests", name+".yaml"), documents, 0o644); err != nil {
			return fmt.Errorf("writing the driver's manifests: %w", err)
		}
	}
	cmd := exec.CommandContext(ctx, "diff", "--unified=1", "stock.yaml", "driver.yaml")
	cmd.Dir = b.path("manifests")
	output, err := cmd.Output()
	var differs *exec.ExitError
	if err != nil && (!errors.As(err, &differs) || differs.ExitCode() != 1) {
		return fmt.Errorf("comparing the driver's manifests: %w", err)
	}
	b.progress.note("what the bed changes in the driver's manifests:")
	for line := range strings.Lines(string(output)) {
		b.progress.note("  %s", strings.TrimRight(line, "\n"))
	}
	return nil
}

// rollOutProvider applies Leasehold's own manifests.
func (b *Bed) rollOutProvider(ctx context.Context) error {
	return b.progress.step("leasehold", func() (string, error) {
		if err := b.writeProviderManifests(); err != nil {
			return "", err
		}
		documents, err := b.render(ctx, "provider")
		if err != nil {
			return "", err
		}
		_, set, err := splitDaemonSet(documents)
		if err != nil {
			return "", err
		}
		b.state.Provider.Namespace, b.state.Provider.DaemonSet, b.state.Provider.UIAddress = set.Namespace, set.Name, uiAddress
		b.state.Provider.StateDir = "/run/leasehold"
		return "DaemonSet " + set.Namespace + "/" + set.Name, b.ApplyProvider(ctx)
	})
}

// ProviderManifests is the kustomization that puts Leasehold on the bed.
func (b *Bed) ProviderManifests() string { return b.path("manifests", "provider") }

// ApplyProvider applies that kustomization, as Up does, and waits until Leasehold is rolled out (full form).
func (b *Bed) ApplyProvider(ctx context.Context) error {
	documents, err := b.render(ctx, "provider")
	if err != nil {
		return err
	}
	if err := b.apply(ctx, documents); err != nil {
		return err
	}
	return b.rolledOut(ctx, b.daemonSet("provider"))
}

// TagImage gives an image of the node another name (full form).
func (b *Bed) TagImage(ctx context.Context, image, name string) error {
	const library = "docker.io/library/"
	return b.ctr(ctx, "images", "tag", "--force", library+image, library+name)
}
