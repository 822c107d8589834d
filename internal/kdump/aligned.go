// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// aligned is memory at a page boundary, as direct I/O wants it. It lies outside the Go heap, so that
// a freeze is not made longer by the collector touching it.
type aligned struct {
	b []byte
}

func newAligned(n int) (*aligned, error) {
	n = (n + PageSize - 1) &^ (PageSize - 1)
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("allocating %d bytes of buffer: %w", n, err)
	}
	return &aligned{b: b}, nil
}

func (a *aligned) free() {
	if a.b != nil {
		_ = unix.Munmap(a.b) // cannot fail for a mapping of our own
		a.b = nil
	}
}

// NewBuffer gives n bytes, rounded up to whole pages, at a page boundary and outside of the Go heap, as an Output wants
// them. free gives them back.
func NewBuffer(n int) (b []byte, free func(), err error) {
	a, err := newAligned(n)
	if err != nil {
		return nil, nil, err
	}
	return a.b, a.free, nil
}
