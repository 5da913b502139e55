package main

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/test/prometheus"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile("../../" + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// names are the texts that a pattern's first group matches, sorted.
func names(pattern, text string) []string {
	found := map[string]bool{}
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		found[match[1]] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// The reference has a section for each command, with a row for each of its flags and for no other.
func TestReferenceListsTheFlags(t *testing.T) {
	for _, name := range []string{"serve", "leases", "explain", "revoke", "drain", "validate", "version"} {
		_, section, _ := strings.Cut(read(t, "docs/reference.md"), "\n## leasehold "+name+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		usage, _ := command(t, name, "-h").CombinedOutput()
		documented, defined := names("(?m)^\\| `--?([a-z-]+)` ", section), names(`(?m)^  -([a-z-]+)`, string(usage))
		if !slices.Equal(documented, defined) || len(defined) == 0 {
			t.Errorf("leasehold %s has the flags\n%v\nand the reference lists\n%v", name, defined, documented)
		}
	}
}

// The Role allows the Secret that --hmac-secret-name names by default.
func TestManifestsNameTheKey(t *testing.T) {
	if rule := "resourceNames: [" + defaultKeySecret + "]"; !strings.Contains(read(t, "manifests/base/rbac.yaml"), rule) {
		t.Errorf("manifests/base/rbac.yaml does not say %s", rule)
	}
}

// The README shows the class that the end-to-end tests apply.
func TestReadmeShowsTheExample(t *testing.T) {
	_, block, _ := strings.Cut(read(t, "README.md"), "```yaml\n")
	block, _, found := strings.Cut(block, "```")
	if !found || !strings.Contains(read(t, "docs/examples/vault-db-creds.yaml"), block) {
		t.Errorf("the README's class is not that of docs/examples/vault-db-creds.yaml:\n%s", block)
	}
}

// The reference has a row for each parameter and each key of an object that classes may have.
func TestReferenceListsTheParameters(t *testing.T) {
	reference := read(t, "docs/reference.md")
	for _, key := range append(spec.Vault.Parameters(), spec.ObjectKeys()...) {
		if !regexp.MustCompile("(?m)^\\|[^|]*`" + key + "`[^|]*\\|").MatchString(reference) {
			t.Errorf("docs/reference.md has no row for %s", key)
		}
	}
}

// The index of the examples lists every one, and no other.
func TestExamplesAreListed(t *testing.T) {
	files, err := filepath.Glob("../../docs/examples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for i := range files {
		files[i] = filepath.Base(files[i])
	}
	if listed := names(`\]\(([a-z-]+\.yaml)\)`, read(t, "docs/examples/README.md")); !slices.Equal(listed, files) {
		t.Errorf("docs/examples/README.md lists\n%v\nand there are\n%v", listed, files)
	}
}

// The versions in the README are those that the tests run.
func TestReadmeSaysWhatIsRun(t *testing.T) {
	for name, module := range map[string][2]string{
		"Kubernetes":               {"kubernetes", "k8s.io/kubernetes"},
		"Secrets Store CSI driver": {"driver", "sigs.k8s.io/secrets-store-csi-driver"},
		"Vault":                    {"vault", "github.com/hashicorp/vault"},
	} {
		required := names(`(?m)^\t`+regexp.QuoteMeta(module[1])+` (v\S+)`, read(t, "test/tools/"+module[0]+"/go.mod"))
		if told := names(`(?m)^\| `+name+` \| (v\S+) `, read(t, "README.md")); len(told) != 1 || !slices.Equal(told, required) {
			t.Errorf("of %s the tests run %v, and the README says %v", name, required, told)
		}
	}
}

// source is all code of the provider's own packages.
func source(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, folder := range []string{"internal", "provider"} {
		err := filepath.WalkDir("../../"+folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			all.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}

// The reference has each kind of change and each trouble, and no other.
func TestReferenceListsChanges(t *testing.T) {
	_, section, _ := strings.Cut(read(t, "docs/reference.md"), "\n## What happened\n")
	section, _, _ = strings.Cut(section, "\n## ")
	code := source(t)
	told := slices.Concat(names(`\bKind += "([A-Z][A-Za-z]+)"`, code), names(`\bTrouble += "([A-Z][A-Za-z]+)"`, code))
	slices.Sort(told)
	rows := strings.Join(names("(?m)^\\| ((?:`[A-Z][A-Za-z]+`(?:, )?)+) ", section), ", ")
	if documented := names("`([A-Za-z]+)`", rows); !slices.Equal(documented, told) || len(told) == 0 {
		t.Errorf("the changes and troubles\n%v\nare told, and the reference lists\n%v", told, documented)
	}
}

// The reference has a row for each reason of an event and each metric, and for no other; FailedMount is kubelet's.
func TestReferenceListsEventsAndMetrics(t *testing.T) {
	reference, code := read(t, "docs/reference.md"), source(t)
	_, section, _ := strings.Cut(reference, "\n## Events on pods\n")
	events, metrics, _ := strings.Cut(section, "\n## Metrics\n")
	posted := append(names(`\b(?:Event\([^"\n]*(?:"Warning"|"Normal"|eventtype), |notice\([^"\n]*)"([A-Za-z]+)"`, code), "FailedMount")
	slices.Sort(posted)
	if documented := names("(?m)^\\| `([A-Za-z]+)` ", events); !slices.Equal(documented, posted) {
		t.Errorf("the events\n%v\nare posted, and the reference lists\n%v", posted, documented)
	}
	exposed := names(`"(leasehold_[a-z_]+)"`, code)
	if documented := names("(?m)^\\| `(leasehold_[a-z_]+)", metrics); !slices.Equal(documented, exposed) || len(exposed) == 0 {
		t.Errorf("the metrics\n%v\nare exposed, and the reference lists\n%v", exposed, documented)
	}
}

const rulesFile = "../../manifests/monitoring/rules.yaml"

// Every metric that the rules and the dashboard ask for is exposed, and each panel and alert asks for one.
func TestMonitoringAsksForMetricsThatExist(t *testing.T) {
	alerts, err := prometheus.Alerts(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	queries, err := prometheus.Queries("../../manifests/monitoring/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range alerts {
		queries = append(queries, a.Expr)
	}
	exposed := names(`"(leasehold_[a-z_]+)"`, source(t))
	for _, query := range queries {
		asked := prometheus.Selectors(query)
		if len(asked) == 0 {
			t.Errorf("%s asks for no metric", query)
		}
		for _, selector := range asked {
			metric, _, _ := strings.Cut(selector, "{")
			for _, ending := range []string{"_bucket", "_count"} { // of a histogram
				metric = strings.TrimSuffix(metric, ending)
			}
			if strings.HasPrefix(metric, "leasehold_") && !slices.Contains(exposed, metric) {
				t.Errorf("%s, which nothing exposes, is asked for by %s", metric, query)
			}
		}
	}
}

// Each alert has all that a person needs who is woken by it, and a runbook; each runbook has an alert.
func TestAlertsHaveRunbooks(t *testing.T) {
	alerts, err := prometheus.Alerts(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	var named []string
	for _, a := range alerts {
		named = append(named, a.Name)
		if severity := a.Labels["severity"]; severity != "critical" && severity != "warning" {
			t.Errorf("%s has the severity %q", a.Name, severity)
		}
		for _, annotation := range []string{"summary", "description"} {
			if a.Annotations[annotation] == "" {
				t.Errorf("%s has no %s", a.Name, annotation)
			}
		}
		if url := a.Annotations["runbook_url"]; !strings.HasSuffix(url, "/docs/operations.md#"+strings.ToLower(a.Name)) {
			t.Errorf("%s has the runbook %q", a.Name, url)
		}
	}
	slices.Sort(named)
	if runbooks := names(`(?m)^### (Leasehold[A-Za-z]+)$`, read(t, "docs/operations.md")); !slices.Equal(named, runbooks) || len(named) == 0 {
		t.Errorf("the alerts\n%v\nare defined, and docs/operations.md has runbooks for\n%v", named, runbooks)
	}
	for _, a := range alerts {
		_, runbook, _ := strings.Cut(read(t, "docs/operations.md"), "\n### "+a.Name+"\n")
		runbook, _, _ = strings.Cut(runbook, "\n### ")
		for _, part := range []string{"**Means.**", "**Look.**", "**Do.**", "**Over.**"} {
			if !strings.Contains(runbook, part) {
				t.Errorf("the runbook of %s has no %s", a.Name, part)
			}
		}
	}
}

// The reference names each attribute of ours that spans have, and no other.
func TestReferenceListsAttributes(t *testing.T) {
	_, section, _ := strings.Cut(read(t, "docs/reference.md"), "\n## Traces\n")
	set, documented := names(`text\("(leasehold\.[a-z._]+)"`, source(t)), names("`(leasehold\\.[a-z._]+)`", section)
	if !slices.Equal(documented, set) || len(set) == 0 {
		t.Errorf("spans have the attributes\n%v\nand the reference lists\n%v", set, documented)
	}
}
