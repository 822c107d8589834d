// SPDX-License-Identifier: Apache-2.0

package churn

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	bufferPipes = 8
	bufferBytes = 64 << 10 // a pipe's capacity
)

// NewBuffers keeps kernel pages (pipe buffers) full of known data for many
// rounds, longer than a freeze lasts on a small machine, and then empties and
// checks one pipe per round.
func NewBuffers() *Churn {
	var pipes [bufferPipes][2]int
	buf := make([]byte, bufferBytes)
	return &Churn{Name: "buffers", Round: func(_ context.Context, n int64) error {
		pipe := &pipes[n%bufferPipes]
		if n >= bufferPipes {
			for got := 0; got < len(buf); {
				m, err := unix.Read(pipe[0], buf[got:])
				if err != nil || m == 0 {
					return fmt.Errorf("read a pipe: %d bytes of %d: %w", got, len(buf), err)
				}
				got += m
			}
			if err := Check(buf, uint64(n-bufferPipes)); err != nil {
				return fmt.Errorf("pipe: %w", err)
			}
		} else if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			return fmt.Errorf("pipe: %w", err)
		}
		Fill(buf, uint64(n))
		if m, err := unix.Write(pipe[1], buf); err != nil || m != len(buf) {
			return fmt.Errorf("write a pipe: %d bytes of %d: %w", m, len(buf), err)
		}
		return nil
	}}
}
