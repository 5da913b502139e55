// Package validate checks SecretProviderClasses as they stand in files, without a cluster and without Vault: with the same parser
// that reads them when a pod mounts.
package validate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/template/syntax"
)

// Level is how much a finding matters.
type Level string

// The levels.
const (
	// Fault: a pod that mounts the class is refused.
	Fault Level = "fault"
	// Warning: it mounts, and something has no effect or another than its author may think.
	Warning Level = "warning"
	// Change: something is not as it was with the existing provider.
	Change Level = "change"
)

// Finding is one thing to say about a class.
type Finding struct {
	File string `json:"file"`
	// Line is where in the file, counted from 1.
	Line int `json:"line"`
	// Class is the name of the SecretProviderClass; empty for what is about the file.
	Class string `json:"class,omitempty"`
	Level Level  `json:"level"`
	// Text is a sentence. It repeats no value of secretArgs.
	Text string `json:"text"`
}

// Options say how to look.
type Options struct {
	// Strict makes faults of unknown keys, as the provider's --strict does.
	Strict bool
	// Diff adds what changes when the existing provider is replaced.
	Diff bool
}

// providers are the names under which classes may come to Leasehold, with whose parameters they have. leasehold is the one that
// manifests/overlays/migration serves, beside another provider.
var providers = map[string]spec.Provider{"vault": spec.Vault, "openbao": spec.OpenBao, "leasehold": spec.Vault}

// document is what is looked at of a manifest.
type document struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Metadata   struct {
		Name string `yaml:"name"`
	} `yaml:"metadata"`
	Spec struct {
		Provider      yaml.Node `yaml:"provider"`
		Parameters    yaml.Node `yaml:"parameters"`
		SecretObjects []struct {
			SecretName string `yaml:"secretName"`
			Data       []struct {
				ObjectName yaml.Node `yaml:"objectName"`
			} `yaml:"data"`
		} `yaml:"secretObjects"`
	} `yaml:"spec"`
	Items []yaml.Node `yaml:"items"`
}

// check is the check of one file.
type check struct {
	Options
	file     string
	class    string
	classes  int
	findings []Finding
}

// File checks every SecretProviderClass in a file of YAML or JSON documents and returns what there is to say, in the order of its
// lines. The error says that the file is not YAML.
func File(name string, text []byte, o Options) ([]Finding, error) {
	c := &check{Options: o, file: name}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var node yaml.Node
		err := decoder.Decode(&node)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		c.document(&node)
	}
	if c.class = ""; c.classes == 0 {
		c.say(1, Warning, "the file holds no SecretProviderClass for provider vault, openbao or leasehold")
	}
	slices.SortStableFunc(c.findings, func(a, b Finding) int { return a.Line - b.Line })
	return c.findings, nil
}

func (c *check) say(line int, level Level, format string, args ...any) {
	c.findings = append(c.findings, Finding{File: c.file, Line: line, Class: c.class, Level: level, Text: fmt.Sprintf(format, args...)})
}

func (c *check) document(node *yaml.Node) {
	var d document
	if err := node.Decode(&d); err != nil {
		return // no manifest, or none of ours: the API server says what is wrong with it
	}
	for i := range d.Items {
		c.document(&d.Items[i])
	}
	provider, ours := providers[d.Spec.Provider.Value]
	if d.Kind != "SecretProviderClass" || !ours {
		return
	}
	c.classes++
	c.class = d.Metadata.Name
	line := d.Spec.Parameters.Line
	if line == 0 {
		line = d.Spec.Provider.Line
	}
	params, nodes := c.parameters(&d.Spec.Parameters)
	position := func(f spec.Finding) int {
		value := nodes[f.Key]
		switch {
		case value == nil:
			return line
		case value.Style == yaml.LiteralStyle: // its text begins on the line after the |
			return value.Line + f.Line
		}
		return value.Line
	}
	// An address is the operator's to give, so that its absence is none of the class's faults.
	defaults := spec.Defaults{Provider: provider, Strict: c.Strict, Server: spec.Server{Address: "https://of.the.provider"}}
	parsed, faults, warnings := spec.Check(params, defaults)
	for _, f := range faults {
		c.say(position(f), Fault, "%s", f.Text)
	}
	for _, f := range warnings {
		c.say(position(f), Warning, "%s", f.Text)
	}
	if objects := nodes["objects"]; objects != nil {
		c.decimals(objects.Value, func(line int) int { return position(spec.Finding{Key: "objects", Line: line}) })
	}
	c.synced(d, params, parsed)
	if c.Diff && len(faults) == 0 {
		c.changes(line, params, parsed)
	}
}

// parameters returns the texts of a mapping with their nodes. The API server takes nothing but texts.
func (c *check) parameters(mapping *yaml.Node) (map[string]string, map[string]*yaml.Node) {
	params, nodes := make(map[string]string), make(map[string]*yaml.Node)
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		if value.Kind == yaml.AliasNode {
			value = value.Alias
		}
		if value.Kind != yaml.ScalarNode || value.ShortTag() != "!!str" {
			c.say(value.Line, Fault, "parameter %s is not a text, and the API server takes nothing else: put it in quotes", spec.Quote(key.Value))
		}
		if value.Kind == yaml.ScalarNode {
			params[key.Value], nodes[key.Value] = value.Value, value
		}
	}
	return params, nodes
}

// decimals hints at file permissions that are legal both as YAML reads them and as their author may have meant them.
func (c *check) decimals(objects string, position func(int) int) {
	var items []struct {
		FilePermission yaml.Node `yaml:"filePermission"`
	}
	if yaml.Unmarshal([]byte(objects), &items) != nil {
		return // that is a fault, and told
	}
	for _, item := range items {
		text := item.FilePermission.Value
		decimal, err := strconv.ParseUint(text, 10, 32)
		if err != nil || item.FilePermission.ShortTag() != "!!int" || strings.HasPrefix(text, "0") || decimal < 400 || decimal > 0o777 {
			continue
		}
		meant := ""
		if octal, err := strconv.ParseUint(text, 8, 32); err == nil {
			meant = fmt.Sprintf(", or %#o if that is meant", octal)
		}
		c.say(position(item.FilePermission.Line), Warning, "filePermission %s is a decimal number for YAML: the mode is %#o; write %#o%s", text, decimal, decimal, meant)
	}
}

// minting are paths that commonly lease what they answer with. Only Vault knows for certain.
var minting = regexp.MustCompile(`(^|/)(creds|sts|roleset|impersonated-account)/`)

// leased returns the first path of an object that looks leased; empty for none. Of a template those show that every rendering reads.
func leased(o spec.Object) string {
	paths := []string{o.Read.Path}
	needs, _ := syntax.Check(o.Template)
	for _, n := range needs {
		paths = append(paths, n.Args[0])
	}
	i := slices.IndexFunc(paths, minting.MatchString)
	if i < 0 {
		return ""
	}
	return paths[i]
}

// synced looks at what the driver copies into Secrets, which other pods may use and which outlive the pod.
func (c *check) synced(d document, params map[string]string, parsed spec.Spec) {
	for _, secret := range d.Spec.SecretObjects {
		for _, data := range secret.Data {
			name := data.ObjectName.Value
			i := slices.IndexFunc(parsed.Objects, func(o spec.Object) bool { return o.Writes(name) })
			if i >= 0 && parsed.Objects[i].Optional {
				c.say(data.ObjectName.Line, Warning, "secretObjects: Secret %s wants object %s, which is optional: the driver makes no Secret while the file is not there", spec.Quote(secret.SecretName), spec.Quote(name))
			}
			switch {
			case i < 0 && len(parsed.Objects) > 0:
				c.say(data.ObjectName.Line, Warning, "secretObjects: Secret %s wants object %s, which objects does not have: the driver will not make the Secret", spec.Quote(secret.SecretName), spec.Quote(name))
			case i >= 0 && params["syncedLeases"] == "":
				if path := leased(parsed.Objects[i]); path != "" {
					c.say(data.ObjectName.Line, Warning, "secretObjects: Secret %s outlives the pod, and object %s comes from %s, which looks leased: the lease will run out at the pod's end instead of being revoked; "+
						"say syncedLeases: revoke or refuse to choose otherwise", spec.Quote(secret.SecretName), spec.Quote(name), spec.Quote(path))
				}
			}
		}
	}
}

// changes tells what the existing provider did otherwise.
func (c *check) changes(line int, params map[string]string, parsed spec.Spec) {
	reads := make(map[string][]spec.Read) // by path
	for _, o := range parsed.Objects {
		if o.Template != "" { // the existing provider knows none
			continue
		}
		if o.Whole() && o.Format == spec.Raw {
			c.say(line, Change, "object %s: the file is {\"data\": ...} and changes only with the secret; the existing provider wrote Vault's whole reply, whose request id changes at each read", spec.Quote(o.Name))
		}
		if path := o.Read.Path; !slices.Contains(reads[path], o.Read) {
			reads[path] = append(reads[path], o.Read)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(reads)) {
		if minting.MatchString(path) {
			c.say(line, Change, "%s: credentials stay the same over republishes, are renewed while the pod lives and revoked at its end; the existing provider made new ones each time and forgot the old", spec.Quote(path))
		}
		if n := len(reads[path]); n > 1 {
			c.say(line, Change, "%s is read %d times, once for each method, query and secretArgs; the existing provider gave objects with the same method the first answer", spec.Quote(path), n)
		}
	}
	if text := params["vaultSkipTLSVerify"]; text != "" && !parsed.Server.SkipVerify {
		c.say(line, Change, "vaultSkipTLSVerify %s has Vault's certificate checked, whatever the provider's flag says; with the existing provider it changed nothing", spec.Quote(text))
	}
}
