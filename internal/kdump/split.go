// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// SplitWriter makes a dump in several parts, in the form that makedumpfile --split writes: each on a target of its own, with the
// pages of a range of page frames. The parts have the same header, notes and bitmaps; only together are they a dump.
//
// Each part is what a Writer writes, and one Writer writes it. Their errors are one: what fails on one target ends
// all of them. The block 0 of no part is written before every part is complete and was read back, and when one cannot be written the
// others are marked as failed again.
//
// Its methods are those of Writer.
type SplitWriter struct {
	parts   []*Writer
	pages   uint64 // in all, lost ones included
	failure *failure

	ending sync.Mutex
	ended  bool
}

// splitPart says which one a Writer writes.
type splitPart struct {
	PFNRange
	all     *SplitWriter
	failure *failure
}

// NewSplitWriter begins a dump in as many parts as there are outputs. Each gets as much of the node's memory as it has of the room.
func NewSplitWriter(outs []Output, meta Meta, opts Options) (*SplitWriter, error) {
	s := &SplitWriter{pages: meta.Pages, failure: newFailure()}
	opts.Journal = false
	if opts.IndexPages == 0 {
		opts.IndexPages = defaultIndexPages
	}
	opts.IndexPages = max(1, opts.IndexPages/len(outs)) // memory is bounded for all together
	ranges, err := splitRAM(outs, &meta)
	if err != nil {
		return nil, err
	}
	// All is checked before the first target is touched.
	for i, r := range ranges {
		m := meta
		m.Pages = min(meta.Pages, r.End-r.Start)
		w, err := newWriter(outs[i], form{part: &splitPart{PFNRange: r, all: s, failure: s.failure}}, m, opts)
		if err != nil {
			s.halt(err)
			return nil, partError(i, err)
		}
		s.parts = append(s.parts, w)
		w.disk.pace = s.parts[0].disk.pace // one limit for all
	}
	for i, w := range s.parts {
		if err := w.begin(); err != nil {
			s.halt(err)
			return nil, partError(i, err)
		}
	}
	return s, nil
}

func partError(i int, err error) error { return fmt.Errorf("part %d: %w", i+1, err) }

func (s *SplitWriter) halt(err error) {
	s.failure.set(err)
	for _, w := range s.parts {
		w.halt()
	}
}

// MaxParts bounds memory: each part has buffers of its own.
const MaxParts = 16

// partStep is what each part begins at a multiple of: crash counts the pages before a given one in words of the bitmap, from the
// word that has the first page frame of the part.
const partStep = 64

// splitRAM says which page frames go to which output.
func splitRAM(outs []Output, meta *Meta) ([]PFNRange, error) {
	if len(outs) < 2 || len(outs) > MaxParts {
		return nil, fmt.Errorf("a dump is split among 2 to %d targets, not %d", MaxParts, len(outs))
	}
	if err := meta.validate(); err != nil {
		return nil, err
	}
	others := uint64(len(outs) - 1)
	if meta.MaxPFN <= others*partStep { // no part is without a page frame
		return nil, fmt.Errorf("%d page frames cannot be split among %d targets", meta.MaxPFN, len(outs))
	}
	lastStart := (meta.MaxPFN - 1) / partStep * partStep
	most, err := MaxSize(meta.MaxPFN, meta.Pages, len(meta.Notes))
	if err != nil {
		return nil, err
	}
	var room, ram, roomBefore, ramBefore uint64
	for _, out := range outs {
		room += uint64(min(roomOf(out), most)) >> 12 // what is never used does not count
	}
	merged := mergeRanges(meta.RAM)
	for _, r := range merged {
		ram += r.End - r.Start
	}
	ranges := make([]PFNRange, len(outs))
	start := uint64(0)
	for i, out := range outs {
		roomBefore += uint64(min(roomOf(out), most)) >> 12
		wanted := uint64(float64(ram) * float64(roomBefore) / float64(max(room, 1))) // RAM up to the end of this part
		for len(merged) > 0 && ramBefore+merged[0].End-merged[0].Start <= wanted {
			ramBefore += merged[0].End - merged[0].Start
			merged = merged[1:]
		}
		end := meta.MaxPFN
		if i < len(outs)-1 {
			if len(merged) > 0 {
				end = max(start, merged[0].Start+wanted-ramBefore)
			}
			end = min(max(end/partStep*partStep, start+partStep), lastStart-(others-1-uint64(i))*partStep)
		}
		ranges[i] = PFNRange{start, end}
		start = end
	}
	return ranges, nil
}

// Add is Writer.Add.
func (s *SplitWriter) Add(pages []PageRef, data []byte) error {
	if len(data) != len(pages)*PageSize {
		return s.parts[0].fail(fmt.Errorf("%d bytes for %d pages", len(data), len(pages)))
	}
	for start := 0; start < len(pages); {
		w := s.partOf(pages[start].PFN)
		end := start + 1
		for end < len(pages) && s.partOf(pages[end].PFN) == w {
			end++
		}
		if err := w.Add(pages[start:end], data[start*PageSize:end*PageSize]); err != nil {
			return err
		}
		start = end
	}
	return nil
}

// partOf is the part that a page belongs to; the last takes what is out of bounds, and complains.
func (s *SplitWriter) partOf(pfn uint64) *Writer {
	for _, w := range s.parts {
		if pfn < w.form.part.End {
			return w
		}
	}
	return s.parts[len(s.parts)-1]
}

// Finish is Writer.Finish.
func (s *SplitWriter) Finish(ctx context.Context) (Summary, error) {
	s.ending.Lock()
	defer s.ending.Unlock()
	for _, w := range s.parts {
		if !w.closeIntake() {
			return Summary{}, w.closedError()
		}
	}
	ctx, release := s.failure.bind(ctx)
	defer release()
	sum, err := s.finish(ctx)
	if err != nil {
		s.failure.set(err)
		return Summary{}, err
	}
	s.ended = true
	for _, w := range s.parts {
		w.halt()
		w.setStep("Done")
	}
	return sum, nil
}

func (s *SplitWriter) finish(ctx context.Context) (Summary, error) {
	given := uint64(0)
	for _, w := range s.parts {
		given += w.pages + w.lost
		w.releaseWorkers()
	}
	if err := s.failure.get(); err != nil {
		return Summary{}, err
	}
	if given != s.pages {
		return Summary{}, fmt.Errorf("%w: %d of %d were given", ErrPagesMissing, given, s.pages)
	}
	sum := Summary{ReadBack: true}
	ends := make([]*ending, len(s.parts))
	defer func() {
		for _, e := range ends {
			if e != nil {
				e.free()
			}
		}
	}()
	// One after the other: each needs what all know of pages, for the bitmaps.
	for i, w := range s.parts {
		var err error
		if ends[i], err = w.writeRest(); err != nil {
			return Summary{}, partError(i, err)
		}
		sum.Bytes += ends[i].rec.Size
	}
	for _, w := range s.parts {
		w.index.free()
		w.index = nil
	}
	errs := make([]error, len(s.parts))
	var verifying sync.WaitGroup
	for i, w := range s.parts {
		verifying.Go(func() {
			// Readers want the same number of blocks in all headers.
			if err := w.verify(ctx, ends[i], sum.Bytes); err != nil {
				errs[i] = partError(i, err)
				s.failure.set(errs[i])
			}
		})
	}
	verifying.Wait()
	if err := s.failure.get(); err != nil {
		return Summary{}, err
	}
	for i, w := range s.parts {
		if err := w.writeBlock0(ends[i].block.b); err != nil {
			return Summary{}, partError(i, err)
		}
		p := ends[i].summary()
		sum.ReadBack = sum.ReadBack && p.ReadBack
		sum.Pages += p.Pages
		sum.Lost += p.Lost
		sum.Uncovered += p.Uncovered
		sum.ZeroPages += p.ZeroPages
		sum.Parts = append(sum.Parts, p)
	}
	return sum, nil
}

// Abort is Writer.Abort, of every part.
func (s *SplitWriter) Abort(reason error) error {
	if reason == nil {
		reason = ErrAborted
	}
	s.Fail(reason)
	for _, w := range s.parts {
		w.closeIntake()
	}
	s.ending.Lock()
	defer s.ending.Unlock()
	if s.ended {
		return nil
	}
	s.ended = true
	var errs []error
	for i, w := range s.parts {
		if err := w.Abort(reason); err != nil {
			errs = append(errs, partError(i, err))
		}
	}
	return errors.Join(errs...)
}

// Fail is Writer.Fail.
func (s *SplitWriter) Fail(reason error) { s.parts[0].Fail(reason) }

// Progress is that of all parts together.
func (s *SplitWriter) Progress() Progress {
	sum := s.parts[0].Progress()
	sum.Pages = s.pages
	for _, w := range s.parts[1:] {
		p := w.Progress()
		sum.PagesDone += p.PagesDone
		sum.PagesLost += p.PagesLost
		sum.BytesWritten += p.BytesWritten
		sum.BytesReadBack += p.BytesReadBack
	}
	return sum
}
