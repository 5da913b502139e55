package admin

import (
	"fmt"
	"strings"

	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// advice is a cause in a few words, and what to check about it, given an event that it caused. The sentence of the event itself has what
// was tried, what was answered, and the next step as far as the answer alone tells; what is here tells how to go on.
type advice struct {
	what string
	next func(Event) string
}

// advices has every trouble.
var advices = map[vault.Trouble]advice{
	vault.Sealed: {"Vault is sealed", func(e Event) string {
		return "unseal it (vault operator unseal -address=" + e.Vault + "), and see in its log why it was; what is held stays valid until its time is up, and is renewed after"
	}},
	vault.Away: {"Vault does not answer", func(e Event) string {
		return "does it run, and is it reached from this node? curl " + e.Vault + "/v1/sys/health; DNS, NetworkPolicies and the endpoints of its Service"
	}},
	vault.Busy: {"Vault takes no requests", func(e Event) string {
		return "vault operator raft list-peers and vault status -address=" + e.Vault + " tell of a leader, vault list sys/quotas/rate-limit of limits"
	}},
	vault.Broken: {"Vault fails", func(e Event) string {
		return "Vault's own log at that time, and its storage: it answered with an error of its own at " + e.Vault
	}},
	vault.Strange: {"what answers is not Vault, or is not trusted", func(e Event) string {
		return "what listens at " + e.Vault + " (a proxy?), and the CA and names of its certificate, against vaultCACertPath and vaultTLSServerName"
	}},
	vault.BackEnd: {"the secret engine's back end is down", func(e Event) string {
		return "does what the engine " + quoteOr(mount(e.Path), "of the failing path") + " works with (a database, for example) run, and does Vault reach it and may log in there? " +
			"Vault's log tells; Leasehold keeps the token until it answers, so that no credentials are left behind"
	}},
	vault.LoginRefused: {"Vault refuses the login", func(e Event) string {
		return fmt.Sprintf("compare vault read auth/%s/role/%s with service account %s/%s (its name, namespace, and the audience of its token), and %s with the cluster",
			e.AuthMount, e.Role, e.Namespace, e.ServiceAccount, "auth/"+e.AuthMount+"/config")
	}},
	vault.RoleGone: {"a role is not there (any more)", func(e Event) string {
		if e.Path != "" {
			return fmt.Sprintf("the role that %q names in its secret engine: vault list %s/roles; write it again, or correct secretPath", e.Path, mount(e.Path))
		}
		return fmt.Sprintf("the role of the login: vault read auth/%s/role/%s; write it again, or correct roleName", e.AuthMount, e.Role)
	}},
	vault.PolicyDenied: {"no policy allows it", func(e Event) string {
		return fmt.Sprintf("vault read auth/%s/role/%s names the role's policies; one of them must allow %s", e.AuthMount, e.Role, quoteOr(e.Path, "the path"))
	}},
	vault.NothingThere: {"there is nothing at the path", func(e Event) string {
		return "vault read " + pathOr(e.Path) + " as somebody who may: is the path, the version and the namespace right?"
	}},
	vault.WrongRequest: {"Vault does not take the request", func(e Event) string {
		return "method and secretArgs of " + quoteOr(e.Path, "the object") + " in " + class(e) + ", against the engine's API"
	}},
	vault.RevokedElsewhere: {"somebody else revoked it", func(e Event) string {
		return "Vault's audit log at that time tells who revoked the token, the lease or all of a prefix; new credentials come with the next republish"
	}},
	keeper.NoCredentials: {"there is nothing to log in with", func(e Event) string {
		return "tokenRequests of the CSIDriver object secrets-store.csi.k8s.io, or nodePublishSecretRef of the pod; the provider's own rights: its log at the start tells which are missing"
	}},
	keeper.WrongClass: {"the SecretProviderClass cannot be done", func(e Event) string {
		return "kubectl -n " + e.Namespace + " get secretproviderclass -o yaml | leasehold validate -f -"
	}},
	keeper.ClassUnread: {"the SecretProviderClass could not be read", func(Event) string {
		return "does the API server answer, and may the provider get secretproviderclasses? its log at the start tells which rights are missing"
	}},
	keeper.StoreFull: {"the store is full", func(Event) string {
		return "leasehold leases -o wide tells who holds most; raise --state-max and the memory of the provider, or spread the pods over more nodes"
	}},
	keeper.Crowded: {"too many mounts wait for Vault", func(e Event) string {
		return "which Vault does not answer the others? leasehold leases -n " + e.Namespace + " --state Pending -o wide"
	}},
	keeper.BreakerOpen: {"the breaker holds ends back", func(Event) string {
		return "is the API server the right one (restored from a backup?), and is kubelet's folder mounted into the provider? after 10 minutes each end must be found anew"
	}},
	keeper.UnclearEnd: {"whether the pod is over is not clear", func(e Event) string {
		return "do kubelet and the CSI driver run on this node? is the pod's folder still there: /var/lib/kubelet/pods/" + e.UID
	}},
}

// mount is the first element of a path: where most engines are.
func mount(path string) string {
	first, _, _ := strings.Cut(path, "/")
	return first
}

func quoteOr(text, other string) string {
	if text == "" {
		return other
	}
	return fmt.Sprintf("%q", text)
}

func pathOr(path string) string {
	if path == "" {
		return "PATH"
	}
	return path
}

func class(e Event) string { return "SecretProviderClass " + quoteOr(e.Class, "of the volume") }
