// Package kube is what the API server says about this node: its pods, as a cache and as live reads, and whether kubelet
// still renews the node's Lease. It also posts events on pods, and shares the key of object versions with the other nodes.
//
// It concludes nothing. When the API server is away the cache stays as it was last seen and live reads answer with an
// error; what may be made of that is decided by package pods.
package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/secrets-store-csi-driver/pkg/client/clientset/versioned"
)

const (
	// requestTimeout bounds each single request; the informer's long watches excepted.
	requestTimeout = 10 * time.Second
	byUID          = "uid"
)

// Config is what a Cluster needs.
type Config struct {
	// Client reaches the API server; required.
	Client kubernetes.Interface
	// EventClient posts events; nil means Client. One of its own has its own share of requests, so that what is to be told waits for no
	// look at pods, however many of these are due.
	EventClient kubernetes.Interface
	// Classes reaches it for SecretProviderClasses; needed by SyncedObjects only.
	Classes versioned.Interface
	// Node is this node's name in the API; required.
	Node string
	// Log is where the Cluster tells of a lost API server and of events it could not post; required.
	Log *slog.Logger
}

// Cluster is the API server as seen from one node. Make one with New; its methods may be called from any goroutine.
type Cluster struct {
	client  kubernetes.Interface
	poster  kubernetes.Interface
	classes versioned.Interface
	// reads are those of classes that serve others.
	reads struct {
		sync.Mutex
		begun map[string]*classRead
	}
	node      string
	log       *slog.Logger
	informer  cache.SharedIndexInformer
	onPod     func(uid string)
	onSynced  func()
	events    chan *corev1.Event
	announced announcements
}

// New returns a Cluster that knows nothing yet: Run fills its cache.
func New(cfg Config) *Cluster {
	ofNode := fields.OneTermEqualSelector("spec.nodeName", cfg.Node).String()
	return &Cluster{
		client:  cfg.Client,
		poster:  cmp.Or(cfg.EventClient, cfg.Client),
		classes: cfg.Classes,
		node:    cfg.Node,
		log:     cfg.Log,
		informer: coreinformers.NewFilteredPodInformer(cfg.Client, metav1.NamespaceAll, 0,
			cache.Indexers{byUID: indexUID},
			func(o *metav1.ListOptions) { o.FieldSelector = ofNode }),
		onPod:    func(string) {},
		onSynced: func() {},
		events:   make(chan *corev1.Event, eventQueue),
	}
}

// OnPod sets the function that is told the UID of each pod that appeared, disappeared (also while the API server was
// away) or changed in what matters to its end. It must not block, and must be set before Run. The cache already holds the
// news when it is called.
func (c *Cluster) OnPod(f func(uid string)) { c.onPod = f }

// OnSynced sets the function that is called once, when the cache has come to hold all of the node's pods. It must be set before
// Run.
func (c *Cluster) OnSynced(f func()) { c.onSynced = f }

// Run keeps the cache current and posts events until ctx ends; then it waits for what it started. Events that still wait
// are dropped. It may be called once. Its error says that the informer could not be set up; a lost API server is no error.
func (c *Cluster) Run(ctx context.Context) error {
	if err := c.prepare(); err != nil {
		return fmt.Errorf("setting up the pod informer: %w", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { c.informer.RunWithContext(ctx) })
	wg.Go(func() { c.postEvents(ctx) })
	wg.Go(func() {
		if cache.WaitForCacheSync(ctx.Done(), c.informer.HasSynced) {
			c.onSynced()
		}
	})
	wg.Wait()
	return nil
}

func (c *Cluster) prepare() error {
	if err := c.informer.SetTransform(strip); err != nil {
		return err
	}
	if err := c.informer.SetWatchErrorHandlerWithContext(c.watchFailed); err != nil {
		return err
	}
	_, err := c.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    c.added,
		UpdateFunc: c.updated,
		DeleteFunc: c.deleted,
	})
	return err
}

// Synced tells whether the cache has held all of the node's pods once. It stays true when the API server goes away.
func (c *Cluster) Synced() bool { return c.informer.HasSynced() }

// Pod returns the pod of that UID from the cache, reduced to identity, service account, grace period, deletion, phase, the
// DisruptionTarget condition, and what Started, EndedBecause, SubPath and Overrides tell. It must not be changed. Not there means little before
// Synced, and even then the cache may lag: see LivePod.
func (c *Cluster) Pod(uid string) (*corev1.Pod, bool) {
	found, err := c.informer.GetIndexer().ByIndex(byUID, uid)
	if err != nil || len(found) == 0 {
		return nil, false
	}
	pod, ok := found[0].(*corev1.Pod)
	return pod, ok
}

// LivePod asks the API server, past every cache, for the pod of that name. It returns nil without an error only when the
// API server itself says that there is none. Names are used again: the caller must compare UIDs. A static pod's mirror
// carries the UID that kubelet knows the static pod by, since that is the one in Mount calls.
func (c *Cluster) LivePod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	if namespace == "" || name == "" {
		// Such a path is another resource, or none: its 404 would say nothing about the pod.
		return nil, errors.New("reading a pod: no namespace or no name")
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	pod, err := c.client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	// A 404 that is not in the API's own words comes from something in between, which knows no pods.
	if apierrors.IsNotFound(err) && !apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading pod %s/%s: %w", namespace, name, err)
	}
	if static, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]; ok {
		pod.UID = types.UID(static)
	}
	return pod, nil
}

// KubeletRenewed returns when this node's kubelet last renewed its node Lease, by kubelet's clock.
func (c *Cluster) KubeletRenewed(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	lease, err := c.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, c.node, metav1.GetOptions{})
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the lease of node %s: %w", c.node, err)
	}
	if lease.Spec.RenewTime == nil {
		return time.Time{}, fmt.Errorf("reading the lease of node %s: it was never renewed", c.node)
	}
	return lease.Spec.RenewTime.Time, nil
}

func (c *Cluster) added(obj any) {
	if pod, ok := obj.(*corev1.Pod); ok {
		c.announced.look(pod)
		c.onPod(string(pod.UID))
	}
}

func (c *Cluster) updated(before, after any) {
	was, ok := before.(*corev1.Pod)
	is, ok2 := after.(*corev1.Pod)
	if !ok || !ok2 {
		return
	}
	c.announced.look(is)
	if was.UID != is.UID {
		// The cache's key is the name: a pod that was deleted and made anew between two lists arrives as an update.
		c.onPod(string(was.UID))
	}
	if was.UID != is.UID || !sameEnd(was, is) {
		c.onPod(string(is.UID))
	}
}

func (c *Cluster) deleted(obj any) {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj // missing in a list, of which nobody told
	} else if pod, ok := obj.(*corev1.Pod); ok {
		c.announced.add(string(pod.UID))
	}
	if pod, ok := obj.(*corev1.Pod); ok {
		c.onPod(string(pod.UID))
	}
}

// sameEnd compares all that strip keeps and that can change, except the resource version, which moves with every heartbeat of a
// probe.
func sameEnd(a, b *corev1.Pod) bool {
	return a.DeletionTimestamp.Equal(b.DeletionTimestamp) &&
		equality.Semantic.DeepEqual(a.DeletionGracePeriodSeconds, b.DeletionGracePeriodSeconds) &&
		equality.Semantic.DeepEqual(a.Status, b.Status)
}

func (c *Cluster) watchFailed(_ context.Context, _ *cache.Reflector, err error) {
	if watchClosed(err) {
		c.log.Debug("pod watch closed, opening another", "err", err)
	} else {
		c.log.Warn("cannot watch the node's pods, trying again", "err", err)
	}
}

// watchClosed tells the ordinary end of a watch from a failure.
func watchClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
}

func indexUID(obj any) ([]string, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return nil, fmt.Errorf("indexing pods: got a %T", obj)
	}
	return []string{string(pod.UID)}, nil
}

// strip keeps what the end of a pod is judged by, and whose it is: a pod in full takes tens of kilobytes, for each pod of the node.
func strip(obj any) (any, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	kept := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:                  pod.Namespace,
			Name:                       pod.Name,
			UID:                        pod.UID,
			ResourceVersion:            pod.ResourceVersion,
			DeletionTimestamp:          pod.DeletionTimestamp,
			DeletionGracePeriodSeconds: pod.DeletionGracePeriodSeconds,
		},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: pod.Spec.TerminationGracePeriodSeconds,
			ServiceAccountName:            pod.Spec.ServiceAccountName,
			Containers:                    subPaths(&pod.Spec),
			Volumes:                       overrides(&pod.Spec),
		},
		Status: corev1.PodStatus{Phase: pod.Status.Phase, ContainerStatuses: started(pod)},
	}
	kept.Status.Reason, kept.Status.Message = endOf(pod)
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.DisruptionTarget {
			kept.Status.Conditions = []corev1.PodCondition{condition}
		}
	}
	return kept, nil
}
