package spec

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	// maxYAML bounds what objects may grow to when its aliases are written out: nodeCost per node and the bytes of its text.
	maxYAML  = 1 << 20
	nodeCost = 64

	maxNameElement = 255 // bytes; the driver's limit

	// maxStores bounds the items of format pkcs12: each costs a millisecond and more at every republish, because a password must be slow
	// to try out.
	maxStores   = 16
	maxPassword = 128 // characters
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
	Password       yaml.Node `yaml:"password"`
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
	p.fewStores(objects)
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
	if o.Read.Method, err = word("method", &it.Method, "GET", "PUT", "POST"); err == nil {
		o.Read.Method = cmp.Or(o.Read.Method, "GET")
	}
	check(&it.Method, err)
	o.Read.Args, err = secretArgs(&it.SecretArgs)
	check(&it.SecretArgs, err)
	keysErr := o.keys(&it.SecretKey)
	check(&it.SecretKey, keysErr)
	encoding, encodingErr := word("encoding", &it.Encoding, string(UTF8), string(Base64), string(Hex))
	o.Encoding = cmp.Or(Encoding(encoding), UTF8)
	check(&it.Encoding, encodingErr)
	o.Optional, err = boolean("optional", &it.Optional)
	check(&it.Optional, err)
	format, err := word("format", &it.Format, "raw", string(JSON), string(YAML), string(Dotenv), string(Properties), string(PEM), string(PKCS12))
	if format != "raw" {
		o.Format = Format(format)
	}
	if err == nil {
		check(&it.Password, o.password(&it.Password))
	}
	sound := err == nil && keysErr == nil && encodingErr == nil
	if sound {
		err = o.fits()
	}
	check(&it.Format, err)
	if sound && err == nil && o.Encoding != UTF8 && o.Whole() {
		warn(&it.Encoding, "encoding has no effect without secretKey: the file is the whole answer as JSON")
	}
	o.Care = p.care(&it, o.Read, check, warn)
	return o
}

// fits returns why the object's format cannot write what else is asked for.
func (o *Object) fits() error {
	switch {
	case o.Format == Raw && len(o.Keys) > 0:
		return errors.New("secretKey lists keys, which needs a format: json, yaml, dotenv, properties, pem or pkcs12")
	case o.Each && len(o.Name) > maxText-len("/")-maxNameElement:
		return errors.New("objectName is too long for a folder that files are written into")
	case o.Format != Raw && o.Each:
		return fmt.Errorf(`format %s is not for secretKey "*", which writes each key into a file of its own, as it is`, o.Format)
	case o.Format != Raw && o.Encoding != UTF8:
		return fmt.Errorf("encoding %s is not for format %s, which writes texts as they are", o.Encoding, o.Format)
	}
	return nil
}

// password reads what the file is locked with, in the characters that Java takes.
func (o *Object) password(n *yaml.Node) (err error) {
	o.Password, err = scalar("password", n)
	switch {
	case err != nil:
		return err
	case o.Format != PKCS12 && o.Password != "":
		return errors.New("password is for format pkcs12 only")
	case o.Format == PKCS12 && o.Password == "":
		return errors.New("password is missing, which format pkcs12 needs; Java's own is changeit")
	case len(o.Password) > maxPassword || strings.ContainsFunc(o.Password, func(r rune) bool { return r < ' ' || r > '~' }):
		return fmt.Errorf("password is not made of at most %d printable ASCII characters, which is what Java takes", maxPassword)
	}
	return nil
}

func (p *parser) fewStores(objects []Object) {
	stores := 0
	for _, o := range objects {
		if o.Format == PKCS12 {
			stores++
		}
	}
	if stores > maxStores {
		p.faultf(place{key: objectsKey}, "objects has more than %d items of format pkcs12", maxStores)
	}
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
