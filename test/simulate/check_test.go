package simulate_test

import (
	"slices"
	"strings"
	"time"
)

const (
	// looks is how often the checker compares what is with what must be.
	looks = 5 * time.Second
	// settle is how long after the last end everything must have been given back: what a dead process may have left under way,
	// the breaker's pause, kubelet's proof of life for a pod that was never seen, and the pauses between tries.
	settle = 40 * time.Minute
	// shaky is how long after a short outage a volume may still be one republish from a lapse: the shortest life.
	shaky = 6 * time.Minute
	// heal is what may pass after an outage, or a revocation by somebody else, until a volume shows working credentials: the
	// longest pause between two renewals, the driver's poll interval, and two republishes, with room for tries that fail.
	heal = 18 * time.Minute
)

// watch checks the invariants for as long as the world lasts. It sees Vault, the pods and the files, and nothing of the provider.
func (w *world) watch() {
	for {
		select {
		case <-w.over:
			return
		case <-time.After(looks):
			w.look()
		}
	}
}

func (w *world) look() {
	users := map[string]bool{}
	for _, u := range w.vault.Users() {
		users[u.Name] = true
	}
	live, ends, revoked := map[string]int{}, map[string]time.Duration{}, map[string]bool{}
	for _, t := range w.vault.Tokens() {
		w.mu.Lock()
		ends[t.Accessor] = t.TTL
		revoked[t.Accessor] = t.Revoked && !w.lost[t.Accessor]
		if !t.Revoked && !w.lost[t.Accessor] {
			live[t.Role]++
		}
		w.mu.Unlock()
	}
	leases, certificates := w.vault.Leases(), w.vault.Certificates()
	now := time.Now()
	w.mu.Lock()
	excused := now.Before(w.awayUntil)
	w.mu.Unlock()
	for _, p := range w.pods {
		w.mu.Lock()
		// What is due is replaced in time if one of two republishes can; it must not take many.
		missed := (p.misses >= 2 || p.misses == 1 && now.Before(w.shakyUntil)) && p.misses < 6
		user, uses := p.shown["user"], p.running && !p.empty && !excused && now.After(p.excused) && !missed
		kills := w.count["kills"]
		w.mu.Unlock()
		if uses && !users[user] {
			w.violated("I1/I3", p.name, "runs and shows %s, which is gone", user)
		}
		w.lookAtCertificates(p, uses, certificates)
		// The current one, one that runs out for each replacement, and those that a process left behind and that wait for their reads.
		if most := 4 + kills; live[p.name] > most {
			w.violated("I4", p.name, "has %d tokens that live", live[p.name])
		}
	}
	for _, l := range leases {
		if revoked[l.Accessor] && !l.Revoked && l.TTL > 0 { // a read was under way in Vault
			w.violated("I2", l.Path, "has a lease that outlives its token, by %s", l.TTL)
		}
		w.early(l.ID, l.Path, now.Add(min(l.TTL, ends[l.Accessor])), l.Revoked, now)
	}
}

// early tells when a lease of a pod that runs ends before it was promised to.
func (w *world) early(id, path string, ends time.Time, revoked bool, now time.Time) {
	w.mu.Lock()
	promised, known := w.leases[id]
	p := w.ownerLocked(path)
	if !known || ends.After(promised) {
		w.leases[id] = ends
	}
	uses := p != nil && p.running && !w.revoked[id] && !w.vague[id] && !now.Before(w.awayUntil)
	shown := p != nil && p.shown != nil
	w.mu.Unlock()
	const rounding = 2 * time.Second
	if known && uses && shown && ends.Before(promised.Add(-rounding)) && now.Before(promised.Add(-rounding)) && w.wasShown(p, id) {
		w.violated("I1", p.name, "runs, and a lease of it that was to end %s from now is revoked (%t) or shortened", promised.Sub(now).Round(time.Second), revoked)
	}
}

// wasShown tells whether the lease's credentials ever were in the volume: those of a mount that failed may go at once.
func (w *world) wasShown(p *pod, id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return p.leases[id]
}

func (w *world) ownerLocked(path string) *pod {
	i := slices.IndexFunc(w.pods, func(p *pod) bool { return strings.HasSuffix(path, "/"+p.name) })
	if i < 0 {
		return nil
	}
	return w.pods[i]
}

// gaveLocked notes that Vault gave out a token or credentials: a pod that shows something and whose credentials can be renewed
// needs none, whatever became of the provider.
func (w *world) gaveLocked(a asked) {
	w.count[a.op+"s"]++
	p := w.podLocked(a.pod)
	if p == nil {
		return
	}
	if a.op == "login" && p.shown == nil {
		// A failing mount goes on with the token it has, unless the process with it died or the class was edited.
		p.logins++
		if most := 3 + w.count["kills"] + w.count["graceful restart"] + w.count["class edited"] + w.count[replyLost] + w.count[failedLate]; p.logins > most {
			w.violatedLocked("I4", p.name, "was given %d tokens before it showed anything", p.logins)
		}
	}
	if p.shown != nil && !p.renewed && !time.Now().Before(w.awayUntil) {
		w.violatedLocked("restart", a.pod, "was given a new %s although nothing called for it", a.op)
	}
}

// last checks what is left when every pod is over.
func (w *world) last() {
	for _, t := range w.vault.Tokens() {
		w.mu.Lock()
		lost := w.lost[t.Accessor]
		w.mu.Unlock()
		switch {
		case t.Revoked:
		case !lost:
			w.violated("I2", t.Role, "is over, and a token of it lives on for %s", t.TTL)
		case t.TTL > longestTTL:
			w.violated("I2", t.Role, "is over, and a token of it that nobody knows lives on for %s", t.TTL)
		}
	}
	for _, l := range w.vault.Leases() {
		w.mu.Lock()
		lost := w.lost[l.Accessor]
		// Vault gives a lease up by itself that ran out while the back end was down, sooner when its token did too. Of what it does when
		// the provider revokes the token, the provider is the cause, but it cannot ask after a lease whose reply was lost.
		byItself := l.Irrevocable && (!w.heard[l.ID] || !w.gaveBack[l.Accessor])
		if byItself {
			w.count["leases that Vault gave up by itself"]++
		}
		w.mu.Unlock()
		if !l.Revoked && !lost && !byItself {
			w.violated("I2", l.Path, "is left as a lease (irrevocable: %t)", l.Irrevocable)
		}
	}
	w.lastOfCertificates()
	for _, p := range w.pods {
		const soon = 10 * time.Second // the object is gone before anybody could look when its containers were started
		w.mu.Lock()
		if p.empty && !p.stepped && p.mounted && p.removed.Sub(p.first) > soon && !slices.Contains(p.events, "StartedEmpty") {
			w.violatedLocked("empty volume", p.name, "was started empty and nobody said so: %q", p.events)
		}
		w.mu.Unlock()
	}
	told := w.log.String()
	for _, s := range w.vault.Secrets() {
		if strings.Contains(told, s) {
			w.violated("I6", "node", "%.6s... was said", s)
		}
	}
}
