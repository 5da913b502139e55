package bed

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hashicorp/vault/api"

	"github.com/leasehold-csi/leasehold/test/bed/tool"
)

// VaultName is the host name that Vault's certificate bears, besides the address that it listens on.
const VaultName = "vault.test"

// startVault runs Vault with storage on disk, so that it can be restarted and sealed, and its audit log on.
func (b *Bed) startVault(ctx context.Context) error {
	return b.progress.step("vault", func() (string, error) {
		config, err := b.vaultConfig()
		if err != nil {
			return "", err
		}
		path := b.path("vault", "config.hcl")
		if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
			return "", fmt.Errorf("writing Vault's configuration: %w", err)
		}
		if err := os.Mkdir(b.path("vault", "data"), 0o700); err != nil {
			return "", fmt.Errorf("making Vault's storage: %w", err)
		}
		err = b.start(ctx, "vault", &process{Args: []string{b.program(tool.Vault, "vault"), "server", "-config=" + path}})
		if err != nil {
			return "", err
		}
		if err := b.await(ctx, "vault", b.vaultListens); err != nil {
			return "", err
		}
		if err := b.initVault(ctx); err != nil {
			return "", err
		}
		return b.state.Vault.Address, b.UnsealVault(ctx)
	})
}

func (b *Bed) vaultConfig() (string, error) {
	port, err := b.freePort()
	if err != nil {
		return "", err
	}
	clusterPort, err := b.freePort()
	if err != nil {
		return "", err
	}
	tlsPort, err := b.freePort()
	if err != nil {
		return "", err
	}
	if err := b.selfSign("vault", &x509.Certificate{
		Subject: pkix.Name{CommonName: VaultName}, DNSNames: []string{VaultName}, IPAddresses: []net.IP{net.ParseIP(b.state.Host)},
	}); err != nil {
		return "", err
	}
	b.state.Vault = VaultState{
		Address:       "http://" + net.JoinHostPort(b.state.Host, strconv.Itoa(port)),
		TLSAddress:    "https://" + net.JoinHostPort(b.state.Host, strconv.Itoa(tlsPort)),
		Certificate:   b.path("pki", "vault.crt"),
		RootTokenFile: b.path("vault", "root-token"),
		UnsealKeyFile: b.path("vault", "unseal-key"),
		AuditLog:      b.path("vault", "audit.log"),
	}
	cluster := net.JoinHostPort(b.state.Host, strconv.Itoa(clusterPort))
	return fmt.Sprintf(`
storage "raft" {
  path                   = %q
  node_id                = "bed"
  performance_multiplier = "1" # one second of waiting for other voters, not five
}
listener "tcp" {
  address         = %q
  cluster_address = %q
  tls_disable     = true
}
listener "tcp" {
  address       = %q
  tls_cert_file = %q
  tls_key_file  = %q
}
api_addr         = %q
cluster_addr     = %q
plugin_directory = %q
disable_mlock    = true
log_level        = "debug"
`, b.path("vault", "data"), strings.TrimPrefix(b.state.Vault.Address, "http://"), cluster,
		strings.TrimPrefix(b.state.Vault.TLSAddress, "https://"), b.state.Vault.Certificate, b.path("pki", "vault.key"),
		b.state.Vault.Address, "https://"+cluster, b.state.Programs[tool.Vault.Name]), nil
}

func (b *Bed) initVault(ctx context.Context) error {
	client, err := b.vaultClient("")
	if err != nil {
		return err
	}
	answer, err := client.Sys().InitWithContext(ctx, &api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return fmt.Errorf("initialising Vault: %w", err)
	}
	if err := os.WriteFile(b.state.Vault.RootTokenFile, []byte(answer.RootToken), 0o600); err != nil {
		return fmt.Errorf("keeping Vault's root token: %w", err)
	}
	if err := os.WriteFile(b.state.Vault.UnsealKeyFile, []byte(answer.KeysB64[0]), 0o600); err != nil {
		return fmt.Errorf("keeping Vault's unseal key: %w", err)
	}
	return nil
}

// SealVault seals Vault: from now on it answers everything with 503.
func (b *Bed) SealVault(ctx context.Context) error {
	client, err := b.Vault()
	if err != nil {
		return err
	}
	if err := client.Sys().SealWithContext(ctx); err != nil {
		return fmt.Errorf("sealing Vault: %w", err)
	}
	return nil
}

// UnsealVault unseals Vault and waits until it is active.
func (b *Bed) UnsealVault(ctx context.Context) error {
	client, err := b.vaultClient("")
	if err != nil {
		return err
	}
	key, err := os.ReadFile(b.state.Vault.UnsealKeyFile)
	if err != nil {
		return fmt.Errorf("reading the unseal key: %w", err)
	}
	if _, err := client.Sys().UnsealWithContext(ctx, string(key)); err != nil {
		return fmt.Errorf("unsealing Vault: %w", err)
	}
	return b.await(ctx, "vault", func(ctx context.Context) error { return get(ctx, b.state.Vault.Address+"/v1/sys/health") })
}

// vaultListens succeeds as soon as Vault speaks HTTP, also when it is sealed.
func (b *Bed) vaultListens(ctx context.Context) error {
	return get(ctx, b.state.Vault.Address+"/v1/sys/seal-status")
}

// Vault returns a client with the root token.
func (b *Bed) Vault() (*api.Client, error) {
	token, err := os.ReadFile(b.state.Vault.RootTokenFile)
	if err != nil {
		return nil, fmt.Errorf("reading Vault's root token: %w", err)
	}
	return b.vaultClient(string(token))
}

// vaultClient makes a client that does what it is told once, whatever VAULT_* variables say.
func (b *Bed) vaultClient(token string) (*api.Client, error) {
	config := api.DefaultConfig()
	if config.Error != nil {
		return nil, fmt.Errorf("configuring Vault's client: %w", config.Error)
	}
	config.Address, config.AgentAddress, config.MaxRetries = b.state.Vault.Address, "", 0
	client, err := api.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("making Vault's client: %w", err)
	}
	client.ClearNamespace()
	client.SetToken(token)
	return client, nil
}

// setUpVault turns the empty Vault into the one that the tests know: see vaultsetup.go.
func (b *Bed) setUpVault(ctx context.Context) error {
	return b.progress.step("vault set-up", func() (string, error) {
		client, err := b.Vault()
		if err != nil {
			return "", err
		}
		facts, err := b.vaultFacts(ctx)
		if err != nil {
			return "", err
		}
		for _, write := range vaultWrites(facts) {
			if _, err := client.Logical().WriteWithContext(ctx, write.path, write.data); err != nil {
				return "", fmt.Errorf("setting up Vault: %w", err)
			}
		}
		return "auth methods and engines", nil
	})
}

// vaultFacts gathers what Vault is told about the other parts.
func (b *Bed) vaultFacts(ctx context.Context) (vaultFacts, error) {
	ca, err := os.ReadFile(b.path("pki", "ca.crt"))
	if err != nil {
		return vaultFacts{}, fmt.Errorf("reading the certificate authority: %w", err)
	}
	reviewer, err := b.reviewerToken(ctx)
	if err != nil {
		return vaultFacts{}, err
	}
	facts := vaultFacts{
		apiServer: b.state.Server, ca: string(ca), reviewer: reviewer,
		postgres: b.state.Postgres, auditLog: b.state.Vault.AuditLog, pluginSums: map[string]string{},
	}
	for _, plugin := range []string{kubernetesPlugin, postgresPlugin} {
		content, err := os.ReadFile(b.program(tool.Vault, plugin))
		if err != nil {
			return vaultFacts{}, fmt.Errorf("reading a plugin: %w", err)
		}
		sum := sha256.Sum256(content)
		facts.pluginSums[plugin] = hex.EncodeToString(sum[:])
	}
	return facts, nil
}

// reviewerToken makes the account that Vault asks the API server with whether a pod's token is genuine.
func (b *Bed) reviewerToken(ctx context.Context) (string, error) {
	const namespace, name = "kube-system", "vault-reviewer"
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := b.client.CoreV1().ServiceAccounts(namespace).Create(ctx, account, metav1.CreateOptions{}); err != nil {
		return "", fmt.Errorf("making Vault's reviewer account: %w", err)
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:auth-delegator"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: name}},
	}
	if _, err := b.client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		return "", fmt.Errorf("making Vault's reviewer binding: %w", err)
	}
	return b.serviceAccountToken(ctx, namespace, name)
}

// serviceAccountToken returns a token that outlives the bed.
func (b *Bed) serviceAccountToken(ctx context.Context, namespace, name string) (string, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(7 * 24 * 3600))}}
	answer, err := b.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("making a token for %s/%s: %w", namespace, name, err)
	}
	if answer.Status.Token == "" {
		return "", errors.New("the API server made an empty token")
	}
	return answer.Status.Token, nil
}
