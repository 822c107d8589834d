// SPDX-License-Identifier: Apache-2.0

package blockdevtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of the device mapper, and the size of its struct dm_ioctl.
const (
	dmCreate = 3
	dmRemove = 4
	dmResume = 6
	dmLoad   = 9

	dmHeader = 312
)

// Linear builds a device-mapper device on a block device, with all of its sectors, and returns its name. The test is
// skipped where the kernel has no device mapper. The device is removed when the test ends.
func Linear(t testing.TB, device string, bytes int64) (name string) {
	t.Helper()
	control, err := openMapper()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		t.Skip("this kernel has no device mapper; make test-devices runs the test in a guest that has")
	}
	if err != nil {
		t.Fatal(err)
	}
	name = fmt.Sprintf("livedump-test-%d", os.Getpid())
	request := func(command uintptr, table string) error {
		buffer := make([]byte, 4096)
		order := binary.NativeEndian
		order.PutUint32(buffer, 4) // version 4.0.0
		order.PutUint32(buffer[12:], uint32(len(buffer)))
		order.PutUint32(buffer[16:], dmHeader)
		copy(buffer[48:], name)
		if table != "" {
			order.PutUint32(buffer[20:], 1) // one target
			target := buffer[dmHeader:]
			order.PutUint64(target[8:], uint64(bytes/512))
			copy(target[24:], "linear")
			copy(target[40:], table)
		}
		code := uintptr(3<<30 | dmHeader<<16 | 0xfd<<8 | command)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), code, uintptr(unsafe.Pointer(&buffer[0]))); errno != 0 {
			return fmt.Errorf("device mapper, request %d: %w", command, errno)
		}
		return nil
	}
	if err := request(dmCreate, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := request(dmRemove, ""); err != nil {
			t.Error(err)
		}
		control.Close()
	})
	if err := errors.Join(request(dmLoad, device+" 0"), request(dmResume, "")); err != nil {
		t.Fatal(err)
	}
	return name
}

// openMapper opens the device mapper's control device. Without udev its node may have to be made.
func openMapper() (*os.File, error) {
	const path = "/dev/mapper/control"
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return file, err
	}
	var major, minor uint32 = 10, 0
	misc, err := os.ReadFile("/sys/class/misc/device-mapper/dev")
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Sscanf(string(misc), "%d:%d", &major, &minor); err != nil {
		return nil, fmt.Errorf("number of the device mapper: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(major, minor))); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}
