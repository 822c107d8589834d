// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"testing"

	"livedump.io/internal/kdump"
)

// fakeDump has the page frames of its keys, each filled with a byte.
type fakeDump map[uint64]struct {
	fill  byte
	flags kdump.PageFlags
}

func (d fakeDump) ReadPage(pfn uint64, page []byte) (kdump.PageInfo, error) {
	p, ok := d[pfn]
	if !ok {
		return kdump.PageInfo{}, kdump.ErrExcluded
	}
	for i := range page {
		page[i] = p.fill
	}
	return kdump.PageInfo{Flags: p.flags}, nil
}

func recordsOf(fills map[uint64]byte) pages {
	var b bytes.Buffer
	for pfn, fill := range fills {
		_ = binary.Write(&b, binary.LittleEndian, pfn)
		b.Write(bytes.Repeat([]byte{fill}, kdump.PageSize))
	}
	return records(&b)
}

func TestCompareFindsEveryDifference(t *testing.T) {
	dump := fakeDump{1: {fill: 1}, 2: {fill: 2}, 3: {fill: 3, flags: kdump.PageUncovered}, 4: {}}
	for _, tt := range []struct {
		name string
		file map[uint64]byte
		want Comparison
		ok   bool
	}{
		{"the same", map[uint64]byte{1: 1, 2: 2, 3: 3, 4: 0, 5: 0}, Comparison{Pages: 3, Equal: 4}, true},
		{"a zero page is left out", map[uint64]byte{1: 1, 2: 2, 3: 3}, Comparison{Pages: 3, Equal: 3}, true},
		{"a page differs", map[uint64]byte{1: 1, 2: 9, 3: 3}, Comparison{Pages: 3, Equal: 2, Mismatches: 1}, false},
		{"an uncovered page differs", map[uint64]byte{1: 1, 2: 2, 3: 9}, Comparison{Pages: 3, Equal: 2, UncoveredDiffer: 1}, true},
		{"a page reads as zeros", map[uint64]byte{1: 1, 2: 0, 3: 3}, Comparison{Pages: 2, Equal: 2, Mismatches: 1}, false},
		{"a page is missing", map[uint64]byte{1: 1, 3: 3}, Comparison{Pages: 2, Equal: 2, OnlyInDump: 1}, false},
		{"a page that was left out has data", map[uint64]byte{1: 1, 2: 2, 3: 3, 6: 1}, Comparison{Pages: 4, Equal: 3, OnlyInFile: 1}, false},
		{"nothing", map[uint64]byte{}, Comparison{OnlyInDump: 3}, false},
	} {
		got, err := compare("file", recordsOf(tt.file), dump, 8)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if ok := got.err() == nil; ok != tt.ok {
			t.Errorf("%s: %v", tt.name, got.err())
		}
		got.File, got.examples = "", nil
		if got.Pages != tt.want.Pages || got.Equal != tt.want.Equal || got.Mismatches != tt.want.Mismatches ||
			got.UncoveredDiffer != tt.want.UncoveredDiffer || got.OnlyInFile != tt.want.OnlyInFile || got.OnlyInDump != tt.want.OnlyInDump {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestCompareRefusesFramesBeyondTheDump(t *testing.T) {
	if _, err := compare("file", recordsOf(map[uint64]byte{9: 1}), fakeDump{1: {fill: 1}}, 8); err == nil {
		t.Error("no error")
	}
}
