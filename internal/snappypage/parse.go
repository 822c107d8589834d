// SPDX-License-Identifier: Apache-2.0

package snappypage

import (
	"encoding/binary"
	"math/bits"
	"unsafe"
)

// parseGo writes the page to out as literals and copies, all but the last literals, which begin at anchor. It says how many
// bytes that are. The table is empty before.
func parseGo(out, page *byte, table *[1 << hashLog]uint16) (n, anchor uint) {
	p := (*[PageSize]byte)(unsafe.Pointer(page))[:]
	o := (*[Room - 2]byte)(unsafe.Pointer(out))[:]
	offset := uint(1)
	for ip := uint(1); ip < limit; {
		v := binary.LittleEndian.Uint64(p[ip:])
		h := hash(uint32(v))
		at := uint(table[h])
		table[h] = uint16(ip)
		start := ip
		switch {
		case binary.LittleEndian.Uint32(p[at:]) == uint32(v):
			offset = ip - at
		case binary.LittleEndian.Uint32(p[ip+1-offset:]) == uint32(v>>8):
			start++
		default:
			ip += 1 + (ip-anchor)>>4
			continue
		}
		end := start + 4
		for end < limit {
			d := binary.LittleEndian.Uint64(p[end:]) ^ binary.LittleEndian.Uint64(p[end-offset:])
			if d != 0 {
				end += uint(bits.TrailingZeros64(d)) / 8
				break
			}
			end += 8
		}
		for end >= limit && end < PageSize && p[end] == p[end-offset] {
			end++
		}
		for start > anchor && start > offset && p[start-1] == p[start-1-offset] {
			start--
		}
		n = literals(o, n, p[anchor:start])
		n = repeat(o, n, offset, end-start)
		ip, anchor = end, end
		if ip < limit {
			table[hash(binary.LittleEndian.Uint32(p[ip-2:]))] = uint16(ip - 2)
		}
	}
	return n, anchor
}

func hash(v uint32) uint32 { return v * 0x9e3779b1 >> (32 - hashLog) }

// repeat writes n bytes, 4 at least, as a copy of those that are offset before.
func repeat(out []byte, o, offset, n uint) uint {
	for n >= 68 { // what is left is 4 bytes at least
		o = copy2(out, o, offset, 64)
		n -= 64
	}
	if n > 64 {
		o = copy2(out, o, offset, 60)
		n -= 60
	}
	if n < 12 && offset < 2048 {
		out[o], out[o+1] = byte(offset>>8<<5|(n-4)<<2|tagCopy1), byte(offset)
		return o + 2
	}
	return copy2(out, o, offset, n)
}

func copy2(out []byte, o, offset, n uint) uint {
	out[o], out[o+1], out[o+2] = byte((n-1)<<2|tagCopy2), byte(offset), byte(offset>>8)
	return o + 3
}
