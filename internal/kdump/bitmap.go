// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"
)

// bitmap has a bit for each page frame. set may be called from several goroutines.
type bitmap []atomic.Uint64

func newBitmap(n uint64) bitmap { return make(bitmap, (n+63)/64) }

// set returns whether the bit was set before.
func (m bitmap) set(i uint64) bool {
	bit := uint64(1) << (i % 64)
	return m[i/64].Or(bit)&bit != 0
}

func (m bitmap) setRange(r PFNRange) {
	for i := r.Start; i < r.End; {
		n := min(64-i%64, r.End-i)
		m[i/64].Or((^uint64(0) >> (64 - n)) << (i % 64))
		i += n
	}
}

func (m bitmap) word(i int) uint64 {
	if i >= len(m) {
		return 0
	}
	return m[i].Load()
}

// ranges calls f for each run of set bits, in order.
func (m bitmap) ranges(f func(PFNRange)) {
	start, in := uint64(0), false
	for i := range m {
		v := m.word(i)
		for pos := 0; pos < 64; {
			rest := v >> pos
			if in {
				rest = ^rest
			}
			n := min(bits.TrailingZeros64(rest), 64-pos)
			pos += n
			if pos == 64 {
				break
			}
			at := uint64(i)*64 + uint64(pos)
			if in {
				f(PFNRange{start, at})
			}
			start, in = at, !in
		}
	}
	if in {
		f(PFNRange{start, uint64(len(m)) * 64})
	}
}

func onesCount(v uint64) int { return bits.OnesCount64(v) }

// putWord writes 64 bits as the format has them: page frame i is bit i%8 of byte i/8.
func putWord(b []byte, v uint64) { binary.LittleEndian.PutUint64(b, v) }
