package admin_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/internal/grant"
)

// cluster is what two nodes answered, and two did not.
func cluster(t *testing.T) admin.ClusterReport {
	t.Helper()
	c := admin.NewClusterReport()
	for _, node := range []string{"node-1", "node-2"} {
		dir := folder(t)
		grants := held()
		if node == "node-2" {
			grants = grants[:1]
			grants[0].Login = grant.NewTerm(now, 10*time.Minute, true)
		}
		serve(t, dir, provider(func() ([]grant.Grant, error) { return grants, nil }))
		report, err := admin.Fetch(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(report)
		if err != nil {
			t.Fatal(err)
		}
		if report, err = admin.ParseReport(node, text); err != nil {
			t.Fatal(err)
		}
		c.Nodes = append(c.Nodes, report)
	}
	c.Unreachable = []admin.Unreachable{
		{Node: "node-3", Pod: "leasehold-x", Problem: "it said \x1b[2J\nthis"},
		{Problem: "DaemonSet leasehold is to run on 4 nodes"},
	}
	return c
}

func TestClusterReport(t *testing.T) {
	c := cluster(t)
	for name, write := range map[string]func(*strings.Builder) error{
		"cluster.txt":      func(w *strings.Builder) error { return c.WriteTable(w, false) },
		"cluster-wide.txt": func(w *strings.Builder) error { return c.WriteTable(w, true) },
		"cluster-ends.txt": func(w *strings.Builder) error {
			return c.WriteEnds(w, time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC))
		},
		"cluster-none.txt": func(w *strings.Builder) error { return admin.Selection{Pod: "none"}.In(c).WriteTable(w, false) },
	} {
		var table strings.Builder
		if err := write(&table); err != nil {
			t.Fatal(err)
		}
		golden(t, name, table.String())
	}
	chosen := admin.Selection{Pod: "app"}.In(c)
	if len(chosen.Nodes[0].Grants) != 2 || len(c.Nodes[0].Grants) != 3 || len(chosen.Unreachable) != 2 {
		t.Errorf("%+v is selected of %+v", chosen, c)
	}
	if revoking := c.Nodes[0].Revoking() + c.Nodes[1].Revoking(); revoking != 1 {
		t.Errorf("%d are being given back", revoking)
	}
	c.Nodes = c.Nodes[:0]
	want := `{"version":1,"nodes":[],"unreachable":[{"node":"node-3","pod":"leasehold-x","problem":"it said \u001b[2J\nthis"},{"problem":"DaemonSet leasehold is to run on 4 nodes"}]}`
	if text, err := json.Marshal(c); err != nil || string(text) != want {
		t.Errorf("%s, %v", text, err)
	}
	if text, err := json.Marshal(admin.NewClusterReport()); err != nil || string(text) != `{"version":1,"nodes":[],"unreachable":[]}` {
		t.Errorf("%s, %v", text, err)
	}
}

// TestParseReport: a node's name is not its own to say, and what is no report of a version that is known is none.
func TestParseReport(t *testing.T) {
	if r, err := admin.ParseReport("node-1", []byte(`{"version":1,"node":"other","grants":[{"pod":"app","later":true}]}`)); err != nil || r.Node != "node-1" || r.Grants[0].Pod != "app" {
		t.Errorf("%+v, %v", r, err)
	}
	for text, want := range map[string]string{
		"":                                     "unexpected end of JSON input",
		"Nothing is held on node node-1.\n":    "invalid character 'N'",
		`{"version":1,"grants":[]} and more`:   "invalid character 'a'",
		`{"version":2,"node":"n","grants":[]}`: "it is of version 2, and this program knows version 1",
		`{"node":"n","grants":[]}`:             "it is of version 0",
	} {
		if r, err := admin.ParseReport("node-1", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v", text, r, err)
		}
	}
}

// TestTableHoldsNoCommands: what tenants and servers have said does nothing to a terminal, and adds no line.
func TestTableHoldsNoCommands(t *testing.T) {
	r := admin.Report{Grants: []admin.Grant{{Pod: "app", Role: "r\tole", Problem: "\x1b[2Jgone\u202e\r\n", Leases: []admin.Lease{{Path: "a\vb"}}}}}
	var table strings.Builder
	if err := admin.WriteTable(&table, r, true); err != nil {
		t.Fatal(err)
	}
	if err := admin.WriteEnds(&table, r, time.Time{}); err != nil {
		t.Fatal(err)
	}
	text := table.String()
	if strings.ContainsAny(text, "\x1b\u202e\r\t\v") || strings.Count(text, "\n") != 5 || !strings.Contains(text, "?[2Jgone???") {
		t.Errorf("%q", text)
	}
}
