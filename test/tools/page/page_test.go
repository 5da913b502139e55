//go:build e2e

package page_test

import (
	_ "embed"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// contrast lists the texts and bars whose colours are nearer to what is behind them than WCAG 2.2 AA allows.
//
//go:embed contrast.js
var contrast string

const (
	names = `[...document.querySelectorAll("#rows .name")].map(n => n.textContent).join(" ")`
	rows  = `document.querySelectorAll("#rows > li").length`
	told  = `[...document.querySelectorAll("#told b")].map(n => n.textContent).join(" ")`
	// focused is the id of what has the focus, or else its text or value.
	focused = `(n => n.id || (n.querySelector(".name") ?? n).textContent || n.value)(document.activeElement)`
	// opened are the pods whose facts are shown.
	opened = `[...document.querySelectorAll("#rows > li")].filter(row => !row.querySelector(".facts").hidden).map(row => row.querySelector(".name").textContent).join(" ")`
	// overflow is by how many pixels the page is wider than its window.
	overflow = `document.documentElement.scrollWidth - document.documentElement.clientWidth`
	notice   = `document.getElementById("away").hidden ? "" : document.getElementById("away").textContent`
)

// wide is a look that any test can take.
var wide = look{"light", 1280}

// number is what one of the counters shows.
func number(tb *tab, name string) string {
	return eval[string](tb, `document.getElementById("count-`+name+`").textContent`)
}

// Light and dark, wide and narrow, at rest and opened: all can be read, and nothing sticks out of the window.
func TestLooks(t *testing.T) {
	for _, l := range []look{wide, {"dark", 1280}, {"light", 360}, {"dark", 360}} {
		t.Run(l.String(), func(t *testing.T) {
			n := busy(t)
			tb := visit(t, n, l)
			tb.screenshot(l.String())
			want(tb, `document.getElementById("breaker").checkVisibility()`, false)
			n.openBreaker()
			tb.await(`document.getElementById("breaker").checkVisibility()`)
			tb.do(chromedp.Click(chromedp.CSS("#rows .row:first-child button")))
			tb.await(opened + ` !== ""`)
			tb.screenshot(l.String() + "-open")
			want(tb, contrast, "")
			want(tb, overflow, 0)
			want(tb, `getComputedStyle(document.body).backgroundColor === "rgb(13, 17, 21)"`, l.scheme == "dark")
		})
	}
}

// What fails comes first, then what ends first; what ends with nothing left to lose, and what was replaced, come last.
func TestOverview(t *testing.T) {
	tb := visit(t, busy(t), wide)
	want(tb, names, "payments/settlement-5d8c7b6f9-q2lzn search/indexer-0 billing/invoice-api-58dd6c7f4b-kk2vd shop/nightly-report-28791340-x7k2p "+
		"shop/orders-6b7f9c9d8-8hs5w shop/checkout-7d9f8b5c44-m4x9t search/gateway-0 billing/invoice-api-58dd6c7f4b-kk2vd shop/mailer-6c7d9-zz81k "+
		"shop/checkout-7d9f8b5c44-m4x9t")
	for name, value := range map[string]string{"pods": "8", "grants": "10", "leases": "9", "revoking": "1", "failing": "2"} {
		if got := number(tb, name); got != value {
			t.Errorf("the number of %s is %s, want %s", name, got, value)
		}
	}
	want(tb, `document.querySelector("h1").textContent + " " + document.getElementById("version").textContent`, "worker-3.eu-central-1 v0.4.0")
	want(tb, `document.title`, "(2) worker-3.eu-central-1 · Leasehold")
	want(tb, `[...document.querySelectorAll("#vaults li")].map(n => n.textContent).join("; ")`,
		"https://vault.internal:82001 of 9 grants failing; https://vault-eu.payments:8200 (payments)1 of 1 grant failing")
	want(tb, told, "Renewed RenewalFailed PodEnded ReadFailed Rotated Mounted Mounted")
	// The bar of the lease that has least left, for those who hear the page.
	want(tb, `(m => [m.role, m.ariaValueNow, m.ariaValueText.replace(/^(3m|2m \d+s)/, "3m")].join(" "))(document.querySelector("#rows .meter"))`,
		"meter 8 3m left of database/creds/settlement")
}

// The provider's own answers are understood: those that internal/admin's tests hold it to.
func TestAnswersOfTheProvider(t *testing.T) {
	tb := visit(t, recorded(t), wide)
	want(tb, `document.querySelector("h1").textContent + " " + document.getElementById("version").textContent`, "node-1 v0.1.0")
	want(tb, names, "shop/a-job shop/app shop/app")
	want(tb, `document.querySelector("#rows .problem").textContent`, "Vault is sealed")
	want(tb, `document.querySelector("#rows .path").textContent`, "database/creds/my-app")
	want(tb, told, "RenewalFailed LoggedIn")
	want(tb, `document.querySelector("#told .trouble").textContent + " " + document.querySelector("#told .times").textContent`, "VaultSealed × 2")
}

func TestNothingHeld(t *testing.T) {
	tb := visit(t, start(t), wide)
	want(tb, `document.getElementById("nothing").textContent`, "Nothing is held on this node.")
	want(tb, `document.getElementById("quiet").textContent`, "Nothing happened lately.")
	want(tb, `document.getElementById("count-lapse").textContent`, "none")
	tb.screenshot("nothing")
	want(tb, overflow, 0)
}

// hostile are texts that whoever may write a class, a pod or a Vault's answers could think of.
var hostile = []string{
	`<img src=x onerror=alert(1)><script>alert(2)</script>`,
	`"><svg onload=alert(3)>`,
	`javascript:alert(4)`,
	`{{constructor.constructor("alert(5)")()}} ${alert(6)}`,
	"\u202egnp.exe\u2066 right to left\u2069",
	"עברית العربية",
	strings.Repeat("w", 253),
	strings.Repeat("Z\u0335\u0321\u031b\u0358\u0301\u0315\u0336", 60),
	"\U0001f525\U0001f469\u200d\U0001f680 on fire " + strings.Repeat("\U0001f4a3", 200),
	"two\nlines\x00\x1b[31m\u2028and\u200bmore",
	"__proto__",
}

// Whatever is in a name: no script runs, no dialog opens, nothing is asked of anybody else, nothing sticks out, and nothing turns the text
// around it or hides.
func TestHostileNames(t *testing.T) {
	for _, l := range []look{wide, {"dark", 360}} {
		t.Run(l.String(), func(t *testing.T) {
			var grants []grant
			for i, text := range hostile {
				g := held(text+fmt.Sprint(i), text, text, text, text, leased(text, time.Minute, time.Hour))
				g.Problem, g.Class, g.Vault, g.VaultNamespace, g.Cause, g.Failures = text, text, text, text, text, i
				if i%2 == 0 {
					g.State = text
				}
				grants = append(grants, g)
			}
			n := start(t, grants...)
			n.events = events(hostile)
			tb := visit(t, n, l)
			want(tb, rows, len(hostile))
			want(tb, `document.querySelectorAll("#told > li").length`, len(hostile))
			want(tb, overflow, 0)
			// A name takes two lines at most, however much is stacked on its letters.
			want(tb, `[...document.querySelectorAll("#rows .name")].every(n => n.offsetHeight < 60)`, true)
			for i := range hostile {
				tb.do(chromedp.Click(chromedp.CSS(fmt.Sprintf("#rows > li:nth-child(%d) button", i+1))))
			}
			tb.await(`document.querySelectorAll("#rows .facts:not([hidden])").length === ` + fmt.Sprint(len(hostile)))
			tb.refreshed(n)
			tb.do(chromedp.Evaluate[chromedp.Void](`scrollTo(0, 0)`))
			tb.screenshot("hostile-" + l.String())
			want(tb, overflow, 0)
			want(tb, `document.querySelectorAll("main img, main script, main svg[onload]").length`, 0)
			want(tb, `/[\u0000-\u0009\u000b-\u001f\u200b-\u200f\u2028-\u202e\u2066-\u2069]/.test(document.querySelector("main").innerText)`, false)
			want(tb, `document.querySelector("main").textContent.includes("\\u{202e}gnp.exe")`, true)
		})
	}
}

// A script that got into the page all the same is not run: the browser refuses it, by two rules of the page's policy.
func TestPolicy(t *testing.T) {
	tb := visit(t, busy(t), wide)
	for name, script := range map[string]string{
		"text as markup":     `document.body.innerHTML = "<img src=x onerror='window.ran = 1'>"`,
		"a script's text":    `document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = 1" }))`,
		"a script elsewhere": `document.body.append(Object.assign(document.createElement("script"), { src: "https://example.com/x.js" }))`,
		"an image":           `document.body.append(Object.assign(new Image(), { src: "https://example.com/x.png" }))`,
		"a handler":          `document.body.setAttribute("onclick", "window.ran = 1"); document.body.click()`,
	} {
		eval[bool](tb, `(() => { try { `+script+` } catch {} return true })()`)
		if fault := tb.forgive(); !strings.Contains(fault, "violates the following Content Security Policy directive") && !strings.Contains(fault, "requires 'Trusted") {
			t.Errorf("%s: the browser said %q", name, fault)
		}
		want(tb, `window.ran === undefined`, true)
	}
}

// The whole page without a mouse.
func TestKeyboard(t *testing.T) {
	n := busy(t)
	tb := visit(t, n, wide)
	tab := func(expected ...string) {
		t.Helper()
		for _, where := range expected {
			tb.press(kb.Tab)
			want(tb, focused, where)
		}
	}
	tab("Pods", "Events", "filter", "All", "payments/settlement-5d8c7b6f9-q2lzn", "search/indexer-0")

	tb.press(kb.Enter)
	want(tb, opened, "search/indexer-0")
	tb.press(kb.ArrowUp)
	tb.press(" ")
	want(tb, opened, "payments/settlement-5d8c7b6f9-q2lzn search/indexer-0")
	tb.press(kb.ArrowDown)
	tb.press(kb.Enter)
	want(tb, opened, "payments/settlement-5d8c7b6f9-q2lzn")

	tb.slash()
	want(tb, focused, "filter")
	tb.press("SHOP/orders")
	want(tb, names, "shop/orders-6b7f9c9d8-8hs5w")
	want(tb, told, "Mounted")
	want(tb, `document.getElementById("shown").textContent`, "1 of 10 grants")
	tb.press("/never")
	want(tb, rows, 0)
	want(tb, `document.getElementById("nothing").textContent`, "Nothing fits. Escape clears the filter.")
	tb.press(kb.Escape)
	want(tb, rows, 10)
	tb.press(kb.Escape)
	want(tb, `document.activeElement === document.body`, true)

	tb.slash()
	tb.press(kb.Tab)
	tb.press(kb.ArrowRight) // of a group of radio buttons
	want(tb, names, "payments/settlement-5d8c7b6f9-q2lzn search/indexer-0")
	tb.press(kb.ArrowRight)
	want(tb, rows, 6)
	tb.refreshed(n)
	want(tb, `document.querySelector("#states :checked").value + " " + document.activeElement.value`, "Active Active")
}

// Nothing moves from under a focus, and a focus on what goes is not lost.
func TestFocusIsKept(t *testing.T) {
	a, b, c := held("a", "shop", "a", "v", "r", leased("p", 0, time.Hour)), held("b", "shop", "b", "v", "r", leased("p", 0, 2*time.Hour)),
		held("c", "shop", "c", "v", "r", leased("p", 0, 3*time.Hour))
	n := start(t, a, b, c)
	tb := visit(t, n, wide)
	want(tb, names, "shop/a shop/b shop/c")
	tb.do(chromedp.Focus(chromedp.CSS("#rows > li:nth-child(2) button")))

	c.Failures, c.Problem = 1, "broken"
	n.set(a, b, c, held("d", "shop", "d", "v", "r", leased("p", 0, time.Minute)))
	tb.await(rows + " === 4")
	want(tb, names, "shop/a shop/b shop/c shop/d")
	want(tb, focused, "shop/b")

	n.set(a, c)
	tb.await(rows + " === 2")
	want(tb, focused, "shop/c")

	want(tb, names, "shop/a shop/c")
	want(tb, `document.getElementById("shown").textContent`, "Order kept; Escape sorts anew")
	tb.press(kb.Escape)
	want(tb, names, "shop/c shop/a")
	want(tb, `document.getElementById("shown").textContent`, "")
}

// A provider that goes is told of, with since when; what was held stays in sight and counts down. When it comes back so does the page.
func TestProviderAway(t *testing.T) {
	n := start(t, held("a", "shop", "a", "v", "r", leased("p", 0, 3*time.Second)))
	tb := visit(t, n, wide)
	want(tb, notice, "")
	n.goAway()
	tb.await(`(` + notice + `).startsWith("The provider is not reachable since ")`)
	want(tb, `document.getElementById("live").textContent.startsWith("Not reachable since")`, true)
	tb.await(`document.querySelector("#rows .left").textContent === "ended"`)
	want(tb, names, "shop/a")
	want(tb, contrast+`.replace(/only .*/, "")`, "")
	tb.screenshot("away")

	n.set(held("b", "shop", "b", "v", "r", leased("p", 0, time.Hour)))
	n.comeBack()
	tb.await(`(` + notice + `) === "" && ` + names + ` === "shop/b"`)
	want(tb, `document.getElementById("live").className`, "live good")
}

// A thousand grants do not make a thousand rows unless they are asked for; all are counted, found, and sorted.
func TestThousandGrants(t *testing.T) {
	var grants []grant
	for i := range 1000 {
		grants = append(grants, held(fmt.Sprint(i), fmt.Sprintf("team-%d", i%7), fmt.Sprintf("app-%04d", i), "creds", "app",
			leased("database/creds/app", time.Minute, 50*time.Minute-time.Duration(i)*time.Second), leased("kv/creds/app", time.Minute, 3*time.Hour)))
	}
	n := start(t, grants...)
	for i := range 500 {
		n.events = append(n.events, event{At: time.Now(), Namespace: "team-1", Pod: fmt.Sprintf("app-%04d", i), Kind: "Mounted", Says: "1 lease", Count: 1, Last: time.Now()})
	}
	tb := visit(t, n, wide)
	if got := number(tb, "grants") + " " + number(tb, "leases"); got != "1,000 2,000" {
		t.Errorf("the numbers are %s", got)
	}
	want(tb, rows, 100)
	want(tb, `document.querySelectorAll("#told > li").length`, 30)
	want(tb, `document.querySelectorAll("body *").length < 6000`, true)
	want(tb, `document.querySelector("#rows .name").textContent`, "team-5/app-0999")
	tb.slash()
	tb.press("app-0001")
	want(tb, names, "team-1/app-0001")
	tb.press(kb.Escape)
	want(tb, `document.getElementById("more-rows").textContent`, "Show all 1,000")
	tb.do(chromedp.Click(chromedp.CSS("#more-rows")))
	tb.await(rows + " === 1000")
	want(tb, `document.getElementById("more-rows").hidden`, true)
	tb.refreshed(n)
	want(tb, rows, 1000)
	want(tb, overflow, 0)
}
