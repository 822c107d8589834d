// SPDX-License-Identifier: Apache-2.0

// Package testimage gives benchmarks of encoders the pages of a real image of memory.
package testimage

import (
	"bytes"
	"debug/elf"
	"os"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

// pages are every n-th page of a memory image that is not zero, n being LIVEDUMP_IMAGE_EVERY. LIVEDUMP_IMAGE is its path,
// an ELF core.
func pages(tb testing.TB) [][]byte {
	path := os.Getenv("LIVEDUMP_IMAGE")
	if path == "" {
		tb.Skip("LIVEDUMP_IMAGE is not set")
	}
	every, _ := strconv.Atoi(os.Getenv("LIVEDUMP_IMAGE_EVERY"))
	if every <= 0 {
		every = 61
	}
	f, err := elf.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	var pages [][]byte
	zero := make([]byte, pageSize)
	for _, s := range f.Progs {
		for off := int64(0); s.Type == elf.PT_LOAD && off+pageSize <= int64(s.Filesz); off += int64(every) * pageSize {
			page := make([]byte, pageSize)
			if _, err := s.ReadAt(page, off); err != nil {
				tb.Fatal(err)
			}
			if !bytes.Equal(page, zero) {
				pages = append(pages, page)
			}
		}
	}
	return pages
}

// Bench has encode compress the pages of the image, again and again. It reports the thread's CPU time for each page, of the
// fastest pass over all of them, for that does not depend much on what else the machine does; and the size.
func Bench(b *testing.B, encode func(dst, page []byte) (out []byte, ok bool)) {
	all := pages(b)
	dst := make([]byte, 0, 2*pageSize)
	total, raw := 0, 0
	for _, p := range all {
		if out, ok := encode(dst, p); ok {
			total += len(out)
		} else {
			total += pageSize
			raw++
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.SetBytes(int64(pageSize * len(all)))
	b.ReportAllocs()
	best := int64(1 << 62)
	for b.Loop() {
		start := threadTime(b)
		for _, p := range all {
			encode(dst, p)
		}
		best = min(best, threadTime(b)-start)
	}
	n := float64(len(all))
	b.ReportMetric(float64(best)/1000/n, "µs/page")
	b.ReportMetric(float64(total)/n, "bytes/page")
	b.ReportMetric(float64(raw)/n, "raw/page")
}

func threadTime(b *testing.B) int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		b.Fatal(err)
	}
	return t.Nano()
}
