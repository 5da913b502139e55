package bed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// marker is the environment variable that every process of a bed carries, with the bed's folder as its value: what
// was started but not yet written to bed.json when a bed crashed is found by it, and so are children of servers.
const marker = "LEASEHOLD_BED"

// process is one server of the bed: how it is started, and which running process it is.
type process struct {
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	// Account is the user it runs as; empty is the bed's own.
	Account string `json:"account,omitempty"`
	// InNode runs it inside the node's namespaces (full form).
	InNode bool `json:"inNode,omitempty"`
	// Forks says that the command makes the server as its only child, as entering a process namespace does.
	Forks bool `json:"forks,omitempty"`
	// Stop is the signal that ends it in an orderly way; zero is SIGTERM.
	Stop syscall.Signal `json:"stop,omitempty"`

	PID int `json:"pid,omitempty"`
	// Started is the process's start in clock ticks since boot: with PID it names one process, never a later one
	// that was given the same number.
	Started uint64 `json:"started,omitempty"`
}

// alive tells whether the very process that was started still runs. One that only waits to be collected does not; but
// as long as it has threads left besides the first, its sockets may still be open.
func (p *process) alive() bool {
	if p == nil || p.PID == 0 {
		return false
	}
	started, state, err := processStart(p.PID)
	if err != nil || started != p.Started {
		return false
	}
	if state != 'Z' {
		return true
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID))
	return err == nil && len(threads) > 1
}

// signal sends s to the process if it is still the one that was started.
func (p *process) signal(s syscall.Signal) error {
	if !p.alive() {
		return nil
	}
	if err := syscall.Kill(p.PID, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("sending %v to process %d: %w", s, p.PID, err)
	}
	return nil
}

// stop ends the process, with SIGKILL when the orderly signal did not do it within patience.
func (p *process) stop(ctx context.Context, patience time.Duration) error {
	orderly := p.Stop
	if orderly == 0 {
		orderly = syscall.SIGTERM
	}
	if err := p.signal(orderly); err != nil {
		return err
	}
	gone := func() bool { return !p.alive() }
	if poll(ctx, patience, gone) {
		return nil
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	if !poll(ctx, 10*time.Second, gone) {
		return fmt.Errorf("process %d (%s) did not end", p.PID, filepath.Base(p.Args[0]))
	}
	return nil
}

// poll asks until done says yes (true), or limit or ctx is over (false).
func poll(ctx context.Context, limit time.Duration, done func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
	return true
}

// processStart reads the start time (in clock ticks since boot) and the state of a process.
func processStart(pid int) (started uint64, state byte, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The second field is the program's name in brackets and may itself hold spaces and brackets.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("reading the start of process %d: %d fields", pid, len(fields))
	}
	started, err = strconv.ParseUint(fields[19], 10, 64)
	return started, fields[0][0], err
}

// start runs the named process, notes it in bed.json, and lets it outlive this program.
func (b *Bed) start(ctx context.Context, name string, p *process) error {
	logFile, err := os.OpenFile(b.log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", name, err)
	}
	defer func() { _ = logFile.Close() }()
	cmd, err := b.command(p, logFile)
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	p.PID = cmd.Process.Pid
	if p.Forks {
		if p.PID, err = onlyChild(ctx, p.PID); err != nil {
			return fmt.Errorf("starting %s: %w", name, err)
		}
	}
	if p.Started, _, err = processStart(p.PID); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	if err := cmd.Process.Release(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state.Processes[name] = p
	return b.state.save()
}

func (b *Bed) command(p *process, output io.Writer) (*exec.Cmd, error) {
	args := p.Args
	if p.InNode {
		args = append(b.enterNode(), args...)
	}
	// Not CommandContext: the server outlives the call that starts it.
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = b.state.Dir
	cmd.Env = append([]string{
		marker + "=" + b.state.Dir,
		"HOME=" + b.state.Dir,
		"TMPDIR=" + b.path("tmp"),
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}, p.Env...)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if p.Account != "" {
		credential, err := credentialOf(p.Account)
		if err != nil {
			return nil, err
		}
		cmd.SysProcAttr.Credential = credential
	}
	return cmd, nil
}

// onlyChild waits for the one child of a process that is about to fork.
func onlyChild(ctx context.Context, pid int) (int, error) {
	var child int
	forked := func() bool {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			return false
		}
		child, err = strconv.Atoi(strings.TrimSpace(string(children)))
		return err == nil
	}
	if !poll(ctx, 10*time.Second, forked) {
		return 0, errors.New("it ended at once or never forked")
	}
	return child, nil
}

// marked returns the processes whose environment says that they belong to the bed in dir. Processes of other users
// cannot be read and are none of ours.
func marked(dir string) []*process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []*process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil || !bytes.Contains(append([]byte{0}, environ...), []byte("\x00"+marker+"="+dir+"\x00")) {
			continue
		}
		if started, state, err := processStart(pid); err == nil && state != 'Z' {
			found = append(found, &process{Args: []string{entry.Name()}, PID: pid, Started: started})
		}
	}
	return found
}

// await polls check until it succeeds. It gives up with ctx, and at once when the named process has ended, and then
// shows the end of that process's log.
func (b *Bed) await(ctx context.Context, name string, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	var err error
	ready := poll(ctx, 3*time.Minute, func() bool {
		err = check(ctx)
		return err == nil || !b.process(name).alive()
	})
	if ready && err == nil {
		return nil
	}
	if !b.process(name).alive() {
		return fmt.Errorf("%s ended: the last lines of %s:\n%s", name, b.log(name), lastLines(b.log(name), 15))
	}
	return fmt.Errorf("%s is not ready (see %s): %w", name, b.log(name), err)
}

func lastLines(path string, n int) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(content), "\n"), "\n")
	lines = lines[max(0, len(lines)-n):]
	for i, line := range lines {
		lines[i] = line[:min(len(line), 300)]
	}
	return strings.Join(lines, "\n")
}
