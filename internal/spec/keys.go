package spec

import (
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

const maxKeys = 512 // of one object's list

// eachKey as secretKey stands for all keys, a file each.
const eachKey = "*"

// KeyPath splits a secretKey at its dots into the keys that lead to a value, each in what is under the one before. A dot, a star or a
// backslash after a backslash stands for itself.
func KeyPath(key string) []string {
	var path []string
	var element strings.Builder
	for i := 0; i < len(key); i++ {
		switch c := key[i]; {
		case c == '.':
			path = append(path, element.String())
			element.Reset()
			continue
		case c == '\\' && i+1 < len(key) && strings.IndexByte(`.\*`, key[i+1]) >= 0:
			i++
		}
		element.WriteByte(key[i])
	}
	return append(path, element.String())
}

// KeyName is the name under which a value is written beside others: its secretKey without escapes.
func KeyName(key string) string {
	if !strings.Contains(key, `\`) {
		return key
	}
	return strings.Join(KeyPath(key), ".")
}

// FileName returns why a key cannot be the name of a file in a folder of the volume. The error completes "the key".
func FileName(key string) error {
	switch {
	case key == "", key == ".", key == "..":
		return errors.New("is no name for a file")
	case strings.ContainsAny(key, "/\x00"):
		return errors.New("holds what a file name cannot hold, a slash or NUL")
	case len(key) > maxNameElement:
		return fmt.Errorf("is longer than the %d bytes of a file name", maxNameElement)
	}
	return nil
}

// keys reads secretKey: a key, eachKey, or a list of keys.
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
