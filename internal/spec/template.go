package spec

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"go.yaml.in/yaml/v3"

	"github.com/leasehold-csi/leasehold/internal/template/syntax"
)

// Rendered as the method of a Read stands for no request but for a template, of whose text Args is a digest. So objects with the same
// template share what was rendered, as objects with the same request share an answer.
const Rendered = "RENDERED"

// template reads an object's template and what goes with it, which is nothing of a request's.
func (it *item) template(o *Object) (err error) {
	if o.Template, err = scalar("template", &it.Template); err != nil {
		return err
	}
	if o.Template == "" {
		return errors.New("template is empty")
	}
	for _, other := range []struct {
		key  string
		node *yaml.Node
	}{
		{"secretPath", &it.SecretPath}, {"secretKey", &it.SecretKey}, {"method", &it.Method}, {"secretArgs", &it.SecretArgs},
		{"encoding", &it.Encoding}, {"format", &it.Format}, {"password", &it.Password}, {"optional", &it.Optional}, {refreshInterval, &it.RefreshInterval},
		{"renewAt", &it.RenewAt}, {"revokeOnEnd", &it.RevokeOnEnd},
	} {
		if !isNull(other.node) {
			return fmt.Errorf("%s has no place beside template, which says by itself what is read and written", other.key)
		}
	}
	sum := sha256.Sum256([]byte(o.Template))
	o.Read = Read{Method: Rendered, Args: base64.RawStdEncoding.EncodeToString(sum[:])}
	o.Encoding = UTF8
	_, err = syntax.Check(o.Template)
	if fault, ok := errors.AsType[*syntax.Fault](err); ok && fault.Line > 0 {
		return fmt.Errorf("template, %w", err)
	}
	return err
}
