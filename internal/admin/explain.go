package admin

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// explanationVersion is to Explanation what reportVersion is to Report.
const explanationVersion = 1

// quiet is after how long a failed mount of a volume that shows something is not taken for failing any more: republishes come sooner.
const quiet = 10 * time.Minute

// Explanation is what one node knows of a pod, and what to check next.
type Explanation struct {
	Version   int    `json:"version"`
	Node      string `json:"node"`
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	// ServiceAccount is empty when nothing is known of the pod on this node.
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// Since is when the provider started. What was before is known of what is held, and of nothing else. Killed is as in Timeline.
	Since  time.Time `json:"since"`
	Killed bool      `json:"killed,omitempty"`
	// Grants are what is held, Events what happened, Next what is due.
	Grants []Grant  `json:"grants"`
	Events []Event  `json:"events"`
	Next   []string `json:"next"`
	// Checks are what to look at, what fails now first.
	Checks []Check `json:"checks"`
}

// Check is a cause of what failed, and what to do about it.
type Check struct {
	// Trouble is that of the events; empty for what has no such word.
	Trouble string `json:"trouble,omitempty"`
	// What is the cause in a few words, Next what to check, in a sentence.
	What string `json:"what"`
	Next string `json:"next"`
	// From and Last are when it was first and last met. Over: it is not what fails now.
	From time.Time `json:"from,omitzero"`
	Last time.Time `json:"last,omitzero"`
	Over bool      `json:"over"`
}

// Explain tells of a pod from what its node holds and remembers. now is the wall clock.
func Explain(r Report, t Timeline, namespace, pod string, now time.Time) Explanation {
	e := Explanation{
		Version: explanationVersion, Node: t.Node, Namespace: namespace, Pod: pod, Since: t.Since, Killed: t.Killed,
		Grants: Selection{Namespace: namespace, Pod: pod}.Of(r).Grants, Next: []string{},
		Events: slices.DeleteFunc(slices.Clone(t.Events), func(e Event) bool { return e.Namespace != namespace || e.Pod != pod }),
	}
	for _, g := range e.Grants {
		e.ServiceAccount = cmp.Or(e.ServiceAccount, g.ServiceAccount)
		e.Next = append(e.Next, g.next()...)
	}
	for _, event := range e.Events {
		e.ServiceAccount = cmp.Or(e.ServiceAccount, event.ServiceAccount)
	}
	if len(e.Grants)+len(e.Events) == 0 {
		e.Checks = unknownPod(e)
		return e
	}
	e.Checks = e.checks(now)
	return e
}

// next says what is due of a grant.
func (g Grant) next() (due []string) {
	say := func(format string, args ...any) {
		due = append(due, fmt.Sprintf("volume %q: ", g.Volume)+fmt.Sprintf(format, args...))
	}
	switch grant.State(g.State) {
	case grant.Pending:
		say("its mount is under way; if Vault does not answer, kubelet's next try waits for the same answer")
	case grant.Partial:
		say("the next try of the mount goes on with the login that is there; without one it is given back %s after the last", keeper.Span(grant.PartialLife))
	case grant.Superseded:
		say("what was replaced is not renewed; it runs out by itself, and goes with the pod's end at the latest")
	case grant.Revoking:
		say("it is given back as soon as Vault and the secret engine's back end answer; without that it has run out in %s", left(g.ends()))
	case grant.Active:
		if g.RenewSeconds != nil {
			say("the next renewal is in %s", left(*g.RenewSeconds))
		} else {
			say("nothing is renewed; a later refresh logs in again")
		}
		for _, l := range g.Leases {
			if l.Fixed {
				say("%q ends in %s and no renewal lengthens it: a republish replaces it before", l.Path, left(l.Seconds))
			}
		}
		if g.LeftToExpire != "" {
			say("the pod's end revokes nothing, its leases run out (%s)", g.LeftToExpire)
		} else {
			say("the pod's end revokes it; without renewal it would end in %s", left(g.ends()))
		}
	}
	return due
}

// checks finds the causes of what failed, each once: what fails now first, and of these, and of what is over, the latest.
func (e Explanation) checks(now time.Time) []Check {
	var checks []Check
	for i, event := range e.Events {
		advice, ok := advices[vault.Trouble(event.Trouble)]
		if !ok {
			continue
		}
		c := Check{Trouble: event.Trouble, What: advice.what, Next: advice.next(event), From: event.At, Last: event.Last, Over: e.over(i, now)}
		same := slices.IndexFunc(checks, func(other Check) bool { return other.Trouble == c.Trouble && other.Next == c.Next })
		if same < 0 {
			checks = append(checks, c)
			continue
		}
		other := &checks[same]
		other.Over = other.Over && c.Over
		if c.Last.After(other.Last) {
			other.Last = c.Last
		}
	}
	for _, g := range e.Grants { // the provider may have started since, and remember no event of it
		told := slices.ContainsFunc(checks, func(c Check) bool { return !c.Over })
		if g.Problem != "" && !told {
			checks = append(checks, Check{What: fmt.Sprintf("the last failure of volume %q that the store knows", g.Volume), Next: g.Problem})
		}
	}
	slices.SortStableFunc(checks, func(a, b Check) int {
		if a.Over == b.Over {
			return b.Last.Compare(a.Last)
		}
		if a.Over {
			return 1
		}
		return -1
	})
	return checks
}

// over reports whether the failure that event i tells of is one no more: something of its volume went well since, its grant is gone, or
// nothing was heard of it for long.
func (e Explanation) over(i int, now time.Time) bool {
	failed := e.Events[i]
	for _, later := range e.Events {
		if later.Volume == failed.Volume && later.UID == failed.UID && later.Last.After(failed.Last) && heals(later, failed) {
			return true
		}
	}
	grants := func(fits func(Grant) bool) bool { return slices.ContainsFunc(e.Grants, fits) }
	if failed.Grant != "" {
		return !grants(func(g Grant) bool { return g.ID == failed.Grant })
	}
	return now.Sub(failed.Last) > quiet && grants(func(g Grant) bool {
		return g.Volume == failed.Volume && g.UID == failed.UID && g.State == string(grant.Active)
	})
}

// heals reports whether a later event of the same volume shows that what failed does not fail any more.
func heals(later, failed Event) bool {
	switch kind := keeper.Kind(later.Kind); kind {
	case keeper.LoggedIn, keeper.Mounted, keeper.Recovered, keeper.Rotated, keeper.Refreshed:
		return failed.Kind != string(keeper.RevocationFailed)
	case keeper.Renewed:
		return failed.Kind == string(keeper.RenewalFailed) && later.Grant == failed.Grant
	case keeper.PodEnded, keeper.LetGo:
		return failed.Kind != string(keeper.RevocationFailed) && (failed.Grant == "" || later.Grant == failed.Grant)
	default:
		return kind.Final() && later.Grant == failed.Grant
	}
}

// unknownPod is what to check when this node knows nothing of a pod.
func unknownPod(e Explanation) []Check {
	check := func(next string) Check { return Check{What: "nothing is known of the pod on this node", Next: next} }
	name := fmt.Sprintf("-n %s get pod %s", e.Namespace, e.Pod)
	return []Check{
		check("is it on this node? kubectl " + name + " -o wide, against the node " + e.Node),
		check("does a volume of it use the driver secrets-store.csi.k8s.io, and say provider: vault (or openbao) in its SecretProviderClass?"),
		check("did the CSI driver call? kubectl -n " + e.Namespace + " describe pod " + e.Pod + ", and the log of the driver's pod on the node"),
		check("it may have ended before the provider started: what was given back then is in the provider's log before that, and in --audit-log"),
	}
}

// Write writes an explanation for people. now is the wall clock.
func (e Explanation) Write(w io.Writer, now time.Time) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Pod %s/%s on node %s", e.Namespace, e.Pod, e.Node)
	if e.ServiceAccount != "" {
		fmt.Fprintf(&b, ", service account %s", e.ServiceAccount)
	}
	b.WriteString("\n")
	e.writeHeld(&b)
	fmt.Fprintf(&b, "\nWhat happened (UTC)\n  %s  the provider started; what was before it knows only of what was held then\n", clock(e.Since, now))
	if e.Killed {
		b.WriteString("! the provider before it was killed (out of memory, SIGKILL, or a crash): kubectl describe its pod, and see Last State; the node's kernel log tells of memory\n")
	}
	for _, event := range e.Events {
		mark := " "
		if event.Warning {
			mark = "!"
		}
		fmt.Fprintf(&b, "%s %s  %s: %s", mark, clock(event.At, now), event.Volume, event.Says)
		if event.Count > 1 {
			fmt.Fprintf(&b, " (%d times, last at %s)", event.Count, clock(event.Last, now))
		}
		b.WriteString("\n")
	}
	if len(e.Next) > 0 {
		b.WriteString("\nWhat is next\n")
	}
	for _, next := range e.Next {
		fmt.Fprintf(&b, "  %s\n", next)
	}
	e.writeChecks(&b, now)
	_, err := io.WriteString(w, b.String())
	return err
}

func (e Explanation) writeHeld(b *strings.Builder) {
	b.WriteString("\nWhat is held\n")
	if len(e.Grants) == 0 {
		b.WriteString("  nothing\n")
	}
	for _, g := range e.Grants {
		token := "no token"
		if g.TokenSeconds != nil {
			token = fmt.Sprintf("a token of role %q at %s for %s", g.Role, g.Vault, left(*g.TokenSeconds))
		}
		fmt.Fprintf(b, "  volume %q, class %q: %s, %s\n", g.Volume, g.Class, g.State, token)
		for _, l := range g.Leases {
			note := ""
			if l.Superseded {
				note = ", replaced"
			}
			fmt.Fprintf(b, "    %s: %s of %s left, renewed %s%s\n", l.Path, left(l.Seconds), left(l.Of), ago(l.Renewed), note)
		}
	}
}

func (e Explanation) writeChecks(b *strings.Builder, now time.Time) {
	b.WriteString("\nWhat to check next\n")
	open := slices.IndexFunc(e.Checks, func(c Check) bool { return c.Over })
	if open < 0 {
		open = len(e.Checks)
	}
	if open == 0 {
		b.WriteString("  nothing: nothing fails now\n")
	}
	for _, c := range e.Checks[:open] {
		fmt.Fprintf(b, "  %s", c.What)
		if !c.From.IsZero() {
			fmt.Fprintf(b, " (since %s)", clock(c.From, now))
		}
		fmt.Fprintf(b, ": %s\n", c.Next)
	}
	if open < len(e.Checks) {
		b.WriteString("\nWhat failed before\n")
	}
	for _, c := range e.Checks[open:] {
		fmt.Fprintf(b, "  %s (%s to %s)\n", c.What, clock(c.From, now), clock(c.Last, now))
	}
}

// clock is a time of day in UTC, with the date when it is not today's.
func clock(at, now time.Time) string {
	at, now = at.UTC(), now.UTC()
	if at.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return at.Format(time.TimeOnly)
	}
	return at.Format(time.DateTime)
}
