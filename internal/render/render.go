// Package render turns Vault's answers into the files of a volume.
//
// It is a pure function: the same answers give the same bytes, so that a republish changes a file only when a secret did. Its
// errors are meant for the pod's events: they name objects, paths and keys, never a value.
package render

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// MaxBytes is the largest file set, with names and what the driver's message adds per file. The driver takes 4 MiB per
// message by default, and answers a larger one with a code that can start the pod with an empty volume.
const MaxBytes = 4<<20 - 64<<10

const (
	fileCost = 128 // bytes of a message per file, beside its contents and twice its name: mode, object version, framing
	maxKeys  = 16  // keys that an error lists
	maxLarge = 3   // objects that an error about size lists
)

// File is one file of the volume.
type File struct {
	// Path is relative to the volume.
	Path string
	Mode int32
	// Contents may be shared with other files, and so must not be changed.
	Contents []byte
}

// Error says why answers cannot become files.
type Error struct {
	// Object is the name of the object that failed; empty when it is all of them together.
	Object string
	// Problem is fit for anybody's eyes.
	Problem string
}

// Error implements error.
func (e *Error) Error() string {
	if e.Object == "" {
		return e.Problem
	}
	return "object " + spec.Quote(e.Object) + ": " + e.Problem
}

// Files renders every object, in order, from the answer of its read. With an empty key the file is the answer itself, as a
// JSON object of nothing but data: request and lease ids, durations and warnings change at each read. A raw answer is the file as it is. Every error is an
// *[Error], about the first object that fails.
func Files(objects []spec.Object, answers map[spec.Read]grant.Answer) ([]File, error) {
	files := make([]File, 0, len(objects))
	parsed := make(map[spec.Read]*reply)
	size := 0
	for _, o := range objects {
		contents, err := render(o, answers, parsed)
		if err != nil {
			return nil, &Error{Object: o.Name, Problem: fmt.Sprintf("the answer of %s %v", spec.Quote(o.Read.Path), err)}
		}
		files = append(files, File{Path: o.Name, Mode: o.Mode, Contents: contents})
		size += len(contents) + 2*len(o.Name) + fileCost
		// Here and not after the loop: one large answer, asked for by every object, must not be multiplied in memory.
		if size > MaxBytes {
			return nil, tooLarge(files)
		}
	}
	return files, nil
}

func render(o spec.Object, answers map[spec.Read]grant.Answer, parsed map[spec.Read]*reply) ([]byte, error) {
	r := parsed[o.Read]
	if r == nil {
		answer, ok := answers[o.Read]
		if !ok {
			return nil, errors.New("is not there")
		}
		var err error
		switch {
		case answer.Raw && o.Key != "":
			return nil, errRaw
		case answer.Raw:
			return answer.Body, nil
		}
		if r, err = parse(answer.Body); err != nil {
			return nil, err
		}
		parsed[o.Read] = r
	}
	if o.Key == "" {
		return r.envelope()
	}
	return r.value(o.Key, o.Encoding)
}

var errRaw = errors.New("is no JSON but a certificate, a revocation list or a key by itself, which has no keys to choose: leave out secretKey")

func tooLarge(files []File) error {
	slices.SortStableFunc(files, func(a, b File) int { return cmp.Compare(len(b.Contents), len(a.Contents)) })
	var largest []string
	for _, f := range files[:min(len(files), maxLarge)] {
		largest = append(largest, fmt.Sprintf("%s (%d bytes)", spec.Quote(f.Path), len(f.Contents)))
	}
	return &Error{Problem: fmt.Sprintf("the files are larger than the %d bytes that the driver takes; the largest: %s",
		MaxBytes, strings.Join(largest, ", "))}
}

// reply is one answer of Vault, parsed.
type reply struct {
	data map[string]any
	// fields is where keys are looked up: data, or what KV version 2 (and whatever looks like it) wraps in another data.
	fields map[string]any
	// whole is data as a file, made when first asked for.
	whole []byte
}

// parse repeats nothing of the body, nor of encoding/json's errors, which quote it.
func parse(body []byte) (*reply, error) {
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber() // numbers stay as Vault wrote them
	var message struct {
		Data any `json:"data"`
	}
	if err := decoder.Decode(&message); err != nil {
		return nil, errors.New("is not a JSON object")
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("is not one JSON object")
	}
	data, ok := message.Data.(map[string]any)
	if !ok && message.Data != nil {
		return nil, errors.New("holds data that is not a JSON object")
	}
	if len(data) == 0 {
		return nil, errNoData
	}
	return unwrap(data)
}

var errNoData = errors.New("holds no data")

func unwrap(data map[string]any) (*reply, error) {
	inner, wrapped := data["data"]
	if fields, ok := inner.(map[string]any); ok {
		return &reply{data: data, fields: fields}, nil
	}
	if _, ok := data["metadata"].(map[string]any); ok && wrapped && inner == nil {
		return nil, errors.New("holds no data: this version of the secret was deleted or destroyed")
	}
	return &reply{data: data, fields: data}, nil
}

func (r *reply) envelope() ([]byte, error) {
	if r.whole == nil {
		whole, err := json.Marshal(map[string]any{"data": r.data})
		if err != nil {
			return nil, errNotJSON
		}
		r.whole = whole
	}
	return r.whole, nil
}

// errNotJSON stands for errors of encoding/json, which may quote values.
var errNotJSON = errors.New("cannot be written as JSON")

// value returns a text as it is and anything else as JSON, both then decoded.
func (r *reply) value(key string, encoding spec.Encoding) ([]byte, error) {
	value, ok := r.fields[key]
	if !ok {
		return nil, fmt.Errorf("has no key %s; %s", spec.Quote(key), r.keys())
	}
	text, ok := value.(string)
	if !ok {
		encoded, err := json.Marshal(value)
		if err != nil {
			return nil, errNotJSON
		}
		text = string(encoded)
	}
	contents, err := decode(text, encoding)
	if err != nil {
		return nil, fmt.Errorf("has under key %s what is not valid %s", spec.Quote(key), encoding)
	}
	return contents, nil
}

// decode's errors may quote the text.
func decode(text string, encoding spec.Encoding) ([]byte, error) {
	switch encoding {
	case spec.Base64:
		return base64.StdEncoding.DecodeString(text)
	case spec.Hex:
		return hex.DecodeString(text)
	default:
		return []byte(text), nil
	}
}

func (r *reply) keys() string {
	if len(r.fields) == 0 {
		return "it has no keys"
	}
	keys := slices.Sorted(maps.Keys(r.fields))
	rest := ""
	if n := len(keys) - maxKeys; n > 0 {
		keys, rest = keys[:maxKeys], fmt.Sprintf(" and %d more", n)
	}
	for i, key := range keys {
		keys[i] = spec.Quote(key)
	}
	return "its keys are " + strings.Join(keys, ", ") + rest
}
