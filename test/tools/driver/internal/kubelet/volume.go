package kubelet

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/leasehold-csi/leasehold/test/tools/driver/internal/driver"
)

// callTimeout is kubelet's deadline for one call to a CSI driver.
const callTimeout = 2 * time.Minute

// volumeData is kubelet's vol_data.json.
type volumeData struct {
	AttachmentID  string                        `json:"attachmentID"`
	DriverName    string                        `json:"driverName"`
	NodeName      string                        `json:"nodeName"`
	SpecVolID     string                        `json:"specVolID"`
	VolumeHandle  string                        `json:"volumeHandle"`
	LifecycleMode storagev1.VolumeLifecycleMode `json:"volumeLifecycleMode"`
}

// Paths below a volume's folder.
func target(dir string) string   { return filepath.Join(dir, "mount") }
func dataFile(dir string) string { return filepath.Join(dir, "vol_data.json") }

func (w *worker) volumesDir() string {
	return filepath.Join(w.podDir(), "volumes", "kubernetes.io~csi")
}

// mountAll publishes all of the pod's volumes at the same time, each until it
// succeeds. It returns false when stop was closed or ctx ended before the last did.
func (w *worker) mountAll(ctx context.Context, stop <-chan struct{}) bool {
	pod := w.pod()
	var stopped atomic.Bool
	var all sync.WaitGroup
	for _, v := range pod.Spec.Volumes {
		if v.CSI == nil || v.CSI.Driver != driver.Name {
			continue
		}
		all.Go(func() {
			if !retry(ctx, stop, func() error { return w.publish(ctx, pod, v) }) {
				stopped.Store(true)
			}
		})
	}
	all.Wait()
	return !stopped.Load()
}

// publish makes one try to mount v, in kubelet's order.
func (w *worker) publish(ctx context.Context, pod *corev1.Pod, v corev1.Volume) error {
	err := w.setUp(ctx, pod, v)
	if err != nil && ctx.Err() == nil {
		w.Log.Warn("publish failed", "uid", w.uid, "volume", v.Name, "code", status.Code(err).String())
		w.events.Eventf(pod, corev1.EventTypeWarning, "FailedMount", "MountVolume.SetUp failed for volume %q : %v", v.Name, err)
	}
	return err
}

func (w *worker) setUp(ctx context.Context, pod *corev1.Pod, v corev1.Volume) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	dir := filepath.Join(w.volumesDir(), v.Name)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	req, err := w.publishRequest(ctx, pod, v)
	if err != nil {
		return err
	}
	data, err := json.Marshal(volumeData{
		AttachmentID:  fmt.Sprintf("csi-%x", sha256.Sum256([]byte(req.VolumeId+driver.Name+w.NodeName))),
		DriverName:    driver.Name,
		NodeName:      w.NodeName,
		SpecVolID:     v.Name,
		VolumeHandle:  req.VolumeId,
		LifecycleMode: storagev1.VolumeLifecycleEphemeral,
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(dataFile(dir), data, 0o644); err != nil {
		return err
	}
	if _, err := w.node.NodePublishVolume(ctx, req); err != nil {
		if final(err) {
			err = errors.Join(err, removeVolume(dir))
		}
		return err
	}
	return nil
}

// final tells whether a failed call certainly left nothing mounted.
func final(err error) bool {
	switch status.Code(err) {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		return false
	}
	return true
}

// unmountAll unpublishes every volume of the pod that is on disk, each until it succeeds.
func (w *worker) unmountAll(ctx context.Context) error {
	found, err := filepath.Glob(dataFile(filepath.Join(w.volumesDir(), "*")))
	if err != nil {
		return fmt.Errorf("listing volumes: %w", err)
	}
	var all sync.WaitGroup
	for _, file := range found {
		all.Go(func() {
			retry(ctx, nil, func() error { return w.unpublish(ctx, filepath.Dir(file)) })
		})
	}
	all.Wait()
	return ctx.Err()
}

// unpublish makes one try to unmount the volume in dir and to remove its folder.
func (w *worker) unpublish(ctx context.Context, dir string) error {
	err := w.tearDown(ctx, dir)
	if err != nil {
		w.Log.Warn("unpublish failed", "uid", w.uid, "volume", filepath.Base(dir), "error", err)
		return err
	}
	w.Log.Info("volume folder removed", "uid", w.uid, "volume", filepath.Base(dir))
	return nil
}

func (w *worker) tearDown(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	text, err := os.ReadFile(dataFile(dir))
	if err != nil {
		return err
	}
	var data volumeData
	if err := json.Unmarshal(text, &data); err != nil {
		return fmt.Errorf("reading vol_data.json: %w", err)
	}
	if _, err := w.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: data.VolumeHandle, TargetPath: target(dir)}); err != nil {
		return err
	}
	return removeVolume(dir)
}

// removeVolume removes mount folder, vol_data.json and the volume's folder, in that
// order, unless the volume is mounted.
func removeVolume(dir string) error {
	if mounted, err := driver.Mounted(target(dir)); mounted || (err != nil && !errors.Is(err, os.ErrNotExist)) {
		return err
	}
	for _, path := range []string{target(dir), dataFile(dir), dir} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing volume: %w", err)
		}
	}
	return nil
}
