// SPDX-License-Identifier: Apache-2.0

package zstdpage

import "math/bits"

// sequence is a run of literals and the match that follows it, sections 3.1.1.3.2 and 3.1.1.5 of RFC 8878.
//
// From parse: in bits 0-15 the literals, in 16-31 the length of the match less 3, in 32-47 the offset plus 3,
// or which of the repeated ones. From count: in bits 0-7, 8-15 and 16-23 the codes of literals, match and
// offset, in 24-31 the number of their extra bits.
type sequence uint64

const (
	literalCodes = 36
	matchCodes   = 53
	offsetCodes  = 13 // for offsets below 4096+3

	minMatch = 3
)

// Extra bits of the codes. The extra bits are the lowest bits of the length itself.
var (
	literalExtra = [64]uint8{16: 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	matchExtra   = [64]uint8{32: 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

	// What lengths are encoded as: in bits 0-7 the code, in 8-15 the number of extra bits, then these.
	literalLength [PageSize]uint32
	matchLength   [PageSize]uint32
)

// The distributions that a frame can name instead of spelling them out.
var (
	literalDefault = [literalCodes]int8{4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1}
	matchDefault   = [matchCodes]int8{1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
		1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1}
	offsetDefault = [29]int8{1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1}
)

// alphabet is one of the three kinds of codes.
type alphabet struct {
	preset    fseTable
	presetLog uint
	cost      [64]uint16 // of a symbol with the preset table, in 1/256 bit
}

var literalAlphabet, matchAlphabet, offsetAlphabet alphabet

// log2 of small numbers, in 1/256.
var log2 [2 * PageSize]uint16

func init() {
	encode := func(lengths []uint32, extra []uint8) {
		code, end := -1, 0 // of the lengths that code stands for
		for n := range lengths {
			if n == end {
				code++
				end += 1 << extra[code]
			}
			k := uint32(extra[code])
			lengths[n] = uint32(code) | k<<8 | uint32(n)&(1<<k-1)<<16
		}
	}
	encode(literalLength[:], literalExtra[:])
	encode(matchLength[:], matchExtra[:])
	for n := 2; n < len(log2); n++ {
		// Eight times squaring gives eight bits behind the point.
		whole := bits.Len(uint(n)) - 1
		x, v := uint64(n)<<32>>whole, uint16(whole)
		for range 8 {
			x = x * x >> 32
			v <<= 1
			if x >= 2<<32 {
				x >>= 1
				v |= 1
			}
		}
		log2[n] = v
	}
	literalAlphabet.init(literalDefault[:], 6)
	matchAlphabet.init(matchDefault[:], 6)
	offsetAlphabet.init(offsetDefault[:], 5)
}

func (a *alphabet) init(norm []int8, log uint) {
	a.presetLog = log
	a.preset.buildPreset(norm, log)
	for s, n := range norm {
		if n < 0 {
			n = 1
		}
		a.cost[s] = uint16(log)<<8 - log2[n]
	}
}

// How a frame gives a table.
const (
	modePreset = 0
	modeSingle = 1
	modeTable  = 2
)

// choose takes the cheapest table for symbols that occur so often, and writes it to b if it has to be.
func (a *alphabet) choose(own *fseTable, counts []uint16, total int, b []byte) (*fseTable, uint8, []byte) {
	var preset, best uint32
	last, kinds := 0, 0
	all := uint32(log2[total])
	for s, n := range counts {
		c := uint32(n)
		preset += c * uint32(a.cost[s&63])
		best += c * (all - uint32(log2[c&(2*PageSize-1)]))
		kinds += int((c + 0xffff) >> 16) // 1 if it is there
		if c > 0 {
			last = s
		}
	}
	if kinds == 1 {
		if total <= 2 {
			return &a.preset, modePreset, b
		}
		own.single(uint8(last))
		return own, modeSingle, append(b, byte(last))
	}
	// A table of one's own takes about a byte, and half a byte for each symbol up to the last, and it
	// is not quite what the counts are.
	if best+best>>5+uint32(24+3*kinds+last)<<8 >= preset {
		return &a.preset, modePreset, b
	}
	counts = counts[:last+1]
	log := uint(6)
	if total < 64 && kinds <= 16 {
		log = 5
	}
	var norm [maxSymbols]int8
	normalize(norm[:], counts, total, log)
	own.build(norm[:last+1], log)
	return own, modeTable, appendDistribution(b, norm[:], log)
}
