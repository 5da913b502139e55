package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/bbolt"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// contentSize counts the bytes of all answers, and of each namespace's.
type contentSize struct {
	mu         sync.Mutex
	all        int64
	namespaces map[string]int64
}

func (c *contentSize) add(namespace string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.namespaces == nil {
		c.namespaces = make(map[string]int64)
	}
	c.all += int64(n)
	if c.namespaces[namespace] += int64(n); c.namespaces[namespace] == 0 {
		delete(c.namespaces, namespace)
	}
}

// Bytes is the size of all answers together.
func (s *Store) Bytes() int64 {
	s.content.mu.Lock()
	defer s.content.mu.Unlock()
	return s.content.all
}

// Usage is how much of the store is used, in bytes.
type Usage struct {
	// Content is the size of all answers, and Limit that beyond which there is no room for more.
	Content, Limit int64
	// File is the size of the file, which keeps what was once used. The ledger is in it as well.
	File int64
}

// Usage returns how much of the store is used.
func (s *Store) Usage() (u Usage, err error) {
	u = Usage{Content: s.Bytes(), Limit: s.maxBytes}
	err = s.db.View(func(tx *bbolt.Tx) error { u.File = tx.Size(); return nil })
	return u, err
}

// Room returns ErrFull when n more bytes of answers would not fit, or would take a namespace beyond half of what there is: one
// tenant leaves room for the others.
func (s *Store) Room(namespace string, n int64) error {
	s.content.mu.Lock()
	defer s.content.mu.Unlock()
	switch {
	case s.content.all+n > s.maxBytes:
		return ErrFull
	case s.content.namespaces[namespace]+n > s.maxBytes/2:
		return fmt.Errorf("namespace %s has its share, half of it: %w", namespace, ErrFull)
	}
	return nil
}

// PutAnswer is PutAnswers of one.
func (s *Store) PutAnswer(id string, a grant.Answer, change func(*grant.Grant) error) (g grant.Grant, err error) {
	return s.PutAnswers(id, []grant.Answer{a}, change)
}

// PutAnswers records answers together with the change of the grant that came with them (their leases, above all), in one
// transaction. They take the places of earlier answers to the same reads. When one does not fit, the change and the others are recorded
// all the same, so that no lease is forgotten, and the error is ErrFull.
func (s *Store) PutAnswers(id string, answers []grant.Answer, change func(*grant.Grant) error) (g grant.Grant, err error) {
	values := make([][]byte, len(answers))
	for i, a := range answers {
		if values[i], err = encodeAnswer(a); err != nil {
			return g, err
		}
	}
	grown, full, again := 0, false, false
	err = s.commit(func(tx *bbolt.Tx) error {
		if g, err = getGrant(tx, id); err != nil {
			return err
		}
		if err := change(&g); err != nil {
			return err
		}
		if err := putGrant(tx, g); err != nil {
			return err
		}
		content := tx.Bucket(contentBucket)
		// The second go is where the file system was full: the reserve is the ledger's.
		grown, full = 0, again
		for i, a := range answers {
			key := answerKey(id, a.Read)
			grows := len(values[i]) - len(content.Get(key))
			if again || grows > 0 && s.Room(g.Pod.Namespace, int64(grown+grows)) != nil {
				full = true
				continue
			}
			if err := content.Put(key, values[i]); err != nil {
				return fmt.Errorf("keeping the answer: %w", err)
			}
			grown += grows
		}
		again = true
		return nil
	})
	if err != nil {
		return g, err
	}
	s.content.add(g.Pod.Namespace, grown)
	if full {
		return g, ErrFull
	}
	return g, nil
}

// CopyAnswers gives a grant those answers of another one of its volume that are wanted. Either all fit, or the error is ErrFull and it
// has none of them.
func (s *Store) CopyAnswers(from, to string, wanted func(grant.Answer) bool) error {
	answers, err := s.Answers(from)
	if err != nil {
		return err
	}
	grown, namespace := 0, ""
	err = s.commit(func(tx *bbolt.Tx) error {
		g, err := getGrant(tx, to)
		if err != nil {
			return err
		}
		grown, namespace = 0, g.Pod.Namespace
		content := tx.Bucket(contentBucket)
		for _, a := range answers {
			if !wanted(a) {
				continue
			}
			value, err := encodeAnswer(a)
			if err != nil {
				return err
			}
			key := answerKey(to, a.Read)
			grown += len(value) - len(content.Get(key))
			if err := content.Put(key, value); err != nil {
				return fmt.Errorf("copying an answer: %w", err)
			}
		}
		return s.Room(namespace, int64(grown))
	})
	if err == nil {
		s.content.add(namespace, grown)
	}
	return err
}

// Answers returns the answers of a grant by their read. A damaged one is left out, as if it had never been read.
func (s *Store) Answers(id string) (answers map[spec.Read]grant.Answer, err error) {
	answers = make(map[spec.Read]grant.Answer)
	err = s.db.View(func(tx *bbolt.Tx) error {
		prefix := answerPrefix(id)
		c := tx.Bucket(contentBucket).Cursor()
		for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
			if a, err := decodeAnswer(v); err == nil {
				answers[a.Read] = a
			}
		}
		return nil
	})
	return answers, err
}

func deleteAnswers(tx *bbolt.Tx, id string) (freed int, err error) {
	prefix := answerPrefix(id)
	c := tx.Bucket(contentBucket).Cursor()
	for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Seek(prefix) {
		freed += len(v)
		if err := c.Delete(); err != nil {
			return 0, fmt.Errorf("deleting answers: %w", err)
		}
	}
	return freed, nil
}

// rebaseAnswers makes due at now what is due at some time of an earlier boot.
func rebaseAnswers(tx *bbolt.Tx, now grant.Instant) error {
	values := make(map[string][]byte)
	content := tx.Bucket(contentBucket)
	err := content.ForEach(func(k, v []byte) error {
		a, err := decodeAnswer(v)
		if err != nil || a.RefreshAt == 0 {
			return nil //nolint:nilerr // a damaged answer is read again anyway
		}
		a.RefreshAt = now
		values[string(k)], err = encodeAnswer(a)
		return err
	})
	for k, v := range values {
		err = errors.Join(err, content.Put([]byte(k), v))
	}
	if err != nil {
		return fmt.Errorf("reading the answers of an earlier boot: %w", err)
	}
	return nil
}

func answerPrefix(id string) []byte { return []byte(id + "/") }

func answerKey(id string, r spec.Read) []byte {
	h := sha256.New()
	for _, part := range []string{r.Method, r.Path, r.Query, r.Args} {
		_ = binary.Write(h, binary.BigEndian, uint64(len(part)))
		_, _ = h.Write([]byte(part))
	}
	return h.Sum(answerPrefix(id))
}

// answerHeader is everything of an answer but its body, which follows as it is: no base64, no second parse.
type answerHeader struct {
	Read      spec.Read     `json:"read"`
	Raw       bool          `json:"raw,omitempty"`
	Absent    bool          `json:"absent,omitempty"`
	Leased    bool          `json:"leased,omitempty"`
	RefreshAt grant.Instant `json:"refreshAt,omitempty"`
	Uses      []spec.Read   `json:"uses,omitempty"`
	Sum       string        `json:"sum,omitempty"`
}

func encodeAnswer(a grant.Answer) ([]byte, error) {
	header, err := json.Marshal(answerHeader{Read: a.Read, Raw: a.Raw, Absent: a.Absent, Leased: a.Leased, RefreshAt: a.RefreshAt, Uses: a.Uses, Sum: a.Sum})
	if err != nil {
		return nil, fmt.Errorf("encoding an answer: %w", err)
	}
	value := make([]byte, 0, 4+len(header)+len(a.Body))
	value = binary.BigEndian.AppendUint32(value, uint32(len(header)))
	return append(append(value, header...), a.Body...), nil
}

var errDamaged = errors.New("damaged record")

func decodeAnswer(value []byte) (a grant.Answer, err error) {
	if len(value) < 4 {
		return a, errDamaged
	}
	n := int64(binary.BigEndian.Uint32(value))
	if n > int64(len(value)-4) {
		return a, errDamaged
	}
	var h answerHeader
	if err := json.Unmarshal(value[4:4+n], &h); err != nil {
		return a, errDamaged
	}
	return grant.Answer{
		Read: h.Read, Raw: h.Raw, Absent: h.Absent, Leased: h.Leased, RefreshAt: h.RefreshAt, Uses: h.Uses, Sum: h.Sum, Body: bytes.Clone(value[4+n:]),
	}, nil
}
