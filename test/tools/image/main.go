// Command image writes a container image as a docker-archive, from scratch and without a daemon or a registry.
//
//	image -o out/leasehold.tar -tag leasehold:dev -entrypoint /leasehold -ca -file bin/leasehold=/leasehold:0755
//
// The image has one layer, and the same inputs give the same bytes: entries are sorted, owned by root and dated 1970.
// Its platform is linux on the architecture this program runs on. The archive is what `docker load`,
// `ctr images import` and `kind load image-archive` read.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// caBundle is where Debian's package ca-certificates keeps the bundle and where Go programs look for it.
const caBundle = "/etc/ssl/certs/ca-certificates.crt"

func main() {
	err := run(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string, stderr io.Writer) error {
	var (
		files entries
		cmd   []string
	)
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.SetOutput(stderr)
	output := flags.String("o", "", "write the archive to `file`")
	tag := flags.String("tag", "", "`name:tag` of the image")
	entrypoint := flags.String("entrypoint", "", "absolute `path` of the program in the image")
	flags.Func("cmd", "default `argument` of the entrypoint (repeatable)", func(s string) error {
		cmd = append(cmd, s)
		return nil
	})
	flags.BoolFunc("ca", "add this machine's bundle of certificate authorities", func(string) error {
		return files.addFile(caBundle + "=" + caBundle + ":0644")
	})
	flags.Func("file", "add a file as `host=path[:mode]`, mode octal and 0755 when absent (repeatable)", files.addFile)
	flags.Func("link", "add a symbolic link as `path=target` (repeatable)", files.addLink)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || *output == "" || *tag == "" || *entrypoint == "" {
		return errors.New("-o, -tag and -entrypoint are needed, and nothing but flags (see -help)")
	}

	ref, err := name.NewTag(*tag)
	if err != nil {
		return fmt.Errorf("reading -tag: %w", err)
	}
	img, err := build(files, v1.Config{
		Entrypoint: []string{*entrypoint},
		Cmd:        cmd,
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		WorkingDir: "/",
	})
	if err != nil {
		return err
	}
	return write(*output, ref, img)
}

func build(files entries, config v1.Config) (v1.Image, error) {
	content, err := files.layer()
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(content)
	if err != nil {
		return nil, fmt.Errorf("making the layer: %w", err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, fmt.Errorf("adding the layer: %w", err)
	}
	configFile, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("reading the empty image's config: %w", err)
	}
	configFile.OS = "linux"
	configFile.Architecture = runtime.GOARCH
	configFile.Config = config
	return mutate.ConfigFile(img, configFile)
}

// write renames the finished archive into place, so that an interrupted run leaves no half image behind that make
// would take for a whole one.
func write(path string, tag name.Tag, img v1.Image) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("making the output folder: %w", err)
	}
	partial := path + ".partial"
	if err := tarball.WriteToFile(partial, tag, img); err != nil {
		return errors.Join(fmt.Errorf("writing the archive: %w", err), os.Remove(partial))
	}
	return os.Rename(partial, path)
}
