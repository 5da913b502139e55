//go:build e2e

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Two checkouts of one commit, by people whose machines differ, give the same files. They share Go's build cache, or the test
// would take minutes more: what it shows is that nothing of path, time, locale, umask or environment is an input of a build.
func TestSameCommitSameImage(t *testing.T) {
	first := makeImages(t, filepath.Join(t.TempDir(), "a"), "022", "TZ=UTC", "LC_ALL=C")
	second := makeImages(t, filepath.Join(t.TempDir(), "another", "place"), "077", "TZ=Pacific/Auckland", "LC_ALL=C.UTF-8",
		"GOAMD64=v3", "GOARM64=v9.0", "GOFLAGS=-tags=e2e")
	for _, name := range []string{"leasehold-amd64", "leasehold-arm64", "leasehold.tar", "leasehold.spdx.json"} {
		if !bytes.Equal(readFile(t, filepath.Join(first, "out", name)), readFile(t, filepath.Join(second, "out", name))) {
			t.Errorf("out/%s differs", name)
		}
	}

	bill := readBill(t, readFile(t, filepath.Join(first, "out", "leasehold.spdx.json")))
	images := openArchive(t, filepath.Join(first, "out", "leasehold.tar")).images(t)
	for _, arch := range []string{"amd64", "arm64"} {
		checkModules(t, bill, arch, filepath.Join(first, "out", "leasehold-"+arch))
		image := images["linux/"+arch]
		if image == nil {
			t.Errorf("no image for %s", arch)
			continue
		}
		if got, want := config(t, image).Labels[labelPrefix+"revision"], output(t, first, "git", "rev-parse", "HEAD"); got != want {
			t.Errorf("%s: revision %s, want %s", arch, got, want)
		}
	}
}

// makeImages clones the project into dir and makes its images there.
func makeImages(t *testing.T, dir, umask string, env ...string) string {
	t.Helper()
	project := output(t, ".", "git", "rev-parse", "--show-toplevel")
	cmd := exec.CommandContext(t.Context(), "sh", "-c",
		`umask "$1" && git clone --quiet "$2" "$3" && touch "$3/untracked" && exec make --no-print-directory -C "$3" images`,
		"sh", umask, project, dir)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Run(); err != nil {
		t.Fatalf("making the images in %s: %v", dir, err)
	}
	return dir
}

func output(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = dir
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", program, err)
	}
	return strings.TrimSpace(string(text))
}
