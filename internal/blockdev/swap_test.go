// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func swap(call uintptr, path *byte) unix.Errno {
	_, _, errno := unix.Syscall(call, uintptr(unsafe.Pointer(path)), 0, 0)
	return errno
}
