// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// segment of the journal, as it is on the target: the body in whole blocks, the trailer (checksums of chunks, then
// of the pieces of the body) in whole blocks, and one block, the head, which says what there is and seals it.
// The head comes last so that it is where the segment before begins.
type segment struct {
	kind    segmentKind
	session Session
	seq     uint64
	// generation is the same in all segments of a journal.
	generation uint64
	offset     int64 // of the body; not kept
	body       int64 // bytes that count

	// Of a segment with pages.
	pages      int
	all        bool   // with these, all pages are in the journal
	dataEnd    int64  // no page's data ends after it; a whole chunk, unless these are all
	counts     counts // of all segments so far
	firstChunk int64  // to which sums[0] belongs
	sums       []chunkSum
	pieces     []uint32
	tailSum    [sha256.Size]byte // of the unfinished chunk before dataEnd, if these are all

	bodySum, trailerSum [sha256.Size]byte
}

type segmentKind uint32

const (
	segmentMeta  segmentKind = 1 // journalMeta
	segmentPages segmentKind = 2 // storedPages, in order
	segmentState segmentKind = 3 // what the caller of the Writer keeps
)

var segmentMagic = []byte("LDJOURNL")

const (
	segmentVersion = 2   // 1 had SHA-256 of chunks
	segmentSeal    = 256 // offset of the head's own checksum
	segmentAll     = 1   // flag

	// maxBlob bounds what is believed of a head.
	maxBlob = 2 * maxNotesBytes
)

// bodyBytes and trailerBytes are in whole blocks.
func (s *segment) bodyBytes() int64 { return roundUp(s.body, PageSize) }

func (s *segment) numSums() int64 {
	if s.kind != segmentPages {
		return 0
	}
	return int64(len(s.sums))
}

func trailerBytes(sums, body int64, kind segmentKind) int64 {
	var pieces int64
	if kind == segmentPages {
		pieces = (roundUp(body, PageSize) + indexPiece - 1) / indexPiece
	}
	return roundUp(sums*chunkSumBytes+pieces*4, PageSize)
}

func (s *segment) bytes() int64 {
	return s.bodyBytes() + trailerBytes(s.numSums(), s.body, s.kind) + PageSize
}

// seal makes trailer and head, which follow the body.
func (s *segment) seal(body []byte) (*aligned, error) {
	n := trailerBytes(s.numSums(), s.body, s.kind)
	mem, err := newAligned(int(n) + PageSize)
	if err != nil {
		return nil, err
	}
	at := 0
	for _, sum := range s.sums {
		sum.put(mem.b[at:])
		at += chunkSumBytes
	}
	for _, crc := range s.pieces {
		binary.LittleEndian.PutUint32(mem.b[at:], crc)
		at += 4
	}
	s.bodySum = sha256.Sum256(body)
	s.trailerSum = sha256.Sum256(mem.b[:n])
	s.encode(mem.b[n:])
	return mem, nil
}

func (s *segment) encode(b []byte) {
	le := binary.LittleEndian
	copy(b, segmentMagic)
	le.PutUint32(b[8:], segmentVersion)
	le.PutUint32(b[12:], uint32(s.kind))
	copy(b[16:32], s.session[:])
	flags := uint64(0)
	if s.all {
		flags = segmentAll
	}
	for i, v := range []uint64{
		s.seq, flags, uint64(s.body), uint64(s.pages), uint64(s.dataEnd), uint64(s.firstChunk), uint64(s.numSums()),
		s.counts.pages, s.counts.lost, s.counts.zeros, s.counts.uncovered, s.generation,
	} {
		le.PutUint64(b[32+8*i:], v)
	}
	copy(b[160:], s.bodySum[:])
	copy(b[192:], s.trailerSum[:])
	copy(b[224:], s.tailSum[:])
	clear(b[segmentSeal : segmentSeal+sha256.Size])
	sum := sha256.Sum256(b[:PageSize])
	copy(b[segmentSeal:], sum[:])
}

// errNoSegment: there is nothing of the journal of this session here, or it is torn.
var errNoSegment = errors.New("no segment")

// readSegment reads the segment that ends at top, but for its body. It is errNoSegment if what is there is not segment
// seq of the session, whole.
func readSegment(out Output, top int64, session Session, seq uint64) (*segment, error) {
	if top < 2*PageSize {
		return nil, errNoSegment
	}
	head, err := newAligned(PageSize)
	if err != nil {
		return nil, err
	}
	defer head.free()
	if n, err := out.ReadAt(head.b, top-PageSize); n < PageSize {
		return nil, fmt.Errorf("reading the journal: %w", unexpectedEOF(err))
	}
	s, nsums, err := decodeSegment(head.b)
	if err != nil || s.session != session || s.seq != seq {
		return nil, errors.Join(errNoSegment, err)
	}
	n := trailerBytes(nsums, s.body, s.kind)
	s.offset = top - PageSize - n - s.bodyBytes()
	if s.offset < PageSize {
		return nil, errNoSegment
	}
	if n == 0 {
		return s, nil
	}
	trailer, err := newAligned(int(n))
	if err != nil {
		return nil, err
	}
	defer trailer.free()
	if k, err := out.ReadAt(trailer.b, top-PageSize-n); k < len(trailer.b) {
		return nil, fmt.Errorf("reading the journal: %w", unexpectedEOF(err))
	}
	if sha256.Sum256(trailer.b) != s.trailerSum {
		return nil, errNoSegment
	}
	at := 0
	for range nsums {
		s.sums = append(s.sums, readChunkSum(trailer.b[at:]))
		at += chunkSumBytes
	}
	for range (s.bodyBytes() + indexPiece - 1) / indexPiece {
		s.pieces = append(s.pieces, binary.LittleEndian.Uint32(trailer.b[at:]))
		at += 4
	}
	return s, nil
}

func decodeSegment(b []byte) (s *segment, nsums int64, err error) {
	if !bytes.Equal(b[:8], segmentMagic) {
		return nil, 0, errNoSegment
	}
	var block [PageSize]byte
	copy(block[:], b)
	clear(block[segmentSeal : segmentSeal+sha256.Size])
	if sha256.Sum256(block[:]) != [sha256.Size]byte(b[segmentSeal:segmentSeal+sha256.Size]) {
		return nil, 0, errNoSegment
	}
	le := binary.LittleEndian
	if v := le.Uint32(b[8:]); v != segmentVersion {
		return nil, 0, fmt.Errorf("%w: journal of version %d, this program knows %d", ErrVersion, v, segmentVersion)
	}
	s = &segment{kind: segmentKind(le.Uint32(b[12:]))}
	copy(s.session[:], b[16:32])
	v := func(i int) uint64 { return le.Uint64(b[32+8*i:]) }
	s.seq, s.all = v(0), v(1)&segmentAll != 0
	limit := uint64(maxBlob)
	if s.kind == segmentPages {
		limit = maxPFNLimit * storedPageBytes
	}
	if v(2) > limit || v(6) > 1<<32 || s.kind == segmentPages && v(2) != v(3)*storedPageBytes || v(4) > 1<<62 || v(5) > 1<<50 {
		return nil, 0, fmt.Errorf("%w: a segment of the journal contradicts itself", ErrDamaged)
	}
	s.body, s.pages, s.dataEnd, s.firstChunk = int64(v(2)), int(v(3)), int64(v(4)), int64(v(5))
	if s.kind == segmentPages {
		nsums = int64(v(6))
	}
	s.counts = counts{pages: v(7), lost: v(8), zeros: v(9), uncovered: v(10)}
	s.generation = v(11)
	copy(s.bodySum[:], b[160:])
	copy(s.trailerSum[:], b[192:])
	copy(s.tailSum[:], b[224:])
	return s, nsums, nil
}

// readBody reads what the segment holds. errNoSegment: it is torn.
func (s *segment) readBody(out Output) (*aligned, error) {
	mem, err := newAligned(int(max(1, s.bodyBytes())))
	if err != nil {
		return nil, err
	}
	b := mem.b[:s.bodyBytes()]
	if len(b) > 0 {
		if n, err := out.ReadAt(b, s.offset); n < len(b) {
			mem.free()
			return nil, fmt.Errorf("reading the journal: %w", unexpectedEOF(err))
		}
	}
	if sha256.Sum256(b) != s.bodySum {
		mem.free()
		return nil, errNoSegment
	}
	return mem, nil
}
