// SPDX-License-Identifier: Apache-2.0

// Package image makes container images for the tests out of static binaries,
// without a container engine, a registry or a base image. The images hold what
// the Dockerfile's final stages hold: nothing but the named files.
package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Image says what goes into an image.
type Image struct {
	// Reference is the image's full name with a tag, as a pod names it.
	Reference string
	// Files maps absolute paths in the image to files of this machine. Their
	// modes are kept; owner is root.
	Files map[string]string
	// Directories are made empty and world-writable (mode 1777).
	Directories []string
	// Entrypoint is the command; its first word is a path in Files.
	Entrypoint []string
	// User is "uid:gid" of the process. Empty: root.
	User string
}

// WriteArchive writes images as one archive that `ctr images import` takes. It
// fails if an image names no tag, its entrypoint is not among its files or a
// file cannot be read.
func WriteArchive(archive string, images ...Image) error {
	built := map[name.Tag]v1.Image{}
	for _, i := range images {
		tag, img, err := i.build()
		if err != nil {
			return fmt.Errorf("image %q: %w", i.Reference, err)
		}
		built[tag] = img
	}
	if err := tarball.MultiWriteToFile(archive, built); err != nil {
		return fmt.Errorf("write images to %s: %w", archive, err)
	}
	return nil
}

func (i Image) build() (name.Tag, v1.Image, error) {
	tag, err := name.NewTag(i.Reference, name.StrictValidation)
	if err != nil {
		return tag, nil, err
	}
	if len(i.Entrypoint) == 0 || i.Files[i.Entrypoint[0]] == "" {
		return tag, nil, fmt.Errorf("the entrypoint %q is not one of its files", i.Entrypoint)
	}
	content, err := i.layer()
	if err != nil {
		return tag, nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	})
	if err != nil {
		return tag, nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return tag, nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return tag, nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config = v1.Config{Entrypoint: i.Entrypoint, User: i.User, Env: []string{"PATH=/"}}
	img, err = mutate.ConfigFile(img, config)
	return tag, img, err
}

// layer is the image's only layer: a tar with every parent directory before its
// files, in a fixed order and without times, so that equal input gives equal images.
func (i Image) layer() ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)

	modes := map[string]int64{}
	addParents := func(file string) {
		for dir := path.Dir(file); dir != "/" && dir != "."; dir = path.Dir(dir) {
			if _, known := modes[dir]; !known {
				modes[dir] = 0o755
			}
		}
	}
	for inImage := range i.Files {
		if !path.IsAbs(inImage) || path.Clean(inImage) != inImage {
			return nil, fmt.Errorf("%q is not a clean absolute path", inImage)
		}
		addParents(inImage)
	}
	for _, dir := range i.Directories {
		addParents(dir)
		modes[dir] = 0o1777
	}
	dirs := make([]string, 0, len(modes))
	for dir := range modes {
		dirs = append(dirs, dir)
	}
	sort.Strings(dirs)
	for _, dir := range dirs {
		header := &tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: modes[dir], Format: tar.FormatPAX}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
	}

	names := make([]string, 0, len(i.Files))
	for inImage := range i.Files {
		names = append(names, inImage)
	}
	sort.Strings(names)
	for _, inImage := range names {
		if err := addFile(w, inImage, i.Files[inImage]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func addFile(w *tar.Writer, inImage, host string) error {
	content, err := os.ReadFile(host)
	if err != nil {
		return err
	}
	info, err := os.Stat(host)
	if err != nil {
		return err
	}
	header := &tar.Header{
		Typeflag: tar.TypeReg, Name: strings.TrimPrefix(inImage, "/"),
		Mode: int64(info.Mode().Perm()), Size: int64(len(content)), Format: tar.FormatPAX,
	}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err = w.Write(content)
	return err
}
