// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// maxPodFile bounds what is read of a file that came through the API.
const maxPodFile = 1 << 20

// ReadProjected reads a file of a projected volume that the kubelet has made for a pod. ErrNotFound.
func (h Host) ReadProjected(kubeletDir, podUID, volume, name string) ([]byte, error) {
	if !podUIDForm.MatchString(podUID) {
		return nil, fmt.Errorf("finding the volume: %q is not the UID of a pod", podUID)
	}
	at := path.Join(kubeletDir, "pods", podUID, "volumes/kubernetes.io~projected", volume, name)
	fd, err := h.openInRoot(at, unix.O_RDONLY|unix.O_NONBLOCK)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, refuse(ErrNotFound, at, "the kubelet has no such file for this pod")
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), at)
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPodFile+1))
	if err == nil && len(b) > maxPodFile {
		err = fmt.Errorf("it has more than %d bytes", maxPodFile)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", at, err)
	}
	return b, nil
}
