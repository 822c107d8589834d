// SPDX-License-Identifier: Apache-2.0

package churn

import (
	"encoding/binary"
	"fmt"
)

// Fill writes the bytes that belong to seed. Every 8 bytes differ from their
// neighbours and from the same place under another seed, so that a stale, a
// shifted and a swapped page are all seen.
func Fill(buf []byte, seed uint64) {
	for i := 0; i+8 <= len(buf); i += 8 {
		binary.LittleEndian.PutUint64(buf[i:], word(seed, i))
	}
	for i := len(buf) &^ 7; i < len(buf); i++ {
		buf[i] = byte(word(seed, i))
	}
}

// Check says where buf first differs from what Fill(buf, seed) gives.
func Check(buf []byte, seed uint64) error {
	for i := 0; i+8 <= len(buf); i += 8 {
		if got, want := binary.LittleEndian.Uint64(buf[i:]), word(seed, i); got != want {
			return fmt.Errorf("at byte %d of %d: %#x, want %#x", i, len(buf), got, want)
		}
	}
	for i := len(buf) &^ 7; i < len(buf); i++ {
		if got, want := buf[i], byte(word(seed, i)); got != want {
			return fmt.Errorf("at byte %d of %d: %#x, want %#x", i, len(buf), got, want)
		}
	}
	return nil
}

// word mixes seed and offset (the finalizer of SplitMix64).
func word(seed uint64, offset int) uint64 {
	x := seed*0x9e3779b97f4a7c15 + uint64(offset) + 0x632be59bd9b4e019
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
