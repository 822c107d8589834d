// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// Options of a Writer. The zero value is good.
type Options struct {
	Codec Codec
	// Workers compress pages. 0: GOMAXPROCS.
	Workers int
	// Writes are under way at once. 0: 4.
	Writes int
	// ChunkBytes is the size of a write and of the piece that one checksum covers, a multiple of
	// 4096. 0: DefaultChunkBytes.
	ChunkBytes int
}

const (
	jobDataPages = 64  // pages with content that one job of a worker carries
	jobPages     = 256 // pages of a job, zero ones included
)

var zeroPage [PageSize]byte

// Writer turns a target into a dump.
//
// Add and AddLost may be called from several goroutines. After the last of them has returned comes
// Finish, or, from any goroutine at any time, Abort. Once any method has returned an error the dump
// is lost and only Abort makes sense. A Writer that is neither finished nor aborted leaks memory and
// leaves the target marked as in progress.
type Writer struct {
	out    Output
	opts   Options
	meta   Meta
	layout layout
	phys   int64

	failure *failure
	disk    *disk
	jobs    chan *job
	idle    chan *job
	pool    []*aligned
	workers sync.WaitGroup

	// intake is held shared by Add, and alone for the moment in which the Writer is closed.
	intake sync.RWMutex
	closed bool // takes no more pages

	ending sync.Mutex // held by Finish and Abort
	ended  bool       // the target has its last block 0

	seen  bitmap // pages given, lost ones included
	lost  bitmap
	nLost atomic.Int64

	mu        sync.Mutex // data, pages, counts
	data      *stream
	pages     []storedPage
	zeros     uint64
	uncovered uint64

	pagesDone     atomic.Int64
	bytesWritten  atomic.Int64
	bytesReadBack atomic.Int64
	step          atomic.Pointer[string]
}

// storedPage is where a page is, until Finish makes a descriptor of it: 24 bytes.
type storedPage struct {
	pfn    uint64
	offset uint64
	crc    uint32
	size   uint16
	class  Class
	flags  uint8 // PageFlags, and storedRaw
}

const storedRaw = 1 << 7

// job is work for a worker: pages in entries, the content of those that are not zero in buf.
type job struct {
	entries []jobEntry
	buf     *aligned
	n       int // pages in buf
}

type jobEntry struct {
	PageRef
	zero bool
}

// NewWriter checks that the target can hold the dump at all (else *TargetTooSmallError, and nothing
// has been written), marks block 0 as a dump in progress, and gets ready for pages.
func NewWriter(out Output, meta Meta, opts Options) (*Writer, error) {
	if opts.Workers == 0 {
		opts.Workers = runtime.GOMAXPROCS(0)
	}
	if opts.Writes == 0 {
		opts.Writes = 4
	}
	if opts.ChunkBytes == 0 {
		opts.ChunkBytes = DefaultChunkBytes
	}
	if opts.Workers < 1 || opts.Writes < 1 || int(opts.Codec) >= len(codecNames) {
		return nil, fmt.Errorf("bad options: %+v", opts)
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
	if room := roomOf(out); least > room {
		return nil, &TargetTooSmallError{Needed: least, Available: room}
	}

	meta.Notes = bytes.Clone(meta.Notes)
	meta.RAM = slices.Clone(meta.RAM)
	w := &Writer{
		out: out, opts: opts, meta: meta, layout: l, phys: phys,
		failure: newFailure(),
		seen:    newBitmap(meta.MaxPFN),
		lost:    newBitmap(meta.MaxPFN),
		pages:   make([]storedPage, 0, meta.Pages),
	}
	w.setStep("Writing")
	if err := w.start(); err != nil {
		w.release()
		return nil, err
	}
	if err := writeMarker(out, w.record(StateInProgress)); err != nil {
		w.failure.set(err)
		w.halt()
		return nil, err
	}
	// All zero pages point here.
	w.data = newStream(w.disk, l.dataOffset)
	if err := w.data.append(zeroPage[:]); err != nil {
		w.halt()
		return nil, err
	}
	return w, nil
}

// start allocates the buffers and starts the goroutines.
func (w *Writer) start() error {
	d, err := newDisk(w.out, int64(w.opts.ChunkBytes), w.opts.Writes, w.failure, &w.bytesWritten)
	if err != nil {
		return err
	}
	w.disk = d
	n := 2 * w.opts.Workers
	w.jobs = make(chan *job, n)
	w.idle = make(chan *job, n)
	compressors := make([]compressor, w.opts.Workers)
	for i := range compressors {
		if compressors[i], err = newCompressor(w.opts.Codec); err != nil {
			return err
		}
	}
	for range n {
		b, err := newAligned(jobDataPages * PageSize)
		if err != nil {
			return err
		}
		w.pool = append(w.pool, b)
		w.idle <- &job{buf: b, entries: make([]jobEntry, 0, jobPages)}
	}
	for _, c := range compressors {
		w.workers.Go(func() { w.work(c) })
	}
	return nil
}

// release frees what start allocated; nothing uses it any more.
func (w *Writer) release() {
	if w.disk != nil {
		w.disk.stop()
		w.disk = nil
	}
	for _, b := range w.pool {
		b.free()
	}
	w.pool = nil
}

// closeIntake takes no more pages. It returns false if that was so already.
func (w *Writer) closeIntake() bool {
	w.intake.Lock()
	defer w.intake.Unlock()
	if w.closed {
		return false
	}
	w.closed = true
	close(w.jobs)
	return true
}

// halt ends the goroutines and releases everything. Either all work is done, or failure is set.
func (w *Writer) halt() {
	w.closeIntake()
	w.workers.Wait()
	w.release()
}

func roomOf(out Output) int64 { return out.Size() &^ (PageSize - 1) }

// Add gives pages to the dump: page i's content is data[i*4096:(i+1)*4096]. The caller may reuse
// both slices after the return. A page with PageLost has no content and counts as lost.
//
// Add blocks while all buffers are in use.
func (w *Writer) Add(pages []PageRef, data []byte) error {
	w.intake.RLock()
	defer w.intake.RUnlock()
	if w.closed {
		return w.closedError()
	}
	if len(data) != len(pages)*PageSize {
		return w.fail(fmt.Errorf("%d bytes for %d pages", len(data), len(pages)))
	}
	var j *job
	for i, p := range pages {
		if err := w.admit(p.PFN); err != nil {
			return w.fail(err)
		}
		if p.Flags&PageLost != 0 {
			w.recordLost(p.PFN)
			continue
		}
		if j == nil {
			var err error
			if j, err = w.takeJob(); err != nil {
				return err
			}
		}
		page := data[i*PageSize:][:PageSize]
		zero := bytes.Equal(page, zeroPage[:])
		j.entries = append(j.entries, jobEntry{PageRef: p, zero: zero})
		if !zero {
			copy(j.buf.b[j.n*PageSize:], page)
			j.n++
		}
		if j.n == jobDataPages || len(j.entries) == jobPages {
			w.jobs <- j // has room for every job
			j = nil
		}
	}
	if j != nil {
		w.jobs <- j
	}
	return nil
}

// AddLost says that a page's content could not be kept. It is left out of the dump, counted and listed.
func (w *Writer) AddLost(pfn uint64) error {
	w.intake.RLock()
	defer w.intake.RUnlock()
	if w.closed {
		return w.closedError()
	}
	if err := w.admit(pfn); err != nil {
		return w.fail(err)
	}
	w.recordLost(pfn)
	return nil
}

func (w *Writer) recordLost(pfn uint64) {
	w.lost.set(pfn)
	w.nLost.Add(1)
	w.pagesDone.Add(1)
}

func (w *Writer) admit(pfn uint64) error {
	if pfn >= w.meta.MaxPFN {
		return fmt.Errorf("page frame %#x is not below max_pfn %#x", pfn, w.meta.MaxPFN)
	}
	if w.seen.set(pfn) {
		return fmt.Errorf("%w: page frame %#x", ErrDuplicatePage, pfn)
	}
	return nil
}

func (w *Writer) takeJob() (*job, error) {
	if err := w.failure.get(); err != nil {
		return nil, err
	}
	select {
	case j := <-w.idle:
		return j, nil
	case <-w.failure.done:
		return nil, w.failure.err
	}
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

// work is the loop of one compression worker.
func (w *Writer) work(c compressor) {
	out := make([]byte, 0, jobDataPages*PageSize+compressedRoom)
	stored := make([]storedPage, 0, jobPages)
	for j := range w.jobs {
		if w.failure.get() == nil {
			if err := w.compressJob(c, j, &out, &stored); err != nil {
				w.failure.set(err)
			}
		}
		j.entries, j.n = j.entries[:0], 0
		w.idle <- j
	}
}

// compressJob compresses the pages of a job into out, one after the other, and hands them on in one go.
func (w *Writer) compressJob(c compressor, j *job, out *[]byte, stored *[]storedPage) error {
	b, st := (*out)[:0], (*stored)[:0]
	k := 0
	for _, e := range j.entries {
		sp := storedPage{pfn: e.PFN, class: e.Class, flags: uint8(e.Flags & pageFlagsKnown)}
		if e.zero {
			sp.crc, sp.size, sp.flags = zeroCRC, PageSize, sp.flags|storedRaw
			st = append(st, sp)
			continue
		}
		page := j.buf.b[k*PageSize:][:PageSize]
		k++
		start := len(b)
		packed, err := c.appendPage(b, page)
		if err != nil {
			return err
		}
		if len(packed)-start >= PageSize {
			// Readers take a page of 4096 bytes for a raw one, so what does not shrink is stored as it is.
			packed = append(b[:start], page...)
			sp.flags |= storedRaw
		}
		b = packed
		sp.crc = pageCRC(page)
		sp.size = uint16(len(b) - start)
		sp.offset = uint64(start) + 1 // relative, and not 0: that is the zero page
		st = append(st, sp)
	}
	*out, *stored = b, st
	return w.store(b, st)
}

var zeroCRC = pageCRC(zeroPage[:])

// store appends a worker's bytes to the data and takes note of where the pages are.
func (w *Writer) store(b []byte, st []storedPage) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(st) > cap(w.pages)-len(w.pages) {
		return fmt.Errorf("more pages were given than the %d of the session", w.meta.Pages)
	}
	base := w.data.offset
	end := base + int64(len(b))
	if room := roomOf(w.out); end+w.layout.tailBytes(end, 0) > room {
		return w.tooSmall(end, uint64(len(w.pages)+len(st)), room)
	}
	if err := w.data.append(b); err != nil {
		return err
	}
	for _, sp := range st {
		if sp.offset == 0 {
			sp.offset = uint64(w.layout.dataOffset)
			w.zeros++
		} else {
			sp.offset += uint64(base) - 1
		}
		if PageFlags(sp.flags)&PageUncovered != 0 {
			w.uncovered++
		}
		w.pages = append(w.pages, sp)
	}
	w.pagesDone.Add(int64(len(st)))
	return nil
}

// tooSmall projects the size of the whole dump from the pages so far.
func (w *Writer) tooSmall(end int64, pages uint64, room int64) error {
	perPage := float64(end-w.layout.dataOffset) / float64(pages)
	whole := w.layout.dataOffset + int64(perPage*float64(w.meta.Pages))
	whole = max(whole, end)
	return &TargetTooSmallError{
		Needed:    roundUp(whole+w.layout.tailBytes(whole, 0), PageSize),
		Available: room,
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
		PagesLost:     uint64(w.nLost.Load()),
		BytesWritten:  uint64(w.bytesWritten.Load()),
		BytesReadBack: uint64(w.bytesReadBack.Load()),
	}
}

func (w *Writer) setStep(s string) { w.step.Store(&s) }

func (w *Writer) record(state State) Record {
	return Record{State: state, Session: w.meta.Session, FrozenAt: w.meta.FrozenAt, Stop: w.meta.Stop, ClassPages: w.meta.ClassPages}
}

// Abort ends the Writer and marks the target as a failed dump. It makes a blocked Add or Finish return.
// The error, if any, is that of writing the mark; whatever it is, the target carries no valid dump.
// Aborting twice, or after a Finish that succeeded, does nothing; one that comes too late to stop a
// Finish under way does nothing either, and the Finish succeeds.
func (w *Writer) Abort(reason error) error {
	if reason == nil {
		reason = ErrAborted
	}
	w.failure.set(fmt.Errorf("%w: %w", ErrAborted, reason))
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
	return writeMarker(w.out, r)
}
