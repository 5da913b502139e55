package pods

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/kube"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

// The reason that the pod garbage collector gives for a pod that it fails; the API package has no name for it.
const reasonPodGC = "DeletionByPodGC"

// forgetAfter is how long the facts of a volume are kept that nobody asks for; it is many times the slowest pace of asking.
const forgetAfter = 10 * time.Minute

// Config is what a Judge needs.
type Config struct {
	// Cluster is asked for pods and for kubelet's Lease; required.
	Cluster *kube.Cluster
	// KubeletDir is kubelet's root as this process sees it, for example /var/lib/kubelet. Only its pods folder is used. Where it is
	// empty no folder is seen, so that no unmount is.
	KubeletDir string
	// Now reads the clock; required.
	Now func() grant.Instant
	// Log is where failed look-ups are told, at debug level: the verdict says what follows; and, once, that folders cannot be
	// watched; required.
	Log *slog.Logger
}

// Judge gathers the facts of pods' ends. What it remembers (since when a pod is over, since when kubelet is alive) is not
// kept over a restart: counting anew errs on the safe side. Its methods may be called from any goroutine.
type Judge struct {
	cluster   *kube.Cluster
	folders   folders
	now       func() grant.Instant
	log       *slog.Logger
	kubelet   heartbeat
	inotify   inotify
	onUnmount func(podUID string)
	told      sync.Once // that folders cannot be watched
	toldDir   sync.Once // that they are elsewhere

	mu      sync.Mutex
	volumes map[spec.VolumeKey]*memory
}

// memory is what is remembered of a volume whose pod is over.
type memory struct {
	object Object
	// since is when object was first seen.
	since grant.Instant
	asked grant.Instant
	// held: the pod is over by what the API says, and the rest is awaited.
	held bool
	// warned is the last warning that was given out.
	warned string
	// watch is inotify's number for the volume's folder; zero when it is not watched.
	watch int
}

// New returns a Judge that remembers nothing.
func New(cfg Config) *Judge {
	return &Judge{
		cluster:   cfg.Cluster,
		folders:   folders{kubelet: cfg.KubeletDir, log: cfg.Log},
		now:       cfg.Now,
		log:       cfg.Log,
		onUnmount: func(string) {},
		volumes:   map[spec.VolumeKey]*memory{},
	}
}

// Ended tells whether the grant's pod is over for good. Its cost is a look at the folder; the API server is asked only for
// a pod that the cache does not have, until it is known to be gone. The folder that an answer waits for is watched until an
// answer waits for it no more. FolderSeen and Grace of the verdict should be kept in the grant whenever they are set: the next
// answer is built on them. A warning is given once.
func (j *Judge) Ended(ctx context.Context, g grant.Grant) grant.Verdict {
	facts := Facts{Grace: g.Grace}
	var seenGrace time.Duration
	var started time.Time
	pod, object, watched := j.object(ctx, g)
	if pod != nil {
		seenGrace = gracePeriod(pod)
		facts.Grace = seenGrace
		started = kube.Started(pod)
	}
	facts.Object, facts.Unwatched = object, !watched

	now := j.now()
	since := j.remember(g.Volume, object, now)
	var err error
	if object == ObjectTerminal || object == ObjectGone {
		err = j.watch(g.Volume) // before the look, so that no removal falls between the two
	}
	facts.Folder = j.folders.find(g.Volume, g.FolderSeen)
	facts.Over = now.Sub(since)
	if object == ObjectGone && facts.Folder != FolderGone {
		facts.Alive = j.kubeletAlive(ctx, since)
	}
	verdict := Ended(facts)
	switch {
	case verdict.Ended || facts.Folder != FolderPresent:
		j.unwatch(g.Volume)
	case err != nil:
		j.unwatchable(err)
	}
	if object == ObjectTerminal {
		if because := kube.EndedBecause(pod); because != "" {
			verdict.Reason += " (" + because + ")"
		}
	}
	verdict.Grace, verdict.Started = seenGrace, started
	verdict.Announced = j.cluster.Announced(g.Volume.PodUID)
	verdict.Warning = j.conclude(g.Volume, verdict)
	return verdict
}

// Sees returns what speaks against KubeletDir being the folder of the kubelet that mounts a volume at this moment, and names it by
// kubeletDir: that kubelet has made the pod's folder before it asked for the mount. What cannot be looked at proves nothing.
func (j *Judge) Sees(v spec.VolumeKey, kubeletDir string) error {
	if present, err := j.folders.hasPod(v); present || err != nil {
		return nil //nolint:nilerr // see above
	}
	j.toldDir.Do(func() {
		j.log.Error("--kubelet-dir is not the folder of the kubelet that mounts: nothing is mounted until it is", "kubelet-dir", j.folders.kubelet, "kubelet", kubeletDir)
	})
	return fmt.Errorf("kubelet has the folder of this pod below %s, which the provider does not see in its --kubelet-dir %s, so that it could not see the pod's end: "+
		"have the provider's pod mount kubelet's folder of pods, and name it in --kubelet-dir (kubeletRootDir of the chart), or say --no-kubelet-dir",
		spec.Quote(kubeletDir), j.folders.kubelet)
}

// Held reports whether a volume's pod is over or gone, by what the API says, while it is not certain that no container uses it any more.
func (j *Judge) Held(v spec.VolumeKey) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	m := j.volumes[v]
	return m != nil && m.held
}

// object returns the grant's pod, if it is there, what it says of the end, and whether the cache has it.
func (j *Judge) object(ctx context.Context, g grant.Grant) (pod *corev1.Pod, object Object, watched bool) {
	uid := g.Volume.PodUID
	if !j.cluster.Synced() {
		return nil, ObjectUnknown, false
	}
	if pod, ok := j.cluster.Pod(uid); ok {
		return pod, classify(pod), true
	}
	if j.knownGone(uid) {
		return nil, ObjectGone, false
	}
	pod, err := j.cluster.LivePod(ctx, g.Pod.Namespace, g.Pod.Name)
	if err != nil {
		j.log.Debug("cannot tell whether the pod exists", "pod", g.Pod.Namespace+"/"+g.Pod.Name, "uid", uid, "err", err)
		return nil, ObjectUnknown, false
	}
	if pod == nil || string(pod.UID) != uid {
		return nil, ObjectGone, false
	}
	return pod, classify(pod), false
}

// classify reads the end off a pod that is there. The pod garbage collector writes the phase of a pod that kubelet, being
// away, said nothing about, just before it deletes it.
func classify(pod *corev1.Pod) Object {
	if pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
		return ObjectActive
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == reasonPodGC {
			return ObjectGone
		}
	}
	return ObjectTerminal
}

// gracePeriod is how long kubelet gives the containers: the longer of the pod's own and its deletion's, and never zero,
// since kubelet does not kill in less than a second.
func gracePeriod(pod *corev1.Pod) time.Duration {
	seconds := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if own := pod.Spec.TerminationGracePeriodSeconds; own != nil {
		seconds = *own
	}
	if deletion := pod.DeletionGracePeriodSeconds; deletion != nil {
		seconds = max(seconds, *deletion)
	}
	const most = int64(math.MaxInt64 / time.Second)
	return time.Duration(min(max(seconds, 1), most)) * time.Second
}

// remember notes what the volume's pod was found to be and returns since when. A pod that is not over leaves no memory;
// neither does one that is not known, but what was known of it stays.
func (j *Judge) remember(v spec.VolumeKey, object Object, now grant.Instant) grant.Instant {
	j.mu.Lock()
	defer j.mu.Unlock()
	m := j.volumes[v]
	switch {
	case object == ObjectActive:
		j.dropLocked(v)
		return now
	case object == ObjectUnknown:
		return now
	case m == nil:
		j.forgetLocked(now)
		m = &memory{object: object, since: now}
		j.volumes[v] = m
	case m.object != object:
		*m = memory{object: object, since: now, watch: m.watch}
	}
	m.asked = now
	return m.since
}

// forgetLocked drops the volumes that are asked for no more: their grants ended, or were given up otherwise. Dropping them
// with the verdict would let another grant of the same volume wait all over again.
func (j *Judge) forgetLocked(now grant.Instant) {
	for v, m := range j.volumes {
		if now.Sub(m.asked) > forgetAfter {
			j.dropLocked(v)
		}
	}
}

// dropLocked forgets a volume, which ends its watch.
func (j *Judge) dropLocked(v spec.VolumeKey) {
	if m := j.volumes[v]; m != nil {
		j.inotify.remove(m.watch)
		delete(j.volumes, v)
	}
}

// knownGone spares live reads, also for the pod's other volumes: UIDs do not come back.
func (j *Judge) knownGone(uid string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for v, m := range j.volumes {
		if v.PodUID == uid && m.object == ObjectGone {
			return true
		}
	}
	return false
}

// conclude notes whether an end is held, and returns the verdict's warning unless it is the one that the volume had last.
func (j *Judge) conclude(v spec.VolumeKey, verdict grant.Verdict) (warning string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	m := j.volumes[v]
	if m == nil {
		return ""
	}
	m.held = !verdict.Ended
	if verdict.Warning == "" || m.warned == verdict.Warning {
		return ""
	}
	m.warned = verdict.Warning
	return verdict.Warning
}

// kubeletAlive returns for how long kubelet is proven alive without a gap since the given instant.
func (j *Judge) kubeletAlive(ctx context.Context, since grant.Instant) time.Duration {
	if j.kubelet.due(j.now()) {
		renewed, err := j.cluster.KubeletRenewed(ctx)
		if err != nil {
			j.log.Debug("cannot tell whether kubelet is alive", "err", err)
		} else {
			j.kubelet.saw(renewed, j.now())
		}
	}
	return j.kubelet.alive(since)
}
