package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/leasehold-csi/leasehold/internal/validate"
)

// errFaults: validate found what a pod would be refused for. It was printed.
var errFaults = errors.New("there are faults")

// check prints what is wrong with SecretProviderClasses in files.
func check(args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	var files []string
	flags := flag.NewFlagSet("validate", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Func("f", "`file` of SecretProviderClasses, - for the standard input; may be repeated", func(name string) error { files = append(files, name); return nil })
	output := flags.String("o", "text", "output `format`: text or json")
	strict := flags.Bool("strict", false, "take unknown keys for faults, as the provider's --strict does")
	diff := flags.Bool("diff", false, "also tell what changes when the existing provider is replaced")
	if err := parse(flags, args); err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("%w: -f must name a file", errUsage)
	}
	if *output != "text" && *output != "json" {
		return fmt.Errorf("%w: -o must be text or json", errUsage)
	}
	findings, faults := []validate.Finding{}, 0
	for _, name := range files {
		text, err := readFile(name, stdin)
		if err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		found, err := validate.File(name, text, validate.Options{Strict: *strict, Diff: *diff})
		if err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		findings = append(findings, found...)
	}
	for _, f := range findings {
		if f.Level == validate.Fault {
			faults++
		}
	}
	if err := writeFindings(stdout, *output, findings); err != nil {
		return err
	}
	if faults > 0 {
		return errFaults
	}
	return nil
}

func readFile(name string, stdin io.Reader) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(name)
}

func writeFindings(out io.Writer, format string, findings []validate.Finding) error {
	if format == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(findings)
	}
	for _, f := range findings {
		class := ""
		if f.Class != "" {
			class = f.Class + ": "
		}
		if _, err := fmt.Fprintf(out, "%s:%d: %s: %s%s\n", f.File, f.Line, f.Level, class, f.Text); err != nil {
			return err
		}
	}
	return nil
}
