// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

// verifyBytes opens and verifies. An error of either comes back as one problem.
func verifyBytes(b []byte) Report {
	r, err := NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return Report{Problems: []string{err.Error()}}
	}
	rep, err := r.Verify(context.Background(), VerifyOptions{Workers: 2})
	if err != nil {
		return Report{Problems: []string{err.Error()}}
	}
	return rep
}

// TestZeroedBlock zeroes each block of a dump in turn, as a lost write would. Each must be found, and
// pages that lie in a zeroed block of data must be named.
func TestZeroedBlock(t *testing.T) {
	d := writeDump(t, 900, Options{ChunkBytes: 4 * PageSize})
	good := d.bytes()
	where := pagesByBlock(t, d)
	named := 0
	for block := 0; block < len(good)/PageSize; block++ {
		b := slices.Clone(good)
		zeroed := b[block*PageSize:][:PageSize]
		if allZero(zeroed) {
			continue // nothing was lost
		}
		clear(zeroed)
		rep := verifyBytes(b)
		if rep.OK {
			t.Fatalf("block %d is zero, and nobody noticed", block)
		}
		if len(rep.Problems) == 0 && len(rep.DamagedChunks) == 0 {
			t.Errorf("block %d: no structure is named: %+v", block, rep)
		}
		for _, pfn := range where[block] {
			if !slices.ContainsFunc(rep.DamagedPages, func(p DamagedPage) bool { return p.PFN == pfn }) {
				t.Errorf("block %d holds page %d, which is not named", block, pfn)
			}
			named++
		}
		if int(rep.DamagedPageCount) > len(where[block]) && where[block] != nil {
			t.Errorf("block %d: %d pages are named, it holds %d", block, rep.DamagedPageCount, len(where[block]))
		}
	}
	if named < len(d.pfns)/2 {
		t.Errorf("only %d pages were named", named)
	}
}

// pagesByBlock lists the pages that have content other than zero in each block of the data.
func pagesByBlock(t *testing.T, d *dump) map[int][]uint64 {
	t.Helper()
	where := map[int][]uint64{}
	b := d.bytes()
	r := d.reader(t)
	err := r.eachPage(7, func(pages []pageAt) error {
		for _, p := range pages {
			first, last := p.desc.offset/PageSize, (p.desc.offset+uint64(p.desc.size)-1)/PageSize
			for block := first; block <= last; block++ {
				from, to := max(p.desc.offset, block*PageSize), min(p.desc.offset+uint64(p.desc.size), (block+1)*PageSize)
				if !allZero(b[from:to]) {
					where[int(block)] = append(where[int(block)], p.pfn)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return where
}

func TestFlippedByte(t *testing.T) {
	d := writeDump(t, 300, Options{ChunkBytes: PageSize, Codec: CodecSnappy})
	b := slices.Clone(d.bytes())
	for off := 0; off < len(b); off += 257 {
		b[off] ^= 0x10
		if rep := verifyBytes(b); rep.OK {
			t.Fatalf("byte %d is wrong, and nobody noticed", off)
		}
		b[off] ^= 0x10
	}
	if rep := verifyBytes(b); !rep.OK {
		t.Fatalf("all bytes are right again: %+v", rep)
	}
}

func TestTruncated(t *testing.T) {
	d := writeDump(t, 900, Options{ChunkBytes: 4 * PageSize})
	good := d.bytes()
	for n := 0; n < len(good); n += PageSize {
		for _, n := range []int{n, n + 1, n + PageSize - 1} {
			_, err := NewReader(bytes.NewReader(good[:n]), int64(n))
			if n == 0 {
				if !errors.Is(err, ErrNotDump) {
					t.Errorf("an empty file: %v", err)
				}
			} else if !errors.Is(err, ErrTruncated) {
				t.Fatalf("%d of %d bytes: %v, want ErrTruncated", n, len(good), err)
			}
		}
	}
	// A file that is longer is what a copy of the whole device gives.
	long := append(slices.Clone(good), make([]byte, 10000)...)
	if rep := verifyBytes(long); !rep.OK || rep.Bytes != d.summary.Bytes {
		t.Errorf("with bytes after the end: %+v", rep)
	}
}

// TestOtherTargets says what a target is that is not a whole dump.
func TestOtherTargets(t *testing.T) {
	d := writeDump(t, 300, Options{ChunkBytes: PageSize})
	good := d.bytes()
	seal := func(b []byte) { // makes block 0 consistent with itself again
		rec, _, _ := decodeRecord(b)
		rec.encode(b)
	}
	marker := func(state State) []byte {
		b := make([]byte, 4*PageSize)
		r := Record{State: state, Session: testSession, Reason: "no\nmore"}
		r.marker(b)
		return b
	}
	change := func(f func(b []byte)) []byte {
		b := slices.Clone(good)
		f(b)
		return b
	}
	put32 := func(off int, v uint32) []byte {
		return change(func(b []byte) { binary.LittleEndian.PutUint32(b[off:], v); seal(b) })
	}
	put64 := func(off int, v uint64) []byte {
		return change(func(b []byte) { binary.LittleEndian.PutUint64(b[off:], v) })
	}
	rec := func(f func(*Record)) []byte {
		return change(func(b []byte) {
			r, _, err := decodeRecord(b)
			if err != nil {
				t.Fatal(err)
			}
			f(&r)
			r.encode(b)
		})
	}
	for name, c := range map[string]struct {
		b    []byte
		want error
		text string
	}{
		"empty":                 {make([]byte, 8192), ErrNotDump, "empty"},
		"ELF":                   {append([]byte("\x7fELF"), make([]byte, 8192)...), ErrNotDump, "ELF"},
		"short ELF":             {[]byte("\x7fELF"), ErrNotDump, "ELF"},
		"flattened":             {append([]byte("makedumpfile\x00"), make([]byte, 8192)...), ErrNotDump, "flattened"},
		"diskdump":              {append([]byte("DISKDUMP"), make([]byte, 8192)...), ErrNotDump, "diskdump"},
		"text":                  {bytes.Repeat([]byte("hello "), 1000), ErrNotDump, "signature"},
		"in progress":           {marker(StateInProgress), ErrInProgress, testSession.String()},
		"failed":                {marker(StateFailed), ErrFailed, "no?more"},
		"unknown state":         {marker(7), ErrDamaged, "State(7)"},
		"damaged mark":          {change(func(b []byte) { copy(b, marker(StateInProgress)[:600]) }), ErrDamaged, ""},
		"state and header":      {rec(func(r *Record) { r.State = StateFailed }), ErrDamaged, "failed"},
		"record version":        {change(func(b []byte) { b[recordOffset+8] = 9 }), ErrVersion, "version 9"},
		"header version":        {put32(8, 5), ErrVersion, "version 5"},
		"machine":               {change(func(b []byte) { copy(b[12+4*65:], "aarch64\x00"); seal(b) }), ErrVersion, "aarch64"},
		"block size":            {put32(428, 65536), ErrVersion, "65536"},
		"negative block size":   {put32(428, 1<<31), ErrVersion, ""},
		"no CPUs":               {put32(460, 0), ErrDamaged, "CPUs"},
		"sub header blocks":     {put32(432, 0), ErrDamaged, "sub header"},
		"huge sub header":       {put32(432, 1<<31-1), ErrTruncated, ""},
		"odd bitmaps":           {put32(436, 3), ErrDamaged, "bitmaps"},
		"huge bitmaps":          {put32(436, 1<<32-2), ErrTruncated, "bitmaps"},
		"max_mapnr zero":        {put64(4096+96, 0), ErrDamaged, "max_mapnr"},
		"max_mapnr huge":        {put64(4096+96, 1<<60), ErrDamaged, "max_mapnr"},
		"max_mapnr and bitmaps": {put64(4096+96, 40000), ErrDamaged, "bitmaps"},
		"max_mapnr smaller":     {put64(4096+96, 200), ErrDamaged, "record says"},
		"notes":                 {put64(4096+48, 1<<62), ErrDamaged, "notes"},
		"notes size":            {put64(4096+56, 1<<40), ErrDamaged, "notes"},
		"VMCOREINFO":            {put64(4096+32, 1<<63), ErrDamaged, "VMCOREINFO"},
		"record size":           {rec(func(r *Record) { r.Size += 4096 }), ErrTruncated, ""},
		"record size smaller":   {rec(func(r *Record) { r.Size -= 4096 }), ErrDamaged, "fit"},
		"record sums":           {rec(func(r *Record) { r.SumsOffset = 0 }), ErrDamaged, "fit"},
		"record sums huge":      {rec(func(r *Record) { r.SumsOffset = 1 << 63 }), ErrDamaged, "fit"},
		"record data":           {rec(func(r *Record) { r.DataOffset = 8192 }), ErrDamaged, "fit"},
		"record chunks":         {rec(func(r *Record) { r.ChunkBytes = 0 }), ErrDamaged, "chunks"},
		"record pages":          {rec(func(r *Record) { r.Pages++ }), ErrDamaged, "pages"},
		"record lost":           {rec(func(r *Record) { r.LostRanges = 1 << 60 }), ErrDamaged, "lost"},
		"record page info":      {rec(func(r *Record) { r.PageInfo = 2 }), ErrVersion, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewReader(bytes.NewReader(c.b), int64(len(c.b)))
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %v with %q", err, c.want, c.text)
			}
		})
	}
}

// TestForeignDump takes livedump's record out of a dump: it is then like one of makedumpfile.
func TestForeignDump(t *testing.T) {
	d := writeDump(t, 300, Options{ChunkBytes: PageSize})
	b := slices.Clone(d.bytes())
	clear(b[headerBytes:PageSize])
	r, err := NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if r.Record() != nil {
		t.Error("there is a record")
	}
	page := make([]byte, PageSize)
	for _, pfn := range d.pfns {
		if _, err := r.ReadPage(pfn, page); err != nil || !bytes.Equal(page, testPage(pfn)) {
			t.Fatalf("page %d: %v", pfn, err)
		}
	}
	if _, err := r.Verify(context.Background(), VerifyOptions{}); !errors.Is(err, ErrNotDump) {
		t.Errorf("Verify: %v, want ErrNotDump", err)
	}
	info, err := r.Info()
	if err != nil || info.Livedump != nil || info.DumpedPages != uint64(len(d.pfns)) {
		t.Errorf("info %+v, %v", info, err)
	}
}

func TestInfo(t *testing.T) {
	d := writeDump(t, 3000, Options{})
	i, err := d.reader(t).Info()
	if err != nil {
		t.Fatal(err)
	}
	if i.Bytes != int64(d.summary.Bytes) || i.CPUs != 3 || i.PhysBase != -16777216 || i.Compression != "zstd" ||
		i.Utsname != d.meta.Utsname || i.MaxPFN != 3000 || i.DumpedPages != uint64(len(d.pfns)) || i.DumpLevel != 31 {
		t.Errorf("info %+v", i)
	}
	if len(i.Registers) != 3 || i.Registers[2] != (CPURegisters{CPU: 2, RIP: 0xffffffff81000002}) {
		t.Errorf("registers %+v", i.Registers)
	}
	if i.VMCoreInfo["OSRELEASE"] != "6.1.0-test" || len(i.VMCoreInfo) != 4 || len(i.Warnings) != 0 {
		t.Errorf("VMCOREINFO %v, warnings %v", i.VMCoreInfo, i.Warnings)
	}
	var user, copied uint64
	for _, pfn := range d.pfns {
		if testRef(pfn).Class == ClassUser {
			user++
		}
		if testRef(pfn).Flags&PageCopy != 0 {
			copied++
		}
	}
	l := i.Livedump
	if l.Session != testSession.String() || !l.FrozenAt.Equal(d.meta.FrozenAt) || l.StopNanosecs != 1234567 ||
		l.LostPages != uint64(len(d.lost)) || l.DumpedByClass["User"] != user || l.CopiedPages != copied ||
		l.ClassPages["Kernel"] != d.meta.Pages || l.ClassPages["Free"] != 17 {
		t.Errorf("livedump %+v, want %d user pages, %d copies", l, user, copied)
	}
}

func TestVerifyStopsWithContext(t *testing.T) {
	d := writeDump(t, 900, Options{ChunkBytes: PageSize})
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("enough")
	_, err := d.reader(t).Verify(ctx, VerifyOptions{Progress: func(p VerifyProgress) {
		if p.Bytes > 0 {
			cancel(cause)
		}
	}})
	if !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
}

// TestReadErrors has a device whose reads fail from some offset on.
func TestReadErrors(t *testing.T) {
	d := writeDump(t, 300, Options{ChunkBytes: PageSize})
	n := int64(d.summary.Bytes)
	for bad := int64(0); bad < n; bad += PageSize {
		fr := &failingReader{r: bytes.NewReader(d.bytes()), bad: bad}
		r, err := NewReader(fr, n)
		if err != nil {
			if !errors.Is(err, io.ErrClosedPipe) {
				t.Fatalf("bad sector at %d: %v", bad, err)
			}
			continue
		}
		rep, err := r.Verify(context.Background(), VerifyOptions{})
		if err == nil && rep.OK {
			t.Fatalf("bad sector at %d, and nobody noticed", bad)
		}
	}
}

type failingReader struct {
	r   io.ReaderAt
	bad int64
}

func (f *failingReader) ReadAt(b []byte, off int64) (int, error) {
	if f.bad >= off && f.bad < off+int64(len(b)) {
		return 0, io.ErrClosedPipe
	}
	return f.r.ReadAt(b, off)
}

// FuzzReader feeds the reader with damaged dumps. Nothing may panic, and nothing may take much more
// memory than the input has.
func FuzzReader(f *testing.F) {
	for _, codec := range []Codec{CodecZstd, CodecZlib, CodecSnappy, CodecNone} {
		d := writeDump(f, 40, Options{Codec: codec, ChunkBytes: PageSize})
		f.Add(d.bytes(), true)
		foreign := slices.Clone(d.bytes())
		clear(foreign[headerBytes:PageSize])
		f.Add(foreign, false)
		// The parts that are compressed or counted in are the first to fuzz.
		f.Add(foreign[:len(foreign)-PageSize], false)
	}
	whole := writeDump(f, 40, Options{ChunkBytes: PageSize})
	part := slices.Clone(whole.bytes()) // with the page frames 8 to 23
	binary.LittleEndian.PutUint64(part[PageSize+8:], 1<<32|31)
	binary.LittleEndian.PutUint64(part[PageSize+80:], 8)
	binary.LittleEndian.PutUint64(part[PageSize+88:], 24)
	f.Add(part, true)
	clear(part[headerBytes:PageSize])
	f.Add(part, false)
	marker := make([]byte, PageSize)
	(&Record{State: StateFailed, Reason: "x"}).marker(marker)
	f.Add(marker, true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		b = slices.Clone(b)
		if seal && len(b) >= PageSize { // get past the checksum of block 0
			if rec, found, _ := decodeRecord(b); found {
				rec.encode(b)
			}
		}
		r, err := NewReader(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if _, err := r.Info(); err != nil {
			_ = err.Error()
		}
		page := make([]byte, PageSize)
		for pfn := uint64(0); pfn < min(r.MaxPFN()+2, 300); pfn++ {
			_, _ = r.ReadPage(pfn, page)
		}
		rep, err := r.Verify(context.Background(), VerifyOptions{Workers: 1})
		if err == nil && rep.OK && rep.SHA256 == "" {
			t.Error("a good dump without a checksum")
		}
	})
}
