package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// benchmarkRows runs the Go benchmarks that measure single parts, on a store with up to 100,000 leases among others.
func benchmarkRows(ctx context.Context, o options) ([]result, error) {
	if o.short || !o.rows.MatchString(benchmarkRow) {
		return nil, nil
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^Benchmark(Growth|Renewal|Republish|Commit|CommitAfterEnds|Batching|Render|Formats|Files)$", "-benchmem", "-timeout", "1h",
		"./internal/keeper", "./internal/store", "./provider", "./internal/render", "./internal/template")
	if o.env != "" {
		cmd.Env = append(os.Environ(), o.env)
	}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("running the Go benchmarks: %w\n%s", err, output.String())
	}
	fmt.Print(output.String())
	r := result{Row: benchmarkRow, Title: "Go benchmarks", Commit: commit(ctx), Date: time.Now().Format(time.DateOnly), Machine: machine(), Variant: o.variant}
	for line := range strings.Lines(output.String()) {
		r.Checks = append(r.Checks, benchmarkLine(line)...)
	}
	return []result{r}, nil
}

// benchmarkLine reads a benchmark's line: its name, how often it ran, and pairs of a value and a unit. Any other line is nothing.
func benchmarkLine(line string) (checks []check) {
	fields := strings.Fields(line)
	if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
		return nil
	}
	name := strings.TrimPrefix(fields[0], "Benchmark")
	if i := strings.LastIndexByte(name, '-'); i > 0 { // how many processors it had
		name = name[:i]
	}
	for i := 2; i+1 < len(fields); i += 2 {
		value, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return checks
		}
		c := told(name, fields[i+1], value)
		if fields[i+1] == percentOfCore && strings.Contains(name, "100000") {
			c = most(name, fields[i+1], once(value), 5)
		}
		checks = append(checks, c)
	}
	return checks
}

// percentOfCore is the unit of what the renewals of credentials of one hour take.
const percentOfCore = "%core"

func fileSize(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("measuring the binary: %w", err)
	}
	return info.Size(), nil
}
