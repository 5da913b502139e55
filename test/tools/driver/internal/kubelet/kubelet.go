// Package kubelet is a stand-in for kubelet: a model of the order in which a
// kubelet calls a CSI driver, lays out its folders and writes to the API server
// during the life of a pod. No container runs.
//
// # Modelled
//
// As read in the source of kubelet 1.35 and measured on one:
//   - Before a pod runs, each of its inline volumes of the Secrets Store CSI driver
//     is published: folder, token and Secret, vol_data.json, NodePublishVolume with
//     a deadline of 2 minutes. A failure becomes a FailedMount event and is tried
//     again after 500 ms, doubled up to 2m2s. A final gRPC code removes mount
//     folder and vol_data.json; any other keeps both.
//   - A mounted volume is published again every 1.0 to 1.5 sync periods while the
//     containers run, and at once when the stand-in starts.
//   - Service account tokens are bound to the pod, cached in memory and renewed
//     when less than a fifth of their life is left.
//   - A graceful delete runs preStop and stops the containers within the grace
//     period, writes the terminal phase, unpublishes, removes the volume folders,
//     deletes the API object, and removes the pod folder 1.5 s later. Volumes are not
//     published again after the delete was asked for.
//   - A forced delete takes the API object first; the containers live 2 s longer,
//     then the volumes go.
//   - A completed pod's volumes are unpublished right after its phase is
//     written; the object stays until it is deleted.
//   - State survives kill -9: what is mounted is read back from the folders, the
//     rest from the API server.
//
// # Containers
//
// Containers start together when the volumes are mounted, obey SIGTERM at once,
// and never restart. A preStop handler `sleep`, or `exec: ["sleep", "N"]`, takes
// its time; any other takes none. By itself a pod ends after the duration in its
// annotation [RunForAnnotation], with the exit code in [ExitCodeAnnotation].
//
// # Not modelled
//
// Images, probes, init containers, restarts, restart policy, activeDeadlineSeconds,
// eviction, static pods, other volumes, persistent CSI volumes, stage and unstage,
// serviceAccountTokenInSecrets, and the "Unable to attach or mount volumes" event.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/leasehold-csi/leasehold/test/tools/driver/internal/driver"
)

// Config says which node the stand-in serves. Every field is required.
type Config struct {
	// NodeName is the name of the node.
	NodeName string
	// Dir is kubelet's root folder; pods live in its folder pods.
	Dir string
	// Endpoint is the path of the driver's CSI socket.
	Endpoint string
	// SyncFrequency is the least time between two publishes of a mounted volume.
	SyncFrequency time.Duration
	// Client talks to the API server as kubelet.
	Client kubernetes.Interface
	// Log gets one line per step of a pod's life.
	Log *slog.Logger
}

// kubelet is what the pods of a node share.
type kubelet struct {
	Config
	node    csi.NodeClient
	drivers storagelisters.CSIDriverLister
	events  record.EventRecorder

	running sync.WaitGroup
	workers struct {
		sync.Mutex
		byUID map[types.UID]*worker
	}
}

// Run serves the node until ctx ends, then returns nil and leaves pods, volumes
// and API objects as they are. It waits for the driver to listen.
func Run(ctx context.Context, cfg Config) error {
	// The driver starts at the same time; gRPC's own pause before a second try is 1 s.
	soon := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second}}
	conn, err := grpc.NewClient("unix:"+cfg.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(soon))
	if err != nil {
		return fmt.Errorf("dialling the driver: %w", err)
	}
	defer conn.Close()
	if _, err := csi.NewIdentityClient(conn).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true)); err != nil {
		return fmt.Errorf("waiting for the driver: %w", err)
	}

	broadcaster := record.NewBroadcaster()
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: cfg.Client.CoreV1().Events("")})

	k := &kubelet{
		Config: cfg,
		node:   csi.NewNodeClient(conn),
		events: broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: cfg.NodeName}),
	}
	k.workers.byUID = map[types.UID]*worker{}
	k.running.Go(func() { k.heartbeat(ctx) })
	err = k.watch(ctx)
	k.running.Wait()
	return err
}

// watch gives every pod of the node a worker until ctx ends.
func (k *kubelet) watch(ctx context.Context) error {
	drivers := informers.NewSharedInformerFactory(k.Client, 0)
	k.drivers = drivers.Storage().V1().CSIDrivers().Lister()
	drivers.Start(ctx.Done())
	defer drivers.Shutdown()
	drivers.WaitForCacheSync(ctx.Done())

	pods := informers.NewSharedInformerFactoryWithOptions(k.Client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", k.NodeName).String()
	}))
	informer := pods.Core().V1().Pods().Informer()
	handled, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { k.observe(ctx, obj.(*corev1.Pod)) },
		UpdateFunc: func(old, obj any) {
			// Deleted and created again under the same name while the watch was away.
			if before, now := old.(*corev1.Pod), obj.(*corev1.Pod); before.UID != now.UID {
				k.vanish(before.UID)
			}
			k.observe(ctx, obj.(*corev1.Pod))
		},
		DeleteFunc: func(obj any) {
			if unknown, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = unknown.Obj
			}
			if pod, ok := obj.(*corev1.Pod); ok {
				k.vanish(pod.UID)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watching pods: %w", err)
	}
	pods.Start(ctx.Done())
	defer pods.Shutdown()
	if cache.WaitForCacheSync(ctx.Done(), handled.HasSynced) {
		if err := k.adoptFolders(ctx); err != nil {
			return err
		}
		k.Log.Info("serving", "node", k.NodeName)
	}
	<-ctx.Done()
	return nil
}

// observe hands the API server's view of a pod to its worker, starting one for a new pod.
func (k *kubelet) observe(ctx context.Context, pod *corev1.Pod) {
	k.workers.Lock()
	defer k.workers.Unlock()
	w, ok := k.workers.byUID[pod.UID]
	if !ok {
		w = newWorker(k, pod)
		k.startLocked(ctx, w)
	}
	w.observe(pod)
}

// vanish tells a pod's worker that the API object is gone.
func (k *kubelet) vanish(uid types.UID) {
	k.workers.Lock()
	defer k.workers.Unlock()
	if w, ok := k.workers.byUID[uid]; ok {
		w.vanish()
	}
}

// adoptFolders gives a worker to every pod folder whose API object went while
// nobody watched.
func (k *kubelet) adoptFolders(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(k.Dir, "pods"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("listing pod folders: %w", err)
	}
	k.workers.Lock()
	defer k.workers.Unlock()
	for _, e := range entries {
		uid := types.UID(e.Name())
		if _, ok := k.workers.byUID[uid]; ok {
			continue
		}
		w := newWorker(k, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}, Status: corev1.PodStatus{Phase: corev1.PodRunning}})
		w.vanish()
		k.startLocked(ctx, w)
	}
	return nil
}

func (k *kubelet) startLocked(ctx context.Context, w *worker) {
	k.workers.byUID[w.uid] = w
	k.running.Go(func() {
		w.run(ctx)
		k.workers.Lock()
		defer k.workers.Unlock()
		delete(k.workers.byUID, w.uid)
	})
}

// resync is the pause until a pod's volumes are published again.
func (k *kubelet) resync() time.Duration {
	return k.SyncFrequency + rand.N(k.SyncFrequency/2+1)
}

// republishes tells whether the driver wants its mounted volumes published again.
func (k *kubelet) republishes() bool {
	d, err := k.drivers.Get(driver.Name)
	return err == nil && d.Spec.RequiresRepublish != nil && *d.Spec.RequiresRepublish
}
