// SPDX-License-Identifier: Apache-2.0

package zstdpage

import (
	"encoding/binary"
	"math/bits"
)

// Huffman coding of literals, section 4.2 of RFC 8878.

const (
	maxCodeBits   = 11
	maxWeightLog  = 6
	directWeights = 128 // most symbols whose weights can be written in four bits each
)

// huffman is the code for the literals of one page.
type huffman struct {
	counts [256]uint16
	lens   [256]uint8
	codes  [256]uint32 // code, and its length from bit 16 on
	last   int         // symbol
	bits   uint        // length of the longest code
	size   int         // bits of all literals in this code

	sorted  [256]uint32 // count<<8 | symbol, ascending
	nodes   [256]uint32 // counts of inner nodes
	parents [512]uint16
	weights fseTable
}

// count takes the literals' statistics and returns the number of different ones.
func (h *huffman) count(lits []byte) int {
	var c [4][256]uint16 // bytes repeat: one counter would wait for itself
	n := len(lits) &^ 3
	for i := 0; i < n; i += 4 {
		p := lits[i : i+4 : i+4]
		c[0][p[0]]++
		c[1][p[1]]++
		c[2][p[2]]++
		c[3][p[3]]++
	}
	for _, b := range lits[n:] {
		c[0][b]++
	}
	different := 0
	for s := range h.counts {
		v := c[0][s] + c[1][s] + c[2][s] + c[3][s]
		h.counts[s] = v
		if v > 0 {
			different++
			h.last = s
		}
	}
	return different
}

// build makes a code for at least two different literals.
func (h *huffman) build(different int) {
	leaves := h.sort(different)
	h.tree(leaves)
	h.limit(leaves)

	// Codes as the decoder makes them: the longest first, and those of a length in order of symbols.
	var perLen [maxCodeBits + 2]uint32
	h.size, h.bits = 0, 0
	for _, l := range leaves {
		n := h.lens[l&0xff]
		perLen[n]++
		h.size += int(l>>8) * int(n)
		h.bits = max(h.bits, uint(n))
	}
	var next [maxCodeBits + 2]uint32
	code := uint32(0)
	for n := h.bits; n > 0; n-- {
		next[n] = code
		code = (code + perLen[n]) >> 1
	}
	for s := range h.last + 1 {
		if n := h.lens[s]; n > 0 && h.counts[s] > 0 {
			h.codes[s] = next[n&15] | uint32(n)<<16
			next[n&15]++
		}
	}
}

// sort puts the symbols that are there in order of their counts, most of which are small.
func (h *huffman) sort(different int) []uint32 {
	const small = 64
	var start [small + 1]uint16
	large := 0
	for s := range h.last + 1 {
		if c := h.counts[s]; c < small {
			start[c+1]++
		} else {
			large++
		}
	}
	start[1] = 0 // those that are not there
	for i := 2; i <= small; i++ {
		start[i] += start[i-1]
	}
	leaves := h.sorted[:different]
	top := different - large
	for s := range h.last + 1 {
		c := h.counts[s]
		switch {
		case c == 0:
		case c < small:
			leaves[start[c]] = uint32(c)<<8 | uint32(s)
			start[c]++
		default:
			v := uint32(c)<<8 | uint32(s)
			i := top
			for ; i > different-large && leaves[i-1] > v; i-- {
				leaves[i] = leaves[i-1]
			}
			leaves[i] = v
			top++
		}
	}
	return leaves
}

// tree joins the two rarest nodes until one is left, and takes the depths of the leaves.
func (h *huffman) tree(leaves []uint32) {
	n := len(leaves)
	leaf, inner := 0, 0
	for made := range n - 1 {
		sum := uint32(0)
		for range 2 {
			if leaf < n && (inner == made || leaves[leaf]>>8 <= h.nodes[inner]) {
				sum += leaves[leaf] >> 8
				h.parents[leaf] = uint16(made)
				leaf++
			} else {
				sum += h.nodes[inner]
				h.parents[256+inner] = uint16(made)
				inner++
			}
		}
		h.nodes[made] = sum
	}
	root := n - 2
	h.nodes[root] = 0 // from here on: depths
	for i := root - 1; i >= 0; i-- {
		h.nodes[i] = h.nodes[h.parents[256+i]] + 1
	}
	for i, l := range leaves {
		h.lens[l&0xff] = uint8(min(h.nodes[h.parents[i]]+1, maxCodeBits))
	}
}

// limit repairs the code where codes that were too long have been cut: all codes together must fill
// the space exactly.
func (h *huffman) limit(leaves []uint32) {
	const whole = 1 << maxCodeBits
	used := 0
	for _, l := range leaves {
		used += whole >> h.lens[l&0xff]
	}
	for i := 0; used > whole; i++ { // the rarest ones that can grow pay
		s := leaves[i%len(leaves)] & 0xff
		if n := h.lens[s]; n < maxCodeBits {
			used -= whole>>n - whole>>(n+1)
			h.lens[s]++
		}
	}
	for i := len(leaves) - 1; used < whole; { // and the most frequent ones take what is too much
		s := leaves[i] & 0xff
		if n := h.lens[s]; n > 1 && used+whole>>n <= whole {
			used += whole >> n
			h.lens[s]--
			continue
		}
		if i--; i < 0 {
			i = len(leaves) - 1
		}
	}
}

// appendTree writes the code's lengths. ok is false if they cannot be written.
func (h *huffman) appendTree(b []byte) (_ []byte, ok bool) {
	// Weights of all symbols but the last, which follows from the others.
	var w [256]uint8
	var counts [maxCodeBits + 2]uint16
	n := h.last
	highest := 0
	for s := range n {
		if h.counts[s] > 0 {
			v := uint8(h.bits) + 1 - h.lens[s]
			w[s] = v
			highest = max(highest, int(v))
		}
		counts[w[s]&15]++
	}
	if packed, ok := h.appendWeights(b, w[:n], counts[:highest+1]); ok && (n > directWeights || len(packed)-len(b) <= 1+(n+1)/2) {
		return packed, true
	}
	if n > directWeights {
		return b, false
	}
	b = append(b, byte(127+n))
	for i := 0; i < n; i += 2 {
		b = append(b, w[i]<<4|w[i+1])
	}
	return b, true
}

// appendWeights compresses the weights, if they are of more than one kind and shrink.
func (h *huffman) appendWeights(b []byte, w []uint8, counts []uint16) ([]byte, bool) {
	kinds := 0
	for _, c := range counts {
		if c > 0 {
			kinds++
		}
	}
	if len(w) < 3 || kinds < 2 {
		return b, false
	}
	log := min(maxWeightLog, max(5, uint(bits.Len(uint(len(w)-1)))-2))
	var norm [maxCodeBits + 2]int8
	normalize(norm[:], counts, len(w), log)
	h.weights.build(norm[:len(counts)], log)
	start := len(b)
	b = appendDistribution(append(b, 0), norm[:], log)

	bw := bitWriter{b: b[:cap(b)], pos: len(b)}
	i := len(w)
	var even, odd uint32 // states of the weights at even and odd places
	t := &h.weights
	i--
	if i&1 == 0 {
		even = t.first(w[i])
		i--
		odd = t.first(w[i])
	} else {
		odd = t.first(w[i])
		i--
		even = t.first(w[i])
	}
	for i--; i >= 0; i-- {
		if i&1 == 0 {
			even = t.encode(&bw, even, w[i])
		} else {
			odd = t.encode(&bw, odd, w[i])
		}
		bw.flush()
	}
	t.flush(&bw, odd)
	t.flush(&bw, even)
	end := bw.close()
	size := end - start - 1
	if size >= 128 {
		return b[:start], false
	}
	b = b[:end]
	b[start] = byte(size)
	return b, true
}

// appendStream writes one stream of literals.
func (h *huffman) appendStream(b []byte, lits []byte) []byte {
	// The loop has the bit writer in variables of its own: registers.
	out, pos := b[:cap(b)], len(b)
	acc, k := uint64(0), uint(0)
	codes := &h.codes
	i := len(lits)
	for ; i&3 != 0; i-- {
		c := codes[lits[i-1]]
		acc |= uint64(c&0xffff) << (k & 63)
		k += uint(c >> 16)
	}
	for ; i > 0; i -= 4 {
		binary.LittleEndian.PutUint64(out[pos:], acc)
		pos += int(k >> 3)
		acc >>= k & 56
		k &= 7
		p := binary.LittleEndian.Uint32(lits[i-4:])
		c0, c1, c2, c3 := codes[p>>24], codes[p>>16&0xff], codes[p>>8&0xff], codes[p&0xff]
		// Four codes take 44 bits at most.
		n0, n2 := uint(c0>>16), uint(c2>>16)
		v := uint64(c0&0xffff) | uint64(c1&0xffff)<<(n0&63)
		v2 := uint64(c2&0xffff) | uint64(c3&0xffff)<<(n2&63)
		n0 += uint(c1 >> 16)
		acc |= (v | v2<<(n0&63)) << (k & 63)
		k += n0 + n2 + uint(c3>>16)
	}
	w := bitWriter{b: out, pos: pos, bits: acc, n: k}
	w.flush()
	return b[:w.close()]
}
