package spec

import (
	"cmp"
	"encoding/json"
	"strings"

	"github.com/leasehold-csi/leasehold/internal/secret"
)

// credentials reads what the pod logs in with. That there is nothing is no fault: a republish needs nothing.
func (p *parser) credentials(req *Request, secrets string) {
	switch req.Spec.Auth.Method {
	case AppRole:
		req.SecretID, req.Wrapped = p.secretID(p.secretValues(secrets))
	case Cert:
		req.Spec.Server.Pair = p.pair(p.secretValues(secrets))
	case Kubernetes:
		req.JWT = p.jwt(secrets)
	}
}

// jwt looks among the attributes first, then among the secrets: drivers up to v1.5 do not copy the tokens over.
func (p *parser) jwt(secrets string) secret.Value {
	text := p.params[tokens]
	if text == "" {
		text = p.secretValues(secrets)[tokens]
	}
	if text == "" {
		return secret.Value{}
	}
	var byAudience map[string]struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal([]byte(text), &byAudience); err != nil {
		p.faultf(place{}, "%s is not a JSON object of tokens by audience", tokens)
		return secret.Value{}
	}
	return secret.New(byAudience[p.audience()].Token)
}

// audience is that of the token to log in with, among those that kubelet sent.
func (p *parser) audience() string { return cmp.Or(p.params["audience"], string(p.provider)) }

// The keys of the Secret that nodePublishSecretRef names.
const (
	secretIDKey  = "secretId"
	wrappedIDKey = "wrappedSecretId"
	// Those of a Secret of the type kubernetes.io/tls.
	certKey = "tls.crt"
	keyKey  = "tls.key"
)

// secretID reads AppRole's. A role can do without.
func (p *parser) secretID(values map[string]string) (id secret.Value, wrapped bool) {
	plain, wrapping := strings.TrimSpace(values[secretIDKey]), strings.TrimSpace(values[wrappedIDKey])
	if plain != "" && wrapping != "" {
		p.faultf(place{}, "the Secret of nodePublishSecretRef holds both %s and %s; only one may be there", secretIDKey, wrappedIDKey)
	}
	return secret.New(plain + wrapping), wrapping != ""
}

// pair reads the client certificate and its key. Whether they fit each other is seen where they are used, which is not at every
// republish.
func (p *parser) pair(values map[string]string) secret.Value {
	cert, key := values[certKey], values[keyKey]
	if (cert == "") != (key == "") {
		p.faultf(place{}, "the Secret of nodePublishSecretRef holds only one of %s and %s", certKey, keyKey)
		return secret.Value{}
	}
	if cert == "" {
		return secret.Value{}
	}
	return secret.New(cert + "\n" + key)
}

func (p *parser) secretValues(secrets string) map[string]string {
	if secrets == "" {
		return nil
	}
	if len(secrets) > maxSecrets {
		p.faultf(place{}, "the secrets are larger than %d bytes", maxSecrets)
		return nil
	}
	var values map[string]string
	if err := json.Unmarshal([]byte(secrets), &values); err != nil {
		p.faultf(place{}, "the secrets are not a JSON object of texts")
		return nil
	}
	return values
}
