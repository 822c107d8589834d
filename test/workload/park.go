// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// parkedName is the thread's name; at most 15 bytes.
const parkedName = "ld-parked"

// park leaves a thread asleep in read(2) of a pipe that nobody writes, and
// returns its thread id. The read is a raw blocking one: through os.File Go
// would wait in epoll instead.
func park() (tid int, err error) {
	type started struct {
		tid int
		err error
	}
	ready := make(chan started)
	go func() {
		// Never unlocked: the thread is this goroutine's alone.
		runtime.LockOSThread()
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			ready <- started{err: fmt.Errorf("pipe: %w", err)}
			return
		}
		title, err := unix.BytePtrFromString(parkedName)
		if err == nil {
			err = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(title)), 0, 0, 0)
		}
		if err != nil {
			ready <- started{err: fmt.Errorf("name the thread: %w", err)}
			return
		}
		ready <- started{tid: unix.Gettid()}
		var b [1]byte
		for {
			n, err := unix.Read(pipe[0], b[:])
			if err != unix.EINTR {
				panic(fmt.Sprintf("the parked read came back: %d bytes, %v", n, err))
			}
		}
	}()
	s := <-ready
	return s.tid, s.err
}
