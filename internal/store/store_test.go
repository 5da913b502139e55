package store_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store"
)

const now = grant.Instant(time.Hour)

// config is that of a store in dir, wherever the machine keeps its temporary files.
func config(dir string) store.Config {
	return store.Config{Dir: dir, AllowDisk: true, Now: func() grant.Instant { return now }}
}

// open opens a store that is closed when the test ends, if not before.
func open(t testing.TB, cfg store.Config) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func closeStore(t *testing.T, s *store.Store) {
	t.Helper()
	must(t, s.Close())
}

func newGrant(id, pod, volume string) grant.Grant {
	return grant.Grant{ID: id, Volume: spec.VolumeKey{PodUID: pod, Volume: volume}, State: grant.Active}
}

func ids(t *testing.T, grants []grant.Grant, err error) string {
	t.Helper()
	must(t, err)
	var all []string
	for _, g := range grants {
		all = append(all, g.ID)
	}
	return strings.Join(all, " ")
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "state")
	open(t, config(dir))
	want := map[string]fs.FileMode{".": fs.ModeDir | 0o700, "lock": 0o600, "leasehold.db": 0o600, "reserve": 0o600, "running": 0o600}
	got := map[string]fs.FileMode{}
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		name, _ := filepath.Rel(dir, path)
		got[name] = info.Mode()
		return err
	}))
	if !reflect.DeepEqual(got, want) {
		t.Errorf("files %v\nwant %v", got, want)
	}
}

func TestStateStaysInMemory(t *testing.T) {
	tests := []struct {
		parent  string // by the file system hierarchy standard, /var/tmp outlives a restart, and /dev/shm does not
		allow   bool
		refused bool
	}{
		{"/dev/shm", false, false},
		{"/var/tmp", false, true},
		{"/var/tmp", true, false},
	}
	for _, test := range tests {
		dir, err := os.MkdirTemp(test.parent, "leasehold-test-")
		must(t, err)
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		cfg := config(dir)
		cfg.AllowDisk = test.allow
		s, err := store.Open(t.Context(), cfg)
		if (err != nil) != test.refused {
			t.Fatalf("%s, allowed %t: %v", test.parent, test.allow, err)
		}
		if !test.refused {
			closeStore(t, s)
			continue
		}
		if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "--allow-disk-state") {
			t.Errorf("the error says neither where nor what to do: %v", err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("the refused folder holds %v (%v)", left, err)
		}
	}
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	first := open(t, config(dir))
	waiting := make(chan struct{})
	cfg := config(dir)
	cfg.Waiting = func() { close(waiting) } // panics when called twice
	opened := make(chan error, 1)
	go func() {
		second, err := store.Open(context.Background(), cfg)
		if err == nil {
			err = second.Put(newGrant("g", "uid", "creds"))
			err = errors.Join(err, second.Close())
		}
		opened <- err
	}()
	<-waiting
	select {
	case err := <-opened:
		t.Fatalf("opened while another held it: %v", err)
	default:
	}
	must(t, first.Put(newGrant("first", "uid", "creds")))
	closeStore(t, first)
	must(t, <-opened)
	third := open(t, config(dir))
	if got := allIDs(t, third); got != "first g" {
		t.Errorf("holds %q", got)
	}
}

// allIDs are the ids of all grants, every one of which must be readable.
func allIDs(t *testing.T, s *store.Store) string {
	t.Helper()
	grants, unreadable, err := s.All()
	if unreadable > 0 {
		t.Errorf("%d records are unreadable", unreadable)
	}
	return ids(t, grants, err)
}

func TestWaitingEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	open(t, config(dir))
	reason := errors.New("asked to stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	cfg := config(dir)
	cfg.Waiting = func() { cancel(reason) }
	_, err := store.Open(ctx, cfg)
	if !errors.Is(err, reason) || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %v", err)
	}
}

func TestUnreadableFileIsSetAside(t *testing.T) {
	damages := map[string]func([]byte) []byte{
		"text":           func([]byte) []byte { return []byte("canary, not bbolt") },
		"zeroes":         func(b []byte) []byte { return make([]byte, len(b)) },
		"other pages":    func(b []byte) []byte { return []byte(strings.Repeat("x", len(b))) },
		"cut off":        func(b []byte) []byte { return b[:os.Getpagesize()+100] },
		"meta destroyed": func(b []byte) []byte { clear(b[16 : 2*os.Getpagesize()]); return b },
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, config(dir))
			must(t, s.Put(newGrant("lost", "uid", "creds")))
			closeStore(t, s)
			path := filepath.Join(dir, "leasehold.db")
			content, err := os.ReadFile(path)
			must(t, err)
			content = damage(content)
			must(t, os.WriteFile(path, content, 0o600))

			s = open(t, config(dir))
			aside, err := os.ReadFile(s.Damaged().File)
			if err != nil || string(aside) != string(content) {
				t.Errorf("the damaged file was not kept at %q: %v", s.Damaged().File, err)
			}
			must(t, s.Put(newGrant("new", "uid", "creds")))
			if got := allIDs(t, s); got != "new" {
				t.Errorf("holds %q", got)
			}
		})
	}
}

func TestSystemsErrorIsNoDamage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "leasehold.db")
	must(t, os.Mkdir(path, 0o700)) // cannot be opened as a file, even by root
	_, err := store.Open(t.Context(), config(dir))
	if err == nil || !strings.HasPrefix(err.Error(), "opening the store: ") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("it was set aside: %v", err)
	}
	must(t, os.Remove(path))
	open(t, config(dir)) // the lock was given back
}

func TestSoundFileIsKept(t *testing.T) {
	dir := t.TempDir()
	s := open(t, config(dir))
	key := string(s.VersionKey())
	if len(key) != 32 {
		t.Errorf("version key of %d bytes", len(key))
	}
	closeStore(t, s)
	s = open(t, config(dir))
	if s.Damaged() != (store.Salvage{}) || string(s.VersionKey()) != key {
		t.Errorf("damaged %+v; same version key: %t", s.Damaged(), string(s.VersionKey()) == key)
	}
	if other := open(t, config(t.TempDir())); string(other.VersionKey()) == key {
		t.Error("another node has the same version key")
	}
}

// TestVersionKeyIsKept: the key that was given last holds over a restart.
func TestVersionKeyIsKept(t *testing.T) {
	dir := t.TempDir()
	s := open(t, config(dir))
	for _, key := range []string{"first", "second", "second"} {
		must(t, s.SetVersionKey([]byte(key)))
		if got := string(s.VersionKey()); got != key {
			t.Errorf("version key %q, want %q", got, key)
		}
	}
	closeStore(t, s)
	if got := string(open(t, config(dir)).VersionKey()); got != "second" {
		t.Errorf("version key %q after a restart", got)
	}
}

func TestIndex(t *testing.T) {
	s := open(t, config(t.TempDir()))
	for _, g := range []grant.Grant{ // ids begin with the time of birth; here they are put in another order
		newGrant("0003", "uid", "creds"), newGrant("0001", "uid", "creds"), newGrant("0002", "uid", "creds-2"),
		newGrant("0004", "uid-2", "creds"), newGrant("0000", "ui", "d"),
	} {
		must(t, s.Put(g))
	}
	volume := func(pod, name string) string {
		grants, err := s.OfVolume(spec.VolumeKey{PodUID: pod, Volume: name})
		return ids(t, grants, err)
	}
	pod := func(uid string) string {
		grants, err := s.OfPod(uid)
		return ids(t, grants, err)
	}
	tests := []struct{ what, got, want string }{
		{"a volume, oldest first", volume("uid", "creds"), "0001 0003"},
		{"a volume whose name begins like another's", volume("uid", "creds-2"), "0002"},
		{"no volume", volume("uid", "cred"), ""},
		{"a pod", pod("uid"), "0002 0001 0003"},
		{"a pod whose UID begins like another's", pod("uid-2"), "0004"},
		{"no pod", pod("u"), ""},
		{"all", allIDs(t, s), "0000 0001 0002 0003 0004"},
	}
	for _, test := range tests {
		if test.got != test.want {
			t.Errorf("%s: %q, want %q", test.what, test.got, test.want)
		}
	}
	must(t, s.Delete("0001"))
	must(t, s.Delete("0001"))
	if got := volume("uid", "creds"); got != "0003" {
		t.Errorf("after a deletion: %q", got)
	}
	if _, err := s.Get("0001"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a deleted grant: %v", err)
	}
}

var errRefused = errors.New("refused")

func TestUpdate(t *testing.T) {
	s := open(t, config(t.TempDir()))
	must(t, s.Put(newGrant("g", "uid", "creds")))
	g, err := s.Update("g", func(g *grant.Grant) error { g.Cause = "done"; return nil })
	must(t, err)
	if g.Cause != "done" {
		t.Error("Update does not return the grant as it is afterwards")
	}
	if _, err := s.Update("g", func(g *grant.Grant) error { g.Cause = "half"; return errRefused }); !errors.Is(err, errRefused) {
		t.Errorf("error %v", err)
	}
	if _, err := s.Update("h", func(*grant.Grant) error { t.Error("called"); return nil }); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("error %v", err)
	}
	if g, err := s.Get("g"); err != nil || g.Cause != "done" {
		t.Errorf("%q, %v", g.Cause, err)
	}
}

func TestUpdateVolume(t *testing.T) {
	s := open(t, config(t.TempDir()))
	for _, g := range []grant.Grant{newGrant("2", "uid", "creds"), newGrant("1", "uid", "creds"), newGrant("3", "uid", "other")} {
		must(t, s.Put(g))
	}
	mark := func(cause, fresh string, result error) error {
		return s.UpdateVolume(spec.VolumeKey{PodUID: "uid", Volume: "creds"}, func(grants []*grant.Grant) (*grant.Grant, error) {
			for _, g := range grants {
				g.Cause = cause + " " + g.ID
			}
			if fresh == "" {
				return nil, result
			}
			g := newGrant(fresh, "uid", "creds")
			return &g, result
		})
	}
	must(t, mark("done", "", nil))
	if err := mark("half", "4", errRefused); !errors.Is(err, errRefused) {
		t.Errorf("error %v", err)
	}
	if _, err := s.Get("4"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a new grant of a change that failed: %v", err)
	}
	must(t, mark("more", "5", nil))
	must(t, mark("all", "", nil))
	for id, want := range map[string]string{"1": "all 1", "2": "all 2", "3": "", "5": "all 5"} {
		if g, err := s.Get(id); err != nil || g.Cause != want {
			t.Errorf("%s: %q, %v", id, g.Cause, err)
		}
	}
}

func nothing(*grant.Grant) error { return nil }

func answer(path, body string) grant.Answer {
	return grant.Answer{Read: spec.Read{Method: "GET", Path: path}, Body: []byte(body)}
}

func TestAnswers(t *testing.T) {
	dir := t.TempDir()
	s := open(t, config(dir))
	must(t, s.Put(newGrant("g", "uid", "creds")))
	must(t, s.Put(newGrant("h", "uid", "other")))
	put := func(id string, a grant.Answer) {
		t.Helper()
		_, err := s.PutAnswer(id, a, nothing)
		must(t, err)
	}
	put("h", answer("a", "of another grant"))
	others := s.Bytes()
	put("g", answer("a", strings.Repeat("x", 1000)))
	put("g", answer("b", "b"))
	put("g", answer("a", "y"))
	version := answer("a", "another version")
	version.Read.Query = "version=2"
	put("g", version)
	raw := answer("raw", "-----BEGIN CERTIFICATE-----")
	raw.Raw = true
	put("g", raw)
	absent := grant.Answer{Read: spec.Read{Method: "GET", Path: "absent"}, Absent: true, RefreshAt: 5}
	put("g", absent)

	held, err := s.Answers("g")
	must(t, err)
	if len(held) != 5 || !reflect.DeepEqual(held[absent.Read], grant.Answer{Read: absent.Read, Absent: true, RefreshAt: 5, Body: []byte{}}) || held[raw.Read].Absent || !held[raw.Read].Raw || held[version.Read].Raw || string(held[spec.Read{Method: "GET", Path: "a"}].Body) != "y" || string(held[version.Read].Body) != "another version" {
		t.Errorf("answers %v", held)
	}
	size := s.Bytes()
	if size <= others || size >= 1000 {
		t.Errorf("%d bytes after the large answer was replaced", size)
	}
	closeStore(t, s)
	s = open(t, config(dir))
	if got := s.Bytes(); got != size {
		t.Errorf("%d bytes, and %d when counted anew", size, got)
	}
	must(t, s.Delete("g"))
	if got := s.Bytes(); got != others {
		t.Errorf("%d bytes without the grant, want %d", got, others)
	}
	if held, err := s.Answers("g"); err != nil || len(held) > 0 {
		t.Errorf("answers of a deleted grant: %v, %v", held, err)
	}
	if _, err := s.PutAnswer("g", answer("a", "late"), nothing); !errors.Is(err, store.ErrNotFound) || s.Bytes() != others {
		t.Errorf("an answer for a deleted grant: %v, %d bytes", err, s.Bytes())
	}
	if _, err := s.PutAnswer("h", answer("b", "late"), func(*grant.Grant) error { return errRefused }); !errors.Is(err, errRefused) || s.Bytes() != others {
		t.Errorf("an answer whose change was refused: %v, %d bytes", err, s.Bytes())
	}
}

func TestFullStoreRecordsTheLease(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.MaxBytes = 2000 // one namespace has half of it
	s := open(t, cfg)
	must(t, s.Put(newGrant("g", "uid", "creds")))
	if err := s.Room("", 1000); err != nil {
		t.Errorf("empty: %v", err)
	}
	if err := s.Room("", 1001); !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), "--state-max") {
		t.Errorf("more than fits: %v", err)
	}
	_, err := s.PutAnswer("g", answer("a", strings.Repeat("x", 600)), nothing)
	must(t, err)
	size := s.Bytes()
	g, err := s.PutAnswer("g", answer("b", strings.Repeat("x", 600)), func(g *grant.Grant) error {
		g.Leases = append(g.Leases, grant.Lease{ID: secret.New("b/1")})
		return nil
	})
	if !errors.Is(err, store.ErrFull) || len(g.Leases) != 1 {
		t.Errorf("error %v, leases %v", err, g.Leases)
	}
	if g, err := s.Get("g"); err != nil || len(g.Leases) != 1 || g.Leases[0].ID != secret.New("b/1") {
		t.Errorf("the lease was not recorded: %v, %v", g.Leases, err)
	}
	if held, err := s.Answers("g"); err != nil || len(held) != 1 || s.Bytes() != size {
		t.Errorf("%d answers of %d bytes, %v", len(held), s.Bytes(), err)
	}
	info, err := os.Stat(filepath.Join(cfg.Dir, "leasehold.db"))
	must(t, err)
	if u, err := s.Usage(); err != nil || u != (store.Usage{Content: size, Limit: 2000, File: info.Size()}) {
		t.Errorf("usage %+v, %v; the file has %d bytes", u, err, info.Size())
	}
}

func TestShrinkingAlwaysFits(t *testing.T) {
	dir := t.TempDir()
	s := open(t, config(dir))
	must(t, s.Put(newGrant("g", "uid", "creds")))
	_, err := s.PutAnswer("g", answer("a", strings.Repeat("x", 1000)), nothing)
	must(t, err)
	closeStore(t, s)
	cfg := config(dir)
	cfg.MaxBytes = 1 // lowered by the operator
	s = open(t, cfg)
	_, err = s.PutAnswer("g", answer("a", strings.Repeat("x", 500)), nothing)
	must(t, err)
	if _, err := s.PutAnswer("g", answer("b", "x"), nothing); !errors.Is(err, store.ErrFull) {
		t.Errorf("a further answer: %v", err)
	}
}

// TestCopyAnswers: a grant begins with what another one of its volume has and is wanted, all of it or nothing.
func TestCopyAnswers(t *testing.T) {
	c := config(t.TempDir())
	c.MaxBytes = 12_000 // a namespace has half of it
	s := open(t, c)
	must(t, s.Put(newGrant("1", "uid", "creds")))
	must(t, s.Put(newGrant("2", "uid", "creds")))
	for _, path := range []string{"a", "b", "c"} {
		_, err := s.PutAnswer("1", answer(path, strings.Repeat(path, 1000)), nothing)
		must(t, err)
	}
	before := s.Bytes()
	must(t, s.CopyAnswers("1", "2", func(a grant.Answer) bool { return a.Read.Path != "b" }))
	got, err := s.Answers("2")
	must(t, err)
	if a := answer("a", ""); len(got) != 2 || string(got[a.Read].Body) != strings.Repeat("a", 1000) {
		t.Errorf("copied %+v", got)
	}
	if grown := s.Bytes() - before; grown < 2000 || grown > 3000 {
		t.Errorf("%d bytes more", grown)
	}
	_, err = s.PutAnswer("1", answer("large", strings.Repeat("x", 300)), nothing)
	must(t, err)
	before = s.Bytes()
	err = s.CopyAnswers("1", "2", func(grant.Answer) bool { return true })
	if got, _ := s.Answers("2"); !errors.Is(err, store.ErrFull) || len(got) != 2 || s.Bytes() != before {
		t.Errorf("without room: %v, %d answers, %d bytes more", err, len(got), s.Bytes()-before)
	}
	must(t, s.Delete("2"))
	must(t, s.Delete("1"))
	if s.Bytes() != 0 {
		t.Errorf("%d bytes are left", s.Bytes())
	}
}
