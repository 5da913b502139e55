package bed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// State is what bed.json holds: all that another process needs to use a bed, and all that `down` needs to remove it.
type State struct {
	Form Form   `json:"form"`
	Dir  string `json:"dir"`
	// Ready is false while the bed comes up, and stays false when that failed or was interrupted.
	Ready bool `json:"ready"`

	Kubeconfig string `json:"kubeconfig"`
	Server     string `json:"server"`
	// Node is the name of the one Node that runs pods; empty before there is one.
	Node string `json:"node"`
	// KubeletDir is kubelet's folder, named so that this machine's processes can read it; empty with kind.
	KubeletDir string `json:"kubeletDir"`
	// Host is the address all servers listen on: loopback, or the full form's own link.
	Host string `json:"host"`
	Logs string `json:"logs"`

	Vault     VaultState     `json:"vault"`
	Postgres  PostgresState  `json:"postgres"`
	Provider  ProviderState  `json:"provider"`
	Collector CollectorState `json:"collector"`

	// Programs maps the names of test/tools modules to the folders that hold their programs.
	Programs  map[string]string   `json:"programs"`
	Processes map[string]*process `json:"processes"`
}

// VaultState says how to reach the bed's Vault.
type VaultState struct {
	Address string `json:"address"`
	// TLSAddress is the same Vault's with TLS; it asks for a client certificate and takes any. Certificate is the file of its own.
	TLSAddress    string `json:"tlsAddress"`
	Certificate   string `json:"certificate"`
	RootTokenFile string `json:"rootTokenFile"`
	UnsealKeyFile string `json:"unsealKeyFile"`
	AuditLog      string `json:"auditLog"`
}

// PostgresState says how to reach the bed's PostgreSQL as its superuser.
type PostgresState struct {
	Host     string `json:"host"`
	Port     int    `json:"port"`
	User     string `json:"user"`
	Password string `json:"password"`
	Database string `json:"database"`
}

// ProviderState says which provider runs in the bed; all of it is empty in a bed without one.
type ProviderState struct {
	// Binary is the program on this machine.
	Binary string `json:"binary,omitempty"`
	// StateDir, Endpoint, HealthAddress and UIAddress are the provider's own view of its flags.
	StateDir      string `json:"stateDir,omitempty"`
	Endpoint      string `json:"endpoint,omitempty"`
	HealthAddress string `json:"healthAddress,omitempty"`
	UIAddress     string `json:"uiAddress,omitempty"`
	// Namespace and DaemonSet name it in the cluster (full form).
	Namespace string `json:"namespace,omitempty"`
	DaemonSet string `json:"daemonSet,omitempty"`
}

// CollectorState says where the provider's traces go; all of it is empty in a bed without a collector.
type CollectorState struct {
	Address string `json:"address,omitempty"`
	// Traces is the file that they are written to: a line of OTLP's JSON for each lot that was received.
	Traces string `json:"traces,omitempty"`
}

const stateFile = "bed.json"

// save replaces bed.json in one step. It is private to its owner: it holds the database password.
func (s *State) save() error {
	content, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the bed's state: %w", err)
	}
	path := filepath.Join(s.Dir, stateFile)
	partial := path + ".partial"
	if err := os.WriteFile(partial, append(content, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the bed's state: %w", err)
	}
	if err := os.Rename(partial, path); err != nil {
		return fmt.Errorf("writing the bed's state: %w", err)
	}
	return nil
}

// ErrNoBed is returned by [Open] when the folder holds no bed.
var ErrNoBed = errors.New("no bed in this folder")

func load(dir string) (*State, error) {
	content, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening %s: %w", dir, ErrNoBed)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the bed's state: %w", err)
	}
	state := &State{}
	if err := json.Unmarshal(content, state); err != nil {
		return nil, fmt.Errorf("decoding %s: %w", filepath.Join(dir, stateFile), err)
	}
	return state, nil
}
