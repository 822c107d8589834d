// SPDX-License-Identifier: Apache-2.0

package zstdpage

import "encoding/binary"

// bitWriter appends bits, the first one lowest, to a slice that has room for them and for 8 bytes more.
type bitWriter struct {
	b    []byte
	pos  int
	bits uint64
	n    uint // bits in it
}

// add adds the n low bits of v, which has no others. 64 bits fit between two flushes, less 7.
func (w *bitWriter) add(v uint64, n uint) {
	w.bits |= v << (w.n & 63)
	w.n += n
}

func (w *bitWriter) flush() {
	binary.LittleEndian.PutUint64(w.b[w.pos:], w.bits)
	k := w.n &^ 7
	w.pos += int(k >> 3)
	w.bits >>= k & 63
	w.n &= 7
}

// close marks the end with a bit, as streams that are read backwards need it, and returns the end.
func (w *bitWriter) close() int {
	w.add(1, 1)
	w.flush()
	if w.n > 0 {
		w.b[w.pos] = byte(w.bits)
		w.pos++
	}
	return w.pos
}
