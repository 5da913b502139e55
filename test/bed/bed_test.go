package bed_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/leasehold-csi/leasehold/test/bed"
)

// writeState makes a folder that looks like that of a bed which did not come up.
func writeState(t *testing.T, dir string, state map[string]any) {
	t.Helper()
	state["form"], state["dir"] = bed.Light, dir
	content, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bed.json"), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// sleeper starts a process that would live for long, and returns it with its start time as the kernel tells it.
func sleeper(t *testing.T, env ...string) (*exec.Cmd, uint64) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sleep", "600")
	cmd.Env = env
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, startTime(t, cmd.Process.Pid)
}

func startTime(t *testing.T, pid int) uint64 {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	started, err := strconv.ParseUint(strings.Fields(after)[19], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return started
}

func running(t *testing.T, cmd *exec.Cmd) bool {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/stat")
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}

func TestDownEndsOnlyWhatTheBedStarted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bed")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	recorded, recordedStart := sleeper(t)
	stranger, strangerStart := sleeper(t)
	forgotten, _ := sleeper(t, "LEASEHOLD_BED="+dir)
	other, _ := sleeper(t, "LEASEHOLD_BED="+dir+"-2")
	writeState(t, dir, map[string]any{"processes": map[string]any{
		"etcd": map[string]any{"args": []string{"sleep"}, "pid": recorded.Process.Pid, "started": recordedStart},
		// The process that was recorded has ended, and its number was given to a stranger.
		"vault": map[string]any{"args": []string{"sleep"}, "pid": stranger.Process.Pid, "started": strangerStart - 1},
	}})

	b, err := bed.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if alive := b.Alive(); !alive["etcd"] || alive["vault"] {
		t.Errorf("alive: %v, want etcd and not vault", alive)
	}
	if err := b.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if running(t, recorded) {
		t.Error("a recorded process still runs")
	}
	if running(t, forgotten) {
		t.Error("a process that a crash kept out of bed.json still runs")
	}
	if !running(t, stranger) {
		t.Error("a stranger with a recorded number was ended")
	}
	if !running(t, other) {
		t.Error("a process of another bed was ended")
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the bed's folder is still there: %v", err)
	}
	if err := b.Down(t.Context()); err != nil {
		t.Errorf("taking it down again: %v", err)
	}
}

func TestStopUsesTheOrderlySignal(t *testing.T) {
	dir := t.TempDir()
	cmd, started := sleeper(t)
	writeState(t, dir, map[string]any{"processes": map[string]any{
		"postgres": map[string]any{"args": []string{"sleep"}, "pid": cmd.Process.Pid, "started": started, "stop": syscall.SIGINT},
	}})
	b, err := bed.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Stop(t.Context(), "postgres"); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGINT {
		t.Errorf("it ended with %v, want an interrupt", cmd.ProcessState)
	}
	if err := b.Stop(t.Context(), "kubelet"); err == nil {
		t.Error("a part that the bed does not have was stopped")
	}
}

func TestOpenWithoutABed(t *testing.T) {
	if _, err := bed.Open(t.TempDir()); !errors.Is(err, bed.ErrNoBed) {
		t.Errorf("got %v, want ErrNoBed", err)
	}
}

func TestAuditSince(t *testing.T) {
	dir := t.TempDir()
	audit := filepath.Join(dir, "audit.log")
	writeState(t, dir, map[string]any{"vault": map[string]any{"auditLog": audit}})
	b, err := bed.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	appendLines := func(lines ...string) {
		t.Helper()
		file, err := os.OpenFile(audit, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteString(strings.Join(lines, "\n") + "\n"); err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
	appendLines(`{"type":"response","request":{"operation":"read","path":"before"}}`)
	mark, err := b.AuditMark()
	if err != nil {
		t.Fatal(err)
	}
	appendLines(
		`{"type":"request","request":{"operation":"update","path":"auth/kubernetes/login"}}`,
		`{"type":"response","request":{"operation":"update","path":"auth/kubernetes/login"}}`,
		`{"type":"response","auth":{"policies":["root"]},"request":{"operation":"list","path":"sys/leases/lookup/"}}`,
		`{"type":"response","auth":{"policies":["default"]},"error":"permission denied","request":{"operation":"read","path":"database/creds/my-app"}}`,
	)
	got, err := b.AuditSince(mark)
	if err != nil {
		t.Fatal(err)
	}
	want := []bed.AuditEntry{
		{Operation: "update", Path: "auth/kubernetes/login"},
		{Operation: "read", Path: "database/creds/my-app", Error: "permission denied"},
	}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
