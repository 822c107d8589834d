// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
)

// An ELF vmcore as livedump writes it, in a file with holes:
//
//	ELF header, program headers at 64, the notes	elfHeadBytes and the notes, to a whole block
//	pages, page frame n at dataOffset + n*4096	what is not in the dump, or full of zeros, is a hole
//	table of pages, to a whole block		elfEntryBytes for each page, lost ones included
//
// A page's place is known when it comes, so pages need no index; the program headers, which say
// where there are pages, are written last. Besides the kernel's notes there is one of livedump with the Record, and
// the table keeps of each page what page_desc.page_flags keep in the other format.
const (
	elfHeaderBytes = 64
	elfProgBytes   = 56
	elfEntryBytes  = 16 // page frame, PageInfo

	// elfMaxLoads bounds the number of PT_LOADs, through which readers look one by one.
	elfMaxLoads = 4096
	// elfLeastGap is how many pages that are not in the dump end a PT_LOAD, if there are not too many such gaps. Shorter
	// ones read as zeros, as they do in what makedumpfile writes.
	elfLeastGap = 256

	elfHeadBytes = (elfHeaderBytes + (elfMaxLoads+2)*elfProgBytes + PageSize - 1) &^ (PageSize - 1)

	// ELFNoteName and ELFNoteType are those of livedump's own note.
	ELFNoteName = "LIVEDUMP"
	ELFNoteType = 1

	elfNoteBytes = recordBytes + 8 // and the dump level
)

// Mapping is where physical memory is seen in the kernel's address space. Bytes.
type Mapping struct {
	Virtual, Physical, Bytes uint64
}

// Mappings finds where the kernel sees its memory, for readers that do not walk its page tables: the direct map from physical
// address 0 on, and the image. read gives a page of the dump.
type Mappings func(info VMCoreInfo, read func(pfn uint64, b []byte) error) (direct, image Mapping, err error)

// elfForm is what a Writer of an ELF vmcore has.
type elfForm struct {
	mappings    Mappings
	pace        *pace
	dataOffset  int64
	tableOffset int64
	size        int64
}

// NewELFWriter is NewWriter for an ELF vmcore. The target must read as zeros where it was not written, and Size be at least what
// ELFRoom says. The codec of the options is not looked at. mappings may be nil.
func NewELFWriter(out Output, meta Meta, opts Options, mappings Mappings) (*Writer, error) {
	opts.Codec, opts.Level = CodecNone, 0
	f := &elfForm{mappings: mappings}
	if err := f.place(meta.MaxPFN, meta.Pages, len(meta.Notes)); err != nil {
		return nil, err
	}
	if opts.Bandwidth > 0 {
		f.pace = newPace(opts.Bandwidth)
	}
	return newWriter(out, form{elf: f}, meta, opts)
}

// ELFRoom is the room, in bytes, that an ELF vmcore needs at most while it is written. Much of it is holes.
func ELFRoom(maxPFN, pages uint64, notesBytes int) (int64, error) {
	var f elfForm
	if err := f.place(maxPFN, pages, notesBytes); err != nil {
		return 0, err
	}
	return f.size + spillBytes(pages, defaultIndexPages), nil
}

func (f *elfForm) place(maxPFN, pages uint64, notesBytes int) error {
	if _, err := newLayout(maxPFN, pages, int64(notesBytes), PageSize); err != nil {
		return err
	}
	f.dataOffset = roundUp(elfHeadBytes+int64(notesBytes)+noteHeaderSize+int64(len(ELFNoteName)+4)+elfNoteBytes, PageSize)
	f.tableOffset = f.dataOffset + int64(maxPFN)*PageSize
	f.size = f.tableOffset + roundUp(int64(pages)*elfEntryBytes, PageSize)
	return nil
}

func (f *elfForm) at(pfn uint64) int64 { return f.dataOffset + int64(pfn)*PageSize }

// storeELF writes a worker's pages to their places, those that lie side by side at once. Lost pages and those of zeros have
// no bytes.
func (w *Writer) storeELF(k *worker) error {
	f := w.form.elf
	start, run := 0, uint64(0) // of what is not written yet
	end := 0
	flush := func() error {
		b := k.out[start:end]
		start = end
		if len(b) == 0 {
			return nil
		}
		if f.pace != nil && !f.pace.wait(len(b), w.failure.done) {
			return w.failure.get()
		}
		if err := writeAt(w.out, b, f.at(run)); err != nil {
			return err
		}
		w.bytesWritten.Add(int64(len(b)))
		return nil
	}
	for i := range k.stored {
		p := &k.stored[i]
		if p.offset == 0 {
			continue
		}
		if end > start && p.pfn != run+uint64(end-start)/PageSize {
			if err := flush(); err != nil {
				return err
			}
		}
		if end == start {
			run = p.pfn
		}
		end += PageSize
	}
	return flush()
}

// finishELF writes all but the pages, reads everything back, and makes it an ELF file.
func (w *Writer) finishELF(ctx context.Context) (Summary, error) {
	f := w.form.elf
	w.setStep("Finishing")
	rec := w.completeRecord()
	rec.DataOffset, rec.SumsOffset, rec.Size = uint64(f.dataOffset), uint64(f.tableOffset), uint64(f.size)
	if err := w.writeTable(&rec); err != nil {
		return Summary{}, err
	}
	loads, err := w.loads()
	if err != nil {
		return Summary{}, err
	}
	head, err := newAligned(int(f.dataOffset))
	if err != nil {
		return Summary{}, err
	}
	defer head.free()
	w.putHead(head.b, &rec, loads)
	if err := writeAt(w.out, head.b[PageSize:], PageSize); err != nil {
		return Summary{}, err
	}
	w.bytesWritten.Add(int64(len(head.b)) - PageSize)
	if err := w.out.Sync(); err != nil {
		return Summary{}, fmt.Errorf("syncing the target: %w", err)
	}
	s := Summary{Bytes: rec.Size, Pages: rec.Pages, Lost: rec.Lost, Uncovered: rec.Uncovered, ZeroPages: rec.ZeroPages}
	if !w.opts.NoReadBack {
		w.setStep("Verifying")
		if s.SHA256, err = w.readBackELF(ctx, head.b, &rec); err != nil {
			return Summary{}, err
		}
		s.ReadBack = true
	}
	w.index.free()
	w.index = nil
	if err := w.failure.get(); err != nil {
		return Summary{}, err
	}
	return s, w.writeBlock0(head.b[:PageSize])
}

// writeTable writes what is known of each page.
func (w *Writer) writeTable(rec *Record) error {
	f := w.form.elf
	buf, err := newAligned(DefaultChunkBytes)
	if err != nil {
		return err
	}
	defer buf.free()
	sum := sha256.New()
	n, off := 0, f.tableOffset
	flush := func() error {
		if err := writeAt(w.out, buf.b[:n], off); err != nil {
			return err
		}
		sum.Write(buf.b[:n])
		w.bytesWritten.Add(int64(n))
		off += int64(n)
		n = 0
		return nil
	}
	err = w.index.each(func(p *storedPage) error {
		info := PageInfo{Class: p.class, Flags: PageFlags(p.flags) & pageFlagsKnown, CRC: p.crc}
		binary.LittleEndian.PutUint64(buf.b[n:], p.pfn)
		binary.LittleEndian.PutUint64(buf.b[n+8:], info.encode())
		if n += elfEntryBytes; n == len(buf.b) {
			return flush()
		}
		return nil
	})
	if err != nil {
		return err
	}
	if n > 0 {
		end := int(roundUp(int64(n), PageSize))
		clear(buf.b[n:end])
		n = end
		if err := flush(); err != nil {
			return err
		}
	}
	sum.Sum(rec.Root[:0])
	return nil
}

// loads are the page frames that go into the PT_LOADs, in order. A gap of enough pages ends one, and so does a lost page.
func (w *Writer) loads() ([]PFNRange, error) {
	var gaps [65]int // by the number of bits of their length
	hard := 0
	if err := w.eachRun(func(r PFNRange, gap uint64, lost bool) {
		if lost {
			hard++
		} else {
			gaps[bits.Len64(gap)]++
		}
	}); err != nil {
		return nil, err
	}
	split := hard <= elfMaxLoads/2
	left := elfMaxLoads
	if split {
		left -= hard
	}
	least := bits.Len64(elfLeastGap)
	for n := 0; ; least++ {
		n = 0
		for _, c := range gaps[least:] {
			n += c
		}
		if n < left {
			break
		}
	}
	var loads []PFNRange
	err := w.eachRun(func(r PFNRange, gap uint64, lost bool) {
		if n := len(loads); n > 0 && bits.Len64(gap) < least && !(lost && split) {
			loads[n-1].End = r.End
			return
		}
		loads = append(loads, r)
	})
	return loads, err
}

// eachRun calls f for each run of pages in the dump that lie side by side, with the gap before it, and whether
// pages were lost there.
func (w *Writer) eachRun(f func(r PFNRange, gap uint64, lost bool)) error {
	var run PFNRange
	var last uint64 // end of the run before
	lostBefore, lost := false, false
	emit := func() {
		if run.Start < run.End {
			f(run, run.Start-last, lostBefore)
			last = run.End
		}
	}
	err := w.index.each(func(p *storedPage) error {
		switch {
		case PageFlags(p.flags)&PageLost != 0:
			lost = true
		case run.Start < run.End && p.pfn == run.End:
			run.End++
		default:
			emit()
			run = PFNRange{p.pfn, p.pfn + 1}
			lostBefore, lost = lost, false
		}
		return nil
	})
	emit()
	return err
}

// putHead fills in everything before the pages.
func (w *Writer) putHead(b []byte, rec *Record, loads []PFNRange) {
	f, m, le := w.form.elf, &w.meta, binary.LittleEndian
	direct, image := w.findMappings()

	notes := b[elfHeadBytes:elfHeadBytes]
	notes = append(notes, m.Notes...)
	notes = appendNote(notes, ELFNoteName, ELFNoteType, encodeELFNote(rec, m.DumpLevel))

	type prog struct {
		kind                       elf.ProgType
		offset, vaddr, paddr, size uint64
	}
	progs := []prog{{kind: elf.PT_NOTE, offset: elfHeadBytes, size: uint64(len(notes))}}
	if image.Bytes > 0 {
		progs = append(progs, prog{elf.PT_LOAD, uint64(f.at(image.Physical / PageSize)), image.Virtual, image.Physical, image.Bytes})
	}
	for _, r := range loads {
		p := prog{elf.PT_LOAD, uint64(f.at(r.Start)), 0, r.Start * PageSize, (r.End - r.Start) * PageSize}
		if direct.Bytes > 0 {
			p.vaddr = direct.Virtual + p.paddr
		}
		progs = append(progs, p)
	}

	copy(b, elf.ELFMAG)
	b[elf.EI_CLASS], b[elf.EI_DATA], b[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	le.PutUint16(b[16:], uint16(elf.ET_CORE))
	le.PutUint16(b[18:], uint16(elf.EM_X86_64))
	le.PutUint32(b[20:], uint32(elf.EV_CURRENT))
	le.PutUint64(b[32:], elfHeaderBytes) // makedumpfile expects the program headers there
	le.PutUint16(b[52:], elfHeaderBytes)
	le.PutUint16(b[54:], elfProgBytes)
	le.PutUint16(b[56:], uint16(len(progs)))
	for i, p := range progs {
		h := b[elfHeaderBytes+i*elfProgBytes:]
		le.PutUint32(h, uint32(p.kind))
		if p.kind == elf.PT_LOAD {
			le.PutUint32(h[4:], uint32(elf.PF_R|elf.PF_W|elf.PF_X))
		}
		for k, v := range []uint64{p.offset, p.vaddr, p.paddr, p.size, p.size} { // the alignment stays 0, as in /proc/vmcore
			le.PutUint64(h[8+8*k:], v)
		}
	}
}

// findMappings is best effort: readers of today walk the page tables themselves.
func (w *Writer) findMappings() (direct, image Mapping) {
	f := w.form.elf
	info, err := w.meta.vmcoreinfo()
	if f.mappings == nil || err != nil {
		return direct, image
	}
	buf, err := newAligned(PageSize)
	if err != nil {
		return direct, image
	}
	defer buf.free()
	direct, image, err = f.mappings(info, func(pfn uint64, b []byte) error {
		if pfn >= w.meta.MaxPFN {
			return fmt.Errorf("page frame %#x: %w", pfn, ErrNotRAM)
		}
		if n, err := w.out.ReadAt(buf.b, f.at(pfn)); n < PageSize {
			return unexpectedEOF(err)
		}
		copy(b, buf.b)
		return nil
	})
	if err != nil {
		return Mapping{}, Mapping{}
	}
	// The bytes of the image must be in the file.
	if image.Physical%PageSize != 0 || image.Bytes%PageSize != 0 || image.Physical+image.Bytes > w.meta.MaxPFN*PageSize {
		image = Mapping{}
	}
	return direct, image
}

// readBackELF reads the whole file in order and compares every page with the CRC of what was given. It returns the
// checksum of the file; head is what its beginning will be.
func (w *Writer) readBackELF(ctx context.Context, head []byte, rec *Record) (sum [sha256.Size]byte, err error) {
	f := w.form.elf
	buf, err := newAligned(DefaultChunkBytes)
	if err != nil {
		return sum, err
	}
	defer buf.free()
	whole, table := sha256.New(), sha256.New()
	got, err := newAligned(len(head))
	if err != nil {
		return sum, err
	}
	defer got.free()
	if n, err := w.out.ReadAt(got.b[PageSize:], PageSize); n < len(head)-PageSize {
		return sum, fmt.Errorf("reading back the head: %w", unexpectedEOF(err))
	}
	if !slices.Equal(got.b[PageSize:], head[PageSize:]) {
		return sum, fmt.Errorf("%w: the first %d bytes", ErrReadBack, len(head))
	}
	whole.Write(head)

	start, end := f.dataOffset, f.dataOffset // of what buf holds
	next := func() error {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		limit := f.size
		if end < f.tableOffset {
			limit = f.tableOffset
		}
		n := min(int64(len(buf.b)), limit-end)
		start, end = end, end+n
		if k, err := w.out.ReadAt(buf.b[:n], start); int64(k) < n {
			return fmt.Errorf("reading back %d bytes at %d: %w", n, start, unexpectedEOF(err))
		}
		whole.Write(buf.b[:n])
		if start >= f.tableOffset {
			table.Write(buf.b[:n])
		}
		w.bytesReadBack.Add(n)
		return nil
	}
	err = w.index.each(func(p *storedPage) error {
		if PageFlags(p.flags)&PageLost != 0 {
			return nil
		}
		at := f.at(p.pfn)
		for end < at+PageSize {
			if err := next(); err != nil {
				return err
			}
		}
		if pageCRC(buf.b[at-start:][:PageSize]) != p.crc {
			return fmt.Errorf("%w: page frame %#x", ErrReadBack, p.pfn)
		}
		return nil
	})
	for err == nil && end < f.size {
		err = next()
	}
	if err != nil {
		return sum, err
	}
	if [sha256.Size]byte(table.Sum(nil)) != rec.Root {
		return sum, fmt.Errorf("%w: the table of pages", ErrReadBack)
	}
	whole.Sum(sum[:0])
	return sum, nil
}

func appendNote(b []byte, name string, kind uint32, desc []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(len(name)+1))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, kind)
	b = append(append(b, name...), make([]byte, 4-len(name)%4)...)
	return append(append(b, desc...), make([]byte, -len(desc)&3)...)
}

func encodeELFNote(rec *Record, level int) []byte {
	var block [PageSize]byte
	rec.encode(block[:])
	desc := append([]byte{}, block[recordOffset:recordOffset+recordBytes]...)
	return binary.LittleEndian.AppendUint64(desc, uint64(level))
}

// DecodeELFNote reads livedump's own note of an ELF vmcore. In the Record DataOffset is the place of page frame 0, SumsOffset that of the
// table of pages, and Root its checksum, padding included.
func DecodeELFNote(desc []byte) (rec Record, dumpLevel int, err error) {
	if len(desc) != elfNoteBytes {
		return rec, 0, fmt.Errorf("%w: livedump's note has %d bytes, not %d", ErrDamaged, len(desc), elfNoteBytes)
	}
	var block [PageSize]byte
	copy(block[recordOffset:], desc[:recordBytes])
	rec, found, err := decodeRecord(block[:])
	switch {
	case err != nil:
		return rec, 0, err
	case !found || rec.State != StateComplete || rec.PageInfo != pageInfoV1:
		return rec, 0, fmt.Errorf("%w: livedump's note has no record of a complete dump", ErrDamaged)
	}
	level := binary.LittleEndian.Uint64(desc[recordBytes:])
	if level > 31 {
		return rec, 0, fmt.Errorf("%w: dump level %d", ErrDamaged, level)
	}
	return rec, int(level), nil
}

// ELFEntry is a page in the table of an ELF vmcore.
type ELFEntry struct {
	PFN  uint64
	Info PageInfo
}

// ELFEntryBytes is the size of an entry in the file.
const ELFEntryBytes = elfEntryBytes

// DecodeELFEntry takes ELFEntryBytes.
func DecodeELFEntry(b []byte) ELFEntry {
	return ELFEntry{binary.LittleEndian.Uint64(b), decodePageInfo(binary.LittleEndian.Uint64(b[8:]))}
}
