package template

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	// computing is how long the children of one Render may run together.
	computing = 10 * time.Second
	// maxReport is the most that a child says: its files in base64, the calls that they were made of, and some more.
	maxReport = MaxBytes/3*4 + 1<<20
	// childArg as the only argument makes this binary's process a child.
	childArg = "render-templates"
)

// budget is the time that is left for computing.
type budget struct{ left time.Duration }

// problem is why a child came to no result for a template, in words fit for anybody's eyes.
type problem string

// Error implements error.
func (p problem) Error() string { return string(p) }

const (
	tooSlow  = problem("the template takes too long to compute")
	tooGreat = problem("the template needs more memory than it may use, 18 MiB")
	tooStill = problem("the template waits for itself")
)

// run gives work to a child and returns its results, one for each text. With a [problem] they are those before the text that caused it.
func (r *Renderer) run(ctx context.Context, namespace string, w work, b *budget) ([]result, error) {
	in, err := json.Marshal(w)
	if err != nil { // encoding/json's errors may quote answers
		return nil, errors.New("rendering: Vault's answers cannot be passed on")
	}
	if err := r.gate.enter(ctx, namespace); err != nil {
		return nil, err
	}
	defer r.gate.leave(namespace)
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, b.left)
	defer cancel()
	report, notes, err := start(limited, cmp.Or(r.Binary, "/proc/self/exe"), cmp.Or(r.argument, childArg), in)
	b.left -= time.Since(began)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("rendering: the mount's time was up before the template was computed: %w", ctx.Err())
	}
	results, complete := decode(report, len(w.Texts))
	switch {
	case complete && err == nil:
		return results, nil
	case len(results) == len(w.Texts): // each has its result, and yet it did not end well
		return nil, errChild
	}
	return results, cause(limited, err, notes)
}

// errChild stands for what a child's end may mean besides.
var errChild = errors.New("rendering: the process for it failed")

// cause says why a child ended early.
func cause(ctx context.Context, err error, notes string) error {
	if err == nil {
		return problem(distrusted)
	}
	if ctx.Err() != nil {
		return tooSlow
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return fmt.Errorf("rendering: starting the process for it: %w", err)
	}
	switch status, _ := exit.Sys().(syscall.WaitStatus); {
	case status.Signaled() && status.Signal() == syscall.SIGKILL && exit.UserTime()+exit.SystemTime() >= cpuTime-time.Second:
		return tooSlow
	case status.Signaled() && status.Signal() == syscall.SIGPIPE:
		return problem(tooLarge)
	case status.ExitStatus() == exitUnlimited:
		return errUnlimited
	case strings.Contains(notes, "deadlock!"):
		return tooStill
	case status.ExitStatus() == 2: // Go's runtime gave up, in words that depend on where memory ran out
		return tooGreat
	}
	return errChild
}

// start runs a child and waits for its end. What it reports is bounded, and so are the notes of Go's runtime, which tell of its death;
// they are not for anybody's eyes.
func start(ctx context.Context, binary, argument string, in []byte) (report []byte, notes string, err error) {
	// The kernel ends the child with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, stderr := bounded{max: maxReport}, bounded{max: maxNotes, rest: true}
	cmd := exec.CommandContext(ctx, binary, argument)
	cmd.Env = []string{} // nil would be ours
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	return out.kept, string(stderr.kept), err
}

const maxNotes = 512

// bounded keeps what is written to it up to a limit. Beyond it writing fails; or it is dropped, if rest is set.
type bounded struct {
	kept []byte // not a bytes.Buffer, whose ReadFrom would be used instead
	max  int
	rest bool
}

var errFull = errors.New("rendering: the process for it says more than it may")

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	fits := min(len(p), b.max-len(b.kept))
	b.kept = append(b.kept, p[:fits]...)
	if fits < len(p) && !b.rest {
		return fits, errFull
	}
	return len(p), nil
}

// decode reads a report: as many results as there are texts, and nothing else.
func decode(report []byte, texts int) (results []result, complete bool) {
	d := json.NewDecoder(bytes.NewReader(report))
	d.DisallowUnknownFields()
	for range texts {
		var one result
		if d.Decode(&one) != nil || !one.sound() {
			return results, false
		}
		results = append(results, one)
	}
	_, err := d.Token()
	return results, errors.Is(err, io.EOF)
}
