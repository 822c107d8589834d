// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// RefuseHugePages has the kernel leave the process's pages as small as they are. Where khugepaged makes a huge page of
// them it interrupts every CPU, and waits with the process's mmap lock held: with a CPU stuck that does not take
// interrupts, the process's next page fault would wait for just the CPU that the dump is to show. It is for as long as
// the process lives.
func RefuseHugePages() error {
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("refusing huge pages: %w", err)
	}
	return nil
}
