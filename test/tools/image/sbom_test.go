package main

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/package-url/packageurl-go"
	"github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdxlib"
)

// The program in these bills is the one that runs the test: a Go program with dependencies.
func TestBillNamesEveryModule(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bill := readBill(t, writeTestBill(t, readFile(t, program)))

	for _, arch := range []string{"amd64", "arm64"} {
		checkModules(t, bill, arch, program)
	}
	if got := related(bill, "Image", common.TypeRelationshipContains); !slices.Equal(got[:2], []string{"Program-amd64", "Program-arm64"}) || len(got) != 3 {
		t.Errorf("the image contains %q, want the programs and the certificate authorities", got)
	}
	if got := related(bill, "DOCUMENT", common.TypeRelationshipDescribe); !slices.Equal(got, []string{"Image"}) {
		t.Errorf("the document describes %q, want the image", got)
	}
	if i := slices.IndexFunc(bill.Packages, func(p *spdx.Package) bool { return p.PackageName == rootsModule }); i < 0 {
		t.Errorf("no %s in the bill", rootsModule)
	}
}

func TestSameImageSameBill(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	content := readFile(t, program)
	if !bytes.Equal(writeTestBill(t, content), writeTestBill(t, content)) {
		t.Error("two bills of one image differ")
	}
}

func TestReplacedModuleIsNamedByItsReplacement(t *testing.T) {
	got := linked(&debug.BuildInfo{GoVersion: "go1.26.0", Deps: []*debug.Module{
		{Path: "example.com/a", Version: "v1.0.0", Replace: &debug.Module{Path: "example.com/fork", Version: "v1.0.1"}},
	}})
	want := []debug.Module{{Path: "stdlib", Version: "1.26.0"}, {Path: "example.com/fork", Version: "v1.0.1"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func writeTestBill(t *testing.T, program []byte) []byte {
	t.Helper()
	about := facts{
		name: "thing", version: "v1", licenses: "Apache-2.0", created: time.Unix(1_700_000_000, 0).UTC(),
		digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("ab", 32)},
	}
	variants := []variant{{arch: "amd64", program: program}, {arch: "arm64", program: program}}
	var out bytes.Buffer
	if err := writeBill(&out, about, variants, true); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// readBill reads a bill of materials and checks what the standard asks of every package.
func readBill(t *testing.T, content []byte) *spdx.Document {
	t.Helper()
	bill, err := json.Read(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if err := spdxlib.ValidateDocument(bill); err != nil {
		t.Error(err)
	}
	if !bytes.Contains(content, []byte(`"spdxVersion": "SPDX-2.3"`)) {
		t.Error("not SPDX 2.3")
	}
	for _, p := range bill.Packages {
		if p.PackageName == "" || p.PackageVersion == "" || p.PackageDownloadLocation == "" || len(p.PackageExternalReferences) != 1 {
			t.Errorf("package %s lacks a name, a version, a location or a URL: %+v", p.PackageSPDXIdentifier, p)
			continue
		}
		if _, err := packageurl.FromString(p.PackageExternalReferences[0].Locator); err != nil {
			t.Errorf("package %s: %v", p.PackageSPDXIdentifier, err)
		}
	}
	return bill
}

// checkModules holds the modules that the program of an architecture depends on against those that `go version -m` names.
func checkModules(t *testing.T, bill *spdx.Document, arch, program string) {
	t.Helper()
	output, err := exec.Command("go", "version", "-m", program).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for line := range strings.Lines(string(output)) {
		if fields := strings.Fields(line); fields[0] == "dep" {
			want[strings.Join(fields[1:], " ")] = true
		}
	}
	if len(want) == 0 {
		t.Fatalf("go version -m names no modules:\n%s", output)
	}
	packages := map[string]*spdx.Package{}
	for _, p := range bill.Packages {
		packages[string(p.PackageSPDXIdentifier)] = p
	}
	got := map[string]bool{}
	for _, id := range related(bill, common.ElementID("Program-"+arch), common.TypeRelationshipDependsOn) {
		if p := packages[id]; p.PackageName != "stdlib" {
			got[p.PackageName+" "+p.PackageVersion+" "+strings.TrimPrefix(p.PackageSourceInfo, "go.sum ")] = true
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("modules of %s\n got %q\nwant %q", arch, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

// related returns what stands in a relationship to an element, in the document's order.
func related(bill *spdx.Document, from common.ElementID, how string) []string {
	var found []string
	for _, r := range bill.Relationships {
		if r.RefA.ElementRefID == from && r.Relationship == how {
			found = append(found, string(r.RefB.ElementRefID))
		}
	}
	return found
}
