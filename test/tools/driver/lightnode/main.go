// Command lightnode is a node without a kubelet and without root: the Secrets
// Store CSI driver's own node server with plain folders for mounts, and a stand-in
// for kubelet that calls it. The packages internal/driver and internal/kubelet say
// what is real, what is modelled and what is left out.
//
// Unlike the real ones, both talk to the API server without a client-side rate
// limit worth the name, so that hundreds of pods can start at once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/leasehold-csi/leasehold/test/tools/driver/internal/driver"
	"github.com/leasehold-csi/leasehold/test/tools/driver/internal/kubelet"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "lightnode:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("lightnode", flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "kubeconfig of an administrator")
	nodeName := flags.String("node-name", "", "name of the Node to create and serve")
	kubeletDir := flags.String("kubelet-dir", "", "folder to use as kubelet's root")
	providersDir := flags.String("providers-dir", "", "folder with the providers' sockets")
	syncFrequency := flags.Duration("sync-frequency", time.Minute, "least time between two publishes of a mounted volume")
	rotation := flags.Duration("rotation-poll-interval", 2*time.Minute, "least time between a content change and the next call of the provider")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case *kubeconfig == "":
		return errors.New("--kubeconfig is missing")
	case *nodeName == "":
		return errors.New("--node-name is missing")
	case *kubeletDir == "":
		return errors.New("--kubelet-dir is missing")
	case *providersDir == "":
		return errors.New("--providers-dir is missing")
	case *syncFrequency <= 0:
		return errors.New("--sync-frequency must be positive")
	}
	dir, err := filepath.Abs(*kubeletDir)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	klog.SetSlogLogger(log)
	ctrl.SetLogger(klog.Background())

	api, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return fmt.Errorf("reading kubeconfig: %w", err)
	}
	api.QPS, api.Burst = 500, 1000
	client, err := kubernetes.NewForConfig(api)
	if err != nil {
		return err
	}

	endpoint := filepath.Join(dir, "plugins", "csi-secrets-store", "csi.sock")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	driven := make(chan error, 1)
	go func() {
		defer cancel()
		driven <- driver.Run(ctx, driver.Config{
			NodeName: *nodeName, Endpoint: endpoint, ProvidersDir: *providersDir, RotationPollInterval: *rotation,
		}, api)
	}()
	err = kubelet.Run(ctx, kubelet.Config{
		NodeName: *nodeName, Dir: dir, Endpoint: endpoint, SyncFrequency: *syncFrequency, Client: client, Log: log,
	})
	stopped := ctx.Err() != nil
	cancel()
	if derr := <-driven; derr != nil || !stopped {
		err = errors.Join(derr, err)
	}
	return err
}
