package manifests_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write testdata and the table of values in manifests/README.md")

// golden compares with a file of testdata, which the end-to-end tests give to an API server.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not what is rendered now; go test ./... -update writes it:\n%s", file,
			strings.Join(difference(lines(t, parse(t, string(want))), lines(t, parse(t, got))), "\n"))
	}
}

func TestChartRendersWhatKustomizeDoes(t *testing.T) {
	for _, c := range []struct{ values, kustomization string }{
		{"", "resources:\n- manifests/base\n"},
		{"tokenRequest: true", "resources:\n- manifests/base\ncomponents:\n- manifests/components/token-request\n"},
	} {
		want, got := parse(t, kustomization(t, c.kustomization)), parse(t, chart(t, c.values))
		// Helm makes the namespace, or somebody before it.
		delete(want, "Namespace  leasehold")
		for _, objects := range []map[string]object{want, got} {
			for _, o := range objects {
				delete(at(o, "metadata"), "labels")
			}
		}
		// Helm's selectors name the release.
		daemonSet := got["DaemonSet leasehold leasehold"]
		delete(at(daemonSet, "spec", "selector", "matchLabels"), "app.kubernetes.io/instance")
		delete(at(daemonSet, "spec", "template", "metadata", "labels"), "app.kubernetes.io/instance")

		same(t, want, got)
	}
}

func TestOverlays(t *testing.T) {
	base := parse(t, kustomize(t, filepath.Join(manifests, "base")))
	for name, want := range map[string][]string{
		"dev": {
			"+ container.args[]: --log-level=debug",
			"+ container.imagePullPolicy: Never",
			"- container.imagePullPolicy: IfNotPresent",
		},
		"handover": {
			"+ DaemonSet.spec.updateStrategy.type: OnDelete",
			"+ container.args[]: --endpoint=/provider/leasehold.sock",
			"- DaemonSet.spec.updateStrategy.rollingUpdate.maxSurge: 0",
			"- DaemonSet.spec.updateStrategy.rollingUpdate.maxUnavailable: 1",
			"- DaemonSet.spec.updateStrategy.type: RollingUpdate",
		},
		"migration": {
			"+ container.args[]: --endpoint=/provider/leasehold.sock",
			"- container.args[]: --endpoint=/provider/vault.sock",
		},
	} {
		documents := kustomize(t, filepath.Join(manifests, "overlays", name))
		golden(t, name+".yaml", documents)
		if got := difference(lines(t, base), lines(t, parse(t, documents))); !slices.Equal(got, sorted(want)) {
			t.Errorf("overlay %s changes\n%s", name, strings.Join(got, "\n"))
		}
	}
}

// The overlay adds the driver to the base, and changes two things of the driver.
func TestOverlayDriver(t *testing.T) {
	serveDriver(t)
	documents := kustomize(t, filepath.Join(manifests, "overlays", "driver"))
	golden(t, "driver.yaml", documents)
	overlay := parse(t, documents)
	for key, o := range parse(t, kustomize(t, filepath.Join(manifests, "base"))) {
		same(t, map[string]object{key: o}, map[string]object{key: overlay[key]})
		delete(overlay, key)
	}
	var stock []string
	for _, address := range regexp.MustCompile(`https://\S+`).FindAllString(read(t, "overlays/driver/kustomization.yaml"), -1) {
		stock = append(stock, kustomization(t, "resources:\n- "+address))
	}
	got := difference(lines(t, parse(t, strings.Join(stock, "---\n"))), lines(t, overlay))
	want := []string{
		"+ CSIDriver.spec.tokenRequests[].audience: vault",
		"+ container.args[]: --enable-secret-rotation=true",
		"- container.args[]: --enable-secret-rotation=false",
	}
	if !slices.Equal(got, sorted(want)) {
		t.Errorf("overlay driver changes\n%s", strings.Join(got, "\n"))
	}
}

// What watches the provider is rendered with the dashboard, which is what Grafana's sidecar looks for; both ways to scrape give the
// names that the rules know.
func TestMonitoring(t *testing.T) {
	documents := kustomize(t, filepath.Join(manifests, "monitoring"))
	golden(t, "monitoring.yaml", documents)
	objects := parse(t, documents)
	dashboard := objects["ConfigMap leasehold leasehold-dashboard"]
	if text(dashboard, "metadata", "labels", "grafana_dashboard") != "1" || text(dashboard, "data", "leasehold.json") != read(t, "monitoring/dashboard.json") {
		t.Errorf("the dashboard's ConfigMap is %v", dashboard)
	}
	if objects["PrometheusRule leasehold leasehold"] == nil || len(objects) != 3 {
		t.Errorf("there are %d objects", len(objects))
	}
	names := []object{
		objects["PodMonitor leasehold leasehold"],
		parse(t, chart(t, "serviceMonitor: {enabled: true}"))["ServiceMonitor leasehold leasehold"],
	}
	for i, endpoints := range []string{"podMetricsEndpoints", "endpoints"} {
		spec := at(names[i], "spec")
		list, _ := spec[endpoints].([]any)
		if len(list) != 1 {
			t.Fatalf("%s are %v", endpoints, spec[endpoints])
		}
		relabelled := fmt.Sprint(list[0].(object)["relabelings"])
		if spec["jobLabel"] != "app.kubernetes.io/name" || relabelled != "[map[sourceLabels:[__meta_kubernetes_pod_node_name] targetLabel:node]]" {
			t.Errorf("the job is named by %v, and the node by %s", spec["jobLabel"], relabelled)
		}
	}
}

// The kustomization that the README shows builds, and changes what it seems to.
func TestReadmeOverlay(t *testing.T) {
	_, text, _ := strings.Cut(read(t, "README.md"), "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	text = strings.ReplaceAll(text, "https://github.com/leasehold-csi/leasehold//manifests/", "manifests/")
	base := lines(t, parse(t, kustomize(t, filepath.Join(manifests, "base"))))
	got := difference(base, lines(t, parse(t, kustomization(t, text))))
	want := []string{
		"+ container.args[]: --vault-addr=https://vault.example.com:8200",
		"+ container.image: registry.example.com/leasehold:dev",
		"- container.image: leasehold:dev",
	}
	if !slices.Equal(got, sorted(want)) {
		t.Errorf("the README's overlay changes\n%s", strings.Join(got, "\n"))
	}
}

func TestChartOfAnotherName(t *testing.T) {
	documents, notes, err := release{name: "csi", namespace: "secrets"}.chart("serviceMonitor: {enabled: true}\ntokenRequest: true")
	if err != nil {
		t.Fatal(err)
	}
	for key, o := range parse(t, documents) {
		if name := text(o, "metadata", "name"); !strings.HasPrefix(name, "csi-leasehold") {
			t.Errorf("%s is not named after the release", key)
		}
		for label, want := range map[string]string{"app.kubernetes.io/instance": "csi", "app.kubernetes.io/managed-by": "Helm"} {
			if got := text(o, "metadata", "labels", label); got != want {
				t.Errorf("%s has the label %s=%s", key, label, got)
			}
		}
	}
	if strings.Contains(documents, "namespace: leasehold") {
		t.Error("an object names another namespace than the release's")
	}
	if !strings.Contains(notes, "kubectl -n secrets exec ds/csi-leasehold -- /leasehold leases") {
		t.Errorf("the notes name other objects:\n%s", notes)
	}
}

func TestChartLints(t *testing.T) {
	for _, values := range []string{"", allValues(t)} {
		parsed, err := chartutil.ReadValues([]byte(values))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range lint.All(filepath.Join(manifests, "chart"), parsed, standard.namespace, true).Messages {
			if m.Severity >= support.WarningSev {
				t.Errorf("helm lint: %s", m)
			}
		}
	}
}

func TestNotes(t *testing.T) {
	for _, c := range []struct {
		values   string
		has, not []string
	}{
		{
			"",
			[]string{
				"--set enableSecretRotation=true", "--set 'tokenRequests[0].audience=vault'\n", "provider: vault\n",
				"vaultAddress:", "pod-security.kubernetes.io/enforce=privileged",
			},
			[]string{"tokenRequests[1]"},
		},
		{"vaultAddr: https://vault.example.com:8200", nil, []string{"vaultAddress:"}},
		{"tokenRequest: true", []string{"enableSecretRotation"}, []string{"tokenRequests", "a token for the pods' logins"}},
		{"providers: [leasehold]", []string{"provider: leasehold\n", "tokenRequests[0].audience=vault"}, nil},
		{"providers: [openbao, vault, leasehold]", []string{"provider: openbao\n", "tokenRequests[0].audience=openbao", "tokenRequests[1].audience=vault"}, []string{"tokenRequests[2]"}},
		{"kubeletRootDir: /var/lib/k0s/kubelet", []string{"linux.kubeletRootDir=/var/lib/k0s/kubelet"}, nil},
		{"providersDir: /var/run/providers", []string{"linux.providersDir=/var/run/providers"}, nil},
	} {
		_, notes, err := standard.chart(c.values)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range c.has {
			if !strings.Contains(notes, text) {
				t.Errorf("with %q the notes do not say %q:\n%s", c.values, text, notes)
			}
		}
		for _, text := range c.not {
			if strings.Contains(notes, text) {
				t.Errorf("with %q the notes say %q:\n%s", c.values, text, notes)
			}
		}
	}
}

// same compares objects, also in the order of their lists.
func same(t *testing.T, want, got map[string]object) {
	t.Helper()
	wanted, err := yaml.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	found, err := yaml.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if string(wanted) != string(found) {
		t.Errorf("differences, if not only of order:\n%s", strings.Join(difference(lines(t, want), lines(t, got)), "\n"))
	}
}

// sorted is in the order of difference: by what stands after the sign.
func sorted(changes []string) []string {
	return slices.SortedFunc(slices.Values(changes), func(a, b string) int { return strings.Compare(a[2:], b[2:]) })
}

// read returns a file of manifests/.
func read(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(manifests, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
