// SPDX-License-Identifier: Apache-2.0

package churn

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

// NewCache writes files of size bytes below dir, and checks them later.
func NewCache(dir string, size int) *Churn {
	buf := make([]byte, size)
	return &Churn{Name: "cache", Round: func(_ context.Context, n int64) error {
		name := filepath.Join(dir, fmt.Sprintf("cache-%d", n%cacheFiles))
		if n >= cacheFiles {
			if err := CheckFile(name, buf, uint64(n-cacheFiles), n%2 == 0); err != nil {
				return err
			}
			if err := os.Remove(name); err != nil {
				return err
			}
		}
		return WriteFile(name, buf, uint64(n))
	}}
}

// WriteFile makes a file of what Fill gives, and syncs it.
func WriteFile(name string, buf []byte, seed uint64) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	Fill(buf, seed)
	if _, err := f.Write(buf); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

// CheckFile reads from the page cache, or from the disk if dropFirst says so.
func CheckFile(name string, buf []byte, seed uint64, dropFirst bool) error {
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
	if err := Check(buf, seed); err != nil {
		return fmt.Errorf("%s (seed %d): %w", name, seed, err)
	}
	return nil
}
