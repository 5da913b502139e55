package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// width is the longest line printed, in characters.
const width = 100

// The escape sequences of a terminal.
const (
	bold  = "1"
	dim   = "2"
	green = "32"
	red   = "31"
)

// printer tells the story to people. What it prints is indented by two characters, except the titles of chapters.
//
// On a terminal it shows with what the story waits, on a last line that the next one replaces.
type printer struct {
	out io.Writer
	// live says that out is a terminal, which can take a line back; colors, that it shows colours.
	live, colors bool

	mu      sync.Mutex
	waiting bool // the last line is to be replaced
	blank   bool // the last line is empty
}

func newPrinter(out *os.File) *printer {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	live := err == nil && os.Getenv("TERM") != "dumb"
	return &printer{out: out, live: live, colors: live && os.Getenv("NO_COLOR") == ""}
}

// Write passes on the progress of the test bed, whole lines, with their ticks in colour.
func (p *printer) Write(lines []byte) (int, error) {
	for line := range strings.Lines(string(lines)) {
		line = elide(strings.TrimRight(line, "\n"))
		line = strings.Replace(line, "  ✓ ", "  "+p.paint(green, "✓")+" ", 1)
		p.line(strings.Replace(line, "  ✗ ", "  "+p.paint(red, "✗")+" ", 1))
	}
	return len(lines), nil
}

func (p *printer) title(text string) {
	p.gap()
	p.line(p.paint(bold, text))
	p.line(p.paint(dim, strings.Repeat("─", utf8.RuneCountInString(text))))
	p.gap()
}

func (p *printer) chapter(number int, title string) {
	p.gap()
	p.line(p.paint(bold, fmt.Sprintf("%d  %s", number, title)))
	p.gap()
}

// say prints a paragraph.
func (p *printer) say(text string) {
	for _, line := range wrap(text, width-2) {
		p.line("  " + line)
	}
	p.gap()
}

// block prints what a file holds or a program printed, as it is.
func (p *printer) block(text string) {
	for line := range strings.Lines(text) {
		p.line(p.paint(dim, "  │ ") + strings.TrimRight(line, " \n"))
	}
	p.gap()
}

// done prints one thing that was seen to be true.
func (p *printer) done(what, detail string) {
	p.line(strings.TrimRight("  "+p.paint(green, "✓")+fmt.Sprintf(" %-27s  %s", what, detail), " "))
}

// at prints what was seen at a moment of a timeline.
func (p *printer) at(moment time.Duration, what, detail string) {
	p.line(fmt.Sprintf("  %9s  ", exactSeconds(moment)) + p.paint(green, "✓") + fmt.Sprintf(" %-19s  ", what) + p.paint(dim, detail))
}

// gap separates what was printed from what follows, with one empty line however often it is called.
func (p *printer) gap() {
	if !p.blank {
		p.line("")
	}
}

// table prints rows in columns. The heading may be nil.
func (p *printer) table(heading []string, rows [][]string) {
	if heading != nil {
		rows = append([][]string{heading}, rows...)
	}
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for i, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			fmt.Fprintf(&line, "  %-*s", widths[i], cell)
		}
		text := strings.TrimRight(line.String(), " ")
		if i == 0 && heading != nil {
			text = p.paint(dim, text)
		}
		p.line(text)
	}
	p.gap()
}

// failure prints what went wrong, and what to do about it.
func (p *printer) failure(text string) {
	p.gap()
	for i, paragraph := range strings.Split(text, "\n") {
		mark := "  "
		if i == 0 {
			mark = p.paint(red, "✗") + " "
		}
		for _, line := range wrap(paragraph, width-4) {
			p.line("  " + mark + line)
			mark = "  "
		}
	}
}

// wait shows what is being waited for, if there is a terminal to take it back from.
func (p *printer) wait(text string) {
	if !p.live {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, "\r\x1b[K%s", p.paint(dim, elide("  … "+text)))
	p.waiting = true
}

func (p *printer) line(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.waiting = false
	}
	fmt.Fprintln(p.out, text)
	p.blank = text == ""
}

func (p *printer) paint(style, text string) string {
	if !p.colors || text == "" {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// wrap breaks a text into lines of at most limit characters. A longer word gets a line of its own.
func wrap(text string, limit int) []string {
	var lines []string
	var line string
	for word := range strings.FieldsSeq(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > limit {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// elide cuts a line that is too long.
func elide(line string) string {
	if utf8.RuneCountInString(line) <= width {
		return line
	}
	return string([]rune(line)[:width-1]) + "…"
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

func exactSeconds(d time.Duration) string {
	return fmt.Sprintf("%.2f s", d.Round(10*time.Millisecond).Seconds())
}

// count is a number with its noun: "1 lease", "2 leases".
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}
