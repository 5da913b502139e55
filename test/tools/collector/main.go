// Command collector is the OpenTelemetry Collector with what the test bed needs: it receives traces by OTLP, and writes them to the file
// that its configuration names, as lines of OTLP's JSON.
package main

import (
	"context"
	"fmt"
	"os"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/provider/fileprovider"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/exporter/exporterhelper"
	"go.opentelemetry.io/collector/otelcol"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/service/telemetry"
	"go.uber.org/zap"
)

func main() {
	command := otelcol.NewCommand(otelcol.CollectorSettings{
		BuildInfo: component.NewDefaultBuildInfo(),
		Factories: factories,
		ConfigProviderSettings: otelcol.ConfigProviderSettings{ResolverSettings: confmap.ResolverSettings{
			ProviderFactories: []confmap.ProviderFactory{fileprovider.NewFactory()},
			DefaultScheme:     "file",
		}},
	})
	if err := command.Execute(); err != nil {
		os.Exit(1)
	}
}

func factories() (f otelcol.Factories, err error) {
	if f.Receivers, err = otelcol.MakeFactoryMap[receiver.Factory](otlpreceiver.NewFactory()); err != nil {
		return f, err
	}
	file := component.MustNewType("file")
	// Of itself it tells by its log alone.
	f.Telemetry = telemetry.NewFactory(func() component.Config { return new(struct{}) }, telemetry.WithCreateLogger(
		func(context.Context, telemetry.LoggerSettings, component.Config) (*zap.Logger, component.ShutdownFunc, error) {
			log, err := zap.NewProduction()
			return log, nil, err
		}))
	f.Exporters, err = otelcol.MakeFactoryMap[exporter.Factory](exporter.NewFactory(file,
		func() component.Config { return new(config) }, exporter.WithTraces(newFile, component.StabilityLevelStable)))
	return f, err
}

// config is what the exporter is told.
type config struct {
	Path string `mapstructure:"path"`
}

// newFile is the exporter that writes. Contrib's file exporter does the same and needs a hundred modules more.
func newFile(ctx context.Context, settings exporter.Settings, c component.Config) (exporter.Traces, error) {
	file, err := os.OpenFile(c.(*config).Path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	write := func(_ context.Context, traces ptrace.Traces) error {
		line, err := new(ptrace.JSONMarshaler).MarshalTraces(traces)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(file, "%s\n", line)
		return err
	}
	return exporterhelper.NewTraces(ctx, settings, c, write, exporterhelper.WithShutdown(func(context.Context) error { return file.Close() }))
}
