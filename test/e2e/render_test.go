//go:build e2e

package e2e_test

import (
	"context"
	"errors"
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

// renders mounts templates and formats, whose files must show one set of credentials and one answer of each path. The driver syncs them
// all into a Secret, as they are.
func (s *suite) renders(t *testing.T) {
	p := s.newPlace(t, "renders")
	parameters := map[string]string{"roleName": "my-app-role", "syncedLeases": "revoke", "objects": renderedObjects(p.role)}
	p.apply(newClass("rendered", parameters, renderedFiles...))
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
	requests := s.audit(t, mark, p.ns)
	p.eventually(t, "the Secret is as the files are", func(ctx context.Context) error {
		secret, err := p.bed.Client().CoreV1().Secrets(p.ns).Get(ctx, "rendered", metav1.GetOptions{})
		for _, file := range renderedFiles {
			if err == nil && string(secret.Data[strings.ReplaceAll(file, "/", ".")]) != p.read(pod, volume, file) {
				err = errors.New(file + " is not")
			}
		}
		return err
	})
	want := map[string]int{
		"update auth/kubernetes/login": 1, "read database/creds/" + p.role: 1, "read kv1/my-app": 1, "read secret/data/my-app": 1,
		"read secret/data/not-there": 1, "update pki/issue/my-app": 1,
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
