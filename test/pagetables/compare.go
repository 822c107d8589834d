// SPDX-License-Identifier: Apache-2.0

// Package pagetables says whether a session has left anything in the page tables
// of a node that goes on living: containers start and end, and with them come
// and go BPF programs and modules, which change page tables by themselves.
package pagetables

import (
	"fmt"

	"livedump.io/test/guest"
)

// Difference is what a comparison found that a living node explains by itself.
type Difference struct {
	// CodePages counts entries whose permissions changed because code was put
	// into their pages or taken out.
	CodePages int
	// Split counts huge leaves that are in pieces now and have pages that hold or held code:
	// loading it splits them, and the kernel does not join them again.
	Split int
}

// splitLimit bounds the leaves in pieces that no code explains: what code leaves behind in the
// direct map can't be told in every case. A session that would not join what it split leaves many more: hundreds on
// a busy node.
const splitLimit = 24

// CompareLive is an error if two dumps of a living node's page tables differ in
// more than the node's own life explains:
//
//   - vmemmap must be equal, entry by entry;
//   - every page of the direct map and of the kernel image must be mapped with
//     the same effective permissions and bits (a session's marks are such bits),
//     but for pages that hold or held code: the kernel makes them read-only in
//     all their mappings, and when the code goes it gives the direct map back
//     without the Global bit and the image nothing at all (code may lie in those
//     parts of the image that were freed after boot);
//   - huge leaves must be huge again, but for those that such code has split, and a few.
//
// The vmalloc and modules regions are not compared: threads' stacks live there.
func CompareLive(before, after guest.PageTables) (Difference, error) {
	var d Difference
	if err := before.Compare(after, guest.RegionVmemmap); err != nil {
		return d, err
	}
	code := codeFrames(before)
	for frame := range codeFrames(after) {
		code[frame] = true
	}
	for frame := range formerCode(after) {
		code[frame] = true
	}
	unexplained := 0
	for _, region := range []guest.Region{guest.RegionDirect, guest.RegionImage} {
		old, now := leaves(before[region]), leaves(after[region])
		if len(old) == 0 || len(now) == 0 {
			return d, fmt.Errorf("a page-table dump has nothing of region %s", region)
		}
		ofCode, others := newSplits(old, now, code)
		d.Split += ofCode
		unexplained += others
		explained, err := comparePages(old, now, code)
		if err != nil {
			return d, fmt.Errorf("region %s: %w", region, err)
		}
		d.CodePages += explained
	}
	if unexplained > splitLimit {
		return d, fmt.Errorf("%d huge leaves without code are in pieces that were whole before (up to %d are expected of loading code)", unexplained, splitLimit)
	}
	return d, nil
}

// Bits of an entry. In huge leaves bit 7 says that they are huge, and what is
// bit 7 elsewhere is bit 12.
const (
	bitRW      = 1 << 1
	bitHuge    = 1 << 7
	bitGlobal  = 1 << 8
	bitHugePAT = 1 << 12
	bitNX      = 1 << 63
	pageShift  = 12
)

// spanBits is the address bits that one entry of a level spans.
var spanBits = map[string]int{"pte": pageShift, "pmd": 21, "pud": 30, "p4d": 39, "pgd": 48}

// leaf is a run of leaves of one level that map consecutive frames in the same way.
type leaf struct {
	va, pfn, pages uint64
	level          string
	// flags are as those of a 4 KiB leaf, writable only if every level above allows it.
	flags uint64
	entry guest.Entry
}

// leaves takes the leaves of a region with their effective permissions.
func leaves(entries []guest.Entry) []leaf {
	var list []leaf
	// above holds the table entries on the way to the current place, which come
	// before what they hold.
	above := map[string]uint64{}
	for _, e := range entries {
		if !e.Leaf {
			above[e.Level] = e.Flags
			continue
		}
		flags := e.Flags
		if e.Level != "pte" {
			flags = flags&^(bitHuge|bitHugePAT) | flags&bitHugePAT>>5
		}
		for level, bits := range spanBits {
			if table, ok := above[level]; ok && bits > spanBits[e.Level] && table&bitRW == 0 {
				flags &^= bitRW
			}
		}
		list = append(list, leaf{
			va: e.VA, pfn: e.PA >> pageShift, pages: uint64(e.Count) << (spanBits[e.Level] - pageShift),
			level: e.Level, flags: flags, entry: e,
		})
	}
	return list
}

// comparePages walks two dumps of a region by address, in steps in which neither
// changes, and counts the pages whose difference code explains.
func comparePages(before, after []leaf, code map[uint64]bool) (explained int, err error) {
	x, y := walk{list: before}, walk{list: after}
	for !x.ended() && !y.ended() {
		was, is := x.here(), y.here()
		switch {
		case was.va < is.va:
			return 0, fmt.Errorf("gone: %s", was.entry)
		case is.va < was.va:
			return 0, fmt.Errorf("new: %s", is.entry)
		case was.pfn != is.pfn:
			return 0, fmt.Errorf("%#x leads elsewhere: was %s; is %s", was.va, was.entry, is.entry)
		}
		pages := min(was.pages, is.pages)
		if was.flags != is.flags {
			for frame := was.pfn; frame < was.pfn+pages; frame++ {
				if !code[frame] {
					return 0, fmt.Errorf("page frame %#x: was %s; is %s", frame, was.entry, is.entry)
				}
				explained++
			}
		}
		x.step(pages)
		y.step(pages)
	}
	if !x.ended() {
		return 0, fmt.Errorf("gone: %s", x.here().entry)
	}
	if !y.ended() {
		return 0, fmt.Errorf("new: %s", y.here().entry)
	}
	return explained, nil
}

// walk is a place in a list of leaves: a leaf and the pages of it that were passed.
type walk struct {
	list   []leaf
	passed uint64
}

func (w *walk) ended() bool { return len(w.list) == 0 }

// here is what is left of the current leaf.
func (w *walk) here() leaf {
	l := w.list[0]
	l.va += w.passed << pageShift
	l.pfn += w.passed
	l.pages -= w.passed
	return l
}

func (w *walk) step(pages uint64) {
	if w.passed += pages; w.passed == w.list[0].pages {
		w.list, w.passed = w.list[1:], 0
	}
}

// codeFrames are the frames that modules, BPF programs and the like map
// read-only or executable.
func codeFrames(t guest.PageTables) map[uint64]bool {
	frames := map[uint64]bool{}
	for _, region := range []guest.Region{guest.RegionVmalloc, guest.RegionModules} {
		for _, l := range leaves(t[region]) {
			if l.flags&bitRW != 0 && l.flags&bitNX != 0 {
				continue
			}
			for frame := l.pfn; frame < l.pfn+l.pages; frame++ {
				frames[frame] = true
			}
		}
	}
	return frames
}

// formerCode are the frames that held code once: when code is freed, its pages'
// entries in the direct map are made anew, without the Global bit that every
// other entry has.
func formerCode(t guest.PageTables) map[uint64]bool {
	frames := map[uint64]bool{}
	global := false
	for _, l := range leaves(t[guest.RegionDirect]) {
		global = global || l.flags&bitGlobal != 0
		// Read-only it would not be given back but left behind.
		if l.level != "pte" || l.flags&bitGlobal != 0 || l.flags&bitRW == 0 {
			continue
		}
		for frame := l.pfn; frame < l.pfn+l.pages; frame++ {
			frames[frame] = true
		}
	}
	if !global { // a kernel that does not use the bit at all
		return nil
	}
	return frames
}

// newSplits counts the huge leaves of one map that another has in pieces, those with code
// and the others.
func newSplits(before, after []leaf, code map[uint64]bool) (ofCode, others int) {
	whole := map[uint64]string{}
	eachHuge(after, func(va, _ uint64, level string) { whole[va] = level })
	eachHuge(before, func(va, pfn uint64, level string) {
		if whole[va] == level {
			return
		}
		for frame := pfn; frame < pfn+1<<(spanBits[level]-pageShift); frame++ {
			if code[frame] {
				ofCode++
				return
			}
		}
		others++
	})
	return ofCode, others
}

func eachHuge(list []leaf, visit func(va, pfn uint64, level string)) {
	for _, l := range list {
		if l.level == "pte" {
			continue
		}
		span := uint64(1) << spanBits[l.level]
		for va := l.va; va < l.va+l.pages<<pageShift; va += span {
			visit(va, l.pfn+(va-l.va)>>pageShift, l.level)
		}
	}
}
