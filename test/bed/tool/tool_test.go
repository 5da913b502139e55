package tool_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/test/bed/tool"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// newModule makes a project with one tool module whose program prints a word, and returns both folders.
func newModule(t *testing.T) (root, module string) {
	t.Helper()
	root = t.TempDir()
	module = filepath.Join(root, "test", "tools", "hello")
	write(t, filepath.Join(module, "go.mod"), "module example.com/hello\n\ngo 1.26.0\n")
	write(t, filepath.Join(module, "main.go"), "package main\n\nfunc main() { print(\"hello\") }\n")
	return root, module
}

func TestKeyChangesWithWhatIsBuilt(t *testing.T) {
	_, dir := newModule(t)
	module := tool.Module{Name: "hello", Packages: []string{"."}}
	key := func(m tool.Module) string {
		t.Helper()
		key, err := m.Key(dir)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	seen := map[string]string{key(module): "the first"}
	different := func(change, key string) {
		t.Helper()
		if earlier, ok := seen[key]; ok {
			t.Errorf("after %s the key is still that of %s", change, earlier)
		}
		seen[key] = change
	}
	different("other flags", key(tool.Module{Name: "hello", Packages: []string{"."}, Flags: []string{"-tags", "x"}}))
	different("other packages", key(tool.Module{Name: "hello", Packages: []string{"./..."}}))
	write(t, filepath.Join(dir, "go.sum"), "example.com/a v1.0.0 h1:x\n")
	different("a go.sum", key(module))
	write(t, filepath.Join(dir, "sub", "sub.go"), "package sub\n")
	different("a new file", key(module))

	before := key(module)
	write(t, filepath.Join(dir, "main_test.go"), "package main\n")
	if after := key(module); after != before {
		t.Error("a test file changed the key")
	}
}

func TestBuildOnce(t *testing.T) {
	root, _ := newModule(t)
	cache := filepath.Join(t.TempDir(), "cache")
	module := tool.Module{Name: "hello", Packages: []string{"."}}

	var log bytes.Buffer
	programs, err := module.Build(t.Context(), root, cache, &log)
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	program := filepath.Join(programs, "hello")
	first, err := os.Stat(program)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := module.Build(t.Context(), root, cache, &log); err != nil {
		t.Fatal(err)
	}
	second, err := os.Stat(program)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(first, second) {
		t.Error("the second build built again")
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	root, dir := newModule(t)
	write(t, filepath.Join(dir, "main.go"), "package main\n\nfunc main() { nonsense }\n")
	cache := filepath.Join(t.TempDir(), "cache")
	module := tool.Module{Name: "hello", Packages: []string{"."}}

	var log bytes.Buffer
	programs, err := module.Build(t.Context(), root, cache, &log)
	if err == nil {
		t.Fatal("a build that cannot succeed did")
	}
	if !bytes.Contains(log.Bytes(), []byte("nonsense")) {
		t.Errorf("the log does not show the compiler's message:\n%s", log.String())
	}
	for _, path := range []string{programs, programs + ".partial"} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is there after a failed build", path)
		}
	}
}

func TestABuildTellsWhatItComplainsOf(t *testing.T) {
	root, dir := newModule(t)
	write(t, filepath.Join(dir, "main.go"), "package main\n\nfunc main() { nothing() }\n")
	var log bytes.Buffer
	_, err := tool.Module{Name: "hello", Packages: []string{"."}}.Build(t.Context(), root, t.TempDir(), &log)
	if err == nil || !strings.Contains(log.String(), "main.go:3:15: undefined: nothing") || strings.Contains(log.String(), "\nexample.com/hello\n") {
		t.Errorf("error %v, and told was\n%s", err, &log)
	}
}
