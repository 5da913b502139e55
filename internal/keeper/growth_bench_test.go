package keeper

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

const (
	// leasesPerGrant is how many leases the token of each grant carries; each look renews them all, and the token.
	leasesPerGrant = 4
	requestsPer    = leasesPerGrant + 1
	// lookPause is the longest pause between two renewals of what lives for an hour; jitter makes it a twentieth shorter on average.
	lookPause = 10 * time.Minute
	lifetime  = time.Hour
)

// BenchmarkGrowth shows that neither a renewal nor a Mount costs more the more a node holds. One operation is one look at one grant,
// with all its renewals, or one republish of one volume. Vault costs nothing here.
func BenchmarkGrowth(b *testing.B) {
	for _, leases := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("leases=%d", leases), func(b *testing.B) {
			n := stocked(b, leases/leasesPerGrant)
			b.Run("look", n.looks)
			b.Run("mount", n.mounts)
		})
	}
}

// BenchmarkRenewal is the share of a look's renewal that is no more than asking Vault.
func BenchmarkRenewal(b *testing.B) {
	client, err := (&vault.Pool{RoundTripper: new(instant)}).Client(server, "shop")
	if err != nil {
		b.Fatal(err)
	}
	g := held(0)
	b.ReportAllocs()
	before := cpu()
	for range b.N {
		if _, err := client.RenewLease(b.Context(), session(&g), g.Leases[0], 0); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
}

// full is a keeper whose store holds many grants, all alike.
type full struct {
	*Keeper
	vault  *instant
	clock  *atomic.Int64
	file   string
	grants int
	first  int // of the grants, the one that is looked at next
}

// stocked fills a store as Mounts do, with one commit for each answer.
func stocked(b *testing.B, grants int) *full {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "leasehold")
	if err != nil {
		dir = b.TempDir()
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := &full{vault: new(instant), clock: new(atomic.Int64), file: filepath.Join(dir, "leasehold.db"), grants: grants}
	n.clock.Store(int64(time.Hour))
	now := func() grant.Instant { return grant.Instant(n.clock.Load()) }
	s, err := store.Open(b.Context(), store.Config{Dir: dir, AllowDisk: true, Now: now, MaxBytes: 1 << 30})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	for i := range grants {
		g := held(i)
		err := s.Put(g)
		for _, l := range g.Leases {
			if err == nil {
				_, err = s.PutAnswer(g.ID, grant.Answer{Read: l.Read, Body: []byte(credentials), Leased: true}, func(*grant.Grant) error { return nil })
			}
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	n.Keeper, err = New(Config{
		Store: s, Vaults: &vault.Pool{RoundTripper: n.vault}, Now: now, Log: slog.New(slog.DiscardHandler),
		Ended: func(context.Context, grant.Grant) grant.Verdict {
			return grant.Verdict{FolderSeen: true, Grace: 30 * time.Second}
		},
		Event: func(spec.Pod, string, string, string) {},
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, leave := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = n.Run(ctx) })
	b.Cleanup(func() { leave(); running.Wait() })
	return n
}

// looks has grants looked at as they fall due, one round of them all after the other.
func (n *full) looks(b *testing.B) {
	b.ReportAllocs()
	before := cpu()
	for left := b.N; left > 0; {
		if n.first == 0 {
			n.clock.Add(int64(lookPause))
		}
		some := min(left, n.grants-n.first)
		done := n.vault.after(some * requestsPer)
		for i := range some {
			n.queue.Add(id(n.first + i))
		}
		<-done
		n.first, left = (n.first+some)%n.grants, left-some
	}
	perLook := float64(cpu()-before) / float64(b.N)
	b.ReportMetric(perLook/requestsPer, "cpu-ns/renewal")
	looksPerHour := float64(n.grants) * float64(time.Hour) / (float64(lookPause) * 0.95)
	b.ReportMetric(100*perLook*looksPerHour/float64(time.Hour), "%core")
	if info, err := os.Stat(n.file); err == nil {
		b.ReportMetric(float64(info.Size())/float64(n.grants*leasesPerGrant), "bytes/lease")
	}
}

// mounts republishes one volume after the other.
func (n *full) mounts(b *testing.B) {
	wish := spec.Spec{Server: server, Auth: auth, Digest: digest}
	for i := range leasesPerGrant {
		wish.Objects = append(wish.Objects, spec.Object{Name: fmt.Sprintf("password-%d", i), Read: read(i), Key: "password", Mode: 0o644, Encoding: spec.UTF8})
	}
	requests := make([]*spec.Request, n.grants)
	for i := range requests {
		g := held(i)
		requests[i] = &spec.Request{Pod: g.Pod, Volume: g.Volume, Class: g.Class, Spec: wish}
	}
	b.ReportAllocs()
	b.ResetTimer()
	before := cpu()
	for i := range b.N {
		if files, err := n.Acquire(b.Context(), requests[i%n.grants]); err != nil || len(files) != leasesPerGrant {
			b.Fatalf("%d files, %v", len(files), err)
		}
	}
	b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
}

// cpu is what this process has used so far: other processes make no difference to it, and what the collector does in the background
// counts.
func cpu() time.Duration {
	var used unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &used)
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

const digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

var (
	server = spec.Server{Address: "https://vault.example.com:8200"}
	auth   = spec.Auth{Mount: "kubernetes", Role: "shop-backend"}
)

func id(i int) string { return fmt.Sprintf("%016x-%016x", i, i) }

func read(i int) spec.Read {
	return spec.Read{Method: http.MethodGet, Path: fmt.Sprintf("database/creds/shop-backend-%d", i)}
}

// held is one of many grants as a Mount leaves it, with tokens and ids as long as Vault's.
func held(i int) grant.Grant {
	uid := fmt.Sprintf("2f1c6d5e-8a1b-4c3d-9e0f-%012d", i)
	term := grant.NewTerm(grant.Instant(time.Hour), lifetime, true)
	g := grant.Grant{
		ID: id(i), Volume: spec.VolumeKey{PodUID: uid, Volume: "vault-secrets"},
		Pod:   spec.Pod{Namespace: fmt.Sprintf("shop-%d", i%10), Name: fmt.Sprintf("backend-7d9c5b6f4-%05d", i), UID: uid, ServiceAccount: "backend"},
		Class: "creds", Server: server, Auth: auth, Digest: digest, State: grant.Active,
		Created: grant.Instant(time.Hour), Tried: grant.Instant(time.Hour), Cluster: "1b2c3d4e-5f60-7182-93a4-b5c6d7e8f901",
		Token:    secret.New("hvs." + strings.Repeat("CAESI", 16) + fmt.Sprintf("%011d", i)),
		Accessor: secret.New(fmt.Sprintf("accessor%016d", i)),
		Login:    term, FolderSeen: true, Grace: 30 * time.Second, SyncAsked: true,
	}
	for j := range leasesPerGrant {
		g.Leases = append(g.Leases, grant.Lease{ID: secret.New(fmt.Sprintf("%s/lease%019d", read(j).Path, i)), Read: read(j), Term: term})
	}
	return g
}

// Replies of Vault 1.21.2.
const (
	request     = `{"request_id":"0d9c9e5c-3b6f-0c7e-7d0a-52b6c7a3a3c1",`
	leased      = request + `"lease_id":"database/creds/shop-backend-0/abcdefghijklmnopqrstuvwx","renewable":true,"lease_duration":3600,`
	credentials = leased + `"data":{"password":"A1a-3fVJqY7nWfC2pXk0","username":"v-kubernet-shop-bac-Xk0A1a3fVJqY7nWfC2pX-1767225600"},` +
		`"wrap_info":null,"warnings":null,"auth":null,"mount_type":"database"}` + "\n"
	renewedLease = leased + `"data":null,"wrap_info":null,"warnings":null,"auth":null,"mount_type":"database"}` + "\n"
	renewedToken = request + `"lease_id":"","renewable":false,"lease_duration":0,"data":null,"wrap_info":null,"warnings":null,"auth":{` +
		`"client_token":"hvs.CAESICAESICAESICAESICAESICAESICAESICAESICAESICAESICAESICAESICAESICAESICAESICAESI00000000000",` +
		`"accessor":"accessor0000000000000000","policies":["default","shop-backend"],"token_policies":["default","shop-backend"],` +
		`"metadata":{"role":"shop-backend","service_account_name":"backend","service_account_namespace":"shop-0",` +
		`"service_account_secret_name":"","service_account_uid":"7f9b6c1e-53d2-4f63-8a8e-1a2b3c4d5e6f"},"lease_duration":3600,"renewable":true,` +
		`"entity_id":"5e3b1c9a-8d7f-4f0e-9b2a-6c5d4e3f2a1b","token_type":"service","orphan":true,"mfa_requirement":null,"num_uses":0},` +
		`"mount_type":"token"}` + "\n"
)

// instant is a Vault that renews everything at once, for an hour.
type instant struct {
	mu   sync.Mutex
	left int
	done chan struct{} // closed when left comes to nothing
}

// after returns what is closed after so many renewals.
func (v *instant) after(renewals int) <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.left, v.done = renewals, make(chan struct{})
	return v.done
}

// RoundTrip implements http.RoundTripper.
func (v *instant) RoundTrip(r *http.Request) (*http.Response, error) {
	_, err := io.Copy(io.Discard, r.Body)
	body := renewedLease
	if strings.HasSuffix(r.URL.Path, "/renew-self") {
		body = renewedToken
	}
	v.mu.Lock()
	if v.left--; v.left == 0 {
		close(v.done)
	}
	v.mu.Unlock()
	return &http.Response{
		StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: int64(len(body)), Request: r,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)),
	}, err
}
