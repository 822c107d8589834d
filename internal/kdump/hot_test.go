// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

// hotPages are like a kernel's: zeros, pointers, text, and what does not compress.
func hotPages() (refs []PageRef, data []byte) {
	x := uint64(1)
	random := func() uint64 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		return x
	}
	for i := range uint64(64) {
		page := make([]byte, PageSize)
		switch i % 8 {
		case 0, 1:
		case 2, 3, 4, 5:
			for off := 0; off < PageSize; off += 8 {
				if v := random(); v%3 > 0 {
					binary.LittleEndian.PutUint64(page[off:], 0xffff888000000000|v%(1<<30)&^63)
				}
			}
		case 6:
			copy(page, bytes.Repeat([]byte(fmt.Sprintf("dentry %d inode %d; ", i, random()%1000)), 300))
		case 7:
			for off := 0; off < PageSize; off += 8 {
				binary.LittleEndian.PutUint64(page[off:], random())
			}
		}
		refs = append(refs, PageRef{PFN: i, Class: ClassKernel})
		data = append(data, page...)
	}
	return refs, data
}

func takeAll(tb testing.TB, k *worker, refs []PageRef, data []byte) {
	for i := range refs {
		if err := k.take(&refs[i], data[i*PageSize:][:PageSize]); err != nil {
			tb.Fatal(err)
		}
	}
	k.out, k.pieces, k.size, k.stored = k.out[:0], k.pieces[:0], 0, k.stored[:0]
}

// TestNoAllocations: with millions of pages, one allocation for each would keep the collector busy.
func TestNoAllocations(t *testing.T) {
	refs, data := hotPages()
	for codec := CodecZstd; codec <= CodecNone; codec++ {
		fastest, smallest := codec.Levels()
		for level := fastest; level <= smallest; level++ {
			k, err := newWorker(codec, level)
			if err != nil {
				t.Fatal(err)
			}
			takeAll(t, k, refs, data)
			if n := testing.AllocsPerRun(20, func() { takeAll(t, k, refs, data) }); n >= 1 {
				t.Errorf("%s, level %d: %v allocations for %d pages", codec, level, n, len(refs))
			}
			k.mem.free()
		}
	}
}

func BenchmarkTake(b *testing.B) {
	refs, data := hotPages()
	for codec := CodecZstd; codec <= CodecNone; codec++ {
		b.Run(codec.String(), func(b *testing.B) {
			k, err := newWorker(codec, 0)
			if err != nil {
				b.Fatal(err)
			}
			defer k.mem.free()
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				takeAll(b, k, refs, data)
			}
		})
	}
}
