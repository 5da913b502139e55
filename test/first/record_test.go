package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestRecord(t *testing.T) {
	dir := t.TempDir()
	file, document := filepath.Join(dir, "first.json"), filepath.Join(dir, "testing.md")
	if err := record(file, document, measured{}); err == nil {
		t.Error("there is no document")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(document, []byte("before\n"+begin+"old\n"+end+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	bare := measured{
		Form: "light", Bare: true, Cold: true, Build: 14*time.Minute + 31400*time.Millisecond, Start: 20 * time.Second, Mount: 1200 * time.Millisecond,
		Processors: 2, Load: "0.10", Commit: "abc", Date: "2026-11-28",
	}
	full := measured{Form: "full", Build: time.Second, Start: time.Minute, Mount: time.Second, Processors: 4, Load: "9.00", Commit: "abc", Date: "2026-11-28"}
	for _, m := range []measured{{Form: "light", Bare: true, Cold: true}, full, bare} {
		if err := record(file, document, m); err != nil {
			t.Fatal(err)
		}
	}
	const want = "before\n" + begin + head +
		"| no more | light | empty: the first time | **14 min 53 s** | 14 min 31 s | 20.0 s | 1.2 s | 2, 0.10 | abc, 2026-11-28 |\n" +
		"| and all that `make e2e` needs | full | full: the second time | **1 min 2 s** | 1.0 s | 1 min 0 s | 1.0 s | 4, 9.00 | abc, 2026-11-28 |\n" +
		end + "after\n"
	if got, err := os.ReadFile(document); err != nil || string(got) != want {
		t.Errorf("%v\n%s", err, got)
	}
}
