package vaulttest

import (
	"net/http"
	"time"
)

// AppRole creates or replaces a role of the AppRole method mounted at "approle", with a role-id.
func (v *Vault) AppRole(roleID string, r Role) {
	v.enter()
	defer v.mu.Unlock()
	r.Mount = "approle"
	v.roles[r.Mount+"/"+roleID] = r
}

// SecretID issues a secret-id of a role, by its role-id. It can be used any number of times.
func (v *Vault) SecretID(roleID string) string {
	v.enter()
	defer v.mu.Unlock()
	id := v.secretLocked("secret-id-")
	v.secretIDs[id] = roleID
	return id
}

// WithdrawSecretIDs takes back all that were issued.
func (v *Vault) WithdrawSecretIDs() {
	v.enter()
	defer v.mu.Unlock()
	clear(v.secretIDs)
}

// Wrap wraps a secret-id and returns the wrapping token, which can be used once.
func (v *Vault) Wrap(secretID string) string {
	v.enter()
	defer v.mu.Unlock()
	token := v.secretLocked("hvs.wrap-")
	v.wrapped[token] = secretID
	return token
}

// appRoleLocked logs in by AppRole.
func (v *Vault) appRoleLocked(f fields, mount string, now time.Time) reply {
	role, known := v.roles[mount+"/"+f.RoleID]
	if !known || v.secretIDs[f.SecretID] != f.RoleID {
		return failure(http.StatusBadRequest, "invalid role or secret ID")
	}
	t, warnings := v.issueLocked(role, now)
	t.role, t.path, t.orphan = f.RoleID, "auth/"+mount+"/login", true
	return envelope{Auth: t.auth(t.creationTTL), Warnings: warnings}.reply(http.StatusOK)
}

// unwrapLocked is sys/wrapping/unwrap, which uses the wrapping token up.
func (v *Vault) unwrapLocked(token string) reply {
	id, ok := v.wrapped[token]
	if !ok {
		return failure(http.StatusBadRequest, "wrapping token is not valid or does not exist")
	}
	delete(v.wrapped, token)
	return envelope{Data: map[string]any{"secret_id": id}}.reply(http.StatusOK)
}
