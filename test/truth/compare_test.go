// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"livedump.io/internal/kdump"
	"livedump.io/internal/session"
)

// fakeDump holds pages by page frame.
type fakeDump map[uint64]struct {
	info kdump.PageInfo
	page []byte
}

func (d fakeDump) Pages() uint64 { return uint64(len(d)) }

func (d fakeDump) ReadPage(pfn uint64, page []byte) (kdump.PageInfo, error) {
	p, ok := d[pfn]
	if !ok {
		return kdump.PageInfo{}, fmt.Errorf("page frame %#x: %w", pfn, kdump.ErrExcluded)
	}
	copy(page, p.page)
	return p.info, nil
}

// seen is the record of a page that had this content in the stop, and the dump's page.
func (d fakeDump) add(pfn uint64, flags session.PageFlags, was, is []byte) record {
	r := record{PFN: pfn, Class: session.ClassKernel, Flags: flags}
	r.Hash, r.HashUnaccessed = hashes(was)
	if flags&session.PageLost == 0 {
		entry := d[pfn]
		entry.info = kdump.PageInfo{Class: kdump.ClassKernel, Flags: kdump.PageFlags(flags)}
		entry.page = is
		d[pfn] = entry
	}
	return r
}

func page(words ...uint64) []byte {
	b := make([]byte, session.PageSize)
	for i, w := range words {
		binary.LittleEndian.PutUint64(b[i*8:], w)
	}
	return b
}

func TestCompare(t *testing.T) {
	const entry = 0x8000000012345007
	dump := fakeDump{}
	records := []record{
		dump.add(1, 0, page(1, 2, 3), page(1, 2, 3)),
		dump.add(2, 0, page(1, 2, 3), page(1, 2, 4)),
		dump.add(3, session.PageUncovered, page(7), page(8)),
		dump.add(4, session.PageUncovered, page(7), page(7)),
		dump.add(5, session.PageLost, page(9), nil),
		// Accessed and Dirty count only where the page is known as a table.
		dump.add(6, session.PageTable, page(entry), page(entry|accessedDirty)),
		dump.add(7, 0, page(entry), page(entry|accessedDirty)),
		// A table of which something else changed.
		dump.add(8, session.PageTable, page(entry), page(entry^0x1000)),
		// No hash was taken: it can't be right.
		{PFN: 9, Class: session.ClassKernel},
	}
	dump.add(9, 0, page(), page())
	c, err := compare(dump, records, false)
	if err != nil {
		t.Fatal(err)
	}
	var wrong []string
	for _, m := range c.List {
		wrong = append(wrong, m.PFN)
	}
	if got, want := strings.Join(wrong, " "), "0x2 0x7 0x8 0x9"; got != want {
		t.Errorf("mismatches: %s, want %s", got, want)
	}
	if c.Pages != 8 || c.Mismatches != 4 || c.Lost != 1 {
		t.Errorf("%d pages, %d mismatches, %d lost, want 8, 4, 1", c.Pages, c.Mismatches, c.Lost)
	}
	if c.Unstable != (Count{2, 1}) || c.PageTables != (Count{2, 1}) {
		t.Errorf("unstable %v, page tables %v, want {2 1} each", c.Unstable, c.PageTables)
	}
}

func TestCompareRefuses(t *testing.T) {
	one := func(d fakeDump) record { return d.add(1, 0, page(1), page(1)) }
	for name, c := range map[string]struct {
		records func(d fakeDump) []record
		want    string
	}{
		"twice":            {func(d fakeDump) []record { r := one(d); return []record{r, r} }, "reported twice"},
		"not in the dump":  {func(d fakeDump) []record { return []record{one(d), {PFN: 2, Class: session.ClassKernel}} }, "0x2"},
		"more in the dump": {func(d fakeDump) []record { r := one(d); d.add(2, 0, page(), page()); return []record{r} }, "the dump has 2 pages"},
		"lost but there": {func(d fakeDump) []record {
			r := d.add(1, session.PageUncovered, page(1), page(1))
			r.Flags = session.PageLost
			return []record{r}
		}, "is lost"},
		"other flags": {func(d fakeDump) []record { r := one(d); r.Flags = session.PageUncovered; return []record{r} }, "the dump says"},
		"nothing":     {func(fakeDump) []record { return nil }, "no page"},
	} {
		t.Run(name, func(t *testing.T) {
			d := fakeDump{}
			if _, err := compare(d, c.records(d), false); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// A page that two owners were given counts once, by what the dump says of it, and its content must be that of the stop.
func TestCompareTakenOver(t *testing.T) {
	d := fakeDump{}
	good, bad := d.add(1, 0, page(1), page(1)), d.add(2, 0, page(1), page(2))
	lost := d.add(3, 0, page(3), page(3))
	good.Flags, lost.Flags = session.PageCopy, session.PageLost
	c, err := compare(d, []record{good, bad, good, lost}, true)
	if err != nil {
		t.Fatal(err)
	}
	if c.Pages != 3 || c.Mismatches != 1 || c.Lost != 0 || c.List[0].PFN != "0x2" {
		t.Errorf("%+v", c)
	}
}

// Every bit of a page counts in its hash.
func TestHashes(t *testing.T) {
	was := page(1, 2, 3)
	plain, unaccessed := hashes(was)
	for bit := range session.PageSize * 8 {
		is := bytes.Clone(was)
		is[bit/8] ^= 1 << (bit % 8)
		p, u := hashes(is)
		if p == plain {
			t.Fatalf("bit %d does not count", bit)
		}
		if ad := bit%64 == 5 || bit%64 == 6; ad == (u != unaccessed) {
			t.Fatalf("bit %d: Accessed or Dirty is %t, but the hash without them changed: %t", bit, ad, u != unaccessed)
		}
	}
}

func TestVerdict(t *testing.T) {
	good := func() *Run {
		c := newComparison()
		c.Pages = 10
		return &Run{Load: "fork", Comparison: c, TablesRestored: true}
	}
	for name, c := range map[string]struct {
		spoil func(*Run)
		want  string
	}{
		"good":             {func(*Run) {}, ""},
		"mismatch":         {func(r *Run) { r.Mismatches = 1 }, "not as they were in the stop"},
		"lost":             {func(r *Run) { r.Lost = 1 }, "lost"},
		"tables":           {func(r *Run) { r.TablesRestored = false }, "page tables"},
		"error":            {func(r *Run) { r.Error = "broken" }, "broken"},
		"a bite unnoticed": {func(r *Run) { r.Bite = "vmalloc" }, "blind"},
		"a bite":           {func(r *Run) { r.Bite, r.Mismatches = "vmalloc", 3 }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			run := good()
			c.spoil(run)
			report := &Report{Runs: []*Run{run}}
			report.total()
			err := report.verdict()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("verdict %v, want %q", err, c.want)
			}
		})
	}
	if (&Report{}).verdict() == nil {
		t.Error("no run is as good as a good one")
	}
}
