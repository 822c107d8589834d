// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"

	"livedump.io/test/churn"
)

const (
	allocWorkers = 2
	// Sizes are spread evenly over their logarithms.
	allocMaxPages = 2048
	fullEvery     = 16 // rounds
	pageSize      = 4096
)

var allocLoad = load{
	name:  "alloc",
	about: "anonymous memory of many sizes: map, touch every page, check, unmap",
	start: func(e *env) (*work, error) {
		return &work{workers: allocWorkers, round: allocRound}, nil
	},
}

// allocRound takes a few mappings that live at once, so that they end in another
// order than they began, and gives pages back in the middle of one.
func allocRound(_ context.Context, n int64) (int, error) {
	random := rand.New(rand.NewPCG(uint64(n), uint64(os.Getpid())))
	const held = 4
	var maps [held][]byte
	operations := 0
	defer func() {
		for _, m := range maps {
			if m != nil {
				_ = unix.Munmap(m)
			}
		}
	}()
	for i := range 4 * held {
		m := &maps[random.IntN(held)]
		if *m != nil {
			if err := checkStamps(*m); err != nil {
				return operations, err
			}
			if err := unix.Munmap(*m); err != nil {
				return operations, fmt.Errorf("munmap: %w", err)
			}
			*m = nil
		}
		limit := 1 << random.IntN(11+1)
		pages := 1 + random.IntN(min(limit, allocMaxPages))
		var err error
		*m, err = unix.Mmap(-1, 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return operations, fmt.Errorf("mmap %d pages: %w", pages, err)
		}
		if err := stamp(*m, uint64(n)<<8+uint64(i)); err != nil {
			return operations, err
		}
		if i%held == 0 {
			if err := punch(*m); err != nil {
				return operations, err
			}
		}
		operations++
	}
	if n%fullEvery != 0 {
		return operations, nil
	}
	// Now and then every byte counts; that is slow.
	return operations + 1, churn.NewMemory().Round(context.Background(), n)
}

// stamp writes a word to every page, which must be zero, that tells it from all
// others. It keeps the seed in the first page's second word.
func stamp(m []byte, seed uint64) error {
	for at := 0; at < len(m); at += pageSize {
		if err := restamp(m, at, seed); err != nil {
			return err
		}
	}
	binary.LittleEndian.PutUint64(m[8:], seed)
	return nil
}

// restamp is stamp for the page at one place.
func restamp(m []byte, at int, seed uint64) error {
	for _, place := range []int{at, at + pageSize - 8} {
		if got := binary.LittleEndian.Uint64(m[place:]); got != 0 {
			return fmt.Errorf("fresh memory holds %#x at byte %d of %d", got, place, len(m))
		}
	}
	binary.LittleEndian.PutUint64(m[at:], seed^uint64(at)|1)
	return nil
}

// punch gives every third page back, and stamps what comes in its place.
func punch(m []byte) error {
	seed := binary.LittleEndian.Uint64(m[8:])
	for at := 2 * pageSize; at < len(m); at += 3 * pageSize {
		if err := unix.Madvise(m[at:at+pageSize], unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("madvise: %w", err)
		}
		if err := restamp(m, at, seed); err != nil {
			return err
		}
	}
	return nil
}

func checkStamps(m []byte) error {
	seed := binary.LittleEndian.Uint64(m[8:])
	for at := 0; at < len(m); at += pageSize {
		if got, want := binary.LittleEndian.Uint64(m[at:]), seed^uint64(at)|1; got != want {
			return fmt.Errorf("page %d of %d holds %#x, want %#x", at/pageSize, len(m)/pageSize, got, want)
		}
	}
	return nil
}
