// SPDX-License-Identifier: Apache-2.0

// Package blockdevtest makes block devices for tests.
package blockdevtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Loop attaches a loop device to a new file of that many bytes and returns the paths of the device and of the file. The
// test is skipped where that is not possible. The device is detached when the test ends.
func Loop(t testing.TB, bytes int64) (device, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(bytes); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return LoopOver(t, file, 0), file
}

// LoopOver attaches a loop device to a file or block device that exists. The flags are LO_FLAGS_*.
func LoopOver(t testing.TB, backing string, flags uint32) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no loop devices on this machine: %v", err)
	}
	defer control.Close()
	back, err := os.OpenFile(backing, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Skipf("no free loop device: %v", err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		device, err := os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			t.Skipf("the kernel has %s, but there is no node for it", path)
		}
		if err != nil {
			t.Fatal(err)
		}
		config := unix.LoopConfig{Fd: uint32(back.Fd())}
		config.Info.Flags = flags
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if errors.Is(err, unix.EBUSY) {
			device.Close() // somebody else was faster with this one
			continue
		}
		if err != nil {
			device.Close()
			t.Fatalf("attaching %s: %v", path, err)
		}
		t.Cleanup(func() {
			if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
				t.Errorf("detaching %s: %v", path, err)
			}
			device.Close()
		})
		return path
	}
}
