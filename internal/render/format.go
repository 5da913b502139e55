package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// entry is a value under the name that it has in a file.
type entry struct {
	name  string
	value any
}

// format writes what an object asks for in its format.
func (r *reply) format(o spec.Object) ([]byte, error) {
	switch o.Format {
	case spec.PEM:
		return r.pem(o)
	case spec.PKCS12:
		return r.pkcs12(o)
	}
	if o.Key != "" && (o.Format == spec.JSON || o.Format == spec.YAML) {
		value, err := r.lookup(o.Key)
		if err != nil {
			return nil, err
		}
		return document(o.Format, value)
	}
	entries, err := r.entries(o)
	if err != nil {
		return nil, err
	}
	if o.Format == spec.JSON || o.Format == spec.YAML { // a mapping has no order of its own
		slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	}
	switch o.Format {
	case spec.JSON:
		return jsonObject(entries)
	case spec.YAML:
		if len(entries) == 0 {
			return []byte("{}\n"), nil
		}
		return lines(entries, yamlLine)
	case spec.Dotenv:
		return lines(entries, dotenvLine)
	case spec.Properties:
		return lines(entries, propertiesLine)
	default: // of a newer version's parser
		return nil, fmt.Errorf("cannot be written in the format %s", spec.Quote(string(o.Format)))
	}
}

// entries are the keys that an object asks for, in its order; all of them, sorted, when it names none.
func (r *reply) entries(o spec.Object) ([]entry, error) {
	keys := o.Keys
	if o.Key != "" {
		keys = []string{o.Key}
	}
	var entries []entry
	if len(keys) == 0 {
		for _, key := range slices.Sorted(maps.Keys(r.fields)) {
			entries = append(entries, entry{key, r.fields[key]})
		}
		return entries, nil
	}
	for _, key := range keys {
		value, err := r.lookup(key)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{spec.KeyName(key), value})
	}
	return entries, nil
}

// lines appends a line for each entry.
func lines(entries []entry, line func([]byte, entry) ([]byte, error)) (text []byte, err error) {
	for _, e := range entries {
		if text, err = line(text, e); err != nil {
			return nil, err
		}
		if text = append(text, '\n'); len(text) > MaxBytes {
			return nil, errTooLong
		}
	}
	return text, nil
}

// errTooLong is found while a file grows: keys of a list can hold one another, so that it could be many times its answer.
var errTooLong = fmt.Errorf("makes a file larger than the %d bytes that the driver takes", MaxBytes)

// document is one value by itself.
func document(f spec.Format, value any) (text []byte, err error) {
	if f == spec.YAML {
		text, err = appendYAML(nil, value)
	} else {
		text, err = appendJSON(nil, value)
	}
	if err != nil {
		return nil, err
	}
	return append(text, '\n'), nil
}

func jsonObject(entries []entry) (text []byte, err error) {
	text = append(text, '{')
	for i, e := range entries {
		if i > 0 {
			text = append(text, ',')
		}
		if text, err = appendJSON(text, e.name); err != nil {
			return nil, err
		}
		if text, err = appendJSON(append(text, ':'), e.value); err != nil {
			return nil, err
		}
		if len(text) > MaxBytes {
			return nil, errTooLong
		}
	}
	return append(text, "}\n"...), nil
}

// appendJSON is compact, has its keys sorted, and leaves <, > and & as they are.
func appendJSON(text []byte, value any) ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, errNotJSON
	}
	return append(text, bytes.TrimSuffix(out.Bytes(), []byte("\n"))...), nil
}

// YAML is written here and not by the YAML package, whose nodes take a hundred times the room of what they hold, and whose indentation
// grows with the square of the depth: an answer of megabytes that nobody bounds would cost the node its memory. What is deeper than
// the keys of the file is in flow style, which is JSON but for the rules below. All of it reads the same as YAML 1.1 and 1.2.

func yamlLine(text []byte, e entry) ([]byte, error) {
	text, err := appendYAMLKey(text, e.name)
	if err != nil {
		return nil, err
	}
	return appendYAML(append(text, ": "...), e.value)
}

func appendYAML(text []byte, value any) (_ []byte, err error) {
	switch value := value.(type) {
	case string:
		return appendYAMLText(text, value)
	case json.Number:
		return append(text, yamlNumber(string(value))...), nil
	case []any:
		text = append(text, '[')
		for i, item := range value {
			if i > 0 {
				text = append(text, ", "...)
			}
			if text, err = appendYAML(text, item); err != nil {
				return nil, err
			}
		}
		return append(text, ']'), nil
	case map[string]any:
		text = append(text, '{')
		for i, key := range slices.Sorted(maps.Keys(value)) {
			if i > 0 {
				text = append(text, ", "...)
			}
			if text, err = appendYAMLKey(text, key); err != nil {
				return nil, err
			}
			if text, err = appendYAML(append(text, ": "...), value[key]); err != nil {
				return nil, err
			}
		}
		return append(text, '}'), nil
	default: // true, false and null
		return appendJSON(text, value)
	}
}

// maxYAMLKey is how long a key on the line of its value may be in YAML, in characters with its quotes.
const maxYAMLKey = 1024

func appendYAMLKey(text []byte, key string) ([]byte, error) {
	before := len(text)
	text, err := appendYAMLText(text, key)
	if err == nil && len(text)-before > maxYAMLKey {
		err = fmt.Errorf("has a key that is too long for YAML, %s", spec.Quote(key))
	}
	return text, err
}

var (
	yamlPlain = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_./@-]*$`)
	// yamlWord are the texts that some YAML reader takes for something else.
	yamlWord = regexp.MustCompile(`(?i)^(y|n|yes|no|on|off|true|false|null)$`)
	// yamlHidden is what JSON leaves as it is, and YAML does not allow.
	yamlHidden = regexp.MustCompile("[\x7f\u0080-\u009f\ufeff\ufffe\uffff]")
)

func appendYAMLText(text []byte, value string) ([]byte, error) {
	if yamlPlain.MatchString(value) && !yamlWord.MatchString(value) {
		return append(text, value...), nil
	}
	before := len(text)
	text, err := appendJSON(text, value)
	if err != nil || !yamlHidden.Match(text[before:]) {
		return text, err
	}
	escaped := yamlHidden.ReplaceAllFunc(text[before:], func(hidden []byte) []byte {
		return fmt.Appendf(nil, `\u%04x`, []rune(string(hidden))[0])
	})
	return append(text[:before:before], escaped...), nil
}

// yamlNumber is a number as it came, but that YAML 1.1 wants a point and a sign where there is an exponent: 1e3 would be a text.
func yamlNumber(number string) string {
	i := strings.IndexAny(number, "eE")
	if i < 0 {
		return number
	}
	mantissa, exponent := number[:i], number[i+1:]
	if !strings.Contains(mantissa, ".") {
		mantissa += ".0"
	}
	if exponent[0] != '-' && exponent[0] != '+' {
		exponent = "+" + exponent
	}
	return mantissa + "e" + exponent
}

var shellName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// dotenvLine is what a POSIX shell reads (set -a; . ./file). The readers of dotenv files differ on what is between quotes. Single ones
// are read alike where there is nothing to escape: by the shell, godotenv, python-dotenv (of which \\ and \' are escapes) and node's
// dotenv, newlines included. A value that holds a single quote and nothing that is special between double quotes is read alike between
// those. What is left is for the shell and, unless it ends with a quote or a backslash, godotenv: the others know less escapes.
func dotenvLine(text []byte, e entry) ([]byte, error) {
	if !shellName.MatchString(e.name) {
		return nil, fmt.Errorf("cannot become format dotenv: the key %s is no name for a variable (letters, digits and _)", spec.Quote(e.name))
	}
	value, err := textOf(e.value)
	if err != nil {
		return nil, err
	}
	if strings.ContainsRune(value, 0) {
		return nil, fmt.Errorf("cannot become format dotenv: what is under the key %s holds a NUL, which no variable can", spec.Quote(e.name))
	}
	text = append(append(text, e.name...), '=')
	if !strings.Contains(value, `'`) && !strings.Contains(value, `\\`) && !strings.HasSuffix(value, `\`) {
		return append(append(append(text, '\''), value...), '\''), nil
	}
	text = append(text, '"')
	for i := range len(value) {
		if strings.IndexByte("\\\"$`", value[i]) >= 0 {
			text = append(text, '\\')
		}
		text = append(text, value[i])
	}
	return append(text, '"'), nil
}

// propertiesLine is for java.util.Properties. It is in ASCII, because readers disagree on whether a file is in Latin-1 or UTF-8.
func propertiesLine(text []byte, e entry) ([]byte, error) {
	value, err := textOf(e.value)
	if err != nil {
		return nil, err
	}
	text = appendProperty(text, e.name, true)
	return appendProperty(append(text, '='), value, false), nil
}

// appendProperty escapes every space of a key, and those that a value begins with.
func appendProperty(text []byte, value string, key bool) []byte {
	leading := true
	for _, r := range value {
		leading = leading && r == ' '
		switch {
		case r == ' ' && (key || leading), strings.ContainsRune(`\:=#!`, r):
			text = append(text, '\\', byte(r))
		case r == '\n':
			text = append(text, `\n`...)
		case r == '\r':
			text = append(text, `\r`...)
		case r == '\t':
			text = append(text, `\t`...)
		case r >= ' ' && r <= '~':
			text = append(text, byte(r))
		default:
			for _, unit := range utf16.Encode([]rune{r}) {
				text = fmt.Appendf(text, `\u%04X`, unit)
			}
		}
	}
	return text
}
