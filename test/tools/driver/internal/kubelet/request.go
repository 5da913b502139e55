package kubelet

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-csi/leasehold/test/tools/driver/internal/driver"
)

// publishRequest returns what kubelet sends for an inline volume.
func (w *worker) publishRequest(ctx context.Context, pod *corev1.Pod, v corev1.Volume) (*csi.NodePublishVolumeRequest, error) {
	csiDriver, err := w.drivers.Get(driver.Name)
	if err != nil {
		return nil, fmt.Errorf("looking up the CSIDriver: %w", err)
	}
	secrets, err := w.publishSecrets(ctx, pod, v.CSI.NodePublishSecretRef)
	if err != nil {
		return nil, err
	}
	attributes := map[string]string{}
	maps.Copy(attributes, v.CSI.VolumeAttributes)
	if p := csiDriver.Spec.PodInfoOnMount; p != nil && *p {
		maps.Copy(attributes, podInfo(pod))
	}
	if requests := csiDriver.Spec.TokenRequests; len(requests) > 0 {
		tokens, err := w.serviceAccountTokens(ctx, pod, requests)
		if err != nil {
			return nil, err
		}
		attributes["csi.storage.k8s.io/serviceAccount.tokens"] = tokens
	}
	capability := &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
	if fsType := v.CSI.FSType; fsType != nil {
		capability.GetMount().FsType = *fsType
	}
	return &csi.NodePublishVolumeRequest{
		VolumeId:         fmt.Sprintf("csi-%x", sha256.Sum256([]byte(string(pod.UID)+v.Name))),
		TargetPath:       target(filepath.Join(w.volumesDir(), v.Name)),
		VolumeCapability: capability,
		Readonly:         v.CSI.ReadOnly != nil && *v.CSI.ReadOnly,
		Secrets:          secrets,
		VolumeContext:    attributes,
	}, nil
}

func podInfo(pod *corev1.Pod) map[string]string {
	return map[string]string{
		"csi.storage.k8s.io/pod.name":            pod.Name,
		"csi.storage.k8s.io/pod.namespace":       pod.Namespace,
		"csi.storage.k8s.io/pod.uid":             string(pod.UID),
		"csi.storage.k8s.io/serviceAccount.name": pod.Spec.ServiceAccountName,
		"csi.storage.k8s.io/ephemeral":           "true",
	}
}

// publishSecrets reads the Secret that a volume refers to; nil when it refers to none.
func (w *worker) publishSecrets(ctx context.Context, pod *corev1.Pod, ref *corev1.LocalObjectReference) (map[string]string, error) {
	if ref == nil {
		return nil, nil
	}
	secret, err := w.Client.CoreV1().Secrets(pod.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("fetching NodePublishSecretRef %s/%s failed: %w", pod.Namespace, ref.Name, err)
	}
	values := make(map[string]string, len(secret.Data))
	for key, value := range secret.Data {
		values[key] = string(value)
	}
	return values, nil
}

// serviceAccountTokens returns the JSON object, keyed by audience, that kubelet
// puts into the attributes.
func (w *worker) serviceAccountTokens(ctx context.Context, pod *corev1.Pod, requests []storagev1.TokenRequest) (string, error) {
	byAudience := map[string]authenticationv1.TokenRequestStatus{}
	for _, r := range requests {
		token, err := w.token(ctx, pod, r)
		if err != nil {
			return "", fmt.Errorf("requesting a service account token: %w", err)
		}
		byAudience[r.Audience] = token
	}
	text, err := json.Marshal(byAudience)
	return string(text), err
}

// tokenCache holds a pod's tokens by audience. The zero value is empty.
type tokenCache struct {
	sync.Mutex
	byAudience map[string]cachedToken
}

type cachedToken struct {
	authenticationv1.TokenRequestStatus
	renewAt time.Time
}

// token returns a token bound to the pod, from the cache while it is fresh.
func (w *worker) token(ctx context.Context, pod *corev1.Pod, r storagev1.TokenRequest) (authenticationv1.TokenRequestStatus, error) {
	w.tokens.Lock()
	cached, ok := w.tokens.byAudience[r.Audience]
	w.tokens.Unlock()
	if ok && time.Now().Before(cached.renewAt) {
		return cached.TokenRequestStatus, nil
	}

	spec := authenticationv1.TokenRequestSpec{
		ExpirationSeconds: r.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}
	if r.Audience != "" {
		spec.Audiences = []string{r.Audience}
	}
	issued, err := w.Client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.Spec.ServiceAccountName, &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.TokenRequestStatus{}, err
	}
	w.tokens.Lock()
	defer w.tokens.Unlock()
	if w.tokens.byAudience == nil {
		w.tokens.byAudience = map[string]cachedToken{}
	}
	w.tokens.byAudience[r.Audience] = cachedToken{issued.Status, renewTime(time.Now(), issued.Status.ExpirationTimestamp.Time)}
	return issued.Status, nil
}

// renewTime is when kubelet asks for another token: with a fifth of its life left,
// after a day at the latest, up to 10 s earlier so that pods do not ask together.
func renewTime(now, expires time.Time) time.Time {
	life := min(expires.Sub(now)*4/5, 24*time.Hour)
	return now.Add(life - rand.N(10*time.Second))
}
