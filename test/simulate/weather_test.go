//nolint:forbidigo // sleeps inside synctest bubbles only
package simulate_test

import (
	"strings"
	"time"
)

// The kinds of what happens to a world as a whole.
var perWorld = odds{
	{"Vault unreachable, short", 0.09}, {"Vault unreachable, long", 0.05}, {"Vault sealed, short", 0.08}, {"Vault sealed, long", 0.05},
	{"back end down, short", 0.08}, {"back end down, long", 0.05}, {"API away", 0.07}, {"empty list", 0.07}, {"kubelet away", 0.04}, {"relist", 0.08},
	{"lease revoked outside", 0.08}, {"token revoked outside", 0.08}, {"store lost", 0.05}, {"graceful restart", 0.05}, {"kill at any time", 0.03}, {"class edited", 0.02}, {"clock step", 0.03},
}

// weather lets something happen every few minutes until the pods are over.
func (w *world) weather() {
	const vaultTries = 11 * time.Minute
	backEndBack := w.begin.Add(-vaultTries)
	for !w.calm() {
		select {
		case <-w.over:
			return
		case <-time.After(w.dice.between("weather", "pause", 2*time.Minute, 6*time.Minute)):
		}
		if w.calm() {
			return
		}
		kind := w.dice.pick("weather", "kind", perWorld)
		// Two outages of the back end in a row would exhaust Vault's own tries on a lease that ran out, whatever the provider does.
		if strings.HasPrefix(kind, "back end down") {
			if time.Since(backEndBack) < vaultTries {
				continue
			}
			backEndBack = time.Now().Add(10 * time.Minute)
		}
		if kind != "empty list" { // counted when it is answered
			w.happened(kind, "")
		}
		w.strike(kind)
	}
}

func (w *world) strike(kind string) {
	victim := w.pods[int(w.dice.roll("weather", "victim")*lives)]
	// A third of the shortest life is what renewals can bridge.
	short := w.dice.between("weather", "short", 10*time.Second, 100*time.Second)
	long := w.dice.between("weather", "long", 4*time.Minute, 9*time.Minute)
	span := func(set func(bool), d time.Duration, lapse bool) {
		set(true)
		if lapse {
			w.excuse(d + heal)
		}
		w.mu.Lock()
		w.shakyUntil = time.Now().Add(d + shaky)
		w.mu.Unlock()
		time.Sleep(d)
		set(false)
		w.say("it is over")
	}
	switch kind {
	case "Vault unreachable, short":
		span(w.vault.Down, short, false)
	case "Vault unreachable, long":
		span(w.vault.Down, long, true)
	case "Vault sealed, short":
		span(w.vault.Sealed, short, false)
	case "Vault sealed, long":
		span(w.vault.Sealed, long, true)
	case "back end down, short":
		span(w.setBackEndDown, short, false)
	case "back end down, long":
		span(w.setBackEndDown, long, true)
	case "API away":
		span(w.net.setAway, long, false)
	case "kubelet away": // for longer than its proof of life takes, were it there
		away := w.dice.between("weather", "kubelet", 11*time.Minute, 15*time.Minute)
		w.postpone(away)
		span(w.setKubeletAway, away, false)
	case "empty list":
		w.net.drop(true)
	case "relist":
		w.net.drop(false)
	case "lease revoked outside":
		w.revokeOutside(victim, false)
	case "token revoked outside":
		w.revokeOutside(victim, true)
	case "store lost":
		if p := w.running(); p != nil {
			p.kill()
			p.ended.Wait()
			w.loseStore()
		}
	case "graceful restart":
		if p := w.running(); p != nil {
			p.leave()
		}
	case "kill at any time":
		if p := w.running(); p != nil {
			p.kill()
		}
	case "clock step":
		w.stepClock(w.dice.between("weather", "step", -3*time.Hour, 3*time.Hour))
	case "class edited":
		w.mu.Lock()
		victim.edited, victim.renewed, victim.reissue = time.Now().String(), true, true
		w.mu.Unlock()
	}
}

func (w *world) setBackEndDown(down bool) {
	w.vault.BackendDown(down)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.backEndDown = time.Time{}
	if down {
		w.backEndDown = time.Now()
	}
}

// postpone grants more time to whatever only a republish can bring about, because none comes for a while.
func (w *world) postpone(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if w.awayUntil.After(now) {
		w.awayUntil = w.awayUntil.Add(d)
	}
	for _, p := range w.pods {
		p.renewed, p.uncertified = true, now.Add(d+heal)
		switch {
		case p.excused.After(now):
			p.excused = p.excused.Add(d)
		case p.kind.rotates, p.misses > 0: // what is due, or was missed just before
			p.excused = now.Add(d + heal)
		}
	}
}

// setKubeletAway: containers run on, and what kubelet would do waits until it is back.
func (w *world) setKubeletAway(away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if away {
		w.kubeletBack = make(chan struct{})
		return
	}
	close(w.kubeletBack)
	w.kubeletBack = nil
}

// awaitKubelet returns when kubelet is there.
func (w *world) awaitKubelet() {
	w.mu.Lock()
	back := w.kubeletBack
	w.mu.Unlock()
	if back != nil {
		<-back
	}
}

func (w *world) running() *process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.process
}

// excuse forgives lapses for a while: what outlasts a credential's life cannot be bridged.
func (w *world) excuse(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if until := time.Now().Add(d); until.After(w.awayUntil) {
		w.awayUntil = until
	}
	for _, p := range w.pods {
		p.renewed = true
	}
}

func (w *world) revokeOutside(p *pod, token bool) {
	leases := w.vault.Leases()
	w.mu.Lock()
	p.excused, p.renewed = time.Now().Add(heal), true
	var accessors, ids []string
	for _, l := range leases {
		if w.ownerLocked(l.Path) == p {
			ids, accessors = append(ids, l.ID), append(accessors, l.Accessor)
			w.revoked[l.ID] = true
		}
	}
	if token {
		for _, accessor := range accessors {
			w.lost[accessor] = true // what is under way under it then is nobody's fault
		}
	}
	w.mu.Unlock()
	for i := range ids {
		if token {
			w.vault.RevokeAccessor(accessors[i])
		} else {
			w.vault.RevokeLease(ids[i])
		}
	}
}
