package store_test

import (
	"os"
	"testing"
)

// A store tells whether the process before it closed it.
func TestKnowsThatItWasInterrupted(t *testing.T) {
	dir := t.TempDir()
	for range 2 { // the first of all, and one after another that left in order
		s := open(t, config(dir))
		if s.Interrupted() {
			t.Error("interrupted, after nobody or an orderly end")
		}
		left := t.TempDir()
		must(t, os.CopyFS(left, os.DirFS(dir))) // as a killed process leaves it
		if !open(t, config(left)).Interrupted() {
			t.Error("a killed process is not told of")
		}
		closeStore(t, s)
	}
}
