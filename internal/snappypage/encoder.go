// SPDX-License-Identifier: Apache-2.0

// Package snappypage compresses single pages of memory to snappy blocks.
//
// Encoders for blocks of any size skip ahead fast where nothing repeats, and so miss some of what repeats in a page, or they
// keep large tables to find it. This one has a table of the page's own size, and also tries the last offset again, for much
// of memory is arrays.
package snappypage

import (
	"math/bits"
	"unsafe"
)

// PageSize is the size of the input, in bytes.
const PageSize = 4096

// Room is what Encode needs at the end of its destination: more than it ever writes.
const Room = 2 * PageSize

const (
	hashLog = 12

	// Elements of the format.
	tagLiteral = 0
	tagCopy1   = 1 // 4 to 11 bytes from up to 2047 bytes back
	tagCopy2   = 2 // 1 to 64 bytes from up to 65535 bytes back
)

// Encoder compresses pages. One goroutine uses it at a time.
type Encoder struct {
	table [1 << hashLog]uint16 // where these bytes were last
}

func load64(p unsafe.Pointer, i uint) uint64 { return *(*uint64)(unsafe.Add(p, i)) }
func load32(p unsafe.Pointer, i uint) uint32 { return *(*uint32)(unsafe.Add(p, i)) }

// hash is of the four lowest bytes.
func hash(v uint64) uint { return uint(v << 32 * 0x9fb21c651e98df25 >> (64 - hashLog)) }

// Encode appends the page, PageSize bytes, as a snappy block to dst, which has Room bytes of capacity left. A page that
// would not shrink is not finished: ok is false, and dst is as it was.
func (e *Encoder) Encode(dst, page []byte) (_ []byte, ok bool) {
	clear(e.table[:])
	p := unsafe.Pointer((*[PageSize]byte)(page))
	const limit = PageSize - 8 // where eight bytes can be read
	// The first bytes are the length of the page. out has room for anything, and what goes beyond a page is not kept.
	out := (*[Room]byte)(dst[len(dst) : len(dst)+Room])
	out[0], out[1] = PageSize&0x7f|0x80, PageSize>>7
	o := uint(2)
	last := uint(1) // offset
	anchor, ip := uint(0), uint(1)
	for ip < limit {
		v := load64(p, ip)
		h := hash(v)
		at := uint(e.table[h])
		e.table[h] = uint16(ip)
		var start, offset uint
		switch {
		case load32(p, at) == uint32(v):
			start, offset = ip, ip-at
		case load32(p, ip+1-last) == uint32(v>>8):
			start, offset = ip+1, last
		default:
			ip += 1 + (ip-anchor)>>6
			continue
		}
		end := start + 4
		for {
			if end >= limit {
				for end < PageSize && page[end] == page[end-offset] {
					end++
				}
				break
			}
			if d := load64(p, end) ^ load64(p, end-offset); d != 0 {
				end += uint(bits.TrailingZeros64(d)) >> 3
				break
			}
			end += 8
		}
		if from := start - offset; from >= 8 { // backwards by up to eight bytes
			d := load64(p, start-8) ^ load64(p, from-8)
			start -= min(uint(bits.LeadingZeros64(d))>>3, start-anchor)
		} else {
			for start > anchor && from > 0 && page[start-1] == page[from-1] {
				start--
				from--
			}
		}
		if o = literals(out, o, page, anchor, start); o >= PageSize {
			return dst, false
		}
		o = repeat(out, o, offset, end-start)
		last = offset
		ip, anchor = end, end
		if ip >= limit {
			break
		}
		e.table[hash(load64(p, ip-2))] = uint16(ip - 2)
	}
	if o+PageSize-anchor >= PageSize { // before the last literals are written, which may be many
		return dst, false
	}
	if o = literals(out, o, page, anchor, PageSize); o >= PageSize {
		return dst, false
	}
	return dst[:uint(len(dst))+o], true
}

// literals writes page[from:to] as it is. Up to 15 bytes more are written, that do not count.
func literals(out *[Room]byte, o uint, page []byte, from, to uint) uint {
	n := to - from
	switch {
	case n == 0:
		return o
	case n <= 60:
		out[o&(Room-1)] = byte((n-1)<<2 | tagLiteral)
		o++
	case n <= 256:
		out[o&(Room-1)], out[(o+1)&(Room-1)] = 60<<2|tagLiteral, byte(n-1)
		o += 2
	default:
		out[o&(Room-1)], out[(o+1)&(Room-1)], out[(o+2)&(Room-1)] = 61<<2|tagLiteral, byte(n-1), byte((n-1)>>8)
		o += 3
	}
	if n <= 16 && from <= PageSize-16 && o <= Room-16 {
		*(*[16]byte)(out[o:]) = *(*[16]byte)(page[from:])
	} else {
		copy(out[o:], page[from:to])
	}
	return o + n
}

// repeat writes n bytes, 4 at least, as a copy of those that are offset before.
func repeat(out *[Room]byte, o, offset, n uint) uint {
	for n >= 68 { // what is left is 4 bytes at least
		o = copy2(out, o, offset, 64)
		n -= 64
	}
	if n > 64 {
		o = copy2(out, o, offset, 60)
		n -= 60
	}
	if n < 12 && offset < 2048 {
		out[o&(Room-1)], out[(o+1)&(Room-1)] = byte(offset>>8<<5|(n-4)<<2|tagCopy1), byte(offset)
		return o + 2
	}
	return copy2(out, o, offset, n)
}

func copy2(out *[Room]byte, o, offset, n uint) uint {
	out[o&(Room-1)], out[(o+1)&(Room-1)], out[(o+2)&(Room-1)] = byte((n-1)<<2|tagCopy2), byte(offset), byte(offset>>8)
	return o + 3
}
