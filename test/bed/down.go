package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Down is [Bed.Down] of the bed in a folder, also of one that did not come up; where there is none it does nothing.
func Down(ctx context.Context, dir string) error {
	b, err := Open(dir)
	switch {
	case errors.Is(err, ErrNoBed):
		return nil
	case err != nil:
		return err
	}
	return b.Down(ctx)
}

// Down removes the bed: its processes, containers, mounts, link, cgroups and folders. It looks for them on the machine
// and not only in bed.json, so it also removes what a killed Up left; called again, it finds nothing to do. The error
// names what could not be removed.
func (b *Bed) Down(ctx context.Context) error {
	if recorded, err := load(b.state.Dir); err == nil {
		b.mu.Lock()
		b.state.Processes = recorded.Processes
		b.mu.Unlock()
	} else if !errors.Is(err, ErrNoBed) {
		return err
	}
	faults := []error{b.endProcesses(ctx)}
	if b.state.Form == Kind {
		faults = append(faults, b.removeKindCluster(ctx))
	}
	if os.Geteuid() == 0 {
		faults = append(faults, b.removeCgroups(ctx), b.removeLink(ctx))
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	return b.removeFolders()
}

// endProcesses ends those that use the others first. Those of the node end all at once, with its first process.
func (b *Bed) endProcesses(ctx context.Context) error {
	var faults []error
	for _, name := range []string{
		"node", "driver", "provider", "scheduler", "controller-manager", "apiserver", "vault", "etcd", "postgres",
	} {
		if p := b.process(name); p.alive() {
			faults = append(faults, p.stop(ctx, patience))
		}
	}
	// Children of servers, and what a crash kept out of bed.json.
	for _, p := range marked(b.state.Dir) {
		p.Stop = syscall.SIGKILL
		faults = append(faults, p.stop(ctx, patience))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state.Processes = map[string]*process{}
	return errors.Join(faults...)
}

// cgroup is the name of the cgroup, in every hierarchy, that holds the node's containers.
func (b *Bed) cgroup() string { return "leasehold-" + b.digest() }

// removeCgroups removes the bed's cgroups, which are empty once the node has ended.
func (b *Bed) removeCgroups(ctx context.Context) error {
	var tops []string
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, err := filepath.Glob(pattern + b.cgroup())
		if err != nil {
			return fmt.Errorf("finding cgroups: %w", err)
		}
		tops = append(tops, found...)
	}
	var faults []error
	for _, top := range tops {
		var err error
		// The kernel lets go of ended processes a moment later.
		if !poll(ctx, patience, func() bool { err = removeCgroup(top); return err == nil }) {
			faults = append(faults, fmt.Errorf("removing a cgroup: %w", err))
		}
	}
	return errors.Join(faults...)
}

// removeCgroup removes a cgroup's folders from below: the files in them go with them, and cannot go alone.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeCgroup(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	return syscall.Rmdir(dir)
}

// link is the name of the full form's bridge. Names of links have at most 15 characters.
func (b *Bed) link() string { return "lh" + b.digest() }

func (b *Bed) removeLink(ctx context.Context) error {
	if _, err := os.Stat("/sys/class/net/" + b.link()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	_, err := command(ctx, "ip", "link", "delete", b.link())
	return err
}

// removeFolders removes the bed's folder only when it holds a bed.
func (b *Bed) removeFolders() error {
	if err := os.RemoveAll(b.lightStateDir()); err != nil {
		return fmt.Errorf("removing the provider's state: %w", err)
	}
	if _, err := os.Stat(b.path(stateFile)); err != nil {
		return nil //nolint:nilerr // nobody's folder, or none
	}
	if err := os.RemoveAll(b.state.Dir); err != nil {
		return fmt.Errorf("removing the bed's folder: %w", err)
	}
	return nil
}
