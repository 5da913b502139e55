package bed

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress prints one line per finished part: a tick, its name, the time since the start, and what to know about it.
type progress struct {
	mu    sync.Mutex
	log   io.Writer
	start time.Time
}

func newProgress(log io.Writer) *progress {
	if log == nil {
		log = io.Discard
	}
	return &progress{log: log, start: time.Now()}
}

// step does the work of one part and prints its line. work returns the detail to show.
func (p *progress) step(part string, work func() (detail string, err error)) error {
	detail, err := work()
	tick := "✓"
	if err != nil {
		tick, detail = "✗", "failed"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.log, "  %s %-20s %6.1fs  %s\n", tick, part, time.Since(p.start).Seconds(), detail)
	return err
}

// note prints a line of its own.
func (p *progress) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.log, "  "+format+"\n", args...)
}

// Write passes the output of a tool on, as it is.
func (p *progress) Write(output []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(output)
}
