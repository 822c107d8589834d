// SPDX-License-Identifier: Apache-2.0

package target

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"livedump.io/internal/kdump"
)

// File is a dump in a file system. Until Commit it has another name, so that nobody takes it for a dump;
// and it is written past the page cache where the file system allows it.
type File struct {
	f    *os.File
	dir  *os.File // the folder it lies in, whatever its path means meanwhile
	name string
	path string
	room int64

	mu    sync.Mutex
	ended bool // committed or removed
	shut  bool
}

// Partial is what the name of a file ends with until it is a dump.
const Partial = ".partial"

// maxLabel is what Describe may say.
const maxLabel = 256

// FileOptions of CreateFile.
type FileOptions struct {
	// Room in bytes: nothing is written beyond it.
	Room int64
	// Dir, if not nil, is the open folder that the path is relative to; CreateFile does not close it. The path must not lead
	// out of it, or to what is mounted below it.
	Dir *os.File
	// Label is what Describe says, and errors; empty: the path.
	Label string
}

// CreateFile makes the file. What has the name already stays as it is until Commit. A file that an earlier attempt left half-written
// is replaced.
func CreateFile(path string, o FileOptions) (_ *File, err error) {
	t := &File{path: path, name: filepath.Base(path), room: o.Room}
	at := unix.AT_FDCWD
	if o.Dir != nil {
		at, t.path = int(o.Dir.Fd()), filepath.Join(o.Dir.Name(), path)
	}
	// No link out of the folder is followed, by whatever name.
	if o.Label != "" {
		t.path = o.Label[:min(len(o.Label), maxLabel)]
	}
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC}
	if o.Dir != nil {
		how.Resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV
	}
	fd, err := unix.Openat2(at, filepath.Dir(path), &how)
	if err != nil {
		return nil, fmt.Errorf("the folder of %s: %w", t.path, err)
	}
	t.dir = os.NewFile(uintptr(fd), "the folder of "+t.path)
	defer func() {
		if err != nil {
			_ = t.dir.Close() // only read
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstatat(fd, t.name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is not a regular file", t.path)
	}
	if err := unix.Unlinkat(fd, t.name+Partial, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("removing what an earlier dump left of %s: %w", t.path, err)
	}
	const flags = unix.O_RDWR | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	file, err := unix.Openat(fd, t.name+Partial, flags|unix.O_DIRECT, 0o600)
	if errors.Is(err, unix.EINVAL) { // some file systems create it, and only then refuse
		file, err = unix.Openat(fd, t.name+Partial, flags&^unix.O_EXCL, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("creating %s: %w", t.path, err)
	}
	t.f = os.NewFile(uintptr(file), t.path+Partial)
	return t, nil
}

// Preallocate takes so much of the room at once, so that the file system cannot run out of it later. Commit gives back
// what is not needed.
func (t *File) Preallocate(n int64) error {
	if err := unix.Fallocate(int(t.f.Fd()), 0, 0, n); err != nil {
		return fmt.Errorf("%s: allocating %d bytes: %w", t.path, n, err)
	}
	return nil
}

// Describe implements Target.
func (t *File) Describe() string { return t.path }

// Abilities implements Target.
func (t *File) Abilities() Abilities { return Abilities{RandomAccess: true, Sized: true} }

// WriteAt, ReadAt, Sync and Size make a File a Random.
func (t *File) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > t.room {
		return 0, &kdump.TargetTooSmallError{Needed: off + int64(len(b)), Available: t.room}
	}
	return t.f.WriteAt(b, off)
}

// ReadAt implements Random.
func (t *File) ReadAt(b []byte, off int64) (int, error) { return t.f.ReadAt(b, off) }

// Sync implements Random.
func (t *File) Sync() error { return t.f.Sync() }

// Size is the room.
func (t *File) Size() int64 { return t.room }

// Commit cuts the file to its size, gives it its name, and returns when both are on stable storage.
func (t *File) Commit(ctx context.Context, size int64) (Receipt, error) {
	t.mu.Lock()
	ended := t.ended
	t.mu.Unlock()
	if ended {
		return Receipt{}, fmt.Errorf("%s: %w", t.path, ErrEnded)
	}
	err := context.Cause(ctx)
	if err == nil {
		err = t.commit(size)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", t.path, err)
		return Receipt{}, errors.Join(err, t.Abort(err))
	}
	return Receipt{Bytes: size}, nil
}

func (t *File) commit(size int64) error {
	if err := t.f.Truncate(size); err != nil {
		return err
	}
	if err := t.f.Sync(); err != nil {
		return fmt.Errorf("syncing: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return ErrEnded
	}
	dir := int(t.dir.Fd())
	if err := unix.Renameat(dir, t.name+Partial, dir, t.name); err != nil {
		return err
	}
	t.ended = true // from here on there is nothing to remove
	if err := t.dir.Sync(); err != nil {
		// Whether it will have its name is not known, so it is to have none.
		return errors.Join(fmt.Errorf("syncing its folder: %w", err), unix.Unlinkat(dir, t.name, 0))
	}
	return nil
}

// Abort removes the file.
func (t *File) Abort(error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return nil
	}
	t.ended = true
	if err := unix.Unlinkat(int(t.dir.Fd()), t.name+Partial, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing %s: %w", t.path+Partial, err)
	}
	return nil
}

// Close implements Target.
func (t *File) Close() error {
	err := t.Abort(ErrAborted)
	t.mu.Lock()
	shut := t.shut
	t.shut = true
	t.mu.Unlock()
	if shut {
		return err
	}
	return errors.Join(err, t.f.Close(), t.dir.Close())
}
