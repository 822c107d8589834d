// SPDX-License-Identifier: Apache-2.0

package kdump

import "testing"

// TestChunkSum pins the format: what is on a target must be found right by every later version.
func TestChunkSum(t *testing.T) {
	for text, want := range map[string]chunkSum{"": 0xef46db3751d8e999, "a": 0xd24ec4f1a98c6e5b, "abc": 0x44bc2cf5ad770999} {
		if got := sumChunk([]byte(text)); got != want {
			t.Errorf("the checksum of %q is %#x, want %#x", text, got, want)
		}
	}
	var b [chunkSumBytes]byte
	chunkSum(0x0102030405060708).put(b[:])
	if b[0] != 8 || readChunkSum(b[:]) != 0x0102030405060708 {
		t.Errorf("on the target: % x", b)
	}
}
