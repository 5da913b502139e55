package pods

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// folders looks at kubelet's folders of CSI volumes.
type folders struct {
	kubelet string
	log     *slog.Logger
}

// find looks for a volume's folder, the parent of the mount, never for the mount itself. The folder counts as gone only if
// it was seen before and the folder of all pods can be read: else it may be the provider that cannot see.
func (f folders) find(v spec.VolumeKey, seen bool) Folder {
	present, err := f.exists(v)
	switch {
	case err != nil:
		f.log.Debug("cannot look for kubelet's folder of the volume", "uid", v.PodUID, "err", err)
		return FolderUnknown
	case present:
		return FolderPresent
	case seen:
		return FolderGone
	default:
		return FolderNeverSeen
	}
}

func (f folders) exists(v spec.VolumeKey) (bool, error) {
	path, err := f.path(v)
	if err != nil {
		return false, err
	}
	return f.there(path)
}

// hasPod tells whether there is a folder of the volume's pod, which kubelet makes before anything in it and removes last.
func (f folders) hasPod(v spec.VolumeKey) (bool, error) {
	path, err := f.path(v)
	if err != nil {
		return false, err
	}
	return f.there(filepath.Join(path, "..", "..", ".."))
}

// there tells whether a path below the folder of all pods exists, which must be readable for a no.
func (f folders) there(path string) (bool, error) {
	_, err := os.Lstat(path)
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return false, readable(filepath.Join(f.kubelet, "pods"))
}

func (f folders) path(v spec.VolumeKey) (string, error) {
	if f.kubelet == "" {
		return "", errors.New("no folder of kubelet's is mounted (--no-kubelet-dir)")
	}
	if !element(v.PodUID) || !element(v.Volume) {
		return "", errors.New("the pod's UID or the volume's name is no file name")
	}
	return filepath.Join(f.kubelet, "pods", v.PodUID, "volumes", "kubernetes.io~csi", v.Volume), nil
}

// readable tells whether a folder can be listed.
func readable(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if _, err := dir.Readdirnames(1); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("listing %s: %w", path, err)
	}
	return nil
}

// element tells whether a name that tenants may have chosen stays one level deep.
func element(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}
