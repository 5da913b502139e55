package spec_test

import (
	"slices"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

func TestKeyPath(t *testing.T) {
	for _, test := range []struct {
		key  string
		path []string
		name string
	}{
		{"a", []string{"a"}, "a"},
		{"a.b.0", []string{"a", "b", "0"}, "a.b.0"},
		{`a\.b.c`, []string{"a.b", "c"}, "a.b.c"},
		{`\*`, []string{"*"}, "*"},
		{`a\\.b`, []string{`a\`, "b"}, `a\.b`},
		{`a\b\`, []string{`a\b\`}, `a\b\`},
		{".", []string{"", ""}, "."},
		{"", []string{""}, ""},
	} {
		if path, name := spec.KeyPath(test.key), spec.KeyName(test.key); !slices.Equal(path, test.path) || name != test.name {
			t.Errorf("%q: path %q, name %q", test.key, path, name)
		}
	}
}

func TestWrites(t *testing.T) {
	folder, file := spec.Object{Name: "db/creds", Each: true}, spec.Object{Name: "db/creds"}
	for _, path := range []string{"db/creds/username", "db/creds/..a"} {
		if !folder.Writes(path) || file.Writes(path) {
			t.Errorf("%q is in the folder only", path)
		}
	}
	for _, path := range []string{"db/creds", "db/creds/", "db/creds/..", "db/creds/a/b", "x/db/creds/a", "db/credsx"} {
		if folder.Writes(path) {
			t.Errorf("%q is not in the folder", path)
		}
	}
	if !file.Writes("db/creds") {
		t.Error("an object writes its own name")
	}
}
