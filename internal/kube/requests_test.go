package kube_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/leasehold-csi/leasehold/internal/kube"
)

func TestObserve(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	var told []string
	config := &rest.Config{Host: server.URL}
	kube.Observe(config, func(method string, status int) { told = append(told, fmt.Sprint(method, " ", status)) })
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	get := func(ctx context.Context) { _, _ = client.CoreV1().Pods("shop").Get(ctx, "app", metav1.GetOptions{}) }
	get(t.Context())
	server.Close()
	get(t.Context())
	cut, cancel := context.WithCancel(t.Context())
	cancel()
	get(cut)
	if want := []string{"GET 403", "GET 0"}; !slices.Equal(told, want) {
		t.Errorf("told of %q, want %q", told, want)
	}
}
