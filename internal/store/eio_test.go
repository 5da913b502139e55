package store_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/store/storetest"
)

// TestFileThatCannotBeWritten has writes of the store's file fail with EIO for a while. Every change then says so and changes nothing,
// what was recorded can be read, and the store goes on when writes succeed again.
func TestFileThatCannotBeWritten(t *testing.T) {
	cfg := config(t.TempDir())
	s := open(t, cfg)
	must(t, s.Put(newGrant("a", "pod", "creds")))
	answer := grant.Answer{Read: spec.Read{Path: "x"}, Body: []byte("body")}
	failures := func(*grant.Grant) error { return nil }

	mend := storetest.BreakWrites(t, cfg.Dir)
	for name, change := range map[string]func() error{
		"put": func() error { return s.Put(newGrant("b", "pod", "creds")) },
		"update": func() error {
			_, err := s.Update("a", func(g *grant.Grant) error { g.Failures++; return nil })
			return err
		},
		"update volume": func() error { return s.UpdateVolume(spec.VolumeKey{PodUID: "pod", Volume: "creds"}, failAll) },
		"answer":        func() error { _, err := s.PutAnswer("a", answer, failures); return err },
		"delete":        func() error { return s.Delete("a") },
	} {
		if err := change(); !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if g, err := s.Get("a"); err != nil || g.Failures != 0 {
		t.Errorf("what was recorded before: %+v, %v", g, err)
	}
	if s.Bytes() != 0 {
		t.Errorf("%d bytes of an answer that was not kept", s.Bytes())
	}
	mend()

	_, err := s.Update("a", func(g *grant.Grant) error { g.Failures = 7; return nil })
	must(t, err)
	must(t, s.Put(newGrant("c", "pod", "creds")))
	_, err = s.PutAnswer("a", answer, failures)
	must(t, err)
	closeStore(t, s)
	s = open(t, cfg)
	if grants, _, err := s.All(); ids(t, grants, err) != "a c" || grants[0].Failures != 7 {
		t.Errorf("after all: %+v", grants)
	}
	if s.Damaged().File != "" {
		t.Error("the file is damaged")
	}
}

func failAll(grants []*grant.Grant) (*grant.Grant, error) {
	for _, g := range grants {
		g.Failures++
	}
	return nil, nil
}
