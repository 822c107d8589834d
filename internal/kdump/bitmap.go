// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"
)

// mergeRanges puts ranges in order and joins those that meet.
func mergeRanges(ranges []PFNRange) []PFNRange {
	sorted := slices.SortedFunc(slices.Values(ranges), func(a, b PFNRange) int { return cmp.Compare(a.Start, b.Start) })
	merged := sorted[:0]
	for _, r := range sorted {
		if n := len(merged); n > 0 && r.Start <= merged[n-1].End {
			merged[n-1].End = max(merged[n-1].End, r.End)
		} else if r.Start < r.End {
			merged = append(merged, r)
		}
	}
	return merged
}

// bitmapWriter writes a bitmap of page frames from front to back with a window of it in memory. The
// bits of ranges are set, and those that set names, in order.
type bitmapWriter struct {
	s      *stream
	ranges []PFNRange // in order, not yet passed
	base   uint64     // first page frame of the window
	window [bitmapWindow]uint64
	bytes  [bitmapWindow * 8]byte
	bits   uint64 // written that are set
}

const bitmapWindow = 512 // words; a block of the format

func (m *bitmapWriter) set(pfn uint64) error {
	for pfn-m.base >= bitmapWindow*64 {
		if err := m.flush(); err != nil {
			return err
		}
	}
	m.window[(pfn-m.base)/64] |= 1 << (pfn % 64)
	return nil
}

// finish writes the rest of a bitmap of so many blocks.
func (m *bitmapWriter) finish(blocks int64) error {
	for m.base < uint64(blocks)*bitmapWindow*64 {
		if err := m.flush(); err != nil {
			return err
		}
	}
	return nil
}

func (m *bitmapWriter) flush() error {
	end := m.base + bitmapWindow*64
	for len(m.ranges) > 0 && m.ranges[0].Start < end {
		r := m.ranges[0]
		for i := max(r.Start, m.base); i < min(r.End, end); {
			n := min(64-i%64, min(r.End, end)-i)
			m.window[(i-m.base)/64] |= (^uint64(0) >> (64 - n)) << (i % 64)
			i += n
		}
		if r.End > end {
			break
		}
		m.ranges = m.ranges[1:]
	}
	for i, v := range m.window {
		m.bits += uint64(bits.OnesCount64(v))
		binary.LittleEndian.PutUint64(m.bytes[8*i:], v)
	}
	clear(m.window[:])
	m.base = end
	return m.s.append(m.bytes[:])
}
