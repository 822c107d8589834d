// SPDX-License-Identifier: Apache-2.0

package module

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Node opens the module's device node.
type Node struct {
	// Sys is a sysfs.
	Sys string
	// Dev is the node's /dev.
	Dev string
	// Private is a directory where a node can be made if Dev has none, as in a container whose /dev is its own.
	Private string
}

// nodeWait is how long the device of a module just loaded is waited for.
const nodeWait = 10 * time.Second

// Open waits until the kernel has the device and opens it read-write.
func (n Node) Open(ctx context.Context) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, nodeWait)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	var dev uint64
	for {
		var err error
		if dev, err = n.number(); err == nil {
			break
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("the module is loaded, but its device did not appear: %w", err)
		}
	}
	path := filepath.Join(n.Dev, Name)
	file, err := openNumber(path, dev)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return file, err
	}
	return n.make(dev)
}

// number is the device number that sysfs shows.
func (n Node) number() (uint64, error) {
	text, err := os.ReadFile(filepath.Join(n.Sys, "class/misc", Name, "dev"))
	if err != nil {
		return 0, fmt.Errorf("device of the module: %w", err)
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(strings.TrimSpace(string(text)), "%d:%d", &major, &minor); err != nil {
		return 0, fmt.Errorf("device of the module: %q: %w", text, err)
	}
	return unix.Mkdev(major, minor), nil
}

// make makes a node of our own, which is gone again as soon as it is open.
func (n Node) make(dev uint64) (*os.File, error) {
	dir, err := os.MkdirTemp(n.Private, Name+"-")
	if err != nil {
		return nil, fmt.Errorf("a device node: %w", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, Name)
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(dev)); err != nil {
		return nil, fmt.Errorf("a device node: mknod %s: %w", path, err)
	}
	return openNumber(path, dev)
}

// openNumber opens a device node if it is that of a device.
func openNumber(path string, dev uint64) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != dev {
		return nil, fmt.Errorf("%s is not the node of device %d:%d", path, unix.Major(dev), unix.Minor(dev))
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return file, nil
}
