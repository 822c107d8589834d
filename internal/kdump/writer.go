// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// Options of a Writer. The zero value is good.
type Options struct {
	Codec Codec
	// Level of the codec, one of Codec.Levels. 0: the fastest.
	Level int
	// Workers is how many callers of Add compress at once; more wait. 0: GOMAXPROCS.
	Workers int
	// Writes are under way at once. 0: 4.
	Writes int
	// ChunkBytes is the size of a write and of the piece that one checksum covers, a multiple of
	// 4096. 0: 1 MiB, more for dumps of more than 256 GiB.
	ChunkBytes int
	// Bandwidth limits writing to the target, bytes per second. 0: no limit.
	Bandwidth int64
	// IndexPages is how many pages' whereabouts are kept in memory before they are written to the end
	// of the target for the time being, 48 bytes of memory each. 0: 1 Mi.
	IndexPages int
	// Journal keeps at the end of the target, while the dump is being written, what another process needs to
	// go on with it: see ReadJournal. It takes some 25 bytes for each page there. Only for a plain kdump-compressed
	// dump that is not encrypted; see Writer.Journaled.
	Journal bool
	// Durable, if not nil, is told of the pages, by page frame, that would outlive this process: content and
	// whereabouts are on stable storage. It may be called by several goroutines at once, and for a page of a
	// resumed dump once more. Its error fails the dump.
	Durable func(pfns []uint64) error
	// State is kept in the journal for the caller; see Writer.SaveState.
	State []byte
	// JournalPages make a segment of the journal; half of that does when a second has passed since the one
	// before. 0: 4096, more for large dumps.
	JournalPages int
	// OnVerify, if not nil, is called when everything is on the target, before it is read back.
	OnVerify func()
	// NoReadBack takes it on trust that the target keeps what is written to it: Finish does not read
	// the dump back, and Summary.SHA256 stays zero.
	NoReadBack bool
	// Scratch opens a file of so many bytes for the whereabouts of pages, if the Writer's target cannot be read back
	// and there are more than IndexPages of them. nil: OpenScratch.
	Scratch func(room int64) (Scratch, error)
}

const (
	storePages = 64  // pages with content that a worker collects before it hands them on
	storeAll   = 512 // pages, zero ones included
)

var zeroPage [PageSize]byte

// Writer turns a target into a dump.
//
// Add may be called from several goroutines. After the last of them has returned comes
// Finish, or, from any goroutine at any time, Abort. Once any method has returned an error the dump
// is lost and only Abort makes sense. A Writer that is neither finished nor aborted leaks memory and
// leaves the target marked as in progress.
type Writer struct {
	out    Output
	opts   Options
	meta   Meta
	layout layout
	phys   int64
	form   form

	failure *failure
	disk    *disk
	workers chan *worker // the idle ones
	pool    []*worker

	// intake is held shared by Add, and alone for the moment in which the Writer is closed.
	intake sync.RWMutex
	closed bool // takes no more pages

	ending sync.Mutex // held by Finish and Abort
	ended  bool       // the target has its last block 0

	mu      sync.Mutex // data, index, counts
	data    *stream
	index   *pageIndex
	journal *journal // nil without one
	counts

	pagesDone     atomic.Int64
	pagesLost     atomic.Int64
	bytesWritten  atomic.Int64
	bytesReadBack atomic.Int64
	step          atomic.Pointer[string]
}

// counts of pages given so far.
type counts struct {
	pages     uint64 // in the dump
	lost      uint64
	zeros     uint64
	uncovered uint64
}

func (c *counts) add(p *storedPage, zero bool) {
	if PageFlags(p.flags)&PageLost != 0 {
		c.lost++
		return
	}
	if zero {
		c.zeros++
	}
	c.pages++
	if PageFlags(p.flags)&PageUncovered != 0 {
		c.uncovered++
	}
}

// storedPage is where a page is, until Finish makes a descriptor of it: 24 bytes.
type storedPage struct {
	pfn    uint64
	offset uint64 // 0 until the page has its place
	crc    uint32
	size   uint16
	class  Class
	flags  uint8 // PageFlags, and storedRaw
}

const storedRaw = 1 << 7

// worker compresses pages one after the other into out. Its memory lies outside the Go heap. Raw pages stay
// where they are until they are stored.
type worker struct {
	c      compressor // nil: no page is compressed
	mem    *aligned
	out    []byte
	stored []storedPage
	pieces [][]byte // of out and of the caller's pages, in order
	size   int      // of all pieces
	again  []uint64 // pages that a resumed dump has already

	direct bool // raw pages go to out as well: they are written from there
}

func newWorker(codec Codec, level int) (*worker, error) {
	c, err := newCompressor(codec, level)
	if err != nil {
		return nil, err
	}
	mem, err := newAligned(storePages*PageSize + compressedRoom)
	if err != nil {
		return nil, err
	}
	return &worker{c: c, mem: mem, out: mem.b[:0], stored: make([]storedPage, 0, storeAll), pieces: make([][]byte, 0, storeAll)}, nil
}

// NewWriter checks that the target can hold the dump at all (else *TargetTooSmallError, and nothing
// has been written), marks block 0 as a dump in progress, and gets ready for pages.
func NewWriter(out Output, meta Meta, opts Options) (*Writer, error) {
	return create(out, form{}, meta, opts)
}

// form is how the dump differs from a plain kdump-compressed one. At most one member is set.
type form struct {
	flat *flattener // what the Writer writes to, if the dump goes to a stream
	elf  *elfForm
	part *splitPart // of a split dump
}

func create(out Output, f form, meta Meta, opts Options) (*Writer, error) {
	w, err := newWriter(out, f, meta, opts)
	if err != nil {
		return nil, err
	}
	if err := w.begin(); err != nil {
		w.failure.set(err)
		w.halt()
		return nil, err
	}
	return w, nil
}

// newWriter checks everything and allocates. Nothing has been written when it returns.
func newWriter(out Output, f form, meta Meta, opts Options) (*Writer, error) {
	// A dump in another form can't be gone on with, nor can an encrypted one, whose key dies with the process.
	if _, ok := out.(Spiller); ok || f != (form{}) {
		opts.Journal = false
	}
	if err := opts.complete(meta.Pages); err != nil {
		return nil, err
	}
	if err := meta.validate(); err != nil {
		return nil, err
	}
	info, err := meta.vmcoreinfo()
	if err != nil {
		return nil, err
	}
	phys, err := info.PhysBase()
	if err != nil {
		return nil, err
	}
	l, err := newLayout(meta.MaxPFN, meta.Pages, int64(len(meta.Notes)), int64(opts.ChunkBytes))
	if err != nil {
		return nil, err
	}
	least := l.dataOffset + PageSize
	least += l.tailBytes(least, 0)
	if f.elf != nil {
		least = f.elf.size
	}
	if f.flat == nil {
		least += opts.roomAtEnd(&meta)
	}
	room := roomOf(out)
	if least > room {
		return nil, &TargetTooSmallError{Needed: least, Available: room}
	}

	meta.Notes = bytes.Clone(meta.Notes)
	meta.RAM = mergeRanges(meta.RAM)
	w := &Writer{
		out: out, opts: opts, meta: meta, layout: l, phys: phys, form: f,
		failure: newFailure(),
		workers: make(chan *worker, opts.Workers),
	}
	if f.part != nil {
		w.failure = f.part.failure
	}
	w.setStep("Writing")
	if err := w.start(room); err != nil {
		w.release()
		return nil, err
	}
	return w, nil
}

// begin marks the target and starts the data.
func (w *Writer) begin() error {
	if err := w.mark(w.record(StateInProgress)); err != nil {
		return err
	}
	if w.form.elf != nil {
		return nil
	}
	if err := w.beginData(); err != nil {
		return err
	}
	if w.opts.Journal {
		w.journal = newJournal(w)
		if err := w.journal.begin(); err != nil {
			return err
		}
		w.journal.start()
	}
	return nil
}

// Journaled says whether the dump has a journal.
func (w *Writer) Journaled() bool { return w.journal != nil }

func (w *Writer) beginData() error {
	// All zero pages point here.
	w.data = newStream(w.disk, w.layout.dataOffset)
	return w.data.append(zeroPage[:])
}

// complete fills in what was left to the Writer.
func (o *Options) complete(pages uint64) error {
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.Writes == 0 {
		o.Writes = 4
	}
	if o.ChunkBytes == 0 {
		o.ChunkBytes = chunkBytesFor(pages)
	}
	if o.IndexPages == 0 {
		o.IndexPages = defaultIndexPages
	}
	if o.Scratch == nil {
		o.Scratch = OpenScratch
	}
	if o.JournalPages == 0 {
		o.JournalPages = journalPagesFor(pages)
	}
	if o.Journal {
		// A worker's pages must fit beside those that wait for the journal.
		o.IndexPages = max(o.IndexPages, 2*storeAll, 2*o.JournalPages)
	}
	if o.JournalPages < 1 || o.Workers < 1 || o.Writes < 1 || o.Bandwidth < 0 || o.IndexPages < 1 || int(o.Codec) >= len(codecNames) {
		return fmt.Errorf("bad options: workers %d, writes %d, bandwidth %d, index pages %d, codec %d", o.Workers, o.Writes,
			o.Bandwidth, o.IndexPages, o.Codec)
	}
	return nil
}

// start allocates the buffers and starts the goroutines.
func (w *Writer) start(room int64) (err error) {
	if w.form.elf == nil {
		w.disk, err = newDisk(w.out, int64(w.opts.ChunkBytes), w.opts.Writes, w.failure, &w.bytesWritten)
		if err != nil {
			return err
		}
		if w.opts.Bandwidth > 0 {
			w.disk.pace = newPace(w.opts.Bandwidth)
		}
	}
	pages := int(min(uint64(w.opts.IndexPages), max(w.meta.Pages, 1)))
	if w.form.flat != nil {
		room = spillBytes(w.meta.Pages, w.opts.IndexPages)
	}
	if w.index, err = newPageIndex(w.out, room, pages, w.failure); err != nil {
		return err
	}
	if w.form.flat != nil {
		w.index.scratch = w.opts.Scratch
	}
	for range w.opts.Workers {
		k, err := newWorker(w.opts.Codec, w.opts.Level)
		if err != nil {
			return err
		}
		k.direct = w.form.elf != nil
		w.pool = append(w.pool, k)
		w.workers <- k
	}
	return nil
}

// release frees what start allocated; nothing uses it any more.
func (w *Writer) release() {
	if w.journal != nil {
		w.journal.stop()
		if known := w.journal.known; known != nil {
			known.free()
			w.journal.known = nil
		}
	}
	if w.disk != nil {
		w.disk.stop()
		w.disk = nil
	}
	if w.index != nil {
		w.index.free()
		w.index = nil
	}
	w.releaseWorkers()
}

func (w *Writer) releaseWorkers() {
	for _, k := range w.pool {
		k.mem.free()
	}
	w.pool = nil
}

// closeIntake takes no more pages and waits for the ones that are being taken. It returns false if that
// was so already.
func (w *Writer) closeIntake() bool {
	w.intake.Lock()
	defer w.intake.Unlock()
	if w.closed {
		return false
	}
	w.closed = true
	return true
}

// halt ends the goroutines and releases everything. Either all work is done, or failure is set.
func (w *Writer) halt() {
	w.closeIntake()
	w.release()
}

func roomOf(out Output) int64 { return out.Size() &^ (PageSize - 1) }

// Add gives pages to the dump: page i's content is data[i*4096:(i+1)*4096]. The caller may reuse
// both slices after the return. A page with PageLost has no content and counts as lost.
//
// The pages are compressed before Add returns, by as many callers at once as there are workers. Add
// blocks while the target is behind with all buffers.
func (w *Writer) Add(pages []PageRef, data []byte) error {
	w.intake.RLock()
	defer w.intake.RUnlock()
	if w.closed {
		return w.closedError()
	}
	if len(data) != len(pages)*PageSize {
		return w.fail(fmt.Errorf("%d bytes for %d pages", len(data), len(pages)))
	}
	var k *worker
	select {
	case k = <-w.workers:
	case <-w.failure.done:
		return w.failure.err
	}
	defer func() { w.workers <- k }()
	k.again = k.again[:0]
	if err := w.failure.get(); err != nil {
		return err
	}
	for i := range pages {
		if pages[i].PFN >= w.meta.MaxPFN {
			return w.fail(fmt.Errorf("page frame %#x is not below max_pfn %#x", pages[i].PFN, w.meta.MaxPFN))
		}
		if w.journal != nil && w.journal.has(pages[i].PFN) {
			k.again = append(k.again, pages[i].PFN)
		} else if err := k.take(&pages[i], data[i*PageSize:][:PageSize]); err != nil {
			return w.fail(err)
		}
		if k.size > (storePages-1)*PageSize || len(k.stored) == storeAll || i == len(pages)-1 {
			if err := w.store(k); err != nil {
				return w.fail(err)
			}
		}
	}
	if len(k.again) > 0 {
		if err := w.durable(k.again); err != nil {
			return w.fail(err)
		}
	}
	return nil
}

func (w *Writer) fail(err error) error {
	w.failure.set(err)
	return err
}

func (w *Writer) closedError() error {
	if err := w.failure.get(); err != nil {
		return err
	}
	return ErrAborted
}

// take compresses a page, unless it is lost or all zeros.
func (k *worker) take(p *PageRef, page []byte) error {
	sp := storedPage{pfn: p.PFN, class: p.Class, flags: uint8(p.Flags & pageFlagsKnown)}
	switch {
	case p.Flags&PageLost != 0:
	case isZero(page):
		sp.crc, sp.size, sp.flags = zeroCRC, PageSize, sp.flags|storedRaw
	default:
		sp.crc = pageCRC(page)
		sp.offset = uint64(k.size) + 1 // relative, and not 0: that is the zero page
		packed, err := k.compress(page)
		if err != nil {
			return err
		}
		sp.size = PageSize
		if packed != nil {
			sp.size = uint16(len(packed))
			k.add(packed)
		} else {
			sp.flags |= storedRaw
			if k.direct {
				k.out = append(k.out, page...)
				page = k.out[len(k.out)-PageSize:]
			}
			k.add(page[:PageSize])
		}
	}
	k.stored = append(k.stored, sp)
	return nil
}

// compress appends the page to out. It returns nil if the page does not shrink: readers take a page of 4096
// bytes for a raw one.
func (k *worker) compress(page []byte) ([]byte, error) {
	if k.c == nil {
		return nil, nil
	}
	start := len(k.out)
	out, err := k.c.appendPage(k.out, page)
	if err != nil || len(out)-start >= PageSize {
		return nil, err
	}
	k.out = out
	return out[start:], nil
}

// add adds a piece, to the one before if it lies behind it in memory.
func (k *worker) add(piece []byte) {
	k.size += len(piece)
	if n := len(k.pieces); n > 0 {
		last := k.pieces[n-1]
		if both := len(last) + len(piece); both <= cap(last) && &last[:both][len(last)] == &piece[0] {
			k.pieces[n-1] = last[:both]
			return
		}
	}
	k.pieces = append(k.pieces, piece)
}

var zeroCRC = pageCRC(zeroPage[:])

// isZero looks at the first bytes first: they decide for most pages.
func isZero(page []byte) bool {
	return binary.LittleEndian.Uint64(page) == 0 && bytes.Equal(page, zeroPage[:])
}

// store appends a worker's bytes to the data and takes note of where the pages are. No page crosses the
// end of a chunk: whatever a chunk says of itself then holds for its pages.
func (w *Writer) store(k *worker) error {
	if w.form.elf != nil {
		if err := w.storeELF(k); err != nil {
			return err
		}
	}
	pieces, st := k.pieces, k.stored
	k.out, k.pieces, k.size, k.stored = k.out[:0], k.pieces[:0], 0, k.stored[:0]
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.roomInIndex(len(st)); err != nil {
		return err
	}
	given := w.pages + w.lost + uint64(len(st))
	if given > w.meta.Pages {
		return fmt.Errorf("more pages were given than the %d of the session", w.meta.Pages)
	}
	before := w.counts
	if w.form.elf != nil { // the bytes are there already
		for _, sp := range st {
			w.counts.add(&sp, sp.offset == 0)
			if err := w.index.add(sp, w.form.elf.size); err != nil {
				return err
			}
		}
		st = nil
	}
	for stored := 0; len(st) > 0; {
		left := w.data.left()
		n, bytes := 0, 0
		for n < len(st) && bytes+st[n].dataBytes() <= left {
			bytes += st[n].dataBytes()
			n++
		}
		if n == 0 {
			if err := w.data.appendZeros(int64(left)); err != nil {
				return err
			}
			continue
		}
		base := w.data.offset
		end := base + int64(bytes)
		if end+w.layout.tailBytes(end, 0) > w.index.limit(roomOf(w.out)) {
			return w.tooSmall(end, given)
		}
		var err error
		if pieces, err = w.data.appendPieces(pieces, bytes); err != nil {
			return err
		}
		for _, sp := range st[:n] {
			w.counts.add(&sp, sp.offset == 0)
			switch {
			case PageFlags(sp.flags)&PageLost != 0:
			case sp.offset == 0:
				sp.offset = uint64(w.layout.dataOffset)
			default:
				sp.offset += uint64(base) - 1 - uint64(stored)
			}
			if err := w.index.add(sp, end); err != nil {
				return err
			}
		}
		stored += bytes
		st = st[n:]
	}
	w.pagesLost.Add(int64(w.lost - before.lost))
	w.pagesDone.Add(int64(w.pages + w.lost - before.pages - before.lost))
	if w.journal != nil {
		w.journal.wakeUp()
	}
	return nil
}

// dataBytes are those that a page has in the data, while its offset is relative.
func (p *storedPage) dataBytes() int {
	if p.offset == 0 {
		return 0
	}
	return int(p.size)
}

// tooSmall projects the size of the whole dump from the pages so far.
func (w *Writer) tooSmall(end int64, pages uint64) error {
	perPage := float64(end-w.layout.dataOffset) / float64(pages)
	whole := w.layout.dataOffset + int64(perPage*float64(w.meta.Pages))
	whole = max(whole, end)
	return &TargetTooSmallError{
		Needed: roundUp(whole+w.layout.tailBytes(whole, 0), PageSize) +
			w.opts.roomAtEnd(&w.meta),
		Available: roomOf(w.out),
		Estimated: true,
	}
}

// Progress is how far a Writer has come.
type Progress struct {
	// Step is Writing, Finishing, Verifying or Done.
	Step          string
	Pages         uint64 // in all, lost ones included
	PagesDone     uint64
	PagesLost     uint64
	BytesWritten  uint64
	BytesReadBack uint64
}

// Progress may be called at any time from any goroutine.
func (w *Writer) Progress() Progress {
	return Progress{
		Step:          *w.step.Load(),
		Pages:         w.meta.Pages,
		PagesDone:     uint64(w.pagesDone.Load()),
		PagesLost:     uint64(w.pagesLost.Load()),
		BytesWritten:  uint64(w.bytesWritten.Load()),
		BytesReadBack: uint64(w.bytesReadBack.Load()),
	}
}

func (w *Writer) durable(pfns []uint64) error {
	if w.opts.Durable == nil {
		return nil
	}
	return w.opts.Durable(pfns)
}

func (w *Writer) setStep(s string) { w.step.Store(&s) }

func (w *Writer) record(state State) Record {
	return Record{State: state, Session: w.meta.Session, FrozenAt: w.meta.FrozenAt, Stop: w.meta.Stop, ClassPages: w.meta.ClassPages}
}

// mark makes block 0 say that this is no dump. A stream is none before its end.
func (w *Writer) mark(r Record) error {
	if w.form.flat != nil {
		return nil
	}
	return writeMarker(w.out, r)
}

// Fail makes everything that goes on or comes return an error, and does not wait for it. Abort must follow.
func (w *Writer) Fail(reason error) { w.failure.set(fmt.Errorf("%w: %w", ErrAborted, reason)) }

// Abort ends the Writer and marks the target as a failed dump. It makes a blocked Add or Finish return.
// The error, if any, is that of writing the mark; whatever it is, the target carries no valid dump.
// Aborting twice, or after a Finish that succeeded, does nothing; one that comes too late to stop a
// Finish under way does nothing either, and the Finish succeeds.
func (w *Writer) Abort(reason error) error {
	if reason == nil {
		reason = ErrAborted
	}
	w.Fail(reason)
	w.closeIntake() // at once, whatever a Finish or the target is doing
	w.ending.Lock()
	defer w.ending.Unlock()
	if w.ended {
		return nil
	}
	w.ended = true
	w.halt()
	r := w.record(StateFailed)
	r.Reason = reason.Error()
	return w.mark(r)
}
