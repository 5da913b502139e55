// Package driver runs the Secrets Store CSI driver in this process without root:
// its own node server, provider client, file writer and Secret sync controller,
// with a plain folder where the driver would mount a tmpfs.
//
// [Run] wires the driver to an API server as its own program does. [Serve] takes
// any controller-runtime client and is what tests use.
package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"time"
	"unsafe"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	secretsstorev1 "sigs.k8s.io/secrets-store-csi-driver/apis/v1"
	"sigs.k8s.io/secrets-store-csi-driver/controllers"
	secretsstore "sigs.k8s.io/secrets-store-csi-driver/pkg/secrets-store"
)

// Name is the name under which the driver is known to Kubernetes.
const Name = "secrets-store.csi.k8s.io"

// Config says how the driver runs. Rotation is always on.
type Config struct {
	// NodeName is the name of the node that the driver serves.
	NodeName string
	// Endpoint is the path of the CSI socket.
	Endpoint string
	// ProvidersDir is the folder with the providers' sockets.
	ProvidersDir string
	// RotationPollInterval is the least time between a change of a volume's
	// content and the next call of its provider; zero means every republish.
	RotationPollInterval time.Duration
}

// Scheme knows the Kubernetes types and the driver's own.
func Scheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	return scheme, errors.Join(clientgoscheme.AddToScheme(scheme), secretsstorev1.AddToScheme(scheme))
}

// Run serves the driver's CSI socket against the API server at api until ctx ends.
func Run(ctx context.Context, cfg Config, api *rest.Config) error {
	manager, err := newManager(cfg, api)
	if err != nil {
		return fmt.Errorf("setting up the driver's manager: %w", err)
	}
	secretSync, err := controllers.New(Name, manager, cfg.NodeName)
	if err != nil {
		return fmt.Errorf("setting up the driver's Secret sync: %w", err)
	}
	if err := secretSync.SetupWithManager(manager); err != nil {
		return fmt.Errorf("setting up the driver's Secret sync: %w", err)
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	managed := make(chan error, 1)
	go func() {
		defer cancel()
		managed <- manager.Start(ctx)
	}()
	patched := make(chan struct{})
	go func() {
		defer close(patched)
		secretSync.RunPatcher(ctx)
	}()
	// A publish before the caches are filled would fail.
	manager.GetCache().WaitForCacheSync(ctx)
	err = Serve(ctx, cfg, manager.GetClient(), manager.GetAPIReader())
	cancel()
	<-patched
	return errors.Join(err, <-managed)
}

// Serve serves the driver's CSI socket until ctx ends. The driver reads and
// writes its objects through c; reader is for what c's cache may lack.
func Serve(ctx context.Context, cfg Config, c client.Client, reader client.Reader) error {
	if err := os.MkdirAll(filepath.Dir(cfg.Endpoint), 0o750); err != nil {
		return fmt.Errorf("making the folder of the CSI socket: %w", err)
	}
	providers := secretsstore.NewPluginClientBuilder([]string{cfg.ProvidersDir})
	defer providers.Cleanup()
	d := secretsstore.NewSecretsStoreDriver(Name, cfg.NodeName, "unix://"+cfg.Endpoint, providers, c, reader, true, cfg.RotationPollInterval)
	useFolders(d)
	d.Run(ctx)
	return nil
}

// newManager returns the driver's client and caches: pods and pod statuses of this
// node only, Secrets only if the driver manages them.
func newManager(cfg Config, api *rest.Config) (ctrl.Manager, error) {
	scheme, err := Scheme()
	if err != nil {
		return nil, err
	}
	return ctrl.NewManager(api, ctrl.Options{
		Scheme:  scheme,
		Metrics: metricsserver.Options{BindAddress: "0"},
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}: {Field: fields.OneTermEqualSelector("spec.nodeName", cfg.NodeName)},
			&secretsstorev1.SecretProviderClassPodStatus{}: {
				Label: labels.SelectorFromSet(labels.Set{secretsstorev1.InternalNodeLabel: cfg.NodeName}),
			},
			&corev1.Secret{}: {Label: labels.SelectorFromSet(labels.Set{controllers.SecretManagedLabel: "true"})},
		}},
	})
}

// useFolders puts the folder mounter into the driver's node server. The driver's
// exported constructor takes no mounter and everything below it is unexported;
// writing the one field keeps the driver's own wiring and source as they are. A
// release of the driver that names the field otherwise panics here, in every test.
func useFolders(d *secretsstore.SecretsStore) {
	field := reflect.ValueOf(d).Elem().FieldByName("ns").Elem().FieldByName("mounter")
	reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem().Set(reflect.ValueOf(newFolderMounter()))
}
