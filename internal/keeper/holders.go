package keeper

import (
	"errors"
	"sync"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// holders knows which grant holds which token, by its accessor. What caches replies between us and Vault can answer two logins with
// one token, and the end of one volume would take the other's leases along.
//
// It is filled from the store at Resume and holds nothing that the store does not, so a crash cannot make it wrong. An index in the
// store would have to be kept true in files that an older version wrote to meanwhile, and going through the records would decode every
// one of them at each login.
type holders struct {
	mu    sync.Mutex
	grant map[secret.Value]string // :: accessor → grant id
}

// take makes a grant the holder of a token, unless another one is; then it reports false. A token without an accessor (of batch type)
// cannot be told from others, and carries no leases.
func (h *holders) take(accessor secret.Value, id string) bool {
	if accessor.IsZero() {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if holder, held := h.grant[accessor]; held {
		return holder == id
	}
	if h.grant == nil {
		h.grant = make(map[secret.Value]string)
	}
	h.grant[accessor] = id
	return true
}

// drop forgets a token whose record is gone.
func (h *holders) drop(accessor secret.Value) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.grant, accessor)
}

// sharedError refuses a token that another grant holds. It must be neither recorded nor revoked: it is the other's.
func sharedError(g grant.Grant) error {
	return &vault.Error{Kind: vault.Shared, Op: vault.OpLogin, Server: g.Server.Address,
		Err: errors.New("the reply holds the token of another volume, and two volumes would share one token: name Vault's own address, or an agent that does not cache")}
}
