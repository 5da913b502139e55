package render_test

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
)

// sourced reads assignments as a POSIX shell does ("Quoting" in its standard), with nothing to expand.
func sourced(text string) map[string]string {
	variables := make(map[string]string)
	for text != "" {
		name, rest, _ := strings.Cut(text, "=")
		var value strings.Builder
		quote := byte(0)
		i := 0
		for ; i < len(rest) && (quote != 0 || rest[i] != '\n'); i++ {
			switch c := rest[i]; {
			case quote == 0 && (c == '\'' || c == '"'):
				quote = c
			case c == quote:
				quote = 0
			case quote == '"' && c == '\\' && strings.IndexByte("\\\"$`", rest[i+1]) >= 0:
				i++
				value.WriteByte(rest[i])
			case quote == '"' && (c == '$' || c == '`'):
				return map[string]string{"expanded": text}
			case quote == 0:
				return map[string]string{"unquoted": text}
			default:
				value.WriteByte(c)
			}
		}
		if i == len(rest) {
			return map[string]string{"unterminated": text}
		}
		variables[name], text = value.String(), rest[i+1:]
	}
	return variables
}

// readProperties reads what java.util.Properties.load would, of lines that need no continuation.
func readProperties(text string) (map[string]string, error) {
	read := make(map[string]string)
	for line := range strings.Lines(text) {
		line = strings.TrimLeft(strings.TrimSuffix(line, "\n"), " \t\f")
		if line == "" || line[0] == '#' || line[0] == '!' {
			continue
		}
		end := 0
		for end < len(line) && !strings.ContainsRune("=: \t\f", rune(line[end])) {
			if line[end] == '\\' {
				end++
			}
			end++
		}
		value := strings.TrimLeft(line[min(end, len(line)):], " \t\f")
		if value != "" && (value[0] == '=' || value[0] == ':') {
			value = strings.TrimLeft(value[1:], " \t\f")
		}
		key, err := unescaped(line[:min(end, len(line))])
		if err != nil {
			return nil, err
		}
		if read[key], err = unescaped(value); err != nil {
			return nil, err
		}
	}
	return read, nil
}

func unescaped(text string) (string, error) {
	var units []uint16
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			units = append(units, uint16(text[i]))
			continue
		}
		if i++; i == len(text) {
			return "", fmt.Errorf("a line goes on: %q", text)
		}
		switch c := text[i]; c {
		case 't', 'n', 'r', 'f':
			units = append(units, uint16(map[byte]byte{'t': '\t', 'n': '\n', 'r': '\r', 'f': '\f'}[c]))
		case 'u':
			unit, err := strconv.ParseUint(text[i+1:i+5], 16, 16)
			if err != nil {
				return "", err
			}
			units = append(units, uint16(unit))
			i += 4
		default:
			units = append(units, uint16(c))
		}
	}
	return string(utf16.Decode(units)), nil
}
