// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"livedump.io/internal/blockdev"
	"livedump.io/internal/convert"
	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
	"livedump.io/internal/stream"
	"livedump.io/internal/target"
)

// Open opens a target when a dump begins.
type Open func(context.Context) (target.Target, error)

// Device opens a block device that find names.
func (n Node) Device(find func(context.Context) (blockdev.ID, error), need blockdev.Need) Open {
	return func(ctx context.Context) (target.Target, error) {
		id, err := find(ctx)
		if err != nil {
			return nil, err
		}
		d, err := blockdev.Open(ctx, n.Host, id, need)
		if err != nil {
			return nil, err
		}
		return target.NewDevice(d), nil
	}
}

// FileInVolume opens a new file in a mounted volume that find names. What has the path already must be something that the
// policy lets be replaced, and must not be the dump of the session before, which is ErrUnreported: that of a process that has ended, or none.
// label says where it is, for people.
func FileInVolume(find func() (*blockdev.Filesystem, error), path, label string, policy blockdev.Policy, before kdump.Session) Open {
	return func(context.Context) (target.Target, error) {
		fs, err := find()
		if err != nil {
			return nil, err
		}
		defer fs.Dir.Close()
		if err := replaceable(fs.Dir, path, label, policy, before); err != nil {
			return nil, err
		}
		f, err := target.CreateFile(path, target.FileOptions{Room: fs.Available, Dir: fs.Dir, Label: fmt.Sprintf("%s (%s)", label, fs.Source)})
		if errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("%w: %s: the folder of the file must exist: %w", blockdev.ErrNotFound, label, err)
		}
		if err != nil {
			return nil, err
		}
		return f, nil
	}
}

// File opens a new file of this machine; see FileInVolume.
func File(path string, policy blockdev.Policy, before kdump.Session) Open {
	return FileInVolume(func() (*blockdev.Filesystem, error) {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		return blockdev.DescribeFilesystem(dir, path)
	}, filepath.Base(path), path, policy, before)
}

// Parts opens several targets for one dump that is split among them. If the process that made the dump of the session before has ended, it
// is there only if all of its parts are.
func Parts(before kdump.Session, opens ...Open) Open {
	return func(ctx context.Context) (target.Target, error) {
		parts, there := &target.Parts{}, 0
		for _, open := range opens {
			t, err := open(ctx)
			if errors.Is(err, ErrUnreported) {
				there++
				continue
			}
			if err != nil {
				return nil, errors.Join(err, parts.Close())
			}
			random, ok := t.(target.Random)
			if !ok {
				return nil, errors.Join(fmt.Errorf("%w: %s cannot be written at any place", format.ErrFormat, t.Describe()), t.Close(), parts.Close())
			}
			parts.Parts = append(parts.Parts, random)
		}
		if there == 0 {
			return parts, nil
		}
		for _, t := range parts.Parts {
			if rec, found, err := leftOn(t, before); err == nil && found && rec.State == kdump.StateComplete {
				there++
			}
		}
		if there < len(opens) {
			return nil, errors.Join(fmt.Errorf("%w: %d of %d parts are complete, and readers want all", ErrNoDump, there, len(opens)), parts.Close())
		}
		return nil, errors.Join(ErrUnreported, parts.Close())
	}
}

// Stream opens a connection to a receiver.
func Stream(o stream.Options) Open {
	return func(ctx context.Context) (target.Target, error) { return stream.Dial(ctx, o) }
}

// replaceable says whether the policy lets a dump take the place of what has its path.
func replaceable(dir *os.File, path, label string, policy blockdev.Policy, before kdump.Session) error {
	fd, err := unix.Openat2(int(dir.Fd()), path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at %s: %w", label, err)
	}
	f := os.NewFile(uintptr(fd), label)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("looking at %s: %w", label, err)
	}
	switch {
	case !st.Mode().IsRegular():
		return fmt.Errorf("%w: %s is there and no regular file", blockdev.ErrNotEmpty, label)
	case before != kdump.Session{} && isDumpOf(f, before):
		return fmt.Errorf("%w: %s", ErrUnreported, label)
	case policy == blockdev.Never:
		return fmt.Errorf("%w: %s is there, and the overwrite policy is %s", blockdev.ErrNotEmpty, label, policy)
	case st.Size() == 0:
		return nil
	}
	old, err := convert.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return fmt.Errorf("%w: %s is there and is no dump of livedump: %w", blockdev.ErrNotEmpty, label, err)
	}
	defer old.Close()
	if !old.ByLivedump() {
		return fmt.Errorf("%w: %s is there, and another program wrote it", blockdev.ErrNotEmpty, label)
	}
	return nil
}

// isDumpOf says whether a file is the complete dump of a session. A file has its name only then.
func isDumpOf(f *os.File, id kdump.Session) bool {
	if rec, found, err := leftOn(f, id); err == nil && found {
		return rec.State == kdump.StateComplete
	}
	d, err := convert.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd())) // a flattened one, or an ELF vmcore
	if err != nil {
		return false
	}
	defer d.Close()
	return d.Meta.Session == id
}
