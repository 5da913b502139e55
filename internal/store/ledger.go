package store

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// record is a grant in the ledger. Fields are only ever added: an older Leasehold must find all it needs to renew and revoke
// in what a newer one wrote, and the other way round.
type record struct {
	ID             string         `json:"id"`
	Volume         spec.VolumeKey `json:"volume"`
	Pod            spec.Pod       `json:"pod"`
	Class          string         `json:"class,omitempty"`
	Server         spec.Server    `json:"server"`
	VaultNamespace string         `json:"vaultNamespace,omitempty"`
	Auth           spec.Auth      `json:"auth"`
	Digest         string         `json:"digest"`
	State          grant.State    `json:"state"`
	Created        grant.Instant  `json:"created"`
	Cluster        string         `json:"cluster,omitempty"`
	Token          string         `json:"token,omitempty"`
	Accessor       string         `json:"accessor,omitempty"`
	SecretID       string         `json:"secretId,omitempty"`
	Pair           string         `json:"pair,omitempty"`
	Login          grant.Term     `json:"login"`
	Unleasable     string         `json:"unleasable,omitempty"`
	Leases         []leaseRecord  `json:"leases,omitempty"`

	Certificates []certificateRecord `json:"certificates,omitempty"`

	BusyUntil  grant.Instant `json:"busyUntil,omitempty"`
	Tried      grant.Instant `json:"tried,omitempty"`
	FolderSeen bool          `json:"folderSeen,omitempty"`
	Grace      time.Duration `json:"grace,omitempty"`
	Gap        time.Duration `json:"gap,omitempty"`
	Unanswered bool          `json:"unanswered,omitempty"`
	Answered   time.Time     `json:"answered,omitzero"`
	Expire     string        `json:"expire,omitempty"`
	SyncAsked  bool          `json:"syncAsked,omitempty"`
	Cause      string        `json:"cause,omitempty"`
	GivenUp    grant.Instant `json:"givenUp,omitempty"`
	Failures   int           `json:"failures,omitempty"`
	Problem    string        `json:"problem,omitempty"`
	// Revision grows with every write of any record, so that the newest of several copies in a damaged file can be told.
	Revision uint64 `json:"revision,omitempty"`
}

type leaseRecord struct {
	ID         string          `json:"id"`
	Read       spec.Read       `json:"read"`
	Term       grant.Term      `json:"term"`
	Superseded bool            `json:"superseded,omitempty"`
	Warned     []grant.Warning `json:"warned,omitempty"`
}

type certificateRecord struct {
	Serial string     `json:"serial"`
	Mount  string     `json:"mount"`
	Term   grant.Term `json:"term"`
}

// addGrant is putGrant for one that is new.
func addGrant(tx *bbolt.Tx, g grant.Grant) error {
	if err := tx.Bucket(volumeBucket).Put(indexKey(g.Volume, g.ID), nil); err != nil {
		return fmt.Errorf("indexing the grant: %w", err)
	}
	return putGrant(tx, g)
}

func putGrant(tx *bbolt.Tx, g grant.Grant) error {
	r := record{
		ID: g.ID, Volume: g.Volume, Pod: g.Pod, Class: g.Class,
		Server: g.Server, VaultNamespace: g.Namespace, Auth: g.Auth, Digest: g.Digest,
		State: g.State, Created: g.Created, Cluster: g.Cluster,
		Token: g.Token.Reveal(), Accessor: g.Accessor.Reveal(), SecretID: g.SecretID.Reveal(), Pair: g.Server.Pair.Reveal(),
		Login: g.Login, Unleasable: g.Unleasable,
		BusyUntil: g.BusyUntil, Tried: g.Tried, FolderSeen: g.FolderSeen, Grace: g.Grace,
		Gap: g.Gap, Unanswered: g.Unanswered, Answered: g.Answered, Expire: g.Expire, SyncAsked: g.SyncAsked,
		Cause: g.Cause, GivenUp: g.GivenUp, Failures: g.Failures, Problem: g.Problem,
	}
	for _, l := range g.Leases {
		r.Leases = append(r.Leases, leaseRecord{ID: l.ID.Reveal(), Read: l.Read, Term: l.Term, Superseded: l.Superseded, Warned: l.Warned})
	}
	for _, c := range g.Certificates {
		r.Certificates = append(r.Certificates, certificateRecord{Serial: c.Serial.Reveal(), Mount: c.Mount, Term: c.Term})
	}
	r.Revision = uint64(tx.ID())
	value, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding the grant: %w", err)
	}
	if err := tx.Bucket(ledgerBucket).Put([]byte(g.ID), value); err != nil {
		return fmt.Errorf("recording the grant: %w", err)
	}
	return nil
}

func getGrant(tx *bbolt.Tx, id string) (grant.Grant, error) {
	value := tx.Bucket(ledgerBucket).Get([]byte(id))
	if value == nil {
		return grant.Grant{}, ErrNotFound
	}
	return decodeGrant(value)
}

func decodeGrant(value []byte) (grant.Grant, error) {
	var r record
	if err := json.Unmarshal(value, &r); err != nil {
		// The decoder's message could quote the record, which holds a token.
		return grant.Grant{}, fmt.Errorf("decoding a grant: %w", errDamaged)
	}
	return r.grant(), nil
}

func (r *record) grant() grant.Grant {
	g := grant.Grant{
		ID: r.ID, Volume: r.Volume, Pod: r.Pod, Class: r.Class,
		Server: r.Server, Namespace: r.VaultNamespace, Auth: r.Auth, Digest: r.Digest,
		State: r.State, Created: r.Created, Cluster: r.Cluster,
		Token: secret.New(r.Token), Accessor: secret.New(r.Accessor), SecretID: secret.New(r.SecretID), Login: r.Login, Unleasable: r.Unleasable,
		BusyUntil: r.BusyUntil, Tried: r.Tried, FolderSeen: r.FolderSeen, Grace: r.Grace,
		Gap: r.Gap, Unanswered: r.Unanswered, Answered: r.Answered, Expire: r.Expire, SyncAsked: r.SyncAsked,
		Cause: r.Cause, GivenUp: r.GivenUp, Failures: r.Failures, Problem: r.Problem,
	}
	g.Server.Pair = secret.New(r.Pair)
	for _, l := range r.Leases {
		g.Leases = append(g.Leases, grant.Lease{ID: secret.New(l.ID), Read: l.Read, Term: l.Term, Superseded: l.Superseded, Warned: l.Warned})
	}
	for _, c := range r.Certificates {
		g.Certificates = append(g.Certificates, grant.Certificate{Serial: secret.New(c.Serial), Mount: c.Mount, Term: c.Term})
	}
	if !slices.Contains(grant.States(), g.State) {
		g.State = grant.Active // a newer version's: renewed while the pod lives, and given back when it ends
	}
	return g
}

// rebase lets every life begin anew at now with its stated length: the file comes from another boot, so its instants mean
// nothing. An end reckoned too late only makes a renewal come too early.
func rebase(tx *bbolt.Tx, now grant.Instant) error {
	err := changeAll(tx, func(g *grant.Grant) {
		g.Created, g.Tried, g.BusyUntil = now, now, now.Add(grant.RequestLimit)
		g.GivenUp = min(g.GivenUp, now)
		g.Login = restarted(g.Login, now)
		for i := range g.Leases {
			g.Leases[i].Term = restarted(g.Leases[i].Term, now)
		}
		for i := range g.Certificates {
			g.Certificates[i].Term = restarted(g.Certificates[i].Term, now)
		}
	})
	if err != nil {
		return err
	}
	return rebaseAnswers(tx, now)
}

// changeAll changes every grant of an earlier process that can be read.
func changeAll(tx *bbolt.Tx, change func(*grant.Grant)) error {
	var grants []grant.Grant
	err := tx.Bucket(ledgerBucket).ForEach(func(_, v []byte) error {
		if g, err := decodeGrant(v); err == nil {
			grants = append(grants, g)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the ledger of an earlier process: %w", err)
	}
	for _, g := range grants {
		change(&g)
		if err := putGrant(tx, g); err != nil {
			return err
		}
	}
	return nil
}

func restarted(t grant.Term, now grant.Instant) grant.Term {
	t.Issued, t.From, t.Limit = 0, now, now.Add(max(t.TTL, t.Full))
	return t
}
