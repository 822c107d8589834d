// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"runtime"
	"slices"
	"testing"
)

// What a dump says is not to be believed. The fuzz targets here take apart what a reader parses, one after the other;
// FuzzReader reads whole dumps. Nothing may panic, run for ever, or take much more memory than its input.

// spent fails if f allocates more than some multiple of the input.
func spent(t *testing.T, input int, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20+64*uint64(input) {
		t.Errorf("%d bytes of memory for %d of input", n, input)
	}
}

func FuzzNotes(f *testing.F) {
	f.Add(testMeta(100, 10, 3).Notes)
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 'C', 'O', 'R', 'E'})
	f.Fuzz(func(t *testing.T, b []byte) {
		spent(t, len(b), func() {
			notes, err := ParseNotes(b)
			if err != nil {
				return
			}
			left := len(b)
			for _, n := range notes {
				if left -= noteHeaderSize + len(n.Desc); left < 0 {
					t.Fatal("there is more in the notes than their bytes")
				}
			}
			_ = CPUs(notes)
		})
	})
}

func FuzzVMCoreInfo(f *testing.F) {
	f.Add([]byte("OSRELEASE=6.1.0\nNUMBER(phys_base)=-4096\nSYMBOL(prb)=ffffffff80000000\r\n=x\nx\n\x00NUMBER(x)=1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		spent(t, len(b), func() {
			info := ParseVMCoreInfo(b)
			for key, value := range info {
				if key == "" || !bytes.Contains(b, []byte(key+"="+value)) {
					t.Fatalf("%q=%q is not in the text", key, value)
				}
			}
			_, _ = info.PhysBase()
		})
	})
}

// FuzzPage decompresses a page. Whatever it is made of, no more than a page comes out.
func FuzzPage(f *testing.F) {
	page := make([]byte, PageSize)
	for i := range page {
		page[i] = byte(i * i >> 7)
	}
	for c := CodecZstd; c <= CodecSnappy; c++ {
		k, err := newCompressor(c, 0)
		if err != nil {
			f.Fatal(err)
		}
		b, err := k.appendPage(make([]byte, 0, compressedRoom), page)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, c.descFlags())
	}
	f.Add(page, uint32(0))
	d := &decompressor{}
	f.Cleanup(d.close)
	f.Fuzz(func(t *testing.T, b []byte, flags uint32) {
		b = b[:min(len(b), PageSize)]
		spent(t, len(b), func() {
			dst := make([]byte, 2*PageSize)
			_ = d.page(dst[:PageSize:PageSize], b, flags)
			if !allZero(dst[PageSize:]) {
				t.Fatal("it wrote more than a page")
			}
		})
	})
}

// FuzzHeader writes numbers into the header and sub header of a good dump, where only a checksum of ours would find them:
// other programs' dumps have none.
func FuzzHeader(f *testing.F) {
	d := writeDump(f, 40, Options{Codec: CodecZstd, ChunkBytes: PageSize})
	good := slices.Clone(d.bytes())
	foreign := slices.Clone(good)
	clear(foreign[headerBytes:PageSize])
	f.Add(uint16(PageSize), uint64(1)<<63, uint16(8), uint64(7), false)
	for off := 0; off < headerBytes; off += 24 {
		f.Add(uint16(off), uint64(0xffffffff), uint16(PageSize+off%subHeaderBytes), uint64(1)<<off%64, off%48 == 0)
	}
	for off := 0; off+8 <= recordBytes; off += 8 {
		f.Add(uint16(recordOffset+off), uint64(1)<<(off%63), uint16(0), uint64(0), true)
	}
	f.Fuzz(func(t *testing.T, at1 uint16, v1 uint64, at2 uint16, v2 uint64, ours bool) {
		b := slices.Clone(foreign)
		if ours {
			b = slices.Clone(good)
		}
		for _, c := range []struct {
			at uint16
			v  uint64
		}{{at1, v1}, {at2, v2}} {
			binary.LittleEndian.PutUint64(b[int(c.at)%(len(b)-8):], c.v)
		}
		if rec, found, _ := decodeRecord(b); found {
			rec.encode(b)
		}
		spent(t, len(b), func() { readAll(t, bytes.NewReader(b), int64(len(b))) })
	})
}

// readAll asks a dump for all that can be asked of it.
func readAll(t *testing.T, in io.ReaderAt, size int64) {
	t.Helper()
	r, err := OpenAt(in, size)
	if err != nil {
		return
	}
	_, _ = r.Info()
	_, _ = r.LostPages()
	if _, err := r.Meta(); err != nil {
		_ = err.Error()
	}
	page := make([]byte, PageSize)
	for pfn := uint64(0); pfn < min(r.MaxPFN()+2, 100); pfn++ {
		_, _ = r.ReadPage(pfn, page)
	}
	report, err := r.Verify(context.Background(), VerifyOptions{Workers: 1})
	if err == nil && report.OK && (report.DamagedPageCount > 0 || len(report.Problems) > 0) {
		t.Error("a dump is good and bad at once")
	}
}

// FuzzFlattened reads flattened streams, and the dumps in them.
func FuzzFlattened(f *testing.F) {
	record := func(b []byte, off, n uint64, data []byte) []byte {
		b = binary.BigEndian.AppendUint64(b, off)
		b = binary.BigEndian.AppendUint64(b, n)
		return append(b, data...)
	}
	head := make([]byte, flatHeaderBytes)
	copy(head, flatSignature)
	binary.BigEndian.PutUint64(head[16:], flatType)
	binary.BigEndian.PutUint64(head[24:], flatVersion)
	end := ^uint64(0)
	f.Add(record(slices.Clone(head), end, end, nil))
	f.Add(record(record(record(slices.Clone(head), 0, 3, []byte("abc")), 1, 4, []byte("BCDE")), end, end, nil))
	f.Add(record(record(slices.Clone(head), 1<<55, 1, []byte("x")), 5, 1<<40, nil))
	d := writeDump(f, 20, Options{Codec: CodecSnappy, ChunkBytes: PageSize}).bytes()
	b := slices.Clone(head)
	for off := len(d) / PageSize * PageSize; off >= 0; off -= 3 * PageSize {
		part := d[off:min(len(d), off+3*PageSize)]
		b = record(b, uint64(off), uint64(len(part)), part)
	}
	f.Add(record(b, end, end, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		spent(t, len(b), func() {
			flat, err := OpenFlattened(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				return
			}
			// What one reads must not depend on how.
			n := min(flat.Size(), 1<<16)
			whole := make([]byte, n)
			if k, err := flat.ReadAt(whole, 0); int64(k) < n {
				t.Fatalf("%d of %d bytes: %v", k, n, err)
			}
			var one [7]byte
			for off := int64(0); off < n; off += 97 {
				k, _ := flat.ReadAt(one[:], off)
				if want := whole[off:min(n, off+int64(len(one)))]; k < len(want) || !bytes.Equal(one[:len(want)], want) {
					t.Fatalf("at %d: %x, want %x", off, one[:k], want)
				}
			}
			readAll(t, flat, flat.Size())
		})
	})
}

// FuzzJournal changes what a dead writer left on the target: bytes anywhere, and numbers in the heads of the journal's
// segments, which are sealed again.
func FuzzJournal(f *testing.F) {
	opts := Options{ChunkBytes: 4 * PageSize, Workers: 1, Writes: 1, JournalPages: 30, Journal: true}
	d := &dump{meta: testMeta(200, 120, 2), dev: newMemDevice(f, 2<<20)}
	w, err := NewWriter(d.dev, d.meta, opts)
	if err != nil {
		f.Fatal(err)
	}
	page := make([]byte, PageSize)
	for pfn := range uint64(120) {
		page[0] = byte(pfn)
		if err := w.Add([]PageRef{{PFN: pfn}}, page); err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Seal([]byte("state")); err != nil {
		f.Fatal(err)
	}
	w.Leave()
	left := slices.Clone(d.dev.data)
	var heads []int
	for off := 0; off < len(left); off += PageSize {
		if bytes.HasPrefix(left[off:], segmentMagic) {
			heads = append(heads, off)
		}
	}
	if len(heads) < 3 {
		f.Fatalf("%d segments", len(heads))
	}
	for i := range heads {
		for field := range uint8(12) {
			f.Add(uint8(i), field, uint64(1)<<(5*field), uint32(0), byte(0))
		}
	}
	f.Add(uint8(0), uint8(255), uint64(0), uint32(heads[0]-10), byte(1))
	f.Fuzz(func(t *testing.T, head, field uint8, v uint64, at uint32, x byte) {
		dev := &memDevice{t: t, data: slices.Clone(left), durable: slices.Clone(left)}
		dev.data[int(at)%len(dev.data)] ^= x
		if field < 16 {
			b := dev.data[heads[int(head)%len(heads)]:][:PageSize]
			binary.LittleEndian.PutUint64(b[32+8*int(field):], v)
			reseal(b)
		}
		spent(t, len(left), func() {
			j, err := ReadJournal(dev, testSession)
			if err != nil {
				return
			}
			w, err := Resume(j, Options{Workers: 1, Writes: 1, JournalPages: 30})
			if err != nil {
				return
			}
			if j.All {
				sum, err := w.Finish(context.Background())
				if err == nil {
					r, err := NewReader(wholeBlocks{dev}, int64(sum.Bytes))
					if err != nil {
						t.Fatalf("a finished dump: %v", err)
					}
					if sum.Pages+sum.Lost != d.meta.Pages || r.Pages() != sum.Pages {
						t.Errorf("%d pages and %d lost of %d", sum.Pages, sum.Lost, d.meta.Pages)
					}
					return
				}
			}
			_ = w.Abort(nil)
		})
	})
}

// reseal makes the head's own checksum right.
func reseal(head []byte) {
	clear(head[segmentSeal : segmentSeal+sha256.Size])
	sum := sha256.Sum256(head)
	copy(head[segmentSeal:], sum[:])
}
