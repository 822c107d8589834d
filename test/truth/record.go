// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"livedump.io/internal/session"
)

// Where the instrumented module shows what it saw in the stop (kmod/truth.c).
const (
	truthPages   = "/sys/kernel/debug/livedump_truth/pages"
	truthContent = "/sys/kernel/debug/livedump_truth/content"
)

// record is struct ld_truth_page: a page that the session reported, as it was in the stop.
type record struct {
	PFN            uint64
	Hash           uint64 // 0: none was taken
	HashUnaccessed uint64 // without the Accessed and Dirty bits of page-table entries
	PageFlags      uint64 // struct page
	Mapping        uint64
	RefCount       uint32
	MapCount       uint32 // or page type
	Aliases        alias
	Kept           uint32 // 1 + index in truthContent; 0: not there
	Class          session.Class
	Flags          session.PageFlags
}

// alias is the set of mappings that a page had in the stop.
type alias uint32

var aliasNames = []string{"vmalloc", "modules", "image", "writable", "exec", "vmemmap", "hot", "unmapped"}

func (a alias) String() string {
	var s []string
	for i, name := range aliasNames {
		if a&(1<<i) != 0 {
			s = append(s, name)
		}
	}
	if s == nil {
		return "direct"
	}
	return strings.Join(s, "+")
}

func readRecords(r io.Reader) ([]record, error) {
	var all []record
	for {
		var one record
		err := binary.Read(r, binary.LittleEndian, &one)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("records of the stop, after %d: %w", len(all), err)
		}
		all = append(all, one)
	}
}

// Accessed and Dirty of a page-table entry.
const accessedDirty = 1<<5 | 1<<6

// hashes are computed as the module computes them.
func hashes(page []byte) (plain, unaccessed uint64) {
	plain, unaccessed = 0xcbf29ce484222325, 0xcbf29ce484222325
	for ; len(page) > 0; page = page[8:] {
		w := binary.LittleEndian.Uint64(page)
		plain = hashStep(plain, w)
		unaccessed = hashStep(unaccessed, w&^accessedDirty)
	}
	return max(plain, 1), max(unaccessed, 1)
}

func hashStep(h, w uint64) uint64 { return (h ^ w ^ h>>29) * 0x100000001b3 }
