//nolint:forbidigo // sleeps inside synctest bubbles only
package simulate_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

const (
	namespace    = "shop"
	pollInterval = 2 * time.Minute // the driver's --rotation-poll-interval
	volumeName   = "creds"
)

// Tokens of these lives are still there when the world is checked for what was left.
const orphanTTL, longestTTL = 3 * time.Hour, 5 * time.Hour

// kind is what a pod's secrets are like.
type kind struct {
	name    string
	token   vaulttest.Role
	lease   vaulttest.Dynamic
	rotates bool // within the life of a pod, because a maximum is reached
	denied  bool // its second path is denied for a while: a crash loop
}

var kinds = []kind{
	{name: "long lease", token: vaulttest.Role{TTL: longestTTL, MaxTTL: 100 * time.Hour}, lease: vaulttest.Dynamic{TTL: time.Hour, MaxTTL: 100 * time.Hour}},
	{name: "short lease", token: vaulttest.Role{TTL: time.Hour, MaxTTL: 100 * time.Hour}, lease: vaulttest.Dynamic{TTL: 6 * time.Minute, MaxTTL: 100 * time.Hour}},
	{name: "rotating lease", token: vaulttest.Role{TTL: time.Hour, MaxTTL: 100 * time.Hour}, lease: vaulttest.Dynamic{TTL: 6 * time.Minute, MaxTTL: 15 * time.Minute}, rotates: true},
	{name: "ending token", token: vaulttest.Role{TTL: 6 * time.Minute, MaxTTL: 16 * time.Minute}, lease: vaulttest.Dynamic{TTL: time.Hour, MaxTTL: 100 * time.Hour}, rotates: true},
	{name: "period", token: vaulttest.Role{Period: 20 * time.Minute}, lease: vaulttest.Dynamic{TTL: 10 * time.Minute, MaxTTL: 100 * time.Hour}},
	{name: "crash loop", token: vaulttest.Role{TTL: orphanTTL, MaxTTL: 100 * time.Hour}, lease: vaulttest.Dynamic{TTL: time.Hour, MaxTTL: 100 * time.Hour}, denied: true},
}

// pod is one life: kubelet's and the driver's side of it.
type pod struct {
	w         *world
	name, uid string
	kind      kind
	end       string

	// Guarded by the world's lock.
	events  []string
	running bool // its containers
	empty   bool // they were started before the volume had files
	stepped bool // by a clock that is ahead of the provider's, so that it seems to have been later
	shown   map[string]string
	first   time.Time // when it showed something
	removed time.Time // its object
	gone    time.Time // when the containers were dead
	mounted bool      // it got files once
	// renewed: something happened that rightly brings new credentials; reissue: a new certificate.
	renewed, reissue bool
	// uncertified is until when a certificate may have ended, because no republish came for it.
	uncertified time.Time
	stale       int // republishes in a row with a password that was changed before
	rotated     bool
	logins      int             // before it showed anything
	leases      map[string]bool // those that were shown
	excused     time.Time
	failed      bool // the republish under way could not refresh
	misses      int  // republishes in a row that could not
	mounts      int
	// doubtful is the number of the Mount in which a read was cut off last.
	doubtful int
	frozen   time.Time // the driver's mtime of the folder
	dir      bool      // the driver's folder is there
	edited   string    // what the class says now
	asked    string    // what it said when the volume was last asked for
}

func newPod(w *world, i int) *pod {
	p := &pod{w: w, leases: map[string]bool{}, name: fmt.Sprintf("pod-%d", i), uid: fmt.Sprintf("uid-%d-%x", i, w.seed)}
	p.kind = kinds[int(w.dice.roll(p.name, "kind")*float64(len(kinds)))]
	p.end = w.dice.pick(p.name, "end", odds{{"force delete", 0.2}, {"job", 0.2}, {"driver down", 0.1}, {"deleted object first", 0.1}, {"pod gc", 0.08}, {"stuck unmount", 0.05}, {"delete", 1}})
	role := p.kind.token
	w.vault.Role(p.name, role)
	w.vault.Dynamic(p.path(), p.kind.lease)
	w.vault.KV2("secret/data/"+p.name, map[string]any{"k": p.name})
	w.vault.PKI(p.issue(), false)
	w.vault.Static(p.static(), w.dice.between(p.name, "period", 4*time.Minute, 9*time.Minute))
	if p.kind.denied {
		w.vault.Raw("secret/data/"+p.name, 403, "application/json", `{"errors":["1 error occurred:\n\t* permission denied\n\n"]}`)
	}
	return p
}

func (p *pod) path() string   { return "database/creds/" + p.name }
func (p *pod) issue() string  { return "pki/issue/" + p.name }
func (p *pod) static() string { return "database/static-creds/" + p.name }

func (p *pod) folder() string {
	return filepath.Join(p.w.dir, "pods", p.uid, "volumes", "kubernetes.io~csi", volumeName)
}

// live is the pod's life from its binding to the end of its folder.
func (p *pod) live() {
	time.Sleep(p.w.dice.between(p.name, "begin", 0, 5*time.Minute))
	p.create()
	lifetime := p.w.dice.between(p.name, "lifetime", 18*time.Minute, 26*time.Minute)
	ends := time.Now().Add(lifetime)
	if p.publishUntil(ends) {
		p.startContainers()
		p.run(ends)
	}
	p.finish()
}

// publishUntil is kubelet's first mount with its retries; false when the pod's time was up before.
func (p *pod) publishUntil(ends time.Time) bool {
	denials := 4 + int(p.w.dice.roll(p.name, "denials")*5)
	for try, pause := 1, 500*time.Millisecond; time.Now().Before(ends); try, pause = try+1, min(2*pause, 122*time.Second) {
		if p.kind.denied && try == denials {
			p.w.vault.KV2("secret/data/"+p.name, map[string]any{"k": p.name})
		}
		p.w.awaitKubelet()
		_ = os.MkdirAll(p.folder(), 0o755)
		code := p.publish(true)
		if code == codes.OK {
			return true
		}
		switch code {
		case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted, codes.Canceled:
		default: // final: kubelet removes the folder
			p.takesItsTime()
			_ = os.RemoveAll(p.folder())
			p.w.mu.Lock()
			p.dir = false
			p.w.mu.Unlock()
		}
		time.Sleep(pause)
	}
	return false
}

// publish is NodePublishVolume of the driver, with rotation on.
func (p *pod) publish(first bool) codes.Code {
	w := p.w
	w.mu.Lock()
	skip := p.dir && time.Since(p.frozen) < pollInterval
	remount := p.mounted
	p.mounts++
	p.failed = false
	if !p.dir {
		p.dir, p.frozen = true, time.Now()
	}
	w.mu.Unlock()
	w.add("republishes")
	if skip {
		return codes.OK
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	worked, begin := w.vault.Password(p.static()), time.Now()
	out, err := w.mount(ctx, p.request())
	driverFails := err == nil && !w.calm() && w.dice.roll(p.name, "driver fails") < 0.01
	w.mu.Lock()
	switch {
	case driverFails: // it throws away what was just in time
		p.misses = max(p.misses+1, 2)
	case err != nil || p.failed:
		p.misses++
	default:
		p.misses = 0
	}
	w.mu.Unlock()
	if err != nil {
		w.say("%s: mount: %s: %.200s", p.name, status.Code(err), status.Convert(err).Message())
		if remount || !first {
			return codes.OK // masked
		}
		return status.Code(err)
	}
	if driverFails {
		w.happened("driver failed after our success", "%s", p.name)
		if remount || !first {
			return codes.OK
		}
		return codes.Unknown
	}
	files := make(map[string]string, len(out.GetFiles()))
	for _, f := range out.GetFiles() {
		files[f.GetPath()] = string(f.GetContents())
	}
	w.mu.Lock()
	certain := !p.failed && time.Since(begin) < 30*time.Second
	w.mu.Unlock()
	if now := w.vault.Password(p.static()); certain {
		w.mu.Lock()
		w.staleLocked(p, files["static"], worked, now)
		w.mu.Unlock()
	}
	p.write(files)
	return codes.OK
}

// write is the driver's: content that did not change leaves the folder, and its mtime, alone.
func (p *pod) write(files map[string]string) {
	w := p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pairs[files["user"]] != files["pass"] || files["pass"] == "" {
		w.violatedLocked("I5", p.name, "shows a user and a password that Vault never gave out together")
	}
	w.certifiedLocked(p, files)
	if maps.Equal(p.shown, files) {
		return
	}
	before := p.shown
	p.shown, p.frozen, p.mounted, p.reissue = files, time.Now(), true, p.reissue && p.asked != p.edited
	switch {
	case before == nil:
		p.first = time.Now()
		w.sayLocked("%s: shows %s", p.name, files["user"])
	case before["user"] == files["user"]:
		return
	default:
		w.count["rotations"]++
		p.rotated = true
		w.sayLocked("%s: rotated to %s", p.name, files["user"])
	}
	p.renewed = p.kind.rotates || time.Now().Before(w.awayUntil) || time.Now().Before(p.excused) || w.revoked[w.issued[files["user"]]] || p.asked != p.edited
	p.leases[w.issued[files["user"]]] = true
}

func (p *pod) request() *v1alpha1.MountRequest {
	p.w.mu.Lock()
	edited := p.edited
	p.asked = edited
	p.w.mu.Unlock()
	attributes, _ := json.Marshal(map[string]string{
		"roleName": p.name, "secretProviderClass": "", "edited": edited,
		"objects": fmt.Sprintf("- {objectName: user, secretPath: %q, secretKey: username}\n- {objectName: pass, secretPath: %q, secretKey: password}\n- {objectName: kv, secretPath: %q, secretKey: k}\n"+
			"- {objectName: static, secretPath: %q, secretKey: password, refreshInterval: 1h}\n"+
			"- {objectName: crt, secretPath: %q, method: PUT, secretKey: certificate, revokeOnEnd: true, secretArgs: &args {common_name: %q, ttl: %d}}\n"+
			"- {objectName: key, secretPath: %q, method: POST, secretKey: private_key, secretArgs: *args}\n",
			p.path(), p.path(), "secret/data/"+p.name, p.static(), p.issue(), p.name, int(p.life().Seconds()), p.issue()),
		"csi.storage.k8s.io/pod.name": p.name, "csi.storage.k8s.io/pod.namespace": namespace, "csi.storage.k8s.io/pod.uid": p.uid,
		"csi.storage.k8s.io/serviceAccount.name":   "app",
		"csi.storage.k8s.io/serviceAccount.tokens": fmt.Sprintf(`{"vault":{"token":%q}}`, p.w.vault.JWT(namespace, "app", p.name)),
	})
	return &v1alpha1.MountRequest{Attributes: string(attributes), Permission: "420", TargetPath: p.folder() + "/mount"}
}

// run republishes until the containers' end is due.
func (p *pod) run(ends time.Time) {
	for time.Now().Before(ends) {
		time.Sleep(p.w.dice.between(p.name, "resync", time.Minute, 90*time.Second))
		p.w.awaitKubelet()
		p.publish(false)
	}
}

// finish ends the pod in its way.
func (p *pod) finish() {
	w := p.w
	grace := w.dice.between(p.name, "draining", 0, 25*time.Second)
	switch p.end {
	case "force delete":
		w.add("force deletes")
		w.say("%s: force delete", p.name)
		p.remove()
		time.Sleep(grace)
		p.stopContainers()
		p.unmount()
	case "job":
		p.dead()
		p.phase(corev1.PodSucceeded)
		p.unmount()
		time.Sleep(20 * time.Minute)
		p.remove()
	case "driver down":
		w.add("driver down at the end")
		p.terminate()
		time.Sleep(grace)
		p.stopContainers()
		p.phase(corev1.PodSucceeded)
		time.Sleep(12 * time.Minute)
		p.unmount()
		p.remove()
	case "pod gc": // the node was taken for lost, and its containers run on for longer than a volume is waited for
		w.add("pods failed by the garbage collector")
		w.mu.Lock()
		p.excused = time.Now().Add(time.Hour) // nobody republishes any more; what it has must not end before its time all the same
		w.mu.Unlock()
		p.collect()
		time.Sleep(w.dice.between(p.name, "collected", 5*time.Minute, 7*time.Minute))
		p.remove()
		time.Sleep(w.dice.between(p.name, "lingering", 0, 3*time.Minute))
		p.stopContainers()
		p.unmount()
	case "stuck unmount": // the folder stays, and kubelet lives
		w.add("stuck unmounts")
		p.remove()
		time.Sleep(grace)
		p.stopContainers()
	case "deleted object first":
		p.terminate()
		time.Sleep(grace)
		p.remove()
		time.Sleep(w.dice.between(p.name, "lingering", 0, 20*time.Second))
		p.stopContainers()
		p.unmount()
	default:
		p.terminate()
		time.Sleep(grace)
		p.stopContainers()
		p.unmount()
		p.remove()
	}
}

// takesItsTime keeps what kubelet does apart from what it is the consequence of: what happens at one instant happens in any order, and
// would not happen again when the world is replayed.
func (p *pod) takesItsTime() {
	time.Sleep(p.w.dice.between(p.name, "kubelet's time", 5*time.Millisecond, 95*time.Millisecond))
}

func (p *pod) unmount() {
	p.w.awaitKubelet()
	p.takesItsTime()
	_ = os.RemoveAll(p.folder())
	p.w.say("%s: unmounted", p.name)
}

func (p *pod) startContainers() {
	w := p.w
	w.mu.Lock()
	p.running, p.empty, p.stepped = true, p.shown == nil, w.step > 0
	if p.empty {
		w.count["started empty"]++
	}
	w.sayLocked("%s: containers started, empty %t", p.name, p.empty)
	w.mu.Unlock()
	at := w.kubeNow()
	p.update(func(o *corev1.Pod) {
		o.Status.Phase = corev1.PodRunning
		o.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at}}}}
	})
}

// stopContainers is kubelet's.
func (p *pod) stopContainers() {
	p.w.awaitKubelet()
	p.dead()
}

// dead says that the containers are.
func (p *pod) dead() {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.running, p.gone = false, time.Now()
	p.w.sayLocked("%s: containers are dead", p.name)
}

func (p *pod) create() {
	grace := int64(30)
	o := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: p.name, UID: types.UID(p.uid)},
		Spec:       corev1.PodSpec{NodeName: nodeName, TerminationGracePeriodSeconds: &grace},
		Status:     corev1.PodStatus{Phase: corev1.PodPending},
	}
	if err := p.w.api.Tracker().Add(o); err != nil {
		p.w.t.Error(err)
	}
	p.w.say("%s: bound (%s, ends by %s)", p.name, p.kind.name, p.end)
}

var podResource = corev1.SchemeGroupVersion.WithResource("pods")

// update changes the object as kubelet or a user does; the API server's weather is the provider's only.
func (p *pod) update(change func(*corev1.Pod)) {
	found, err := p.w.api.Tracker().Get(podResource, namespace, p.name)
	if err != nil {
		return
	}
	o, _ := found.(*corev1.Pod)
	o = o.DeepCopy()
	change(o)
	if err := p.w.api.Tracker().Update(podResource, o, namespace); err != nil {
		p.w.t.Error(err)
	}
}

// phase is written by kubelet.
func (p *pod) phase(phase corev1.PodPhase) {
	p.w.awaitKubelet()
	p.update(func(o *corev1.Pod) { o.Status.Phase = phase })
	p.w.say("%s: phase %s", p.name, phase)
}

// collect is what the pod garbage collector writes of a pod before it deletes it; it asks no kubelet.
func (p *pod) collect() {
	p.update(func(o *corev1.Pod) {
		o.Status.Phase = corev1.PodFailed
		o.Status.Conditions = []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC"}}
	})
	p.w.say("%s: failed by the garbage collector", p.name)
}

func (p *pod) terminate() {
	at := p.w.kubeNow()
	p.update(func(o *corev1.Pod) { o.DeletionTimestamp = &at })
	p.w.say("%s: terminating", p.name)
}

func (p *pod) remove() {
	_ = p.w.api.Tracker().Delete(podResource, namespace, p.name)
	p.w.mu.Lock()
	p.removed = time.Now()
	// Of a pod that went when its grant was made nobody knows the grace period: such a grant is held for a day.
	for token, name := range p.w.tokens {
		if accessor := p.w.accessors[token]; name == p.name && p.removed.Sub(p.w.born[accessor]) < 10*time.Second {
			p.w.lost[accessor] = true
		}
	}
	p.w.mu.Unlock()
	p.w.vault.PodGone(namespace, p.name)
	p.w.say("%s: object removed", p.name)
}
