package bed

import (
	"fmt"
	"net"
	"strconv"
)

const (
	kubernetesPlugin = "vault-plugin-auth-kubernetes"
	postgresPlugin   = "postgresql-database-plugin"
)

// vaultFacts is what Vault's set-up needs to know about the other parts of the bed.
type vaultFacts struct {
	apiServer, ca, reviewer string
	postgres                PostgresState // empty in a bed without a database
	auditLog                string
	pluginSums              map[string]string
}

type vaultWrite struct {
	path string
	data map[string]any
}

// appPolicy is what my-app-role may read: everything the bed's Vault offers, and no more.
const appPolicy = `
path "database/creds/*"        { capabilities = ["read"] }
path "database/static-creds/*" { capabilities = ["read"] }
path "kv1/*"                   { capabilities = ["read"] }
path "secret/data/*"           { capabilities = ["read"] }
path "pki/issue/*"             { capabilities = ["create", "update"] }
path "pki/revoke"              { capabilities = ["update"] }
`

// createRole is what Vault runs in PostgreSQL for each read of database credentials.
const createRole = `CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}';`

// vaultWrites is the whole set-up of the bed's Vault, in order.
//
// Auth roles: `my-app-role` (service account my-app of any namespace, may read everything), `no-access-role` (any
// service account, may read nothing). Database roles: `my-app` (1 h, at most 24 h) and `short` (20 s, at most 10 min).
func vaultWrites(facts vaultFacts) []vaultWrite {
	type data = map[string]any
	writes := []vaultWrite{
		// Accessors in clear text, so that the tests can look up the logins that they find there.
		{"sys/audit/file", data{"type": "file", "options": data{"file_path": facts.auditLog, "hmac_accessor": "false"}}},

		{"sys/plugins/catalog/auth/" + kubernetesPlugin, data{
			"command": kubernetesPlugin, "sha256": facts.pluginSums[kubernetesPlugin],
		}},
		{"sys/plugins/catalog/database/" + postgresPlugin, data{
			"command": postgresPlugin, "sha256": facts.pluginSums[postgresPlugin],
		}},

		{"sys/auth/kubernetes", data{"type": kubernetesPlugin}},
		{"auth/kubernetes/config", data{
			"kubernetes_host": facts.apiServer, "kubernetes_ca_cert": facts.ca,
			"token_reviewer_jwt": facts.reviewer, "disable_local_ca_jwt": true,
		}},
		{"sys/policies/acl/my-app", data{"policy": appPolicy}},
		{"auth/kubernetes/role/my-app-role", data{
			"bound_service_account_names": "my-app", "bound_service_account_namespaces": "*",
			"audience": "vault", "token_ttl": "20m", "token_policies": "my-app",
		}},
		{"auth/kubernetes/role/no-access-role", data{
			"bound_service_account_names": "*", "bound_service_account_namespaces": "*",
			"audience": "vault", "token_ttl": "20m",
		}},

		{"sys/mounts/kv1", data{"type": "kv", "options": data{"version": "1"}}},
		{"kv1/my-app", data{"username": "kv1-user", "password": "kv1-password"}},
		{"sys/mounts/secret", data{"type": "kv", "options": data{"version": "2"}}},
		{"secret/data/my-app", data{"data": data{"username": "kv2-user", "password": "kv2-password"}}},

		{"sys/mounts/pki", data{"type": "pki", "config": data{"max_lease_ttl": "8760h"}}},
		{"pki/root/generate/internal", data{"common_name": "leasehold test bed", "ttl": "8760h", "key_type": "ec"}},
		{"pki/roles/my-app", data{"allow_any_name": true, "key_type": "ec", "key_bits": 256, "ttl": "1h", "max_ttl": "24h"}},
	}
	if facts.postgres.Host == "" {
		return writes
	}
	postgres := net.JoinHostPort(facts.postgres.Host, strconv.Itoa(facts.postgres.Port))
	return append(writes,
		vaultWrite{"sys/mounts/database", data{"type": "database"}},
		vaultWrite{"database/config/postgres", data{
			"plugin_name": postgresPlugin, "allowed_roles": "*",
			"connection_url": fmt.Sprintf("postgresql://{{username}}:{{password}}@%s/%s?sslmode=disable", postgres, facts.postgres.Database),
			"username":       facts.postgres.User, "password": facts.postgres.Password,
		}},
		vaultWrite{"database/roles/my-app", data{
			"db_name": "postgres", "creation_statements": createRole, "default_ttl": "1h", "max_ttl": "24h",
		}},
		vaultWrite{"database/roles/short", data{
			"db_name": "postgres", "creation_statements": createRole, "default_ttl": "20s", "max_ttl": "10m",
		}},
	)
}
