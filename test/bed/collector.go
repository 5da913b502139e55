package bed

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/leasehold-csi/leasehold/test/bed/tool"
)

// startCollector runs OpenTelemetry's collector, which writes what it receives to a file.
func (b *Bed) startCollector(ctx context.Context) error {
	return b.progress.step("collector", func() (string, error) {
		port, err := b.freePort()
		if err != nil {
			return "", err
		}
		b.state.Collector = CollectorState{Address: net.JoinHostPort(b.state.Host, strconv.Itoa(port)), Traces: b.path("traces.jsonl")}
		config := fmt.Sprintf(`
receivers: {otlp: {protocols: {grpc: {endpoint: %q}}}}
exporters: {file: {path: %q}}
service:
  pipelines: {traces: {receivers: [otlp], exporters: [file]}}
`, b.state.Collector.Address, b.state.Collector.Traces)
		path := b.path("collector.yaml")
		if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
			return "", fmt.Errorf("writing the collector's configuration: %w", err)
		}
		if err := b.start(ctx, "collector", &process{Args: []string{b.program(tool.Collector, "collector"), "--config", path}}); err != nil {
			return "", err
		}
		return b.state.Collector.Address, b.await(ctx, "collector", b.collectorListens)
	})
}

func (b *Bed) collectorListens(ctx context.Context) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", b.state.Collector.Address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// tracesEnv is the environment in which the provider sends its traces to the collector, soon; none in a bed without one.
func (b *Bed) tracesEnv() []string {
	if b.state.Collector.Address == "" {
		return nil
	}
	return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + b.state.Collector.Address, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_BSP_SCHEDULE_DELAY=500"}
}
