package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "write the golden files")

// page prints one of everything.
func page(p *printer) {
	p.title("A title")
	p.say("A paragraph that is so long that it has to go on in a second line, because nobody likes to read lines that " +
		"run on and on to the right.")
	p.chapter(1, "A chapter")
	_, _ = p.Write([]byte("  ✓ vault                 3.3s  http://127.0.0.1:8200\n  ✗ etcd                  4.0s  failed\n"))
	_, _ = p.Write([]byte("  " + strings.Repeat("long ", 30) + "\n"))
	p.gap()
	p.gap()
	p.table([]string{"", "heading", "another one"}, [][]string{{"row", "✓", "1"}, {"longer row", "cell", ""}})
	p.table(nil, [][]string{{"Vault", "v1", "what it is"}, {"PostgreSQL", "v15", "what it is"}})
	p.chapter(2, "Another chapter")
	p.wait("waiting for the pod to run (1 s)")
	p.wait("waiting for the pod to run (2 s)")
	p.done("pod my-app is Running", "0.3 s after it was asked for")
	p.done("that is all", "")
	p.gap()
	p.block("kind: Pod\nmetadata:\n  name: my-app   \n")
	p.at(-1240*time.Millisecond, "container stopped", "pod status")
	p.at(0, "volume unmounted", "kubelet's folder")
	p.at(31*time.Millisecond, "lease gone", "Vault: sys/leases/lookup")
	p.failure("waited 5m0s for the pod to run; at last: it is Pending; FailedMount: a long reason that somebody has to read " +
		"\nthe logs are kept in /tmp/logs")
}

func TestPage(t *testing.T) {
	for _, c := range []struct {
		golden       string
		live, colors bool
	}{
		{golden: "page.golden"},
		{golden: "page-terminal.golden", live: true, colors: true},
		{golden: "page-no-color.golden", live: true},
	} {
		t.Run(c.golden, func(t *testing.T) {
			var out bytes.Buffer
			page(&printer{out: &out, live: c.live, colors: c.colors})
			golden(t, c.golden, out.Bytes())
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (go test -update writes it); got:\n%s", path, got)
	}
}

func TestNothingIsWiderThanThePage(t *testing.T) {
	var out bytes.Buffer
	p := printer{out: &out}
	page(&p)
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
			t.Errorf("%d characters: %s", n, line)
		}
	}
}

func TestWrapKeepsEveryWord(t *testing.T) {
	text := "one two  three averyveryverylongword four"
	lines := wrap(text, 9)
	if got := strings.Join(lines, "|"); got != "one two|three|averyveryverylongword|four" {
		t.Errorf("got %s", got)
	}
}

func TestNewPrinterPaintsTerminalsOnly(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if p := newPrinter(file); p.live || p.colors {
		t.Errorf("a file is taken for a terminal: %+v", p)
	}
}
