package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func TestArchiveHoldsWhatWasAsked(t *testing.T) {
	dir := t.TempDir()
	program := fakeProgram(t, dir, "amd64")
	output := filepath.Join(dir, "out", "image.tar")
	runOK(t, "-o", output, "-tag", "thing:dev", "-arch", "amd64", "-entrypoint", "/bin/thing", "-cmd", "serve", "-cmd", "--verbose",
		"-link", "/bin/sh=thing", "-file", program+"=/bin/thing", "-file", program+"=/etc/deep/conf:0640")

	img := openArchive(t, output).images(t)["linux/amd64"]
	if got := strings.Join(slices.Concat(config(t, img).Entrypoint, config(t, img).Cmd), " "); got != "/bin/thing serve --verbose" {
		t.Errorf("command line %q", got)
	}
	var got []string
	for _, header := range headers(t, img) {
		got = append(got, header.FileInfo().Mode().String()+" "+header.Name+" "+header.Linkname)
	}
	want := []string{
		"drwxr-xr-x bin ", "drwxr-xr-x etc ", "drwxr-xr-x etc/deep ",
		"Lrwxrwxrwx bin/sh thing", "-rwxr-xr-x bin/thing ", "-rw-r----- etc/deep/conf ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("layer\n got %q\nwant %q", got, want)
	}
}

func TestEachArchitectureHasItsOwnImage(t *testing.T) {
	dir := t.TempDir()
	for _, arch := range []string{"amd64", "arm64"} {
		fakeProgram(t, dir, arch)
	}
	output := filepath.Join(dir, "image.tar")
	runOK(t, "-o", output, "-tag", "registry.example/thing:v1", "-arch", "amd64,arm64", "-entrypoint", "/thing",
		"-file", filepath.Join(dir, "program-{arch}")+"=/thing")

	archive := openArchive(t, output)
	wantNames := map[string]string{
		"io.containerd.image.name": "registry.example/thing:v1", "org.opencontainers.image.ref.name": "v1",
	}
	if !maps.Equal(archive.names, wantNames) {
		t.Errorf("the index is named %v, want %v", archive.names, wantNames)
	}
	if err := validate.Index(archive.index); err != nil {
		t.Error(err)
	}
	images := archive.images(t)
	if got, want := slices.Sorted(maps.Keys(images)), []string{"linux/amd64", "linux/arm64"}; !slices.Equal(got, want) {
		t.Fatalf("platforms %q, want %q", got, want)
	}
	for platform, image := range images {
		file, err := image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if got := file.Platform().String(); got != platform {
			t.Errorf("the index says %s where the image says %s", platform, got)
		}
		arch := strings.TrimPrefix(platform, "linux/")
		if err := checkStatic(contentOf(t, image, "thing"), arch); err != nil {
			t.Errorf("%s: %v", platform, err)
		}
	}
}

func TestLabelsAreOnImagesAndIndex(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	dir := t.TempDir()
	output := filepath.Join(dir, "image.tar")
	runOK(t, "-o", output, "-tag", "thing:dev", "-arch", "arm64", "-entrypoint", "/thing", "-file", fakeProgram(t, dir, "arm64")+"=/thing",
		"-label", "title=thing", "-label", "description=Does one thing = well")

	want := map[string]string{
		"org.opencontainers.image.title":       "thing",
		"org.opencontainers.image.description": "Does one thing = well",
		"org.opencontainers.image.created":     "2023-11-14T22:13:20Z",
	}
	archive := openArchive(t, output)
	image := archive.images(t)["linux/arm64"]
	indexManifest, err := archive.index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for where, got := range map[string]map[string]string{
		"labels": config(t, image).Labels, "annotations": manifest.Annotations, "index annotations": indexManifest.Annotations,
	} {
		if !maps.Equal(got, want) {
			t.Errorf("%s\n got %v\nwant %v", where, got, want)
		}
	}
}

func TestSameInputSameBytes(t *testing.T) {
	dir := t.TempDir()
	a, b := fakeProgram(t, dir, "amd64"), writeFile(t, dir, "b", []byte("second"))
	var archives [][]byte
	for _, order := range [][]string{{a + "=/a", b + "=/b"}, {b + "=/b", a + "=/a"}} {
		output := filepath.Join(t.TempDir(), "image.tar")
		runOK(t, "-o", output, "-tag", "thing:dev", "-arch", "amd64", "-entrypoint", "/a", "-ca", "-file", order[0], "-file", order[1])
		archives = append(archives, readFile(t, output))
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the order of flags, or the time, changed the archive")
	}
}

func TestReport(t *testing.T) {
	dir := t.TempDir()
	output := filepath.Join(dir, "image.tar")
	var stdout bytes.Buffer
	err := run([]string{"-o", output, "-tag", "thing:dev", "-arch", "arm64", "-entrypoint", "/thing",
		"-file", fakeProgram(t, dir, "arm64") + "=/thing"}, &stdout, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	archive := openArchive(t, output)
	for _, digest := range []func() (v1.Hash, error){archive.index.Digest, archive.images(t)["linux/arm64"].Digest} {
		want, err := digest()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(stdout.String(), want.String()) {
			t.Errorf("no %s in\n%s", want, stdout.String())
		}
	}
}

func TestRefusedArguments(t *testing.T) {
	dir := t.TempDir()
	program := fakeProgram(t, dir, "amd64")
	for name, test := range map[string]struct {
		change []string
		want   string
	}{
		"relative path":      {[]string{"-file", program + "=bin/thing"}, "not a clean absolute path"},
		"path upwards":       {[]string{"-file", program + "=/bin/../thing"}, "not a clean absolute path"},
		"mode not octal":     {[]string{"-file", program + "=/x:rwx"}, "not an octal number"},
		"path given twice":   {[]string{"-file", program + "=/x", "-link", "/x=/y"}, "given twice"},
		"missing file":       {[]string{"-file", filepath.Join(dir, "absent") + "=/x"}, "no such file"},
		"link to nothing":    {[]string{"-link", "/x="}, "want path=target"},
		"stray argument":     {[]string{"stray"}, "nothing but flags"},
		"no tag":             {[]string{"-tag", "thing"}, "want name:tag"},
		"unknown arch":       {[]string{"-arch", "amd64,pdp11"}, `not made for "pdp11"`},
		"program missing":    {[]string{"-entrypoint", "/other"}, "not a -file of the image"},
		"another machine's":  {[]string{"-arch", "arm64"}, "built for EM_X86_64, not for arm64"},
		"label without text": {[]string{"-label", "title="}, "want name=value"},
		"not a Go program":   {[]string{"-sbom", filepath.Join(dir, "sbom.json")}, "not a Go executable"},
	} {
		t.Run(name, func(t *testing.T) {
			output := filepath.Join(t.TempDir(), "image.tar")
			args := append([]string{"-o", output, "-tag", "thing:dev", "-arch", "amd64", "-entrypoint", "/thing", "-file", program + "=/thing"},
				test.change...)
			err := run(args, io.Discard, io.Discard)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q in it", err, test.want)
			}
			left, err := os.ReadDir(filepath.Dir(output))
			if err != nil || len(left) > 0 {
				t.Errorf("left behind: %v %v", left, err)
			}
		})
	}
}

func TestRefusedPrograms(t *testing.T) {
	for name, test := range map[string]struct {
		content []byte
		want    string
	}{
		"a script":           {[]byte("#!/bin/sh\n"), "not a program for linux"},
		"another machine":    {elfFile(t, elf.EM_AARCH64), "built for EM_AARCH64, not for amd64"},
		"dynamically linked": {elfFile(t, elf.EM_X86_64, elf.PT_INTERP), "not static"},
	} {
		if err := checkStatic(test.content, "amd64"); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q in it", name, err, test.want)
		}
	}
}

func TestSourceDateMustBeNumber(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	program := fakeProgram(t, t.TempDir(), "amd64")
	err := run([]string{"-o", filepath.Join(t.TempDir(), "image.tar"), "-tag", "thing:dev", "-arch", "amd64", "-entrypoint", "/thing",
		"-file", program + "=/thing"}, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), `"yesterday" is not a number`) {
		t.Errorf("error %v", err)
	}
}

// archive is what a tool that reads OCI archives makes of one.
type archive struct {
	names map[string]string
	index v1.ImageIndex
}

func openArchive(t *testing.T, path string) archive {
	t.Helper()
	dir := t.TempDir()
	for header, content := range entriesOf(t, bytes.NewReader(readFile(t, path))) {
		if header.Uid != 0 || header.Gid != 0 || header.ModTime.Unix() != 0 {
			t.Errorf("%s of the archive is of %d:%d and %v", header.Name, header.Uid, header.Gid, header.ModTime)
		}
		writeFile(t, dir, header.Name, content)
	}
	outer, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := outer.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 {
		t.Fatalf("%d things in the archive, want the index alone", len(manifest.Manifests))
	}
	index, err := outer.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return archive{names: manifest.Manifests[0].Annotations, index: index}
}

// images returns the images by the platforms under which the index has them.
func (a archive) images(t *testing.T) map[string]v1.Image {
	t.Helper()
	manifest, err := a.index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	images := map[string]v1.Image{}
	for _, found := range manifest.Manifests {
		image, err := a.index.Image(found.Digest)
		if err != nil {
			t.Fatal(err)
		}
		images[found.Platform.String()] = image
	}
	return images
}

func config(t *testing.T, image v1.Image) v1.Config {
	t.Helper()
	file, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return file.Config
}

func headers(t *testing.T, image v1.Image) []*tar.Header {
	t.Helper()
	var found []*tar.Header
	for header := range entriesOf(t, mutate.Extract(image)) {
		found = append(found, header)
	}
	return found
}

func contentOf(t *testing.T, image v1.Image, name string) []byte {
	t.Helper()
	for header, content := range entriesOf(t, mutate.Extract(image)) {
		if header.Name == name {
			return content
		}
	}
	t.Fatalf("no %s in the image", name)
	return nil
}

func entriesOf(t *testing.T, in io.Reader) func(yield func(*tar.Header, []byte) bool) {
	return func(yield func(*tar.Header, []byte) bool) {
		reader := tar.NewReader(in)
		for {
			header, err := reader.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			content, err := io.ReadAll(reader)
			if err != nil {
				t.Fatal(err)
			}
			if !yield(header, content) {
				return
			}
		}
	}
}

func runOK(t *testing.T, args ...string) {
	t.Helper()
	if err := run(args, io.Discard, io.Discard); err != nil {
		t.Fatal(err)
	}
}

// fakeProgram writes what looks like a static program for an architecture.
func fakeProgram(t *testing.T, dir, arch string) string {
	t.Helper()
	return writeFile(t, dir, "program-"+arch, elfFile(t, machines[arch]))
}

// elfFile returns the headers of a program, and nothing that could run.
func elfFile(t *testing.T, machine elf.Machine, segments ...elf.ProgType) []byte {
	t.Helper()
	var out bytes.Buffer
	header := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Ehsize: uint16(binary.Size(elf.Header64{})), Phoff: uint64(binary.Size(elf.Header64{})),
		Phentsize: uint16(binary.Size(elf.Prog64{})), Phnum: uint16(len(segments)),
	}
	parts := []any{header}
	for _, segment := range segments {
		parts = append(parts, elf.Prog64{Type: uint32(segment)})
	}
	for _, part := range parts {
		if err := binary.Write(&out, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func writeFile(t *testing.T, dir, name string, content []byte) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
