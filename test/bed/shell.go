package bed

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/leasehold-csi/leasehold/test/bed/tool"
)

// Shell returns a command that runs a script with vault, kubectl, psql and, where there is a kubelet, helm, as an administrator of all three whose kubectl is set to the
// namespace. Who reads the script sees no password: they are in its environment.
func (b *Bed) Shell(ctx context.Context, namespace, script string) (*exec.Cmd, error) {
	token, err := os.ReadFile(b.state.Vault.RootTokenFile)
	if err != nil {
		return nil, fmt.Errorf("reading the root token: %w", err)
	}
	psql, err := postgresProgram("psql")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "sh", "-eu", "-c", fmt.Sprintf("kubectl() { command kubectl --namespace '%s' \"$@\"; }\n%s", namespace, script))
	path := []string{b.state.Programs[tool.Vault.Name], b.state.Programs[tool.Kubernetes.Name], filepath.Dir(psql), os.Getenv("PATH")}
	if helm := b.state.Programs[tool.Helm.Name]; helm != "" {
		path = append([]string{helm}, path...)
	}
	pg := b.state.Postgres
	cmd.Env = append(os.Environ(),
		"PATH="+strings.Join(path, string(filepath.ListSeparator)), "HOME="+b.state.Dir,
		"VAULT_ADDR="+b.state.Vault.Address, "VAULT_TOKEN="+strings.TrimSpace(string(token)), "KUBECONFIG="+b.state.Kubeconfig,
		"PGHOST="+pg.Host, "PGPORT="+strconv.Itoa(pg.Port), "PGUSER="+pg.User, "PGPASSWORD="+pg.Password, "PGDATABASE="+pg.Database,
	)
	return cmd, nil
}
