// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"

	"golang.org/x/sys/unix"
)

// Names that come from the API become parts of paths; nothing else than names must get through.
var (
	podUIDForm = regexp.MustCompile(`^[0-9a-zA-Z]([-0-9a-zA-Z]*[0-9a-zA-Z])?$`)
	pvNameForm = regexp.MustCompile(`^[0-9a-z]([-.0-9a-z]*[0-9a-z])?$`)
)

// FindVolume gives the block device that the kubelet attached for a pod: the target of
// <kubeletDir>/pods/<podUID>/volumeDevices/<plugin>/<pvName>. ErrNotFound, ErrNotBlock.
func (h Host) FindVolume(kubeletDir, podUID, pvName string) (ID, error) {
	if !podUIDForm.MatchString(podUID) {
		return ID{}, fmt.Errorf("finding the volume: %q is not the UID of a pod", podUID)
	}
	if !pvNameForm.MatchString(pvName) {
		return ID{}, fmt.Errorf("finding the volume: %q is not the name of a volume", pvName)
	}
	base := path.Join(kubeletDir, "pods", podUID, "volumeDevices")
	plugins, err := h.readDirInRoot(base)
	if errors.Is(err, unix.ENOENT) {
		return ID{}, refuse(ErrNotFound, base, "the kubelet has attached no block volume for this pod")
	}
	if err != nil {
		return ID{}, fmt.Errorf("finding the volume: %w", err)
	}
	var found []string
	for _, plugin := range plugins {
		p := path.Join(base, plugin, pvName)
		if fd, err := h.openInRoot(p, unix.O_PATH|unix.O_NOFOLLOW); err == nil {
			unix.Close(fd)
			found = append(found, p)
		} else if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			return ID{}, fmt.Errorf("finding the volume: %w", err)
		}
	}
	switch len(found) {
	case 0:
		return ID{}, refuse(ErrNotFound, base, "volume %s is not among the block volumes of this pod", pvName)
	case 1:
		return h.Resolve(found[0])
	}
	return ID{}, refuse(ErrNotFound, base, "volume %s is there more than once: %v", pvName, found)
}

func (h Host) readDirInRoot(p string) ([]string, error) {
	fd, err := h.openInRoot(p, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), p)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", p, err)
	}
	return names, nil
}
