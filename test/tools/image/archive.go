package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// writeArchive writes the index and its images as an OCI archive: an OCI image layout in a tar.
func writeArchive(path string, tag reference.NamedTagged, index []byte, digest v1.Hash, variants []variant) error {
	dir, err := os.MkdirTemp("", "image-")
	if err != nil {
		return fmt.Errorf("making a folder for the layout: %w", err)
	}
	err = writeLayout(dir, tag, index, digest, variants)
	if err == nil {
		err = replaceFile(path, func(out io.Writer) error { return writeTar(out, os.DirFS(dir)) })
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// writeLayout gives the index its name in both ways in use: containerd and Docker read the whole name from the first
// annotation, everybody else the tag from the second.
func writeLayout(dir string, tag reference.NamedTagged, index []byte, digest v1.Hash, variants []variant) error {
	out, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("making the layout: %w", err)
	}
	for _, variant := range variants {
		if err := out.WriteImage(variant.image); err != nil {
			return fmt.Errorf("writing the image for %s: %w", variant.arch, err)
		}
	}
	if err := out.WriteBlob(digest, io.NopCloser(bytes.NewReader(index))); err != nil {
		return fmt.Errorf("writing the index: %w", err)
	}
	return out.AppendDescriptor(v1.Descriptor{
		MediaType: types.OCIImageIndex, Digest: digest, Size: int64(len(index)),
		Annotations: map[string]string{
			"io.containerd.image.name":          tag.String(),
			"org.opencontainers.image.ref.name": tag.Tag(),
		},
	})
}

// writeTar writes the files of a folder in the order of their names, without the times and owners that they have there.
func writeTar(out io.Writer, files fs.FS) error {
	archive := tar.NewWriter(out)
	err := fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := fs.ReadFile(files, path)
		if err != nil {
			return err
		}
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: 0o644, Size: int64(len(content))}); err != nil {
			return err
		}
		_, err = archive.Write(content)
		return err
	})
	if err != nil {
		return err
	}
	return archive.Close()
}

// replaceFile renames the finished file into place, so that an interrupted run leaves no half one behind that make would
// take for a whole one.
func replaceFile(path string, write func(io.Writer) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("making the output folder: %w", err)
	}
	partial := path + ".partial"
	if err := createFile(partial, write); err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(partial))
	}
	return os.Rename(partial, path)
}

func createFile(path string, write func(io.Writer) error) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(file)
	if err := write(out); err != nil {
		return errors.Join(err, file.Close())
	}
	return errors.Join(out.Flush(), file.Close())
}
