package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
)

const (
	defaultStateDir = "/run/leasehold"
	defaultAddress  = "https://127.0.0.1:8200"
	// defaultKeySecret is named as in the existing provider.
	defaultKeySecret = "vault-csi-provider-hmac-key"
)

// options are the flags of serve.
type options struct {
	endpoint   string
	node       string
	kubeconfig string
	stateDir   string
	allowDisk  bool
	stateMax   int64
	healthAddr string
	kubeletDir string
	orphanTTL  time.Duration
	revoke     keeper.RevokeMode
	keySecret  string
	logLevel   string
	defaults   spec.Defaults
}

func parseServe(args []string, stderr io.Writer) (options, error) {
	var o options
	server := &o.defaults.Server
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.endpoint, "endpoint", "/provider/vault.sock", "`path` of the socket that the CSI driver calls")
	flags.StringVar(&o.node, "node-name", os.Getenv("NODE_NAME"), "`name` of the node (default: environment variable NODE_NAME)")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "`path` of a kubeconfig; empty for the pod's service account")
	flags.StringVar(&o.stateDir, "state-dir", defaultStateDir, "`folder` of the store; it must be on a tmpfs")
	flags.BoolVar(&o.allowDisk, "allow-disk-state", false, "accept a state folder that is not on a tmpfs: tokens and secrets are then written to a disk")
	flags.Int64Var(&o.stateMax, "state-max", store.DefaultMaxBytes, "largest size of all kept answers of Vault, in `bytes`")
	flags.StringVar(&o.healthAddr, "health-addr", ":8080", "TCP `address` for /livez, /readyz and /metrics")
	flags.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "kubelet's root `folder`")
	flags.DurationVar(&o.orphanTTL, "orphan-ttl", keeper.DefaultOrphanTTL, "longest `life` that a token is left with when nobody renews it any more")
	flags.Func("revoke", "`mode`: on gives leases back at their pod's end; log and off let them run out, log says what would have been revoked (default on)",
		func(text string) error {
			modes := []keeper.RevokeMode{keeper.RevokeOn, keeper.RevokeLog, keeper.RevokeOff}
			if o.revoke = keeper.RevokeMode(text); !slices.Contains(modes, o.revoke) {
				return fmt.Errorf("it is none of %q", modes)
			}
			return nil
		})
	flags.StringVar(&o.keySecret, "hmac-secret-name", defaultKeySecret, "`name` of the Secret, in the provider's namespace, whose key makes object versions equal on all nodes")
	flags.StringVar(&o.logLevel, "log-level", "info", "`level`: debug, info, warn or error")
	flags.StringVar(&server.Address, "vault-addr", defaultAddress, "`URL` of Vault where a SecretProviderClass names none")
	flags.StringVar(&o.defaults.AuthMount, "vault-mount", "kubernetes", "auth `mount` where a SecretProviderClass names none")
	flags.StringVar(&o.defaults.Namespace, "vault-namespace", "", "Vault `namespace` where a SecretProviderClass names none")
	flags.StringVar(&server.CACert, "vault-tls-ca-cert", "", "`path` of the CA certificate that Vault's is checked against")
	flags.StringVar(&server.CADirectory, "vault-tls-ca-directory", "", "`folder` of such CA certificates")
	flags.StringVar(&server.ServerName, "vault-tls-server-name", "", "`name` that Vault's certificate must bear")
	flags.StringVar(&server.ClientCert, "vault-tls-client-cert", "", "`path` of the client certificate for Vault")
	flags.StringVar(&server.ClientKey, "vault-tls-client-key", "", "`path` of the client certificate's key")
	flags.BoolVar(&server.SkipVerify, "vault-tls-skip-verify", false, "do not check Vault's certificate")
	if err := parse(flags, args); err != nil {
		return o, err
	}
	o.defaults.Server.Address = strings.TrimRight(server.Address, "/")
	if o.node == "" {
		return o, fmt.Errorf("%w: --node-name or the environment variable NODE_NAME must name this node", errUsage)
	}
	return o, nil
}

// parse parses flags and refuses what is none.
func parse(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%w: unexpected argument %q", errUsage, flags.Arg(0))
	}
	return nil
}

// logger writes to stderr; an unknown level means info, as in the existing provider.
func logger(level string, stderr io.Writer) *slog.Logger {
	levels := map[string]slog.Level{"trace": slog.LevelDebug, "debug": slog.LevelDebug, "warn": slog.LevelWarn, "error": slog.LevelError, "off": slog.LevelError + 4}
	return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: cmp.Or(levels[level], slog.LevelInfo)}))
}

// clearVaultEnvironment removes every variable that Vault's client library would obey behind our back: VAULT_TOKEN would
// become every pod's token, VAULT_SKIP_VERIFY would switch off TLS checks.
func clearVaultEnvironment() error {
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "VAULT_") {
			if err := os.Unsetenv(name); err != nil {
				return fmt.Errorf("clearing %s: %w", name, err)
			}
		}
	}
	return nil
}
