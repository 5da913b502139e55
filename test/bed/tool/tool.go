// Package tool builds the servers that the tests run against, from the modules below test/tools, and keeps the
// results in a cache outside the checkout, so that only a change of versions, sources or flags costs a build.
package tool

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Module is one Go module below test/tools, whose `tool` directives and own main packages are what is built.
type Module struct {
	// Name is the module's folder below test/tools.
	Name string
	// Packages are what to build; "tool" is all that the module's go.mod calls a tool.
	Packages []string
	// Flags are added to `go build`.
	Flags []string
}

// The modules. Two of them need flags: Kubernetes' programs take their version from the linker, and Vault without its
// `minimal` tag brings in every cloud's client library.
var (
	Kubernetes = Module{Name: "kubernetes", Packages: []string{"tool"}, Flags: []string{"-ldflags", "-s -w" +
		" -X k8s.io/component-base/version.gitVersion=v1.35.4" +
		" -X k8s.io/component-base/version.gitMajor=1" +
		" -X k8s.io/component-base/version.gitMinor=35"}}
	Etcd   = Module{Name: "etcd", Packages: []string{"tool"}}
	Vault  = Module{Name: "vault", Packages: []string{"tool"}, Flags: []string{"-tags", "minimal", "-ldflags", "-s -w"}}
	Driver = Module{Name: "driver", Packages: []string{"tool", "./..."}}
	// Collector is OpenTelemetry's.
	Collector = Module{Name: "collector", Packages: []string{"."}, Flags: []string{"-ldflags", "-s -w"}}
	App       = Module{Name: "app", Packages: []string{"."}}
	Image     = Module{Name: "image", Packages: []string{"."}}
	Helm      = Module{Name: "manifests", Packages: []string{"tool"}, Flags: []string{"-ldflags", "-s -w"}}
)

// Cache returns the folder that holds what was built: $LEASEHOLD_CACHE, or else "leasehold" in the user's cache folder.
func Cache() (string, error) {
	if dir := os.Getenv("LEASEHOLD_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache folder (LEASEHOLD_CACHE sets it): %w", err)
	}
	return filepath.Join(dir, "leasehold"), nil
}

// Key returns a name for what building m would give: it changes with the flags, the Go version and every file of the
// module in folder dir except its tests.
func (m Module) Key(dir string) (string, error) {
	sum := sha256.New()
	fmt.Fprintf(sum, "%q %q %s %s/%s\n", m.Packages, m.Flags, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || strings.HasSuffix(path, "_test.go") {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		fmt.Fprintf(sum, "%s %x\n", relative, sha256.Sum256(content))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("hashing module %s: %w", m.Name, err)
	}
	return m.Name + "-" + hex.EncodeToString(sum.Sum(nil))[:16], nil
}

// Build returns the folder that holds the module's programs, building them when the cache does not have them. The
// module is below root, the project's top folder; the compiler's messages go to log, after a line that says what is built.
func (m Module) Build(ctx context.Context, root, cache string, log io.Writer) (string, error) {
	source := filepath.Join(root, "test", "tools", m.Name)
	key, err := m.Key(source)
	if err != nil {
		return "", err
	}
	programs := filepath.Join(cache, key)
	if _, err := os.Stat(programs); err == nil {
		return programs, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("making the cache folder: %w", err)
	}
	unlock, err := lock(filepath.Join(cache, m.Name+".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(programs); err == nil {
		return programs, nil
	}
	return programs, m.build(ctx, source, programs, log)
}

// build compiles next to the final folder and renames, so that an interrupted build is never taken for a whole one.
func (m Module) build(ctx context.Context, source, programs string, log io.Writer) error {
	partial := programs + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return fmt.Errorf("removing an interrupted build: %w", err)
	}
	if err := os.MkdirAll(partial, 0o755); err != nil {
		return fmt.Errorf("making the build folder: %w", err)
	}
	fmt.Fprintf(log, "  … building %s, once: it is kept in %s\n", m.Name, filepath.Dir(programs))
	args := append([]string{"build", "-v", "-trimpath", "-buildvcs=false", "-o", partial + string(filepath.Separator)}, m.Flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, m.Packages...)...)
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if err := runTold(cmd, log); err != nil {
		return errors.Join(fmt.Errorf("building module %s: %w", m.Name, err), os.RemoveAll(partial))
	}
	if err := os.Rename(partial, programs); err != nil {
		return fmt.Errorf("keeping the build of module %s: %w", m.Name, err)
	}
	return nil
}

// runTold runs `go build -v` and tells every 20 s how far it is.
func runTold(cmd *exec.Cmd, log io.Writer) error {
	seen := &compiled{log: log, start: time.Now()}
	cmd.Stdout, cmd.Stderr = seen, seen
	over := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		ticker := time.NewTicker(20 * time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-over:
				return
			case <-ticker.C:
				fmt.Fprintf(log, "    … %s\n", seen)
			}
		}
	})
	err := cmd.Run()
	close(over)
	telling.Wait()
	return err
}

// compiled counts what `go build -v` names, modules and packages, and passes on what else it says.
type compiled struct {
	log   io.Writer
	start time.Time

	mu                sync.Mutex
	modules, packages int
	line              string // what is there of the last one
}

func (c *compiled) Write(output []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := strings.SplitAfter(c.line+string(output), "\n")
	c.line = lines[len(lines)-1]
	for _, line := range lines[:len(lines)-1] {
		switch {
		case strings.HasPrefix(line, "go: downloading "):
			c.modules++
		case !strings.Contains(line, " "):
			c.packages++
		default:
			if _, err := io.WriteString(c.log, line); err != nil {
				return 0, err
			}
		}
	}
	return len(output), nil
}

func (c *compiled) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("%.0f s: %d modules downloaded, %d packages compiled", time.Since(c.start).Seconds(), c.modules, c.packages)
}

// lock makes beds that start together wait for one build instead of making two.
func lock(path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the build lock: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("taking the build lock: %w", err), file.Close())
	}
	return func() { _ = file.Close() }, nil
}
