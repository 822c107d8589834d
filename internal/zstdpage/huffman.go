// SPDX-License-Identifier: Apache-2.0

package zstdpage

import (
	"encoding/binary"
	"math/bits"
	"unsafe"
)

// Huffman coding of literals, section 4.2 of RFC 8878.

const (
	maxCodeBits   = 11
	maxWeightLog  = 6
	directWeights = 128 // most symbols whose weights can be written in four bits each
)

// huffman is the code for the literals of one page.
type huffman struct {
	lens    [256]uint8  // of the codes, for symbols that are there
	codes   [256]uint32 // code, and its length from bit 16 on
	present [256]uint32 // count<<8 | symbol, ascending by symbols
	last    int         // symbol
	bits    uint        // length of the longest code
	size    int         // bits of all literals in this code

	sorted  [512]uint32 // count<<8 | symbol, ascending, and an end behind them
	nodes   [256]uint32 // counts of inner nodes, as in sorted
	parents [512]uint16
	weights fseTable
}

// counters of bytes, four side by side in a word.
type counters [256 / 4]uint64

func (c *counters) bytes() *[256]uint16 { return (*[256]uint16)(unsafe.Pointer(c)) }

// count takes the literals' statistics and returns the number of different ones. What decides about a
// symbol is computed and not branched upon here and below: nobody could foresee these branches.
func (h *huffman) count(lits []byte) int {
	var c [4]counters // bytes repeat: one counter would wait for itself
	c0, c1, c2, c3 := c[0].bytes(), c[1].bytes(), c[2].bytes(), c[3].bytes()
	for len(lits) >= 8 {
		v := binary.LittleEndian.Uint64(lits)
		lits = lits[8:]
		c0[v&0xff]++
		c1[v>>8&0xff]++
		c2[v>>16&0xff]++
		c3[v>>24&0xff]++
		c0[v>>32&0xff]++
		c1[v>>40&0xff]++
		c2[v>>48&0xff]++
		c3[v>>56]++
	}
	for _, b := range lits {
		c0[b]++
	}
	different := uint(0)
	for i := range c[0] {
		v := c[0][i] + c[1][i] + c[2][i] + c[3][i] // no counter overflows into the next: there are 4096 literals at most
		if v == 0 {
			continue
		}
		for lane := range 4 {
			n := uint32(v & 0xffff)
			v >>= 16
			h.present[different&0xff] = n<<8 | uint32(4*i+lane)
			different += uint((n + 0xffff) >> 16) // 1 if there are any
		}
	}
	h.last = int(h.present[(different-1)&0xff] & 0xff)
	return int(different)
}

// build makes a code for at least two different literals.
func (h *huffman) build(different int) {
	leaves := h.sort(different)
	h.tree(leaves)
	h.limit(leaves)

	// Codes as the decoder makes them: the longest first, and those of a length in order of symbols.
	var perLen, next [16]uint32
	size := uint32(0)
	for _, l := range leaves {
		n := h.lens[l&0xff]
		perLen[n&15]++
		size += l >> 8 * uint32(n)
	}
	h.size = int(size)
	h.bits = uint(h.lens[leaves[0]&0xff]) // the rarest one's is the longest
	code := uint32(0)
	for n := h.bits; n > 0; n-- {
		next[n&15] = code
		code = (code + perLen[n&15]) >> 1
	}
	for _, l := range h.present[:different] {
		s := l & 0xff
		n := h.lens[s]
		h.codes[s] = next[n&15] | uint32(n)<<16
		next[n&15]++
	}
}

// sort puts the symbols that are there in order of their counts, most of which are small.
func (h *huffman) sort(different int) []uint32 {
	const small = 64
	var start [small + 2]uint16 // where the symbols of a count begin; those that are not small together
	present := h.present[:different]
	for _, l := range present {
		start[min(l>>8, small)+1]++
	}
	sum := uint16(0)
	for i := range start {
		sum += start[i]
		start[i] = sum
	}
	large := int(start[small])
	leaves := h.sorted[:different]
	for _, l := range present {
		at := &start[min(l>>8, small)]
		leaves[*at] = l
		*at++
	}
	for top := large + 1; top < different; top++ {
		v, i := leaves[top], top
		for ; i > large && leaves[i-1] > v; i-- {
			leaves[i] = leaves[i-1]
		}
		leaves[i] = v
	}
	return leaves
}

// tree joins the two rarest nodes until one is left, and takes the depths of the leaves.
func (h *huffman) tree(leaves []uint32) {
	const none = 1 << 31
	n := len(leaves)
	sorted, nodes, parents := &h.sorted, &h.nodes, &h.parents
	sorted[n] = none
	leaf, inner := uint(0), uint(0)
	nodes[0] = none
	for made := range uint(n - 1) {
		sum := uint32(0)
		for range 2 {
			// Of the rarest leaf and the rarest node the rarer one, the leaf if they are alike.
			a, b := sorted[leaf&511]>>8, nodes[inner&0xff]>>8
			isLeaf := uint(1)
			if a > b {
				isLeaf = 0
			}
			sum += min(a, b)
			at := 256 + inner
			if a <= b {
				at = leaf
			}
			parents[at&511] = uint16(made)
			leaf += isLeaf
			inner += 1 - isLeaf
		}
		nodes[made&0xff] = sum << 8
		nodes[(made+1)&0xff] = none
	}
	root := n - 2
	nodes[root] = 0 // from here on: depths
	for i := root - 1; i >= 0; i-- {
		nodes[i] = nodes[parents[256+i]&0xff] + 1
	}
	for i, l := range leaves {
		h.lens[l&0xff] = uint8(min(nodes[parents[i]&0xff]+1, maxCodeBits))
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
func (h *huffman) appendTree(b []byte, different int) (_ []byte, ok bool) {
	// Weights of all symbols but the last, which follows from the others.
	var w [256]uint8
	var counts [16]uint16
	n := h.last
	for _, l := range h.present[:different-1] {
		v := uint8(h.bits) + 1 - h.lens[l&0xff]
		w[l&0xff] = v
		counts[v&15]++
	}
	counts[0] = uint16(n - (different - 1))
	highest := maxCodeBits
	for counts[highest&15] == 0 {
		highest--
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

	// Two states take turns, that of the even places and that of the odd ones, from the end on.
	bw := bitWriter{b: b[:cap(b)], pos: len(b)}
	t := &h.weights
	i := len(w)
	var even, odd uint32
	if i&1 != 0 {
		i -= 3
		even, odd = t.first(w[i+2]), t.first(w[i+1])
		even = t.encode(&bw, even, w[i])
	} else {
		i -= 2
		odd, even = t.first(w[i+1]), t.first(w[i])
	}
	for ; i >= 2; i -= 2 {
		odd = t.encode(&bw, odd, w[i-1])
		even = t.encode(&bw, even, w[i-2])
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
