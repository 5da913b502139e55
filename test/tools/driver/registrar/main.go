// Command registrar announces a CSI driver to kubelet, as the node-driver-registrar
// sidecar does: it asks the driver for its name, serves kubelet's plugin
// registration API on a socket in the registration folder until SIGTERM, and
// removes the socket at the end, which deregisters the driver.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func main() {
	csiAddress := flag.String("csi-address", "/run/csi/socket", "socket of the CSI driver, as seen from here")
	kubeletPath := flag.String("kubelet-registration-path", "", "socket of the CSI driver, as seen from kubelet")
	dir := flag.String("registration-dir", "/registration", "kubelet's plugins_registry folder, as seen from here")
	// The stock DaemonSet passes the sidecar's klog verbosity.
	flag.Int("v", 0, "accepted and ignored")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, *csiAddress, *kubeletPath, *dir); err != nil && ctx.Err() == nil {
		slog.Error("the driver is not registered", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, csiAddress, kubeletPath, dir string) error {
	if kubeletPath == "" {
		return errors.New("--kubelet-registration-path is missing")
	}
	name, err := driverName(ctx, csiAddress)
	if err != nil {
		return fmt.Errorf("asking the driver for its name: %w", err)
	}
	socket := filepath.Join(dir, name+"-reg.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the socket of an earlier run: %w", err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listening for kubelet: %w", err)
	}

	refused := make(chan error, 1)
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, &plugin{name: name, endpoint: kubeletPath, refused: refused})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	slog.Info("waiting for kubelet", "driver", name, "socket", socket)
	select {
	case <-ctx.Done():
	case err = <-refused:
	case err = <-served:
		return err
	}
	server.GracefulStop()
	return errors.Join(err, <-served)
}

// driverName waits for the driver to listen and asks for its name.
func driverName(ctx context.Context, address string) (string, error) {
	conn, err := grpc.NewClient("unix:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	info, err := csi.NewIdentityClient(conn).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	return info.GetName(), err
}

// plugin answers kubelet's plugin watcher.
type plugin struct {
	registration.UnimplementedRegistrationServer
	name, endpoint string
	refused        chan<- error
}

func (p *plugin) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              p.name,
		Endpoint:          p.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus ends the program when kubelet refused: its restart is the retry.
func (p *plugin) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if s.GetPluginRegistered() {
		slog.Info("registered", "driver", p.name)
	} else {
		select {
		case p.refused <- fmt.Errorf("kubelet refused: %s", s.GetError()):
		default:
		}
	}
	return &registration.RegistrationStatusResponse{}, nil
}
