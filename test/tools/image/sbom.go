package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/package-url/packageurl-go"
	"github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
)

const unstated = "NOASSERTION"

// bill is a bill of materials in the making: the image contains its programs and its certificate authorities, and each
// program depends on the modules that its build info names.
type bill struct {
	document *spdx.Document
	modules  map[debug.Module]common.ElementID
}

// facts are what a bill says about the image as a whole.
type facts struct {
	name     string
	digest   v1.Hash
	version  string
	licenses string
	created  time.Time
}

// writeBill writes the bill of materials of an image in SPDX 2.3. The same image gives the same bytes: the namespace, which
// must be this document's alone, is made from the image's digest.
func writeBill(out io.Writer, image facts, variants []variant, withRoots bool) error {
	bill := newBill(image)
	for _, variant := range variants {
		if err := bill.addProgram(image, variant); err != nil {
			return fmt.Errorf("reading the build info of the program for %s: %w", variant.arch, err)
		}
	}
	if withRoots {
		module, err := ownModule(rootsModule)
		if err != nil {
			return fmt.Errorf("finding out where %s comes from: %w", caBundle, err)
		}
		bill.relate("Image", common.TypeRelationshipContains, bill.addModule(module))
	}
	return json.Write(bill.document, out, json.Indent("  "), json.EscapeHTML(false))
}

func newBill(image facts) bill {
	bill := bill{modules: map[debug.Module]common.ElementID{}, document: &spdx.Document{
		SPDXVersion:       spdx.Version,
		DataLicense:       spdx.DataLicense,
		SPDXIdentifier:    "DOCUMENT",
		DocumentName:      strings.TrimSpace(image.name + " " + image.version),
		DocumentNamespace: "https://spdx.org/spdxdocs/" + image.name + "-" + image.digest.Hex,
		CreationInfo: &spdx.CreationInfo{
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "leasehold-test-tools-image"}},
			Created:  image.created.Format(time.RFC3339),
		},
	}}
	bill.add(&spdx.Package{
		PackageSPDXIdentifier:  "Image",
		PackageName:            image.name,
		PackageVersion:         image.version,
		PackageLicenseDeclared: image.licenses,
		PrimaryPackagePurpose:  "CONTAINER",
		PackageChecksums:       []common.Checksum{{Algorithm: common.SHA256, Value: image.digest.Hex}},
	}, packageurl.PackageURL{Type: packageurl.TypeOCI, Name: image.name, Version: image.digest.String()})
	bill.relate("DOCUMENT", common.TypeRelationshipDescribe, "Image")
	return bill
}

func (b bill) addProgram(image facts, variant variant) error {
	info, err := buildinfo.Read(bytes.NewReader(variant.program))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(variant.program)
	id := common.ElementID("Program-" + variant.arch)
	version := cmp.Or(image.version, info.Main.Version)
	url := golangURL(info.Main.Path, version,
		packageurl.Qualifier{Key: "goos", Value: "linux"}, packageurl.Qualifier{Key: "goarch", Value: variant.arch})
	b.add(&spdx.Package{
		PackageSPDXIdentifier:  id,
		PackageName:            info.Main.Path,
		PackageVersion:         version,
		PackageLicenseDeclared: image.licenses,
		PrimaryPackagePurpose:  "APPLICATION",
		PackageChecksums:       []common.Checksum{{Algorithm: common.SHA256, Value: hex.EncodeToString(sum[:])}},
	}, url)
	b.relate("Image", common.TypeRelationshipContains, id)
	for _, module := range linked(info) {
		b.relate(id, common.TypeRelationshipDependsOn, b.addModule(module))
	}
	return nil
}

// linked returns the modules of a program: where one is replaced, what replaces it.
func linked(info *debug.BuildInfo) []debug.Module {
	modules := []debug.Module{{Path: "stdlib", Version: strings.TrimPrefix(info.GoVersion, "go")}}
	for _, module := range info.Deps {
		if module.Replace != nil {
			module = module.Replace
		}
		modules = append(modules, *module)
	}
	return modules
}

// addModule adds a module once, however many programs have it.
func (b bill) addModule(module debug.Module) common.ElementID {
	id, ok := b.modules[module]
	if ok {
		return id
	}
	id = common.ElementID("Module-" + strconv.Itoa(len(b.modules)+1))
	b.modules[module] = id
	added := &spdx.Package{
		PackageSPDXIdentifier: id,
		PackageName:           module.Path,
		PackageVersion:        module.Version,
		PrimaryPackagePurpose: "LIBRARY",
	}
	if module.Sum != "" {
		// Not a checksum in SPDX's sense: go.sum's are over a list of files, not over one.
		added.PackageSourceInfo = "go.sum " + module.Sum
	}
	b.add(added, golangURL(module.Path, module.Version))
	return id
}

func (b bill) add(added *spdx.Package, url packageurl.PackageURL) {
	added.PackageDownloadLocation = unstated
	added.PackageExternalReferences = []*spdx.PackageExternalReference{{
		Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: url.ToString(),
	}}
	b.document.Packages = append(b.document.Packages, added)
}

func (b bill) relate(from common.ElementID, how string, to common.ElementID) {
	b.document.Relationships = append(b.document.Relationships, &spdx.Relationship{
		RefA: common.DocElementID{ElementRefID: from}, Relationship: how, RefB: common.DocElementID{ElementRefID: to},
	})
}

func golangURL(module, version string, qualifiers ...packageurl.Qualifier) packageurl.PackageURL {
	namespace, name := path.Split(module)
	return packageurl.PackageURL{
		Type: packageurl.TypeGolang, Namespace: strings.TrimSuffix(namespace, "/"), Name: name, Version: version, Qualifiers: qualifiers,
	}
}

// ownModule returns a module that this program was built with.
func ownModule(path string) (debug.Module, error) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return debug.Module{}, errors.New("this program has no build info")
	}
	i := slices.IndexFunc(info.Deps, func(module *debug.Module) bool { return module.Path == path })
	if i < 0 {
		return debug.Module{}, fmt.Errorf("this program's build info does not name %s", path)
	}
	return *info.Deps[i], nil
}
