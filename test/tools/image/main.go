// Command image writes a container image as an OCI archive, from scratch and without a daemon or a registry.
//
//	image -o out/leasehold.tar -tag leasehold:dev -arch amd64,arm64 -entrypoint /leasehold -ca \
//		-file 'out/leasehold-{arch}=/leasehold' -label title=leasehold -sbom out/leasehold.spdx.json
//
// The image is an index with one image of one layer for each architecture, and the same inputs give the same bytes: entries
// are sorted, owned by root and dated 1970. The date of the image itself is $SOURCE_DATE_EPOCH, or 1970 as well. The archive
// is what `ctr images import`, `kind load image-archive`, `skopeo copy oci-archive:` and a `docker load` with containerd's
// image store read.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// options are what the command line asks for.
type options struct {
	output string
	sbom   string
	tag    reference.NamedTagged
	archs  []string
	files  entries
	ca     bool
	recipe recipe
}

func run(args []string, stdout, stderr io.Writer) error {
	wanted, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if wanted.recipe.created, err = sourceDate(os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		return err
	}
	variants, err := wanted.recipe.build(wanted.files, wanted.archs)
	if err != nil {
		return err
	}
	index, err := wanted.recipe.index(variants)
	if err != nil {
		return err
	}
	digest, _, err := v1.SHA256(bytes.NewReader(index))
	if err != nil {
		return fmt.Errorf("hashing the index: %w", err)
	}
	if wanted.sbom != "" {
		about := facts{
			name: path.Base(wanted.tag.Name()), digest: digest, created: wanted.recipe.created,
			version: wanted.recipe.labels[labelPrefix+"version"], licenses: wanted.recipe.labels[labelPrefix+"licenses"],
		}
		err := replaceFile(wanted.sbom, func(out io.Writer) error { return writeBill(out, about, variants, wanted.ca) })
		if err != nil {
			return err
		}
	}
	if err := writeArchive(wanted.output, wanted.tag, index, digest, variants); err != nil {
		return err
	}
	return report(stdout, wanted.tag, digest, variants)
}

func parse(args []string, stderr io.Writer) (options, error) {
	wanted := options{archs: []string{runtime.GOARCH}, recipe: recipe{labels: map[string]string{}}}
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&wanted.output, "o", "", "write the archive to `file`")
	flags.StringVar(&wanted.sbom, "sbom", "", "write the bill of materials to `file` (SPDX 2.3, JSON)")
	flags.Func("tag", "`name:tag` of the image", func(arg string) (err error) {
		wanted.tag, err = parseTag(arg)
		return err
	})
	flags.Func("arch", "`architectures` of the image, with commas between them; this machine's when absent", func(arg string) error {
		wanted.archs = strings.Split(arg, ",")
		for _, arch := range wanted.archs {
			if _, ok := machines[arch]; !ok {
				return fmt.Errorf("images are not made for %q", arch)
			}
		}
		return nil
	})
	flags.StringVar(&wanted.recipe.entrypoint, "entrypoint", "", "absolute `path` of the program in the image")
	flags.Func("cmd", "default `argument` of the entrypoint (repeatable)", func(arg string) error {
		wanted.recipe.cmd = append(wanted.recipe.cmd, arg)
		return nil
	})
	flags.Func("label", "label and annotate the image with org.opencontainers.image.`name=value` (repeatable)", wanted.recipe.addLabel)
	flags.BoolFunc("ca", "add Mozilla's certificate authorities", func(string) error {
		wanted.ca = true
		return wanted.files.add(entry{path: caBundle, content: roots(), mode: 0o644})
	})
	flags.Func("file", "add a file as `host=path[:mode]`, mode octal and 0755 when absent; in host, "+inHost+
		" is the architecture (repeatable)", wanted.files.addFile)
	flags.Func("link", "add a symbolic link as `path=target` (repeatable)", wanted.files.addLink)
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	if flags.NArg() > 0 || wanted.output == "" || wanted.tag == nil || wanted.recipe.entrypoint == "" {
		return options{}, errors.New("-o, -tag and -entrypoint are needed, and nothing but flags (see -help)")
	}
	return wanted, nil
}

// parseTag reads a name as Docker and containerd do: leasehold:dev is docker.io/library/leasehold:dev.
func parseTag(arg string) (reference.NamedTagged, error) {
	named, err := reference.ParseNormalizedNamed(arg)
	if err != nil {
		return nil, err
	}
	tagged, ok := named.(reference.NamedTagged)
	if !ok {
		return nil, errors.New("want name:tag")
	}
	return tagged, nil
}

func sourceDate(seconds string) (time.Time, error) {
	if seconds == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	epoch, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH %q is not a number of seconds", seconds)
	}
	return time.Unix(epoch, 0).UTC(), nil
}

// report prints what was made: the digest of the whole, and each architecture's digest and sizes.
func report(out io.Writer, tag reference.NamedTagged, digest v1.Hash, variants []variant) error {
	fmt.Fprintln(out, reference.FamiliarString(tag), digest)
	for _, variant := range variants {
		manifest, err := variant.image.Manifest()
		if err != nil {
			return fmt.Errorf("reading the manifest for %s: %w", variant.arch, err)
		}
		digest, err := variant.image.Digest()
		if err != nil {
			return fmt.Errorf("reading the digest for %s: %w", variant.arch, err)
		}
		fmt.Fprintf(out, "linux/%s %s %.1f MB compressed, program %.1f MB\n",
			variant.arch, digest, megabytes(manifest.Layers[0].Size), megabytes(int64(len(variant.program))))
	}
	return nil
}

func megabytes(bytes int64) float64 { return float64(bytes) / 1e6 }
