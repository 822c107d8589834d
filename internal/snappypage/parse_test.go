// SPDX-License-Identifier: Apache-2.0

package snappypage

import (
	"bytes"
	"testing"
)

// checkParse compares the assembly with the same in Go: output and table, to the last byte.
func checkParse(t testing.TB, page []byte) {
	t.Helper()
	var out [2][Room - 2]byte
	var table [2][1 << hashLog]uint16
	n, anchor := parse(&out[0][0], &page[0], &table[0])
	wantN, wantAnchor := parseGo(&out[1][0], &page[0], &table[1])
	if n != wantN || anchor != wantAnchor || !bytes.Equal(out[0][:n], out[1][:n]) || table[0] != table[1] {
		t.Fatalf("%d bytes up to %d, want %d up to %d, with the same content and table", n, anchor, wantN, wantAnchor)
	}
}

// TestParse has pages of every kind at the end of what may be read.
func TestParse(t *testing.T) {
	room := pageBeforeNothing(t)
	for seed := range uint64(20000) {
		copy(room, testPage(seed))
		checkParse(t, room)
	}
}

// FuzzParse is about places near the end of the page most of all.
func FuzzParse(f *testing.F) {
	for seed := range uint64(64) {
		f.Add(testPage(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		page := make([]byte, PageSize)
		for i := PageSize; i > 0 && len(b) > 0; i -= len(b) {
			copy(page[max(0, i-len(b)):i], b)
		}
		checkParse(t, page)
	})
}
