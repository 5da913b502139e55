package driver

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	mount "k8s.io/mount-utils"
)

// A folder counts as mounted while it has the mode of a fresh tmpfs. The file
// system thus remembers mounts across a kill -9, as the kernel does.
const (
	mountedMode   = fs.ModeSticky | 0o777
	unmountedMode = 0o750
)

// folderMounter mounts nothing: a mount point is a plain folder. What a mount
// hides (content written below an unmounted folder, that folder's mtime) is not
// modelled. The embedded fake serves the methods that the driver never calls;
// one of them is unexported, so they cannot be left out.
type folderMounter struct{ mount.Interface }

func newFolderMounter() folderMounter { return folderMounter{mount.NewFakeMounter(nil)} }

// Mount marks target as mounted.
func (folderMounter) Mount(_, target, _ string, _ []string) error {
	return os.Chmod(target, mountedMode)
}

// Unmount drops what target holds, as unmounting a tmpfs does, then the mark.
func (folderMounter) Unmount(target string) error {
	entries, err := os.ReadDir(target)
	if err != nil {
		return fmt.Errorf("reading mount point: %w", err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(target, e.Name())); err != nil {
			return fmt.Errorf("emptying mount point: %w", err)
		}
	}
	return os.Chmod(target, unmountedMode)
}

// IsLikelyNotMountPoint is the negation of [Mounted].
func (folderMounter) IsLikelyNotMountPoint(target string) (bool, error) {
	mounted, err := Mounted(target)
	return !mounted, err
}

// Mounted tells whether the driver holds target mounted. The error satisfies
// os.IsNotExist when there is no such folder.
func Mounted(target string) (bool, error) {
	info, err := os.Stat(target)
	if err != nil {
		return false, err
	}
	return info.Mode()&fs.ModeSticky != 0, nil
}
