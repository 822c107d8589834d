// SPDX-License-Identifier: Apache-2.0

// Package snappypage compresses single pages of memory to snappy blocks.
//
// Encoders for blocks of any size skip ahead fast where nothing repeats, and so miss some of what repeats in a page, or they
// keep large tables to find it. This one has a table of the page's own size, and also tries the last offset again, for much
// of memory is arrays.
package snappypage

// PageSize is the size of the input, in bytes.
const PageSize = 4096

// Room is what Encode needs at the end of its destination: more than it ever writes.
const Room = 2 * PageSize

const (
	hashLog = 12
	// limit is where matches are looked for: 16 bytes can be read at any place before it.
	limit = PageSize - 16

	// Elements of the format.
	tagLiteral = 0
	tagCopy1   = 1 // 4 to 11 bytes from up to 2047 bytes back
	tagCopy2   = 2 // 1 to 64 bytes from up to 65535 bytes back
)

// Encoder compresses pages. One goroutine uses it at a time.
type Encoder struct {
	table [1 << hashLog]uint16 // where these bytes were last
}

// Encode appends the page, PageSize bytes, as a snappy block to dst, which has Room bytes of capacity left. A page that
// would not shrink is not finished: ok is false, and dst is as it was.
func (e *Encoder) Encode(dst, page []byte) (_ []byte, ok bool) {
	clear(e.table[:])
	page = page[:PageSize]
	out := dst[len(dst) : len(dst)+Room]
	out[0], out[1] = PageSize&0x7f|0x80, PageSize>>7 // the length of the page
	// What parse writes is never much longer than what it has read: a copy of 4 bytes takes 3, and 60 literals take 61.
	n, anchor := parse(&out[2], &page[0], &e.table)
	n += 2
	if n+PageSize-anchor >= PageSize { // before the last literals are written, which may be many
		return dst, false
	}
	n = literals(out, n, page[anchor:])
	return dst[:uint(len(dst))+n], n < PageSize
}

// literals writes bytes as they are.
func literals(out []byte, o uint, b []byte) uint {
	switch n := uint(len(b)); {
	case n == 0:
		return o
	case n <= 60:
		out[o] = byte((n-1)<<2 | tagLiteral)
		o++
	case n <= 256:
		out[o], out[o+1] = 60<<2|tagLiteral, byte(n-1)
		o += 2
	default:
		out[o], out[o+1], out[o+2] = 61<<2|tagLiteral, byte(n-1), byte((n-1)>>8)
		o += 3
	}
	return o + uint(copy(out[o:], b))
}
