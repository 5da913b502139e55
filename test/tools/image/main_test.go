package main

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func TestArchiveHoldsWhatWasAsked(t *testing.T) {
	dir := t.TempDir()
	program := writeFile(t, dir, "program", "#!")
	output := filepath.Join(dir, "out", "image.tar")
	runOK(t, "-o", output, "-tag", "thing:dev", "-entrypoint", "/bin/thing", "-cmd", "serve", "-cmd", "--verbose",
		"-link", "/bin/sh=thing", "-file", program+"=/bin/thing", "-file", program+"=/etc/deep/conf:0640")

	img, err := tarball.ImageFromPath(output, nil)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(slices.Concat(config.Config.Entrypoint, config.Config.Cmd), " "); got != "/bin/thing serve --verbose" {
		t.Errorf("command line %q", got)
	}

	var got []string
	layer := tar.NewReader(mutate.Extract(img))
	for {
		header, err := layer.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
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

func TestSameInputSameBytes(t *testing.T) {
	dir := t.TempDir()
	a, b := writeFile(t, dir, "a", "first"), writeFile(t, dir, "b", "second")
	var archives [][]byte
	for _, order := range [][]string{{a + "=/a", b + "=/b"}, {b + "=/b", a + "=/a"}} {
		output := filepath.Join(dir, "image.tar")
		runOK(t, "-o", output, "-tag", "thing:dev", "-entrypoint", "/a", "-file", order[0], "-file", order[1])
		content, err := os.ReadFile(output)
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, content)
	}
	if !slices.Equal(archives[0], archives[1]) {
		t.Error("the order of flags changed the archive")
	}
}

func TestRefusedArguments(t *testing.T) {
	dir := t.TempDir()
	program := writeFile(t, dir, "program", "")
	for name, change := range map[string][]string{
		"relative path":    {"-file", program + "=bin/thing"},
		"path upwards":     {"-file", program + "=/bin/../thing"},
		"mode not octal":   {"-file", program + "=/thing:rwx"},
		"path given twice": {"-file", program + "=/x", "-link", "/x=/y"},
		"missing file":     {"-file", filepath.Join(dir, "absent") + "=/x"},
		"link to nothing":  {"-link", "/x="},
		"stray argument":   {"stray"},
		"empty tag":        {"-tag", ""},
	} {
		t.Run(name, func(t *testing.T) {
			output := filepath.Join(t.TempDir(), "image.tar")
			args := append([]string{"-o", output, "-tag", "thing:dev", "-entrypoint", "/thing"}, change...)
			if err := run(args, io.Discard); err == nil {
				t.Error("accepted")
			}
			if _, err := os.Stat(output); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("left an archive behind: %v", err)
			}
		})
	}
}

func runOK(t *testing.T, args ...string) {
	t.Helper()
	if err := run(args, io.Discard); err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, dir, name, content string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
