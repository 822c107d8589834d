// SPDX-License-Identifier: Apache-2.0

package pagetables

import (
	"fmt"
	"strings"
	"testing"

	"livedump.io/test/guest"
)

const (
	image   = "image ffffffff81000000 pmd leaf 80000000000001e1 pa 0000000001000000 n 8\n"
	vmemmap = "vmemmap ffffea0000000000 pmd leaf 80000000000001e3 pa 0000000002000000 n 2\n"
	top     = "direct ffff888000000000 p4d table 0000000000000067 pa 0000000000001000\n" +
		"direct ffff888000000000 pud table 0000000000000067 pa 0000000000002000\n"
	whole = "direct ffff888000000000 pmd leaf 80000000000001e3 pa 0000000000000000 n 2\n"
	// The second huge leaf in pieces, one page of which is read-only.
	pieces = "direct ffff888000000000 pmd leaf 80000000000001e3 pa 0000000000000000 n 1\n" +
		"direct ffff888000200000 pmd table 0000000000000067 pa 0000000000003000\n" +
		"direct ffff888000200000 pte leaf 8000000000000161 pa 0000000000200000 n 1\n" +
		"direct ffff888000201000 pte leaf 8000000000000163 pa 0000000000201000 n 511\n"
	code = "modules ffffffffc0000000 pte leaf 0000000000000161 pa 0000000000200000 n 1\n"
)

func TestCompareLive(t *testing.T) {
	for name, c := range map[string]struct {
		before, after string
		split         int
		err           string // part of the error; empty: none
	}{
		"equal":         {before: top + whole, after: top + whole},
		"code explains": {before: top + whole, after: top + pieces + code, split: 1},
		"former code explains": {
			before: top + whole,
			after:  top + strings.Replace(pieces, "leaf 8000000000000161", "leaf 8000000000000063", 1), split: 1,
		},
		"former code left read-only": {
			before: top + whole,
			after:  top + strings.Replace(pieces, "leaf 8000000000000161", "leaf 8000000000000061", 1), err: "page frame 0x200",
		},
		"read-only left behind": {before: top + whole, after: top + pieces, err: "page frame 0x200"},
		"level above left read-only": {
			before: top + whole, after: strings.Replace(top, "pud table 0000000000000067", "pud table 0000000000000065", 1) + whole,
			err: "page frame 0x0",
		},
		"mark left behind":   {before: top + whole, after: top + strings.Replace(whole, "1e3", "9e3", 1), err: "page frame 0x0"},
		"page gone":          {before: top + whole, after: top + strings.Replace(whole, "n 2", "n 1", 1), err: "gone: "},
		"frame exchanged":    {before: top + whole, after: top + strings.Replace(whole, "pa 0000000000000000", "pa 0000000000400000", 1), err: "leads elsewhere"},
		"vmemmap not joined": {before: vmemmap + top + whole, after: strings.Replace(vmemmap, "n 2", "n 1", 1) + top + whole, err: "lines of vmemmap"},
	} {
		t.Run(name, func(t *testing.T) {
			rest := image
			if !strings.Contains(c.before, "vmemmap") {
				rest += vmemmap
			}
			d, err := CompareLive(tables(t, c.before+rest), tables(t, c.after+rest))
			switch {
			case c.err == "" && err != nil:
				t.Fatal(err)
			case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
				t.Fatalf("error %v, want one with %q", err, c.err)
			case d.Split != c.split && c.err == "":
				t.Fatalf("%d splits, want %d", d.Split, c.split)
			}
		})
	}
}

func tables(t *testing.T, text string) guest.PageTables {
	t.Helper()
	parsed, err := guest.ParsePageTables(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestTooManySplitsAreAnError(t *testing.T) {
	before := image + vmemmap + "direct ffff888000000000 pmd leaf 80000000000001e3 pa 0000000000000000 n 64\n"
	after := image + vmemmap + "direct ffff888000000000 pte leaf 8000000000000163 pa 0000000000000000 n 32768\n"
	if _, err := CompareLive(tables(t, before), tables(t, after)); err == nil || !strings.Contains(err.Error(), "64 huge leaves") {
		t.Fatalf("error %v, want one about 64 huge leaves", err)
	}
}

func TestManySplitsByCode(t *testing.T) {
	before := image + vmemmap + "direct ffff888000000000 pmd leaf 80000000000001e3 pa 0000000000000000 n 64\n"
	after := image + vmemmap + "direct ffff888000000000 pte leaf 8000000000000163 pa 0000000000000000 n 32768\n"
	for leaf := range 64 {
		after += fmt.Sprintf("modules %016x pte leaf 0000000000000161 pa %016x n 1\n", uint64(0xffffffffc0000000)+uint64(leaf)<<12, leaf<<21)
	}
	d, err := CompareLive(tables(t, before), tables(t, after))
	if err != nil || d.Split != 64 {
		t.Fatalf("%d splits explained, error %v; want 64 and none", d.Split, err)
	}
}

func TestCompareShared(t *testing.T) {
	const rest = image + vmemmap + "direct ffff888000000000 pmd leaf 80000000000001e3 pa 0000000000000000 n 64\n"
	const mapped = "vmalloc ffffc90000000000 pte leaf 8000000000000163 pa 0000000000200000 n 4\n"
	for name, c := range map[string]struct {
		after string
		pages int
		err   string // part of the error; empty: none
	}{
		"equal":               {after: mapped, pages: 4},
		"gone":                {after: ""},
		"some gone":           {after: strings.Replace(mapped, "n 4", "n 3", 1), pages: 3},
		"another in between":  {after: strings.Replace(mapped, "ffffc90000000000 pte leaf 8000000000000163 pa 0000000000200000 n 4", "ffffc90000001000 pte leaf 8000000000000161 pa 0000000000400000 n 2", 1)},
		"left read-only":      {after: strings.Replace(mapped, "163", "161", 1), err: "was "},
		"mark left behind":    {after: strings.Replace(mapped, "163", "963", 1), err: "was "},
		"the second one only": {after: strings.Replace(mapped, "n 4", "n 1", 1) + "vmalloc ffffc90000001000 pte leaf 8000000000000161 pa 0000000000201000 n 3\n", pages: 1, err: "was "},
	} {
		t.Run(name, func(t *testing.T) {
			pages, err := CompareShared(tables(t, rest+mapped), tables(t, rest+c.after), guest.RegionVmalloc)
			if pages != c.pages || (c.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("%d pages, error %v; want %d and %q", pages, err, c.pages, c.err)
			}
		})
	}
}
