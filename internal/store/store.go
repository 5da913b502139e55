// Package store is the node's memory of what is held: one bbolt file on a tmpfs.
//
// It has two parts. The ledger says which logins and leases exist and is all that is needed to renew and to revoke them; its
// encoding only ever gains fields, so that another version of Leasehold can take it over. The content holds Vault's answers,
// so that a republish needs no Vault; it is bounded and could be dropped.
//
// The file lives and dies with the node's power, as the pods' own secret volumes do. So nothing is synced to a disk, and
// instants of CLOCK_BOOTTIME stay true for as long as the file exists.
//
// Every change is one transaction of the one writer; what a decision rests on is checked inside the transaction that carries
// it out.
package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/leasehold-csi/leasehold/internal/effect"
	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// Errors that callers decide by.
var (
	// ErrNotFound: there is no such grant.
	ErrNotFound = errors.New("no such grant")
	// ErrFull: the answer would not fit below the content limit.
	ErrFull = errors.New("the store is full: raise --state-max or spread the pods over more nodes")
)

const (
	fileName = "leasehold.db"
	lockName = "lock"
	// damagedSuffix is added to the name of a file that could not be read.
	damagedSuffix = ".damaged"
	// reserveName is a file that takes up the space which the ledger may need when there is no other.
	reserveName = "reserve"
	// markName is a file that is there while a process works with the store, and after one that did not close it.
	markName = "running"
	// DefaultMaxBytes is the content limit when none is set.
	DefaultMaxBytes = 64 << 20
	// mapped is how much of the address space the file is given for each byte of the content limit. It takes no memory, and a file that
	// stays below it is never mapped anew: for that every reader would have to wait, and when it fails the file can only be opened anew.
	mapped = 4
	// maxMapped is the content limit, in bytes, beyond which no more is mapped at once: bbolt refuses what no address space holds, and
	// that must not be taken for a damaged file.
	maxMapped = 16 << 30
)

var (
	ledgerBucket  = []byte("ledger")  // grant id -> record
	volumeBucket  = []byte("volumes") // pod UID / volume / grant id -> nothing
	contentBucket = []byte("content") // grant id / hash of the read -> answer
	metaBucket    = []byte("meta")

	bootKey    = []byte("boot-id")
	versionKey = []byte("version-key")
	kubeletKey = []byte("kubelet-dir")
)

// Config says where the store is and how large it may grow.
type Config struct {
	// Dir is the folder of the store; it is created with mode 0700.
	Dir string
	// AllowDisk accepts a folder that is not on a tmpfs, which puts tokens and secrets on a disk.
	AllowDisk bool
	// MaxBytes bounds the content of all volumes together; zero means DefaultMaxBytes. The ledger is not counted, so that
	// renewals and revocations always have room.
	MaxBytes int64
	// KubeletDir is where this process looks for kubelet's folders of volumes; empty for nowhere. What an earlier process saw elsewhere
	// proves nothing about what is missing here.
	KubeletDir string
	// Now reads CLOCK_BOOTTIME.
	Now func() grant.Instant
	// Waiting is called once when another process holds the store, before waiting for it; nil for no notice.
	Waiting func()
}

// Store is the open store. Its methods are safe for concurrent use.
type Store struct {
	db       *bbolt.DB
	lock     *os.File
	maxBytes int64
	key      atomic.Pointer[[]byte]
	damaged  Salvage
	reserve  reserve
	content  contentSize
	// interrupted: see Interrupted.
	interrupted bool
	mark        string
}

// Interrupted reports whether the process that had the store before did not close it: it was killed, or the node lost it.
func (s *Store) Interrupted() bool { return s.interrupted }

// VersionKey keys object versions, so that they tell nothing of the content: the key that SetVersionKey gave last, also to an
// earlier process, or else a random one of this store's own. It must not be changed.
func (s *Store) VersionKey() []byte { return *s.key.Load() }

// SetVersionKey replaces the version key. It holds for this process even when there is an error, which says that it could not be
// kept for the next one. The caller must not change it, nor call again before it returned.
func (s *Store) SetVersionKey(key []byte) error {
	if bytes.Equal(key, s.VersionKey()) {
		return nil
	}
	s.key.Store(&key)
	err := s.commit(func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Put(versionKey, key) })
	if err != nil {
		return fmt.Errorf("keeping the version key: %w", err)
	}
	return nil
}

// Close closes the file and gives the lock back.
func (s *Store) Close() error {
	err := s.db.Close()
	_ = os.Remove(s.mark) // else the next process takes this one for killed
	return errors.Join(err, s.lock.Close())
}

// Remove closes the store and removes its files, for a provider that is taken away for good. The lock stays, as whoever waits for it has
// it open.
func (s *Store) Remove() error {
	path := s.db.Path()
	var err error
	for _, file := range []string{path, path + damagedSuffix, s.reserve.path} {
		if failure := os.Remove(file); !errors.Is(failure, fs.ErrNotExist) {
			err = errors.Join(err, failure)
		}
	}
	return errors.Join(err, s.Close())
}

// commit is the one place at which the file changes. When the file system is full the reserve is used up.
func (s *Store) commit(change func(*bbolt.Tx) error) error {
	n := effect.Before("store commit")
	err := s.db.Update(change)
	if errors.Is(err, unix.ENOSPC) && s.reserve.release() {
		err = s.db.Update(change)
	}
	effect.After(n)
	return err
}

// Put records a new grant.
func (s *Store) Put(g grant.Grant) error {
	return s.commit(func(tx *bbolt.Tx) error { return addGrant(tx, g) })
}

// Get returns a grant, or ErrNotFound.
func (s *Store) Get(id string) (g grant.Grant, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		g, err = getGrant(tx, id)
		return err
	})
	return g, err
}

// Update changes a grant in one transaction and returns it as it is afterwards. An error of change is returned as it is and
// leaves the record alone, as does ErrNotFound.
func (s *Store) Update(id string, change func(*grant.Grant) error) (g grant.Grant, err error) {
	err = s.commit(func(tx *bbolt.Tx) error {
		if g, err = getGrant(tx, id); err != nil {
			return err
		}
		if err := change(&g); err != nil {
			return err
		}
		return putGrant(tx, g)
	})
	return g, err
}

// UpdateVolume changes the grants of one volume, oldest first, in one transaction, and records one more that change returns; nil
// for none. An error of change is returned as it is and leaves all records alone.
func (s *Store) UpdateVolume(v spec.VolumeKey, change func([]*grant.Grant) (*grant.Grant, error)) error {
	return s.commit(func(tx *bbolt.Tx) error {
		grants, err := byPrefix(tx, indexKey(v, ""))
		if err != nil {
			return err
		}
		pointers := make([]*grant.Grant, len(grants))
		for i := range grants {
			pointers[i] = &grants[i]
		}
		fresh, err := change(pointers)
		if err != nil {
			return err
		}
		for _, g := range grants {
			if err := putGrant(tx, g); err != nil {
				return err
			}
		}
		if fresh == nil {
			return nil
		}
		return addGrant(tx, *fresh)
	})
}

// Delete forgets a grant with its answers. Deleting what is not there is no error.
func (s *Store) Delete(id string) error {
	freed, namespace := 0, ""
	err := s.commit(func(tx *bbolt.Tx) error {
		g, err := getGrant(tx, id)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := tx.Bucket(volumeBucket).Delete(indexKey(g.Volume, id)); err != nil {
			return fmt.Errorf("unindexing the grant: %w", err)
		}
		namespace = g.Pod.Namespace
		if freed, err = deleteAnswers(tx, id); err != nil {
			return err
		}
		if err := tx.Bucket(ledgerBucket).Delete([]byte(id)); err != nil {
			return fmt.Errorf("deleting the grant: %w", err)
		}
		return nil
	})
	if err == nil {
		s.content.add(namespace, -freed)
		err = s.reserve.fill() // what was given back may do for it
	}
	return err
}

// All returns every grant. A record that cannot be decoded is left where it is and counted in unreadable.
func (s *Store) All() (grants []grant.Grant, unreadable int, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(ledgerBucket).ForEach(func(_, v []byte) error {
			g, err := decodeGrant(v)
			if err != nil {
				unreadable++
				return nil //nolint:nilerr // one damaged record must not hide the others
			}
			grants = append(grants, g)
			return nil
		})
	})
	return grants, unreadable, err
}

// OfVolume returns the grants of one volume, oldest first.
func (s *Store) OfVolume(v spec.VolumeKey) ([]grant.Grant, error) { return s.view(indexKey(v, "")) }

// OfPod returns the grants of every volume of one pod.
func (s *Store) OfPod(uid string) ([]grant.Grant, error) { return s.view([]byte(uid + "/")) }

func (s *Store) view(prefix []byte) (grants []grant.Grant, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		grants, err = byPrefix(tx, prefix)
		return err
	})
	return grants, err
}

func byPrefix(tx *bbolt.Tx, prefix []byte) (grants []grant.Grant, err error) {
	c := tx.Bucket(volumeBucket).Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		g, err := getGrant(tx, string(k[bytes.LastIndexByte(k, '/')+1:]))
		if errors.Is(err, errDamaged) { // it must not keep the volume from a new grant; All counts it
			continue
		}
		if err != nil {
			return nil, err
		}
		grants = append(grants, g)
	}
	return grants, nil
}

// indexKey orders a volume's grants by id, which begins with its time of birth.
func indexKey(v spec.VolumeKey, id string) []byte {
	return []byte(v.PodUID + "/" + v.Volume + "/" + id)
}
