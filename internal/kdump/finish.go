// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Summary is what a finished dump is.
type Summary struct {
	Bytes     uint64            // size from the first byte of the target on
	SHA256    [sha256.Size]byte // of these bytes, as read back from the target
	Pages     uint64            // in the dump
	Lost      uint64
	Uncovered uint64
	ZeroPages uint64 // of Pages

	// ReadBack: what lies on the target was read back and is what was written.
	ReadBack bool

	// Parts, if the dump is split: each by itself. SHA256 is zeros then, and the other numbers are sums.
	Parts []Summary
}

// Finish makes the target a dump: it writes what is left, syncs, reads everything back and compares
// it with what was meant to be written, and only then writes block 0 that makes it one.
//
// Errors: ErrPagesMissing, ErrReadBack, *TargetTooSmallError, *WriteError, what the Output returns,
// or the cause of ctx. After any error the target is not a dump; call Abort.
func (w *Writer) Finish(ctx context.Context) (Summary, error) {
	w.ending.Lock()
	defer w.ending.Unlock()
	if !w.closeIntake() {
		return Summary{}, w.closedError()
	}
	ctx, release := w.failure.bind(ctx)
	defer release()
	s, err := w.finish(ctx)
	if err != nil {
		return Summary{}, w.fail(err)
	}
	w.ended = true
	w.halt()
	w.setStep("Done")
	return s, nil
}

// bind makes a context that ends when a failure is set, and has the failure set when ctx ends: whichever comes first, the end
// of ctx or Abort, ends both the writes and the read-back.
func (f *failure) bind(ctx context.Context) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(ctx, func() { f.set(context.Cause(ctx)) })
	finished := make(chan struct{})
	go func() {
		select {
		case <-f.done:
			cancel(f.err)
		case <-finished:
		}
	}()
	return ctx, func() {
		close(finished)
		stop()
		cancel(nil)
	}
}

func (w *Writer) finish(ctx context.Context) (Summary, error) {
	if err := w.failure.get(); err != nil {
		return Summary{}, err
	}
	if given := w.pages + w.lost; given != w.meta.Pages {
		return Summary{}, fmt.Errorf("%w: %d of %d were given", ErrPagesMissing, given, w.meta.Pages)
	}
	w.releaseWorkers()
	if w.journal != nil {
		w.journal.stop() // what it has is needed until block 0 is written, and stays as it is
	}
	if w.form.elf != nil {
		return w.finishELF(ctx)
	}
	e, err := w.writeRest()
	if err != nil {
		return Summary{}, err
	}
	w.index.free()
	w.index = nil
	defer e.free()
	if err := w.verify(ctx, e, e.rec.Size); err != nil {
		return Summary{}, err
	}
	if err := w.writeBlock0(e.block.b); err != nil {
		return Summary{}, err
	}
	return e.summary(), nil
}

// ending is a dump that lacks nothing but block 0.
type ending struct {
	rec   Record
	hdr   header
	block *aligned // what block 0 will be
	// sum of the whole dump, if it was read back.
	sum      [sha256.Size]byte
	readBack bool
}

func (e *ending) free() { e.block.free() }

func (e *ending) summary() Summary {
	return Summary{
		Bytes: e.rec.Size, SHA256: e.sum,
		Pages: e.rec.Pages, Lost: e.rec.Lost, Uncovered: e.rec.Uncovered, ZeroPages: e.rec.ZeroPages,
		ReadBack: e.readBack,
	}
}

// writeRest writes and syncs everything but block 0.
func (w *Writer) writeRest() (*ending, error) {
	w.setStep("Finishing")
	e := &ending{rec: w.completeRecord()}
	e.rec.DataOffset = uint64(w.layout.dataOffset)
	e.rec.ChunkBytes = uint32(w.layout.chunkBytes)
	err := w.writeTail(&e.rec)
	if err == nil {
		e.hdr, err = w.writeMetadata()
	}
	if err == nil {
		err = w.disk.wait()
	}
	if err == nil {
		err = w.writeSums(&e.rec)
	}
	if err != nil {
		return nil, err
	}
	if err := w.out.Sync(); err != nil {
		return nil, fmt.Errorf("syncing the target: %w", err)
	}
	e.block, err = newAligned(PageSize)
	return e, err
}

// verify makes block 0 of a dump that has so many bytes in all, and reads everything else back.
func (w *Writer) verify(ctx context.Context, e *ending, bytes uint64) (err error) {
	e.hdr.written = saturate32(bytes / PageSize)
	e.hdr.encode(e.block.b)
	e.rec.encode(e.block.b)
	if !w.opts.NoReadBack && w.form.flat == nil {
		w.setStep("Verifying")
		if w.opts.OnVerify != nil {
			w.opts.OnVerify()
		}
		if e.sum, err = w.readBack(ctx, e.block.b, &e.rec); err != nil {
			return err
		}
		e.readBack = true
	}
	return w.failure.get()
}

// completeRecord has what is the same in all formats.
func (w *Writer) completeRecord() Record {
	rec := w.record(StateComplete)
	rec.PageInfo = pageInfoV1
	rec.Pages = w.pages
	rec.Lost = w.lost
	rec.ZeroPages = w.zeros
	rec.Uncovered = w.uncovered
	return rec
}

// writeTail puts the table of lost ranges behind the data and ends it.
func (w *Writer) writeTail(rec *Record) error {
	if err := w.lostRanges(func(PFNRange) error { rec.LostRanges++; return nil }); err != nil {
		return err
	}
	end := w.data.offset
	if need := end + w.layout.tailBytes(end, int(rec.LostRanges)); need > w.index.limit(roomOf(w.out)) {
		room := roomOf(w.out)
		return &TargetTooSmallError{Needed: need + room - w.index.limit(room), Available: room}
	}
	if err := w.data.appendZeros(roundUp(end, 8) - end); err != nil {
		return err
	}
	rec.LostOffset = uint64(w.data.offset)
	err := w.lostRanges(func(r PFNRange) error {
		var b [16]byte
		binary.LittleEndian.PutUint64(b[:], r.Start)
		binary.LittleEndian.PutUint64(b[8:], r.End)
		return w.data.append(b[:])
	})
	if err != nil {
		return err
	}
	end, err = w.data.finish()
	rec.SumsOffset = uint64(end)
	return err
}

// lostRanges calls f for each run of lost pages, in order.
func (w *Writer) lostRanges(f func(PFNRange) error) error {
	if w.lost == 0 {
		return nil
	}
	var r PFNRange
	err := w.index.each(func(p *storedPage) error {
		if PageFlags(p.flags)&PageLost == 0 {
			return nil
		}
		if p.pfn == r.End && r.Start < r.End {
			r.End++
			return nil
		}
		passed := r
		r = PFNRange{p.pfn, p.pfn + 1}
		if passed.Start == passed.End {
			return nil
		}
		return f(passed)
	})
	if err != nil {
		return err
	}
	return f(r)
}

// writeMetadata writes all between block 0 and the data. It returns the header for block 0.
func (w *Writer) writeMetadata() (header, error) {
	l, m := &w.layout, &w.meta
	s := newStream(w.disk, PageSize)

	notes := uint64(PageSize + subHeaderBytes)
	sub := subHeader{
		physBase:         uint64(w.phys),
		dumpLevel:        int32(m.DumpLevel),
		endPFN:           m.MaxPFN,
		offsetVMCoreInfo: notes + m.VMCoreInfoOffset,
		sizeVMCoreInfo:   m.VMCoreInfoBytes,
		offsetNote:       notes,
		sizeNote:         uint64(len(m.Notes)),
		endPFN64:         m.MaxPFN,
		maxMapnr64:       m.MaxPFN,
	}
	if p := w.form.part; p != nil {
		sub.split = 1
		sub.startPFN, sub.endPFN = p.Start, p.End
		sub.startPFN64, sub.endPFN64 = p.Start, p.End
	}
	var b [PageSize]byte
	sub.encode(b[:])
	if err := s.append(b[:subHeaderBytes]); err != nil {
		return header{}, err
	}
	if err := s.append(m.Notes); err != nil {
		return header{}, err
	}
	if err := s.appendZeros(l.bitmapOffset - s.offset); err != nil {
		return header{}, err
	}
	ram, err := w.writeBitmaps(s)
	if err != nil {
		return header{}, err
	}
	err = w.index.each(func(p *storedPage) error {
		if PageFlags(p.flags)&PageLost != 0 {
			return nil
		}
		d := pageDesc{offset: p.offset, size: uint32(p.size), pageFlags: PageInfo{
			Class: p.class, Flags: PageFlags(p.flags) & pageFlagsKnown, CRC: p.crc}.encode()}
		if p.flags&storedRaw == 0 {
			d.flags = w.opts.Codec.descFlags()
		}
		d.encode(b[:])
		return s.append(b[:descBytes])
	})
	if err != nil {
		return header{}, err
	}
	// Lost pages leave their part of the table empty; old content of the target must not stay there.
	if err := s.appendZeros(l.dataOffset - s.offset); err != nil {
		return header{}, err
	}
	return header{
		version: headerVersion,
		uts:     m.Utsname,
		seconds: m.FrozenAt.Unix(),
		// libkdumpfile first reads the header as a 32-bit one. What it takes for the block size then
		// is our microseconds, and some values pass its checks. The record has the exact time.
		microseconds: 0,
		status:       w.opts.Codec.descFlags(),
		blockSize:    PageSize,
		subHdrBlocks: int32(l.subHdrBlocks),
		bitmapBlocks: uint32(l.bitmapBlocks),
		maxMapnr:     saturate32(m.MaxPFN),
		totalRAM:     saturate32(ram),
		nrCPUs:       int32(m.NrCPUs),
	}, nil
}

// writeBitmaps writes the first bitmap (there is RAM) and the second (the page is in the dump). It
// returns the number of page frames in the first.
func (w *Writer) writeBitmaps(s *stream) (ram uint64, err error) {
	// Readers take a page that is not in the first bitmap for no memory at all, dumped or not.
	first := &bitmapWriter{s: s, ranges: w.meta.RAM}
	if err := w.eachOfAll(func(p *storedPage) error { return first.set(p.pfn) }); err != nil {
		return 0, err
	}
	if err := first.finish(w.layout.bitmapBlocks / 2); err != nil {
		return 0, err
	}
	second := &bitmapWriter{s: s}
	err = w.eachOfAll(func(p *storedPage) error {
		if PageFlags(p.flags)&PageLost != 0 {
			return nil
		}
		return second.set(p.pfn)
	})
	if err == nil {
		err = second.finish(w.layout.bitmapBlocks / 2)
	}
	return first.bits, err
}

// eachOfAll is index.each for all pages of the dump, if this is a part of one too.
func (w *Writer) eachOfAll(f func(*storedPage) error) error {
	if w.form.part == nil {
		return w.index.each(f)
	}
	for _, p := range w.form.part.all.parts {
		if err := p.index.each(f); err != nil {
			return err
		}
	}
	return nil
}

// writeSums writes the table of chunk checksums, which ends the dump.
func (w *Writer) writeSums(rec *Record) error {
	sums := w.disk.sums
	n := roundUp(int64(len(sums))*chunkSumBytes, PageSize)
	table, err := newAligned(int(n))
	if err != nil {
		return err
	}
	defer table.free()
	for i, sum := range sums {
		sum.put(table.b[i*chunkSumBytes:])
	}
	rec.Root = sha256.Sum256(table.b)
	rec.Size = rec.SumsOffset + uint64(n)
	for off := int64(0); off < n; off += w.layout.chunkBytes {
		part := table.b[off:min(n, off+w.layout.chunkBytes)]
		if err := writeAt(w.out, part, int64(rec.SumsOffset)+off); err != nil {
			return err
		}
		w.bytesWritten.Add(int64(len(part)))
	}
	return nil
}

// readBack compares the target with what was written and returns the checksum of the whole file, block
// being what block 0 will be.
func (w *Writer) readBack(ctx context.Context, block []byte, rec *Record) ([sha256.Size]byte, error) {
	sc := chunkScan{
		r: w.out, block0: block, rec: rec, sums: w.disk.sums,
		workers: w.opts.Workers, bytesRead: &w.bytesReadBack,
		bad: func(b badChunk) error {
			return fmt.Errorf("%w: the %d bytes at %d", ErrReadBack, b.n, b.offset)
		},
	}
	return sc.run(ctx)
}

func (w *Writer) writeBlock0(block []byte) error {
	if err := writeAt(w.out, block, 0); err != nil {
		return err
	}
	if w.form.flat != nil {
		w.bytesWritten.Add(PageSize)
		return w.form.flat.end()
	}
	if err := w.out.Sync(); err != nil {
		return fmt.Errorf("syncing block 0: %w", err)
	}
	got, err := newAligned(PageSize)
	if err != nil {
		return err
	}
	defer got.free()
	if n, err := w.out.ReadAt(got.b, 0); n < PageSize {
		return fmt.Errorf("reading back block 0: %w", unexpectedEOF(err))
	}
	if !bytes.Equal(got.b, block) {
		return fmt.Errorf("%w: block 0", ErrReadBack)
	}
	w.bytesWritten.Add(PageSize)
	return nil
}
