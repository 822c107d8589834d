// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"errors"
	"fmt"
)

const (
	// DefaultChunkBytes is the size of a write to the target and of the piece that one checksum covers.
	DefaultChunkBytes = 1 << 20

	// largeChunkBytes is the most that the size of a chunk grows to, so that the checksums of a large dump
	// stay few.
	largeChunkBytes = 8 << 20

	// defaultIndexPages makes runs of 24 MiB.
	defaultIndexPages = 1 << 20

	// maxPFNLimit bounds what is believed of a header: 46 bits of physical addresses, 64 TiB.
	maxPFNLimit = 1 << 34
	// maxNotesBytes bounds the ELF notes: 8192 CPUs take about 3 MiB.
	maxNotesBytes = 64 << 20
)

// layout says where the parts of a dump are. Bytes from the start of the file.
type layout struct {
	subHdrBlocks int64
	bitmapBlocks int64 // of both bitmaps
	bitmapOffset int64
	descOffset   int64
	dataOffset   int64
	chunkBytes   int64
}

func newLayout(maxPFN, pages uint64, notesBytes, chunkBytes int64) (layout, error) {
	switch {
	case maxPFN == 0 || maxPFN > maxPFNLimit:
		return layout{}, fmt.Errorf("max_pfn %d is out of bounds", maxPFN)
	case pages > maxPFN:
		return layout{}, fmt.Errorf("%d pages to dump, but only %d page frames", pages, maxPFN)
	case notesBytes < 0 || notesBytes > maxNotesBytes:
		return layout{}, fmt.Errorf("%d bytes of ELF notes are out of bounds", notesBytes)
	case chunkBytes < PageSize || chunkBytes%PageSize != 0 || chunkBytes > 1<<30:
		return layout{}, errors.New("the chunk size is not a multiple of 4096 up to 1 GiB")
	}
	l := layout{chunkBytes: chunkBytes}
	l.subHdrBlocks = blocks(subHeaderBytes + notesBytes)
	l.bitmapBlocks = 2 * blocks(int64((maxPFN+7)/8))
	l.bitmapOffset = (1 + l.subHdrBlocks) * PageSize
	l.descOffset = l.bitmapOffset + l.bitmapBlocks*PageSize
	l.dataOffset = roundUp(l.descOffset+int64(pages)*descBytes, chunkBytes)
	return l, nil
}

// tailBytes is what follows data that ends at end: the table of lost ranges and the checksums.
func (l *layout) tailBytes(end int64, lostRanges int) int64 {
	covered := roundUp(roundUp(end, 8)+16*int64(lostRanges), PageSize)
	return covered - end + roundUp((covered+l.chunkBytes-1)/l.chunkBytes*chunkSumBytes, PageSize)
}

// MinSize is the least room, in bytes, that a dump of this many pages can take: what it takes if
// every page is zero. That includes the room that is taken only until the dump is finished.
func MinSize(maxPFN, pages uint64, notesBytes int) (int64, error) {
	return sizeWith(maxPFN, pages, notesBytes, PageSize)
}

// MaxSize is the room, in bytes, with which a dump of this many pages fits whatever they contain
// (but for the list of lost pages, 16 bytes for each run of them).
func MaxSize(maxPFN, pages uint64, notesBytes int) (int64, error) {
	return sizeWith(maxPFN, pages, notesBytes, PageSize*(1+int64(pages)))
}

func sizeWith(maxPFN, pages uint64, notesBytes int, data int64) (int64, error) {
	l, err := newLayout(maxPFN, pages, int64(notesBytes), int64(chunkBytesFor(pages)))
	if err != nil {
		return 0, err
	}
	end := l.dataOffset + data
	return end + l.tailBytes(end, 0) + spillBytes(pages, defaultIndexPages), nil
}

// chunkBytesFor keeps the number of chunks below 256 Ki for any dump of up to 2 TiB.
func chunkBytesFor(pages uint64) int {
	chunk := DefaultChunkBytes
	for chunk < largeChunkBytes && pages > uint64(chunk)/PageSize<<18 {
		chunk *= 2
	}
	return chunk
}

func blocks(n int64) int64 { return (n + PageSize - 1) / PageSize }

// roundUp works for any positive multiple.
func roundUp(n, multiple int64) int64 { return (n + multiple - 1) / multiple * multiple }
