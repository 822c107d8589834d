// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	hugetlbFile  = "/proc/sys/vm/nr_hugepages"
	hugetlbPages = 16
	hugetlbSize  = 2 << 20
	// optimizeFile is there where the kernel can give away most struct pages of such pages.
	optimizeFile = "/proc/sys/vm/hugetlb_optimize_vmemmap"
)

var hugetlbLoad = load{
	name:  "hugetlb",
	about: "huge pages of the pool (hugetlb), gathered, used and given back",
	start: func(e *env) (*work, error) {
		if err := e.restoreAtEnd(hugetlbFile); err != nil {
			return nil, err
		}
		return &work{round: hugetlbRound}, nil
	},
}

var hugetlbOptimizedLoad = load{
	name:  "hugetlb-vmemmap",
	about: "the same, and the kernel maps their struct pages anew to give most of these away",
	start: func(e *env) (*work, error) {
		if err := errors.Join(e.restoreAtEnd(optimizeFile), os.WriteFile(optimizeFile, []byte("1"), 0)); err != nil {
			return nil, err
		}
		return hugetlbLoad.start(e)
	},
}

// restoreAtEnd writes to a file at the end what is in it now.
func (e *env) restoreAtEnd(file string) error {
	before, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	e.atEnd(func() error { return os.WriteFile(file, before, 0) })
	return nil
}

// hugetlbRound has the kernel gather huge pages, uses one of them, and gives all back.
func hugetlbRound(_ context.Context, n int64) (ops int, err error) {
	if err := os.WriteFile(hugetlbFile, []byte(strconv.Itoa(hugetlbPages)), 0); err != nil {
		return 0, err
	}
	b, err := os.ReadFile(hugetlbFile)
	if err != nil {
		return 0, err
	}
	got, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, err
	}
	if got > 0 {
		if err := useHugePage(uint64(n)); err != nil {
			return 0, err
		}
	}
	// Memory may have no such stretch at the moment.
	return got, os.WriteFile(hugetlbFile, []byte("0"), 0)
}

func useHugePage(seed uint64) error {
	m, err := unix.Mmap(-1, 0, hugetlbSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB)
	if err != nil {
		return fmt.Errorf("mmap of a huge page: %w", err)
	}
	if err := stamp(m, seed); err != nil {
		return errors.Join(err, unix.Munmap(m))
	}
	return errors.Join(checkStamps(m), unix.Munmap(m))
}
