// SPDX-License-Identifier: Apache-2.0

package zstdpage

import (
	"encoding/binary"
	"math/bits"
	"unsafe"
)

// PageSize is the size of the input, in bytes.
const PageSize = 4096

// Room is what Encode needs at the end of its destination: more than it ever writes.
const Room = 2 * PageSize

const (
	hashLog = 12
	// maxSequences of four bytes and more.
	maxSequences = PageSize / 4
)

// Encoder compresses pages. One goroutine uses it at a time.
type Encoder struct {
	table [1 << hashLog]uint16 // where these bytes were last
	lits  [PageSize + 64]byte
	seqs  [maxSequences]sequence
	extra [maxSequences]uint64 // bits of the sequences, besides their codes

	// Of the codes, with room for any index that a mask leaves.
	literalCount [64]uint16
	matchCount   [64]uint16
	offsetCount  [16]uint16

	huff                      huffman
	literalTab, matchTab, off fseTable
}

// A frame of one segment with a content size of two bytes, which is 4096.
var frameHeader = [...]byte{0x28, 0xb5, 0x2f, 0xfd, 1<<6 | 1<<5, (PageSize - 256) & 0xff, (PageSize - 256) >> 8}

const (
	blockHeaderBytes = 3
	blockCompressed  = 2
	lastBlock        = 1
)

// Encode appends the page, PageSize bytes, as a zstd frame to dst, which has Room bytes of capacity
// left. A page that would not shrink is not finished: ok is false, and dst is as it was.
func (e *Encoder) Encode(dst, page []byte) (_ []byte, ok bool) {
	nlits, nseqs := e.parse((*[PageSize]byte)(page))
	start := len(dst)
	b := append(dst, frameHeader[:]...)
	block := len(b)
	b = b[:block+blockHeaderBytes]
	b = e.appendLiterals(b, e.lits[:nlits])
	if len(b)-start >= PageSize-16 {
		return dst, false
	}
	b = e.appendSequences(b, e.seqs[:nseqs])
	size := len(b) - block - blockHeaderBytes
	if len(b)-start >= PageSize {
		return dst, false
	}
	h := uint32(size)<<3 | blockCompressed<<1 | lastBlock
	b[block], b[block+1], b[block+2] = byte(h), byte(h>>8), byte(h>>16)
	return b, true
}

func load64(p unsafe.Pointer, i uint) uint64 { return *(*uint64)(unsafe.Add(p, i)) }
func load32(p unsafe.Pointer, i uint) uint32 { return *(*uint32)(unsafe.Add(p, i)) }

// hash is of the four lowest bytes.
func hash(v uint64) uint { return uint(v << 32 * 0x9fb21c651e98df25 >> (64 - hashLog)) }

// parse takes the page apart into literals and matches.
func (e *Encoder) parse(page *[PageSize]byte) (nlits, nseqs uint) {
	clear(e.table[:])
	p := unsafe.Pointer(page)
	const limit = PageSize - 8                    // where eight bytes can be read
	rep1, rep2, rep3 := uint(1), uint(4), uint(8) // the last three offsets
	anchor, ip := uint(0), uint(1)
	for ip < limit {
		v := load64(p, ip)
		h := hash(v)
		at := uint(e.table[h])
		e.table[h] = uint16(ip)
		var start, offset uint
		switch {
		case load32(p, ip+1-rep1) == uint32(v>>8):
			start, offset = ip+1, rep1
		case load32(p, at) == uint32(v):
			start, offset = ip, ip-at
		default:
			ip += 1 + (ip-anchor)>>7
			continue
		}
		from := start - offset
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
		// Backwards by up to eight bytes, without a branch for each: none of them could be foreseen.
		if from >= 8 {
			d := load64(p, start-8) ^ load64(p, from-8)
			start -= min(uint(bits.LeadingZeros64(d))>>3, start-anchor)
		} else {
			for start > anchor && from > 0 && page[start-1] == page[from-1] {
				start--
				from--
			}
		}
		literals := start - anchor
		// An offset that was among the last ones has a short name. Without literals the last one has none,
		// and the others' are smaller by one.
		code := uint(1)
		if offset != rep1 || literals == 0 {
			some := uint(1)
			if literals == 0 {
				some = 0
			}
			code = offset + 3
			if offset == rep3 {
				code = 2 + some
			}
			next3 := rep2
			if offset == rep2 {
				code = 1 + some
				next3 = rep3
			}
			rep1, rep2, rep3 = offset, rep1, next3
		}
		nlits = e.copyLiterals(nlits, p, anchor, literals)
		e.seqs[nseqs] = sequence(literals | (end-start-minMatch)<<16 | code<<32)
		nseqs++
		ip, anchor = end, end
		if ip >= limit {
			break
		}
		e.table[hash(load64(p, ip-2))] = uint16(ip - 2)
	}
	rest := PageSize - anchor
	nlits = e.copyLiterals(nlits, p, anchor, rest)
	return nlits, nseqs
}

// copyLiterals may write, and read of the page, up to 15 bytes more than n.
func (e *Encoder) copyLiterals(at uint, p unsafe.Pointer, from, n uint) uint {
	to := unsafe.Pointer(&e.lits[at])
	if from > PageSize-16 {
		copy(unsafe.Slice((*byte)(to), n), unsafe.Slice((*byte)(unsafe.Add(p, from)), n))
		return at + n
	}
	*(*[2]uint64)(to) = *(*[2]uint64)(unsafe.Add(p, from))
	if n > 16 {
		copy(unsafe.Slice((*byte)(to), n)[16:], unsafe.Slice((*byte)(unsafe.Add(p, from)), n)[16:])
	}
	return at + n
}

// count finds the codes of the sequences, and how often each occurs. It is a loop of its own because it
// has no branches, and those of parse can't be foreseen.
func (e *Encoder) count(seqs []sequence) {
	clear(e.literalCount[:])
	clear(e.matchCount[:])
	clear(e.offsetCount[:])
	for i, s := range seqs {
		literals, match := literalLength[s&(PageSize-1)], matchLength[s>>16&(PageSize-1)]
		offset := uint(s >> 32)
		oc := uint(bits.Len16(uint16(offset))) - 1
		e.literalCount[literals&63]++
		e.matchCount[match&63]++
		e.offsetCount[oc&15]++
		n := uint(literals >> 8 & 15)
		extra := uint64(literals >> 16)
		extra |= uint64(match>>16) << n
		n += uint(match >> 8 & 15)
		extra |= uint64(offset^1<<(oc&15)) << (n & 63)
		seqs[i] = sequence(literals&63 | match&63<<8 | uint32(oc)<<16 | uint32(n+oc)<<24)
		e.extra[i&(len(e.extra)-1)] = extra
	}
}

// Types of literals.
const (
	literalsRaw     = 0
	literalsSame    = 1
	literalsHuffman = 2
)

func (e *Encoder) appendLiterals(b, lits []byte) []byte {
	h := &e.huff
	n := len(lits)
	if n < 32 {
		return appendRaw(b, lits)
	}
	different := h.count(lits)
	if different == 1 {
		if n < 32 {
			return append(b, byte(n<<3|literalsSame), lits[0])
		}
		return append(b, byte(n<<4|1<<2|literalsSame), byte(n>>4), lits[0])
	}
	// What the code saves at best must be worth the tree that comes with it.
	if different > 64 && h.entropy(n, different)+n>>5+different>>1 >= n {
		return appendRaw(b, lits)
	}
	h.build(different)
	if h.size>>3+different>>3+5 >= n {
		return appendRaw(b, lits)
	}
	start := len(b)
	header := 3
	if n >= 1024 {
		header = 4
	}
	b, ok := h.appendTree(b[:start+header], different)
	if !ok {
		return appendRaw(b[:start], lits)
	}
	if n < 1024 {
		b = h.appendStream(b, lits)
		size := len(b) - start - header
		if size >= n {
			return appendRaw(b[:start], lits)
		}
		v := uint32(literalsHuffman) | uint32(n)<<4 | uint32(size)<<14
		b[start], b[start+1], b[start+2] = byte(v), byte(v>>8), byte(v>>16)
		return b
	}
	// Four streams, with the sizes of the first three before them.
	jump := len(b)
	b = b[:jump+6]
	part := (n + 3) / 4
	for i := range 4 {
		from := len(b)
		b = h.appendStream(b, lits[i*part:min(n, (i+1)*part)])
		if i < 3 {
			binary.LittleEndian.PutUint16(b[jump+2*i:], uint16(len(b)-from))
		}
	}
	size := len(b) - start - header
	if size >= n {
		return appendRaw(b[:start], lits)
	}
	v := uint32(literalsHuffman) | 2<<2 | uint32(n)<<4 | uint32(size)<<18
	binary.LittleEndian.PutUint32(b[start:], v)
	return b
}

func appendRaw(b, lits []byte) []byte {
	n := len(lits)
	switch {
	case n < 32:
		b = append(b, byte(n<<3|literalsRaw))
	case n < 4096:
		b = append(b, byte(n<<4|1<<2|literalsRaw), byte(n>>4))
	default:
		b = append(b, byte(n<<4&0xff|3<<2|literalsRaw), byte(n>>4), byte(n>>12))
	}
	return append(b, lits...)
}

// entropy is the least size of the literals in bytes, without the tree.
func (h *huffman) entropy(n, different int) int {
	var sum uint32
	for _, l := range h.present[:different] {
		c := l >> 8
		sum += c * uint32(log2[c&(2*PageSize-1)])
	}
	return int((uint32(n)*uint32(log2[n]) - sum) >> 11)
}

func (e *Encoder) appendSequences(b []byte, seqs []sequence) []byte {
	n := len(seqs)
	switch {
	case n == 0:
		return append(b, 0)
	case n < 128:
		b = append(b, byte(n))
	default:
		b = append(b, byte(n>>8+128), byte(n))
	}
	modes := len(b)
	b = append(b, 0)
	e.count(seqs)
	lt, lm, b := literalAlphabet.choose(&e.literalTab, e.literalCount[:literalCodes], n, b)
	ot, om, b := offsetAlphabet.choose(&e.off, e.offsetCount[:offsetCodes], n, b)
	mt, mm, b := matchAlphabet.choose(&e.matchTab, e.matchCount[:matchCodes], n, b)
	b[modes] = lm<<6 | om<<4 | mm<<2

	// The loop has the bit writer and the states in variables of its own: registers.
	s := seqs[n-1]
	ms, os, ls := mt.first(uint8(s>>8)), ot.first(uint8(s>>16)), lt.first(uint8(s))
	out, pos := b[:cap(b)], len(b)
	acc, k := e.extra[(n-1)&(len(e.extra)-1)], uint(s>>24)
	for i := n - 2; i >= 0; i-- {
		binary.LittleEndian.PutUint64(out[pos:], acc)
		pos += int(k >> 3)
		acc >>= k & 56
		k &= 7
		s := seqs[i]
		// At most 21 bits of states, 35 of extra bits, and 7 from before.
		x := ot.symbol[s>>16&63]
		bits := uint(os+x.deltaBits) >> 16
		acc |= uint64(os&(1<<(bits&31)-1)) << (k & 63)
		k += bits
		os = uint32(ot.next[uint32(int32(os>>(bits&31))+x.deltaNext)&(1<<maxTableLog-1)])

		x = mt.symbol[s>>8&63]
		bits = uint(ms+x.deltaBits) >> 16
		acc |= uint64(ms&(1<<(bits&31)-1)) << (k & 63)
		k += bits
		ms = uint32(mt.next[uint32(int32(ms>>(bits&31))+x.deltaNext)&(1<<maxTableLog-1)])

		x = lt.symbol[s&63]
		bits = uint(ls+x.deltaBits) >> 16
		acc |= uint64(ls&(1<<(bits&31)-1)) << (k & 63)
		k += bits
		ls = uint32(lt.next[uint32(int32(ls>>(bits&31))+x.deltaNext)&(1<<maxTableLog-1)])

		acc |= e.extra[i&(len(e.extra)-1)] << (k & 63)
		k += uint(s >> 24)
	}
	w := bitWriter{b: out, pos: pos, bits: acc, n: k}
	w.flush()
	mt.flush(&w, ms)
	ot.flush(&w, os)
	lt.flush(&w, ls)
	return b[:w.close()]
}
