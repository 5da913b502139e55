// Package pods proves that a pod ended: that none of its containers can use a volume any more.
//
// Neither source is enough alone. The API server forgets a force-deleted pod while its containers still run; kubelet's
// folder of a volume is also absent after a failed publish that will be tried again. [Ended] is the table that weighs the
// two, and knows nothing but its argument; a [Judge] gathers the facts.
//
// What is not known proves nothing: when the API server, kubelet or this process was away, the answer is "not ended".
package pods

import (
	"fmt"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
)

// Object is what the API server says of a pod.
type Object int

// The states of a pod's object.
const (
	// ObjectUnknown: the API server could not be asked. It is the zero value and never ends anything.
	ObjectUnknown Object = iota
	// ObjectActive: the pod is there and not over; perhaps terminating, with containers that drain.
	ObjectActive
	// ObjectTerminal: kubelet wrote the phase Succeeded or Failed, which it does only once all containers are dead.
	ObjectTerminal
	// ObjectGone: no pod of that UID is left, or the pod garbage collector failed it. Neither says anything of containers.
	ObjectGone
)

// Folder is what the disk says of kubelet's folder of the volume.
type Folder int

// The states of the folder.
const (
	// FolderUnknown: it could not be looked up. It is the zero value and counts as present.
	FolderUnknown Folder = iota
	FolderPresent
	// FolderGone: it was seen for this grant and is there no more, so kubelet has unmounted the volume.
	FolderGone
	// FolderNeverSeen: it is not there and never was, as far as is known: no proof of an unmount.
	FolderNeverSeen
)

// Facts is what is known of one volume's pod. The zero value is to know nothing.
type Facts struct {
	Object Object
	// Unwatched: the object was read live and is missing in the cache, so no change of it will wake anybody.
	Unwatched bool
	Folder    Folder
	// Over is how long Object has been known to be what it is, for ObjectTerminal and ObjectGone.
	Over time.Duration
	// Alive is for how long, without a gap, kubelet has been proven alive since the object is known to be gone.
	Alive time.Duration
	// Grace is the pod's termination grace period; zero when nobody saw it.
	Grace time.Duration
}

const (
	// unmountLimit is how long after the containers' death a volume may stay mounted before it is not waited for.
	unmountLimit = 5 * time.Minute
	// killMargin is added to a grace period: kubelet alive for both has killed what it has to kill.
	killMargin = 10 * time.Minute
	// unseenGrace stands for a grace period that nobody saw: longer than those in use.
	unseenGrace = 24 * time.Hour
	// quietKill is how long after the grace period a force-deleted pod may take before somebody is told.
	quietKill = time.Minute

	soon     = 50 * time.Millisecond
	holdPace = 10 * time.Second
	slowPace = 30 * time.Second
)

// Ended is the table: whether a pod with these facts is over for good, by which row, and when to look again.
// With all else equal, later never turns a yes into a no.
func Ended(f Facts) grant.Verdict {
	v := grant.Verdict{FolderSeen: f.Folder == FolderPresent}
	switch f.Object {
	case ObjectActive:
		active(f, &v)
	case ObjectTerminal:
		terminal(f, &v)
	case ObjectGone:
		gone(f, &v)
	default:
		v.Reason = "whether the pod still exists is not known, the API server did not tell: nothing is concluded"
		v.Check = holdPace
	}
	return v
}

func active(f Facts, v *grant.Verdict) {
	v.Reason = "the pod exists and has not ended"
	// Until the folder was seen once its absence would prove nothing, so it is worth looking for.
	if f.Unwatched || f.Folder == FolderUnknown || f.Folder == FolderNeverSeen {
		v.Check = holdPace
	}
}

func terminal(f Facts, v *grant.Verdict) {
	switch {
	case f.Folder == FolderGone:
		v.Ended, v.Reason = true, "the pod ended and its volume is unmounted"
	case f.Over >= unmountLimit:
		v.Ended = true
		v.Reason = fmt.Sprintf("the pod ended over %s ago and its containers are dead, though %s", pretty(unmountLimit), f.Folder)
		// A folder that was never seen is ordinary here: the pod failed before its volume was published.
		if f.Folder != FolderNeverSeen {
			v.Warning = fmt.Sprintf("The pod ended over %s ago, but %s. Its containers are dead: its Vault leases are given back.%s",
				pretty(unmountLimit), f.Folder, f.Folder.hint())
		}
	default:
		v.Reason = fmt.Sprintf("the pod ended, but %s: given back %s after its end at the latest", f.Folder, pretty(unmountLimit))
		v.Check = min(backoff(f.Over, slowPace), unmountLimit-max(f.Over, 0))
	}
}

func gone(f Facts, v *grant.Verdict) {
	grace := f.Grace
	if grace <= 0 {
		grace = unseenGrace
	}
	alive := max(f.Alive, 0)
	switch {
	case f.Folder == FolderGone:
		v.Ended, v.Reason = true, "the pod is gone from the API and its volume is unmounted"
	// The margin is taken from the side that cannot overflow: tenants choose the grace period.
	case alive-killMargin >= grace:
		v.Ended = true
		v.Reason = fmt.Sprintf("the pod is gone from the API and kubelet has been alive since, for its grace period of %s and %s more, though %s",
			pretty(grace), pretty(killMargin), f.Folder)
		v.Warning = fmt.Sprintf("The pod is gone from the API, but %s. Kubelet had the time to stop its containers: its Vault leases are given back.%s",
			f.Folder, f.Folder.hint())
	default:
		v.Reason = fmt.Sprintf("the pod is gone from the API, but %s and its containers may still run: "+
			"held until kubelet has been alive for the grace period of %s and %s more (so far %s)",
			f.Folder, pretty(grace), pretty(killMargin), pretty(alive))
		v.Check = holdPace
		if f.Folder == FolderPresent {
			v.Check = backoff(f.Over, holdPace)
		}
		if max(f.Over, 0)-quietKill >= f.Grace {
			v.Warning = fmt.Sprintf("The pod is gone from the API, but %s and its containers may still run: "+
				"its Vault leases are held and renewed.%s", f.Folder, f.Folder.hint())
		}
	}
}

// backoff doubles from soon to limit: kubelet mostly unmounts within a tenth of a second, or not for long.
func backoff(over, limit time.Duration) time.Duration {
	return min(max(over, soon), limit)
}

// pretty leaves out what nobody reads: 10m0s is 10m, and nothing is finer than a second.
func pretty(d time.Duration) string {
	d = d.Truncate(time.Second)
	switch {
	case d >= time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= time.Minute && d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	default:
		return d.String()
	}
}

// String says what is the matter with a folder that is not known to be gone.
func (f Folder) String() string {
	switch f {
	case FolderPresent:
		return "kubelet has not removed its volume"
	case FolderGone:
		return "its volume is unmounted"
	case FolderNeverSeen:
		return "kubelet's folder of its volume was never seen"
	default:
		return "kubelet's folder of its volume cannot be looked up"
	}
}

// hint says what an operator should look at.
func (f Folder) hint() string {
	switch f {
	case FolderPresent:
		return " Is the CSI driver running on this node?"
	case FolderUnknown:
		return " Is kubelet's pods folder mounted into the provider?"
	default:
		return ""
	}
}
