package main

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-csi/leasehold/test/bed"
	"github.com/leasehold-csi/leasehold/test/bed/tool"
)

// versions names the parts that run, and asks each for its version.
func (s *story) versions(ctx context.Context) ([][]string, error) {
	state := s.bed.State()
	node, err := s.bed.Client().CoreV1().Nodes().Get(ctx, state.Node, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the node: %w", err)
	}
	kubernetes, err := s.bed.Client().Discovery().ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("asking Kubernetes for its version: %w", err)
	}
	client, err := s.bed.Vault()
	if err != nil {
		return nil, err
	}
	vault, err := client.Sys().HealthWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking Vault for its version: %w", err)
	}
	driver, err := driverVersion(state)
	if err != nil {
		return nil, err
	}
	etcd, etcdErr := versionOf(ctx, state.Processes["etcd"].Args[0], "--version")
	provider, providerErr := versionOf(ctx, binary, "version")
	if err := errors.Join(etcdErr, providerErr); err != nil {
		return nil, err
	}
	rows := [][]string{
		{"Kubernetes", kubernetes.GitVersion, "API server, controller-manager, scheduler; etcd " + etcd},
		{"node", "-", "a stand-in for kubelet, which runs no containers"},
		{"CSI driver", driver, "Secrets Store CSI driver: its node server, inside the stand-in"},
		{"Vault", "v" + vault.Version, "kubernetes auth; storage on disk, audit log on"},
		{"Leasehold", provider, "built from this checkout; may do what manifests/ allows it"},
	}
	if s.form == bed.Full {
		rows[1] = []string{"node", node.Status.NodeInfo.KubeletVersion, "kubelet, " + node.Status.NodeInfo.ContainerRuntimeVersion}
		rows[2][2] = "Secrets Store CSI driver, from its own DaemonSet"
		rows[4][2] = "built from this checkout; from manifests/"
	}
	if s.bare {
		return rows, nil
	}
	postgres, err := versionOf(ctx, state.Processes["postgres"].Args[0], "--version")
	return append(rows, []string{"PostgreSQL", postgres, "the database that the app logs in to"}), err
}

// versionOf asks a program.
func versionOf(ctx context.Context, program string, args ...string) (string, error) {
	output, err := exec.CommandContext(ctx, program, args...).Output()
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", filepath.Base(program), err)
	}
	return parseVersion(string(output)), nil
}

// parseVersion finds the version in the first line of what a program says: "etcd Version: 3.4.23", "postgres (PostgreSQL)
// 15.18 (Debian 15.18-0)", or nothing but the version.
func parseVersion(output string) string {
	line, _, _ := strings.Cut(output, "\n")
	for _, name := range []string{"etcd Version:", "postgres (PostgreSQL)"} {
		line = strings.TrimPrefix(line, name)
	}
	version, _, _ := strings.Cut(strings.TrimSpace(line), " ")
	return version
}

// driverVersion is what the driver's program was built from.
func driverVersion(state *bed.State) (string, error) {
	info, err := buildinfo.ReadFile(filepath.Join(state.Programs[tool.Driver.Name], "secrets-store-csi-driver"))
	if err != nil {
		return "", fmt.Errorf("reading the driver's version: %w", err)
	}
	return info.Main.Version, nil
}
