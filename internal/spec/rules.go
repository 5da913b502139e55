package spec

import (
	"cmp"
	"errors"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Rules bound what a class may name instead of the Defaults, which it may always name too. The zero value allows everything but
// addresses of the node itself.
type Rules struct {
	// DefaultOnly: no other Vault than the Defaults', unless Addresses opens it.
	DefaultOnly bool
	// Addresses open what they match. When there is one, nothing else may be named; none opens everything unless DefaultOnly.
	Addresses []AddressPattern
	// Namespaces are patterns of path.Match, without outer slashes; empty for all.
	Namespaces []string
	// TLSFolders are absolute and clean, and one must hold all TLS files that a class names; empty for anywhere.
	TLSFolders []string
	// CertNamespaces are the Kubernetes namespaces whose pods may log in with the provider's own client certificate; empty for none.
	CertNamespaces []string
}

// AddressPattern matches addresses of Vault.
type AddressPattern struct{ scheme, host, port string }

// ParseAddressPattern reads scheme://host[:port]. In host and port * stands for any text, dots included, and ? for one character. No
// port means the scheme's own, as it does in an address.
func ParseAddressPattern(text string) (AddressPattern, error) {
	parts := addressPattern.FindStringSubmatch(strings.ToLower(text))
	if parts == nil {
		return AddressPattern{}, errors.New("it must be http:// or https:// with a host and an optional port, in which * and ? are wildcards")
	}
	return AddressPattern{scheme: parts[1], host: strings.Trim(parts[2], "[]"), port: cmp.Or(parts[3], defaultPorts[parts[1]])}, nil
}

var addressPattern = regexp.MustCompile(`^(https?)://([^][/\\@:]+|\[[0-9a-f:.]+\])(?::([0-9*?]+))?$`)

var defaultPorts = map[string]string{"http": "80", "https": "443"}

func (p AddressPattern) matches(u *url.URL) bool {
	host, _ := path.Match(p.host, u.Hostname()) // no pattern is bad: none has a bracket
	port, _ := path.Match(p.port, cmp.Or(u.Port(), defaultPorts[u.Scheme]))
	return p.scheme == u.Scheme && host && port
}

// names reports whether it names a host and not only matches it.
func (p AddressPattern) names(host string) bool { return p.host == host }

// metadata are addresses, beside those of links, at which clouds tell a node its secrets: Alibaba's, Azure's, Oracle's, AWS's, Google's.
var metadata = []netip.Addr{
	netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("168.63.129.16"), netip.MustParseAddr("192.0.0.192"),
	netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("fd20:ce::254"),
}

// Reserved reports whether an address leads to the node itself, to a neighbour on its link or to a metadata service: what a tenant
// cannot reach otherwise, and so must not reach through the provider.
func Reserved(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	return ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsMulticast() ||
		netip.PrefixFrom(netip.IPv4Unspecified(), 8).Contains(ip) || slices.Contains(metadata, ip)
}

// reserved is what can be told of a host by its name.
func reserved(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && Reserved(ip) || host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// allowAddress takes over the address that a class names. A name can lead anywhere, and elsewhere each time: so it is guarded where
// it is dialled, unless it was the operator who named what it is.
func (p *parser) allowAddress(s Server, address string) Server {
	if address == "" || address == s.Address {
		return s
	}
	const key = "vaultAddress"
	u, err := url.Parse(address)
	if err != nil {
		return s // address made it
	}
	matching := slices.DeleteFunc(slices.Clone(p.rules.Addresses), func(a AddressPattern) bool { return !a.matches(u) })
	named := slices.ContainsFunc(matching, func(a AddressPattern) bool { return a.names(u.Hostname()) })
	switch {
	case len(matching) == 0 && (p.rules.DefaultOnly || len(p.rules.Addresses) > 0):
		p.faultf(p.at(key), "%s %s is not the provider's %s, and no --allow-vault-addr opens it", p.name(key), Quote(address), p.addressFlag())
	case reserved(u.Hostname()) && !named:
		p.faultf(p.at(key), "%s %s is a loopback, link-local or metadata address, and no --allow-vault-addr names it", p.name(key), Quote(address))
	}
	s.Address, s.Guarded = address, !reserved(u.Hostname())
	return s
}

// addressFlag is the flag that names the provider's own address.
func (p *parser) addressFlag() string {
	if p.provider == OpenBao {
		return "--openbao-addr"
	}
	return "--vault-addr"
}

func (p *parser) allowNamespace(namespace, byDefault string) string {
	opens := func(pattern string) bool {
		ok, _ := path.Match(pattern, namespace)
		return ok
	}
	if len(p.rules.Namespaces) > 0 && namespace != byDefault && !slices.ContainsFunc(p.rules.Namespaces, opens) {
		p.faultf(p.at("vaultNamespace"), "no --allow-vault-namespace opens %s %s", p.name("vaultNamespace"), Quote(namespace))
	}
	return namespace
}

// allowFiles returns the folder that holds the TLS files of a class, of which those that are empty or the default's are not asked
// for. It is empty when there is nothing to hold them in.
func (p *parser) allowFiles(byDefault Server, files ...string) (folder string) {
	own := []string{"", byDefault.CACert, byDefault.CADirectory, byDefault.ClientCert, byDefault.ClientKey}
	files = slices.DeleteFunc(files, func(file string) bool { return slices.Contains(own, file) })
	if len(p.rules.TLSFolders) == 0 || len(files) == 0 {
		return ""
	}
	for _, folder := range p.rules.TLSFolders {
		if !slices.ContainsFunc(files, func(file string) bool { return !lies(file, folder) }) {
			return folder
		}
	}
	p.faultf(place{}, "no one --allow-tls-dir holds %s", quoteAll(files))
	return ""
}

// lies goes by the names; that no link leads out again is seen to where the file is opened.
func lies(file, folder string) bool {
	rel, err := filepath.Rel(folder, file)
	return err == nil && filepath.IsLocal(rel)
}

func quoteAll(texts []string) string {
	quoted := make([]string, len(texts))
	for i, text := range texts {
		quoted[i] = Quote(text)
	}
	return strings.Join(quoted, ", ")
}
