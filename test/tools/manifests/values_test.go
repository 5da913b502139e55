package manifests_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chartutil"
	kyaml "sigs.k8s.io/kustomize/kyaml/yaml"
	"sigs.k8s.io/yaml"
)

// effect is what one value changes in the objects, and nothing else.
type effect struct {
	value string
	// changes are lines of difference; of objects that come or go only what they are.
	changes []string
	// beside is what else must be given.
	beside string
}

var effects = []effect{
	{"image: {registry: registry.example.com}", []string{"- container.image: leasehold:dev", "+ container.image: registry.example.com/leasehold:dev"}, ""},
	{"image: {repository: team/leasehold}", []string{"- container.image: leasehold:dev", "+ container.image: team/leasehold:dev"}, ""},
	{"image: {tag: v1.2.3}", []string{"- container.image: leasehold:dev", "+ container.image: leasehold:v1.2.3"}, ""},
	{"image: {tag: v1.2.3, digest: 'sha256:" + strings.Repeat("0", 64) + "'}", []string{"- container.image: leasehold:dev", "+ container.image: leasehold@sha256:" + strings.Repeat("0", 64)}, ""},
	{"image: {pullPolicy: Always}", []string{"- container.imagePullPolicy: IfNotPresent", "+ container.imagePullPolicy: Always"}, ""},
	{"imagePullSecrets: [{name: registry}]", []string{"+ pod.spec.imagePullSecrets[].name: registry"}, ""},
	{"vaultAddr: 'https://vault.example.com:8200'", []string{"+ container.args[]: --vault-addr=https://vault.example.com:8200"}, ""},
	{"allowVaultAddr: ['https://*.example.com:8200', 'http://127.0.0.1:*']", []string{"+ container.args[]: --allow-vault-addr=https://*.example.com:8200", "+ container.args[]: --allow-vault-addr=http://127.0.0.1:*"}, ""},
	{"providers: [vault, openbao]", []string{"+ container.args[]: --endpoint=/provider/openbao.sock"}, ""},
	{"logLevel: debug", []string{"+ container.args[]: --log-level=debug"}, ""},
	{"extraArgs: ['--vault-mount=k8s', --strict]", []string{"+ container.args[]: --strict", "+ container.args[]: --vault-mount=k8s"}, ""},
	{"env: [{name: HTTPS_PROXY, value: 'http://proxy:3128'}]", []string{"+ container.env[].name: HTTPS_PROXY", "+ container.env[].value: http://proxy:3128"}, ""},
	{"volumes: [{name: tls, secret: {secretName: vault-tls}}]", []string{"+ pod.spec.volumes[].name: tls", "+ pod.spec.volumes[].secret.secretName: vault-tls"}, ""},
	{"volumeMounts: [{name: tls, mountPath: /tls, readOnly: true}]", []string{"+ container.volumeMounts[].mountPath: /tls", "+ container.volumeMounts[].name: tls", "+ container.volumeMounts[].readOnly: true"}, ""},
	{"providersDir: /etc/kubernetes/providers", []string{"- pod.spec.volumes[].hostPath.path: /var/run/secrets-store-csi-providers", "+ pod.spec.volumes[].hostPath.path: /etc/kubernetes/providers"}, ""},
	{`kubeletRootDir: ""`, []string{
		"- container.args[]: --kubelet-dir=/var/lib/kubelet", "+ container.args[]: --no-kubelet-dir",
		"- container.volumeMounts[].mountPath: /var/lib/kubelet/pods", "- container.volumeMounts[].mountPropagation: HostToContainer",
		"- container.volumeMounts[].name: pods", "- container.volumeMounts[].readOnly: true",
		"- pod.spec.volumes[].hostPath.path: /var/lib/kubelet/pods", "- pod.spec.volumes[].hostPath.type: Directory", "- pod.spec.volumes[].name: pods",
	}, ""},
	{"kubeletRootDir: /var/lib/k0s/kubelet", []string{
		"- container.args[]: --kubelet-dir=/var/lib/kubelet", "+ container.args[]: --kubelet-dir=/var/lib/k0s/kubelet",
		"- container.volumeMounts[].mountPath: /var/lib/kubelet/pods", "+ container.volumeMounts[].mountPath: /var/lib/k0s/kubelet/pods",
		"- pod.spec.volumes[].hostPath.path: /var/lib/kubelet/pods", "+ pod.spec.volumes[].hostPath.path: /var/lib/k0s/kubelet/pods",
	}, ""},
	{"stateMax: 67108864", []string{"- container.args[]: --state-max=33554432", "+ container.args[]: --state-max=67108864"}, ""},
	{"goMemLimit: 128MiB", []string{"- container.env[].value: 64MiB", "+ container.env[].value: 128MiB"}, ""},
	{"resources: {requests: {cpu: 100m}}", []string{"- container.resources.requests.cpu: 20m", "+ container.resources.requests.cpu: 100m"}, ""},
	{"resources: {limits: {memory: 256Mi}}", []string{"- container.resources.limits.memory: 128Mi", "+ container.resources.limits.memory: 256Mi"}, ""},
	{"tolerations: [{key: gpu, operator: Exists, effect: NoSchedule}]", []string{"+ pod.spec.tolerations[].effect: NoSchedule", "+ pod.spec.tolerations[].key: gpu"}, ""},
	{"nodeSelector: {secrets: vault}", []string{"+ pod.spec.nodeSelector.secrets: vault"}, ""},
	{"affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: type, operator: NotIn, values: [virtual-kubelet]}]}]}}}", []string{
		"+ pod.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[].matchExpressions[].key: type",
		"+ pod.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[].matchExpressions[].operator: NotIn",
		"+ pod.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[].matchExpressions[].values[]: virtual-kubelet",
	}, ""},
	{"priorityClassName: system-cluster-critical", []string{"- pod.spec.priorityClassName: system-node-critical", "+ pod.spec.priorityClassName: system-cluster-critical"}, ""},
	{"podAnnotations: {team: secrets}", []string{"+ pod.metadata.annotations.team: secrets"}, ""},
	{"podLabels: {team: secrets}", []string{"+ pod.metadata.labels.team: secrets"}, ""},
	{"seLinuxOptions: {type: spc_t}", []string{"+ container.securityContext.seLinuxOptions.type: spc_t"}, ""},
	{"serviceAccount: {name: vault}", []string{
		"- ServiceAccount leasehold leasehold", "+ ServiceAccount leasehold vault",
		"- ClusterRoleBinding.subjects[].name: leasehold", "+ ClusterRoleBinding.subjects[].name: vault",
		"- RoleBinding.subjects[].name: leasehold", "- RoleBinding.subjects[].name: leasehold",
		"+ RoleBinding.subjects[].name: vault", "+ RoleBinding.subjects[].name: vault",
		"- pod.spec.serviceAccountName: leasehold", "+ pod.spec.serviceAccountName: vault",
	}, ""},
	{"serviceAccount: {annotations: {team: secrets}}", []string{"+ ServiceAccount.metadata.annotations.team: secrets"}, ""},
	{"serviceAccount: {create: false, name: leasehold}", []string{"- ServiceAccount leasehold leasehold"}, ""},
	{"rbac: {create: false}", []string{
		"- ClusterRole  leasehold", "- ClusterRoleBinding  leasehold", "- Role kube-node-lease leasehold", "- RoleBinding kube-node-lease leasehold",
		"- Role leasehold leasehold", "- RoleBinding leasehold leasehold",
	}, ""},
	{"tokenRequest: true", []string{"+ ClusterRole  leasehold-token-request", "+ ClusterRoleBinding  leasehold-token-request"}, ""},
	{"metrics: {annotations: true}", []string{
		"+ pod.metadata.annotations.prometheus.io/path: /metrics", "+ pod.metadata.annotations.prometheus.io/port: 8080",
		"+ pod.metadata.annotations.prometheus.io/scrape: true",
	}, ""},
	{"serviceMonitor: {enabled: true}", []string{"+ Service leasehold leasehold-metrics", "+ ServiceMonitor leasehold leasehold"}, ""},
	{"serviceMonitor: {interval: 30s}", []string{"+ ServiceMonitor.spec.endpoints[].interval: 30s"}, "serviceMonitor: {enabled: true}"},
	{"serviceMonitor: {labels: {release: prometheus}}", []string{"+ ServiceMonitor.metadata.labels.release: prometheus"}, "serviceMonitor: {enabled: true}"},
	{"metrics: {port: 9090}", []string{
		"- container.args[]: --health-addr=:8080", "+ container.args[]: --health-addr=:9090",
		"- container.ports[].containerPort: 8080", "+ container.ports[].containerPort: 9090",
		"- Service.spec.ports[].port: 8080", "+ Service.spec.ports[].port: 9090",
	}, "serviceMonitor: {enabled: true}"},
}

func TestEveryValueHasAnEffect(t *testing.T) {
	tried := make(map[string]bool)
	for _, e := range effects {
		from, to := parse(t, chart(t, e.beside)), parse(t, chart(t, merge(t, e.beside, e.value)))
		var got []string
		for key := range from {
			if to[key] == nil {
				got = append(got, "- "+key)
				delete(from, key)
			}
		}
		for key := range to {
			if from[key] == nil {
				got = append(got, "+ "+key)
				delete(to, key)
			}
		}
		got = sorted(append(got, difference(lines(t, from), lines(t, to))...))
		if want := sorted(e.changes); !slices.Equal(got, want) {
			t.Errorf("%s changes\n%s\nnot\n%s", e.value, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		for _, name := range leaves(t, parseValues(t, e.value)) {
			tried[name] = true
		}
	}
	for _, d := range described(t) {
		if !tried[d.name] {
			t.Errorf("no test tries the value %s", d.name)
		}
	}
}

// allValues has every value, but for those that take away what others need.
func allValues(t *testing.T) string {
	t.Helper()
	var values []string
	for _, e := range effects {
		if !strings.Contains(e.value, "create: false") {
			values = append(values, e.value)
		}
	}
	return merge(t, values...)
}

func TestChartGolden(t *testing.T) {
	golden(t, "chart.yaml", chart(t, ""))
	golden(t, "chart-all-values.yaml", chart(t, allValues(t)))
}

func TestBadValues(t *testing.T) {
	for _, c := range []struct{ values, want string }{
		{"vaultAdr: 'https://vault.example.com:8200'", "'vaultAdr' not allowed"},
		{"image: {name: leasehold}", "'name' not allowed"},
		{"image: {tag: 1.10}", "'/image/tag': got number, want string"},
		{"image: {digest: latest}", "/image/digest"},
		{"image: {registry: 'https://registry.example.com'}", "/image/registry"},
		{"image: {pullPolicy: Sometimes}", "/image/pullPolicy"},
		{"imagePullSecrets: [registry]", "/imagePullSecrets/0"},
		{"vaultAddr: 'vault.example.com:8200'", "/vaultAddr"},
		{"allowVaultAddr: 'https://*.example.com'", "/allowVaultAddr"},
		{"allowVaultAddr: ['*.example.com']", "/allowVaultAddr/0"},
		{"providers: []", "/providers"},
		{"providers: [vault.sock]", "/providers/0"},
		{"providers: [vault, vault]", "/providers"},
		{"providers: null", "missing property 'providers'"},
		{"image: null", "missing property 'image'"},
		{"metrics: {port: null}", "missing property 'port'"},
		{"logLevel: verbose", "/logLevel"},
		{"extraArgs: --strict", "/extraArgs"},
		{"extraArgs: [{strict: true}]", "/extraArgs/0"},
		{"env: {HTTPS_PROXY: 'http://proxy:3128'}", "/env"},
		{"volumes: [{secret: {secretName: vault-tls}}]", "/volumes/0"},
		{"volumeMounts: [{name: tls, mountPath: tls}]", "/volumeMounts/0/mountPath"},
		{"providersDir: run/providers", "/providersDir"},
		{"kubeletRootDir: /var/lib/kubelet/", "/kubeletRootDir"},
		{"stateMax: 32Mi", "/stateMax"},
		{"goMemLimit: 64Mi", "/goMemLimit"},
		{"resources: {memory: 64Mi}", "'memory' not allowed"},
		{"tolerations: [{operator: Always}]", "/tolerations/0/operator"},
		{"tolerations: {operator: Exists}", "/tolerations"},
		{"nodeSelector: {gpu: true}", "/nodeSelector/gpu"},
		{"affinity: {nodeAfinity: {}}", "'nodeAfinity' not allowed"},
		{"podAnnotations: {scrape: true}", "/podAnnotations/scrape"},
		{"podLabels: [team]", "/podLabels"},
		{"seLinuxOptions: {kind: spc_t}", "'kind' not allowed"},
		{"serviceAccount: {create: 'yes'}", "/serviceAccount/create"},
		{"rbac: true", "/rbac"},
		{"tokenRequest: {enabled: true}", "/tokenRequest"},
		{"metrics: {port: 80800}", "/metrics/port"},
		{"serviceMonitor: {interval: often}", "/serviceMonitor/interval"},

		{"extraArgs: [--allow-vault-addr=https://a]", "extraArgs: --allow-vault-addr is set by the value allowVaultAddr"},
		{"extraArgs: [-endpoint, /provider/a.sock]", "extraArgs: --endpoint is set by the value providers"},
		{"extraArgs: ['--health-addr=:9090']", "extraArgs: --health-addr is set by the value metrics.port"},
		{"extraArgs: [--kubelet-dir=/k]", "extraArgs: --kubelet-dir is set by the value kubeletRootDir"},
		{"extraArgs: [--no-kubelet-dir]", "extraArgs: --no-kubelet-dir is set by the value kubeletRootDir"},
		{"extraArgs: [-log-level=debug]", "extraArgs: --log-level is set by the value logLevel"},
		{"extraArgs: [--state-max=1]", "extraArgs: --state-max is set by the value stateMax"},
		{"extraArgs: [--vault-addr=https://a]", "extraArgs: --vault-addr is set by the value vaultAddr"},
		{"extraArgs: [--state-dir=/var/lib/leasehold]", "extraArgs: --state-dir is the folder /run/leasehold of the node, which the chart mounts"},
		{"env: [{name: GOMEMLIMIT, value: 1GiB}]", "env: GOMEMLIMIT is set by the value goMemLimit"},
		{"env: [{name: NODE_NAME, value: a}]", "env: NODE_NAME is set by the chart"},
		{"{tokenRequest: true, rbac: {create: false}}", "tokenRequest is a ClusterRole, and rbac.create is false"},
		{"serviceAccount: {create: false}", "serviceAccount.create is false, and serviceAccount.name names none that exists"},
	} {
		if _, _, err := standard.chart(c.values); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q in it", c.values, err, c.want)
		}
	}
}

// A default is taken away by null.
func TestNullValues(t *testing.T) {
	for value, gone := range map[string]string{
		"priorityClassName: null": "priorityClassName", "resources: null": "memory", "tolerations: null": "operator", "nodeSelector: null": "nodeSelector",
	} {
		if documents := chart(t, value); strings.Contains(documents, gone) || !strings.Contains(chart(t, ""), gone) {
			t.Errorf("with %s there is still %s", value, gone)
		}
	}
}

// As a part of another chart it is given that chart's global values.
func TestGlobalValues(t *testing.T) {
	if chart(t, "global: {team: secrets}") != chart(t, "") {
		t.Error("global values change what is rendered")
	}
}

// description is one row of the README's table.
type description struct{ name, text, standard string }

// described reads the chart's values with the comments above them.
func described(t *testing.T) []description {
	t.Helper()
	document, err := kyaml.Parse(read(t, "chart/values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var rows []description
	var walk func(prefix string, node *kyaml.Node)
	walk = func(prefix string, node *kyaml.Node) {
		for i := 0; i < len(node.Content); i += 2 {
			key, value := node.Content[i], node.Content[i+1]
			name := prefix + key.Value
			if key.HeadComment == "" { // a group of values
				walk(name+".", value)
				continue
			}
			value.Style = kyaml.FlowStyle
			standard, err := kyaml.NewRNode(value).String()
			if err != nil {
				t.Fatal(err)
			}
			if value.Value == "" && value.Kind == kyaml.ScalarNode {
				standard = `""`
			}
			text := strings.ReplaceAll(strings.TrimPrefix(key.HeadComment, "# "), "\n# ", " ")
			rows = append(rows, description{name, text, strings.TrimSpace(standard)})
		}
	}
	walk("", document.YNode())
	return rows
}

// The README's table of values is made of values.yaml.
func TestReadmeListsTheValues(t *testing.T) {
	table := "\n| value | meaning | default |\n|---|---|---|\n"
	for _, d := range described(t) {
		table += fmt.Sprintf("| `%s` | %s | `%s` |\n", d.name, d.text, d.standard)
	}
	const begin, end = "<!-- of chart/values.yaml -->\n", "\n<!-- end -->"
	text := read(t, "README.md")
	before, rest, _ := strings.Cut(text, begin)
	_, after, found := strings.Cut(rest, end)
	if !found {
		t.Fatalf("manifests/README.md has no place for the table: %s%s", begin, end)
	}
	want := before + begin + table + end + after
	if *update {
		if err := os.WriteFile(filepath.Join(manifests, "README.md"), []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if text != want {
		t.Error("the table of values in manifests/README.md is not that of values.yaml; go test ./... -update writes it")
	}
}

// The schema knows the values that there are, and no others.
func TestSchemaKnowsTheValues(t *testing.T) {
	type node struct {
		Properties map[string]*node
	}
	var schema node
	if err := json.Unmarshal([]byte(read(t, "chart/values.schema.json")), &schema); err != nil {
		t.Fatal(err)
	}
	delete(schema.Properties, "global")
	var known []string
	var walk func(prefix string, n *node)
	walk = func(prefix string, n *node) {
		for name, child := range n.Properties {
			if len(child.Properties) == 0 {
				known = append(known, prefix+name)
			}
			walk(prefix+name+".", child)
		}
	}
	walk("", &schema)
	var values []string
	for _, d := range described(t) {
		values = append(values, d.name)
	}
	if slices.Sort(known); !slices.Equal(known, slices.Sorted(slices.Values(values))) {
		t.Errorf("the schema knows\n%v\nand the values are\n%v", known, values)
	}
}

func parseValues(t *testing.T, values string) object {
	t.Helper()
	var parsed object
	if err := yaml.UnmarshalStrict([]byte(values), &parsed); err != nil {
		t.Fatalf("%s: %v", values, err)
	}
	return parsed
}

// leaves are the names of values that are given.
func leaves(t *testing.T, given object) []string {
	t.Helper()
	var names []string
	for _, d := range described(t) {
		keys := strings.Split(d.name, ".")
		last := len(keys) - 1
		if _, ok := at(given, keys[:last]...)[keys[last]]; ok {
			names = append(names, d.name)
		}
	}
	return names
}

// merge is what Helm makes of several files of values.
func merge(t *testing.T, values ...string) string {
	t.Helper()
	all := object{}
	for _, v := range values {
		all = chartutil.MergeTables(parseValues(t, v), all)
	}
	merged, err := yaml.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(merged)
}
