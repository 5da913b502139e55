package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/leasehold-csi/leasehold/internal/grant"
)

// Salvage says what became of a file that could not be read. The zero value: it could be.
type Salvage struct {
	// File is where the unreadable file was moved.
	File string
	// Carried is how many records of the ledger were found in it and taken over.
	Carried int
}

// Damaged says what Open had to do about an unreadable file.
func (s *Store) Damaged() Salvage { return s.damaged }

var errUnsound = errors.New("the file is damaged")

// openSound opens the file and checks all of it. The error is errUnsound when the file is at fault, and else the system's.
func openSound(path string, options *bbolt.Options) (db *bbolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a page beyond the end of the file
	defer func() {
		if recover() != nil {
			abandon(db)
			db, err = nil, errUnsound
		}
	}()
	db, err = bbolt.Open(path, 0o600, options)
	var system unix.Errno
	switch {
	case err == nil:
	case errors.As(err, &system), errors.Is(err, bolterrors.ErrTimeout):
		return nil, err
	default:
		return nil, errUnsound
	}
	file, err := os.Open(path)
	if err != nil {
		abandon(db)
		return nil, fmt.Errorf("opening the store to check it: %w", err)
	}
	defer func() { _ = file.Close() }()
	if err = db.View(func(tx *bbolt.Tx) error { return check(tx, file) }); err != nil {
		abandon(db)
		return nil, errUnsound
	}
	return db, nil
}

// abandon closes what may panic at it.
func abandon(db *bbolt.DB) {
	defer func() { _ = recover() }()
	if db != nil {
		_ = db.Close()
	}
}

// recordStart is how encoding/json begins every record.
var recordStart = []byte(`{"id":"`)

// salvage finds the records in the bytes of a damaged file, wherever they stand: bbolt keeps each in one piece. Of several with one
// id the one written last counts. One that was deleted may come back so; that does no harm: what it names is renewed only if it
// lives and its pod does, and else given back again.
func salvage(file string) (map[string]grant.Grant, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the damaged store: %w", err)
	}
	found, revisions := map[string]grant.Grant{}, map[string]uint64{}
	for at := bytes.Index(text, recordStart); at >= 0; {
		var r record
		if json.NewDecoder(bytes.NewReader(text[at:])).Decode(&r) == nil && r.whole() {
			if _, known := found[r.ID]; !known || r.Revision >= revisions[r.ID] {
				found[r.ID], revisions[r.ID] = r.grant(), r.Revision
			}
		}
		next := bytes.Index(text[at+1:], recordStart)
		if next < 0 {
			break
		}
		at += 1 + next
	}
	return found, nil
}

// whole tells a record from what merely looks like the beginning of one.
func (r *record) whole() bool {
	return r.ID != "" && r.Volume.PodUID != "" && r.Volume.Volume != "" && r.State != "" && r.Server.Address != ""
}

// carryOver takes the records of a damaged file over into the new one. Where the folder may outlive the node's power, so that the
// instants may be another boot's, every life begins anew.
func (s *Store) carryOver(allowDisk bool, now grant.Instant) error {
	grants, err := salvage(s.damaged.File)
	if err != nil {
		return err
	}
	return s.commit(func(tx *bbolt.Tx) error {
		for _, g := range grants {
			if err := addGrant(tx, g); err != nil {
				return err
			}
		}
		s.damaged.Carried = len(grants)
		if allowDisk {
			return rebase(tx, now)
		}
		return nil
	})
}
