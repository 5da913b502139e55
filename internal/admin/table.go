package admin

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// Selection is a part of a report. Each field that is not its zero value leaves out the grants that do not fit it.
type Selection struct {
	// Namespace, Pod and Vault are those of the pod and of the server; State is that of the grant, in any case of letters.
	Namespace, Pod, Vault, State string
	// Within leaves out what ends later, unless it is renewed.
	Within time.Duration
}

// Of returns what is selected of a report.
func (s Selection) Of(r Report) Report {
	fits := func(want, have string) bool { return want == "" || want == have }
	chosen := slices.Clone(r.Grants)
	r.Grants = slices.DeleteFunc(chosen, func(g Grant) bool {
		return !fits(s.Namespace, g.Namespace) || !fits(s.Pod, g.Pod) || !fits(s.Vault, g.Vault) || s.State != "" && !strings.EqualFold(s.State, g.State) ||
			s.Within != 0 && g.ends() > seconds(s.Within)
	})
	return r
}

// ends is how many seconds are left of what the volume shows; noEnd when nothing of it ends.
func (g Grant) ends() int64 {
	left := int64(math.MaxInt64)
	if g.TokenSeconds != nil {
		left = *g.TokenSeconds
	}
	for _, l := range g.Leases {
		if !l.Superseded {
			left = min(left, l.Seconds)
		}
	}
	return left
}

// WriteTable writes a report for people: one line for each lease, or for each grant that has none, and what ends first comes first. wide
// adds columns.
func WriteTable(w io.Writer, r Report, wide bool) error {
	if len(r.Grants) == 0 {
		_, err := fmt.Fprintf(w, "Nothing is held on node %s.\n", r.Node)
		return err
	}
	return writeGrants(newTable(w, false), []Report{r}, wide)
}

// writeGrants writes the lines of WriteTable.
func writeGrants(t table, reports []Report, wide bool) error {
	grants := placedGrants(reports)
	slices.SortStableFunc(grants, func(a, b placed) int { return cmp.Compare(a.ends(), b.ends()) })
	columns := []string{"POD", "VOLUME", "STATE", "ROLE", "LEASE", "LEFT", "TOKEN"}
	if wide {
		columns = append(columns, "RENEWED", "CLASS", "ACCOUNT", "VAULT", "MOUNT", "FAILURES")
	}
	t.row("NODE", append(columns, "NOTE")...)
	for _, g := range grants {
		token := "-"
		if g.TokenSeconds != nil {
			token = left(*g.TokenSeconds)
		}
		line := func(path, leaseLeft, renewed, note string) {
			cells := []string{g.Namespace + "/" + g.Pod, g.Volume, g.State, cmp.Or(g.Role, "-"), path, leaseLeft, token}
			if wide {
				vault := g.Vault
				if g.VaultNamespace != "" {
					vault += " (" + g.VaultNamespace + ")"
				}
				cells = append(cells, renewed, g.Class, g.ServiceAccount, vault, g.AuthMount, fmt.Sprint(g.Failures))
			}
			t.row(g.node, append(cells, note)...)
		}
		note := cmp.Or(g.Problem, g.Cause)
		if len(g.Leases) == 0 {
			line("-", "-", "-", note)
		}
		for _, l := range g.Leases {
			if l.Superseded {
				line(l.Path, left(l.Seconds), ago(l.Renewed), "replaced, running out")
			} else {
				line(l.Path, bar(l)+" "+left(l.Seconds), ago(l.Renewed), note)
			}
		}
	}
	return t.Flush()
}

// table is what is written for people. Its rows begin with the node where it is of many.
type table struct {
	*tabwriter.Writer
	ofMany bool
}

func newTable(w io.Writer, ofMany bool) table {
	return table{Writer: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0), ofMany: ofMany}
}

// row writes a row, without what would do something to a terminal: not all of it is Leasehold's own words.
func (t table) row(node string, cells ...string) {
	if t.ofMany {
		cells = slices.Insert(cells, 0, node)
	}
	for i, cell := range cells {
		cells[i] = strings.Map(func(r rune) rune {
			if unicode.IsPrint(r) {
				return r
			}
			return '?'
		}, cell)
	}
	_, _ = fmt.Fprintln(t, strings.Join(cells, "\t"))
}

// placed is a grant and its node.
type placed struct {
	Grant
	node string
}

func placedGrants(reports []Report) (all []placed) {
	for _, r := range reports {
		for _, g := range r.Grants {
			all = append(all, placed{g, r.Node})
		}
	}
	return all
}

// bar shows how much of a lease's life is left.
func bar(l Lease) string {
	const width = 10
	full := width
	if l.Of > 0 {
		full = int(max(0, min(width, (l.Seconds*width+l.Of/2)/l.Of)))
	}
	return strings.Repeat("#", full) + strings.Repeat(".", width-full)
}

// noEnd is more seconds than anything has left that ends.
const noEnd = 50 * 365 * 24 * 3600

func left(seconds int64) string {
	if seconds > noEnd {
		return "no end"
	}
	return (time.Duration(seconds) * time.Second).String()
}

func ago(seconds int64) string { return left(seconds) + " ago" }
