package spec

import (
	"cmp"
	"errors"
	"maps"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
)

var (
	errControl = errors.New("holds control characters")
	errEmpty   = errors.New("names no path")
	errEscaped = errors.New("holds an escaped slash or dot")
	errQuery   = errors.New("holds a ? or #")
	errDotDot  = errors.New(`holds ".."`)
)

func (p *parser) auth(mount string) Auth {
	auth := Auth{Method: p.method(), Mount: p.authMount(), Role: p.text(roleName), RoleID: p.text(roleID), Audience: p.text("audience")}
	switch auth.Method {
	case AppRole:
		if p.params[roleName] != "" {
			p.warnf(p.at(roleName), "roleName has no effect beside roleId, which logs in by AppRole")
		}
		mount = string(AppRole)
	case Cert:
		mount = string(Cert)
	case Kubernetes:
		if p.params[roleName] == "" {
			p.faultf(p.at(roleName), "roleName is missing: it names the Vault role to log in with (roleId is for AppRole)")
		}
	}
	auth.Mount = cmp.Or(auth.Mount, mount, defaultAuthMount)
	return auth
}

// methods are the words of authMethod. Those of kubernetes and jwt log in alike.
var methods = map[string]AuthMethod{"kubernetes": Kubernetes, "jwt": Kubernetes, string(AppRole): AppRole, string(Cert): Cert}

// method is what the class says or, when it does not, what a role-id needs.
func (p *parser) method() AuthMethod {
	word, byID := p.params[authMethod], p.params[roleID] != ""
	method, known := methods[word]
	switch {
	case word == "" && byID:
		return AppRole
	case word != "" && !known:
		p.faultf(p.at(authMethod), "authMethod %s is none of %q", Quote(word), slices.Sorted(maps.Keys(methods)))
	case byID != (method == AppRole):
		p.faultf(p.at(authMethod), "roleId and authMethod approle belong together: one is there without the other")
	}
	return method
}

// withPair leaves of the provider's own pair what may log in: nothing, unless the operator lets the pods of the namespace use it.
func (p *parser) withPair(auth Auth, s Server) Server {
	if auth.Method != Cert || slices.Contains(p.rules.CertNamespaces, p.params[podNamespace]) {
		return s
	}
	if key := "vaultTLSClientCertPath"; p.params[key] != "" {
		p.warnf(p.at(key), "%s has no effect beside authMethod cert, unless --cert-auth-namespaces lists the pod's namespace: the pod's own certificate logs in", p.name(key))
	}
	s.ClientCert, s.ClientKey = "", ""
	return s
}

func (p *parser) authMount() string {
	const one, other = "vaultKubernetesMountPath", "vaultAuthMountPath"
	if p.params[one] != "" && p.params[other] != "" {
		p.faultf(p.at(other), "%s and %s mean the same, so only one may be set", p.name(one), p.name(other))
		return ""
	}
	return p.vaultPath(one) + p.vaultPath(other)
}

func (p *parser) namespace(namespace string) string {
	if own := p.vaultPath("vaultNamespace"); own != "" {
		return p.allowNamespace(own, namespace)
	}
	return namespace
}

// server overlays s with the class's parameters.
func (p *parser) server(s Server) Server {
	if p.params["vaultAddress"] != "" {
		s = p.allowAddress(s, p.address())
	} else if s.Address == "" {
		p.faultf(p.at("vaultAddress"), "%s is missing, and the provider has no default", p.name("vaultAddress"))
	}
	file, dir := p.file("vaultCACertPath"), p.file("vaultCADirectory")
	cert, key := p.file("vaultTLSClientCertPath"), p.file("vaultTLSClientKeyPath")
	s.TLSFolder = p.allowFiles(s, file, dir, cert, key)
	// A class that brings its own trust replaces the operator's, never adds to it; of the two forms the file wins.
	switch {
	case file != "":
		s.CACert, s.CADirectory = file, ""
	case dir != "":
		s.CACert, s.CADirectory = "", dir
	}
	if name := p.text("vaultTLSServerName"); name != "" {
		s.ServerName = name
	}
	if (p.params["vaultTLSClientCertPath"] == "") != (p.params["vaultTLSClientKeyPath"] == "") {
		p.faultf(p.at("vaultTLSClientCertPath"), "%s and %s must be set together", p.name("vaultTLSClientCertPath"), p.name("vaultTLSClientKeyPath"))
	}
	if cert != "" {
		s.ClientCert, s.ClientKey = cert, key
	}
	s.SkipVerify = p.skipVerify(s.SkipVerify)
	return s
}

func (p *parser) skipVerify(byDefault bool) bool {
	text := p.text("vaultSkipTLSVerify")
	if text == "" {
		return byDefault
	}
	skip, err := strconv.ParseBool(text)
	if err != nil {
		p.faultf(p.at("vaultSkipTLSVerify"), "%s %s is neither true nor false", p.name("vaultSkipTLSVerify"), Quote(text))
	}
	return skip
}

// address returns scheme://host[:port]. Its faults do not repeat the address, which may hold a password.
func (p *parser) address() string {
	u, err := url.Parse(p.text("vaultAddress"))
	if err == nil && u.Scheme == "unix" {
		p.faultf(p.at("vaultAddress"), "%s may not be a unix socket: only the provider's --vault-addr can name one", p.name("vaultAddress"))
		return ""
	}
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		p.faultf(p.at("vaultAddress"), "%s must be http:// or https:// with a host and an optional port, and nothing else", p.name("vaultAddress"))
		return ""
	}
	return (&url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host)}).String()
}

// file returns a path in the provider's own file system; empty when it is not set.
func (p *parser) file(key string) string {
	value := p.text(key)
	if value == "" {
		return ""
	}
	if !path.IsAbs(value) {
		p.faultf(p.at(key), "%s %s is not an absolute path in the provider's container", p.name(key), Quote(value))
		return ""
	}
	return path.Clean(value)
}

// vaultPath returns a parameter that is a path of Vault; empty when it is not set.
func (p *parser) vaultPath(key string) string {
	value := p.params[key]
	if value == "" {
		return ""
	}
	clean, err := cleanPath(value)
	if err != nil {
		p.faultf(p.at(key), "%s %s %v", p.name(key), Quote(value), err)
	}
	return clean
}

// cleanPath returns a path of Vault without outer or double slashes. It refuses what Vault, or a proxy before it, could take
// for another path.
func cleanPath(text string) (string, error) {
	if err := printable(text); err != nil {
		return "", err
	}
	lower := strings.ToLower(text)
	switch {
	case strings.Contains(lower, "%2f"), strings.Contains(lower, "%2e"):
		return "", errEscaped
	case strings.ContainsAny(text, "?#"):
		return "", errQuery
	case slices.Contains(strings.Split(text, "/"), ".."):
		return "", errDotDot
	}
	clean := strings.Trim(path.Clean("/"+text), "/")
	if clean == "" {
		return "", errEmpty
	}
	return clean, nil
}
