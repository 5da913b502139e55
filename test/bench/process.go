package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// machine describes this one, for the tables.
func machine() string {
	model := "unknown processor"
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if key, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	var memory syscall.Sysinfo_t
	_ = syscall.Sysinfo(&memory)
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%d x %s, %d GiB, Linux %s, %s; client, Vault, PostgreSQL and the API server share it",
		runtime.NumCPU(), model, (uint64(memory.Totalram)*uint64(memory.Unit))>>30, strings.TrimSpace(string(kernel)), runtime.Version())
}

// commit names what is measured; that documents differ from it makes no difference.
func commit(ctx context.Context) string {
	head, err := exec.CommandContext(ctx, "git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	changed, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--", ".", ":!docs").Output()
	if err != nil || len(changed) > 0 {
		return strings.TrimSpace(string(head)) + " and changes"
	}
	return strings.TrimSpace(string(head))
}

// pid is the provider's process.
func (s *stage) pid() int { return s.bed.State().Processes["provider"].PID }

// cpu is the processor time that a process has used.
func cpu(pid int) (time.Duration, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("reading a process's time: %w", err)
	}
	// After the name in brackets, which may hold anything, the 12th and 13th are the ticks in user and system mode.
	fields := strings.Fields(string(content[strings.LastIndexByte(string(content), ')')+1:]))
	if len(fields) < 13 {
		return 0, errors.New("reading a process's time: it is not as expected")
	}
	user, err := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	const tick = 10 * time.Millisecond
	return time.Duration(user+system) * tick, errors.Join(err, err2)
}

// usage is the processor time of the machine's programs, by name; of processes that ended nothing is known.
type usage map[string]time.Duration

func usageNow() (usage, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing the processes: %w", err)
	}
	all := make(usage)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		program, err := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
		used, err2 := cpu(pid)
		if errors.Join(err, err2) == nil { // it may have ended meanwhile
			all[strings.TrimSpace(string(program))] += used
		}
	}
	return all, nil
}

// during adds what is used while something is done.
func (u usage) during(load func() error) error {
	before, err := usageNow()
	if err == nil {
		err = load()
	}
	if err != nil {
		return err
	}
	after, err := usageNow()
	for program, used := range after {
		u[program] += used - before[program]
	}
	return err
}

// of names the programs that used most, each with its share of one among so many measurements.
func (u usage) of(measurements int) string {
	programs := slices.SortedFunc(maps.Keys(u), func(a, b string) int { return cmp.Compare(u[b], u[a]) })
	var text []string
	for _, p := range programs[:min(6, len(programs))] {
		text = append(text, fmt.Sprintf("%s %.2f s", p, u[p].Seconds()/float64(measurements)))
	}
	return strings.Join(text, ", ")
}

// usages are those of the two sides.
type usages struct{ floor, ours usage }

func newUsages() usages { return usages{floor: make(usage), ours: make(usage)} }

// notes compares the sides in what they did so many times.
func (u usages) notes(what string, times int) []string {
	return []string{
		fmt.Sprintf("processor time of %s, floor: %s", what, u.floor.of(times)),
		fmt.Sprintf("processor time of %s, Leasehold: %s", what, u.ours.of(times)),
	}
}

// ownCPU is the processor time that this process has used.
func ownCPU() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// memory is what a process has in memory, in bytes.
type memory struct{ anonymous, shared, resident int64 }

func memoryOf(pid int) (m memory, err error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, fmt.Errorf("reading a process's memory: %w", err)
	}
	for line := range strings.Lines(string(content)) {
		var kilobytes int64
		key, value, _ := strings.Cut(line, ":")
		if _, err := fmt.Sscanf(value, "%d kB", &kilobytes); err != nil {
			continue
		}
		switch key {
		case "RssAnon":
			m.anonymous = kilobytes << 10
		case "RssShmem":
			m.shared = kilobytes << 10
		case "VmRSS":
			m.resident = kilobytes << 10
		}
	}
	return m, nil
}

// bytesIn is what the files of a folder take up.
func bytesIn(folder string) (total int64, err error) {
	err = filepath.WalkDir(folder, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			total += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("measuring a folder: %w", err)
	}
	return total, nil
}

// connectionsTo counts a process's established TCP connections to an address of IPv4.
func connectionsTo(pid int, address string) (int, error) {
	remote, err := tcpEntry(address)
	if err != nil {
		return 0, err
	}
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	if err != nil {
		return 0, fmt.Errorf("reading connections: %w", err)
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return 0, fmt.Errorf("reading descriptors: %w", err)
	}
	own := map[string]bool{}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil {
			own[target] = true
		}
	}
	count := 0
	for line := range strings.Lines(string(table)) {
		// sl, local, remote, state (01: established), queues, timer, retransmits, uid, timeout, inode
		fields := strings.Fields(line)
		if len(fields) > 9 && fields[2] == remote && fields[3] == "01" && own["socket:["+fields[9]+"]"] {
			count++
		}
	}
	return count, nil
}

// tcpEntry is an address as /proc/net/tcp writes it: the bytes of the host in the machine's order, which is the reverse here.
func tcpEntry(address string) (string, error) {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		address = u.Host
	}
	at, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return "", fmt.Errorf("reading an address: %w", err)
	}
	ip := at.IP.To4()
	return strings.ToUpper(hex.EncodeToString([]byte{ip[3], ip[2], ip[1], ip[0]})) + fmt.Sprintf(":%04X", at.Port), nil
}

// metrics are what a process tells of itself, by name.
type metrics map[string]*dto.MetricFamily

func scrape(ctx context.Context, client *http.Client, address string) (metrics, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("reading metrics: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("reading metrics: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("reading metrics: %w", err)
	}
	return families, nil
}

// providerMetrics are the provider's.
func (s *stage) providerMetrics(ctx context.Context) (metrics, error) {
	return scrape(ctx, http.DefaultClient, "http://"+s.bed.State().Provider.HealthAddress+"/metrics")
}

// gauge is the only value of a metric.
func (m metrics) gauge(name string) float64 {
	family := m[name]
	if family == nil || len(family.GetMetric()) == 0 {
		return 0
	}
	return family.GetMetric()[0].GetGauge().GetValue()
}

// asked are the resources of the API that Leasehold speaks of, but for the Leases, which other parts renew all the time.
var asked = map[string]bool{"pods": true, "events": true, "secrets": true, "serviceaccounts": true, "secretproviderclasses": true}

// apiRequests counts what the API server has answered of the resources that Leasehold asks for, whoever asked, by verb and resource.
// Watches are counted when they end, and are left out.
func (s *stage) apiRequests(ctx context.Context) (map[string]float64, error) {
	body, err := s.bed.Client().CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the API server's metrics: %w", err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("reading the API server's metrics: %w", err)
	}
	counts := map[string]float64{}
	for _, m := range families["apiserver_request_total"].GetMetric() {
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		if asked[labels["resource"]] && labels["verb"] != "WATCH" {
			counts[labels["verb"]+" "+labels["resource"]] += m.GetCounter().GetValue()
		}
	}
	return counts, nil
}
