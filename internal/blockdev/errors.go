// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"errors"
	"fmt"
)

// Why a device is refused. Every refusal wraps exactly one of them.
var (
	// ErrNotFound: there is no such volume or device node.
	ErrNotFound = errors.New("device not found")
	// ErrNotBlock: it is there, but is no block device.
	ErrNotBlock = errors.New("not a block device")
	// ErrGeometry: sectors larger than a page, or no size at all.
	ErrGeometry = errors.New("unsuitable block device")
	// ErrTooSmall: it does not hold what is needed.
	ErrTooSmall = errors.New("device too small")
	// ErrReadOnly: the kernel does not let it be written.
	ErrReadOnly = errors.New("device is read-only")
	// ErrMounted: it, a part of it or what it is a part of is mounted.
	ErrMounted = errors.New("device is mounted")
	// ErrSwap: it is used as swap.
	ErrSwap = errors.New("device is used as swap")
	// ErrHeld: another block device (LVM, RAID, dm-crypt, ...) is built on it.
	ErrHeld = errors.New("device is part of another block device")
	// ErrInUse: something has claimed it exclusively.
	ErrInUse = errors.New("device is in use")
	// ErrPartitioned: it has partitions.
	ErrPartitioned = errors.New("device has partitions")
	// ErrNotEmpty: it holds data that the overwrite policy protects.
	ErrNotEmpty = errors.New("device is not empty")
	// ErrNotMount: no file system is mounted where the volume should be.
	ErrNotMount = errors.New("not a mounted volume")
	// ErrInMemory: the volume's file system is in memory.
	ErrInMemory = errors.New("volume lies in memory")
	// ErrIO: reading or writing failed.
	ErrIO = errors.New("I/O error")
)

// refusal is a kind of error with what was seen.
type refusal struct {
	kind   error
	device string
	detail string
}

func (r *refusal) Error() string {
	if r.detail == "" {
		return fmt.Sprintf("%s: %s", r.device, r.kind)
	}
	return fmt.Sprintf("%s: %s: %s", r.device, r.kind, r.detail)
}

func (r *refusal) Unwrap() error { return r.kind }

func refuse(kind error, device, format string, args ...any) error {
	return &refusal{kind: kind, device: device, detail: fmt.Sprintf(format, args...)}
}
