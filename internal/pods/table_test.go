package pods_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/pods"
)

const (
	second = time.Second
	minute = time.Minute
	hour   = time.Hour
)

// The table of design.md, row by row. Limits stand on both of their sides.
func TestEnded(t *testing.T) {
	tests := map[string]struct {
		facts   pods.Facts
		ended   bool
		check   time.Duration
		reason  string // part of it
		warning string // part of it; empty for none
	}{
		// terminal phase written by kubelet | gone | yes
		"terminal, folder gone": {
			facts: pods.Facts{Object: pods.ObjectTerminal, Folder: pods.FolderGone},
			ended: true, reason: "ended and its volume is unmounted",
		},
		// terminal phase written by kubelet | present | yes after 5 min, with an event
		"terminal, folder present, now": {
			facts: pods.Facts{Object: pods.ObjectTerminal, Folder: pods.FolderPresent},
			check: 50 * time.Millisecond, reason: "kubelet has not removed its volume",
		},
		"terminal, folder present, a while": {
			facts: pods.Facts{Object: pods.ObjectTerminal, Folder: pods.FolderPresent, Over: 8 * second},
			check: 8 * second, reason: "kubelet has not removed its volume",
		},
		"terminal, folder present, long": {
			facts: pods.Facts{Object: pods.ObjectTerminal, Folder: pods.FolderPresent, Over: 2 * minute},
			check: 30 * second, reason: "kubelet has not removed its volume",
		},
		"terminal, folder present, just short of the limit": {
			facts: pods.Facts{Object: pods.ObjectTerminal, Folder: pods.FolderPresent, Over: 5*minute - second},
			check: second, reason: "kubelet has not removed its volume",
		},
		"terminal, folder present, at the limit": {
			facts: pods.Facts{Object: pods.ObjectTerminal, Folder: pods.FolderPresent, Over: 5 * minute},
			ended: true, reason: "its containers are dead", warning: "Is the CSI driver running",
		},
		"terminal, folder unknown, at the limit": {
			facts: pods.Facts{Object: pods.ObjectTerminal, Over: 5 * minute},
			ended: true, reason: "its containers are dead", warning: "pods folder mounted into the provider",
		},
		"terminal, folder never seen, now": {
			facts: pods.Facts{Object: pods.ObjectTerminal, Folder: pods.FolderNeverSeen},
			check: 50 * time.Millisecond, reason: "never seen",
		},
		"terminal, folder never seen, at the limit": {
			facts: pods.Facts{Object: pods.ObjectTerminal, Folder: pods.FolderNeverSeen, Over: 5 * minute},
			ended: true, reason: "its containers are dead",
		},
		// object gone, or Failed written by PodGC | gone | yes
		"gone, folder gone": {
			facts: pods.Facts{Object: pods.ObjectGone, Folder: pods.FolderGone},
			ended: true, reason: "gone from the API and its volume is unmounted",
		},
		// object gone | present, or never seen | when kubelet is proven alive for grace + 10 min; else hold, event
		"gone, folder present, now": {
			facts: pods.Facts{Object: pods.ObjectGone, Folder: pods.FolderPresent, Grace: 30 * second},
			check: 50 * time.Millisecond, reason: "held until kubelet has been alive for the grace period of 30s and 10m more (so far 0s)",
		},
		"gone, folder present, within the grace period": {
			facts: pods.Facts{Object: pods.ObjectGone, Folder: pods.FolderPresent, Grace: hour, Over: 59 * minute},
			check: 10 * second, reason: "held",
		},
		"gone, folder present, past the grace period": {
			facts: pods.Facts{Object: pods.ObjectGone, Folder: pods.FolderPresent, Grace: hour, Over: 61 * minute},
			check: 10 * second, reason: "held", warning: "held and renewed",
		},
		"gone, folder present, for days, kubelet silent": {
			facts: pods.Facts{Object: pods.ObjectGone, Folder: pods.FolderPresent, Grace: 30 * second, Over: 72 * hour},
			check: 10 * second, reason: "so far 0s", warning: "held and renewed",
		},
		"gone, folder present, kubelet alive not long enough": {
			facts: pods.Facts{Object: pods.ObjectGone, Folder: pods.FolderPresent, Grace: hour, Over: 2 * hour, Alive: hour + 10*minute - second},
			check: 10 * second, reason: "held", warning: "held and renewed",
		},
		"gone, folder present, kubelet alive long enough": {
			facts: pods.Facts{Object: pods.ObjectGone, Folder: pods.FolderPresent, Grace: hour, Over: 2 * hour, Alive: hour + 10*minute},
			ended: true, reason: "kubelet has been alive since", warning: "given back",
		},
		"gone, folder never seen, kubelet alive not long enough": {
			facts: pods.Facts{Object: pods.ObjectGone, Folder: pods.FolderNeverSeen, Grace: 30 * second, Alive: 10 * minute},
			check: 10 * second, reason: "never seen",
		},
		"gone, folder never seen, kubelet alive long enough": {
			facts: pods.Facts{Object: pods.ObjectGone, Folder: pods.FolderNeverSeen, Grace: 30 * second, Alive: 10*minute + 30*second},
			ended: true, reason: "kubelet has been alive since", warning: "given back",
		},
		"gone, folder unknown, kubelet alive long enough": {
			facts: pods.Facts{Object: pods.ObjectGone, Grace: 30 * second, Alive: 10*minute + 30*second},
			ended: true, reason: "kubelet has been alive since", warning: "pods folder mounted into the provider",
		},
		"gone, grace never seen, kubelet alive for a day": {
			facts: pods.Facts{Object: pods.ObjectGone, Folder: pods.FolderPresent, Over: 24 * hour, Alive: 24 * hour},
			check: 10 * second, reason: "held", warning: "held and renewed",
		},
		"gone, grace never seen, kubelet alive for longer": {
			facts: pods.Facts{Object: pods.ObjectGone, Folder: pods.FolderPresent, Over: 25 * hour, Alive: 24*hour + 10*minute},
			ended: true, reason: "grace period of 24h", warning: "given back",
		},
		"gone, the longest grace period there can be": {
			facts: pods.Facts{Object: pods.ObjectGone, Folder: pods.FolderPresent, Grace: math.MaxInt64, Alive: 1000 * hour},
			check: 50 * time.Millisecond, reason: "held",
		},
		// object there, not terminal | any | no
		"active, folder present": {
			facts:  pods.Facts{Object: pods.ObjectActive, Folder: pods.FolderPresent, Alive: 72 * hour},
			reason: "has not ended",
		},
		"active, folder gone": {
			facts:  pods.Facts{Object: pods.ObjectActive, Folder: pods.FolderGone, Over: 72 * hour, Alive: 72 * hour},
			reason: "has not ended",
		},
		"active, folder not seen yet": {
			facts: pods.Facts{Object: pods.ObjectActive, Folder: pods.FolderNeverSeen},
			check: 10 * second, reason: "has not ended",
		},
		"active, not in the cache": {
			facts: pods.Facts{Object: pods.ObjectActive, Folder: pods.FolderPresent, Unwatched: true},
			check: 10 * second, reason: "has not ended",
		},
		// API unreachable | any | no conclusion
		"unknown, folder gone": {
			facts: pods.Facts{Folder: pods.FolderGone, Over: 72 * hour, Alive: 72 * hour},
			check: 10 * second, reason: "nothing is concluded",
		},
		"unknown, folder present": {
			facts: pods.Facts{Folder: pods.FolderPresent},
			check: 10 * second, reason: "nothing is concluded",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			v := pods.Ended(tt.facts)
			if v.Ended != tt.ended || v.Check != tt.check {
				t.Errorf("ended %v, check in %v; want %v, %v", v.Ended, v.Check, tt.ended, tt.check)
			}
			if !strings.Contains(v.Reason, tt.reason) {
				t.Errorf("reason %q does not say %q", v.Reason, tt.reason)
			}
			if (v.Warning == "") != (tt.warning == "") || !strings.Contains(v.Warning, tt.warning) {
				t.Errorf("warning %q, want %q in it", v.Warning, tt.warning)
			}
			if v.FolderSeen != (tt.facts.Folder == pods.FolderPresent) {
				t.Errorf("folder seen: %v", v.FolderSeen)
			}
		})
	}
}

// Whatever the facts, also impossible ones.
func FuzzEnded(f *testing.F) {
	f.Add(int8(pods.ObjectGone), int8(pods.FolderPresent), false, int64(hour), int64(hour), int64(30*second), int64(minute))
	f.Add(int8(pods.ObjectTerminal), int8(pods.FolderUnknown), true, int64(math.MinInt64), int64(math.MinInt64), int64(math.MinInt64), int64(0))
	f.Add(int8(pods.ObjectGone), int8(pods.FolderNeverSeen), false, int64(math.MaxInt64), int64(math.MaxInt64), int64(math.MaxInt64), int64(second))
	f.Fuzz(func(t *testing.T, object, folder int8, unwatched bool, over, alive, grace, later int64) {
		facts := pods.Facts{
			Object: pods.Object(object), Folder: pods.Folder(folder), Unwatched: unwatched,
			Over: time.Duration(over), Alive: time.Duration(alive), Grace: time.Duration(grace),
		}
		v := pods.Ended(facts)
		if v.Ended && facts.Object != pods.ObjectTerminal && facts.Object != pods.ObjectGone {
			t.Fatalf("ended without an end: %+v: %s", facts, v.Reason)
		}
		if v.Ended && facts.Object == pods.ObjectGone && facts.Folder != pods.FolderGone && facts.Alive < 10*minute {
			t.Fatalf("ended though containers may run: %+v: %s", facts, v.Reason)
		}
		if v.Reason == "" || v.Check < 0 || v.Check > 30*second {
			t.Fatalf("reason %q, check in %v: %+v", v.Reason, v.Check, facts)
		}
		if over := facts.Object == pods.ObjectTerminal || facts.Object == pods.ObjectGone; over && !v.Ended && v.Check == 0 {
			t.Fatalf("nothing will wake: %+v", facts)
		}
		if later < 0 || facts.Over > math.MaxInt64-time.Duration(later) || facts.Alive > math.MaxInt64-time.Duration(later) {
			return
		}
		facts.Over += time.Duration(later)
		facts.Alive += time.Duration(later)
		if after := pods.Ended(facts); v.Ended && !after.Ended {
			t.Fatalf("a yes became a no %v later: %+v", time.Duration(later), facts)
		}
	})
}
