// SPDX-License-Identifier: Apache-2.0

package zstdpage

import (
	"encoding/binary"
	"math/bits"
)

// Finite state entropy coding, section 4.1 of RFC 8878, from the encoder's side.

const (
	maxTableLog = 6  // more would make the tables better by little, and twice as long to build
	maxSymbols  = 53 // of match lengths; literal lengths have 36, offsets here at most 13, weights 12
)

// fseTable encodes symbols of one kind.
type fseTable struct {
	log    uint
	next   [1 << maxTableLog]uint16 // states, those of a symbol side by side
	symbol [64]fseSymbol            // room for any index that a mask leaves
}

type fseSymbol struct {
	deltaBits uint32 // with the state added, its upper half is the number of bits that go out
	deltaNext int32  // what to add to the rest of the state to find the next one
}

// A table's cells are given out in steps. These are, for tables of 1<<5 and 1<<6 cells without symbols of
// less than one cell: the number with which the cell was given out.
var givenOut = [2][1 << maxTableLog]uint8{}

func init() {
	for i := range givenOut {
		size := 1 << (5 + i)
		for n, pos := 0, 0; n < size; n++ {
			givenOut[i][pos] = uint8(n)
			pos = (pos + size>>1 + size>>3 + 3) & (size - 1)
		}
	}
}

// build makes the table for a distribution without -1, which sums up to 1<<log; log is 5 or 6.
func (t *fseTable) build(norm []int8, log uint) {
	t.log = log
	// Whose cells they are, in the order in which they are given out; eight are filled at once. at is where
	// a symbol's states begin.
	var cells [1<<maxTableLog + 8]uint8
	var at [64]uint8
	sum := uint(0)
	for s, n := range norm {
		at[s&63] = uint8(sum)
		same := uint64(s) * 0x0101010101010101
		binary.LittleEndian.PutUint64(cells[sum&63:], same)
		for more := uint(8); more < uint(n); more += 8 {
			binary.LittleEndian.PutUint64(cells[(sum+more)&63:], same)
		}
		// Of bits that go out: those of all states, less those that the symbol's own number takes.
		out := uint32(log+1) - uint32(bits.Len8(uint8(n-1)))
		t.symbol[s&63] = fseSymbol{deltaBits: out<<16 - uint32(n)<<(out&31), deltaNext: int32(sum) - int32(n)}
		sum += uint(n)
	}
	size := uint(1) << (log & 31)
	order := &givenOut[(log-5)&1]
	for u := range size {
		s := cells[order[u&(1<<maxTableLog-1)]&63] & 63
		t.next[at[s]&(1<<maxTableLog-1)] = uint16(size + u)
		at[s]++
	}
}

// buildPreset makes the table for a distribution that may have -1, which counts as 1.
func (t *fseTable) buildPreset(norm []int8, log uint) {
	size := 1 << log
	t.log = log
	var spread [1 << maxTableLog]uint8
	var at [64]uint16
	high, sum := size-1, uint16(0)
	for s, n := range norm {
		at[s] = sum
		if n == -1 {
			spread[high] = uint8(s)
			high--
			n = 1
		}
		out := uint32(log+1) - uint32(bits.Len8(uint8(n-1)))
		t.symbol[s] = fseSymbol{deltaBits: out<<16 - uint32(n)<<out, deltaNext: int32(sum) - int32(n)}
		sum += uint16(n)
	}
	step, mask, pos := size>>1+size>>3+3, size-1, 0
	for s, n := range norm {
		for range n {
			spread[pos] = uint8(s)
			pos = (pos + step) & mask
			for pos > high {
				pos = (pos + step) & mask
			}
		}
	}
	for u := range size {
		s := spread[u]
		t.next[at[s]] = uint16(size + u)
		at[s]++
	}
}

// single makes the table for one symbol that needs no bits.
func (t *fseTable) single(s uint8) {
	t.log = 0
	t.next[0] = 0
	t.symbol[s] = fseSymbol{}
}

// first is the state after which the decoder, which goes backwards, has s as its last symbol.
func (t *fseTable) first(s uint8) uint32 {
	e := t.symbol[s&63]
	n := (e.deltaBits + 1<<15) >> 16
	return uint32(t.next[int32((n<<16-e.deltaBits)>>n)+e.deltaNext])
}

// encode returns the state that stands for s and then for the given state, and writes the difference.
func (t *fseTable) encode(w *bitWriter, state uint32, s uint8) uint32 {
	e := t.symbol[s&63]
	n := (state + e.deltaBits) >> 16
	w.add(uint64(state&(1<<n-1)), uint(n))
	return uint32(t.next[uint32(int32(state>>n)+e.deltaNext)&(1<<maxTableLog-1)])
}

func (t *fseTable) flush(w *bitWriter, state uint32) {
	w.add(uint64(state&(1<<t.log-1)), t.log)
}

// normalize scales counts, which sum up to total, to a sum of 1<<log. Each symbol that is there gets 1 at
// least. There are at least two such symbols, and not more than half of 1<<log.
func normalize(norm []int8, counts []uint16, total int, log uint) {
	size := 1 << log
	// Rounded to nearest in fixed point; what that is off by is put right at the most frequent symbols,
	// where it costs least.
	scale := uint32(size<<20) / uint32(total)
	left, largest, most := size, 0, uint32(0)
	norm = norm[:len(counts)]
	for s, n := range counts {
		c := uint32(n)
		share := (c*scale + 1<<19) >> 20
		if share == 0 {
			share = (c + 0xffff) >> 16 // 1 if it is there
		}
		share = min(share, uint32(size-1))
		norm[s] = int8(share)
		left -= int(share)
		if c > most {
			largest = s
		}
		most = max(most, c)
	}
	if int(norm[largest])+left >= 1 && (left >= 0 || int(norm[largest])+left > int(norm[largest])/2) {
		norm[largest] += int8(left)
		return
	}
	for left < 0 { // many rare symbols took too much
		worst, most := -1, int32(-1)
		for s, n := range norm[:len(counts)] {
			if n > 1 {
				// The one that has most more than its share.
				if over := int32(n)<<16 - int32(int64(counts[s])<<16*int64(size)/int64(total)); worst < 0 || over > most {
					worst, most = s, over
				}
			}
		}
		norm[worst]--
		left++
	}
}

// appendDistribution writes a distribution as section 4.1.1 has it. There is room for it.
func appendDistribution(b []byte, norm []int8, log uint) []byte {
	w := bitWriter{b: b[:cap(b)], pos: len(b)}
	w.add(uint64(log-5), 4)
	remaining, threshold, n := 1<<log+1, 1<<log, log+1
	for s := 0; remaining > 1; {
		count := int(norm[s])
		s++
		most := 2*threshold - 1 - remaining
		if count < 0 {
			remaining--
		} else {
			remaining -= count
		}
		v := count + 1
		if v >= threshold {
			v += most
		}
		if v < most {
			w.add(uint64(v), n-1)
		} else {
			w.add(uint64(v), n)
		}
		w.flush()
		for remaining < threshold {
			n--
			threshold >>= 1
		}
		if count == 0 { // how many more zeros follow, in pairs of bits
			zeros := 0
			for remaining > 1 && norm[s] == 0 {
				s++
				zeros++
			}
			for ; zeros >= 3; zeros -= 3 {
				w.add(3, 2)
				w.flush()
			}
			w.add(uint64(zeros), 2)
			w.flush()
		}
	}
	if w.n > 0 {
		w.b[w.pos] = byte(w.bits)
		w.pos++
	}
	return w.b[:w.pos]
}
