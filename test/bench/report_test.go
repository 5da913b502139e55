package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestChecks(t *testing.T) {
	for _, test := range []struct {
		of                     check
		value, target, verdict string
	}{
		{most("p50", "ms", once(.25), .5), "0.25 ms", "<= 0.5 ms", "yes"},
		{most("p50", "ms", once(.6), .5), "0.6 ms", "<= 0.5 ms", "NO"},
		{least("rate", "Mount/s", once(1999), 2000), "1999 Mount/s", ">= 2000 Mount/s", "NO"},
		{most("ratio", "x", spread{1.254, 1.1, 2}, 1.3), "1.25 x (1.1 to 2)", "<= 1.3 x", "yes"},
		{told("heap", "MiB", 123.4), "123 MiB", "", ""},
		{counted("requests", 1, 0), "1", "<= 0", "NO"},
	} {
		if test.of.value() != test.value || test.of.target() != test.target || test.of.verdict() != test.verdict {
			t.Errorf("%q %q %q, want %q %q %q", test.of.value(), test.of.target(), test.of.verdict(), test.value, test.target, test.verdict)
		}
	}
}

// TestMissed: what a machine's speed decides is no fault, and what it does not is one.
func TestMissed(t *testing.T) {
	slow := result{Row: "r", Title: "row", Checks: []check{most("p50", "ms", once(9), 1)}}
	if err := missed([]result{slow}, true); err != nil {
		t.Error(err)
	}
	asked := result{Row: "r", Title: "row", Checks: []check{counted("requests to Vault", 3, 0)}}
	if err := missed([]result{slow, asked}, true); err == nil || err.Error() != "row: requests to Vault: 3, not <= 0" {
		t.Error(err)
	}
	if missed(nil, true) == nil {
		t.Error("nothing measured counts as nothing missed")
	}
}

// TestRecord: a row takes the place of what was measured of it before, in the order of the rows, and the rest stays.
func TestRecord(t *testing.T) {
	file, document := filepath.Join(t.TempDir(), "p.json"), filepath.Join(t.TempDir(), "p.md")
	if err := os.WriteFile(document, []byte("before\n"+begin+"old\n"+end+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	row := func(name, variant string, value float64) result {
		return result{Row: name, Title: name, Variant: variant, Commit: "c", Date: "d", Machine: "m", Checks: []check{told("v", "", value)},
			Sides: []side{sideOf("leasehold", latencies{time.Millisecond})}}
	}
	noted := row("cold/kv1", "", 2)
	noted.Notes = []string{"a note"}
	benchmarks := result{Row: benchmarkRow, Title: "Benchmarks", Commit: "c", Date: "d", Machine: "m",
		Checks: []check{told("One", "ns/op", 7), told("One", "B/op", 8), told("One", "%core", 9), told("Two", "allocs/op", 1)}}
	for _, results := range [][]result{{row("storm", "", 1), noted}, {row("storm", "", 3), row("storm", "other", 4), benchmarks}} {
		if err := record(file, document, results); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	want := "before\n" + begin + `### Values

| case | measured | value | target | met | commit, date |
|---|---|---|---|---|---|
| cold/kv1 | v | 2 |  |  | c, d |
| storm | v | 3 |  |  | c, d |

### Latencies

| case | side | calls | p50 | p90 | p99 | max |
|---|---|---|---|---|---|---|
| cold/kv1 | leasehold | 1 | 1.00 ms | 1.00 ms | 1.00 ms | 1.00 ms |
| storm | leasehold | 1 | 1.00 ms | 1.00 ms | 1.00 ms | 1.00 ms |

### Experiments

The same with something changed, which stands in brackets.

| case | measured | value | target | met | commit, date |
|---|---|---|---|---|---|
| storm [other] | v | 4 |  |  | c, d |

| case | side | calls | p50 | p90 | p99 | max |
|---|---|---|---|---|---|---|
| storm [other] | leasehold | 1 | 1.00 ms | 1.00 ms | 1.00 ms | 1.00 ms |

### Benchmarks

Commit c, d.

| benchmark | ns | bytes | allocations | and |
|---|---|---|---|---|
| One | 7 | 8 |  | 9 %core |
| Two |  |  | 1 |  |

### Where the time goes

- cold/kv1: a note

Machine: m.
` + end + "after\n"
	if string(content) != want {
		t.Errorf("the document is\n%s\nwant\n%s", content, want)
	}
}

func TestBenchstat(t *testing.T) {
	var out bytes.Buffer
	writeBenchstat(&out, result{Row: "cold/kv1", Sides: []side{sideOf("until a Mount", latencies{time.Microsecond})}})
	if want := "Benchmarkcold_kv1/until_a_Mount 1 1000 ns/op 1000 p90-ns 1000 p99-ns 1000 max-ns\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func TestBenchmarkLine(t *testing.T) {
	got := benchmarkLine("BenchmarkGrowth/leases=100000/renewal-2 \t 100\t 52000 ns/op\t 1.5 %core\t 12 allocs/op\n")
	if len(got) != 3 || got[1].What != "Growth/leases=100000/renewal" || got[1].Median != 1.5 || got[1].Most == nil || got[2].Unit != "allocs/op" {
		t.Errorf("%+v", got)
	}
	for _, line := range []string{"", "ok  \tpackage\t1.2s", "goos: linux", "BenchmarkX", "PASS"} {
		if got := benchmarkLine(line); got != nil {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

func TestProcess(t *testing.T) {
	if m, err := memoryOf(os.Getpid()); err != nil || m.anonymous == 0 || m.resident < m.anonymous {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := cpu(os.Getpid()); err != nil {
		t.Error(err)
	}
	if got, err := tcpEntry("http://127.0.0.1:8200"); err != nil || got != "0100007F:2008" {
		t.Errorf("%q, %v", got, err)
	}
	if !strings.Contains(machine(), "Linux") {
		t.Error(machine())
	}
}
