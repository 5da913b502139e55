package fleet

import (
	"bytes"
	"sync"
)

// output takes what a node writes, up to a limit. client-go may write to it after the exchange was given up.
type output struct {
	max int
	// exceeded is called when there is more.
	exceeded func()
	// told is called with each line; nil for nobody.
	told func(line string)

	mu    sync.Mutex
	text  []byte
	lines int // where the first line begins that is not whole
	taken bool
}

// Write never fails: client-go would log that, and go on.
func (o *output) Write(p []byte) (int, error) {
	for _, line := range o.add(p) {
		o.told(line)
	}
	return len(p), nil
}

// add returns the lines that are whole now, if somebody is to be told.
func (o *output) add(p []byte) (whole []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.taken {
		return nil
	}
	if len(o.text)+len(p) > o.max {
		o.taken, o.text = true, nil
		o.exceeded()
		return nil
	}
	o.text = append(o.text, p...)
	for o.told != nil {
		line, _, found := bytes.Cut(o.text[o.lines:], []byte("\n"))
		if !found {
			break
		}
		whole = append(whole, string(line))
		o.lines += len(line) + 1
	}
	return whole
}

// take returns what was written, and ends the taking.
func (o *output) take() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.taken = true
	return o.text
}
