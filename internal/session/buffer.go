// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Buffer is memory for Next: page-aligned, outside the Go heap, and locked if the kernel allows it, so that the
// reading of frozen memory does not itself cause page faults, swapping or garbage.
type Buffer struct {
	Data   []byte
	Pages  []Page
	Locked bool
}

// NewBuffer has room for a batch of pages. Free gives the memory back.
func NewBuffer(pages int) (*Buffer, error) {
	if pages < 1 || pages > MaxBatch {
		return nil, fmt.Errorf("livedump session: a batch of %d pages: want 1 to %d", pages, MaxBatch)
	}
	data, err := unix.Mmap(-1, 0, pages*PageSize, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("livedump session: a buffer of %d pages: %w", pages, err)
	}
	// A limit on locked memory (no CAP_IPC_LOCK) costs speed, not correctness.
	locked := unix.Mlock(data) == nil
	return &Buffer{Data: data, Pages: make([]Page, pages), Locked: locked}, nil
}

// Free unmaps the buffer; it must not be used afterwards.
func (b *Buffer) Free() error {
	if b.Data == nil {
		return nil
	}
	data := b.Data
	b.Data, b.Pages = nil, nil
	if err := unix.Munmap(data); err != nil {
		return fmt.Errorf("livedump session: freeing a buffer: %w", err)
	}
	return nil
}
