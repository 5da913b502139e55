package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const (
	defaultMode = 0o755
	folderMode  = 0o755
)

// inHost stands for the image's architecture in the name of a file of this machine.
const inHost = "{arch}"

// entry is one file or symbolic link of the image; exactly one of host, content and target is set.
type entry struct {
	path    string
	host    string
	content []byte
	mode    int64
	target  string
}

// entries are the files and links named on the command line, in any order.
type entries []entry

// addFile takes host=path[:mode].
func (e *entries) addFile(arg string) error {
	host, dest, ok := strings.Cut(arg, "=")
	if !ok || host == "" {
		return errors.New("want host=path[:mode]")
	}
	mode := int64(defaultMode)
	if dest2, octal, ok := strings.Cut(dest, ":"); ok {
		parsed, err := strconv.ParseUint(octal, 8, 12)
		if err != nil {
			return fmt.Errorf("mode %q is not an octal number up to 7777", octal)
		}
		dest, mode = dest2, int64(parsed)
	}
	return e.add(entry{path: dest, host: host, mode: mode})
}

// addLink takes path=target.
func (e *entries) addLink(arg string) error {
	from, target, ok := strings.Cut(arg, "=")
	if !ok || target == "" {
		return errors.New("want path=target")
	}
	return e.add(entry{path: from, target: target})
}

func (e *entries) add(added entry) error {
	if !path.IsAbs(added.path) || path.Clean(added.path) != added.path || added.path == "/" {
		return fmt.Errorf("%q is not a clean absolute path in the image", added.path)
	}
	if slices.ContainsFunc(*e, func(other entry) bool { return other.path == added.path }) {
		return fmt.Errorf("%q is given twice", added.path)
	}
	*e = append(*e, added)
	return nil
}

// find returns the file at a path of the image.
func (e entries) find(path string) (entry, bool) {
	i := slices.IndexFunc(e, func(entry entry) bool { return entry.path == path && entry.target == "" })
	if i < 0 {
		return entry{}, false
	}
	return e[i], true
}

// layer returns the entries and the folders above them as an uncompressed tar.
func (e entries) layer(arch string) (tarball.Opener, error) {
	var content bytes.Buffer
	archive := tar.NewWriter(&content)
	for _, folder := range e.folders() {
		header := &tar.Header{Typeflag: tar.TypeDir, Name: inArchive(folder) + "/", Mode: folderMode}
		if err := archive.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("adding folder %s: %w", folder, err)
		}
	}
	sorted := slices.SortedFunc(slices.Values(e), func(a, b entry) int { return strings.Compare(a.path, b.path) })
	for _, entry := range sorted {
		if err := entry.writeTo(archive, arch); err != nil {
			return nil, fmt.Errorf("adding %s: %w", entry.path, err)
		}
	}
	if err := archive.Close(); err != nil {
		return nil, fmt.Errorf("closing the layer: %w", err)
	}
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content.Bytes())), nil }, nil
}

// folders returns every folder above an entry, parents first.
func (e entries) folders() []string {
	found := map[string]bool{}
	for _, entry := range e {
		for dir := path.Dir(entry.path); dir != "/"; dir = path.Dir(dir) {
			found[dir] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

func (e entry) writeTo(archive *tar.Writer, arch string) error {
	if e.target != "" {
		return archive.WriteHeader(&tar.Header{
			Typeflag: tar.TypeSymlink, Name: inArchive(e.path), Linkname: e.target, Mode: 0o777,
		})
	}
	content, err := e.read(arch)
	if err != nil {
		return err
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: inArchive(e.path), Mode: e.mode, Size: int64(len(content))}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err = archive.Write(content)
	return err
}

func (e entry) read(arch string) ([]byte, error) {
	if e.content != nil {
		return e.content, nil
	}
	return os.ReadFile(strings.ReplaceAll(e.host, inHost, arch))
}

// inArchive drops the leading slash: layers name their entries relative to the root.
func inArchive(abs string) string { return strings.TrimPrefix(abs, "/") }
