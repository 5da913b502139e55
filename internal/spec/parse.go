package spec

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Bounds of what is read at all. They are far above honest use and keep a hostile class from costing the node more than a
// moment; the driver's own limit, 4 MiB per message, is the outer one.
const (
	maxAttributes = 1 << 20 // bytes of Input.Attributes
	maxSecrets    = 4 << 20 // bytes of Input.Secrets; it also carries whatever nodePublishSecretRef names
	maxText       = 4096    // bytes of one parameter other than objects, and of one path
	maxObjects    = 512     // items of objects
	maxFaults     = 16      // sentences of an Error
	maxFault      = 512     // bytes of one sentence
	maxOverrides  = 32      // names that Overrides returns
)

// The parameters that are not part of the class: kubelet and the driver set them. Everything below ownedPrefix is theirs.
const (
	ownedPrefix    = "csi.storage.k8s.io/"
	podName        = ownedPrefix + "pod.name"
	podNamespace   = ownedPrefix + "pod.namespace"
	podUID         = ownedPrefix + "pod.uid"
	serviceAccount = ownedPrefix + "serviceAccount.name"
	tokens         = ownedPrefix + "serviceAccount.tokens"
)

// className is the one parameter that only a pod can give.
const className = "secretProviderClass"

const (
	defaultAuthMount = "kubernetes"
	defaultMode      = 0o644
	maxMode          = 0o777
)

// Input is a Mount call as it comes: the texts of the driver's MountRequest.
type Input struct {
	// Attributes is a JSON object of texts: the class's parameters, overlaid by the pod's volumeAttributes and kubelet's own.
	Attributes string
	// Secrets is a JSON object of texts, null or empty. Only the service account tokens are looked at, and only if
	// Attributes has none.
	Secrets string
	// TargetPath is where kubelet wants the volume; it alone carries the volume's name.
	TargetPath string
	// Permission is the mode of files that ask for none, as a decimal number; empty or 0 means 0644.
	Permission string
}

// Defaults fill what a class leaves out, and say how strictly it is read.
type Defaults struct {
	// Provider is whose classes are read; empty means Vault's.
	Provider Provider
	// Strict refuses keys that are not known, instead of warning of them.
	Strict bool
	// Server is overlaid field by field. It comes from the operator and is taken as it is; with an empty Address every
	// class must name one.
	Server Server
	// Namespace is empty for none.
	Namespace string
	// AuthMount is kubernetes when empty.
	AuthMount string
	// Rules bound what a class may name instead.
	Rules Rules
	// Lists spares parsing the same text again; nil remembers nothing.
	Lists *Lists
}

// Error says what is wrong with an Input, one sentence per fault, in words fit for an event that anybody may read: tokens,
// the content of secrets and the values of secretArgs are never repeated.
type Error struct {
	// Faults is never empty, and bounded in number and length.
	Faults []string
	// Pod and Volume are those of the call, as far as they could be read.
	Pod    Pod
	Volume VolumeKey
}

// Error implements error.
func (e *Error) Error() string { return strings.Join(e.Faults, "; ") }

// Parse reads one Mount call. Every error is an *[Error] with all faults that were found.
func Parse(in Input, d Defaults) (*Request, error) {
	raw, fault := attributes(in.Attributes)
	if fault != "" {
		return nil, &Error{Faults: []string{fault}}
	}
	p := newParser(raw, d)
	req := &Request{
		Spec:  p.spec(d, p.permission(in.Permission)),
		Class: p.element(className),
		Pod:   p.pod(),

		Audience: p.audience(),
	}
	p.credentials(req, in.Secrets)
	p.unknownParameters(raw)
	req.KubeletDir, req.Volume = p.volume(in.TargetPath, req.Pod.UID)
	if len(p.faults) > 0 {
		return nil, &Error{Faults: bounded(p.faults, "faults"), Pod: req.Pod, Volume: req.Volume}
	}
	req.Warnings = bounded(p.warnings, "warnings")
	req.Spec.Digest = digest(raw, &req.Spec)
	return req, nil
}

// Finding is one thing to say about a class.
type Finding struct {
	// Text is a sentence.
	Text string
	// Key is the parameter that it is about, as the class calls it.
	Key string
	// Line is where in the parameter's text, counted from 1; zero for the whole of it.
	Line int
}

// Check reads the parameters of a class as Parse does when a pod mounts it, and tells all that it finds. The Spec is complete only
// when there are no faults.
func Check(params map[string]string, d Defaults) (s Spec, faults, warnings []Finding) {
	p := newParser(params, d)
	s = p.spec(d, defaultMode)
	p.unknownParameters(params)
	return s, p.faults, p.warnings
}

// spec reads what the class itself says.
func (p *parser) spec(d Defaults, mode int32) Spec {
	auth := p.auth(d.AuthMount)
	return Spec{
		Auth:      auth,
		Objects:   p.objects(mode),
		Server:    p.withPair(auth, p.server(d.Server)),
		Namespace: p.namespace(d.Namespace),

		OnPodEnd:     choice(p, onPodEnd, RevokeOnPodEnd, ExpireOnPodEnd),
		SyncedLeases: choice(p, syncedLeases, ExpireSynced, RevokeSynced, RefuseSynced),
		Refresh:      p.refresh(),
	}
}

// Overrides names the parameters among the volumeAttributes that a pod gives itself, which win over its class: sorted, and at most 32,
// with long ones shortened.
func Overrides(volumeAttributes map[string]string) []string {
	var names []string
	for _, key := range slices.Sorted(maps.Keys(volumeAttributes)) {
		if key != className && !strings.HasPrefix(key, ownedPrefix) && len(names) < maxOverrides {
			names = append(names, shorten(key, maxName))
		}
	}
	return names
}

// maxName is how many bytes of a tenant's text stand in a sentence.
const maxName = 64

// Quote quotes text that a tenant wrote, shortened, so that it can stand in a sentence.
func Quote(text string) string { return strconv.Quote(shorten(text, maxName)) }

func shorten(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit-len("...")], "") + "..."
}

// parser reads parameters and gathers what is wrong with them. Its methods return the zero value for what is faulty.
type parser struct {
	// params are under the names that this provider's classes use for Vault, whatever the class called them.
	params map[string]string
	// written are the names that the class used, where it used others.
	written  map[string]string
	provider Provider
	strict   bool
	rules    Rules
	lists    *Lists
	faults   []Finding
	warnings []Finding
}

// place is what a finding is about.
type place struct {
	key  string
	line int // zero for the whole parameter
}

// at is the place of a parameter.
func (p *parser) at(key string) place { return place{key: p.name(key)} }

func (w place) say(format string, args []any) Finding {
	return Finding{Text: shorten(fmt.Sprintf(format, args...), maxFault), Key: w.key, Line: w.line}
}

func (p *parser) faultf(where place, format string, args ...any) {
	p.faults = append(p.faults, where.say(format, args))
}

// warnf is for what has no effect, or another than its author may think.
func (p *parser) warnf(where place, format string, args ...any) {
	p.warnings = append(p.warnings, where.say(format, args))
}

// bounded returns the sentences of findings.
func bounded(findings []Finding, what string) []string {
	var sentences []string
	for i, f := range findings {
		if i == maxFaults-1 && len(findings) > maxFaults {
			return append(sentences, fmt.Sprintf("and %d more %s", len(findings)-i, what))
		}
		sentences = append(sentences, f.Text)
	}
	return sentences
}

// attributes repeats nothing of the text, nor of encoding/json's errors: a token may stand anywhere in it.
func attributes(text string) (params map[string]string, fault string) {
	if len(text) > maxAttributes {
		return nil, fmt.Sprintf("the attributes are larger than %d bytes", maxAttributes)
	}
	if err := json.Unmarshal([]byte(text), &params); err != nil {
		return nil, "the attributes are not a JSON object of texts"
	}
	return params, ""
}

// text returns a parameter that may be anything printable; empty when it is not set.
func (p *parser) text(key string) string {
	value := p.params[key]
	if err := printable(value); err != nil {
		p.faultf(p.at(key), "%s %v", p.name(key), err)
		return ""
	}
	return value
}

// choice returns a parameter that is one of few words; the first one when it is not set.
func choice[T ~string](p *parser, key string, words ...T) T {
	value := T(p.params[key])
	if value == "" || slices.Contains(words, value) {
		return cmp.Or(value, words[0])
	}
	p.faultf(p.at(key), "%s %s is none of %q", key, Quote(string(value)), words)
	return ""
}

// element returns a parameter that names a Kubernetes object, and so can stand in a path; empty when it is not set.
func (p *parser) element(key string) string {
	value := p.text(key)
	if value == "." || value == ".." || strings.Contains(value, "/") {
		p.faultf(p.at(key), "%s %s is not a plain name", key, Quote(value))
		return ""
	}
	return value
}

func (p *parser) pod() Pod {
	var missing []string
	for _, key := range []string{podNamespace, podName, podUID, serviceAccount} {
		if p.params[key] == "" {
			missing = append(missing, key)
		}
	}
	if len(missing) > 0 {
		p.faultf(place{}, "the driver did not send %s; its CSIDriver object must say podInfoOnMount: true", strings.Join(missing, ", "))
	}
	return Pod{
		Namespace:      p.element(podNamespace),
		Name:           p.element(podName),
		UID:            p.element(podUID),
		ServiceAccount: p.element(serviceAccount),
	}
}

// volume reads <kubelet root>/pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount. The UID in it is kubelet's word, while the
// attribute can be forged by a class where the driver is installed without podInfoOnMount: so they must agree.
func (p *parser) volume(target, uid string) (kubeletDir string, key VolumeKey) {
	parts := strings.Split(path.Clean(target), "/")
	n := len(parts)
	if printable(target) != nil || !path.IsAbs(target) || n < 7 ||
		parts[n-6] != "pods" || parts[n-4] != "volumes" || parts[n-3] != "kubernetes.io~csi" || parts[n-1] != "mount" {
		p.faultf(place{}, "target path %s is not .../pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount", Quote(target))
		return "", VolumeKey{}
	}
	key = VolumeKey{PodUID: parts[n-5], Volume: parts[n-2]}
	if uid != "" && key.PodUID != uid {
		p.faultf(place{}, "the target path belongs to pod UID %s, but %s is %s", Quote(key.PodUID), podUID, Quote(uid))
		return "", VolumeKey{}
	}
	return "/" + path.Join(parts[:n-6]...), key
}

func (p *parser) permission(text string) int32 {
	if text == "" {
		return defaultMode
	}
	mode, err := strconv.ParseUint(text, 10, 32)
	if err != nil || mode > maxMode {
		p.faultf(place{}, "permission %s is not a decimal number up to %d (0777)", Quote(text), maxMode)
		return 0
	}
	if mode == 0 {
		return defaultMode
	}
	return int32(mode)
}

// printable returns what is wrong with a text of one line; nil for the empty text.
func printable(text string) error {
	if len(text) > maxText {
		return fmt.Errorf("is longer than %d bytes", maxText)
	}
	if strings.ContainsFunc(text, unicode.IsControl) {
		return errControl
	}
	return nil
}
