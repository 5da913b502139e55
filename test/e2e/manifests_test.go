//go:build e2e

package e2e_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
)

// acceptsManifests gives the API server what the chart and the overlays render, without keeping it: it knows every field, has
// nothing against a value, and warns of nothing.
func (s *suite) acceptsManifests(t *testing.T) {
	files, err := filepath.Glob("../tools/manifests/testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests were rendered: %v", err)
	}
	groups, err := restmapper.GetAPIGroupResources(s.bed.Client().Discovery())
	if err != nil {
		t.Fatal(err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			config := s.bed.RESTConfig()
			config.WarningHandler = warnings{t}
			client, err := dynamic.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			for _, object := range documents(t, file) {
				kind := object.GroupVersionKind()
				if kind.Group == "monitoring.coreos.com" { // of the Prometheus operator, which the bed has not
					continue
				}
				mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
				if err != nil {
					t.Fatal(err)
				}
				var resource dynamic.ResourceInterface = client.Resource(mapping.Resource)
				if object.GetNamespace() != "" {
					resource = client.Resource(mapping.Resource).Namespace(object.GetNamespace())
				}
				_, err = resource.Apply(t.Context(), object.GetName(), object, metav1.ApplyOptions{
					FieldManager: "e2e", Force: true, DryRun: []string{metav1.DryRunAll},
				})
				if err != nil {
					t.Errorf("%s %s: %v", object.GetKind(), object.GetName(), err)
				}
			}
		})
	}
}

// warnings are a fault of the test.
type warnings struct{ t *testing.T }

func (w warnings) HandleWarningHeader(_ int, _, text string) {
	w.t.Errorf("the API server warns: %s", text)
}

// documents reads the objects of a YAML file.
func documents(t *testing.T, path string) []*unstructured.Unstructured {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var all []*unstructured.Unstructured
	decoder := utilyaml.NewYAMLOrJSONDecoder(file, 4096)
	for {
		object := &unstructured.Unstructured{}
		switch err := decoder.Decode(object); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatalf("%s: %v", path, err)
		}
		all = append(all, object)
	}
}
