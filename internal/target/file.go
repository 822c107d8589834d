// SPDX-License-Identifier: Apache-2.0

// Package target has the places that a dump can go to besides a block device.
package target

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// File is a dump in a file system. Until Commit it has another name, so that nobody takes it for a dump;
// and it is written past the page cache where the file system allows it.
type File struct {
	f      *os.File
	path   string
	room   int64
	direct bool
}

const partial = ".partial"

// CreateFile makes the file with room for so many bytes, which are allocated only if preallocate says
// so. What has the name already stays as it is until Commit.
func CreateFile(path string, room int64, preallocate bool) (_ *File, err error) {
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	t := &File{path: path, room: room, direct: true}
	const flags = os.O_RDWR | os.O_CREATE | os.O_TRUNC | unix.O_NOFOLLOW
	t.f, err = os.OpenFile(path+partial, flags|unix.O_DIRECT, 0o600)
	if errors.Is(err, unix.EINVAL) {
		t.direct = false
		t.f, err = os.OpenFile(path+partial, flags, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("creating the file for the dump: %w", err)
	}
	if preallocate {
		if err := unix.Fallocate(int(t.f.Fd()), 0, 0, room); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: allocating %d bytes: %w", path, room, err), t.Discard())
		}
	}
	return t, nil
}

// WriteAt, ReadAt, Sync and Size make a File a kdump.Output.
func (t *File) WriteAt(b []byte, off int64) (int, error) { return t.f.WriteAt(b, off) }

func (t *File) ReadAt(b []byte, off int64) (int, error) { return t.f.ReadAt(b, off) }

func (t *File) Sync() error { return t.f.Sync() }

// Size is the room.
func (t *File) Size() int64 { return t.room }

// Direct says whether writes go past the page cache.
func (t *File) Direct() bool { return t.direct }

// Commit cuts the file to its size, gives it its name, and returns when both are on stable storage.
func (t *File) Commit(size int64) error {
	if err := t.f.Truncate(size); err != nil {
		return errors.Join(err, t.Discard())
	}
	if err := t.f.Sync(); err != nil {
		return errors.Join(fmt.Errorf("syncing %s: %w", t.path, err), t.Discard())
	}
	if err := os.Rename(t.path+partial, t.path); err != nil {
		return errors.Join(err, t.Discard())
	}
	if err := syncDir(filepath.Dir(t.path)); err != nil {
		return errors.Join(err, t.f.Close())
	}
	return t.f.Close()
}

// Discard removes the file.
func (t *File) Discard() error {
	return errors.Join(t.f.Close(), os.Remove(t.path+partial))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return errors.Join(fmt.Errorf("syncing %s: %w", path, err), d.Close())
	}
	return d.Close()
}
