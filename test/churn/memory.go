// SPDX-License-Identifier: Apache-2.0

package churn

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

const memoryBytes = 4 << 20

// NewMemory takes fresh pages from the kernel, sees that they are zero,
// fills and checks them and gives them back: free pages that change hands are
// most of what writes to protected memory.
func NewMemory() *Churn {
	return &Churn{Name: "memory", Round: func(_ context.Context, n int64) error {
		mem, err := unix.Mmap(-1, 0, memoryBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return fmt.Errorf("mmap: %w", err)
		}
		err = func() error {
			for i, b := range mem {
				if b != 0 {
					return fmt.Errorf("fresh memory holds %#x at byte %d", b, i)
				}
			}
			Fill(mem, uint64(n))
			return Check(mem, uint64(n))
		}()
		if unmapErr := unix.Munmap(mem); err == nil && unmapErr != nil {
			err = fmt.Errorf("munmap: %w", unmapErr)
		}
		return err
	}}
}
