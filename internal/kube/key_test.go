//nolint:forbidigo // sleeps inside synctest bubbles only
package kube_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/leasehold-csi/leasehold/internal/kube"
)

const (
	keyNamespace = "leasehold"
	keyName      = "vault-csi-provider-hmac-key"
)

var secretResource = corev1.SchemeGroupVersion.WithResource("secrets")

// keyHolder is a node that shares the key.
type keyHolder struct {
	mu   sync.Mutex
	key  string
	log  strings.Builder
	keys *kube.SharedKey
}

// newKeyHolder returns a node that has read nothing yet.
func newKeyHolder(client *fake.Clientset) *keyHolder {
	h := new(keyHolder)
	h.keys = kube.NewSharedKey(kube.SharedKeyConfig{
		Client: client, Namespace: keyNamespace, Name: keyName,
		Found: func(key []byte) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.key = string(key)
		},
		Log: slog.New(slog.NewTextHandler(h, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	return h
}

func (h *keyHolder) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.Write(p)
}

// start begins as the provider does: reads once, then follows until the bubble's test ends.
func (h *keyHolder) start(t *testing.T) *keyHolder {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	h.keys.Read(ctx)
	ended := make(chan error, 1)
	go func() { ended <- h.keys.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return h
}

// has is the key it was told last, once everything has settled.
func (h *keyHolder) has() string {
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.key
}

// warnings are the lines of the log.
func (h *keyHolder) warnings() []string {
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(strings.Lines(h.log.String()))
}

func keySecret(key string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: keyNamespace, Name: keyName}, Data: map[string][]byte{"key": []byte(key)}}
}

func getKeySecret(t *testing.T, client *fake.Clientset) *corev1.Secret {
	t.Helper()
	object, err := client.Tracker().Get(secretResource, keyNamespace, keyName)
	if err != nil {
		t.Fatal(err)
	}
	return object.(*corev1.Secret)
}

// TestKeyIsMadeOnceForAllNodes: the first node makes it, the others read it, and nobody asks for it again.
func TestKeyIsMadeOnceForAllNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset()
		first := newKeyHolder(client)
		first.keys.Read(t.Context())
		if len(first.has()) != 32 {
			t.Fatalf("a key of %d bytes after reading", len(first.has()))
		}
		other := newKeyHolder(client).start(t)
		if other.has() != first.has() {
			t.Error("two nodes have different keys")
		}
		made := getKeySecret(t, client)
		if string(made.Data["key"]) != first.has() || made.Immutable == nil || !*made.Immutable {
			t.Errorf("made %+v, want it immutable, with the key", made)
		}
		for _, a := range client.Actions() {
			var selector string
			switch a := a.(type) {
			case k8stesting.ListActionImpl:
				selector = a.ListOptions.FieldSelector
			case k8stesting.WatchActionImpl:
				selector = a.ListOptions.FieldSelector
			default:
				continue
			}
			if a.GetNamespace() != keyNamespace || selector != "metadata.name="+keyName {
				t.Errorf("%s in %q with selector %q", a.GetVerb(), a.GetNamespace(), selector)
			}
		}
		client.ClearActions()
		time.Sleep(time.Hour)
		if got := client.Actions(); len(got) > 0 {
			t.Errorf("%d requests while nothing happened: %v", len(got), got)
		}
	})
}

// TestKeyOfAnother: what is there already is taken, also what comes between looking and making.
func TestKeyOfAnother(t *testing.T) {
	for name, prepare := range map[string]func(*fake.Clientset) error{
		"before": func(c *fake.Clientset) error { return c.Tracker().Add(keySecret("another's")) },
		"in a race": func(c *fake.Clientset) error {
			c.PrependReactor("create", "secrets", func(k8stesting.Action) (bool, runtime.Object, error) {
				return true, nil, errorsOf(c.Tracker().Add(keySecret("another's")), apierrors.NewAlreadyExists(corev1.Resource("secrets"), keyName))
			})
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := fake.NewSimpleClientset()
				if err := prepare(client); err != nil {
					t.Fatal(err)
				}
				h := newKeyHolder(client)
				h.keys.Read(t.Context())
				if got := h.has(); got != "another's" || len(h.warnings()) > 0 {
					t.Errorf("key %q, log %q", got, h.warnings())
				}
			})
		})
	}
}

// errorsOf is the first error that there is.
func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestKeyIsMadeAnew: a deleted Secret comes back at once, and all nodes have the new key; one that others put there is followed.
func TestKeyIsMadeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset()
		a, b := newKeyHolder(client).start(t), newKeyHolder(client).start(t)
		old := a.has()
		if err := client.Tracker().Delete(secretResource, keyNamespace, keyName); err != nil {
			t.Fatal(err)
		}
		if a.has() == old || a.has() != b.has() || a.has() != string(getKeySecret(t, client).Data["key"]) {
			t.Error("the nodes do not share a new key")
		}
		if err := client.Tracker().Update(secretResource, keySecret("restored"), keyNamespace); err != nil {
			t.Fatal(err)
		}
		if a.has() != "restored" || b.has() != "restored" {
			t.Errorf("keys %q and %q after a change", a.has(), b.has())
		}
	})
}

// TestKeyOutOfReach: without the rule, or without an API server, the node says so once, does not insist, and has the key soon
// after it can.
func TestKeyOutOfReach(t *testing.T) {
	forbidden := apierrors.NewForbidden(corev1.Resource("secrets"), keyName, nil)
	tests := map[string]struct {
		verb   string // that fails
		answer error
		has    bool // the key all the same
		want   string
	}{
		"no rule at all":       {"*", forbidden, false, "a Role in namespace leasehold must allow the provider's service account to get, list and watch Secret " + keyName + ", and to create Secrets"},
		"no rule to create":    {"create", forbidden, false, "and to create Secrets"},
		"no rule to watch":     {"watch", forbidden, true, "list and watch Secret"},
		"the API server away":  {"*", errTransport, false, "connection refused"},
		"a watch that is torn": {"watch", errTransport, true, "connection refused"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := fake.NewSimpleClientset()
				var over atomic.Bool
				fails := func(a k8stesting.Action) bool { return !over.Load() && (tt.verb == "*" || a.GetVerb() == tt.verb) }
				client.PrependReactor("*", "secrets", func(a k8stesting.Action) (bool, runtime.Object, error) { return fails(a), nil, tt.answer })
				client.PrependWatchReactor("secrets", func(a k8stesting.Action) (bool, watch.Interface, error) { return fails(a), nil, tt.answer })
				h := newKeyHolder(client).start(t)
				if got := h.has() != ""; got != tt.has {
					t.Errorf("has a key: %v, want %v", got, tt.has)
				}
				client.ClearActions()
				time.Sleep(time.Hour)
				if n := len(client.Actions()); n > 600 {
					t.Errorf("%d requests in an hour", n)
				}
				if got := h.warnings(); len(got) != 1 || !strings.Contains(got[0], tt.want) {
					t.Errorf("warnings %q, want one with %q", got, tt.want)
				}
				over.Store(true)
				time.Sleep(2 * time.Minute)
				if key := h.has(); len(key) != 32 || key != string(getKeySecret(t, client).Data["key"]) {
					t.Errorf("%d bytes of a key when it is over, want that of the Secret", len(key))
				}
			})
		})
	}
}

// TestKeyNeedsData: a Secret that holds nothing to use is told of, and healed by deleting it, as the log says.
func TestKeyNeedsData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleClientset(keySecret(""))
		h := newKeyHolder(client).start(t)
		if got := h.warnings(); h.has() != "" || len(got) != 1 || !strings.Contains(got[0], "delete it, and it is made anew") {
			t.Errorf("key %q, warnings %q", h.has(), got)
		}
		if err := client.Tracker().Delete(secretResource, keyNamespace, keyName); err != nil {
			t.Fatal(err)
		}
		if len(h.has()) != 32 {
			t.Error("no key after the deletion")
		}
	})
}
