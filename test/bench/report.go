package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// result is what one row measured, with where and when.
type result struct {
	Row     string `json:"row"`
	Title   string `json:"title"`
	Commit  string `json:"commit"`
	Date    string `json:"date"`
	Machine string `json:"machine"`
	// Variant says what was changed for an experiment; empty for Leasehold as it is.
	Variant string `json:"variant,omitempty"`
	// Sides are the latencies, the floor's first.
	Sides  []side   `json:"sides,omitempty"`
	Checks []check  `json:"checks"`
	Notes  []string `json:"notes,omitempty"`
}

// side is one line of the table of latencies.
type side struct {
	Name  string        `json:"name"`
	Calls int           `json:"calls"`
	P50   time.Duration `json:"p50"`
	P90   time.Duration `json:"p90"`
	P99   time.Duration `json:"p99"`
	Max   time.Duration `json:"max"`
}

func sideOf(name string, l latencies) side {
	return side{Name: name, Calls: len(l), P50: l.quantile(.5), P90: l.quantile(.9), P99: l.quantile(.99), Max: l.quantile(1)}
}

// check is a measured value and its target.
type check struct {
	What string `json:"what"`
	Unit string `json:"unit,omitempty"`
	spread
	// Most and Least bound the median; nil for no bound.
	Most  *float64 `json:"most,omitempty"`
	Least *float64 `json:"least,omitempty"`
	// Count: it does not depend on the machine's speed, so that missing it is a fault.
	Count bool `json:"count,omitempty"`
}

func (c check) met() bool {
	return (c.Most == nil || c.Median <= *c.Most) && (c.Least == nil || c.Median >= *c.Least)
}

func (c check) target() string {
	switch {
	case c.Most != nil:
		return "<= " + number(*c.Most, c.Unit)
	case c.Least != nil:
		return ">= " + number(*c.Least, c.Unit)
	}
	return ""
}

func (c check) verdict() string {
	switch {
	case c.target() == "":
		return ""
	case c.met():
		return "yes"
	}
	return "NO"
}

func (c check) value() string {
	text := number(c.Median, c.Unit)
	if c.Low != c.High {
		text += fmt.Sprintf(" (%s to %s)", number(c.Low, ""), number(c.High, ""))
	}
	return text
}

// number is for people: three significant digits, whole from a hundred on.
func number(v float64, unit string) string {
	text := fmt.Sprintf("%.3g", v)
	if v >= 100 || v == float64(int64(v)) {
		text = fmt.Sprintf("%.0f", v)
	}
	if unit == "x" || unit == "%" {
		return text + " " + unit
	}
	return strings.TrimSpace(text + " " + unit)
}

func most(what, unit string, s spread, limit float64) check {
	return check{What: what, Unit: unit, spread: s, Most: &limit}
}

func least(what, unit string, s spread, limit float64) check {
	return check{What: what, Unit: unit, spread: s, Least: &limit}
}

// counted is a check that holds on every machine.
func counted(what string, value, limit float64) check {
	c := most(what, "", once(value), limit)
	c.Count = true
	return c
}

// told is a value without a target.
func told(what, unit string, value float64) check {
	return check{What: what, Unit: unit, spread: once(value)}
}

// write prints the tables for people.
func write(w io.Writer, results []result) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nCASE\tSIDE\tCALLS\tP50\tP90\tP99\tMAX")
	for _, r := range results {
		for _, s := range r.Sides {
			fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", r.title(), s.Name, s.Calls, ms(s.P50), ms(s.P90), ms(s.P99), ms(s.Max))
		}
	}
	fmt.Fprintln(t, "\nCASE\tMEASURED\tVALUE\tTARGET\tMET")
	for _, r := range results {
		for _, c := range r.Checks {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", r.title(), c.What, c.value(), c.target(), c.verdict())
		}
	}
	_ = t.Flush()
	for _, r := range results {
		for _, n := range r.Notes {
			fmt.Fprintf(w, "\n%s: %s", r.title(), n)
		}
	}
	fmt.Fprintln(w)
	for _, r := range results {
		writeBenchstat(w, r)
	}
}

func (r result) title() string {
	if r.Variant != "" {
		return r.Title + " [" + r.Variant + "]"
	}
	return r.Title
}

// ms is a latency for people.
func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", d.Seconds()*1e3) }

// writeBenchstat prints what benchstat reads.
func writeBenchstat(w io.Writer, r result) {
	for _, s := range r.Sides {
		fmt.Fprintf(w, "Benchmark%s/%s %d %d ns/op %d p90-ns %d p99-ns %d max-ns\n",
			name(r.Row), name(s.Name), s.Calls, s.P50.Nanoseconds(), s.P90.Nanoseconds(), s.P99.Nanoseconds(), s.Max.Nanoseconds())
	}
}

// name is a text as a part of a benchmark's name.
func name(text string) string {
	return strings.Map(func(r rune) rune {
		if r == ' ' || r == '/' || r == ',' {
			return '_'
		}
		return r
	}, text)
}

// markdown is the measured part of docs/performance.md.
func markdown(results []result) string {
	var b strings.Builder
	var plain, variants, benchmarks []result
	for _, r := range results {
		switch {
		case r.Row == benchmarkRow:
			benchmarks = append(benchmarks, r)
		case r.Variant != "":
			variants = append(variants, r)
		default:
			plain = append(plain, r)
		}
	}
	b.WriteString("### Values\n\n")
	valueTable(&b, plain)
	b.WriteString("\n### Latencies\n\n")
	latencyTable(&b, plain)
	b.WriteString("\n### Experiments\n\nThe same with something changed, which stands in brackets.\n\n")
	valueTable(&b, variants)
	b.WriteString("\n")
	latencyTable(&b, variants)
	for _, r := range benchmarks {
		fmt.Fprintf(&b, "\n### %s\n\nCommit %s, %s.\n\n", r.title(), r.Commit, r.Date)
		benchmarkTable(&b, r)
	}
	b.WriteString("\n### Where the time goes\n\n")
	for _, r := range results {
		for _, n := range r.Notes {
			fmt.Fprintf(&b, "- %s: %s\n", r.title(), n)
		}
	}
	machines := map[string]bool{}
	for _, r := range results {
		if !machines[r.Machine] {
			machines[r.Machine] = true
			fmt.Fprintf(&b, "\nMachine: %s.\n", r.Machine)
		}
	}
	return b.String()
}

func latencyTable(b *strings.Builder, results []result) {
	b.WriteString("| case | side | calls | p50 | p90 | p99 | max |\n|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		for _, s := range r.Sides {
			fmt.Fprintf(b, "| %s | %s | %d | %s | %s | %s | %s |\n", r.title(), s.Name, s.Calls, ms(s.P50), ms(s.P90), ms(s.P99), ms(s.Max))
		}
	}
}

func valueTable(b *strings.Builder, results []result) {
	b.WriteString("| case | measured | value | target | met | commit, date |\n|---|---|---|---|---|---|\n")
	for _, r := range results {
		for _, c := range r.Checks {
			fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s, %s |\n", r.title(), c.What, c.value(), c.target(), c.verdict(), r.Commit, r.Date)
		}
	}
}

// benchmarkTable has a line for each benchmark: what Go measures of all, and then what it says itself.
func benchmarkTable(b *strings.Builder, r result) {
	usual := []string{"ns/op", "B/op", "allocs/op"}
	b.WriteString("| benchmark | ns | bytes | allocations | and |\n|---|---|---|---|---|\n")
	for i := 0; i < len(r.Checks); {
		name, values := r.Checks[i].What, make(map[string]string)
		var rest []string
		for ; i < len(r.Checks) && r.Checks[i].What == name; i++ {
			c := r.Checks[i]
			if slices.Contains(usual, c.Unit) {
				values[c.Unit], _, _ = strings.Cut(c.value(), " ")
				continue
			}
			text := c.value()
			if c.target() != "" {
				text += " (target " + c.target() + ")"
			}
			rest = append(rest, text)
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", name, values[usual[0]], values[usual[1]], values[usual[2]], strings.Join(rest, ", "))
	}
}

const begin, end = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"

// record puts results in the place of earlier ones of the same rows, in a file and in the document that shows it.
func record(file, document string, results []result) error {
	var all []result
	content, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(content, &all)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading what was measured before: %w", err)
	}
	for _, r := range results {
		all = slices.DeleteFunc(all, func(old result) bool { return old.Row == r.Row && old.Variant == r.Variant })
		all = append(all, r)
	}
	slices.SortStableFunc(all, func(a, b result) int {
		return cmp.Or(cmp.Compare(order(a.Row), order(b.Row)), cmp.Compare(a.Variant, b.Variant))
	})
	if content, err = json.MarshalIndent(all, "", "  "); err != nil {
		return fmt.Errorf("encoding what was measured: %w", err)
	}
	if err := os.WriteFile(file, append(content, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing what was measured: %w", err)
	}
	return replaceMeasured(document, markdown(all))
}

// replaceMeasured replaces what stands between the two marks of a document.
func replaceMeasured(document, measured string) error {
	content, err := os.ReadFile(document)
	if err != nil {
		return fmt.Errorf("reading the document: %w", err)
	}
	before, rest, found := strings.Cut(string(content), begin)
	_, after, found2 := strings.Cut(rest, end)
	if !found || !found2 {
		return fmt.Errorf("%s lacks the marks between which measured values stand", document)
	}
	if err := os.WriteFile(document, []byte(before+begin+measured+end+after), 0o644); err != nil {
		return fmt.Errorf("writing the document: %w", err)
	}
	return nil
}
