// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Files that live at once; the oldest is checked and replaced in each round, so
// every file's pages stay in the cache for a while before they are looked at.
const cacheFiles = 4

func newCacheChurn(dir string, size int) *churn {
	buf := make([]byte, size)
	return &churn{name: "cache", round: func(_ context.Context, n int64) error {
		name := filepath.Join(dir, fmt.Sprintf("cache-%d", n%cacheFiles))
		if n >= cacheFiles {
			if err := checkFile(name, buf, uint64(n-cacheFiles), n%2 == 0); err != nil {
				return err
			}
			if err := os.Remove(name); err != nil {
				return err
			}
		}
		return writeFile(name, buf, uint64(n))
	}}
}

func writeFile(name string, buf []byte, seed uint64) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	fill(buf, seed)
	if _, err := f.Write(buf); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

// checkFile reads from the page cache, or from the disk if dropFirst says so.
func checkFile(name string, buf []byte, seed uint64, dropFirst bool) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if dropFirst {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return fmt.Errorf("drop %s from the cache: %w", name, err)
		}
	}
	clear(buf)
	if n, err := f.ReadAt(buf, 0); err != nil {
		return fmt.Errorf("read %s: %d of %d bytes: %w", name, n, len(buf), err)
	}
	if err := check(buf, seed); err != nil {
		return fmt.Errorf("%s (seed %d): %w", name, seed, err)
	}
	return nil
}
