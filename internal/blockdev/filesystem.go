// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// Filesystem is a mounted volume: its root directory, open.
type Filesystem struct {
	Dir *os.File
	// Available bytes for files.
	Available int64
	// Source identifies the file system for people.
	Source string
}

// FindFilesystem gives the file system that the kubelet mounted for a pod, at <kubeletDir>/pods/<podUID>/volumes/<plugin>/<pvName>,
// or, for volumes of CSI, in the folder mount there. It must really be a mount: otherwise the dump would go to the
// disk of the node's own system. ErrNotFound, ErrNotMount, ErrInMemory, ErrReadOnly.
func (h Host) FindFilesystem(kubeletDir, podUID, pvName string) (*Filesystem, error) {
	if !podUIDForm.MatchString(podUID) {
		return nil, fmt.Errorf("finding the volume: %q is not the UID of a pod", podUID)
	}
	if !pvNameForm.MatchString(pvName) {
		return nil, fmt.Errorf("finding the volume: %q is not the name of a volume", pvName)
	}
	base := path.Join(kubeletDir, "pods", podUID, "volumes")
	found, err := h.attached(base, pvName)
	switch {
	case err != nil:
		return nil, fmt.Errorf("finding the volume: %w", err)
	case len(found) == 0:
		return nil, refuse(ErrNotFound, base, "volume %s is not among those that the kubelet has mounted for this pod", pvName)
	case len(found) > 1:
		return nil, refuse(ErrNotFound, base, "volume %s is there more than once: %v", pvName, found)
	}
	return h.openFilesystem(found[0], pvName)
}

func (h Host) openFilesystem(at, pvName string) (*Filesystem, error) {
	for _, p := range []string{at, path.Join(at, "mount")} {
		fd, err := h.openInRoot(p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("opening volume %s: %w", pvName, err)
		}
		dir := os.NewFile(uintptr(fd), p)
		mounted, err := isMountRoot(fd)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("volume %s: %w", pvName, err), dir.Close())
		}
		if !mounted {
			if err := dir.Close(); err != nil {
				return nil, err
			}
			continue
		}
		fs, err := DescribeFilesystem(dir, pvName)
		if err != nil {
			return nil, errors.Join(err, dir.Close())
		}
		return fs, nil
	}
	return nil, refuse(ErrNotMount, at, "nothing is mounted there; what is written there would go to the node's own disk")
}

// isMountRoot says whether a directory is where something is mounted.
func isMountRoot(fd int) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &st); err != nil {
		return false, fmt.Errorf("stat: %w", err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, errors.New("this kernel does not tell what a mount is")
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// fileSystems are names of what statfs says, for people.
var fileSystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.NFS_SUPER_MAGIC: "nfs",
	unix.FUSE_SUPER_MAGIC: "fuse", unix.F2FS_SUPER_MAGIC: "f2fs", unix.CEPH_SUPER_MAGIC: "ceph", unix.OVERLAYFS_SUPER_MAGIC: "overlay",
}

// DescribeFilesystem looks at the file system of an open directory, and refuses one in memory or read-only. name is for errors.
func DescribeFilesystem(dir *os.File, name string) (*Filesystem, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return nil, fmt.Errorf("volume %s: %w", name, err)
	}
	switch {
	case st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC:
		return nil, refuse(ErrInMemory, name, "a dump in it would take the memory that is to be dumped")
	case st.Flags&unix.ST_RDONLY != 0:
		return nil, refuse(ErrReadOnly, name, "it is mounted read-only")
	}
	var at unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &at); err != nil {
		return nil, fmt.Errorf("volume %s: %w", name, err)
	}
	kind, ok := fileSystems[st.Type]
	if !ok {
		kind = fmt.Sprintf("file system %#x", st.Type)
	}
	return &Filesystem{Dir: dir, Available: int64(st.Bavail) * st.Bsize, Source: fmt.Sprintf("%s on %d:%d", kind, unix.Major(at.Dev), unix.Minor(at.Dev))}, nil
}
