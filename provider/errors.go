package provider

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// What a Mount is refused for, in a word, besides Vault's refusals.
const (
	refusedClass = "class"
	refusedOther = "other"
)

// refusals are the others.
var refusals = []struct {
	err  error
	word string
}{
	{store.ErrFull, "store_full"},
	{keeper.ErrNoToken, "no_token"},
	{keeper.ErrNoCertificate, "no_certificate"},
	{keeper.ErrWorking, "waiting"},
	{keeper.ErrRendering, "rendering"},
	{keeper.ErrCrowded, "crowded"},
	{keeper.ErrLeaving, "leaving"},
}

// Reasons are all words for why a Mount is refused.
func Reasons() []string {
	words := append(vault.Outcomes(), refusedClass, refusedOther)
	for _, r := range refusals {
		words = append(words, r.word)
	}
	return words
}

// reasonOf is why a Mount is refused, in one of Reasons.
func reasonOf(err error) string {
	if _, ok := errors.AsType[*spec.Error](err); ok {
		return refusedClass
	}
	for _, r := range refusals {
		if errors.Is(err, r.err) {
			return r.word
		}
	}
	if _, ok := errors.AsType[*vault.Error](err); ok {
		return vault.Outcome(err)
	}
	return refusedOther
}

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
		return status.Error(codeOf(refused.Kind), vault.Explain(err, req))
	case errors.Is(err, keeper.ErrNoToken):
		return status.Error(codes.FailedPrecondition, fmt.Sprintf("%v; kubelet sends one when tokenRequests in the CSIDriver object secrets-store.csi.k8s.io list audience %q (the audience parameter of SecretProviderClass %q chooses it)",
			err, req.Audience, req.Class))
	case errors.Is(err, keeper.ErrWorking):
		return status.Error(codes.FailedPrecondition, fmt.Sprintf("waiting for %s: %v%s", req.Spec.Server.Address, err, vault.Who(req)))
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
