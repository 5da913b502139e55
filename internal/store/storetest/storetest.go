// Package storetest has the store's file fail, for tests.
package storetest

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// BreakWrites has every write of the open store in a folder fail with EIO until mend is called. It puts this process's own memory in
// the file's place: of that, a write where nothing is mapped, as in the first pages, fails so. What is mapped of the file stays.
func BreakWrites(t testing.TB, dir string) (mend func()) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fd := descriptor(t, filepath.Join(dir, "leasehold.db"))
	kept, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	must(err)
	memory, err := unix.Open("/proc/self/mem", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(err)
	must(unix.Dup3(memory, fd, unix.O_CLOEXEC))
	must(unix.Close(memory))
	return func() {
		must(unix.Dup3(kept, fd, unix.O_CLOEXEC))
		must(unix.Close(kept))
	}
}

// descriptor is that of a file which this process has open.
func descriptor(t testing.TB, path string) int {
	t.Helper()
	var wanted, found unix.Stat_t
	if err := unix.Stat(path, &wanted); err != nil {
		t.Fatal(err)
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for fd := range 3 * len(open) { // the numbers have few gaps
		if unix.Fstat(fd, &found) == nil && found.Ino == wanted.Ino && found.Dev == wanted.Dev {
			return fd
		}
	}
	t.Fatalf("%s is not open", path)
	return 0
}
