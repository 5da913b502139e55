package store_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
)

const inNamespace = "LEASEHOLD_TEST_IN_NAMESPACE"

// TestFullFileSystem runs itself in a mount namespace of its own, where it may mount a tmpfs that is small.
func TestFullFileSystem(t *testing.T) {
	if os.Getenv(inNamespace) != "" {
		fullFileSystem(t)
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFullFileSystem$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) {
		t.Skip("this machine allows no user namespaces, and so no small tmpfs")
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func fullFileSystem(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"))
	defer func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) }()
	cfg := config(filepath.Join(dir, "state"))
	s := open(t, cfg)
	for i := range 20 {
		must(t, s.Put(newGrant(fmt.Sprint(i), fmt.Sprint("pod", i), "creds")))
	}
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	must(t, err)
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	must(t, f.Close())
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the file system: %v", err)
	}

	// An answer finds no room, and its lease is recorded all the same.
	answer := grant.Answer{Read: spec.Read{Path: "x"}, Body: make([]byte, 1<<20), Leased: true}
	_, err = s.PutAnswer("0", answer, func(g *grant.Grant) error { g.Leases = append(g.Leases, grant.Lease{Read: answer.Read}); return nil })
	if !errors.Is(err, store.ErrFull) {
		t.Errorf("an answer that does not fit: %v", err)
	}
	if g, err := s.Get("0"); err != nil || len(g.Leases) != 1 {
		t.Errorf("the lease of the answer: %+v, %v", g, err)
	}
	// So are renewals and revocations.
	for round := range 50 {
		for i := range 20 {
			_, err := s.Update(fmt.Sprint(i), func(g *grant.Grant) error { g.Failures = round; return nil })
			must(t, err)
		}
	}
	must(t, s.Delete("19"))

	// With nothing left at all a change fails, and the store goes on when there is room again.
	f, err = os.OpenFile(ballast, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	must(t, f.Close())
	failed := false
	for i := 0; i < 4096 && !failed; i++ {
		failed = s.Put(newGrant(fmt.Sprint("more", i), fmt.Sprint("more", i), "creds")) != nil
	}
	if !failed {
		t.Error("no change failed on a full file system")
	}
	must(t, os.Remove(ballast))
	must(t, s.Put(newGrant("after", "pod", "creds")))
	closeStore(t, s)
	s = open(t, cfg)
	if _, err := s.Get("after"); err != nil || s.Damaged() != (store.Salvage{}) {
		t.Errorf("after all: %v, %+v", err, s.Damaged())
	}
	if g, err := s.Get("0"); err != nil || g.Failures != 49 {
		t.Errorf("what was recorded on a full file system: %+v, %v", g, err)
	}
}
