package store_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// fill gives every field below v a value of its own, so that a field that the ledger forgets is missed.
func fill(t *testing.T, v reflect.Value, n *int) {
	t.Helper()
	*n++
	if v.Type() == reflect.TypeFor[secret.Value]() {
		v.Set(reflect.ValueOf(secret.New("secret " + strconv.Itoa(*n))))
		return
	}
	if v.Type() == reflect.TypeFor[time.Time]() {
		v.Set(reflect.ValueOf(time.Unix(int64(*n), 0).UTC()))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(t, field, n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(t, v.Index(i), n)
		}
	case reflect.String:
		v.SetString("text " + strconv.Itoa(*n))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8:
		v.SetUint(uint64(*n % 256))
	case reflect.Bool:
		v.SetBool(true)
	default:
		t.Fatalf("fill does not know %s", v.Type())
	}
}

func TestEveryFieldIsKept(t *testing.T) {
	var (
		n int
		g grant.Grant
		a grant.Answer
	)
	fill(t, reflect.ValueOf(&g).Elem(), &n)
	fill(t, reflect.ValueOf(&a).Elem(), &n)
	g.State = grant.Superseded // one that is known
	dir := t.TempDir()
	s := open(t, config(dir))
	must(t, s.Put(g))
	_, err := s.PutAnswer(g.ID, a, nothing)
	must(t, err)
	closeStore(t, s)
	s = open(t, config(dir))
	got, err := s.Get(g.ID)
	must(t, err)
	if !reflect.DeepEqual(got, g) {
		t.Errorf("kept %#v\nwant %#v", got, g)
	}
	answers, err := s.Answers(g.ID)
	must(t, err)
	if !reflect.DeepEqual(answers, map[spec.Read]grant.Answer{a.Read: a}) {
		t.Errorf("kept %#v\nwant %#v", answers, a)
	}
}

// edit changes the file of a closed store.
func edit(t *testing.T, dir, bucket, key string, value []byte) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(dir, "leasehold.db"), 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte(bucket)).Put([]byte(key), value) }))
	must(t, db.Close())
}

// closedStore is the folder of a store that holds grants and is closed.
func closedStore(t *testing.T, grants ...grant.Grant) string {
	t.Helper()
	dir := t.TempDir()
	s := open(t, config(dir))
	for _, g := range grants {
		must(t, s.Put(g))
	}
	closeStore(t, s)
	return dir
}

// TestGoldenRecord reads what the first version wrote, and what a later one may. The first file must never change: a provider that
// cannot read it forgets the leases of every running node at its roll-out.
func TestGoldenRecord(t *testing.T) {
	next := golden()
	next.State = grant.Active // in place of one that this version does not know: kept alive until the pod ends
	for file, want := range map[string]grant.Grant{"record-v1.json": golden(), "record-next.json": next} {
		t.Run(file, func(t *testing.T) {
			record, err := os.ReadFile(filepath.Join("testdata", file))
			must(t, err)
			dir := closedStore(t)
			edit(t, dir, "ledger", want.ID, record)
			edit(t, dir, "volumes", "0f8a-11/creds/"+want.ID, nil)
			s := open(t, config(dir))
			grants, err := s.OfVolume(want.Volume)
			must(t, err)
			if len(grants) != 1 || !reflect.DeepEqual(grants[0], want) {
				t.Errorf("read %#v\nwant %#v", grants, want)
			}
		})
	}
}

// TestFirstVersionReadsIt: what the first version looks for is where it looks, or it is nothing.
func TestFirstVersionReadsIt(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "record-v1.json"))
	must(t, err)
	dir := closedStore(t, golden())
	db, err := bbolt.Open(filepath.Join(dir, "leasehold.db"), 0o600, nil)
	must(t, err)
	defer func() { must(t, db.Close()) }()
	var want, got map[string]any
	must(t, json.Unmarshal(text, &want))
	must(t, db.View(func(tx *bbolt.Tx) error {
		if tx.Bucket([]byte("volumes")).Get([]byte("0f8a-11/creds/"+golden().ID)) == nil {
			t.Error("the grant is not found by its volume")
		}
		return json.Unmarshal(tx.Bucket([]byte("ledger")).Get([]byte(golden().ID)), &got)
	}))
	holds(t, "record", got, want)
}

// holds tells what of want is missing in got or differs.
func holds(t *testing.T, at string, got, want any) {
	t.Helper()
	switch want := want.(type) {
	case map[string]any:
		got, _ := got.(map[string]any)
		for key := range want {
			holds(t, at+"."+key, got[key], want[key])
		}
	case []any:
		got, _ := got.([]any)
		if len(got) != len(want) {
			t.Errorf("%s has %d elements, want %d", at, len(got), len(want))
			return
		}
		for i := range want {
			holds(t, at+"."+strconv.Itoa(i), got[i], want[i])
		}
	default:
		if got != want && (got != nil || !reflect.ValueOf(want).IsZero()) { // what is left out is read as zero
			t.Errorf("%s is %v, want %v", at, got, want)
		}
	}
}

func golden() grant.Grant {
	minute := grant.Instant(time.Minute)
	return grant.Grant{
		ID:     "0000034630b8a000-0123456789abcdef",
		Volume: spec.VolumeKey{PodUID: "0f8a-11", Volume: "creds"},
		Pod:    spec.Pod{Namespace: "shop", Name: "app", UID: "0f8a-11", ServiceAccount: "app-sa"},
		Class:  "vault-db-creds",
		Server: spec.Server{
			Address: "https://vault:8200", CACert: "/tls/ca.crt", CADirectory: "/tls/ca", ServerName: "vault.internal",
			ClientCert: "/tls/tls.crt", ClientKey: "/tls/tls.key", SkipVerify: true,
		},
		Namespace: "team",
		Auth:      spec.Auth{Mount: "kubernetes", Role: "my-app-role", Audience: "vault"},
		Digest:    "d1g35t",
		State:     grant.Revoking,
		Created:   60 * minute,
		Cluster:   "c1u5t3r",
		Token:     secret.New("hvs.token"),
		Accessor:  secret.New("accessor"),
		Login: grant.Term{
			From: 61 * minute, TTL: 20 * time.Minute, Full: 20 * time.Minute, Limit: 81 * minute, Renewable: true,
		},
		Unleasable: "the role gives batch tokens",
		Leases: []grant.Lease{{
			ID:   secret.New("database/creds/my-app/lease"),
			Read: spec.Read{Method: "GET", Path: "database/creds/my-app", Query: "version=2", Args: `{"a":1}`},
			Term: grant.Term{
				From: 62 * minute, TTL: 12 * time.Second, Full: time.Hour, Limit: 70 * minute, Final: true,
			},
			Superseded: true,
		}},
		BusyUntil: 64 * minute, Tried: 63 * minute, FolderSeen: true, Grace: 30 * time.Second,
		Cause: "pod deleted", Failures: 3, Problem: "Vault is sealed",
	}
}

func TestDamagedRecordHidesNoOther(t *testing.T) {
	dir := closedStore(t, newGrant("1", "uid", "creds"), newGrant("2", "uid-2", "creds"), newGrant("3", "uid-3", "creds"))
	edit(t, dir, "ledger", "2", []byte(`{"id":"2","token":"canary`))
	s := open(t, config(dir))
	grants, unreadable, err := s.All()
	if got := ids(t, grants, err); got != "1 3" || unreadable != 1 {
		t.Errorf("%q, %d unreadable", got, unreadable)
	}
	if _, err := s.Get("2"); err == nil || err.Error() != "decoding a grant: damaged record" {
		t.Errorf("the damaged record: %v", err)
	}
}

// TestDamagedRecordKeepsNothingFromWorking: a volume with a damaged record gets a new grant, and one with a damaged answer
// reads it again.
func TestDamagedRecordKeepsNothingFromWorking(t *testing.T) {
	dir := closedStore(t, newGrant("1", "uid", "creds"), newGrant("2", "uid", "creds"))
	edit(t, dir, "ledger", "1", []byte("canary"))
	edit(t, dir, "content", "2/damaged", []byte("canary"))
	s := open(t, config(dir))
	_, err := s.PutAnswer("2", answer("a", "a"), nothing)
	must(t, err)
	grants, err := s.OfVolume(spec.VolumeKey{PodUID: "uid", Volume: "creds"})
	if got := ids(t, grants, err); got != "2" {
		t.Errorf("the volume's grants: %q", got)
	}
	if answers, err := s.Answers("2"); err != nil || len(answers) != 1 {
		t.Errorf("%d answers, %v", len(answers), err)
	}
	must(t, s.Delete("2"))
	if s.Bytes() != 0 {
		t.Errorf("%d bytes are left of the answers", s.Bytes())
	}
}

func TestLivesBeginAnewAfterAnotherBoot(t *testing.T) {
	old := golden()
	other := newGrant("other", "uid", "creds")
	other.Login = grant.NewTerm(5*now, 0, true) // without end
	dir := closedStore(t, old, other)
	edit(t, dir, "meta", "boot-id", []byte("another boot"))
	s := open(t, config(dir))

	want := golden()
	want.Created, want.Tried, want.BusyUntil = now, now, now.Add(grant.RequestLimit)
	want.Login.From, want.Login.Limit = now, now.Add(20*time.Minute)
	want.Leases[0].Term.From, want.Leases[0].Term.Limit = now, now.Add(time.Hour)
	got, err := s.Get(old.ID)
	must(t, err)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%#v\nwant %#v", got, want)
	}
	if g, err := s.Get("other"); err != nil || g.Login.TTL != 0 || g.Login.From != now {
		t.Errorf("a life without end: %+v, %v", g.Login, err)
	}
}

// TestFoldersSeenElsewhere: that kubelet's folder of a volume is missing where nobody saw it proves nothing.
func TestFoldersSeenElsewhere(t *testing.T) {
	g := newGrant("1", "uid", "creds")
	g.FolderSeen = true
	dir := closedStore(t, g)
	edit(t, dir, "meta", "kubelet-dir", nil) // as an earlier version left it
	for i, below := range []string{"/var/lib/kubelet", "/var/lib/kubelet", "/var/lib/other"} {
		cfg := config(dir)
		cfg.KubeletDir = below
		s := open(t, cfg)
		if got, err := s.Get(g.ID); err != nil || got.FolderSeen != (i < 2) {
			t.Errorf("process %d, which looks below %s: seen %t, %v", i, below, got.FolderSeen, err)
		}
		must(t, s.Close())
	}
}

func TestAnswersOfAnotherBootAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	s := open(t, config(dir))
	g := newGrant("1", "uid", "creds")
	must(t, s.Put(g))
	for path, refresh := range map[string]grant.Instant{"leased": 0, "plain": 1 << 60} {
		a := grant.Answer{Read: spec.Read{Method: "GET", Path: path}, Body: []byte("{}"), Leased: refresh == 0, RefreshAt: refresh}
		_, err := s.PutAnswer("1", a, func(*grant.Grant) error { return nil })
		must(t, err)
	}
	must(t, s.Close())
	edit(t, dir, "meta", "boot-id", []byte("another boot"))
	answers, err := open(t, config(dir)).Answers("1")
	must(t, err)
	for r, a := range answers {
		if want := (map[string]grant.Instant{"plain": now})[r.Path]; a.RefreshAt != want {
			t.Errorf("%s is read again at %d, want %d", r.Path, a.RefreshAt, want)
		}
	}
	if len(answers) != 2 {
		t.Errorf("%d answers", len(answers))
	}
}

func TestLivesGoOnInTheSameBoot(t *testing.T) {
	dir := closedStore(t, golden())
	if got, err := open(t, config(dir)).Get(golden().ID); err != nil || !reflect.DeepEqual(got, golden()) {
		t.Errorf("%#v, %v", got, err)
	}
}
