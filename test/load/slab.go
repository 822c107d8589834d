// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"livedump.io/test/churn"
)

const slabObjects = 100

var slabLoad = load{
	name:  "slab",
	about: "inodes, dentries, files, sockets, pipes, eventfds, epoll items, timers: make, use, unmake",
	start: func(e *env) (*work, error) {
		dir, err := e.tempDir("slab")
		if err != nil {
			return nil, err
		}
		files, buffers := churn.NewSlab(dir), churn.NewBuffers()
		return &work{round: func(ctx context.Context, n int64) (int, error) {
			for _, part := range []*churn.Churn{files, buffers} {
				if err := part.Round(ctx, n); err != nil {
					return 0, err
				}
			}
			return 3, epollRound(uint64(n))
		}}, nil
	},
}

// epollRound has an epoll instance watch many objects, makes one in two of them
// ready, and wants exactly those.
func epollRound(seed uint64) (err error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	fds := []int{epoll}
	defer func() {
		for _, fd := range fds {
			if closeErr := unix.Close(fd); err == nil && closeErr != nil {
				err = fmt.Errorf("close: %w", closeErr)
			}
		}
	}()
	want := map[int32]uint64{}
	for i := range slabObjects {
		event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return fmt.Errorf("eventfd: %w", err)
		}
		fds = append(fds, event)
		timer, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
		if err != nil {
			return fmt.Errorf("timerfd: %w", err)
		}
		fds = append(fds, timer)
		for _, fd := range []int{event, timer} {
			if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
				return fmt.Errorf("epoll_ctl: %w", err)
			}
		}
		if i%2 == 0 {
			var count [8]byte
			want[int32(event)] = seed + uint64(i) + 1
			binary.LittleEndian.PutUint64(count[:], want[int32(event)])
			if _, err := unix.Write(event, count[:]); err != nil {
				return fmt.Errorf("write an eventfd: %w", err)
			}
		}
	}
	events := make([]unix.EpollEvent, 4*slabObjects)
	n, err := unix.EpollWait(epoll, events, 0)
	if err != nil {
		return fmt.Errorf("epoll_wait: %w", err)
	}
	if n != len(want) {
		return fmt.Errorf("epoll_wait: %d objects are ready, want %d", n, len(want))
	}
	for _, e := range events[:n] {
		var count [8]byte
		if _, err := unix.Read(int(e.Fd), count[:]); err != nil {
			return fmt.Errorf("read an eventfd: %w", err)
		}
		if got := binary.LittleEndian.Uint64(count[:]); got != want[e.Fd] {
			return fmt.Errorf("eventfd holds %d, want %d", got, want[e.Fd])
		}
	}
	return nil
}
