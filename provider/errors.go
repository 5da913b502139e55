package provider

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// statusOf turns an error into what the driver and, through an event on the pod, people see. req is nil when the request could
// not be parsed.
func statusOf(err error, req *spec.Request) error {
	var (
		faults  *spec.Error
		refused *vault.Error
	)
	switch {
	case errors.As(err, &faults):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.As(err, &refused):
		return status.Error(codeOf(refused.Kind), describe(err, refused, req))
	case errors.Is(err, keeper.ErrNoToken):
		return status.Error(codes.FailedPrecondition, fmt.Sprintf("%v; kubelet sends one when tokenRequests in the CSIDriver object secrets-store.csi.k8s.io list audience %q (the audience parameter of SecretProviderClass %q chooses it)",
			err, cmp.Or(req.Spec.Auth.Audience, "vault"), req.Class))
	case errors.Is(err, keeper.ErrWorking):
		return status.Error(codes.FailedPrecondition, fmt.Sprintf("waiting for %s: %v%s", req.Spec.Server.Address, err, who(req)))
	}
	// Everything else is a sentence of its own: what a render or the store found.
	return status.Error(codes.FailedPrecondition, err.Error())
}

// codeOf picks a code that kubelet and the driver take for final.
func codeOf(k vault.Kind) codes.Code {
	switch k {
	case vault.Denied, vault.InvalidToken:
		return codes.PermissionDenied
	case vault.NotFound:
		return codes.NotFound
	case vault.Invalid:
		return codes.InvalidArgument
	default:
		return codes.FailedPrecondition
	}
}

func describe(err error, e *vault.Error, req *spec.Request) string {
	text := err.Error() + who(req)
	if check := hint(e, req); check != "" {
		text += "; check " + check
	}
	return text
}

// who names the login that was used or tried.
func who(req *spec.Request) string {
	namespace := ""
	if ns := req.Spec.Namespace; ns != "" {
		namespace = fmt.Sprintf("namespace %q, ", ns)
	}
	return fmt.Sprintf(" (%sauth mount %q, role %q, service account %s/%s)", namespace, req.Spec.Auth.Mount, req.Spec.Auth.Role, req.Pod.Namespace, req.Pod.ServiceAccount)
}

// audience is that of the token that logged in.
func audience(req *spec.Request) string {
	switch {
	case req.Spec.Auth.Audience != "":
		return strconv.Quote(req.Spec.Auth.Audience)
	case req.JWT.IsZero():
		return "of the API server"
	}
	return `"vault"`
}

// hint says what to look at, within what Vault told.
func hint(e *vault.Error, req *spec.Request) string {
	if e.Op != vault.OpLogin {
		return hints[e.Kind]
	}
	if e.Kind == vault.Denied {
		return fmt.Sprintf("that the auth mount exists, that the role allows this service account, its namespace and audience %s, and that Vault can review tokens with the Kubernetes API", audience(req))
	}
	return cmp.Or(loginHints[e.Kind], hints[e.Kind])
}

var loginHints = map[vault.Kind]string{
	vault.Invalid:  "the role's name",
	vault.NotFound: "the name of the auth mount",
	vault.Empty:    "that the address is Vault's, and that the auth mount is one for Kubernetes",
	vault.NotVault: "that the address is Vault's, and that the auth mount is one for Kubernetes",
}

var hints = map[vault.Kind]string{
	vault.Denied:       "that a policy of the role allows this path (for KV version 2 it contains /data/), with capability read for GET and update for PUT or POST",
	vault.InvalidToken: "whether somebody revoked the login; the next try makes a new one",
	vault.NotFound:     "the path (for KV version 2 it contains /data/) and the version",
	vault.Invalid:      "the path, and the method and secretArgs that it wants",
	vault.Failing:      "Vault's log, and whether the engine's back end (a database, for example) can be reached from Vault",
	vault.NotExecuted:  "whether Vault is unsealed, has a leader and is not limiting requests; it is tried again",
	vault.Unreachable:  "the address, the network between this node and Vault, and that Vault runs; it is tried again",
	vault.Distrusted:   "vaultCACertPath or --vault-tls-ca-cert, and vaultTLSServerName",
	vault.InDoubt:      "whether Vault is overloaded; it is tried again",
	vault.Empty:        "that the path is one to read a secret from, that its method is right, and that the address is Vault's",
	vault.NotVault:     "that the path is one to read a secret from, that its method is right, and that the address is Vault's",
	vault.Unusable:     "vaultAddress and the TLS files in the provider's container",
}
