package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
)

// leasesPerGrant is how many leases each grant has.
const leasesPerGrant = 4

// TestFileStopsGrowing: what commits leave behind is used again by later ones.
func TestFileStopsGrowing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, config(dir))
	stock(t, s, 25)
	renew(t, s, 25, 100)
	before := size(t, dir)
	renew(t, s, 25, 500)
	if after := size(t, dir); after > before {
		t.Errorf("500 commits took the file from %d to %d bytes", before, after)
	}
}

// BenchmarkCommit records a renewal, as there are two for each token and one for each lease every ten minutes. The file must not
// grow with the number of commits, nor the time with the number of leases.
func BenchmarkCommit(b *testing.B) {
	for _, leases := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("leases=%d", leases), func(b *testing.B) {
			s, dir, grants := stocked(b, leases)
			before := size(b, dir)
			b.ReportAllocs()
			b.ResetTimer()
			renew(b, s, grants, b.N)
			b.ReportMetric(float64(before)/float64(leases), "bytes/lease")
			b.ReportMetric(float64(size(b, dir)-before)/float64(leases), "grown-bytes/lease")
		})
	}
}

// BenchmarkCommitAfterEnds is BenchmarkCommit when all but a few of the leases are gone: bbolt keeps a list of the free pages, and writes
// it with every commit.
func BenchmarkCommitAfterEnds(b *testing.B) {
	const left = 25
	for _, leases := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("leases=%d", leases), func(b *testing.B) {
			s, dir, grants := stocked(b, leases)
			for i := left; i < grants; i++ {
				must(b, s.Delete(number(i)))
			}
			b.ReportAllocs()
			b.ResetTimer()
			renew(b, s, left, b.N)
			b.ReportMetric(float64(size(b, dir)), "bytes")
		})
	}
}

// BenchmarkBatching compares, for 64 writers at once on a tmpfs, commits one by one, as the store makes them, with bbolt's way to join
// what comes within a while: nothing waits for a disk, so that there is little to share.
func BenchmarkBatching(b *testing.B) {
	const writers, records = 64, 2000
	for _, delay := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond} {
		b.Run(fmt.Sprint("delay=", delay), func(b *testing.B) {
			db, err := bbolt.Open(filepath.Join(inMemory(b), "db"), 0o600, &bbolt.Options{NoSync: true, NoGrowSync: true, FreelistType: bbolt.FreelistMapType})
			must(b, err)
			b.Cleanup(func() { _ = db.Close() })
			db.MaxBatchDelay = delay
			commit := db.Batch
			if delay == 0 {
				commit = db.Update
			}
			var n atomic.Int64
			b.SetParallelism(writers / runtime.GOMAXPROCS(0))
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					key := number(int(n.Add(1)) % records)
					if err := commit(func(tx *bbolt.Tx) error {
						bucket, err := tx.CreateBucketIfNotExists([]byte("records"))
						if err != nil {
							return err
						}
						return bucket.Put([]byte(key), make([]byte, 1500))
					}); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// stocked returns a store in memory that holds so many leases, its folder, and how many grants they are of.
func stocked(b *testing.B, leases int) (s *store.Store, dir string, grants int) {
	b.Helper()
	dir = inMemory(b)
	cfg := config(dir)
	cfg.MaxBytes = 1 << 30
	s, grants = open(b, cfg), leases/leasesPerGrant
	stock(b, s, grants)
	return s, dir, grants
}

// inMemory returns a folder on a tmpfs where there is one.
func inMemory(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "leasehold")
	if err != nil {
		return b.TempDir()
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// stock records grants as Mounts do, with one commit for each answer.
func stock(t testing.TB, s *store.Store, grants int) {
	t.Helper()
	term := grant.NewTerm(now, time.Hour, true)
	for i := range grants {
		g := newGrant(number(i), "pod-"+number(i), "secrets")
		g.Token, g.Login, g.Digest = secret.New("hvs."+strings.Repeat("t", 91)), term, strings.Repeat("d", 64)
		must(t, s.Put(g))
		for j := range leasesPerGrant {
			read := spec.Read{Method: "GET", Path: fmt.Sprintf("database/creds/app-%d", j)}
			answer := grant.Answer{Read: read, Body: []byte(strings.Repeat("b", 400)), Leased: true}
			_, err := s.PutAnswer(g.ID, answer, func(g *grant.Grant) error {
				g.Leases = append(g.Leases, grant.Lease{ID: secret.New(read.Path + "/abcdefghijklmnopqrstuvwx"), Read: read, Term: term})
				return nil
			})
			must(t, err)
		}
	}
}

// renew records that a lease was renewed, of one grant after the other.
func renew(t testing.TB, s *store.Store, grants, times int) {
	t.Helper()
	for i := range times {
		_, err := s.Update(number(i%grants), func(g *grant.Grant) error {
			g.Leases[0].Term = g.Leases[0].Term.Renewed(now.Add(time.Duration(i)), time.Hour, 0, true)
			return nil
		})
		must(t, err)
	}
}

func number(i int) string { return fmt.Sprintf("%016x", i) }

func size(t testing.TB, dir string) int64 {
	t.Helper()
	info, err := os.Stat(filepath.Join(dir, "leasehold.db"))
	must(t, err)
	return info.Size()
}
