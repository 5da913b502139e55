package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/internal/span"
)

const (
	// checkEvery is the pause between two looks at our place in the driver's folder.
	checkEvery = 3 * time.Second
	// leaveAfter is how long Mounts under way at shutdown may take before they are answered with an error. They normally take
	// milliseconds, and one that is answered well needs no second try.
	leaveAfter = 20 * time.Second
	// maxRequest bounds a Mount request, in bytes. It is far above what the API server stores: gRPC itself answers what is
	// larger, with a code that is not final.
	maxRequest = 16 << 20
)

// Config is what a Server works with. Every field must be set but the last.
type Config struct {
	Socket  *Socket
	Service v1alpha1.CSIDriverProviderServer
	// Leave has waiting Mounts answered at once.
	Leave   func()
	Metrics prometheus.Registerer
	Log     *slog.Logger
	// Tracer makes the spans of Mounts; nil for none.
	Tracer trace.Tracer
}

// Server serves the driver.
type Server struct {
	Config
	grpc  *grpc.Server
	calls *prometheus.CounterVec
}

// New returns a Server that does not listen yet.
func New(c Config) (*Server, error) {
	s := &Server{Config: c, calls: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "leasehold_calls_total", Help: "Calls of the CSI driver, by gRPC method and code.",
	}, []string{"method", "code"})}
	if err := c.Metrics.Register(s.calls); err != nil {
		another, ok := errors.AsType[prometheus.AlreadyRegisteredError](err)
		if !ok {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
		s.calls = another.ExistingCollector.(*prometheus.CounterVec) // of a Server at another socket
	}
	around := []grpc.UnaryServerInterceptor{s.observe, s.recover}
	if c.Tracer != nil {
		around = []grpc.UnaryServerInterceptor{s.observe, s.trace, s.recover}
	}
	s.grpc = grpc.NewServer(grpc.MaxRecvMsgSize(maxRequest), grpc.ChainUnaryInterceptor(around...))
	v1alpha1.RegisterCSIDriverProviderServer(s.grpc, c.Service)
	return s, nil
}

// Run listens until ctx ends and then returns when every call is answered. While it runs it listens anew when the socket
// vanishes from the driver's folder.
func (s *Server) Run(ctx context.Context) error {
	l, err := s.Socket.Bind()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	serve := func(l net.Listener) {
		group.Go(func() error {
			if err := s.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				return fmt.Errorf("serving the driver: %w", err)
			}
			return nil
		})
	}
	serve(l)
	group.Go(func() error {
		s.stay(ctx, serve)
		s.stop()
		return nil
	})
	return group.Wait()
}

// stay keeps our place in the driver's folder until ctx ends.
func (s *Server) stay(ctx context.Context, serve func(net.Listener)) {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := s.Socket.Check(ctx)
		if err != nil {
			s.Log.Error("the provider's socket", "err", err)
		}
		if !errors.Is(err, errGone) {
			continue
		}
		l, err := s.Socket.Bind()
		if err != nil {
			s.Log.Error("listening again", "err", err)
			continue
		}
		s.Log.Info("listening again")
		serve(l)
	}
}

// stop takes no new calls and waits for those under way.
func (s *Server) stop() {
	timer := time.AfterFunc(leaveAfter, s.Leave)
	defer timer.Stop()
	s.grpc.GracefulStop()
}

// observe logs and counts each call once.
func (s *Server) observe(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	begin := time.Now()
	resp, err := handler(ctx, req)
	code := status.Code(err)
	s.calls.WithLabelValues(info.FullMethod, code.String()).Inc()
	level := slog.LevelDebug
	if err != nil {
		level = slog.LevelWarn
	}
	s.Log.Log(ctx, level, "call", "method", info.FullMethod, "code", code.String(), "took", time.Since(begin).Round(time.Microsecond), "err", err)
	return resp, err
}

// trace makes a span of each Mount, below the caller's when that tells of one in the call's metadata. otelgrpc would not do: the codes
// that provider chooses are no errors to it.
func (s *Server) trace(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if info.FullMethod != v1alpha1.CSIDriverProvider_Mount_FullMethodName {
		return handler(ctx, req)
	}
	caller := propagation.MapCarrier{}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		for _, name := range (propagation.TraceContext{}).Fields() {
			caller.Set(name, strings.Join(md.Get(name), ","))
		}
	}
	ctx, call := s.Tracer.Start(propagation.TraceContext{}.Extract(ctx, caller), span.Mount, trace.WithSpanKind(trace.SpanKindServer))
	resp, err := handler(ctx, req)
	if err == nil {
		call.End()
		return resp, nil
	}
	failure := status.Convert(err)
	call.SetAttributes(semconv.ErrorTypeKey.String(failure.Code().String()))
	span.End(call, errors.New(failure.Message()))
	return resp, err
}

// recover turns a panic into an error of the one call. What the panic says could hold a secret, so only its type is told.
func (s *Server) recover(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("panic in a call", "method", info.FullMethod, "panic", fmt.Sprintf("%T", p))
			resp, err = nil, status.Error(codes.Internal, "the provider failed; its log says where")
		}
	}()
	return handler(ctx, req)
}
