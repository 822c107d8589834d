// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is the view of the node that the checks use. An agent in a container sees the node's own file system
// through /proc/1/root and its mounts through /proc/1/mountinfo.
type Host struct {
	// Root is the root of the node's file system.
	Root string
	// Proc is a proc file system of the node's first PID namespace.
	Proc string
	// Sys is a sysfs.
	Sys string
}

// LocalHost is the view of a process that runs directly on the node.
var LocalHost = Host{Root: "/", Proc: "/proc", Sys: "/sys"}

// ContainerHost is the view of a privileged container in the node's PID namespace.
var ContainerHost = Host{Root: "/proc/1/root", Proc: "/proc", Sys: "/sys"}

// ID is the number of a block device.
type ID struct{ Major, Minor uint32 }

func (id ID) String() string { return fmt.Sprintf("%d:%d", id.Major, id.Minor) }

func idOf(rdev uint64) ID { return ID{Major: unix.Major(rdev), Minor: unix.Minor(rdev)} }

// openInRoot opens a path as the node sees it: symbolic links, absolute ones too, are followed within the
// node's root and never out of it.
func (h Host) openInRoot(path string, flags uint64) (int, error) {
	root, err := unix.Open(h.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", h.Root, err)
	}
	defer unix.Close(root)
	for {
		fd, err := unix.Openat2(root, path, &unix.OpenHow{
			Flags:   flags | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		// EAGAIN: something in the path was renamed meanwhile, so the kernel could not be sure.
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) && flags&unix.O_PATH != 0 {
			continue
		}
		if err != nil {
			return -1, fmt.Errorf("open %s: %w", path, err)
		}
		return fd, nil
	}
}

// statInRoot is stat(2) as the node sees the path.
func (h Host) statInRoot(path string) (unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := h.openInRoot(path, unix.O_PATH)
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &st); err != nil {
		return st, fmt.Errorf("stat %s: %w", path, err)
	}
	return st, nil
}

// Resolve gives the number of the block device that a path of the node leads to.
// ErrNotFound, ErrNotBlock.
func (h Host) Resolve(path string) (ID, error) {
	st, err := h.statInRoot(path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return ID{}, refuse(ErrNotFound, path, "the node has no such file")
	}
	if err != nil {
		return ID{}, fmt.Errorf("finding the device: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return ID{}, refuse(ErrNotBlock, path, "it is a %s", fileType(st.Mode))
	}
	return idOf(st.Rdev), nil
}

func fileType(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "regular file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFIFO:
		return "pipe"
	case unix.S_IFSOCK:
		return "socket"
	}
	return fmt.Sprintf("file of mode %#o", mode)
}

// sysfs is the directory of a device in sysfs.
func (h Host) sysfs(id ID) string { return filepath.Join(h.Sys, "dev/block", id.String()) }

// Name is the kernel's name of a device, as in /dev.
func (h Host) Name(id ID) (string, error) {
	text, err := os.ReadFile(filepath.Join(h.sysfs(id), "uevent"))
	if errors.Is(err, os.ErrNotExist) {
		return "", refuse(ErrNotFound, id.String(), "the kernel has no such block device")
	}
	if err != nil {
		return "", fmt.Errorf("name of device %s: %w", id, err)
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if name, ok := strings.CutPrefix(line, "DEVNAME="); ok {
			return name, nil
		}
	}
	return "", fmt.Errorf("name of device %s: the kernel gives none", id)
}

// family is a device, the disk that it is a partition of, and the partitions that it has.
type family struct {
	self       ID
	disk       *ID
	partitions []ID
}

func (f family) all() []ID {
	ids := append([]ID{f.self}, f.partitions...)
	if f.disk != nil {
		ids = append(ids, *f.disk)
	}
	return ids
}

func (h Host) family(id ID) (family, error) {
	f := family{self: id}
	dir, err := filepath.EvalSymlinks(h.sysfs(id))
	if err != nil {
		return f, fmt.Errorf("device %s in sysfs: %w", id, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		disk, err := readID(filepath.Join(filepath.Dir(dir), "dev"))
		if err != nil {
			return f, fmt.Errorf("disk of partition %s: %w", id, err)
		}
		f.disk = &disk
		return f, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return f, fmt.Errorf("partitions of device %s: %w", id, err)
	}
	for _, e := range entries {
		sub := filepath.Join(dir, e.Name())
		if _, err := os.Stat(filepath.Join(sub, "partition")); err != nil {
			continue
		}
		part, err := readID(filepath.Join(sub, "dev"))
		if err != nil {
			return f, fmt.Errorf("partitions of device %s: %w", id, err)
		}
		f.partitions = append(f.partitions, part)
	}
	return f, nil
}

func readID(path string) (ID, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return ID{}, fmt.Errorf("device number: %w", err)
	}
	return parseID(strings.TrimSpace(string(text)))
}

func parseID(text string) (ID, error) {
	var id ID
	if _, err := fmt.Sscanf(text, "%d:%d", &id.Major, &id.Minor); err != nil {
		return ID{}, fmt.Errorf("device number %q: %w", text, err)
	}
	return id, nil
}

// readLines calls f for every line of a file.
func readLines(path string, f func(line string) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		if err := f(scanner.Text()); err != nil {
			return err
		}
	}
	return scanner.Err()
}
