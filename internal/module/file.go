// SPDX-License-Identifier: Apache-2.0

package module

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Dirs are where a module is searched, for a kernel release.
type Dirs struct {
	// Image is the directory of modules in the agent's image: <Image>/<release>/livedump.ko.
	Image string
	// Host is the node's own directory of modules: <Host>/<release>/{extra,updates}/livedump.ko.
	Host string
}

// DefaultDirs are those of the agent's image.
var DefaultDirs = Dirs{Image: "/opt/lib/modules", Host: "/lib/modules"}

// Find gives the first module file for a kernel release. ErrNotFound names every place that was searched.
func (d Dirs) Find(release string) (string, error) {
	if release == "" || release != filepath.Base(release) || release == "." || release == ".." {
		return "", fmt.Errorf("%q is not a kernel release", release)
	}
	var places []string
	if d.Image != "" {
		places = append(places, filepath.Join(d.Image, release, Name+".ko"))
	}
	if d.Host != "" {
		places = append(places,
			filepath.Join(d.Host, release, "extra", Name+".ko"),
			filepath.Join(d.Host, release, "updates", Name+".ko"))
	}
	for _, p := range places {
		st, err := os.Stat(p)
		if err == nil && st.Mode().IsRegular() {
			return p, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("looking for the module: %w", err)
		}
	}
	return "", fmt.Errorf("%w %s; searched %s", ErrNotFound, release, strings.Join(places, ", "))
}

// Info is what a module file says of itself.
type Info struct {
	Name, Version, SrcVersion, VerMagic string
}

// Release is the kernel release that the module was built for.
func (i Info) Release() string {
	release, _, _ := strings.Cut(i.VerMagic, " ")
	return release
}

// ReadInfo reads the .modinfo section of a module file.
func ReadInfo(path string) (Info, error) {
	f, err := elf.Open(path)
	if err != nil {
		return Info{}, fmt.Errorf("%s: %w: no kernel module: %w", path, ErrRejected, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return Info{}, fmt.Errorf("%s: %w: no kernel module: no .modinfo", path, ErrRejected)
	}
	data, err := section.Data()
	if err != nil {
		return Info{}, fmt.Errorf("%s: %w: %w", path, ErrRejected, err)
	}
	var i Info
	for entry := range bytes.SplitSeq(data, []byte{0}) {
		key, value, _ := strings.Cut(string(entry), "=")
		switch key {
		case "name":
			i.Name = value
		case "version":
			i.Version = value
		case "srcversion":
			i.SrcVersion = value
		case "vermagic":
			i.VerMagic = value
		}
	}
	return i, nil
}
