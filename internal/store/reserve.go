package store

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// reserveBytes are kept back on the file system for the ledger: when something else fills it, renewals and revocations are still
// recorded. A record takes a few kilobytes, a commit some pages.
const reserveBytes = 1 << 20

// reserve is a file that only takes up space, until it is given up.
type reserve struct{ path string }

// fill takes the space, as far as there is any: without it the store works as long as nothing else fills the file system.
func (r reserve) fill() error {
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening the store's reserve: %w", err)
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, reserveBytes)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EOPNOTSUPP) {
		err = nil
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("keeping the store's reserve: %w", err)
	}
	return nil
}

// release gives the space up and reports whether there was any.
func (r reserve) release() bool {
	info, err := os.Stat(r.path)
	return err == nil && info.Size() > 0 && os.Truncate(r.path, 0) == nil
}
