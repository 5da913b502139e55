package template_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/template"
	"github.com/leasehold-csi/leasehold/internal/template/templatetest"
)

const someone = `{{ with secret "kv/a" }}{{ .Data.a }}{{ end }}`

// TestHostile renders them one by one, to see what is said. Only those that end by time alone are not waited for.
func TestHostile(t *testing.T) {
	for name, h := range templatetest.Hostile {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			patience := time.Minute
			if h.Says == templatetest.TooSlow {
				patience = time.Second
			}
			_, err := renderWith(t, newRenderer("", patience), h.Text, answers(nil))
			e, ok := errors.AsType[*template.Error](err)
			if !ok || e.Object != "file" || !strings.Contains(e.Problem, h.Says) {
				t.Errorf("%v, want %q", err, h.Says)
			}
		})
	}
}

// TestCPUTime is the child's own limit, not its parent's patience.
func TestCPUTime(t *testing.T) {
	if testing.Short() {
		t.Skip("takes five seconds of CPU time")
	}
	t.Parallel()
	_, err := renderWith(t, newRenderer("", time.Minute), templatetest.Hostile["endless range"].Text, answers(nil))
	if err == nil || !strings.Contains(err.Error(), templatetest.TooSlow) {
		t.Error(err)
	}
}

// grab limits itself as a child does, takes all the memory that it can get as Go's runtime does, in the place of what is reserved, and
// says how much that was.
func grab() {
	mapAt := func(at, size uintptr, protection, flags int) (uintptr, syscall.Errno) {
		start, _, errno := syscall.Syscall6(syscall.SYS_MMAP, at, size, uintptr(protection), uintptr(flags|syscall.MAP_ANON|syscall.MAP_PRIVATE), ^uintptr(0), 0)
		return start, errno
	}
	start, errno := mapAt(0, 1<<30, syscall.PROT_NONE, 0)
	if errno != 0 || template.Limit() != nil {
		os.Exit(1)
	}
	got, before := uintptr(0), uintptr(template.Heap())
	for size := uintptr(1 << 29); size >= 1<<16; {
		if _, errno := mapAt(start+got, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_FIXED); errno != 0 {
			size /= 2
			continue
		}
		got += size
	}
	fmt.Print(before + got)
}

// TestMemory bounds it piece by piece: nothing jumps over the limit.
func TestMemory(t *testing.T) {
	out, err := exec.Command(self, "grab").Output()
	if err != nil {
		t.Fatal(err)
	}
	got, err := strconv.Atoi(string(out))
	if err != nil || got > template.Memory || got < template.Memory-template.Piece {
		t.Errorf("a child has %s bytes, not %d, %v", out, template.Memory, err)
	}
}

// TestHostileTenants has twenty such templates rendered at once for three namespaces, and a neighbour's again and again meanwhile.
func TestHostileTenants(t *testing.T) {
	r := newRenderer("", 0)
	neighbour := func() time.Duration {
		began := time.Now()
		out, err := r.Render(t.Context(), "neighbour", []template.Template{{Object: "file", Text: someone}}, answers(map[string]string{"kv/a": `{"data":{"a":"b"}}`}))
		if err != nil || string(out[0].Contents) != "b" {
			t.Errorf("the neighbour: %v", err)
		}
		return time.Since(began)
	}
	alone := neighbour()
	before := maxRSS(t)
	var texts []string
	for _, h := range templatetest.Hostile {
		texts = append(texts, h.Text)
	}
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			_, err := r.Render(t.Context(), fmt.Sprintf("tenant-%d", i%3), []template.Template{{Object: "file", Text: texts[i%len(texts)]}}, answers(nil))
			if err == nil {
				t.Errorf("%.40q was rendered", texts[i%len(texts)])
			}
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	var memory int64
	var most int
	watch := time.NewTicker(time.Millisecond)
	defer watch.Stop()
	var watched sync.WaitGroup
	watched.Go(func() {
		for {
			select {
			case <-watch.C:
				kib, children := anonymous(t)
				memory, most = max(memory, kib), max(most, children)
			case <-done:
				return
			}
		}
	})
	var worst time.Duration
	turns := 0
	for ended := false; !ended; turns++ {
		worst = max(worst, neighbour())
		select {
		case <-done:
			ended = true
		default:
		}
	}
	watched.Wait()
	grown := maxRSS(t) - before
	t.Logf("the neighbour waited at most %v in %d turns, alone %v; at most %d children had %d KiB together, and their parent took %d KiB more",
		worst.Round(time.Millisecond), turns, alone.Round(time.Millisecond), most, memory, grown)
	if worst > time.Minute { // each turn takes as long as its template may, and there are several at once
		t.Errorf("the neighbour waited for %v", worst)
	}
	const kib, beside = 1 << 10, 5 << 20 // what a child has beside its heap
	if memory*kib > template.PerNode*(template.Memory+beside) {
		t.Errorf("the children have %d KiB", memory)
	}
	if most > template.PerNode {
		t.Errorf("%d children", most)
	}
	if grown*kib > 64<<20 { // the race detector's share included
		t.Errorf("the parent grew by %d KiB", grown)
	}
}

// maxRSS is the largest RSS so far of this process, in KiB.
func maxRSS(t *testing.T) int64 {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return usage.Maxrss
}

// anonymous is the memory of the children that run at the same time, in KiB, without that which they share with this process.
func anonymous(t *testing.T) (kib int64, children int) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	renders := func(pid string) bool {
		line, _ := os.ReadFile("/proc/" + pid + "/cmdline") // it may have ended, or still be this process
		return strings.Contains(string(line), template.Argument)
	}
	memory := make(map[string]int64)
	for _, task := range tasks {
		pids, _ := os.ReadFile(task) // the thread may have ended
		for pid := range strings.FieldsSeq(string(pids)) {
			status, _ := os.ReadFile("/proc/" + pid + "/status")
			parts := rssAnon.FindSubmatch(status)
			if parts == nil || !renders(pid) {
				continue
			}
			if memory[pid], err = strconv.ParseInt(string(parts[1]), 10, 64); err != nil {
				t.Fatal(err)
			}
		}
	}
	for pid, used := range memory {
		if renders(pid) { // else its place may have been another's when that was counted
			kib += used
			children++
		}
	}
	return kib, children
}

var rssAnon = regexp.MustCompile(`(?m)^RssAnon:\s+(\d+) kB$`)

// TestTakenOver has children that a tenant took over: nothing that they say comes through, and nothing of them stays.
func TestTakenOver(t *testing.T) {
	before := descriptors(t)
	for name := range takenOver {
		t.Run(name, func(t *testing.T) {
			reads := 0
			read := func(_ context.Context, wanted []spec.Read) (map[spec.Read]template.Reply, error) {
				replies := make(map[spec.Read]template.Reply)
				for _, w := range wanted {
					reads++
					replies[w] = template.Reply{Body: []byte(`{"data":{"a":"` + strings.Repeat("x", 200_000) + `"}}`)} // more than a pipe holds
				}
				return replies, nil
			}
			got, err := renderWith(t, newRenderer(name, time.Second), someone, read)
			if err == nil || strings.Contains(err.Error(), "canary") {
				t.Errorf("%q, %v", got, err)
			}
			if reads > 1 {
				t.Errorf("%d reads", reads)
			}
			t.Log(err)
		})
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); !errors.Is(err, syscall.ECHILD) {
		t.Errorf("a child is left: %d, %v", pid, err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// TestCanceled ends the child of a Mount that nobody waits for any more.
func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	read := func(context.Context, []spec.Read) (map[spec.Read]template.Reply, error) {
		time.AfterFunc(100*time.Millisecond, cancel)
		return map[spec.Read]template.Reply{{Method: "GET", Path: "kv/a"}: {Body: []byte(`{"data":{"a":"b"}}`)}}, nil
	}
	_, err := newRenderer("mute", time.Minute).Render(ctx, "shop", []template.Template{{Object: "file", Text: someone}}, read)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the mount's time was up") {
		t.Error(err)
	}
}

// TestReads bounds how many reads there are, before they are made.
func TestReads(t *testing.T) {
	made := 0
	read := func(_ context.Context, wanted []spec.Read) (map[spec.Read]template.Reply, error) {
		replies := make(map[spec.Read]template.Reply)
		for _, w := range wanted {
			made++
			replies[w] = template.Reply{Body: []byte(`{"data":{"a":"b"}}`)}
		}
		return replies, nil
	}
	for reads, want := range map[int]string{template.MaxReads: "", template.MaxReads + 1: "may make 64 reads"} {
		for kind, text := range map[string]string{
			"told beforehand": func() string {
				var text strings.Builder
				for i := range reads {
					fmt.Fprintf(&text, `{{ secret "kv/%d" }}`, i)
				}
				return text.String()
			}(),
			"found on the way": `{{ range loop ` + strconv.Itoa(reads) + ` }}{{ secret (printf "kv/%d" .) }}{{ end }}`,
		} {
			made = 0
			_, err := render(t, text, read)
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%d reads, %s: %v", reads, kind, err)
			}
			if made > template.MaxReads {
				t.Errorf("%d reads, %s: %d were made", reads, kind, made)
			}
		}
	}
}
