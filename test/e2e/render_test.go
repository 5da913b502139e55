//go:build e2e

package e2e_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
- objectName: keys
  secretPath: kv1/my-app
  secretKey: "*"
- objectName: missing
  secretPath: secret/data/not-there
  optional: true
`, role)
}

// renders mounts templates and formats, whose files must show one set of credentials and one answer of each path.
func (s *suite) renders(t *testing.T) {
	p := s.newPlace(t, "renders")
	p.class("rendered", map[string]string{"roleName": "my-app-role", "objects": renderedObjects(p.role)})
	mark := s.auditMark(t)
	pod := p.run(newPod("renders", "rendered"))
	credentials := p.login(pod)
	for file, want := range map[string]string{
		"application.properties": "\nspring.datasource.username=" + credentials.user + "\nspring.datasource.password=" + credentials.password + "\n",
		".pgpass":                "*:*:*:" + credentials.user + ":" + credentials.password + "\n",
		"app.env":                "password='kv2-password'\nusername='kv2-user'\n",
		"app.json":               `{"password":"kv2-password","username":"kv2-user"}` + "\n",
		"keys/username":          "kv1-user",
		"keys/password":          "kv1-password",
	} {
		if p.read(pod, volume, file) != want {
			t.Errorf("file %s is not what was asked for", file)
		}
	}
	requests := s.audit(t, mark, p.ns)
	want := map[string]int{
		"update auth/kubernetes/login": 1, "read database/creds/" + p.role: 1, "read kv1/my-app": 1, "read secret/data/my-app": 1, "read secret/data/not-there": 1,
	}
	if !maps.Equal(requests, want) {
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
		p.class(name, map[string]string{"roleName": "my-app-role", "objects": "- objectName: file\n  template: '" + strings.ReplaceAll(tt.template, "'", "''") + "'\n"})
		p.create(newPod(name, name))
		p.awaitComplaint(name, tt.complaint)
	}
	p.deleteAll()
	p.awaitNothing()
}
