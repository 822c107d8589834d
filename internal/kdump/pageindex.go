// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"cmp"
	"container/heap"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"unsafe"
)

// pageIndex keeps what will become the descriptors until all pages have been given, for they come in
// any order and their place depends on all of them. It takes memory for two runs of pages at most:
// a full run is sorted and written to the end of the target, below the run before it, and all runs
// are merged when the pages are asked for in order. Nothing of that stays in the dump. Where the target
// cannot be read back, runs go to a scratch file.
//
// One goroutine at a time calls its methods.
type pageIndex struct {
	out      Output
	aead     cipher.AEAD
	scratch  func(room int64) (Scratch, error) // nil: out takes the runs
	opened   Scratch
	runPages int
	failure  *failure

	active *run
	spare  chan *run // the other run, while it is not being written

	spilling sync.WaitGroup
	spilled  []*spilledRun
	bottom   int64 // of what is spilled: data must end before it, if it is spilled to the target
}

// run is an unsorted part of the index. It lies outside the Go heap, and takes memory as it fills.
type run struct {
	mem   *aligned
	pages []storedPage
}

type spilledRun struct {
	offset int64
	pages  int
	tags   []pieceTag // of each indexPiece
	sums   []uint32   // instead, for a run in the journal, which is not encrypted: CRC-32C of each
}

// pieceTag is what authenticates a piece; it stays in memory.
type pieceTag [16]byte

const storedPageBytes = 24

// The size of storedPage is that of a descriptor: what spills is never more than the table.
var _ [storedPageBytes]byte = [unsafe.Sizeof(storedPage{})]byte{}

func newRun(pages int) (*run, error) {
	mem, err := newAligned(pages * storedPageBytes)
	if err != nil {
		return nil, err
	}
	return &run{mem: mem, pages: unsafe.Slice((*storedPage)(unsafe.Pointer(&mem.b[0])), pages)[:0]}, nil
}

func newPageIndex(out Output, room int64, runPages int, f *failure) (*pageIndex, error) {
	aead, err := newPieceCipher()
	if err != nil {
		return nil, err
	}
	if s, ok := out.(Spiller); ok {
		out = s.Spill()
	}
	x := &pageIndex{out: out, aead: aead, runPages: runPages, failure: f, spare: make(chan *run, 1), bottom: room}
	for range 2 {
		r, err := newRun(runPages)
		if err != nil {
			x.free()
			return nil, err
		}
		if x.active == nil {
			x.active = r
		} else {
			x.spare <- r
		}
	}
	return x, nil
}

// limit is where the data of the dump must end.
func (x *pageIndex) limit(room int64) int64 {
	if x.scratch != nil {
		return room
	}
	return x.bottom
}

// free waits for writes under way.
func (x *pageIndex) free() {
	x.spilling.Wait()
	if x.opened != nil {
		_ = x.opened.Close() // nothing of it is needed any more
		x.opened = nil
	}
	if x.active != nil {
		x.active.mem.free()
		x.active = nil
	}
	select {
	case r := <-x.spare:
		r.mem.free()
	default:
	}
}

// spillBytes is the room that n pages take at the end of the target while a dump is being written.
func spillBytes(n uint64, runPages int) int64 {
	if n <= uint64(runPages) {
		return 0
	}
	return int64((n-1)/uint64(runPages)) * runBytes(runPages)
}

func runBytes(pages int) int64 { return roundUp(int64(pages)*storedPageBytes, PageSize) }

// add takes a page. data is where the data of the dump ends so far.
func (x *pageIndex) add(p storedPage, data int64) error {
	if len(x.active.pages) == x.runPages {
		if err := x.spill(data); err != nil {
			return err
		}
	}
	x.active.pages = append(x.active.pages, p) // never beyond the capacity
	return nil
}

// spill hands the active run over to be written, and waits until the one before it has been.
func (x *pageIndex) spill(data int64) error {
	if x.scratch != nil && x.opened == nil {
		s, err := x.scratch(x.bottom)
		if err != nil {
			return fmt.Errorf("a scratch file for the whereabouts of pages: %w", err)
		}
		x.opened, x.out = s, s
	}
	bottom := x.bottom - runBytes(len(x.active.pages))
	if x.scratch != nil {
		data = 0
	}
	if bottom < data {
		return &TargetTooSmallError{Needed: data + x.bottom - bottom, Available: x.bottom, Estimated: true}
	}
	var next *run
	select {
	case next = <-x.spare:
	case <-x.failure.done:
		return x.failure.err
	}
	full := x.active
	x.active, x.bottom = next, bottom
	s := &spilledRun{offset: bottom, pages: len(full.pages)}
	x.spilled = append(x.spilled, s)
	x.spilling.Go(func() {
		sortPages(full.pages)
		used := full.mem.b[:runBytes(len(full.pages))]
		var room [indexPiece + len(pieceTag{})]byte
		for off := 0; off < len(used); off += indexPiece {
			piece := used[off:min(len(used), off+indexPiece)]
			sealed := x.aead.Seal(room[:0], pieceNonce(bottom+int64(off)), piece, nil)
			copy(piece, sealed)
			s.tags = append(s.tags, pieceTag(sealed[len(piece):]))
		}
		for off := 0; off < len(used) && x.failure.get() == nil; off += DefaultChunkBytes {
			part := used[off:min(len(used), off+DefaultChunkBytes)]
			if err := writeAt(x.out, part, bottom+int64(off)); err != nil {
				x.failure.set(err)
			}
		}
		full.pages = full.pages[:0]
		x.spare <- full
	})
	return nil
}

// sortPages puts pages in order. Those from several goroutines are in order but for a little, which sorting by comparisons
// alone makes nothing of: so each page first goes to its part of all page frames, in place, and then the parts are sorted the
// same way.
func sortPages(p []storedPage) {
	if len(p) < 128 {
		slices.SortFunc(p, func(a, b storedPage) int { return cmp.Compare(a.pfn, b.pfn) })
		return
	}
	low, high, sorted := p[0].pfn, p[0].pfn, true
	for i := 1; i < len(p); i++ {
		sorted = sorted && p[i-1].pfn <= p[i].pfn
		low, high = min(low, p[i].pfn), max(high, p[i].pfn)
	}
	if sorted {
		return
	}
	const parts = 1 << 8
	shift := max(0, bits.Len64(high-low)-bits.Len(parts-1))
	part := func(s *storedPage) uint64 { return (s.pfn - low) >> shift }
	var next, end [parts]int // of each part: where its next page goes, and where it ends
	for i := range p {
		end[part(&p[i])]++
	}
	at := 0
	for i := range end {
		next[i] = at
		at += end[i]
		end[i] = at
	}
	for i := range next {
		for next[i] < end[i] {
			s := &p[next[i]]
			k := part(s)
			if k != uint64(i) {
				*s, p[next[k]] = p[next[k]], *s
			}
			next[k]++
		}
	}
	if shift == 0 {
		return // each part is one page frame
	}
	start := 0
	for _, e := range end {
		sortPages(p[start:e])
		start = e
	}
}

// each calls f for every page, lost ones included, in order of page frames. A page that was given twice
// is ErrDuplicatePage. It may be called several times, after the last add.
func (x *pageIndex) each(f func(*storedPage) error) error {
	x.spilling.Wait()
	if err := x.failure.get(); err != nil {
		return err
	}
	sortPages(x.active.pages)
	last, found := uint64(0), false
	inOrder := func(p *storedPage) error {
		if found && p.pfn == last {
			return fmt.Errorf("%w: page frame %#x", ErrDuplicatePage, p.pfn)
		}
		last, found = p.pfn, true
		return f(p)
	}
	if len(x.spilled) == 0 {
		for i := range x.active.pages {
			if err := inOrder(&x.active.pages[i]); err != nil {
				return err
			}
		}
		return nil
	}
	return x.merge(inOrder)
}

// newPieceCipher makes a key that is nowhere else.
func newPieceCipher() (cipher.AEAD, error) {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, fmt.Errorf("key of the page index: %w", err)
	}
	return cipher.NewGCM(block)
}

// pieceNonce is the place of a piece: each place is written once.
func pieceNonce(offset int64) []byte {
	var n [12]byte
	binary.LittleEndian.PutUint64(n[:], uint64(offset))
	return n[:]
}

const (
	// Whole pages of the index lie in whole blocks of the target here. Each such piece is encrypted by itself.
	indexPiece = 3 * PageSize

	mergeBytes    = 16 << 20        // of memory for all runs together
	mergeRunBytes = 80 * indexPiece // for one, at most
)

func (x *pageIndex) merge(f func(*storedPage) error) error {
	part := min(mergeRunBytes, max(1, mergeBytes/indexPiece/len(x.spilled))*indexPiece)
	mem, err := newAligned(part * len(x.spilled))
	if err != nil {
		return err
	}
	defer mem.free()
	var h mergeHeap
	if len(x.active.pages) > 0 {
		h = append(h, &mergeSource{head: x.active.pages})
	}
	for i, r := range x.spilled {
		s := &mergeSource{out: x.out, aead: x.aead, buf: mem.b[i*part:][:part], offset: r.offset, left: r.pages, tags: r.tags, sums: r.sums}
		if err := s.fill(); err != nil {
			return err
		}
		h = append(h, s)
	}
	heap.Init(&h)
	for len(h) > 0 {
		s := h[0]
		// Runs hardly overlap: mostly, many pages of one come before all of the others.
		limit := h.second()
		for {
			if err := f(&s.head[0]); err != nil {
				return err
			}
			if s.head = s.head[1:]; len(s.head) == 0 {
				if err := s.fill(); err != nil {
					return err
				}
			}
			if len(s.head) == 0 {
				heap.Pop(&h)
				break
			}
			if s.head[0].pfn >= limit {
				heap.Fix(&h, 0)
				break
			}
		}
	}
	return nil
}

// mergeSource is a run that is being merged: what is in memory of it, and where the rest is.
type mergeSource struct {
	head   []storedPage
	out    Output
	aead   cipher.AEAD
	buf    []byte
	offset int64
	left   int // pages not yet read
	tags   []pieceTag
	sums   []uint32
}

// fill reads on. head is empty afterwards if the run has ended.
func (s *mergeSource) fill() error {
	n := min(len(s.buf)/storedPageBytes, s.left)
	if n == 0 {
		s.head = nil
		return nil
	}
	b := s.buf[:roundUp(int64(n)*storedPageBytes, PageSize)]
	if k, err := s.out.ReadAt(b, s.offset); k < len(b) {
		return fmt.Errorf("reading back the page index: %w", unexpectedEOF(err))
	}
	var room [indexPiece + len(pieceTag{})]byte
	for off := 0; off < len(b); off += indexPiece {
		piece := b[off:min(len(b), off+indexPiece)]
		if s.sums != nil {
			if pageCRC(piece) != s.sums[0] {
				return fmt.Errorf("%w: the journal, at %d", ErrReadBack, s.offset+int64(off))
			}
			s.sums = s.sums[1:]
			continue
		}
		plain, err := s.aead.Open(room[:0], pieceNonce(s.offset+int64(off)), append(append(room[:0], piece...), s.tags[0][:]...), nil)
		if err != nil {
			return fmt.Errorf("%w: the page index, at %d", ErrReadBack, s.offset+int64(off))
		}
		copy(piece, plain)
		s.tags = s.tags[1:]
	}
	s.offset += int64(len(b))
	s.left -= n
	s.head = unsafe.Slice((*storedPage)(unsafe.Pointer(&b[0])), n)
	return nil
}

type mergeHeap []*mergeSource

func (h mergeHeap) Len() int           { return len(h) }
func (h mergeHeap) Less(i, j int) bool { return h[i].head[0].pfn < h[j].head[0].pfn }
func (h mergeHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *mergeHeap) Push(v any)        { *h = append(*h, v.(*mergeSource)) }
func (h *mergeHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// second is the first page frame of all runs but the first.
func (h mergeHeap) second() uint64 {
	limit := ^uint64(0)
	for _, i := range []int{1, 2} {
		if i < len(h) {
			limit = min(limit, h[i].head[0].pfn)
		}
	}
	return limit
}
