// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// Journal is what the dead writer of a dump has left on the target.
type Journal struct {
	Meta Meta
	// State is what the caller of the dead Writer kept there last.
	State []byte
	// All pages are in the journal: the session is not needed any more.
	All bool
	// Pages of the dump that are in the journal, lost ones included.
	Pages uint64

	out        Output
	codec      Codec
	level      int
	chunk      int
	segments   []*segment // those with pages
	next       uint64     // sequence number of the next segment
	generation uint64
	top        int64 // and where it will end
}

// ErrNoJournal: the target has no journal of the session from which its dump could go on.
var ErrNoJournal = errors.New("no journal to go on from")

// ReadJournal reads the journal of a session from a target that is marked as in progress. A segment at the end of it
// that is torn is as if it had never been. ErrNoJournal, ErrVersion, ErrDamaged, or of reading.
//
// Nobody may be writing to the target any more.
func ReadJournal(out Output, session Session) (*Journal, error) {
	rec, found, err := ReadRecord(out)
	// Block 0 is torn if the writer died just when it wrote it: first or last of all. The journal knows which.
	if err != nil && !errors.Is(err, ErrDamaged) {
		return nil, err
	}
	if err == nil && (!found || rec.Session != session || rec.State != StateInProgress) {
		return nil, fmt.Errorf("%w: the target does not say that a dump of session %s is in progress", ErrNoJournal, session)
	}
	return readJournal(out, session)
}

// Recheck reads a dump of the session that is complete, from its first byte to its last, and says again what Finish has
// said. found is false if there is none.
func Recheck(ctx context.Context, out Output, session Session) (s Summary, found bool, err error) {
	rec, found, err := ReadRecord(out)
	if err != nil || !found || rec.Session != session || rec.State != StateComplete {
		return Summary{}, false, nil //nolint:nilerr // what block 0 does not say is not so
	}
	// The writer may have died before it could do that.
	if err := out.Sync(); err != nil {
		return Summary{}, true, fmt.Errorf("syncing the target: %w", err)
	}
	d, err := NewReader(wholeBlocks{out}, out.Size())
	if err != nil {
		return Summary{}, true, err
	}
	report, err := d.Verify(ctx, VerifyOptions{})
	if err != nil {
		return Summary{}, true, err
	}
	if !report.OK {
		return Summary{}, true, fmt.Errorf("%w: %d problems, %d damaged chunks, %d damaged pages", ErrReadBack, len(report.Problems),
			len(report.DamagedChunks), report.DamagedPageCount)
	}
	s = Summary{Bytes: rec.Size, Pages: rec.Pages, Lost: rec.Lost, Uncovered: rec.Uncovered, ZeroPages: rec.ZeroPages, ReadBack: true}
	if _, err := hex.Decode(s.SHA256[:], []byte(report.SHA256)); err != nil {
		return Summary{}, true, err
	}
	return s, true, nil
}

// ReadCompleteJournal is ReadJournal for a target that has become a dump of the session: for its state, which nobody
// may have heard of.
func ReadCompleteJournal(out Output, session Session) (*Journal, error) {
	return readJournal(out, session)
}

func readJournal(out Output, session Session) (*Journal, error) {
	j := &Journal{out: out, top: roomOf(out)}
	for {
		s, err := readSegment(out, j.top, session, j.next)
		var body *aligned
		// A body of pages is read when it is needed. But the last may be torn, and which is the last shows only
		// when there is no next.
		if err == nil && s.kind != segmentPages {
			body, err = s.readBody(out)
		}
		foreign := err == nil && j.next > 0 && s.generation != j.generation
		if foreign || errors.Is(err, errNoSegment) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrDamaged) {
			if body != nil {
				body.free()
			}
			break
		}
		if err != nil {
			return nil, err
		}
		j.generation = s.generation
		err = j.take(s, body)
		if body != nil {
			body.free()
		}
		if err != nil {
			return nil, err
		}
		j.next++
		j.top = s.offset
	}
	if j.next == 0 {
		return nil, ErrNoJournal
	}
	if err := j.dropTorn(); err != nil {
		return nil, err
	}
	if n := len(j.segments); n > 0 {
		last := j.segments[n-1]
		j.All = last.all
		j.Pages = last.counts.pages + last.counts.lost
	}
	return j, nil
}

func (j *Journal) take(s *segment, body *aligned) error {
	if (s.kind == segmentMeta) != (j.next == 0) {
		return fmt.Errorf("%w: the journal's segments are in a wrong order", ErrDamaged)
	}
	switch s.kind {
	case segmentMeta:
		var m journalMeta
		if err := json.Unmarshal(body.b[:s.body], &m); err != nil {
			return fmt.Errorf("%w: the journal's first segment: %w", ErrDamaged, err)
		}
		codec, err := ParseCodec(m.Codec)
		if err != nil {
			return fmt.Errorf("%w: the journal: %w", ErrVersion, err)
		}
		j.Meta, j.State, j.codec, j.level, j.chunk = m.Meta, m.State, codec, m.CodecLevel, m.ChunkBytes
	case segmentState:
		j.State = append([]byte(nil), body.b[:s.body]...)
	case segmentPages:
		j.segments = append(j.segments, s)
	default:
		return fmt.Errorf("%w: segment of kind %d in the journal", ErrVersion, s.kind)
	}
	return nil
}

// dropTorn takes the last segment for not written if its body is not what its head says. All before it were on stable
// storage before it was begun.
func (j *Journal) dropTorn() error {
	n := len(j.segments)
	if n == 0 || j.segments[n-1].seq != j.next-1 {
		return nil
	}
	last := j.segments[n-1]
	body, err := last.readBody(j.out)
	if errors.Is(err, errNoSegment) {
		j.segments = j.segments[:n-1]
		j.next, j.top = last.seq, last.offset+last.bytes()
		return nil
	}
	if err != nil {
		return err
	}
	body.free()
	return nil
}

// Resume goes on with a dump from its journal. Pages that are in the journal may be given again: they are passed over and
// called durable once more, for the writer may have died before it could do that. To know them takes a bit for each page
// frame, in memory.
//
// What concerns the content of the dump (codec, chunk size) is as it was; of opts the rest counts.
func Resume(j *Journal, opts Options) (*Writer, error) {
	opts.Journal = true
	opts.Codec, opts.Level, opts.ChunkBytes = j.codec, j.level, j.chunk
	w, err := newWriter(j.out, form{}, j.Meta, opts)
	if err != nil {
		return nil, err
	}
	if err := w.resume(j); err != nil {
		w.failure.set(err)
		w.halt()
		return nil, err
	}
	return w, nil
}

func (w *Writer) resume(j *Journal) error {
	jn := newJournal(w)
	jn.generation, jn.seq, jn.top = j.generation, j.next, j.top
	w.journal = jn
	w.index.bottom = j.top
	var err error
	if jn.known, err = newAligned(int(w.meta.MaxPFN/8) + 1); err != nil {
		return err
	}
	for _, s := range j.segments {
		if err := w.adopt(s); err != nil {
			return err
		}
		if err := jn.learn(w.out, s); err != nil {
			return fmt.Errorf("segment %d of the journal: %w", s.seq, err)
		}
	}
	if n := len(j.segments); n > 0 {
		last := j.segments[n-1]
		w.counts, jn.kept = last.counts, last.counts
		if err := w.resumeData(last); err != nil {
			return err
		}
	} else if err := w.beginData(); err != nil {
		return err
	}
	w.pagesDone.Store(int64(w.pages + w.lost))
	w.pagesLost.Store(int64(w.lost))
	if !j.All {
		jn.start()
	}
	return nil
}

// adopt takes a segment's run and checksums for the Writer's own.
func (w *Writer) adopt(s *segment) error {
	jn := w.journal
	chunks := s.dataEnd / w.layout.chunkBytes
	if s.firstChunk != jn.chunk || s.firstChunk+int64(len(s.sums)) != max(jn.chunk, chunks) || s.dataEnd > s.offset ||
		s.counts.pages+s.counts.lost > w.meta.Pages {
		return fmt.Errorf("%w: segment %d of the journal does not fit the ones before", ErrDamaged, s.seq)
	}
	for i, sum := range s.sums {
		w.disk.setSum(s.firstChunk+int64(i), sum)
	}
	jn.chunk += int64(len(s.sums))
	if s.pages > 0 {
		w.index.spilled = append(w.index.spilled, &spilledRun{offset: s.offset, pages: s.pages, sums: s.pieces})
	}
	return nil
}

// learn reads which pages a segment has.
func (j *journal) learn(out Output, s *segment) error {
	mem, err := newAligned(min(mergeRunBytes, int(s.bodyBytes())+indexPiece))
	if err != nil {
		return err
	}
	defer mem.free()
	src := &mergeSource{out: out, buf: mem.b[:len(mem.b)/indexPiece*indexPiece], offset: s.offset, left: s.pages, sums: s.pieces}
	for err := src.fill(); ; err = src.fill() {
		if err != nil || len(src.head) == 0 {
			return err
		}
		for i := range src.head {
			pfn := src.head[i].pfn
			if pfn >= j.w.meta.MaxPFN {
				return fmt.Errorf("%w: page frame %#x is not below max_pfn %#x", ErrDamaged, pfn, j.w.meta.MaxPFN)
			}
			if j.has(pfn) {
				return fmt.Errorf("%w: page frame %#x", ErrDuplicatePage, pfn)
			}
			j.known.b[pfn/8] |= 1 << (pfn % 8)
		}
	}
}

// resumeData goes on where the data of the last segment ends.
func (w *Writer) resumeData(last *segment) error {
	if last.dataEnd <= w.layout.dataOffset { // only pages without data so far
		return w.beginData()
	}
	w.data = newStream(w.disk, last.dataEnd)
	n := last.dataEnd % w.layout.chunkBytes
	if n == 0 {
		return nil
	}
	if !last.all {
		return fmt.Errorf("%w: segment %d of the journal ends within a chunk", ErrDamaged, last.seq)
	}
	buf, err := w.disk.buffer()
	if err != nil {
		return err
	}
	start := last.dataEnd - n
	b := buf.b[:roundUp(n, PageSize)]
	if k, err := w.out.ReadAt(b, start); k < len(b) {
		return fmt.Errorf("reading the last data: %w", unexpectedEOF(err))
	}
	if sha256.Sum256(b[:n]) != last.tailSum {
		return fmt.Errorf("%w: the last data, %d bytes at %d", ErrReadBack, n, start)
	}
	w.data.cur, w.data.start = buf, start
	return nil
}

// wholeBlocks reads any bytes of an Output, which gives only whole blocks.
type wholeBlocks struct{ out Output }

func (r wholeBlocks) ReadAt(b []byte, off int64) (int, error) {
	start, end := off&^(PageSize-1), roundUp(off+int64(len(b)), PageSize)
	mem, err := newAligned(int(end - start))
	if err != nil {
		return 0, err
	}
	defer mem.free()
	n, err := r.out.ReadAt(mem.b[:end-start], start)
	n = copy(b, mem.b[min(int64(n), off-start):n])
	if n == len(b) {
		return n, nil
	}
	return n, unexpectedEOF(err)
}
