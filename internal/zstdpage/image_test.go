// SPDX-License-Identifier: Apache-2.0

package zstdpage

import (
	"bytes"
	"debug/elf"
	"os"
	"strconv"
	"testing"
)

// imagePages are every n-th page of a memory image that is not zero. LIVEDUMP_IMAGE is its path, an ELF core.
func imagePages(tb testing.TB) [][]byte {
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
	zero := make([]byte, PageSize)
	for _, s := range f.Progs {
		for off := int64(0); s.Type == elf.PT_LOAD && off+PageSize <= int64(s.Filesz); off += int64(every) * PageSize {
			page := make([]byte, PageSize)
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

// BenchmarkImage compresses pages of a real image. What counts besides the time is the size.
func BenchmarkImage(b *testing.B) {
	pages := imagePages(b)
	e := &Encoder{}
	dst := make([]byte, 0, Room)
	total, raw := 0, 0
	for _, p := range pages {
		if out, ok := e.Encode(dst, p); ok {
			total += len(out)
		} else {
			total += PageSize
			raw++
		}
	}
	b.SetBytes(PageSize)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		e.Encode(dst, pages[i])
		if i++; i == len(pages) {
			i = 0
		}
	}
	b.ReportMetric(float64(total)/float64(len(pages)), "bytes/page")
	b.ReportMetric(float64(raw)/float64(len(pages)), "raw/page")
}
