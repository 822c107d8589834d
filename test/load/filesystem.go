// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"livedump.io/test/churn"
)

const (
	fsFiles      = 12      // that live at once
	fsFileBytes  = 1 << 20 // of the largest
	fsNames      = 40      // made, renamed and removed in a round
	remountEvery = 20      // rounds
)

var ext4Load = load{
	name:  "ext4",
	about: "files on ext4, on a loop device unless -disk gives one: write, fsync, read from the disk, rename, remove, mount again",
	start: func(e *env) (*work, error) {
		return startFileSystem(e, fileSystem{kind: "ext4", sizeMiB: 64, mkfs: []string{"/sbin/mke2fs", "-q", "-F", "-t", "ext4"}})
	},
}

var xfsLoad = load{
	name:  "xfs",
	about: "the same on xfs",
	start: func(e *env) (*work, error) {
		// The smallest that mkfs.xfs makes.
		return startFileSystem(e, fileSystem{kind: "xfs", sizeMiB: 304, mkfs: []string{"/sbin/mkfs.xfs", "-q", "-f"}})
	},
}

type fileSystem struct {
	kind    string
	sizeMiB int
	mkfs    []string
	device  string
	dir     string
	mounted bool
	buf     []byte
}

func startFileSystem(e *env, fs fileSystem) (*work, error) {
	if err := needModule(fs.kind); err != nil {
		return nil, err
	}
	dir, err := e.tempDir(fs.kind)
	if err != nil {
		return nil, err
	}
	fs.device = e.disks[fs.kind]
	if fs.device == "" {
		if fs.device, err = newLoop(e, filepath.Join(dir, "image"), fs.sizeMiB); err != nil {
			return nil, err
		}
	}
	argv := append(fs.mkfs, fs.device)
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%v: %w: %s", argv, err, out)
	}
	fs.dir = filepath.Join(dir, "mnt")
	if err := os.Mkdir(fs.dir, 0o755); err != nil {
		return nil, err
	}
	fs.buf = make([]byte, fsFileBytes)
	e.atEnd(fs.unmount)
	return &work{round: fs.round}, fs.mount()
}

// newLoop makes a loop device of a sparse file. Its memory is page cache, and its
// I/O goes the whole way of a block device's.
func newLoop(e *env, file string, sizeMiB int) (string, error) {
	if err := needModule("loop"); err != nil {
		return "", err
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer control.Close()
	back, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer back.Close()
	if err := back.Truncate(int64(sizeMiB) << 20); err != nil {
		return "", err
	}
	// Another load may take the device between the two steps.
	for {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", fmt.Errorf("find a loop device: %w", err)
		}
		device := fmt.Sprintf("/dev/loop%d", number)
		f, err := os.OpenFile(device, os.O_RDWR, 0)
		if err != nil {
			return "", err
		}
		err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_FD, int(back.Fd()))
		if errors.Is(err, unix.EBUSY) {
			f.Close()
			continue
		}
		if err != nil {
			f.Close()
			return "", fmt.Errorf("set up %s: %w", device, err)
		}
		e.atEnd(func() error {
			defer f.Close()
			return unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
		})
		return device, nil
	}
}

func (fs *fileSystem) mount() error {
	if err := unix.Mount(fs.device, fs.dir, fs.kind, unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount %s as %s: %w", fs.device, fs.kind, err)
	}
	fs.mounted = true
	return nil
}

func (fs *fileSystem) unmount() error {
	if !fs.mounted {
		return nil
	}
	if err := unix.Unmount(fs.dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", fs.dir, err)
	}
	fs.mounted = false
	return nil
}

func (fs *fileSystem) round(_ context.Context, n int64) (int, error) {
	// Sizes are odd on purpose: the last block of a file is not full.
	size := func(n int64) int { return 1 + int(n*997%31)*len(fs.buf)/31 }
	name := filepath.Join(fs.dir, fmt.Sprintf("data-%d", n%fsFiles))
	if old := n - fsFiles; old >= 0 {
		if err := churn.CheckFile(name, fs.buf[:size(old)], uint64(old), n%3 != 0); err != nil {
			return 0, err
		}
		if err := os.Remove(name); err != nil {
			return 0, err
		}
	}
	if err := churn.WriteFile(name, fs.buf[:size(n)], uint64(n)); err != nil {
		return 0, err
	}
	if err := fs.names(n); err != nil {
		return 2, err
	}
	if n%remountEvery == remountEvery-1 {
		if err := fs.unmount(); err != nil {
			return 2, err
		}
		return 2 + fsNames, fs.mount()
	}
	return 2 + fsNames, nil
}

// names is metadata's turn: a directory whose entries come, change and go.
func (fs *fileSystem) names(n int64) error {
	dir := filepath.Join(fs.dir, fmt.Sprintf("names-%d", n))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for i := range fsNames {
		from, to := filepath.Join(dir, fmt.Sprintf("from-%d", i)), filepath.Join(dir, fmt.Sprintf("to-%d-%d", n, i))
		if err := os.WriteFile(from, []byte(to), 0o644); err != nil {
			return err
		}
		if err := unix.Setxattr(from, "user.livedump", []byte(to), 0); err != nil {
			return fmt.Errorf("set an attribute on %s: %w", fs.kind, err)
		}
		if err := os.Rename(from, to); err != nil {
			return err
		}
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) != fsNames {
		return fmt.Errorf("%s has %d entries, want %d", dir, len(entries), fsNames)
	}
	for _, entry := range entries {
		file := filepath.Join(dir, entry.Name())
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		attribute := make([]byte, len(file)+1)
		length, err := unix.Getxattr(file, "user.livedump", attribute)
		if err != nil {
			return fmt.Errorf("attribute of %s: %w", file, err)
		}
		if string(content) != file || string(attribute[:length]) != file {
			return fmt.Errorf("%s holds %q, its attribute %q", file, content, attribute[:length])
		}
	}
	return os.RemoveAll(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
