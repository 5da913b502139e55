package main

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const labelPrefix = "org.opencontainers.image."

// recipe is what the images of all architectures have in common besides their files.
type recipe struct {
	entrypoint string
	cmd        []string
	labels     map[string]string
	created    time.Time
}

// addLabel takes name=value.
func (r *recipe) addLabel(arg string) error {
	name, value, ok := strings.Cut(arg, "=")
	if !ok || name == "" || value == "" {
		return errors.New("want name=value")
	}
	r.labels[labelPrefix+name] = value
	return nil
}

// metadata returns the labels, which are the annotations too: a registry shows the ones, `docker inspect` the others.
func (r *recipe) metadata() map[string]string {
	all := maps.Clone(r.labels)
	all[labelPrefix+"created"] = r.created.Format(time.RFC3339)
	return all
}

// variant is the image of one architecture, and the program that it runs.
type variant struct {
	arch    string
	program []byte
	image   v1.Image
}

func (r *recipe) build(files entries, archs []string) ([]variant, error) {
	var variants []variant
	for _, arch := range archs {
		program, err := files.program(r.entrypoint, arch)
		if err != nil {
			return nil, err
		}
		image, err := r.image(files, arch)
		if err != nil {
			return nil, fmt.Errorf("making the image for %s: %w", arch, err)
		}
		variants = append(variants, variant{arch: arch, program: program, image: image})
	}
	return variants, nil
}

func (r *recipe) image(files entries, arch string) (v1.Image, error) {
	content, err := files.layer(arch)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(content, tarball.WithMediaType(types.OCILayer),
		tarball.WithCompressionLevel(gzip.BestCompression), tarball.WithCompressedCaching)
	if err != nil {
		return nil, fmt.Errorf("compressing the layer: %w", err)
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.Append(base, mutate.Addendum{
		Layer: layer, History: v1.History{Created: v1.Time{Time: r.created}, CreatedBy: "test/tools/image"},
	})
	if err != nil {
		return nil, fmt.Errorf("adding the layer: %w", err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("reading the empty image's config: %w", err)
	}
	config.OS, config.Architecture = "linux", arch
	config.Created = v1.Time{Time: r.created}
	config.Config = v1.Config{
		Entrypoint: []string{r.entrypoint},
		Cmd:        r.cmd,
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		WorkingDir: "/",
		Labels:     r.metadata(),
	}
	image, err = mutate.ConfigFile(image, config)
	if err != nil {
		return nil, fmt.Errorf("setting the config: %w", err)
	}
	return mutate.Annotations(image, r.metadata()).(v1.Image), nil
}

// index is what the image's name stands for: every node takes from it the image of its own platform. It is encoded as the
// standard's own types are, because skopeo encodes anew what it copies, and must come to the same bytes and digest.
func (r *recipe) index(variants []variant) ([]byte, error) {
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Annotations: r.metadata(),
	}
	for _, variant := range variants {
		found, err := partial.Descriptor(variant.image)
		if err != nil {
			return nil, fmt.Errorf("describing the image for %s: %w", variant.arch, err)
		}
		index.Manifests = append(index.Manifests, ocispec.Descriptor{
			MediaType: string(found.MediaType), Digest: digest.Digest(found.Digest.String()), Size: found.Size,
			Platform: &ocispec.Platform{OS: "linux", Architecture: variant.arch},
		})
	}
	return json.Marshal(index)
}
