package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/page"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
)

const (
	defaultEndpoint = "/provider/vault.sock"
	defaultStateDir = "/run/leasehold"
	defaultAddress  = "https://127.0.0.1:8200"
	// defaultKeySecret is named as in the existing provider.
	defaultKeySecret = "vault-csi-provider-hmac-key"
)

// options are the flags of serve.
type options struct {
	endpoints  []string
	node       string
	kubeconfig string
	stateDir   string
	allowDisk  bool
	stateMax   int64
	healthAddr string
	uiAddr     string // empty: no page
	kubeletDir string // empty: no folder of kubelet's is seen
	orphanTTL  time.Duration
	revoke     keeper.RevokeMode
	keySecret  string
	logLevel   string
	logFormat  string
	auditLog   string // empty: none
	strict     bool
	// vault and openbao fill what the classes of each provider leave out.
	vault, openbao spec.Defaults
	// version and output ask for the version only.
	version bool
	output  string
	// notices are sentences about flags that are accepted and do nothing.
	notices []string
}

func parseServe(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Func("endpoint", "`path` of the socket that the CSI driver calls; may be repeated, openbao.sock is for classes that say provider: openbao (default "+defaultEndpoint+")",
		func(path string) error { o.endpoints = append(o.endpoints, path); return nil })
	flags.StringVar(&o.node, "node-name", os.Getenv("NODE_NAME"), "`name` of the node (default: environment variable NODE_NAME)")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "`path` of a kubeconfig; empty for the pod's service account")
	flags.StringVar(&o.stateDir, "state-dir", defaultStateDir, "`folder` of the store; it must be on a tmpfs")
	flags.BoolVar(&o.allowDisk, "allow-disk-state", false, "accept a state folder that is not on a tmpfs: tokens and secrets are then written to a disk")
	flags.Int64Var(&o.stateMax, "state-max", store.DefaultMaxBytes, "largest size of all kept answers of Vault, in `bytes`")
	flags.StringVar(&o.healthAddr, "health-addr", ":8080", "TCP `address` for /livez, /readyz and /metrics")
	flags.Func("ui-addr", "loopback `address`, such as 127.0.0.1:8081, of a page that shows what the node holds, for kubectl port-forward (default none)",
		func(text string) (err error) {
			o.uiAddr, err = loopback(text)
			return err
		})
	flags.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "kubelet's root `folder`")
	blind := flags.Bool("no-kubelet-dir", false, "do without kubelet's root folder: ends of pods are then believed minutes later")
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
	flags.StringVar(&o.logFormat, "log-format", "text", "`format` of the log: text or json")
	flags.StringVar(&o.auditLog, "audit-log", "", "`path` of a file that gets a line of JSON for each login, read, renewal, rotation and revocation; - for the standard output (default none)")
	flags.BoolVar(&o.strict, "strict", false, "refuse SecretProviderClasses with unknown keys, instead of warning of them")
	flags.BoolVar(&o.version, "version", false, "print the version and exit")
	flags.StringVar(&o.output, "output", "", "`format` of -version: "+strings.Join(outputs, ", "))
	serverFlags(flags, vaultFlags, &o.vault)
	serverFlags(flags, openbaoFlags, &o.openbao)
	var rules spec.Rules
	allowFlags(flags, &rules)
	ignoredFlags(flags, &o.notices)
	if err := parse(flags, args); err != nil {
		return o, err
	}
	if err := errors.Join(fromEnvironment(flags, openbaoFlags, "BAO_"), fromEnvironment(flags, vaultFlags, "VAULT_"), fromVault(flags)); err != nil {
		return o, err
	}
	o.vault.Provider, o.openbao.Provider = spec.Vault, spec.OpenBao
	given := given(flags)
	for _, prefix := range []string{vaultFlags, openbaoFlags} {
		name, d := prefix+"addr", &o.vault
		if prefix == openbaoFlags {
			d = &o.openbao
		}
		d.Strict, d.Rules = o.strict, rules
		if d.Server.Address == "" {
			continue // every class must name one
		}
		var err error
		if d.Server.Address, err = spec.ParseAddress(d.Server.Address); err != nil {
			return o, fmt.Errorf("%w: --%s cannot be used: %w", errUsage, name, err)
		}
		d.Rules.DefaultOnly = given[name] || given[vaultFlags+"addr"]
	}
	if *blind {
		if given["kubelet-dir"] {
			return o, fmt.Errorf("%w: --kubelet-dir and --no-kubelet-dir exclude each other", errUsage)
		}
		o.kubeletDir = ""
	}
	if o.logFormat != "text" && o.logFormat != "json" {
		return o, fmt.Errorf("%w: --log-format must be text or json", errUsage)
	}
	if len(o.endpoints) == 0 {
		o.endpoints = []string{defaultEndpoint}
	}
	if o.node == "" && !o.version {
		return o, fmt.Errorf("%w: --node-name or the environment variable NODE_NAME must name this node", errUsage)
	}
	return o, nil
}

// loopback is an address to listen at that only this pod reaches, or none. What localhost is, no name server is asked.
func loopback(address string) (string, error) {
	if address == "" {
		return "", nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	if !page.Loopback(host) {
		return "", errors.New("it must be a loopback address: whoever reaches the page can look at it")
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// The beginnings of the flags that fill what the classes of a provider leave out.
const (
	vaultFlags   = "vault-"
	openbaoFlags = "openbao-"
)

func serverFlags(flags *flag.FlagSet, prefix string, d *spec.Defaults) {
	server, other := &d.Server, ""
	if prefix == openbaoFlags {
		other = "; --vault-... where it is not set"
	}
	flags.StringVar(&server.Address, prefix+"addr", defaultAddress, "`URL` of the server where a SecretProviderClass names none"+other)
	flags.StringVar(&d.AuthMount, prefix+"mount", "kubernetes", "auth `mount` where a SecretProviderClass names none"+other)
	flags.StringVar(&d.Namespace, prefix+"namespace", "", "`namespace` of the server where a SecretProviderClass names none"+other)
	flags.StringVar(&server.CACert, prefix+"tls-ca-cert", "", "`path` of the CA certificate that the server's is checked against"+other)
	flags.StringVar(&server.CADirectory, prefix+"tls-ca-directory", "", "`folder` of such CA certificates"+other)
	flags.StringVar(&server.ServerName, prefix+"tls-server-name", "", "`name` that the server's certificate must bear"+other)
	flags.StringVar(&server.ClientCert, prefix+"tls-client-cert", "", "`path` of the client certificate for the server"+other)
	flags.StringVar(&server.ClientKey, prefix+"tls-client-key", "", "`path` of the client certificate's key"+other)
	flags.BoolVar(&server.SkipVerify, prefix+"tls-skip-verify", false, "do not check the server's certificate"+other)
}

// environment names the variables, without their prefix, that stand in for a flag that is not given, as in the existing providers;
// the first that is set wins. No other is obeyed: VAULT_TOKEN would become every pod's token.
var environment = map[string][]string{
	"addr":             {"AGENT_ADDR", "ADDR"},
	"namespace":        {"NAMESPACE"},
	"tls-ca-cert":      {"CACERT"},
	"tls-ca-directory": {"CAPATH"},
	"tls-server-name":  {"TLS_SERVER_NAME"},
	"tls-client-cert":  {"CLIENT_CERT"},
	"tls-client-key":   {"CLIENT_KEY"},
	"tls-skip-verify":  {"SKIP_VERIFY"},
}

// fromEnvironment sets the flags that were not given and that the environment has.
func fromEnvironment(flags *flag.FlagSet, prefix, variables string) error {
	given := given(flags)
	for name, suffixes := range environment {
		for _, suffix := range suffixes {
			value := os.Getenv(variables + suffix)
			if value == "" || given[prefix+name] {
				continue
			}
			if err := flags.Set(prefix+name, value); err != nil {
				return fmt.Errorf("%w: environment variable %s: %w", errUsage, variables+suffix, err)
			}
			break
		}
	}
	return nil
}

// fromVault has OpenBao's flags follow Vault's where neither they nor the environment say otherwise.
func fromVault(flags *flag.FlagSet) error {
	given := given(flags)
	var err error
	flags.VisitAll(func(f *flag.Flag) {
		if name, ok := strings.CutPrefix(f.Name, openbaoFlags); ok && !given[f.Name] {
			err = errors.Join(err, f.Value.Set(flags.Lookup(vaultFlags+name).Value.String()))
		}
	})
	return err
}

// given are the names of the flags that were set.
func given(flags *flag.FlagSet) map[string]bool {
	names := make(map[string]bool)
	flags.Visit(func(f *flag.Flag) { names[f.Name] = true })
	return names
}

// ignoredFlags accepts the flags of the existing providers that mean nothing here.
func ignoredFlags(flags *flag.FlagSet, notices *[]string) {
	notice := func(text string) { *notices = append(*notices, text) }
	flags.BoolFunc("debug", "does nothing, as in the existing provider: say --log-level=debug", func(string) error {
		notice("--debug does nothing, as in the existing provider: say --log-level=debug")
		return nil
	})
	flags.Func("cache-size", "does nothing: what pods hold is kept in the store, which --state-max bounds", func(string) error {
		notice("--cache-size does nothing: what pods hold is kept in the store, which --state-max bounds")
		return nil
	})
}

// allowFlags are what opens more than the defaults to classes, or less than everything. Each may be given more than once.
func allowFlags(flags *flag.FlagSet, rules *spec.Rules) {
	flags.Func("allow-vault-addr", "`pattern` of a URL that a SecretProviderClass may name besides --vault-addr, such as https://*.example.com:8200",
		func(text string) error {
			pattern, err := spec.ParseAddressPattern(text)
			rules.Addresses = append(rules.Addresses, pattern)
			return err
		})
	flags.Func("allow-vault-namespace", "`pattern` of the Vault namespaces that a SecretProviderClass may name (default all)",
		func(text string) error {
			rules.Namespaces = append(rules.Namespaces, strings.Trim(text, "/"))
			_, err := path.Match(text, "")
			return err
		})
	flags.Func("allow-tls-dir", "`folder` that the TLS files of a SecretProviderClass must lie in (default anywhere)",
		func(text string) error {
			if !filepath.IsAbs(text) {
				return errors.New("it is not an absolute path")
			}
			rules.TLSFolders = append(rules.TLSFolders, filepath.Clean(text))
			return nil
		})
	flags.Func("cert-auth-namespaces", "`names` of the namespaces, separated by commas, whose pods may log in with the provider's own client certificate (default none)",
		func(text string) error {
			for name := range strings.SplitSeq(text, ",") {
				if faults := validation.IsDNS1123Label(name); len(faults) > 0 {
					return fmt.Errorf("%q is not the name of a namespace", name)
				}
				rules.CertNamespaces = append(rules.CertNamespaces, name)
			}
			return nil
		})
}

// parse parses flags and refuses what is none.
func parse(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		return usageError(err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%w: unexpected argument %q", errUsage, flags.Arg(0))
	}
	return nil
}

// usageError is what was wrong with the flags; a wish for help is no error.
func usageError(err error) error {
	if errors.Is(err, flag.ErrHelp) {
		return err
	}
	return fmt.Errorf("%w: %w", errUsage, err)
}

// logger writes to stderr; an unknown level means info, as in the existing provider.
func logger(level, format string, stderr io.Writer) *slog.Logger {
	levels := map[string]slog.Level{"trace": slog.LevelDebug, "debug": slog.LevelDebug, "warn": slog.LevelWarn, "error": slog.LevelError, "off": slog.LevelError + 4}
	options := &slog.HandlerOptions{Level: cmp.Or(levels[level], slog.LevelInfo)}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(stderr, options))
	}
	return slog.New(slog.NewTextHandler(stderr, options))
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
