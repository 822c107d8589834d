// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func TestArchiveHoldsWhatWasAskedFor(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("content"), 0o755); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "image.tar")
	err := WriteArchive(archive, Image{
		Reference: "livedump.test/image:1", User: "1:2", Entrypoint: []string{"/bin/program", "-x"},
		Files: map[string]string{"/bin/program": program}, Directories: []string{"/tmp"},
	}, Image{
		Reference: "livedump.test/other:1", Entrypoint: []string{"/program"}, Files: map[string]string{"/program": program},
	})
	if err != nil {
		t.Fatal(err)
	}

	tag, err := name.NewTag("livedump.test/image:1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(archive, &tag)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != "linux" || config.Architecture != "amd64" || config.Config.User != "1:2" ||
		!slices.Equal(config.Config.Entrypoint, []string{"/bin/program", "-x"}) {
		t.Errorf("config %+v", config)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, error %v", len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	var members []string
	for r := tar.NewReader(content); ; {
		header, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		members = append(members, header.Name)
		if header.Name == "bin/program" {
			if b, err := io.ReadAll(r); err != nil || string(b) != "content" || header.Mode != 0o755 {
				t.Errorf("%q with mode %o, error %v", b, header.Mode, err)
			}
		}
	}
	if want := []string{"bin/", "tmp/", "bin/program"}; !slices.Equal(members, want) {
		t.Errorf("members %q, want %q", members, want)
	}
}

func TestImpossibleImagesAreRefused(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"/program": program}
	for name, i := range map[string]Image{
		"no tag":                {Reference: "livedump.test/image", Files: files, Entrypoint: []string{"/program"}},
		"no entrypoint":         {Reference: "livedump.test/image:1", Files: files},
		"entrypoint not a file": {Reference: "livedump.test/image:1", Files: files, Entrypoint: []string{"/other"}},
		"file not there":        {Reference: "livedump.test/image:1", Files: map[string]string{"/program": program + "x"}, Entrypoint: []string{"/program"}},
		"relative path":         {Reference: "livedump.test/image:1", Files: map[string]string{"program": program}, Entrypoint: []string{"program"}},
	} {
		if err := WriteArchive(filepath.Join(dir, "image.tar"), i); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
