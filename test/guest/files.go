// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strings"
)

// File is something to put into a guest's root: exactly one of Source, Data,
// Link and Dir says what.
type File struct {
	// Path is absolute, in the guest. Directories above it are made.
	Path string
	// Source is a file or a directory (taken whole) on the host. Symbolic links
	// below a directory are kept as links; Source itself may be one and is followed.
	Source string
	// Data is the content.
	Data []byte
	// Link is the target of a symbolic link.
	Link string
	// Dir makes an empty directory.
	Dir bool
	// Mode is the permission bits; zero means those of Source, or 0644 for Data.
	Mode fs.FileMode
}

// node is one member of a root: a File after directories were taken apart.
type node struct {
	path   string // without the leading slash
	mode   fs.FileMode
	source string
	data   []byte
	link   string
	size   int64
}

// layout turns files into members in an order in which directories come before
// what they hold. A later file of the same path replaces an earlier one.
func layout(files []File) ([]node, error) {
	nodes := map[string]node{}
	add := func(n node) {
		for dir := path.Dir(n.path); dir != "."; dir = path.Dir(dir) {
			if _, ok := nodes[dir]; !ok {
				nodes[dir] = node{path: dir, mode: fs.ModeDir | 0o755}
			}
		}
		nodes[n.path] = n
	}
	for _, f := range files {
		if !path.IsAbs(f.Path) {
			return nil, fmt.Errorf("file %q: path is not absolute", f.Path)
		}
		name := strings.TrimPrefix(path.Clean(f.Path), "/")
		switch {
		case f.Dir:
			add(node{path: name, mode: fs.ModeDir | orMode(f.Mode, 0o755)})
		case f.Link != "":
			add(node{path: name, mode: fs.ModeSymlink | 0o777, link: f.Link})
		case f.Source != "":
			if err := addSource(add, name, f); err != nil {
				return nil, err
			}
		default:
			add(node{path: name, mode: orMode(f.Mode, 0o644), data: f.Data, size: int64(len(f.Data))})
		}
	}
	delete(nodes, "")
	list := make([]node, 0, len(nodes))
	for _, n := range nodes {
		list = append(list, n)
	}
	// A directory's path is a prefix of its members' and so sorts before them.
	sort.Slice(list, func(i, j int) bool { return list[i].path < list[j].path })
	return list, nil
}

func orMode(mode, otherwise fs.FileMode) fs.FileMode {
	if mode != 0 {
		return mode
	}
	return otherwise
}

func addSource(add func(node), name string, f File) error {
	info, err := os.Stat(f.Source)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is neither a file nor a directory", f.Source)
		}
		add(node{path: name, mode: orMode(f.Mode, info.Mode().Perm()), source: f.Source, size: info.Size()})
		return nil
	}
	root, err := filepath.EvalSymlinks(f.Source)
	if err != nil {
		return err
	}
	return filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		n := node{path: path.Join(name, filepath.ToSlash(rel)), mode: info.Mode()}
		switch {
		case d.IsDir():
		case info.Mode()&fs.ModeSymlink != 0:
			if n.link, err = os.Readlink(file); err != nil {
				return err
			}
		case info.Mode().IsRegular():
			n.source, n.size = file, info.Size()
		default:
			return nil // sockets and devices have no place in an image
		}
		add(n)
		return nil
	})
}

// writeInitramfs writes an archive of the files that the kernel can boot from.
func writeInitramfs(out string, files []File) error {
	nodes, err := layout(files)
	if err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	buffered := bufio.NewWriterSize(f, 1<<20)
	w := &cpioWriter{w: buffered}
	// Without a console in it the kernel starts PID 1 with no output.
	w.header("dev", cpioDir|0o755, 0, 0, 0)
	w.header("dev/console", cpioChar|0o600, 0, 5, 1)
	for _, n := range nodes {
		if err := writeNode(w, n); err != nil {
			return fmt.Errorf("initramfs: %s: %w", n.path, err)
		}
	}
	if err := w.close(); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	return f.Close()
}

func writeNode(w *cpioWriter, n node) error {
	perm := uint32(n.mode.Perm())
	switch {
	case n.mode.IsDir():
		w.header(n.path, cpioDir|perm, 0, 0, 0)
	case n.link != "":
		w.header(n.path, cpioLink|perm, int64(len(n.link)), 0, 0)
		w.content(strings.NewReader(n.link), int64(len(n.link)))
	case n.source != "":
		f, err := os.Open(n.source)
		if err != nil {
			return err
		}
		defer f.Close()
		w.header(n.path, cpioRegular|perm, n.size, 0, 0)
		w.content(f, n.size)
	default:
		w.header(n.path, cpioRegular|perm, n.size, 0, 0)
		w.content(bytes.NewReader(n.data), n.size)
	}
	return w.err
}

// BuildDisk makes an ext4 image of size MiB that holds the files: a root disk
// for Config.RootDisk, or a disk of data. It replaces an image that is there.
// The image is sparse.
func BuildDisk(ctx context.Context, image string, sizeMiB int, files []File) (err error) {
	nodes, err := layout(files)
	if err != nil {
		return err
	}
	staging, err := os.MkdirTemp(filepath.Dir(image), ".staging-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(staging)) }()
	for _, n := range nodes {
		if err := stage(staging, n); err != nil {
			return fmt.Errorf("disk %s: %s: %w", image, n.path, err)
		}
	}
	if err := CreateImage(image, sizeMiB); err != nil {
		return err
	}
	// root_owner: the files belong to root whoever builds the image.
	cmd := exec.CommandContext(ctx, "/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d", staging, image)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs %s: %w: %s", image, err, bytes.TrimSpace(out))
	}
	return nil
}

func stage(staging string, n node) error {
	target := filepath.Join(staging, n.path)
	switch {
	case n.mode.IsDir():
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		return os.Chmod(target, n.mode.Perm())
	case n.link != "":
		return os.Symlink(n.link, target)
	case n.source != "":
		source, err := filepath.EvalSymlinks(n.source)
		if err != nil {
			return err
		}
		info, err := os.Stat(source)
		if err != nil {
			return err
		}
		// A hard link costs nothing, where the file systems and modes allow it.
		if info.Mode().Perm() == n.mode.Perm() && os.Link(source, target) == nil {
			return nil
		}
		return copyFile(source, target, n.mode.Perm())
	default:
		if err := os.WriteFile(target, n.data, n.mode.Perm()); err != nil {
			return err
		}
		return os.Chmod(target, n.mode.Perm())
	}
}

func copyFile(source, target string, mode fs.FileMode) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(target, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := out.ReadFrom(in); err != nil {
		return err
	}
	if err := out.Chmod(mode); err != nil {
		return err
	}
	return out.Close()
}

// CreateImage makes an empty sparse image of size MiB, in place of what is there.
func CreateImage(image string, sizeMiB int) error {
	if err := os.Remove(image); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := f.Truncate(int64(sizeMiB) << 20); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}
