package spec

import (
	"errors"
	"fmt"
	"strings"
)

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
