// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// LockMemory keeps the process's memory from being paged out, so that it never waits for the disk that it writes to.
// Pages are locked as they are touched, since the runtime reserves far more address space than it uses. The function
// returned undoes it. An error means that the process goes on with memory that is not locked.
func LockMemory() (unlock func(), err error) {
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	// With a limit in place a later allocation would fail, which the runtime does not survive.
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unlimited); err != nil {
		return func() {}, fmt.Errorf("lifting the limit on locked memory: %w", err)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return func() {}, fmt.Errorf("locking memory: %w", err)
	}
	return func() { _ = unix.Munlockall() }, nil // cannot fail after Mlockall
}
