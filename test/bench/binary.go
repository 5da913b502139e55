package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// binaryRow is the row of what the binary's size is made of.
const binaryRow = "binary"

// dependencies are the packages that make most of the binary.
var dependencies = []string{
	"google.golang.org/grpc", "k8s.io/client-go/kubernetes", "github.com/hashicorp/vault/api",
	"github.com/prometheus/client_golang/prometheus/promhttp", "go.etcd.io/bbolt", "sigs.k8s.io/yaml",
}

// binaryRows builds the binary with and without what `make build` leaves out, and programs that do nothing but hold one dependency.
func binaryRows(ctx context.Context, o options) ([]result, error) {
	if o.short || !o.rows.MatchString(binaryRow) {
		return nil, nil
	}
	dir, err := os.MkdirTemp("", "leasehold-size")
	if err != nil {
		return nil, fmt.Errorf("making a folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	r := result{Row: binaryRow, Title: "size of the binary", Commit: commit(ctx), Date: time.Now().Format(time.DateOnly), Machine: machine()}
	measure := func(what, flags, program string) (float64, error) {
		size, err := builtSize(ctx, filepath.Join(dir, "out"), flags, program)
		r.Checks = append(r.Checks, told(what, "MB", float64(size)/1e6))
		return float64(size) / 1e6, err
	}
	size, err := measure("as built, -s -w", "-s -w", "./cmd/leasehold")
	if err == nil {
		r.Checks[0] = most("as built, -s -w", "MB", once(size), 60)
		_, err = measure("with symbols", "", "./cmd/leasehold")
	}
	for _, d := range append([]string{""}, dependencies...) {
		if err != nil {
			return nil, err
		}
		program := filepath.Join(dir, "main.go")
		text, what := "package main\n\nfunc main() {}\n", "an empty program"
		if d != "" {
			text, what = fmt.Sprintf("package main\n\nimport _ %q\n\nfunc main() {}\n", d), "an empty program that imports "+strings.TrimPrefix(d, "github.com/")
		}
		if err = os.WriteFile(program, []byte(text), 0o600); err == nil {
			_, err = measure(what, "-s -w", program)
		}
	}
	return []result{r}, err
}

func builtSize(ctx context.Context, out, flags, program string) (int64, error) {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", flags, "-o", out, program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("building %s: %w\n%s", program, err, output)
	}
	return fileSize(out)
}
