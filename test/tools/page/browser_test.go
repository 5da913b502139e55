//go:build e2e

package page_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

const (
	// patience is far above what a slow machine needs.
	patience = time.Minute
	// glance is the time between two looks at what is awaited.
	glance = 50 * time.Millisecond
)

// chromium is the one browser of all tests.
var chromium context.Context

func TestMain(m *testing.M) {
	path, err := exec.LookPath("chromium")
	if err != nil {
		println("there is no Chromium: apt-get install -y chromium")
		os.Exit(1)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // as root it does not start with one
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	chromium, _ = chromedp.NewContext(allocator)
	code := m.Run()
	_ = chromedp.Cancel(chromium)
	stop()
	os.Exit(code)
}

// look is how a tab shows the page.
type look struct {
	scheme string // light or dark
	width  int64
}

func (l look) String() string {
	if l.width < 500 {
		return l.scheme + "-narrow"
	}
	return l.scheme
}

// tab is a tab that shows a node's page.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu sync.Mutex
	// requests are the URLs that were asked for, but for those that the policy forbade.
	requests map[network.RequestID]string
	// faults are what the browser complains of: dialogs, errors, what the policy forbade.
	faults []string
}

// visit opens a node's page. Whatever a test is about: at its end nothing but the page's own server was asked, and the browser had nothing
// to complain of.
func visit(t *testing.T, n *node, l look) *tab {
	t.Helper()
	if err := chromedp.Do(chromium); err != nil { // the first time it starts
		t.Fatal(err)
	}
	ctx, cancel := chromedp.NewContext(chromium, chromedp.WithNewBrowserContext())
	tb := &tab{t: t, ctx: ctx, requests: make(map[network.RequestID]string)}
	if err := chromedp.Listen(ctx, tb.hear); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		tb.judge(n.url())
	})
	command(tb, log.Enable, cdp.Empty{})
	command(tb, network.Enable, network.EnableParams{})
	command(tb, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: l.width, Height: 800, DeviceScaleFactor: 1})
	command(tb, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: l.scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}})
	tb.do(chromedp.Navigate(n.url()))
	tb.await(`document.getElementById("live").classList.contains("good")`)
	return tb
}

// hear takes what the browser tells.
func (tb *tab) hear(event any) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		tb.requests[e.RequestID] = e.Request.URL
	case *network.EventLoadingFailed:
		if e.BlockedReason == network.BlockedReasonCsp {
			delete(tb.requests, e.RequestID)
		}
	case *cdppage.EventJavascriptDialogOpening:
		tb.faults = append(tb.faults, "a dialog: "+e.Message)
	case *runtime.EventExceptionThrown:
		tb.faults = append(tb.faults, "an exception: "+e.ExceptionDetails.Text)
	case *log.EventEntryAdded:
		// Of a provider that is away the browser says so; that is what the test of it wants.
		if !strings.Contains(e.Entry.Text, "net::ERR_") {
			tb.faults = append(tb.faults, string(e.Entry.Source)+": "+e.Entry.Text)
		}
	}
}

// judge fails the test for what was heard.
func (tb *tab) judge(own string) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	for _, url := range tb.requests {
		if !strings.HasPrefix(url, own) && !strings.HasPrefix(url, "data:") {
			tb.t.Errorf("the page asked for %s", url)
		}
	}
	if len(tb.requests) < 3 {
		tb.t.Errorf("the page, leases and events must be asked for, and these were: %v", tb.requests)
	}
	for _, fault := range tb.faults {
		tb.t.Error(fault)
	}
}

// forgive returns the faults so far, and forgets them.
func (tb *tab) forgive() string {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	all := strings.Join(tb.faults, "\n")
	tb.faults = nil
	return all
}

func (tb *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	tb.t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		tb.t.Fatal(err)
	}
}

// command gives the browser a command.
func command[P, R any](tb *tab, c cdp.Command[P, R], params P) {
	tb.t.Helper()
	if _, err := chromedp.Call(tb.ctx, c, params); err != nil {
		tb.t.Fatal(err)
	}
}

// eval returns what an expression is on the page.
func eval[T any](tb *tab, expression string) T {
	tb.t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		tb.t.Fatalf("%s: %v", expression, err)
	}
	return value
}

// want compares what an expression is on the page.
func want[T comparable](tb *tab, expression string, value T) {
	tb.t.Helper()
	if got := eval[T](tb, expression); got != value {
		tb.t.Errorf("%s\nis   %v\nwant %v", expression, got, value)
	}
}

// await waits until an expression is true on the page.
func (tb *tab) await(expression string) {
	tb.t.Helper()
	limit := time.After(patience)
	for !eval[bool](tb, expression) {
		select {
		case <-limit:
			tb.screenshot("failed-" + strings.ReplaceAll(tb.t.Name(), "/", "-"))
			tb.t.Fatalf("it never came to be that %s", expression)
		case <-time.After(glance):
		}
	}
}

// press presses keys, as text or as package kb names them.
func (tb *tab) press(keys string) {
	tb.t.Helper()
	tb.do(chromedp.KeyEvent(keys))
}

// slash presses the slash key as a hand does: package kb's text would come even where the page has taken the key for itself.
func (tb *tab) slash() {
	tb.t.Helper()
	for _, event := range []input.DispatchKeyEventType{input.DispatchKeyEventTypeKeyDown, input.DispatchKeyEventTypeKeyUp} {
		command(tb, input.DispatchKeyEvent, input.DispatchKeyEventParams{Type: event, Key: "/", Code: "Slash", Text: "/"})
	}
}

// refreshed waits until the page has shown an answer to a question that it asked from now on.
func (tb *tab) refreshed(n *node) {
	tb.t.Helper()
	limit := time.After(patience)
	for asked := n.answers(); n.answers() < asked+2; {
		select {
		case <-limit:
			tb.t.Fatal("the page does not ask any more")
		case <-time.After(glance):
		}
	}
}

// screenshot keeps a picture of the whole page as a test artefact.
func (tb *tab) screenshot(name string) {
	tb.t.Helper()
	picture, err := chromedp.Run(tb.ctx, chromedp.FullScreenshot(100))
	dir := filepath.Join("..", "..", "..", "out", "page")
	if err := errors.Join(err, os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o644)); err != nil {
		tb.t.Fatal(err)
	}
}
