// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	thpDir   = "/sys/kernel/mm/transparent_hugepage/"
	hugePage = 2 << 20
	thpPages = 6 // huge ones; memory for this many is touched
)

var thpLoad = load{
	name:  "thp",
	about: "transparent huge pages: made by faults and by khugepaged, split, and checked",
	start: func(e *env) (*work, error) {
		for _, setting := range [][2]string{
			{"enabled", "always"},
			{"khugepaged/defrag", "1"},
			{"khugepaged/scan_sleep_millisecs", "1"},
			{"khugepaged/alloc_sleep_millisecs", "1"},
			{"khugepaged/pages_to_scan", "100000"},
		} {
			if err := e.set(thpDir+setting[0], setting[1]); err != nil {
				return nil, err
			}
		}
		made, err := thpMade()
		if err != nil {
			return nil, err
		}
		return &work{round: func(_ context.Context, n int64) (int, error) {
			if err := thpRound(uint64(n)); err != nil {
				return 0, err
			}
			// Operations are the huge pages that the kernel really made. A fault
			// that finds none free is served with small ones.
			now, err := thpMade()
			did := now - made
			made = now
			return did, err
		}}, nil
	},
}

func thpRound(seed uint64) (err error) {
	raw, err := unix.Mmap(-1, 0, (thpPages+1)*hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	defer func() {
		if unmapErr := unix.Munmap(raw); err == nil && unmapErr != nil {
			err = fmt.Errorf("munmap: %w", unmapErr)
		}
	}()
	skip := int(-uintptr(unsafe.Pointer(&raw[0])) & (hugePage - 1))
	m := raw[skip : skip+thpPages*hugePage]
	// One half huge from the first fault on; the other of small pages at first,
	// which khugepaged may bring together at any time.
	half := len(m) / 2
	if err := unix.Madvise(m[:half], unix.MADV_HUGEPAGE); err != nil {
		return fmt.Errorf("madvise: %w", err)
	}
	if err := unix.Madvise(m[half:], unix.MADV_NOHUGEPAGE); err != nil {
		return fmt.Errorf("madvise: %w", err)
	}
	if err := stamp(m, seed); err != nil {
		return err
	}
	if err := unix.Madvise(m[half:], unix.MADV_HUGEPAGE); err != nil {
		return fmt.Errorf("madvise: %w", err)
	}
	// Some pages out of the middle split a huge page.
	for huge := 0; huge < thpPages; huge += 2 {
		at := huge*hugePage + 100*pageSize
		if err := unix.Madvise(m[at:at+3*pageSize], unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("madvise: %w", err)
		}
		for i := range 3 {
			if err := restamp(m, at+i*pageSize, seed); err != nil {
				return err
			}
		}
	}
	// Another protection splits the mapping only.
	if err := unix.Mprotect(m[hugePage:hugePage+pageSize], unix.PROT_READ); err != nil {
		return fmt.Errorf("mprotect: %w", err)
	}
	return checkStamps(m)
}

// thpMade counts the huge pages that faults and khugepaged have made since boot.
func thpMade() (int, error) {
	f, err := os.Open("/proc/vmstat")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	total := 0
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if name != "thp_fault_alloc" && name != "thp_collapse_alloc" {
			continue
		}
		n, err := strconv.Atoi(value)
		if err != nil {
			return 0, fmt.Errorf("/proc/vmstat: %s: %w", name, err)
		}
		total += n
	}
	return total, lines.Err()
}
