package spec

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	// maxYAML bounds what objects may grow to when its aliases are written out: nodeCost per node and the bytes of its text.
	maxYAML  = 1 << 20
	nodeCost = 64

	maxNameElement = 255 // bytes; the driver's limit

	maxKeys = 512 // of one object's list
)

// item is one entry of objects. Its fields stay nodes, because the YAML package's own errors repeat values, and secretArgs may
// hold a password.
type item struct {
	ObjectName     yaml.Node `yaml:"objectName"`
	SecretPath     yaml.Node `yaml:"secretPath"`
	SecretKey      yaml.Node `yaml:"secretKey"`
	Method         yaml.Node `yaml:"method"`
	SecretArgs     yaml.Node `yaml:"secretArgs"`
	FilePermission yaml.Node `yaml:"filePermission"`
	Encoding       yaml.Node `yaml:"encoding"`
	Format         yaml.Node `yaml:"format"`
	Optional       yaml.Node `yaml:"optional"`
	Template       yaml.Node `yaml:"template"`

	RefreshInterval yaml.Node `yaml:"refreshInterval"`
	RenewAt         yaml.Node `yaml:"renewAt"`
	RevokeOnEnd     yaml.Node `yaml:"revokeOnEnd"`
}

// parseObjects reads the YAML list; mode is that of files which ask for none.
func (p *parser) parseObjects(mode int32) []Object {
	items, err := list(p.params[objectsKey])
	if err != nil {
		p.faultf(place{key: objectsKey}, "objects %v", err)
		return nil
	}
	objects := make([]Object, len(items))
	for i, node := range items {
		objects[i] = p.object(fmt.Sprintf("object %d", i+1), node, mode)
	}
	p.distinct(objects)
	oneVerb(objects)
	return objects
}

// list returns the nodes of a YAML list that is neither empty nor too large.
func list(text string) ([]*yaml.Node, error) {
	if text == "" {
		return nil, errors.New("is missing: it lists the files of the volume")
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		return nil, syntaxError(err)
	}
	if doc.IsZero() || isNull(doc.Content[0]) { // only comments, or null
		return nil, errors.New("is empty: it must list the files of the volume")
	}
	if spend(&doc, maxYAML) < 0 {
		return nil, errors.New("is too large, counted with its YAML aliases written out")
	}
	items := doc.Content[0]
	switch {
	case items.Kind != yaml.SequenceNode:
		return nil, errors.New("is not a YAML list")
	case len(items.Content) == 0:
		return nil, errors.New("is empty: it must list the files of the volume")
	case len(items.Content) > maxObjects:
		return nil, fmt.Errorf("has more than %d items", maxObjects)
	}
	return items.Content, nil
}

// syntaxError keeps the line. The one error that repeats the text is that of an unknown alias, which is how a password with
// a leading * reads.
func syntaxError(err error) error {
	if strings.Contains(err.Error(), "unknown anchor") {
		return errors.New("is not valid YAML: an alias names no anchor (a text that starts with * must be quoted)")
	}
	return fmt.Errorf("is not valid YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
}

// spend returns what is left of budget after visiting n with its aliases followed; negative when it does not suffice. An
// alias inside its own anchor ends there too.
func spend(n *yaml.Node, budget int) int {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	budget -= nodeCost + len(n.Value)
	for _, child := range n.Content {
		if budget < 0 {
			break
		}
		budget = spend(child, budget)
	}
	return budget
}

// object reads one item. Its faults begin with the object's name, or with label while it has none.
func (p *parser) object(label string, node *yaml.Node, mode int32) Object {
	var it item
	if resolve(node).Kind != yaml.MappingNode || node.Decode(&it) != nil {
		p.faultf(place{objectsKey, node.Line}, "%s is not a mapping of plain and distinct keys", label)
		return Object{}
	}
	// where is the line of a key, or of the item where it has no such key
	where := func(key *yaml.Node) place { return place{objectsKey, cmp.Or(key.Line, node.Line)} }
	warn := func(key *yaml.Node, warning string) {
		if warning != "" {
			p.warnf(where(key), "%s: %s", label, warning)
		}
	}
	check := func(key *yaml.Node, err error) {
		if err != nil {
			p.faultf(where(key), "%s: %v", label, err)
		}
	}
	var o Object
	var err error
	if o.Name, err = scalar("objectName", &it.ObjectName); o.Name != "" {
		label = "object " + Quote(o.Name)
	}
	if err == nil {
		err = legalName(o.Name)
	}
	check(&it.ObjectName, err)
	p.unknownKeys(label, resolve(node))
	var warning string
	o.Mode, warning, err = permission(&it.FilePermission, mode)
	check(&it.FilePermission, err)
	warn(&it.FilePermission, warning)
	if !isNull(&it.Template) {
		check(&it.Template, it.template(&o))
		return o
	}
	o.Read.Path, o.Read.Query, err = secretPath(&it.SecretPath)
	check(&it.SecretPath, err)
	o.Read.Method, err = method(&it.Method)
	check(&it.Method, err)
	o.Read.Args, err = secretArgs(&it.SecretArgs)
	check(&it.SecretArgs, err)
	keysErr := o.keys(&it.SecretKey)
	check(&it.SecretKey, keysErr)
	o.Encoding, err = encoding(&it.Encoding)
	check(&it.Encoding, err)
	o.Optional, err = boolean("optional", &it.Optional)
	check(&it.Optional, err)
	if o.Format, err = format(&it.Format); err == nil && keysErr == nil && o.Encoding != "" {
		err = o.fits()
	}
	check(&it.Format, err)
	if err == nil && keysErr == nil && o.Encoding != UTF8 && o.Encoding != "" && o.Whole() {
		warn(&it.Encoding, "encoding has no effect without secretKey: the file is the whole answer as JSON")
	}
	o.Care = p.care(&it, o.Read, check, warn)
	return o
}

// keys reads secretKey: a key, EachKey, or a list of keys.
func (o *Object) keys(n *yaml.Node) (err error) {
	if list := resolve(n); list.Kind == yaml.SequenceNode {
		o.Keys, err = keyList(list.Content)
		return err
	}
	if o.Key, err = scalar("secretKey", n); err != nil {
		return errors.New("secretKey is neither a plain text nor a list of them")
	}
	if o.Key == eachKey {
		o.Key, o.Each = "", true
	}
	return nil
}

// keyList reads keys, of which no two may be written under the same name.
func keyList(nodes []*yaml.Node) ([]string, error) {
	switch {
	case len(nodes) == 0:
		return nil, errors.New("secretKey is an empty list")
	case len(nodes) > maxKeys:
		return nil, fmt.Errorf("secretKey lists more than %d keys", maxKeys)
	}
	keys, names := make([]string, len(nodes)), make(map[string]bool, len(nodes))
	for i, n := range nodes {
		key, err := scalar("secretKey", n)
		if err != nil || key == "" {
			return nil, errors.New("secretKey lists what is not a key")
		}
		name := KeyName(key)
		if names[name] {
			return nil, fmt.Errorf("secretKey lists %s twice", Quote(name))
		}
		keys[i], names[name] = key, true
	}
	return keys, nil
}

func format(n *yaml.Node) (Format, error) {
	text, err := scalar("format", n)
	if err != nil {
		return "", err
	}
	switch f := Format(strings.ToLower(text)); f {
	case "raw":
		return Raw, nil
	case Raw, JSON, YAML, Dotenv, Properties, PEM:
		return f, nil
	}
	return "", fmt.Errorf("format %s is none of raw, json, yaml, dotenv, properties, pem", Quote(text))
}

// fits returns why the object's format cannot write what else is asked for.
func (o *Object) fits() error {
	switch {
	case o.Format == Raw && len(o.Keys) > 0:
		return errors.New("secretKey lists keys, which needs a format: json, yaml, dotenv, properties or pem")
	case o.Each && len(o.Name) > maxText-len("/")-maxNameElement:
		return errors.New("objectName is too long for a folder that files are written into")
	case o.Format != Raw && o.Each:
		return fmt.Errorf(`format %s is not for secretKey "*", which writes each key into a file of its own, as it is`, o.Format)
	case o.Format != Raw && o.Encoding != UTF8:
		return fmt.Errorf("encoding %s is not for format %s, which writes texts as they are", o.Encoding, o.Format)
	}
	return nil
}

// distinct checks that no name is given twice, and that none is a folder of another. With slashes sorted before every other
// byte, both show between neighbours.
func (p *parser) distinct(objects []Object) {
	names := make([]string, 0, len(objects))
	for _, o := range objects {
		if o.Name != "" {
			names = append(names, strings.ReplaceAll(o.Name, "/", "\x00"))
		}
	}
	slices.Sort(names)
	for i := 1; i < len(names); i++ {
		before, name := names[i-1], names[i]
		quoted := Quote(strings.ReplaceAll(before, "\x00", "/"))
		switch {
		case name == before && (i == 1 || names[i-2] != name):
			p.faultf(place{key: objectsKey}, "object %s: objectName is given more than once", quoted)
		case strings.HasPrefix(name, before+"\x00"):
			p.faultf(place{key: objectsKey}, "object %s: objectName is also a folder of object %s", quoted, Quote(strings.ReplaceAll(name, "\x00", "/")))
		}
	}
}

// legalName returns why the driver would not write a file of that name.
func legalName(name string) error {
	elements := strings.Split(name, "/")
	switch {
	case name == "":
		return errors.New("objectName is missing")
	case len(name) > maxText:
		return fmt.Errorf("objectName is longer than %d bytes", maxText)
	case strings.ContainsRune(name, 0):
		return errors.New("objectName holds a NUL")
	case path.IsAbs(name):
		return errors.New("objectName is an absolute path; it must be relative to the volume")
	case slices.Contains(elements, ".."):
		return errors.New(`objectName holds ".."`)
	case strings.HasPrefix(name, ".."):
		return errors.New(`objectName starts with ".."`)
	case name == ".", name != path.Clean(name):
		return errors.New("objectName is not a clean path; it has an empty or . element")
	case slices.ContainsFunc(elements, func(e string) bool { return len(e) > maxNameElement }):
		return fmt.Errorf("objectName has an element longer than %d bytes", maxNameElement)
	}
	return nil
}

func secretPath(n *yaml.Node) (clean, query string, err error) {
	text, err := scalar("secretPath", n)
	if err != nil {
		return "", "", err
	}
	if text == "" {
		return "", "", errors.New("secretPath is missing")
	}
	if clean, query, err = SplitPath(text); err != nil {
		return "", "", fmt.Errorf("secretPath %w", err)
	}
	return clean, query, nil
}

// SplitPath splits a path?query of Vault's and brings both into the one form in which equal reads are equal. Its errors begin with
// the path.
func SplitPath(text string) (clean, query string, err error) {
	text, query, _ = strings.Cut(text, "?")
	clean, err = cleanPath(text)
	if err == nil && clean == "v1" {
		err = errEmpty
	}
	if err != nil {
		return "", "", fmt.Errorf("%s %w", Quote(text), err)
	}
	values, err := url.ParseQuery(query)
	if err != nil || strings.Contains(query, "#") || printable(query) != nil {
		return "", "", fmt.Errorf("%s has a query that is not k=v pairs joined by &", Quote(text))
	}
	return strings.TrimPrefix(clean, "v1/"), values.Encode(), nil
}

func method(n *yaml.Node) (string, error) {
	text, err := scalar("method", n)
	if err != nil {
		return "", err
	}
	switch verb := strings.ToUpper(text); verb {
	case "":
		return "GET", nil
	case "GET", "PUT", "POST":
		return verb, nil
	}
	return "", fmt.Errorf("method %s is none of GET, PUT, POST", Quote(text))
}

// secretArgs returns the arguments as JSON with sorted keys; its errors name nothing of them.
func secretArgs(n *yaml.Node) (string, error) {
	if isNull(n) {
		return "", nil
	}
	var args map[string]any
	if resolve(n).Kind != yaml.MappingNode || n.Decode(&args) != nil {
		return "", errors.New("secretArgs is not a mapping of distinct keys")
	}
	if len(args) == 0 {
		return "", nil
	}
	body, err := json.Marshal(args)
	if err != nil {
		return "", errors.New("secretArgs holds something that JSON cannot express")
	}
	return string(body), nil
}

// permission returns byDefault for 0 and for none. A number up to 0777 means what YAML makes of it; digits in quotes are octal, and
// so are those of a larger number, because nobody who writes 600 means 01130: that is worth a warning.
func permission(n *yaml.Node, byDefault int32) (mode int32, warning string, err error) {
	text, err := scalar("filePermission", n)
	if err != nil || text == "" {
		return byDefault, "", err
	}
	var number uint64
	if resolve(n).ShortTag() == "!!int" {
		if err := n.Decode(&number); err != nil {
			return 0, "", notMode(text)
		}
		if number > maxMode {
			digits, err := strconv.ParseUint(text, 8, 32)
			if err != nil || digits > maxMode {
				return 0, "", fmt.Errorf("filePermission %s is %#o, above 0777", Quote(text), number)
			}
			warning = fmt.Sprintf("filePermission %s is read as %#o: without a leading 0 YAML takes it for a decimal number, %#o, which is no file mode; write %#o", text, digits, number, digits)
			number = digits
		}
	} else if number, err = strconv.ParseUint(strings.TrimPrefix(text, "0o"), 8, 32); err != nil {
		return 0, "", notMode(text)
	} else if number > maxMode {
		return 0, "", fmt.Errorf("filePermission %s is above 0777", Quote(text))
	}
	if number == 0 {
		return byDefault, "", nil
	}
	return int32(number), warning, nil
}

func notMode(text string) error {
	return fmt.Errorf("filePermission %s is not a file mode such as 0640", Quote(text))
}

func encoding(n *yaml.Node) (Encoding, error) {
	text, err := scalar("encoding", n)
	if err != nil {
		return "", err
	}
	switch e := Encoding(strings.ToLower(text)); e {
	case "":
		return UTF8, nil
	case UTF8, Base64, Hex:
		return e, nil
	}
	return "", fmt.Errorf("encoding %s is none of utf-8, base64, hex", Quote(text))
}

func boolean(key string, n *yaml.Node) (bool, error) {
	text, err := scalar(key, n)
	switch {
	case err != nil:
		return false, err
	case text == "true":
		return true, nil
	case text == "false", text == "":
		return false, nil
	}
	return false, fmt.Errorf("%s %s is neither true nor false", key, Quote(text))
}

// scalar returns a text as it is written, whatever type YAML sees in it; empty when it is absent or null.
func scalar(key string, n *yaml.Node) (string, error) {
	if isNull(n) {
		return "", nil
	}
	n = resolve(n)
	if n.Kind != yaml.ScalarNode {
		return "", fmt.Errorf("%s is not a plain text", key)
	}
	return n.Value, nil
}

// isNull reports whether n is null or the zero node of a key that is absent.
func isNull(n *yaml.Node) bool { return resolve(n).ShortTag() == "!!null" }

func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}
