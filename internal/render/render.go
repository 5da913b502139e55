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
	"strconv"
	"strings"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// MaxBytes is the largest file set, with names and what the driver's message adds per file. The driver takes 4 MiB per
// message by default, and answers a larger one with a code that can start the pod with an empty volume.
const MaxBytes = 4<<20 - 64<<10

const (
	fileCost = 128  // bytes of a message per file, beside its contents and twice its name: mode, object version, framing
	maxFiles = 2048 // the class's status in the API lists every one
	maxKeys  = 16   // keys that an error lists
	maxLarge = 3    // objects that an error about size lists
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

// Files renders every object, in order, from the answer of its read. Of the whole answer, Raw is a JSON object of nothing but
// data: request and lease ids, durations and warnings change at each read. A raw answer is the file as it is. What is missing of an
// optional object makes no file. Every error is an *[Error], about the first object that fails.
func Files(objects []spec.Object, answers map[spec.Read]grant.Answer) ([]File, error) {
	s := set{files: make([]File, 0, len(objects))}
	replies := make(map[spec.Read]*reply)
	for _, o := range objects {
		r := replies[o.Read]
		if r == nil {
			answer, ok := answers[o.Read]
			r = read(answer, ok)
			replies[o.Read] = r
		}
		err := s.write(o, r)
		if err == nil {
			continue
		}
		if _, missing := errors.AsType[missingError](err); missing && o.Optional {
			continue
		}
		if failed, ok := errors.AsType[*Error](err); ok {
			return nil, failed
		}
		return nil, &Error{Object: o.Name, Problem: fmt.Sprintf("the answer of %s %v", spec.Quote(o.Read.Path), err)}
	}
	return s.files, nil
}

// missingError says what an answer lacks; an optional object can do without it.
type missingError string

// Error implements error.
func (e missingError) Error() string { return string(e) }

// set are the files so far.
type set struct {
	files []File
	size  int
}

// write adds what an object makes of its answer: either all of it or, with an error, the volume is not written at all.
func (s *set) write(o spec.Object, r *reply) error {
	switch {
	case r.err != nil:
		return r.err
	case o.Each:
		return s.each(o, r)
	}
	contents, err := r.contents(o)
	if err != nil {
		return err
	}
	return s.add(File{Path: o.Name, Mode: o.Mode, Contents: contents})
}

// each adds a file for every key.
func (s *set) each(o spec.Object, r *reply) error {
	switch {
	case r.raw:
		return errRaw
	case len(r.fields) == 0:
		return missingError("has no keys")
	}
	for _, key := range slices.Sorted(maps.Keys(r.fields)) {
		if err := spec.FileName(key); err != nil {
			return fmt.Errorf("cannot become a file for each key: the key %s %w", spec.Quote(key), err)
		}
		contents, err := r.value(key, o.Encoding)
		if err != nil {
			return err
		}
		if err := s.add(File{Path: o.Name + "/" + key, Mode: o.Mode, Contents: contents}); err != nil {
			return err
		}
	}
	return nil
}

// add is called for each file as it is made: one large answer, asked for by every object, must not be multiplied in memory.
func (s *set) add(f File) error {
	s.files = append(s.files, f)
	s.size += len(f.Contents) + 2*len(f.Path) + fileCost
	switch {
	case s.size > MaxBytes:
		return tooLarge(s.files)
	case len(s.files) > maxFiles:
		return &Error{Problem: fmt.Sprintf("the volume has more than %d files", maxFiles)}
	}
	return nil
}

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
	// err is why there is nothing to render.
	err error
	// raw: the answer is no JSON but body.
	raw  bool
	body []byte
	data map[string]any
	// fields is where keys are looked up: data, or what KV version 2 (and whatever looks like it) wraps in another data.
	fields map[string]any
	// whole is data as a file, made when first asked for.
	whole []byte
}

func read(answer grant.Answer, ok bool) *reply {
	switch {
	case !ok:
		return &reply{err: errors.New("is not there")}
	case answer.Absent:
		return &reply{err: missingError("is missing: there was nothing to read")}
	case answer.Raw:
		return &reply{raw: true, body: answer.Body}
	}
	r, err := parse(answer.Body)
	if err != nil {
		return &reply{err: err}
	}
	return r
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

const errNoData = missingError("holds no data")

func unwrap(data map[string]any) (*reply, error) {
	inner, wrapped := data["data"]
	if fields, ok := inner.(map[string]any); ok {
		return &reply{data: data, fields: fields}, nil
	}
	if _, ok := data["metadata"].(map[string]any); ok && wrapped && inner == nil {
		return nil, missingError("holds no data: this version of the secret was deleted or destroyed")
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

// contents are those of an object that is one file.
func (r *reply) contents(o spec.Object) ([]byte, error) {
	switch {
	case r.raw && !o.Whole():
		return nil, errRaw
	case r.raw && o.Format == spec.Raw:
		return r.body, nil
	case r.raw && o.Format == spec.PEM:
		return rawPEM(r.body)
	case r.raw:
		return nil, errRawFormat
	case o.Format != spec.Raw:
		return r.format(o)
	case o.Whole():
		return r.envelope()
	}
	return r.value(o.Key, o.Encoding)
}

const notJSON = "is no JSON but a certificate, a revocation list or a key by itself, which "

var (
	errRaw       = errors.New(notJSON + "has no keys to choose: leave out secretKey")
	errRawFormat = errors.New(notJSON + "can be written in the formats raw and pem only")
)

// value is the text under a key, decoded.
func (r *reply) value(key string, encoding spec.Encoding) ([]byte, error) {
	value, err := r.lookup(key)
	if err != nil {
		return nil, err
	}
	text, err := textOf(value)
	if err != nil {
		return nil, err
	}
	contents, err := decode(text, encoding)
	if err != nil {
		return nil, fmt.Errorf("has under key %s what is not valid %s", spec.Quote(key), encoding)
	}
	return contents, nil
}

// lookup finds the key itself or, when there is none of that name, follows its path: into objects by key and into lists by number.
func (r *reply) lookup(key string) (any, error) {
	if value, ok := r.fields[key]; ok {
		return value, nil
	}
	var value any = r.fields
	for _, element := range spec.KeyPath(key) {
		var ok bool
		switch parent := value.(type) {
		case map[string]any:
			value, ok = parent[element]
		case []any:
			var i int
			if i, ok = index(element, len(parent)); ok {
				value = parent[i]
			}
		}
		if !ok {
			return nil, missingError(fmt.Sprintf("has no key %s; %s", spec.Quote(key), r.keys()))
		}
	}
	return value, nil
}

// index reads a number below n, in the one form that numbers have.
func index(text string, n int) (i int, ok bool) {
	i, err := strconv.Atoi(text)
	return i, err == nil && i >= 0 && i < n && strconv.Itoa(i) == text
}

// textOf returns a text as it is and anything else as JSON.
func textOf(value any) (string, error) {
	if text, ok := value.(string); ok {
		return text, nil
	}
	encoded, err := json.Marshal(value)
	if err != nil {
		return "", errNotJSON
	}
	return string(encoded), nil
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
