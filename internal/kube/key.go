package kube

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

const (
	// keyField and keySize are those of the existing provider, whose Secret can be taken over.
	keyField = "key"
	keySize  = 32
	// keyTimeout bounds one try to read or make the Secret: at start, Mounts wait for the first.
	keyTimeout = 5 * time.Second
	// keyPause is how long after a failed try the next one comes, unless there is news of the Secret.
	keyPause = time.Minute
)

// SharedKeyConfig is what a SharedKey needs; every field is required.
type SharedKeyConfig struct {
	Client kubernetes.Interface
	// Namespace and Name are the Secret's.
	Namespace, Name string
	// Found is told the key whenever it was read, also when it is the one it was told before; never twice at a time.
	Found func(key []byte)
	// Log is where it is told that the Secret can be neither read nor made.
	Log *slog.Logger
}

// SharedKey is a random key that the providers of all nodes share through one Secret. The Secret is made when it is missing, and
// made anew when it is deleted: which node does so is a race that the API server decides. Make one with NewSharedKey.
type SharedKey struct {
	SharedKeyConfig

	informer cache.SharedIndexInformer
	// news holds one token when the Secret was seen to come, change or go.
	news chan struct{}
	// failed: the last try to find the key did.
	failed bool
	// told is the reason of the failure that was logged last.
	told atomic.Value
}

// settled is not among the reasons of failures.
const settled = metav1.StatusReason("Settled")

// NewSharedKey returns a SharedKey that has read nothing yet.
func NewSharedKey(cfg SharedKeyConfig) *SharedKey {
	byName := fields.OneTermEqualSelector(metav1.ObjectNameField, cfg.Name).String()
	return &SharedKey{
		SharedKeyConfig: cfg,
		informer: coreinformers.NewFilteredSecretInformer(cfg.Client, cfg.Namespace, 0, cache.Indexers{},
			func(o *metav1.ListOptions) { o.FieldSelector = byName }),
		news: make(chan struct{}, 1),
	}
}

// Read reads the key once, for those who must not begin without it. It takes 5 s at most; that it found none is logged, and Run
// goes on trying. It must be called before Run, if at all.
func (k *SharedKey) Read(ctx context.Context) { _ = k.settle(ctx) }

// Run follows the Secret until ctx ends; then it waits for what it started. It may be called once. Its error says that the
// informer could not be set up; a Secret that can be neither read nor made is no error.
func (k *SharedKey) Run(ctx context.Context) error {
	if err := k.informer.SetWatchErrorHandlerWithContext(k.watchFailed); err != nil {
		return fmt.Errorf("setting up the informer of Secret %s: %w", k.ref(), err)
	}
	_, err := k.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { k.wake() },
		UpdateFunc: func(any, any) { k.wake() },
		DeleteFunc: func(any) { k.wake() },
	})
	if err != nil {
		return fmt.Errorf("setting up the informer of Secret %s: %w", k.ref(), err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { k.informer.RunWithContext(ctx) })
	wg.Go(func() { k.follow(ctx) })
	wg.Wait()
	return nil
}

func (k *SharedKey) wake() {
	select {
	case k.news <- struct{}{}:
	default:
	}
}

func (k *SharedKey) follow(ctx context.Context) {
	for {
		var again <-chan time.Time
		if k.settle(ctx) != nil {
			again = time.After(keyPause)
		}
		select {
		case <-ctx.Done():
			return
		case <-k.news:
		case <-again:
		}
	}
}

// settle finds the key, making the Secret if need be, and logs why it could not.
func (k *SharedKey) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	key, err := k.find(ctx)
	failed := k.failed
	if k.failed = err != nil; k.failed {
		k.tell(err)
		return err
	}
	if failed { // what comes after is worth another line
		k.told.Store(settled)
	}
	k.Found(key)
	return nil
}

func (k *SharedKey) find(ctx context.Context) ([]byte, error) {
	secret, err := k.secret(ctx)
	switch {
	case apierrors.IsForbidden(err):
		return nil, k.forbidden(err)
	case err != nil:
		return nil, fmt.Errorf("reading or making Secret %s: %w", k.ref(), err)
	case len(secret.Data[keyField]) == 0:
		return nil, fmt.Errorf("the Secret %s has no data under %q: delete it, and it is made anew", k.ref(), keyField)
	}
	return secret.Data[keyField], nil
}

// secret reads the Secret or makes it. The informer only says when to look: its cache may be behind what was just made.
func (k *SharedKey) secret(ctx context.Context) (*corev1.Secret, error) {
	secrets := k.Client.CoreV1().Secrets(k.Namespace)
	found, err := secrets.Get(ctx, k.Name, metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		return found, err
	}
	made, err := secrets.Create(ctx, k.draw(), metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) { // another node was faster
		return secrets.Get(ctx, k.Name, metav1.GetOptions{})
	}
	return made, err
}

// draw is the Secret with a key that nobody had before. Immutable, because a key that changes by hand changes every object version
// for nothing; as well as in the existing provider, deleting it is how to get another.
func (k *SharedKey) draw() *corev1.Secret {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name},
		Immutable:  new(true),
		Data:       map[string][]byte{keyField: key},
	}
}

func (k *SharedKey) ref() string { return k.Namespace + "/" + k.Name }

func (k *SharedKey) forbidden(err error) error {
	return fmt.Errorf("a Role in namespace %s must allow the provider's service account to get, list and watch Secret %s, and to create Secrets: %w", k.Namespace, k.Name, err)
}

func (k *SharedKey) watchFailed(_ context.Context, _ *cache.Reflector, err error) {
	switch {
	case watchClosed(err):
		k.Log.Debug("watch of the version key's Secret closed, opening another", "err", err)
	case apierrors.IsForbidden(err):
		k.tell(k.forbidden(err))
	default:
		k.tell(fmt.Errorf("watching Secret %s: %w", k.ref(), err))
	}
}

// tell logs a failure, aloud only when the one before had another reason: the same is met again with every try.
func (k *SharedKey) tell(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	log, reason := k.Log.Warn, apierrors.ReasonForError(err)
	if k.told.Swap(reason) == any(reason) {
		log = k.Log.Debug
	}
	log("cannot follow the Secret that keys object versions; they keep the key they have", "err", err)
}
