package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// version is set by the linker.
var version = "dev"

// outputs are the forms in which the version can be printed besides plain text; those of the existing provider.
var outputs = []string{"yaml", "json", "json-pretty"}

// printVersion is the command version.
func printVersion(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("version", flag.ContinueOnError)
	flags.SetOutput(stderr)
	output := flags.String("output", "", "`format`: "+strings.Join(outputs, ", ")+"; plain text when not given")
	if err := parse(flags, args); err != nil {
		return err
	}
	return writeVersion(stdout, *output)
}

func writeVersion(out io.Writer, format string) error {
	if format == "" {
		_, err := fmt.Fprintln(out, version)
		return err
	}
	if !slices.Contains(outputs, format) {
		return fmt.Errorf("%w: --output should be one of: 'yaml', 'json', 'json-pretty'", errUsage)
	}
	about := map[string]string{"version": version, "goVersion": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
	var text []byte
	var err error
	switch format {
	case "json":
		text, err = json.Marshal(about)
	case "json-pretty":
		text, err = json.MarshalIndent(about, "", "  ")
	default:
		text, err = yaml.Marshal(about)
	}
	if err != nil {
		return fmt.Errorf("encoding the version: %w", err)
	}
	_, err = fmt.Fprintln(out, strings.TrimRight(string(text), "\n"))
	return err
}
