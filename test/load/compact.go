// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	compactFile  = "/proc/sys/vm/compact_memory"
	compactPages = 8192
)

var compactLoad = load{
	name:  "compact",
	about: "memory compaction: memory full of holes, compacted, and what was moved checked",
	start: func(e *env) (*work, error) {
		if _, err := os.Stat(compactFile); err != nil {
			return nil, err
		}
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return nil, err
		}
		pages := int(min(compactPages, uint64(info.Totalram)*uint64(info.Unit)/pageSize/16))
		return &work{round: func(_ context.Context, n int64) (int, error) { return 1, compactRound(uint64(n), pages) }}, nil
	},
}

func compactRound(seed uint64, pages int) (err error) {
	m, err := unix.Mmap(-1, 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	defer func() {
		if unmapErr := unix.Munmap(m); err == nil && unmapErr != nil {
			err = fmt.Errorf("munmap: %w", unmapErr)
		}
	}()
	// Single pages, so that there is something to bring together.
	if err := singlePages(m); err != nil {
		return err
	}
	if err := stamp(m, seed); err != nil {
		return err
	}
	// Each page that goes is free between two that stay.
	for at := pageSize; at < len(m); at += 2 * pageSize {
		if err := unix.Madvise(m[at:at+pageSize], unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("madvise: %w", err)
		}
	}
	if err := os.WriteFile(compactFile, []byte("1"), 0); err != nil {
		return err
	}
	for at := pageSize; at < len(m); at += 2 * pageSize {
		if err := restamp(m, at, seed); err != nil {
			return err
		}
	}
	return checkStamps(m)
}
