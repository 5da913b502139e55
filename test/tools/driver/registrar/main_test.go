package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const name = "secrets-store.csi.k8s.io"

type identity struct {
	csi.UnimplementedIdentityServer
}

func (*identity) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: name}, nil
}

// start runs the registrar beside a driver until cancel. It returns kubelet's end of
// the registration socket, that socket, and where the registrar's result will be.
func start(t *testing.T) (kubelet registration.RegistrationClient, socket string, cancel func(), ended <-chan error) {
	t.Helper()
	// Not t.TempDir: the path of a unix socket must be short.
	dir, err := os.MkdirTemp("", "registrar")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	listener, err := net.Listen("unix", filepath.Join(dir, "csi.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, &identity{})
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })

	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	result := make(chan error, 1)
	go func() { result <- run(ctx, filepath.Join(dir, "csi.sock"), "/kubelet/csi.sock", dir) }()

	socket = filepath.Join(dir, name+"-reg.sock")
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return registration.NewRegistrationClient(conn), socket, cancel, result
}

func TestAnnouncesDriver(t *testing.T) {
	kubelet, socket, cancel, ended := start(t)
	info, err := kubelet.GetInfo(t.Context(), &registration.InfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if info.GetType() != "CSIPlugin" || info.GetName() != name || info.GetEndpoint() != "/kubelet/csi.sock" || info.GetSupportedVersions()[0] != "1.0.0" {
		t.Errorf("plugin info: got %v", info)
	}
	if _, err := kubelet.NotifyRegistrationStatus(t.Context(), &registration.RegistrationStatus{PluginRegistered: true}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("end: got %v", err)
	}
	if _, err := os.Stat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestEndsWhenRefused(t *testing.T) {
	kubelet, _, _, ended := start(t)
	refusal := &registration.RegistrationStatus{Error: "no such version"}
	if _, err := kubelet.NotifyRegistrationStatus(t.Context(), refusal, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "no such version") {
		t.Errorf("end: got %v, want kubelet's reason", err)
	}
}
