// SPDX-License-Identifier: Apache-2.0

package churn

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	slabFiles   = 150
	slabSockets = 50
)

// NewSlab makes and unmakes inodes, dentries, files and sockets: kernel
// objects that come and go in slabs, each looked up again before it goes.
func NewSlab(parent string) *Churn {
	return &Churn{Name: "slab", Round: func(_ context.Context, n int64) error {
		if err := churnFiles(filepath.Join(parent, fmt.Sprintf("slab-%d", n%2)), n); err != nil {
			return err
		}
		return churnSockets(uint64(n))
	}}
}

func churnFiles(dir string, n int64) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	name := func(i int) string { return filepath.Join(dir, fmt.Sprintf("%d-%d", n, i)) }
	for i := range slabFiles {
		if err := os.Symlink(fmt.Sprintf("target-%d-%d", n, i), name(i)); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) != slabFiles {
		return fmt.Errorf("%s has %d entries, want %d", dir, len(entries), slabFiles)
	}
	for i := range slabFiles {
		target, err := os.Readlink(name(i))
		if err != nil {
			return err
		}
		if want := fmt.Sprintf("target-%d-%d", n, i); target != want {
			return fmt.Errorf("%s points to %q, want %q", name(i), target, want)
		}
		if err := os.Remove(name(i)); err != nil {
			return err
		}
	}
	return os.Remove(dir)
}

func churnSockets(seed uint64) (err error) {
	var pairs [][2]int
	defer func() {
		for _, pair := range pairs {
			for _, fd := range pair {
				if closeErr := unix.Close(fd); err == nil && closeErr != nil {
					err = fmt.Errorf("close a socket: %w", closeErr)
				}
			}
		}
	}()
	message := make([]byte, 256)
	for i := range slabSockets {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("socketpair: %w", err)
		}
		pairs = append(pairs, pair)
		Fill(message, seed+uint64(i)<<32)
		if n, err := unix.Write(pair[0], message); err != nil || n != len(message) {
			return fmt.Errorf("send: %d bytes of %d: %w", n, len(message), err)
		}
	}
	for i, pair := range pairs {
		clear(message)
		if n, err := unix.Read(pair[1], message); err != nil || n != len(message) {
			return fmt.Errorf("receive: %d bytes of %d: %w", n, len(message), err)
		}
		if err := Check(message, seed+uint64(i)<<32); err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
	}
	return nil
}
