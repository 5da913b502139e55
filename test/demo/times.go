package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// times is how long it took until the first secret was mounted.
type times struct {
	Form string `json:"form"` // of the bed
	Bare bool   `json:"bare"`
	// Build is from the command's begin until everything was built, Start until the bed was up, and Mount from the moment when a pod was asked
	// for until it ran and its files were read. Between Start and Mount the story does other things.
	Build, Start, Mount time.Duration
}

func (s *story) showTimes() error {
	s.times.Form, s.times.Bare, s.times.Mount = string(s.form), s.bare, s.app.running
	t := s.times
	s.done("the first mounted secret", fmt.Sprintf("after %s: building %s, starting %s, the pod %s",
		(t.Build+t.Start+t.Mount).Round(time.Second), t.Build.Round(time.Second), t.Start.Round(time.Second), seconds(t.Mount)))
	if s.timesFile == "" {
		return nil
	}
	text, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("encoding the times: %w", err)
	}
	if err := os.WriteFile(s.timesFile, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the times: %w", err)
	}
	return nil
}
