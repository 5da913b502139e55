package spec_test

import (
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// TestTemplate: objects with the same template share what is rendered, and its Read is of no request.
func TestTemplate(t *testing.T) {
	c := validCall()
	c.params["objects"] = `
- {objectName: a, template: '{{ with secret "kv/a" }}{{ .Data.k }}{{ end }}', filePermission: 0600}
- objectName: b
  template: |-
    {{ with secret "kv/a" }}{{ .Data.k }}{{ end }}
- {objectName: c, template: x}
`
	o := c.mustParse(t).Spec.Objects
	if o[0].Template != `{{ with secret "kv/a" }}{{ .Data.k }}{{ end }}` || o[0].Mode != 0o600 || o[0].Read.Method != spec.Rendered || o[0].Read.Path != "" {
		t.Errorf("%+v", o[0])
	}
	if o[1].Read != o[0].Read || o[2].Read == o[0].Read {
		t.Errorf("reads %+v", o)
	}
}

func TestTemplateFaults(t *testing.T) {
	for name, test := range map[string]struct{ lines, fault string }{
		"empty":          {`template: ""`, "object \"f\": template is empty"},
		"no text":        {`template: [x]`, "template is not a plain text"},
		"with a path":    {"template: x\n  secretPath: kv/a", "secretPath has no place beside template"},
		"with a key":     {"template: x\n  secretKey: k", "secretKey has no place beside template"},
		"with password":  {"template: x\n  password: canary", "password has no place beside template"},
		"with a pace":    {"template: x\n  refreshInterval: 1m", "refreshInterval has no place beside template"},
		"reaches out":    {`template: '{{ file "canary" }}'`, "template, line 1, column 4: function file is refused: it reads files"},
		"does not parse": {`template: '{{ if'`, "template, line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			c := validCall()
			c.params["objects"] = "- objectName: f\n  " + test.lines
			_, err := c.parse(t)
			if got := faults(t, err); len(got) != 1 || !strings.Contains(got[0], test.fault) || strings.Contains(got[0], "canary") {
				t.Errorf("faults %q, want %q", got, test.fault)
			}
		})
	}
}
