package spec

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Provider is whose SecretProviderClasses are read. Their parameters mean the same under other names.
type Provider string

// The providers; their names are also the audiences of the tokens that they use by default.
const (
	Vault Provider = "vault"
	// OpenBao's classes may name a parameter baoAddress, openbaoAddress or vaultAddress; the first of these wins.
	OpenBao Provider = "openbao"
)

const (
	objectsKey = "objects"
	roleName   = "roleName"
)

// The parameters of Leasehold's own.
const (
	onPodEnd     = "onPodEnd"
	syncedLeases = "syncedLeases"
	roleID       = "roleId"
	authMethod   = "authMethod"

	refreshInterval = "refreshInterval" // also a key of an object, which wins
)

const vaultPrefix = "vault"

// prefixed are the parameters that bear a provider's name before them.
var prefixed = []string{
	"Address", "Namespace", "KubernetesMountPath", "AuthMountPath", "CACertPath", "CADirectory", "TLSServerName",
	"TLSClientCertPath", "TLSClientKeyPath", "SkipTLSVerify",
}

// prefixes are those of a provider's parameters, the one that wins first.
func (p Provider) prefixes() []string {
	if p == OpenBao {
		return []string{"bao", "openbao", vaultPrefix}
	}
	return []string{vaultPrefix}
}

// Parameters lists every parameter that a provider's class may have, sorted.
func (p Provider) Parameters() []string {
	known := []string{roleName, roleID, authMethod, objectsKey, "audience", onPodEnd, syncedLeases, refreshInterval}
	for _, prefix := range p.prefixes() {
		for _, name := range prefixed {
			known = append(known, prefix+name)
		}
	}
	slices.Sort(known)
	return known
}

// ObjectKeys lists every key that an item of objects may have.
func ObjectKeys() []string {
	var keys []string
	for _, field := range reflect.VisibleFields(reflect.TypeFor[item]()) {
		keys = append(keys, field.Tag.Get("yaml"))
	}
	return keys
}

var (
	objectKeys = ObjectKeys()
	parameters = map[Provider][]string{Vault: Vault.Parameters(), OpenBao: OpenBao.Parameters()}
)

func newParser(raw map[string]string, d Defaults) *parser {
	p := &parser{params: raw, provider: cmp.Or(d.Provider, Vault), strict: d.Strict, rules: d.Rules, lists: d.Lists}
	if p.provider == Vault {
		return p
	}
	p.params, p.written = maps.Clone(raw), make(map[string]string)
	for _, name := range prefixed {
		for _, prefix := range p.provider.prefixes() {
			if value := raw[prefix+name]; value != "" {
				p.params[vaultPrefix+name], p.written[vaultPrefix+name] = value, prefix+name
				break
			}
		}
	}
	return p
}

// name is what the class calls a parameter, or would.
func (p *parser) name(key string) string {
	if bare, ok := strings.CutPrefix(key, vaultPrefix); ok && p.provider == OpenBao {
		return cmp.Or(p.written[key], string(OpenBao)+bare)
	}
	return key
}

func (p *parser) unknownParameters(raw map[string]string) {
	known := parameters[p.provider]
	var unknown []string
	for key := range raw {
		if _, ok := slices.BinarySearch(known, key); !ok && key != className && !strings.HasPrefix(key, ownedPrefix) {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	for _, key := range unknown {
		p.unknown(place{key: key}, "parameter "+Quote(key), key, known)
	}
}

// unknownKeys looks at the keys of an item of objects. Those of a merged mapping are looked at where that stands.
func (p *parser) unknownKeys(label string, node *yaml.Node) {
	for i := 0; i < len(node.Content); i += 2 {
		key := resolve(node.Content[i])
		if key.ShortTag() != "!!merge" && !slices.Contains(objectKeys, key.Value) {
			p.unknown(place{objectsKey, key.Line}, label+": key "+Quote(key.Value), key.Value, objectKeys)
		}
	}
}

// unknown tells of a key that is not among those known: mostly it is a slip of the pen.
func (p *parser) unknown(where place, what, key string, known []string) {
	tell := p.warnf
	if p.strict {
		tell = p.faultf
	}
	if meant := nearest(key, known); meant != "" {
		tell(where, "%s is unknown and has no effect; did you mean %s?", what, meant)
		return
	}
	tell(where, "%s is unknown and has no effect", what)
}

// nearest returns the word that differs least from text, not minding case; empty when none is near.
func nearest(text string, words []string) string {
	const longest = 64 // a word that anybody could have meant
	if len(text) > longest {
		return ""
	}
	best, least := "", 1+max(1, len(text)/3)
	for _, word := range words {
		if d := distance(strings.ToLower(text), strings.ToLower(word)); d < least {
			best, least = word, d
		}
	}
	return best
}

// distance counts the bytes to insert, remove or replace to turn a into b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
