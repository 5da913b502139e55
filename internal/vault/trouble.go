package vault

import (
	"errors"
	"slices"
	"strings"
)

// Trouble is where the cause of a failure lies, in a word: what people look for first. Where one Kind has causes in different places it is
// finer, and coarser elsewhere. Empty is none of these.
type Trouble string

// The troubles that replies of Vault, and its silence, tell of.
const (
	// Sealed: Vault must be unsealed.
	Sealed Trouble = "VaultSealed"
	// Away: Vault did not answer, or nobody listens.
	Away Trouble = "VaultUnreachable"
	// Busy: Vault answers and takes no requests now: no leader, a rate limit, a standby.
	Busy Trouble = "VaultBusy"
	// Strange: whoever answered is not trusted, or is not Vault.
	Strange Trouble = "NotVault"
	// BackEnd: Vault works, and what the secret engine asks (a database, for example) does not.
	BackEnd Trouble = "BackEndDown"
	// Broken: Vault failed (5xx) for another reason.
	Broken Trouble = "VaultFailing"
	// LoginRefused: Vault knows why the pod may not log in: role, service account, namespace, audience, token.
	LoginRefused Trouble = "LoginRefused"
	// RoleGone: the role of the login, or of the secret engine, is not there (any more).
	RoleGone Trouble = "RoleGone"
	// PolicyDenied: no policy of the login's role allows it.
	PolicyDenied Trouble = "PolicyDenied"
	// RevokedElsewhere: the token or lease was revoked or expired, and not by us.
	RevokedElsewhere Trouble = "RevokedElsewhere"
	// NothingThere: there is nothing at the path.
	NothingThere Trouble = "NothingThere"
	// WrongRequest: Vault takes the path and not what was asked of it.
	WrongRequest Trouble = "WrongRequest"
)

// missingRole are Vault's words for a role that is not there: of the kubernetes and jwt methods at a login and at a renewal, and of secret
// engines at a read and at a renewal (1.21.2).
var missingRole = []string{"invalid role name", "could not be found", "does not exist during renewal", "could not find role", "unknown role"}

// backEndWords are in what an engine says that does not reach what it asks, or is refused there.
var backEndWords = []string{"dial", "connect", "transaction", "timeout"}

// AtLogin reports whether it was the login, or what is needed for it, that failed.
func (e *Error) AtLogin() bool { return e.Op == OpLogin || e.Op == opUnwrapping }

// TroubleOf returns the trouble of the first Error in err's chain; empty when there is none.
func TroubleOf(err error) Trouble {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return ""
	}
	says := func(phrases ...string) bool {
		return slices.ContainsFunc(phrases, func(phrase string) bool { return strings.Contains(e.said(), phrase) })
	}
	switch e.Kind {
	case NotExecuted:
		if says("Vault is sealed") {
			return Sealed
		}
		return Busy
	case Unreachable, InDoubt:
		return Away
	case Empty:
		if e.AtLogin() {
			return Strange
		}
		return WrongRequest
	case Distrusted, NotVault, Shared:
		return Strange
	case Denied, Invalid, NotFound, Unrenewable:
		switch {
		case e.Foreign:
			return Strange
		case says(missingRole...):
			return RoleGone
		case e.AtLogin():
			return LoginRefused
		}
		return ofRequest[e.Kind]
	case BackEndDown, LeaseEnded:
		return BackEnd
	case Failing:
		if strings.HasPrefix(e.Op, opReading) && says(backEndWords...) {
			return BackEnd
		}
		return Broken
	case InvalidToken, LeaseGone:
		return RevokedElsewhere
	default:
		return ""
	}
}

// ofRequest are the troubles of what is refused after the login. That something reached its maximum TTL is none.
var ofRequest = map[Kind]Trouble{Denied: PolicyDenied, Invalid: WrongRequest, NotFound: NothingThere}
