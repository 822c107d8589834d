// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

// Names that come from the API become parts of paths; nothing else than names must get through.
var (
	podUIDForm = regexp.MustCompile(`^[0-9a-zA-Z]([-0-9a-zA-Z]*[0-9a-zA-Z])?$`)
	pvNameForm = regexp.MustCompile(`^[0-9a-z]([-.0-9a-z]*[0-9a-z])?$`)
)

// FindVolume gives the block device that the kubelet attached for a pod: the target of
// <kubeletDir>/pods/<podUID>/volumeDevices/<plugin>/<pvName>. It refuses a volume that is attached for another pod as well, but waits for
// so long until that is over: the pod may be about to end. ErrNotFound, ErrNotBlock, ErrInUse, or the cause of ctx.
func (h Host) FindVolume(ctx context.Context, kubeletDir, podUID, pvName string, patience time.Duration) (ID, error) {
	if !podUIDForm.MatchString(podUID) {
		return ID{}, fmt.Errorf("finding the volume: %q is not the UID of a pod", podUID)
	}
	if !pvNameForm.MatchString(pvName) {
		return ID{}, fmt.Errorf("finding the volume: %q is not the name of a volume", pvName)
	}
	base := path.Join(kubeletDir, "pods", podUID, "volumeDevices")
	found, err := h.attached(base, pvName)
	if err != nil {
		return ID{}, fmt.Errorf("finding the volume: %w", err)
	}
	switch len(found) {
	case 0:
		return ID{}, refuse(ErrNotFound, base, "volume %s is not among the block volumes that the kubelet has attached for this pod", pvName)
	case 1:
		if err := h.waitForOthers(ctx, kubeletDir, podUID, pvName, patience); err != nil {
			return ID{}, err
		}
		return h.Resolve(found[0])
	}
	return ID{}, refuse(ErrNotFound, base, "volume %s is there more than once: %v", pvName, found)
}

// FindLocal gives the block device of a local volume by the path that the volume names, for a node whose kubelet starts
// no pods. It bypasses the kubelet, so it refuses a volume that the kubelet has attached for any pod but the
// one named. ErrNotFound, ErrNotBlock, ErrInUse.
func (h Host) FindLocal(devicePath, kubeletDir, podUID, pvName string) (ID, error) {
	if !pvNameForm.MatchString(pvName) {
		return ID{}, fmt.Errorf("finding the volume: %q is not the name of a volume", pvName)
	}
	if !path.IsAbs(devicePath) {
		return ID{}, refuse(ErrNotFound, devicePath, "the path of a local volume has to begin with /")
	}
	id, err := h.Resolve(devicePath)
	if err != nil {
		return ID{}, err
	}
	if err := h.refuseOthers(kubeletDir, podUID, pvName); err != nil {
		return ID{}, err
	}
	return id, nil
}

// refuseOthers is ErrInUse if the kubelet has attached a volume for any pod but the one named.
func (h Host) refuseOthers(kubeletDir, podUID, pvName string) error {
	pods := path.Join(kubeletDir, "pods")
	uids, err := h.readDirInRoot(pods)
	if err != nil {
		return fmt.Errorf("finding the pods that use volume %s: %w", pvName, err)
	}
	for _, uid := range uids {
		attached, err := h.attached(path.Join(pods, uid, "volumeDevices"), pvName)
		if err != nil {
			return fmt.Errorf("finding the pods that use volume %s: %w", pvName, err)
		}
		if len(attached) > 0 && uid != podUID {
			return refuse(ErrInUse, attached[0], "the kubelet has attached volume %s for the pod with UID %s", pvName, uid)
		}
	}
	return nil
}

// othersRetry is how often it is looked whether the other pods are gone.
const othersRetry = 200 * time.Millisecond

func (h Host) waitForOthers(ctx context.Context, kubeletDir, podUID, pvName string, patience time.Duration) error {
	for until := time.Now().Add(patience); ; {
		err := h.refuseOthers(kubeletDir, podUID, pvName)
		if !errors.Is(err, ErrInUse) || !time.Now().Before(until) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(othersRetry):
		}
	}
}

// attached are the paths by which the kubelet has a block volume in a pod's directory volumeDevices.
func (h Host) attached(base, pvName string) ([]string, error) {
	plugins, err := h.readDirInRoot(base)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var found []string
	for _, plugin := range plugins {
		p := path.Join(base, plugin, pvName)
		if fd, err := h.openInRoot(p, unix.O_PATH|unix.O_NOFOLLOW); err == nil {
			unix.Close(fd)
			found = append(found, p)
		} else if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			return nil, err
		}
	}
	return found, nil
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
