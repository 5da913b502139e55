//go:build e2e

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-csi/leasehold/internal/template/templatetest"
)

// renderedObjects show the credentials of a database role, and static secrets, in the forms that apps read.
func renderedObjects(role string) string {
	return fmt.Sprintf(`
- objectName: application.properties
  template: |
    {{- with secret "database/creds/%[1]s" }}
    spring.datasource.username={{ .Data.username }}
    spring.datasource.password={{ .Data.password }}
    {{- end }}
- objectName: .pgpass
  filePermission: 0600
  template: |
    {{ with secret "database/creds/%[1]s" }}*:*:*:{{ .Data.username }}:{{ .Data.password }}{{ end }}
- objectName: db_user
  secretPath: database/creds/%[1]s
  secretKey: username
- objectName: db_pass
  secretPath: database/creds/%[1]s
  secretKey: password
- objectName: app.env
  secretPath: secret/data/my-app
  format: dotenv
- objectName: app.json
  secretPath: secret/data/my-app
  format: json
- objectName: app.yaml
  secretPath: secret/data/my-app
  format: yaml
- objectName: app.ini
  secretPath: secret/data/my-app
  format: properties
- objectName: tls.pem
  secretPath: pki/issue/my-app
  method: PUT
  secretArgs: {common_name: app.example.test, ttl: 30m}
  format: pem
- objectName: keys
  secretPath: kv1/my-app
  secretKey: "*"
- objectName: missing
  secretPath: secret/data/not-there
  optional: true
`, role)
}

// renderedFiles are the files of renderedObjects.
var renderedFiles = []string{
	"application.properties", ".pgpass", "db_user", "db_pass", "app.env", "app.json", "app.yaml", "app.ini", "tls.pem", "keys/username", "keys/password",
}

// renderedClass makes a class "rendered" of them, which the driver syncs into a Secret. What is in Vault is not looked at again while a test
// runs.
func (p *place) renderedClass() {
	p.t.Helper()
	parameters := map[string]string{"roleName": "my-app-role", "refreshInterval": "1h", "syncedLeases": "revoke", "objects": renderedObjects(p.role)}
	p.apply(newClass("rendered", parameters, renderedFiles...))
}

// renderedRequests are what Vault is asked for at the first mount of that class.
func (p *place) renderedRequests() map[string]int {
	return map[string]int{
		"update auth/kubernetes/login": 1, "read database/creds/" + p.role: 1, "read kv1/my-app": 1, "read secret/data/my-app": 1,
		"read secret/data/not-there": 1, "update pki/issue/my-app": 1,
	}
}

// rendered are all files that a pod of that class shows.
func (p *place) rendered(pod *corev1.Pod) map[string]string {
	p.t.Helper()
	files := make(map[string]string)
	for _, name := range renderedFiles {
		files[name] = p.read(pod, volume, name)
	}
	return files
}

// templateClass makes a class of one file, which is rendered from text.
func (p *place) templateClass(name, text string) {
	p.t.Helper()
	p.class(name, map[string]string{"roleName": "my-app-role", "objects": "- objectName: file\n  template: '" + strings.ReplaceAll(text, "'", "''") + "'\n"})
}

// renders mounts templates and formats, whose files must show one set of credentials and one answer of each path. The driver syncs them
// all into a Secret, as they are.
func (s *suite) renders(t *testing.T) {
	p := s.newPlace(t, "renders")
	p.renderedClass()
	mark := s.auditMark(t)
	pod := p.run(newPod("renders", "rendered"))
	credentials := p.login(pod)
	for file, want := range map[string]string{
		"application.properties": "\nspring.datasource.username=" + credentials.user + "\nspring.datasource.password=" + credentials.password + "\n",
		".pgpass":                "*:*:*:" + credentials.user + ":" + credentials.password + "\n",
		"app.env":                "password='kv2-password'\nusername='kv2-user'\n",
		"app.json":               `{"password":"kv2-password","username":"kv2-user"}` + "\n",
		"app.yaml":               "password: kv2-password\nusername: kv2-user\n",
		"app.ini":                "password=kv2-password\nusername=kv2-user\n",
		"keys/username":          "kv1-user",
		"keys/password":          "kv1-password",
	} {
		if p.read(pod, volume, file) != want {
			t.Errorf("file %s is not what was asked for", file)
		}
	}
	files := p.rendered(pod)
	p.eventually(t, "the Secret is as the files are", func(ctx context.Context) error {
		secret, err := p.bed.Client().CoreV1().Secrets(p.ns).Get(ctx, "rendered", metav1.GetOptions{})
		for file, content := range files {
			if err == nil && string(secret.Data[strings.ReplaceAll(file, "/", ".")]) != content {
				err = errors.New(file + " is not")
			}
		}
		return err
	})
	if requests, want := s.audit(t, mark, p.ns), p.renderedRequests(); !maps.Equal(requests, want) {
		t.Errorf("Vault was asked %v, want %v", requests, want)
	}
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitNothing()
}

// refusesTemplates: what a template may not do, and where it fails, is told without what it read.
func (s *suite) refusesTemplates(t *testing.T) {
	p := s.newPlace(t, "templates")
	for name, tt := range map[string]struct{ template, complaint string }{
		"reaches": {`{{ env "VAULT_TOKEN" }}`, "function env is refused: it reads the environment"},
		"fails":   {`{{ with secret "secret/data/my-app" }}{{ parseInt .Data.data.password }}{{ end }}`, `object "file", line 1, column 42: function parseInt fails`},
		"greedy":  {`{{ range loop 1000000000 }}{{ sprig_sha256sum "x" }}{{ end }}`, "the template needs more memory than it may use"},
		"endless": {`{{ range loop 1000000000 }}{{ end }}`, "the template takes too long to compute"},
	} {
		p.templateClass(name, tt.template)
		p.create(newPod(name, name))
		p.awaitComplaint(name, tt.complaint)
	}
	p.deleteAll()
	p.awaitNothing()
}

// hostileTemplates has three tenants mount twenty templates that would take the node. Nobody else notices: what is mounted is
// republished as it was, a template of another namespace is rendered at its first try, and the provider lives on within its memory.
func (s *suite) hostileTemplates(t *testing.T) {
	quiet, late := s.newPlace(t, "neighbour"), s.newPlace(t, "newcomer")
	quiet.renderedClass()
	late.renderedClass()
	pod := quiet.run(newPod("mounted", "rendered"))
	files, held := quiet.rendered(pod), quiet.mustHold(1)
	was, mark := s.incarnation(t), s.auditMark(t)
	before, err := s.mounts(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	tenants := []*place{s.newPlace(t, "tenant-0"), s.newPlace(t, "tenant-1"), s.newPlace(t, "tenant-2")}
	says := make([]map[string]string, len(tenants)) // by pod
	n := 0
	for _, h := range templatetest.Hostile {
		i, name := n%len(tenants), fmt.Sprint("hostile-", n)
		if says[i] == nil {
			says[i] = make(map[string]string)
		}
		says[i][name] = h.Says
		tenants[i].templateClass(name, h.Text)
		tenants[i].create(newPod(name, name))
		n++
	}
	newcomer := late.run(newPod("newcomer", "rendered"))
	for i, p := range tenants {
		for name, says := range says[i] {
			p.awaitComplaint(name, `object "file"`, says)
		}
	}
	s.awaitMounts(t, before["OK"]+4) // the newcomer's, and republishes

	if now := s.incarnation(t); now != was {
		t.Errorf("the provider was %s, and is %s", was, now)
	}
	s.mustNotHaveRunOut(t)
	if requests := s.audit(t, mark, quiet.ns); len(requests) > 0 {
		t.Errorf("republishes asked Vault %v", requests)
	}
	quiet.mustStillHold(held)
	if !maps.Equal(quiet.rendered(pod), files) {
		t.Error("a republish changed what is mounted")
	}
	late.rendered(newcomer)
	if requests, want := s.audit(t, mark, late.ns), late.renderedRequests(); !maps.Equal(requests, want) {
		t.Errorf("Vault was asked %v, want %v", requests, want)
	}
	all := append(tenants, quiet, late)
	for _, p := range all {
		p.deleteAll()
	}
	for _, p := range all {
		p.awaitNothing()
	}
	quiet.mustNotComplain()
	late.mustNotComplain()
}

// mustNotHaveRunOut checks that the kernel killed nothing in the provider's container, with the memory limit of its manifest. Where the
// provider is a plain process it has none.
func (s *suite) mustNotHaveRunOut(t *testing.T) {
	t.Helper()
	if !s.hasKubelet() {
		return
	}
	pod, err := s.providerPod(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	limit := pod.Spec.Containers[0].Resources.Limits.Memory().Value()
	_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
	if got := memoryValue(t, id, `^(\d+)$`, "memory.limit_in_bytes", "memory.max"); got != limit || limit == 0 {
		t.Fatalf("the provider may use %d bytes of memory, its manifest says %d", got, limit)
	}
	if kills := memoryValue(t, id, `(?m)^oom_kill (\d+)$`, "memory.oom_control", "memory.events"); kills > 0 {
		t.Errorf("the kernel killed %d processes of the provider's container for want of memory", kills)
	}
	t.Logf("at most %d MiB of %d were in use, with what the kernel caches",
		memoryValue(t, id, `^(\d+)$`, "memory.max_usage_in_bytes", "memory.peak")>>20, limit>>20)
}

// memoryValue returns what the kernel counts of a container's memory, from a file that has one name in version 1 of cgroups and another
// in version 2.
func memoryValue(t *testing.T, container, pattern, one, two string) int64 {
	t.Helper()
	var content []byte
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, _ fs.DirEntry, _ error) error { // some go meanwhile
		if name := filepath.Base(path); (name == one || name == two) && strings.Contains(filepath.Base(filepath.Dir(path)), container) {
			content, _ = os.ReadFile(path)
			return fs.SkipAll
		}
		return nil
	})
	found := regexp.MustCompile(pattern).FindSubmatch(bytes.TrimSpace(content))
	if found == nil {
		t.Fatalf("%s and %s say nothing of container %s: %q", one, two, container, content)
	}
	value, err := strconv.ParseInt(string(found[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}
