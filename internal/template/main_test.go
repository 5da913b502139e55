package template_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/template"
)

// The children of a test are its own binary: those that render, and some that a tenant would have taken over.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 {
		if taken, ok := takenOver[os.Args[1]]; ok {
			taken()
			os.Exit(0)
		}
	}
	os.Exit(run(m))
}

// self is the binary of the children.
var self = "/proc/self/exe"

// run runs the tests. The threads of C, and the race detector, do not fit into a child's limits: the binary is built without, and so are
// the children of a test that is not.
func run(m *testing.M) int {
	if cgo {
		dir, err := os.MkdirTemp("", "")
		if err != nil {
			panic(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		self = filepath.Join(dir, "plain.test")
		build := exec.Command("go", "test", "-c", "-o", self, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			panic(string(out))
		}
	}
	return m.Run()
}

// newRenderer returns one of children that this test is; a patience of 0 is the product's own.
func newRenderer(argument string, patience time.Duration) *template.Renderer {
	return template.NewRenderer(self, argument, patience)
}

const patient = time.Minute

var takenOver = map[string]func(){
	"mute":    wait,
	"deaf":    func() { _, _ = io.WriteString(os.Stdout, "{}\n"); wait() },
	"garbage": func() { _, _ = io.WriteString(os.Stdout, "\x00\xff{]") },
	"flood": func() {
		for chunk := bytes.Repeat([]byte("x"), 1<<16); ; {
			_, _ = os.Stdout.Write(chunk)
		}
	},
	"two results":    func() { say(`{"Contents":"eA=="}{"Contents":"eA=="}`) },
	"unknown field":  func() { say(`{"Contents":"eA==","Path":"/etc"}`) },
	"unknown call":   func() { say(`{"Missing":{"Func":"plugin","Args":["canary"]}}`) },
	"no call":        func() { say(`{"Missing":{}}`) },
	"hostile path":   func() { say(`{"Missing":{"Func":"secret","Args":["../../sys/raw"]}}`) },
	"unknown use":    func() { say(`{"Contents":"eA==","Used":["canary"]}`) },
	"failure's text": func() { say(`{"Failure":{"Kind":"canary"}}`) },
	"failure's name": func() { say(`{"Failure":{"Kind":"function","Func":"canary"}}`) },
	"all of it":      func() { say(`{"Contents":"eA==","Failure":{"Kind":""}}`) },
	"crash":          func() { _, _ = io.WriteString(os.Stderr, "panic: canary"); os.Exit(2) },
	"exit":           func() { os.Exit(7) },
	"grab":           grab,
	"endless needs":  func() { say(`{"Missing":{"Func":"secret","Args":["kv/a"]}}`) },
}

func say(text string) {
	_, _ = io.Copy(io.Discard, os.Stdin)
	_, _ = io.WriteString(os.Stdout, text)
}

// wait reads nothing and says nothing.
func wait() { <-time.After(time.Hour) }

// answers is a Reader of fixed answers, by path.
func answers(bodies map[string]string) template.Reader {
	return func(_ context.Context, reads []spec.Read) (map[spec.Read]template.Reply, error) {
		replies := make(map[spec.Read]template.Reply)
		for _, r := range reads {
			body, ok := bodies[r.Path]
			if !ok {
				return nil, errors.New("no " + r.Path)
			}
			replies[r] = template.Reply{Body: []byte(body)}
		}
		return replies, nil
	}
}

// render renders one template.
func render(tb testing.TB, text string, read template.Reader) (string, error) {
	tb.Helper()
	return renderWith(tb, newRenderer("", patient), text, read)
}

func renderWith(tb testing.TB, r *template.Renderer, text string, read template.Reader) (string, error) {
	tb.Helper()
	out, err := r.Render(tb.Context(), "shop", []template.Template{{Object: "file", Text: text}}, read)
	if err != nil {
		return "", err
	}
	return string(out[0].Contents), nil
}
