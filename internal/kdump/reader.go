// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"slices"
	"sync"
)

// Reader reads a dump. It trusts nothing that the file says before it has checked it, and takes
// memory only in proportion to what is really there. Its methods may be called from several goroutines.
type Reader struct {
	r     io.ReaderAt
	size  int64 // of the file or device
	close func() error

	flattened bool

	block  [PageSize]byte
	hdr    header
	sub    subHeader
	rec    *Record
	notes  []byte
	info   VMCoreInfo
	parsed []Note

	bitmapBytes int64 // of one
	ram         []byte
	dumped      []byte
	ranks       []uint64 // dumped pages before each rankBytes of the bitmap
	pages       uint64
	descOffset  int64

	decompressors sync.Pool
}

const rankBytes = 512

// Open opens a dump in a file or on a block device; also one that is in a file as a flattened stream.
func Open(path string) (*Reader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the dump: %w", err)
	}
	r, err := openFile(f)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	r.close = f.Close
	return r, nil
}

func openFile(f *os.File) (*Reader, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch t := st.Mode().Type(); {
	case t == 0:
	case t&fs.ModeDevice != 0 && t&fs.ModeCharDevice == 0:
	default:
		return nil, fmt.Errorf("%w: neither a regular file nor a block device", ErrNotDump)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("finding its size: %w", err)
	}
	return OpenAt(f, size)
}

// OpenAt opens the dump in the first size bytes of r, plain or as a flattened stream; see NewReader.
func OpenAt(r io.ReaderAt, size int64) (*Reader, error) {
	if !IsFlattened(r) {
		return NewReader(r, size)
	}
	flat, err := OpenFlattened(r, size)
	if err != nil {
		return nil, err
	}
	d, err := NewReader(flat, flat.Size())
	if err != nil {
		return nil, fmt.Errorf("in a flattened stream: %w", err)
	}
	d.flattened = true
	return d, nil
}

// NewReader opens the dump in the first size bytes of r.
//
// Errors: ErrNotDump, ErrInProgress, ErrFailed, ErrVersion, ErrTruncated, ErrDamaged, or of reading.
func NewReader(r io.ReaderAt, size int64) (*Reader, error) {
	d := &Reader{r: r, size: size, close: func() error { return nil }}
	for _, step := range []func() error{d.readBlock0, d.readSubHeader, d.readNotes, d.readBitmaps, d.checkRecord} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	d.decompressors.New = func() any { return &decompressor{} }
	return d, nil
}

// Close ends the use of the Reader.
func (d *Reader) Close() error { return d.close() }

// Record is what livedump itself says of the dump. It is nil if another program wrote it.
func (d *Reader) Record() *Record { return d.rec }

// Pages is the number of pages in the dump.
func (d *Reader) Pages() uint64 { return d.pages }

// MaxPFN is one more than the last page frame.
func (d *Reader) MaxPFN() uint64 { return d.sub.maxMapnr64 }

// Part says which page frames the file is about, if it is one part of a split dump.
func (d *Reader) Part() (r PFNRange, is bool) {
	return PFNRange{d.sub.startPFN64, d.sub.endPFN64}, d.sub.split != 0
}

// SameDump says whether two parts are of the same dump: all of their headers but what livedump says of each part.
func (d *Reader) SameDump(other *Reader) bool {
	return d.hdr == other.hdr && bytes.Equal(d.notes, other.notes) && d.sub.maxMapnr64 == other.sub.maxMapnr64 &&
		(d.rec == nil) == (other.rec == nil) && (d.rec == nil || d.rec.Session == other.rec.Session)
}

// Size is the size of the dump in bytes, which on a device is less than that of the device.
func (d *Reader) Size() int64 {
	if d.rec != nil {
		return int64(d.rec.Size)
	}
	return d.size
}

func (d *Reader) readAt(b []byte, off int64, what string) error {
	if off < 0 || off > d.size || int64(len(b)) > d.size-off {
		return fmt.Errorf("%w: %s, %d bytes at %d, ends after the file, which has %d bytes", ErrTruncated, what, len(b), off, d.size)
	}
	if n, err := d.r.ReadAt(b, off); n < len(b) {
		return fmt.Errorf("reading %s, %d bytes at %d: %w", what, len(b), off, unexpectedEOF(err))
	}
	return nil
}

func (d *Reader) readBlock0() error {
	if d.size < PageSize {
		b := make([]byte, max(d.size, 0))
		if _, err := d.r.ReadAt(b, 0); err == nil || errors.Is(err, io.EOF) {
			if n := min(len(b), 8); n == 0 || !(bytes.Equal(b[:n], kdumpSignature[:n]) || bytes.Equal(b[:n], recordMagic[:n])) {
				return foreign(b)
			}
		}
		return fmt.Errorf("%w: %d bytes, not even one block", ErrTruncated, d.size)
	}
	b := d.block[:]
	if err := d.readAt(b, 0, "block 0"); err != nil {
		return err
	}
	rec, found, recErr := decodeRecord(b)
	switch {
	case bytes.HasPrefix(b, recordMagic):
		return notDumpYet(rec, found, recErr)
	case !bytes.HasPrefix(b, kdumpSignature):
		return foreign(b)
	case recErr != nil:
		return recErr
	case found && rec.State != StateComplete:
		return fmt.Errorf("%w: a dump's header with the livedump state %q", ErrDamaged, rec.State)
	case found:
		d.rec = &rec
	}

	d.hdr = decodeHeader(b)
	switch h := &d.hdr; {
	case h.version != headerVersion:
		return fmt.Errorf("%w: kdump header version %d, this program reads %d", ErrVersion, h.version, headerVersion)
	case h.uts.Machine != machineX86:
		return fmt.Errorf("%w: a dump of machine %q, this program reads %s", ErrVersion, h.uts.Machine, machineX86)
	case h.blockSize != PageSize:
		return fmt.Errorf("%w: block size %d, this program reads %d", ErrVersion, h.blockSize, PageSize)
	case h.nrCPUs < 1:
		return fmt.Errorf("%w: the header says %d CPUs", ErrDamaged, h.nrCPUs)
	case h.subHdrBlocks < 1:
		return fmt.Errorf("%w: the sub header has %d blocks", ErrDamaged, h.subHdrBlocks)
	case h.bitmapBlocks < 2 || h.bitmapBlocks%2 != 0:
		return fmt.Errorf("%w: the bitmaps have %d blocks", ErrDamaged, h.bitmapBlocks)
	}
	if d.rec != nil && d.rec.Size > uint64(d.size) {
		return fmt.Errorf("%w: the dump has %d bytes, the file only %d", ErrTruncated, d.rec.Size, d.size)
	}
	return nil
}

// notDumpYet is for block 0 with livedump's own mark instead of a header.
func notDumpYet(rec Record, found bool, err error) error {
	switch {
	case !found:
		return fmt.Errorf("%w: block 0 has livedump's mark, but no record", ErrDamaged)
	case err != nil:
		return err
	case rec.State == StateInProgress:
		return fmt.Errorf("%w: session %s is writing it, or ended before it could", ErrInProgress, rec.Session)
	case rec.State == StateFailed:
		return fmt.Errorf("%w: session %s: %s", ErrFailed, rec.Session, rec.Reason)
	}
	return fmt.Errorf("%w: block 0 has livedump's mark with the state %q", ErrDamaged, rec.State)
}

// foreign says what else it is.
func foreign(b []byte) error {
	for _, k := range []struct{ magic, text string }{
		{"makedumpfile\x00", "a flattened dump (makedumpfile -R makes a plain one of it)"},
		{"\x7fELF", "an ELF file"},
		{"age-encryption.org/v1\n", "encrypted with age"},
		{string(diskdumpSignature), "a diskdump"},
		{"\x1f\x8b", "gzip data"},
		{"\x28\xb5\x2f\xfd", "zstd data"},
	} {
		if bytes.HasPrefix(b, []byte(k.magic)) {
			return fmt.Errorf("%w: it is %s", ErrNotDump, k.text)
		}
	}
	if allZero(b) {
		return fmt.Errorf("%w: it is empty", ErrNotDump)
	}
	return fmt.Errorf("%w: no signature of a kdump-compressed dump", ErrNotDump)
}

func (d *Reader) readSubHeader() error {
	var b [subHeaderBytes]byte
	if err := d.readAt(b[:], PageSize, "the sub header"); err != nil {
		return err
	}
	d.sub = decodeSubHeader(b[:])
	d.bitmapBytes = int64(d.hdr.bitmapBlocks) / 2 * PageSize
	d.descOffset = (1 + int64(d.hdr.subHdrBlocks) + int64(d.hdr.bitmapBlocks)) * PageSize
	switch m := d.sub.maxMapnr64; {
	case m == 0 || m > maxPFNLimit:
		return fmt.Errorf("%w: max_mapnr %d is out of bounds", ErrDamaged, m)
	case m > uint64(d.bitmapBytes)*8:
		return fmt.Errorf("%w: bitmaps of %d bytes for %d page frames", ErrDamaged, d.bitmapBytes, m)
	case d.sub.split != 0 && (d.sub.startPFN64 >= d.sub.endPFN64 || d.sub.endPFN64 > m):
		return fmt.Errorf("%w: a part with the page frames from %#x to %#x, of %#x", ErrDamaged, d.sub.startPFN64, d.sub.endPFN64, m)
	case d.descOffset > d.size:
		return fmt.Errorf("%w: the bitmaps end at %d, the file at %d", ErrTruncated, d.descOffset, d.size)
	}
	return nil
}

func (d *Reader) readNotes() error {
	read := func(off, n uint64, what string) ([]byte, error) {
		if n == 0 {
			return nil, nil
		}
		if n > maxNotesBytes || off > uint64(d.size) || n > uint64(d.size)-off {
			return nil, fmt.Errorf("%w: %s, %d bytes at %d, are out of bounds", ErrDamaged, what, n, off)
		}
		b := make([]byte, n)
		return b, d.readAt(b, int64(off), what)
	}
	var err error
	if d.notes, err = read(d.sub.offsetNote, d.sub.sizeNote, "the ELF notes"); err != nil {
		return err
	}
	if d.parsed, err = ParseNotes(d.notes); err != nil {
		return fmt.Errorf("%w: ELF notes: %w", ErrDamaged, err)
	}
	text, err := read(d.sub.offsetVMCoreInfo, d.sub.sizeVMCoreInfo, "VMCOREINFO")
	if err != nil {
		return err
	}
	d.info = ParseVMCoreInfo(text)
	return nil
}

func (d *Reader) readBitmaps() error {
	base := (1 + int64(d.hdr.subHdrBlocks)) * PageSize
	need := int64(d.sub.maxMapnr64+7) / 8
	var err error
	if d.ram, err = d.readBitmap(base, need); err != nil {
		return err
	}
	if d.dumped, err = d.readBitmap(base+d.bitmapBytes, need); err != nil {
		return err
	}
	for i := int64(0); i < need; i++ {
		if d.dumped[i]&^d.ram[i] != 0 {
			return fmt.Errorf("%w: page frames from %#x on are dumped, but are not RAM", ErrDamaged, i*8)
		}
	}
	if part, is := d.Part(); is {
		// The bitmap is that of all parts, the descriptors are this one's.
		clear(d.dumped[:part.Start/8])
		d.dumped[part.Start/8] &= 0xff << (part.Start % 8)
		if part.End/8 < uint64(len(d.dumped)) {
			d.dumped[part.End/8] &= 1<<(part.End%8) - 1
			clear(d.dumped[part.End/8+1:])
		}
	}
	for i, b := range d.dumped {
		if i%rankBytes == 0 {
			d.ranks = append(d.ranks, d.pages)
		}
		d.pages += uint64(bits.OnesCount8(b))
	}
	if over := need*8 - int64(d.sub.maxMapnr64); over > 0 && d.dumped[need-1]>>(8-over) != 0 {
		return fmt.Errorf("%w: page frames beyond max_mapnr are dumped", ErrDamaged)
	}
	if d.pages > uint64(d.size)/descBytes || d.descOffset+int64(d.pages)*descBytes > d.size {
		return fmt.Errorf("%w: the descriptors of %d pages end after the file", ErrTruncated, d.pages)
	}
	return nil
}

// readBitmap grows with what was really read.
func (d *Reader) readBitmap(off, n int64) ([]byte, error) {
	var b []byte
	for int64(len(b)) < n {
		k := min(n-int64(len(b)), 4<<20)
		start := len(b)
		b = slices.Grow(b, int(k))[:start+int(k)]
		if err := d.readAt(b[start:], off+int64(start), "a bitmap"); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// checkRecord compares livedump's record with the rest of the header.
func (d *Reader) checkRecord() error {
	r := d.rec
	if r == nil {
		return nil
	}
	descEnd := uint64(d.descOffset) + d.pages*descBytes
	switch {
	case r.PageInfo != pageInfoV1:
		return fmt.Errorf("%w: page information of version %d", ErrVersion, r.PageInfo)
	case r.ChunkBytes < PageSize || r.ChunkBytes%PageSize != 0 || r.ChunkBytes > 1<<30:
		return fmt.Errorf("%w: chunks of %d bytes", ErrDamaged, r.ChunkBytes)
	case r.DataOffset < descEnd || r.SumsOffset < r.DataOffset || r.SumsOffset%PageSize != 0 ||
		r.Size != r.SumsOffset+d.sumsBytes():
		return fmt.Errorf("%w: data at %d, checksums at %d and the end at %d do not fit together", ErrDamaged,
			r.DataOffset, r.SumsOffset, r.Size)
	case r.LostOffset < r.DataOffset || r.LostOffset > r.SumsOffset || r.LostRanges > (r.SumsOffset-r.LostOffset)/16:
		return fmt.Errorf("%w: the table of lost pages is out of bounds", ErrDamaged)
	case r.Pages != d.pages:
		return fmt.Errorf("%w: the record says %d pages, the bitmap %d", ErrDamaged, r.Pages, d.pages)
	}
	return nil
}

func (d *Reader) chunks() uint64 {
	return (d.rec.SumsOffset + uint64(d.rec.ChunkBytes) - 1) / uint64(d.rec.ChunkBytes)
}

func (d *Reader) sumsBytes() uint64 {
	return uint64(roundUp(int64(d.chunks())*chunkSumBytes, PageSize))
}

// LostPages lists the pages that are not in the dump because their content could not be kept.
func (d *Reader) LostPages() ([]PFNRange, error) {
	if d.rec == nil || d.rec.LostRanges == 0 {
		return nil, nil
	}
	var ranges []PFNRange
	var total, last uint64
	var piece [PageSize]byte
	for left, off := d.rec.LostRanges*16, int64(d.rec.LostOffset); left > 0; {
		b := piece[:min(left, PageSize)]
		if err := d.readAt(b, off, "the table of lost pages"); err != nil {
			return nil, err
		}
		left, off = left-uint64(len(b)), off+int64(len(b))
		for ; len(b) > 0; b = b[16:] {
			r := PFNRange{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
			if r.Start >= r.End || r.Start < last || r.End > d.MaxPFN() {
				return nil, fmt.Errorf("%w: bad range %#x-%#x in the table of lost pages", ErrDamaged, r.Start, r.End)
			}
			last = r.End
			total += r.End - r.Start
			ranges = append(ranges, r)
		}
	}
	if total != d.rec.Lost {
		return nil, fmt.Errorf("%w: %d lost pages are listed, the record says %d", ErrDamaged, total, d.rec.Lost)
	}
	return ranges, nil
}

// PageError says what is wrong with a page of the dump.
type PageError struct {
	PFN uint64
	Err error
}

func (e *PageError) Error() string { return fmt.Sprintf("page frame %#x: %v", e.PFN, e.Err) }

func (e *PageError) Unwrap() error { return e.Err }

// rank is the index of the page's descriptor. Each step looks at at most rankBytes of the bitmap.
func (d *Reader) rank(pfn uint64) uint64 {
	byteAt := pfn / 8
	i := byteAt / rankBytes
	n := d.ranks[i]
	for _, b := range d.dumped[i*rankBytes : byteAt] {
		n += uint64(bits.OnesCount8(b))
	}
	return n + uint64(bits.OnesCount8(d.dumped[byteAt]&(1<<(pfn%8)-1)))
}

// ReadPage reads a page into b, which has room for 4096 bytes. Errors: ErrNotRAM, ErrExcluded, or a
// *PageError.
func (d *Reader) ReadPage(pfn uint64, b []byte) (PageInfo, error) {
	switch {
	case pfn >= d.MaxPFN() || d.ram[pfn/8]&(1<<(pfn%8)) == 0:
		return PageInfo{}, fmt.Errorf("page frame %#x: %w", pfn, ErrNotRAM)
	case d.dumped[pfn/8]&(1<<(pfn%8)) == 0:
		return PageInfo{}, fmt.Errorf("page frame %#x: %w", pfn, ErrExcluded)
	}
	var raw [descBytes]byte
	if err := d.readAt(raw[:], d.descOffset+int64(d.rank(pfn))*descBytes, "a page descriptor"); err != nil {
		return PageInfo{}, &PageError{pfn, err}
	}
	desc := decodePageDesc(raw[:])
	if err := d.checkDesc(&desc); err != nil {
		return PageInfo{}, &PageError{pfn, err}
	}
	var src [PageSize]byte
	if err := d.readAt(src[:desc.size], int64(desc.offset), "page data"); err != nil {
		return PageInfo{}, &PageError{pfn, err}
	}
	if err := d.decode(b[:PageSize], src[:desc.size], &desc); err != nil {
		return PageInfo{}, &PageError{pfn, err}
	}
	if d.rec == nil {
		return PageInfo{}, nil
	}
	return decodePageInfo(desc.pageFlags), nil
}

func (d *Reader) checkDesc(p *pageDesc) error {
	start, end := uint64(d.descOffset)+d.pages*descBytes, uint64(d.size)
	if d.rec != nil {
		start, end = d.rec.DataOffset, d.rec.SumsOffset
	}
	if p.size == 0 || p.size > PageSize || p.offset < start || p.offset > end || uint64(p.size) > end-p.offset {
		return fmt.Errorf("%w: bad descriptor: %d bytes at %d", ErrDamaged, p.size, p.offset)
	}
	return nil
}

// decode decompresses a page and compares it with its CRC if it has one.
func (d *Reader) decode(dst, src []byte, p *pageDesc) error {
	dec := d.decompressors.Get().(*decompressor)
	defer d.decompressors.Put(dec)
	if err := dec.page(dst, src, p.flags); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if d.rec != nil && pageCRC(dst) != decodePageInfo(p.pageFlags).CRC {
		return fmt.Errorf("%w: the content does not match its CRC", ErrDamaged)
	}
	return nil
}

// eachPage calls f with batches of pages and their descriptors, in order of PFN.
func (d *Reader) eachPage(batch int, f func(pages []pageAt) error) error {
	raw := make([]byte, batch*descBytes)
	pages := make([]pageAt, 0, batch)
	next := uint64(0) // index of the first descriptor of the batch
	flush := func() error {
		b := raw[:len(pages)*descBytes]
		if err := d.readAt(b, d.descOffset+int64(next)*descBytes, "page descriptors"); err != nil {
			return err
		}
		for i := range pages {
			pages[i].desc = decodePageDesc(b[i*descBytes:])
		}
		next += uint64(len(pages))
		err := f(pages)
		pages = pages[:0]
		return err
	}
	for i, v := range d.dumped {
		for ; v != 0; v &= v - 1 {
			pages = append(pages, pageAt{pfn: uint64(i)*8 + uint64(bits.TrailingZeros8(v))})
			if len(pages) == batch {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	if len(pages) == 0 {
		return nil
	}
	return flush()
}

type pageAt struct {
	pfn  uint64
	desc pageDesc
}

func byOffset(a, b pageAt) int { return cmp.Compare(a.desc.offset, b.desc.offset) }
