package provider

import (
	"errors"
	"fmt"
	"strings"

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
		return status.Error(codes.FailedPrecondition, fmt.Sprintf("%v for audience %q; check tokenRequests in the CSIDriver object secrets-store.csi.k8s.io, and the audience parameter of SecretProviderClass %q",
			err, audience(req.Spec.Auth), req.Class))
	case errors.Is(err, keeper.ErrWorking):
		return status.Error(codes.FailedPrecondition, err.Error()+who(req))
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
	var b strings.Builder
	fmt.Fprintf(&b, " (Vault %s", req.Spec.Server.Address)
	if ns := req.Spec.Namespace; ns != "" {
		fmt.Fprintf(&b, ", namespace %q", ns)
	}
	fmt.Fprintf(&b, ", auth mount %q, role %q, service account %s/%s)", req.Spec.Auth.Mount, req.Spec.Auth.Role, req.Pod.Namespace, req.Pod.ServiceAccount)
	return b.String()
}

func audience(a spec.Auth) string {
	if a.Audience == "" {
		return "vault"
	}
	return a.Audience
}

// hint says what to look at, within what Vault told.
func hint(e *vault.Error, req *spec.Request) string {
	login := e.Op == vault.OpLogin
	switch {
	case login && e.Kind == vault.Denied:
		return fmt.Sprintf("that the auth mount exists, that the role allows this service account, its namespace and audience %q, and that Vault can review tokens with the Kubernetes API", audience(req.Spec.Auth))
	case login && e.Kind == vault.Invalid:
		return "the role's name"
	case login && e.Kind == vault.NotFound:
		return "the name of the auth mount"
	case login && (e.Kind == vault.Empty || e.Kind == vault.NotVault):
		return "that the address is Vault's, and that the auth mount is one for Kubernetes"
	case e.Kind == vault.Denied:
		return "that a policy of the role allows this path (for KV version 2 it contains /data/), with capability read for GET and update for PUT or POST"
	case e.Kind == vault.InvalidToken:
		return "whether somebody revoked the login; the next try makes a new one"
	case e.Kind == vault.NotFound:
		return "the path (for KV version 2 it contains /data/) and the version"
	case e.Kind == vault.Invalid:
		return "the path, and the method and secretArgs that it wants"
	case e.Kind == vault.Failing:
		return "Vault's log, and whether the engine's back end (a database, for example) can be reached from Vault"
	case e.Kind == vault.NotExecuted:
		return "whether Vault is unsealed, has a leader and is not limiting requests; it is tried again"
	case e.Kind == vault.Unreachable:
		return "the address, the network between this node and Vault, and that Vault runs; it is tried again"
	case e.Kind == vault.Distrusted:
		return "vaultCACertPath or --vault-tls-ca-cert, and vaultTLSServerName"
	case e.Kind == vault.InDoubt:
		return "whether Vault is overloaded; it is tried again"
	case e.Kind == vault.Empty, e.Kind == vault.NotVault:
		return "that the path is one to read a secret from, that its method is right, and that the address is Vault's"
	case e.Kind == vault.Unusable:
		return "vaultAddress and the TLS files in the provider's container"
	}
	return ""
}
