// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// journal keeps on the target what another process needs to go on with a dump, where the index spills
// to: below the end of the target, segment after segment, each below the one before. The first has the
// Meta; the others are runs of the index, whose pages are all in chunks that are on the target.
//
// A segment counts from the moment it is on stable storage, and only then its pages are called durable.
// The next one is begun only after that. So of all segments only the last can be torn.
type journal struct {
	w    *Writer
	step int // pages that make a segment
	// generation is a number that nobody else takes: of two dumps with one session the older must not be taken for the
	// younger one's continuation.
	generation uint64

	// Of what is in the journal. One goroutine at a time, which has writing.
	writing sync.Mutex
	top     int64 // the next segment ends here
	seq     uint64
	chunk   int64 // whose checksum is the next to be kept
	kept    counts

	known *aligned // a bit for each page frame: in the journal since before this Writer. nil: none

	wake    chan struct{}
	freed   chan struct{} // under Writer.mu: closed when the active run has got shorter
	quit    chan struct{}
	running sync.WaitGroup
	stopped sync.Once
}

const (
	journalEvery = time.Second

	// The journal of the largest dump has some thousands of segments, for their checksums and a piece of
	// each, when they are merged, are in memory.
	journalSegments = 1024
	leastSegment    = 4096
)

func journalPagesFor(pages uint64) int { return int(max(leastSegment, pages/journalSegments)) }

// journalMeta is what the first segment holds, in JSON.
type journalMeta struct {
	Meta       Meta   `json:"meta"`
	Codec      string `json:"codec"`
	CodecLevel int    `json:"codecLevel"`
	ChunkBytes int    `json:"chunkBytes"`
	State      []byte `json:"state,omitempty"`
}

func newJournal(w *Writer) *journal {
	return &journal{
		w: w, step: w.opts.JournalPages, top: roomOf(w.out), chunk: w.layout.dataOffset / w.layout.chunkBytes,
		wake: make(chan struct{}, 1), freed: make(chan struct{}), quit: make(chan struct{}),
	}
}

// begin writes the first segment.
func (j *journal) begin() error {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	j.generation = binary.LittleEndian.Uint64(random[:])
	o := &j.w.opts
	blob, err := json.Marshal(journalMeta{Meta: j.w.meta, Codec: o.Codec.String(), CodecLevel: o.Level, ChunkBytes: o.ChunkBytes, State: o.State})
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return j.writeBlob(segmentMeta, blob)
}

// start begins to write segments as pages come.
func (j *journal) start() {
	j.w.disk.onWrite = j.wakeUp
	j.running.Go(func() {
		tick := time.NewTicker(journalEvery)
		defer tick.Stop()
		for {
			least := j.step
			select {
			case <-j.quit:
				return
			case <-j.w.failure.done:
				return
			case <-j.wake:
			case <-tick.C:
				least = (j.step + 1) / 2
			}
			if err := j.commit(least); err != nil {
				j.w.failure.set(err)
				return
			}
		}
	})
}

// stop returns when nothing is written any more. It may be called several times.
func (j *journal) stop() {
	j.stopped.Do(func() { close(j.quit) })
	j.running.Wait()
}

func (j *journal) wakeUp() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// has says whether a page was in the journal before this Writer.
func (j *journal) has(pfn uint64) bool {
	return j.known != nil && pfn < j.w.meta.MaxPFN && j.known.b[pfn/8]>>(pfn%8)&1 != 0
}

// roomInIndex waits until a journal has taken enough pages for n more. Under Writer.mu, which it lets go meanwhile.
func (w *Writer) roomInIndex(n int) error {
	j := w.journal
	if j == nil {
		return nil // the index spills by itself
	}
	for len(w.index.active.pages)+n > w.index.runPages {
		// Nothing more comes that could fill the chunk.
		if left := w.data.left(); w.data.cur != nil {
			if err := w.data.appendZeros(int64(left)); err != nil {
				return err
			}
		}
		freed := j.freed
		w.mu.Unlock()
		j.wakeUp()
		select {
		case <-freed:
		case <-w.failure.done:
		}
		w.mu.Lock()
		if err := w.failure.get(); err != nil {
			return err
		}
	}
	return nil
}

// commit writes a segment if that many pages can go into one.
func (j *journal) commit(least int) error {
	j.writing.Lock()
	defer j.writing.Unlock()
	w := j.w
	w.mu.Lock()
	written := w.disk.writtenTo(w.data.offset - w.data.offset%w.layout.chunkBytes)
	full, s, err := j.take(least, written)
	w.mu.Unlock()
	if full == nil || err != nil {
		return err
	}
	return j.writePages(full, s)
}

// take moves the pages whose data ends before written from the index to a segment. Under Writer.mu. The run is
// nil if there are too few.
func (j *journal) take(least int, written int64) (*run, *segment, error) {
	w := j.w
	x := w.index
	durable := func(p *storedPage) bool {
		return p.offset <= uint64(w.layout.dataOffset) || p.offset+uint64(p.size) <= uint64(written)
	}
	n := 0
	for i := range x.active.pages {
		if durable(&x.active.pages[i]) {
			n++
		}
	}
	if n < max(1, least) {
		return nil, nil, nil
	}
	// Whoever writes segments has the other run back when it is done.
	next := <-x.spare
	full := x.active
	kept := full.pages[:0]
	for _, p := range full.pages {
		if durable(&p) {
			kept = append(kept, p)
			j.kept.add(&p, p.offset == uint64(w.layout.dataOffset))
		} else {
			next.pages = append(next.pages, p)
		}
	}
	full.pages = kept
	x.active = next
	s, err := j.newPages(n, written)
	if err != nil {
		return nil, nil, err
	}
	close(j.freed)
	j.freed = make(chan struct{})
	return full, s, nil
}

// newPages has the room for a segment with n pages, and the checksums of the chunks that were written since the last.
// Under Writer.mu.
func (j *journal) newPages(n int, written int64) (*segment, error) {
	w := j.w
	s := &segment{kind: segmentPages, pages: n, body: int64(n) * storedPageBytes, dataEnd: written, counts: j.kept,
		firstChunk: j.chunk}
	if end := written / w.layout.chunkBytes; end > j.chunk {
		w.disk.mu.Lock()
		s.sums = slices.Clone(w.disk.sums[j.chunk:end])
		w.disk.mu.Unlock()
		j.chunk = end
	}
	return s, j.makeRoom(s)
}

// makeRoom keeps the data away from where a segment will be. Under Writer.mu.
func (j *journal) makeRoom(s *segment) error {
	w := j.w
	bottom := j.top - s.bytes()
	end := w.data.offset
	if need := end + w.layout.tailBytes(end, 0); need > bottom {
		if given := w.pages + w.lost; given > 0 {
			return w.tooSmall(end, given)
		}
		return &TargetTooSmallError{Needed: need + roomOf(w.out) - bottom, Available: roomOf(w.out)}
	}
	w.index.bottom = bottom
	return nil
}

// writePages writes a run as a segment, makes it durable, and says so.
func (j *journal) writePages(full *run, s *segment) error {
	x := j.w.index
	sortPages(full.pages)
	body := full.mem.b[:runBytes(len(full.pages))]
	clear(body[len(full.pages)*storedPageBytes:])
	for off := 0; off < len(body); off += indexPiece {
		s.pieces = append(s.pieces, pageCRC(body[off:min(len(body), off+indexPiece)]))
	}
	if err := j.write(s, body); err != nil {
		return err
	}
	if s.pages > 0 {
		x.spilled = append(x.spilled, &spilledRun{offset: s.offset, pages: s.pages, sums: s.pieces})
	}
	if err := j.tell(full.pages); err != nil {
		return err
	}
	full.pages = full.pages[:0]
	x.spare <- full
	return nil
}

// tell says of pages that they are durable, some at a time.
func (j *journal) tell(pages []storedPage) error {
	pfns := make([]uint64, 0, min(len(pages), durableBatch))
	for part := range slices.Chunk(pages, durableBatch) {
		pfns = pfns[:0]
		for i := range part {
			pfns = append(pfns, part[i].pfn)
		}
		if err := j.w.durable(pfns); err != nil {
			return err
		}
	}
	return nil
}

const durableBatch = 1024

func (j *journal) writeBlob(kind segmentKind, blob []byte) error {
	body, err := newAligned(max(1, len(blob)))
	if err != nil {
		return err
	}
	defer body.free()
	copy(body.b, blob)
	j.writing.Lock()
	defer j.writing.Unlock()
	s := &segment{kind: kind, body: int64(len(blob)), counts: j.kept, firstChunk: j.chunk}
	j.w.mu.Lock()
	err = j.makeRoom(s)
	j.w.mu.Unlock()
	if err != nil {
		return err
	}
	return j.write(s, body.b[:s.bodyBytes()]) // nothing of an empty one: it has no room
}

// write puts a segment below the one before, and returns when it is on stable storage.
func (j *journal) write(s *segment, body []byte) error {
	w := j.w
	s.session, s.generation, s.seq = w.meta.Session, j.generation, j.seq
	s.offset = j.top - s.bytes()
	trailer, err := s.seal(body)
	if err != nil {
		return err
	}
	defer trailer.free()
	for off := 0; off < len(body); off += DefaultChunkBytes {
		part := body[off:min(len(body), off+DefaultChunkBytes)]
		if err := writeAt(w.out, part, s.offset+int64(off)); err != nil {
			return err
		}
	}
	if err := writeAt(w.out, trailer.b, s.offset+int64(len(body))); err != nil {
		return err
	}
	if err := w.out.Sync(); err != nil {
		return fmt.Errorf("syncing the journal: %w", err)
	}
	j.seq++
	j.top = s.offset
	return nil
}

// SaveState keeps something of the caller's in the journal, instead of what it kept before. It does not count before
// it returns. Without a journal it does nothing.
func (w *Writer) SaveState(state []byte) error {
	if w.journal == nil {
		return nil
	}
	if err := w.failure.get(); err != nil {
		return err
	}
	if err := w.journal.writeBlob(segmentState, state); err != nil {
		return w.fail(err)
	}
	return nil
}

// Seal makes all pages durable, with a last state: from then on the dump can be completed by another process, and
// without the session. It comes after the last Add, when all pages have been given, and before Finish. Without a
// journal it does nothing.
func (w *Writer) Seal(state []byte) error {
	if w.journal == nil {
		return nil
	}
	if given := w.pages + w.lost; given != w.meta.Pages {
		return w.fail(fmt.Errorf("%w: %d of %d were given", ErrPagesMissing, given, w.meta.Pages))
	}
	if err := w.journal.seal(state); err != nil {
		return w.fail(err)
	}
	return nil
}

func (j *journal) seal(state []byte) error {
	j.stop()
	w := j.w
	if err := w.disk.wait(); err != nil {
		return err
	}
	if err := j.writeBlob(segmentState, state); err != nil {
		return err
	}
	j.writing.Lock()
	defer j.writing.Unlock()
	sum, err := w.data.writeUnfinished()
	if err != nil {
		return err
	}
	w.mu.Lock()
	end := w.data.offset
	full, s, err := j.take(0, end)
	if err == nil && full == nil { // all pages are in the journal, but it does not say that these are all
		full = <-w.index.spare
		s, err = j.newPages(0, end)
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	s.all, s.tailSum = true, sum
	return j.writePages(full, s)
}

// writeUnfinished writes what there is of the current chunk and returns its checksum. It is written again,
// as it is, with what follows.
func (s *stream) writeUnfinished() (sum [sha256.Size]byte, err error) {
	if s.cur == nil {
		return sha256.Sum256(nil), nil
	}
	n := s.offset - s.start
	whole := s.cur.b[:roundUp(n, PageSize)]
	clear(whole[n:])
	return sha256.Sum256(whole[:n]), writeAt(s.d.out, whole, s.start)
}

// Leave ends the Writer and leaves the target as it is, marked as in progress, for another process to go on from what
// the journal has. It makes a blocked Add return.
func (w *Writer) Leave() {
	w.failure.set(ErrLeft)
	w.closeIntake()
	w.ending.Lock()
	defer w.ending.Unlock()
	if !w.ended {
		w.ended = true
		w.halt()
	}
}

// ErrLeft: the Writer was left to another process.
var ErrLeft = errors.New("the dump was left to another process")

// roomAtEnd is what the end of the target has to hold while a dump is being written.
func (o *Options) roomAtEnd(m *Meta) int64 {
	pages := m.Pages
	if !o.Journal {
		return spillBytes(pages, o.IndexPages)
	}
	// Each segment fills up its last blocks. Checksums take less than 1 byte for each page.
	segments := int64(pages)*2/int64(o.JournalPages) + 4
	// In JSON the first takes somewhat more than notes and state themselves.
	first := roundUp(2*int64(len(m.Notes)+len(o.State))+64*int64(len(m.RAM)), PageSize)
	return roundUp(int64(pages)*(storedPageBytes+1), PageSize) + segments*3*PageSize + first
}
