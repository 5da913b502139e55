package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
)

// measured is one row: what bin/demo --times says, and under what it was measured.
type measured struct {
	Form                string // of the test bed
	Bare                bool   // without PostgreSQL
	Cold                bool   // with empty caches
	Build, Start, Mount time.Duration
	Processors          int
	Load                string // of the minute before
	Commit, Date        string
}

// sameCase tells whether two rows are of the same case.
func (m measured) sameCase(o measured) bool {
	return m.Form == o.Form && m.Bare == o.Bare && m.Cold == o.Cold
}

// row is m's line of the table.
func (m measured) row() string {
	has := "and PostgreSQL"
	switch {
	case m.Bare:
		has = "no more"
	case m.Form == "full":
		has = "and all that `make e2e` needs"
	}
	caches := "full: the second time"
	if m.Cold {
		caches = "empty: the first time"
	}
	return fmt.Sprintf("| %s | %s | %s | **%s** | %s | %s | %s | %d, %s | %s, %s |\n", has, m.Form, caches, clock(m.Build+m.Start+m.Mount),
		clock(m.Build), clock(m.Start), clock(m.Mount), m.Processors, m.Load, m.Commit, m.Date)
}

// clock is for people: minutes where there are some.
func clock(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	d = d.Round(time.Second)
	return fmt.Sprintf("%d min %d s", d/time.Minute, d%time.Minute/time.Second)
}

const (
	begin = "<!-- first steps: begin -->\n"
	end   = "<!-- first steps: end -->\n"
	head  = "| Go, make, git | test bed | caches | first mounted secret after | building | starting | the pod | processors, load before | commit, date |\n" +
		"|---|---|---|---|---|---|---|---|---|\n"
)

// record puts a row in the place of an earlier one of the same case, in a file and in the document that shows it.
func record(file, document string, m measured) error {
	var all []measured
	content, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(content, &all)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading what was measured before: %w", err)
	}
	if i := slices.IndexFunc(all, m.sameCase); i >= 0 {
		all[i] = m
	} else {
		all = append(all, m)
	}
	if content, err = json.MarshalIndent(all, "", "  "); err != nil {
		return fmt.Errorf("encoding what was measured: %w", err)
	}
	if err := os.WriteFile(file, append(content, '\n'), 0o644); err != nil {
		return fmt.Errorf("keeping what was measured: %w", err)
	}
	text, err := os.ReadFile(document)
	if err != nil {
		return fmt.Errorf("reading the document: %w", err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		return fmt.Errorf("%s has no place for the table, between %q and %q", document, strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	var table strings.Builder
	for _, m := range all {
		table.WriteString(m.row())
	}
	if err := os.WriteFile(document, []byte(before+begin+head+table.String()+end+after), 0o644); err != nil {
		return fmt.Errorf("writing the document: %w", err)
	}
	return nil
}
