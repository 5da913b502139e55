// Package manifests_test renders manifests/ with the libraries of Helm and kustomize, offline, and looks at the objects.
package manifests_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const manifests = "../../../manifests"

type object = map[string]any

// release is what `helm install` says beside the values.
type release struct{ name, namespace string }

var standard = release{name: "leasehold", namespace: "leasehold"}

// chart renders the chart, checking the values against the schema first, as Helm does.
func (r release) chart(values string) (documents, notes string, err error) {
	c, err := loader.Load(filepath.Join(manifests, "chart"))
	if err != nil {
		return "", "", err
	}
	parsed, err := chartutil.ReadValues([]byte(values))
	if err != nil {
		return "", "", err
	}
	options := chartutil.ReleaseOptions{Name: r.name, Namespace: r.namespace, Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(c, parsed, options, chartutil.DefaultCapabilities)
	if err != nil {
		return "", "", err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return "", "", err
	}
	var rendered []string
	for name, text := range files {
		switch {
		case path.Base(name) == "NOTES.txt":
			notes = text
		case strings.TrimSpace(text) != "" && path.Ext(name) == ".yaml":
			rendered = append(rendered, strings.TrimSpace(text)+"\n")
		}
	}
	slices.Sort(rendered)
	return strings.Join(rendered, "---\n"), notes, nil
}

// chart renders the chart under its usual name.
func chart(t *testing.T, values string) string {
	t.Helper()
	documents, _, err := standard.chart(values)
	if err != nil {
		t.Fatalf("rendering the chart with %s: %v", values, err)
	}
	return documents
}

// kustomize builds the kustomization in a folder, in the order of `kubectl kustomize`.
func kustomize(t *testing.T, folder string) string {
	t.Helper()
	options := krusty.MakeDefaultOptions()
	options.Reorder = krusty.ReorderOptionLegacy
	built, err := krusty.MakeKustomizer(options).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		t.Fatalf("building %s: %v", folder, err)
	}
	documents, err := built.AsYaml()
	if err != nil {
		t.Fatalf("building %s: %v", folder, err)
	}
	return string(documents)
}

// kustomization builds a kustomization in which manifests/ stands for the project's.
func kustomization(t *testing.T, text string) string {
	t.Helper()
	folder := t.TempDir()
	root, err := filepath.Abs(manifests)
	if err != nil {
		t.Fatal(err)
	}
	relative, err := filepath.Rel(folder, root)
	if err != nil {
		t.Fatal(err)
	}
	text = strings.ReplaceAll(text, "- manifests/", "- "+relative+"/")
	if err := os.WriteFile(filepath.Join(folder, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kustomize(t, folder)
}

// parse returns the objects by kind, namespace and name.
func parse(t *testing.T, documents string) map[string]object {
	t.Helper()
	objects := make(map[string]object)
	for document := range strings.SplitSeq("\n"+documents, "\n---\n") {
		var o object
		if err := yaml.UnmarshalStrict([]byte(document), &o); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if o == nil {
			continue
		}
		key := fmt.Sprintf("%s %s %s", o["kind"], text(o, "metadata", "namespace"), text(o, "metadata", "name"))
		if objects[key] != nil {
			t.Errorf("%s is there twice", key)
		}
		objects[key] = o
	}
	if len(objects) == 0 {
		t.Fatal("nothing was rendered")
	}
	return objects
}

// at is the map under keys, and nil where there is none.
func at(o object, keys ...string) object {
	for _, key := range keys {
		o, _ = o[key].(object)
	}
	return o
}

// text is the text under keys.
func text(o object, keys ...string) string {
	last := len(keys) - 1
	s, _ := at(o, keys[:last]...)[keys[last]].(string)
	return s
}

// lines says everything about objects, a line for each value. Elements of lists have no number, so that one more changes no
// line of the others.
func lines(t *testing.T, objects map[string]object) []string {
	t.Helper()
	var all []string
	var walk func(where string, value any)
	walk = func(where string, value any) {
		switch value := value.(type) {
		case object:
			for key, v := range value {
				walk(where+"."+key, v)
			}
		case []any:
			for _, v := range value {
				walk(where+"[]", v)
			}
		default:
			literal, err := json.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, short.Replace(where)+": "+strings.Trim(string(literal), `"`))
		}
	}
	for _, o := range objects {
		walk(fmt.Sprint(o["kind"]), o)
	}
	slices.Sort(all)
	return all
}

var short = strings.NewReplacer("DaemonSet.spec.template.spec.containers[]", "container", "DaemonSet.spec.template", "pod")

// difference lists the lines that only one has: "- " before those of from, "+ " before those of to.
func difference(from, to []string) []string {
	var changes []string
	from, to = slices.Clone(from), slices.Clone(to)
	for len(from) > 0 || len(to) > 0 {
		switch {
		case len(to) == 0 || len(from) > 0 && from[0] < to[0]:
			changes, from = append(changes, "- "+from[0]), from[1:]
		case len(from) == 0 || to[0] < from[0]:
			changes, to = append(changes, "+ "+to[0]), to[1:]
		default:
			from, to = from[1:], to[1:]
		}
	}
	return changes
}

// offline answers requests below url with files of a folder, and refuses every other.
type offline struct {
	url   *url.URL
	files http.RoundTripper
}

func (o offline) RoundTrip(request *http.Request) (*http.Response, error) {
	name, ok := strings.CutPrefix(request.URL.String(), o.url.String())
	if !ok {
		return nil, fmt.Errorf("%s is not below %s", request.URL, o.url)
	}
	local := request.Clone(request.Context())
	local.URL = &url.URL{Path: "/" + name}
	return o.files.RoundTrip(local)
}

// serveDriver has kustomize find the driver's own files, which test/tools/driver pins, at their addresses until the test ends.
func serveDriver(t *testing.T) {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", "sigs.k8s.io/secrets-store-csi-driver")
	cmd.Dir = "../driver"
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("finding the driver's module: %v", err)
	}
	var module struct{ Dir, Version string }
	if err := json.Unmarshal(output, &module); err != nil {
		t.Fatal(err)
	}
	address := &url.URL{Scheme: "https", Host: "raw.githubusercontent.com", Path: "/kubernetes-sigs/secrets-store-csi-driver/" + module.Version + "/"}
	usual := http.DefaultTransport
	t.Cleanup(func() { http.DefaultTransport = usual })
	http.DefaultTransport = offline{address, http.NewFileTransport(http.Dir(module.Dir))}
}
