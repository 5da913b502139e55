package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

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

// word reads a key that is one of few words, in any case; empty when it is absent.
func word(key string, n *yaml.Node, words ...string) (string, error) {
	text, err := scalar(key, n)
	if err != nil || text == "" {
		return "", err
	}
	lower := strings.ToLower(text) // not folded as Unicode is: no other letter stands for one of a word
	i := slices.IndexFunc(words, func(w string) bool { return strings.ToLower(w) == lower })
	if i < 0 {
		return "", fmt.Errorf("%s %s is none of %s", key, Quote(text), strings.Join(words, ", "))
	}
	return words[i], nil
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
