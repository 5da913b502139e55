package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/leasehold-csi/leasehold/internal/grant"
)

// Open takes the lock, waiting for another process to leave until ctx ends, and opens the file.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the state folder: %w", err)
	}
	if err := checkMemory(cfg); err != nil {
		return nil, err
	}
	lock, err := takeLock(ctx, cfg)
	if err != nil {
		return nil, err
	}
	mark := filepath.Join(cfg.Dir, markName)
	_, err = os.Stat(mark)
	s := &Store{lock: lock, mark: mark, interrupted: err == nil, maxBytes: cfg.MaxBytes, reserve: reserve{filepath.Join(cfg.Dir, reserveName)}}
	if s.maxBytes == 0 {
		s.maxBytes = DefaultMaxBytes
	}
	if err := s.open(filepath.Join(cfg.Dir, fileName)); err != nil {
		_ = lock.Close()
		return nil, err
	}
	err = s.prepare(cfg.Now(), cfg.KubeletDir)
	if err == nil && s.damaged.File != "" {
		err = s.carryOver(cfg.AllowDisk, cfg.Now())
	}
	if err == nil {
		err = s.reserve.fill()
	}
	if err == nil { // without it the next process only knows less
		_ = os.WriteFile(mark, nil, 0o600)
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// checkMemory refuses a folder that outlives the node's power.
func checkMemory(cfg Config) error {
	if cfg.AllowDisk {
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(cfg.Dir, &fs); err != nil {
		return fmt.Errorf("asking for the file system of %s: %w", cfg.Dir, err)
	}
	if fs.Type != unix.TMPFS_MAGIC && fs.Type != unix.RAMFS_MAGIC {
		return fmt.Errorf("the state folder %s is not on a tmpfs, so tokens would be written to a disk: mount a tmpfs there, or accept it with --allow-disk-state", cfg.Dir)
	}
	return nil
}

// takeLock holds an flock on a file of its own, which is never removed: a lock on the database would vanish with a rename.
func takeLock(ctx context.Context, cfg Config) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(cfg.Dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock of the store: %w", err)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for told := false; ; told = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			_ = f.Close()
			return nil, fmt.Errorf("locking the store: %w", err)
		}
		if !told && cfg.Waiting != nil {
			cfg.Waiting()
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("waiting for the process that holds the store in %s: %w", cfg.Dir, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// open opens the file; one that cannot be read is set aside, because a daemon that cannot start helps nobody.
func (s *Store) open(path string) error {
	// The free list is written, although it could be found again: bbolt does that in goroutines of its own, where the panic that a
	// damaged page causes cannot be caught.
	options := &bbolt.Options{
		NoSync: true, NoGrowSync: true,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: int(mapped * min(s.maxBytes, maxMapped)),
		Timeout:         time.Second,
	}
	db, err := openSound(path, options)
	if errors.Is(err, errUnsound) {
		s.damaged.File = path + damagedSuffix
		if err := os.Rename(path, s.damaged.File); err != nil {
			return fmt.Errorf("setting the damaged store aside: %w", err)
		}
		db, err = openSound(path, options)
	}
	if err != nil {
		return fmt.Errorf("opening the store: %w", err)
	}
	s.db = db
	return nil
}

// prepare makes the buckets, draws the key for object versions, counts the content, and starts lives anew when the file
// comes from another boot (only with AllowDisk), whose instants mean nothing now. Where kubelet's folders are looked for elsewhere than
// before, none was seen.
func (s *Store) prepare(now grant.Instant, kubeletDir string) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("reading the boot id: %w", err)
	}
	return s.commit(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{ledgerBucket, volumeBucket, contentBucket, metaBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return fmt.Errorf("preparing the store: %w", err)
			}
		}
		meta := tx.Bucket(metaBucket)
		key := bytes.Clone(meta.Get(versionKey))
		if len(key) == 0 {
			key = make([]byte, 32)
			_, _ = rand.Read(key) // never fails
			if err := meta.Put(versionKey, key); err != nil {
				return fmt.Errorf("keeping the version key: %w", err)
			}
		}
		s.key.Store(&key)
		if last := meta.Get(bootKey); last != nil && string(last) != string(boot) {
			if err := rebase(tx, now); err != nil {
				return err
			}
		}
		if err := meta.Put(bootKey, boot); err != nil {
			return fmt.Errorf("keeping the boot id: %w", err)
		}
		if last := meta.Get(kubeletKey); len(last) > 0 && string(last) != kubeletDir {
			if err := changeAll(tx, func(g *grant.Grant) { g.FolderSeen = false }); err != nil {
				return err
			}
		}
		if err := meta.Put(kubeletKey, []byte(kubeletDir)); err != nil {
			return fmt.Errorf("keeping where kubelet's folders are: %w", err)
		}
		return tx.Bucket(contentBucket).ForEach(func(k, v []byte) error {
			id, _, _ := bytes.Cut(k, []byte("/"))
			g, _ := getGrant(tx, string(id)) // of one that cannot be read, or of a damaged key, the namespace is not known
			s.content.add(g.Pod.Namespace, len(v))
			return nil
		})
	})
}
