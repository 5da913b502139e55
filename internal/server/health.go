package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Health answers /livez, /readyz and /metrics. None of them names a pod.
type Health struct {
	// Addr is the TCP address to listen at.
	Addr string
	// Alive returns why the process should be started again; nil when it should not.
	Alive func(context.Context) error
	// Ready returns what is missing before Mounts can be answered; nil when nothing is.
	Ready func(context.Context) error
	// Metrics is what /metrics shows.
	Metrics prometheus.Gatherer
}

// Run serves until ctx ends.
func (h Health) Run(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", answer(h.Alive))
	mux.HandleFunc("GET /readyz", answer(h.Ready))
	mux.Handle("GET /metrics", promhttp.HandlerFor(h.Metrics, promhttp.HandlerOpts{}))
	return ServeTCP(ctx, h.Addr, mux)
}

// answerWithin is shorter than the patience of the probes in the manifests, so that they hear why.
const answerWithin = 4 * time.Second

func answer(check func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), answerWithin)
		defer cancel()
		if err := check(ctx); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	}
}

// ServeTCP listens at a TCP address and serves until ctx ends.
func ServeTCP(ctx context.Context, addr string, handler http.Handler) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("serving HTTP: %w", err)
	}
	return ServeHTTP(ctx, l, handler)
}

// ServeHTTP serves until ctx ends, and gives requests under way a moment.
func ServeHTTP(ctx context.Context, l net.Listener, handler http.Handler) error {
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serving HTTP: %w", err)
	case <-ctx.Done():
	}
	moment, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = srv.Shutdown(moment)
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving HTTP: %w", err)
	}
	return nil
}
