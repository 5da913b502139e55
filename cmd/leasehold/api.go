package main

import (
	"fmt"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/secrets-store-csi-driver/pkg/client/clientset/versioned"

	"github.com/leasehold-csi/leasehold/internal/kube"
)

// apiRate is how many requests a second the Kubernetes API is asked at most: a drained node ends all its pods at once, and each
// end is believed only after a live GET.
const apiRate = 25

// apiClients reach the Kubernetes API.
type apiClients struct {
	client  kubernetes.Interface
	events  kubernetes.Interface // with a rate of its own
	classes versioned.Interface
	// namespace is the provider's own.
	namespace string
}

// connect makes the clients; answered is told of each request.
func connect(kubeconfig string, answered func(method string, status int)) (a apiClients, err error) {
	access := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(&clientcmd.ClientConfigLoadingRules{ExplicitPath: kubeconfig}, nil)
	config, err := access.ClientConfig()
	if err != nil {
		return a, fmt.Errorf("finding the Kubernetes API: %w", err)
	}
	if a.namespace, _, err = access.Namespace(); err != nil {
		return a, fmt.Errorf("finding the provider's own namespace: %w", err)
	}
	config.QPS, config.Burst = apiRate, 2*apiRate
	kube.Observe(config, answered)
	if a.client, err = kubernetes.NewForConfig(config); err != nil {
		return a, fmt.Errorf("making a Kubernetes client: %w", err)
	}
	if a.events, err = kubernetes.NewForConfig(config); err != nil {
		return a, fmt.Errorf("making a Kubernetes client for events: %w", err)
	}
	unlimited := rest.CopyConfig(config)
	unlimited.QPS = -1 // a class is read once for a volume, and the volumes under way are bounded
	if a.classes, err = versioned.NewForConfig(unlimited); err != nil {
		return a, fmt.Errorf("making a client for SecretProviderClasses: %w", err)
	}
	return a, nil
}
