package admin

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
)

// ClusterReport is what is held on the nodes of a cluster. Its version, which changes as that of a Report does, is that of each Report in
// it as well.
type ClusterReport struct {
	Version int `json:"version"`
	// Nodes are the reports of the nodes that answered, in the order of their names.
	Nodes []Report `json:"nodes"`
	// Unreachable are the nodes that did not.
	Unreachable []Unreachable `json:"unreachable"`
}

// Unreachable is a node whose provider did not tell what it holds.
type Unreachable struct {
	// Node is empty where it is not known which node it is, and Pod where there is none.
	Node string `json:"node,omitempty"`
	Pod  string `json:"pod,omitempty"`
	// Problem says why.
	Problem string `json:"problem"`
}

// NewClusterReport returns a ClusterReport of no node.
func NewClusterReport() ClusterReport {
	return ClusterReport{Version: reportVersion, Nodes: []Report{}, Unreachable: []Unreachable{}}
}

// ParseReport reads the report of a node as JSON. The node has the name that is given, whatever it says of itself.
func ParseReport(node string, text []byte) (Report, error) {
	var r Report
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("reading its report: %w", err)
	}
	if r.Version != reportVersion {
		return r, fmt.Errorf("reading its report: it is of version %d, and this program knows version %d", r.Version, reportVersion)
	}
	r.Node = node
	return r, nil
}

// In returns what is selected of each node.
func (s Selection) In(c ClusterReport) ClusterReport {
	nodes := make([]Report, len(c.Nodes))
	for i, r := range c.Nodes {
		nodes[i] = s.Of(r)
	}
	c.Nodes = nodes
	return c
}

// Revoking is how many grants are being given back. What is left to expire is not.
func (r Report) Revoking() int {
	revoking := 0
	for _, g := range r.Grants {
		if g.State == string(grant.Revoking) && g.LeftToExpire == "" {
			revoking++
		}
	}
	return revoking
}

// InUse is how many grants are neither given back nor left to expire.
func (r Report) InUse() int {
	used := 0
	for _, g := range r.Grants {
		if g.State != string(grant.Revoking) {
			used++
		}
	}
	return used
}

// WriteTable writes a report as the function of that name does, with the nodes' names, and then the nodes that did not answer.
func (c ClusterReport) WriteTable(w io.Writer, wide bool) error {
	return c.write(w, func(t table) error { return writeGrants(t, c.Nodes, wide) })
}

// WriteEnds writes a report as the function of that name does, with the nodes' names, and then the nodes that did not answer.
func (c ClusterReport) WriteEnds(w io.Writer, now time.Time) error {
	return c.write(w, func(t table) error { return writeEnds(t, c.Nodes, now) })
}

func (c ClusterReport) write(w io.Writer, held func(table) error) error {
	switch {
	case slices.ContainsFunc(c.Nodes, func(r Report) bool { return len(r.Grants) > 0 }):
		if err := held(newTable(w, true)); err != nil {
			return err
		}
	case len(c.Nodes) > 0:
		fmt.Fprintf(w, "No grants found on the nodes that answered (%d).\n", len(c.Nodes))
	}
	if len(c.Unreachable) == 0 {
		return nil
	}
	if len(c.Nodes) > 0 {
		fmt.Fprintln(w)
	}
	t := newTable(w, true)
	t.row("UNREACHABLE", "PROVIDER'S POD", "PROBLEM")
	for _, u := range c.Unreachable {
		t.row(cmp.Or(u.Node, "?"), cmp.Or(u.Pod, "-"), u.Problem)
	}
	return t.Flush()
}
