// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"strings"
	"testing"
)

const sampleTables = `other ff43000000000000 pgd table 0000000000000047 pa 000000001d801000
direct ff4398c200000000 pmd table 0000000000000047 pa 000000001d804000
direct ff4398c200000000 pte leaf 8000000000000103 pa 0000000000000000 n 152
direct ff4398c200200000 pmd leaf 8000000000000183 pa 0000000000200000 n 17
vmalloc ff4b250500000000 pte leaf 8000000000000163 pa 0000000000600000 n 4
vmemmap ffd40d8900000000 pmd leaf 80000000000001e3 pa 000000001a000000 n 8
image ffffffff9a600000 pmd leaf 00000000000001a1 pa 0000000012600000 n 9
`

func tablesOf(t *testing.T, text string) PageTables {
	t.Helper()
	tables, err := ParsePageTables(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

func TestParsePageTables(t *testing.T) {
	tables := tablesOf(t, sampleTables)
	want := Entry{Region: RegionDirect, VA: 0xff4398c200200000, Level: "pmd", Leaf: true, Flags: 0x8000000000000183, PA: 0x200000, Count: 17}
	if got := tables[RegionDirect][2]; got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	leaves := tables.Leaves(RegionDirect)
	if leaves["pte"] != 152 || leaves["pmd"] != 17 || len(leaves) != 2 {
		t.Errorf("leaves: %v", leaves)
	}
	for name, bad := range map[string]string{
		"empty":       "",
		"no image":    strings.ReplaceAll(sampleTables, "image", "other"),
		"cut line":    sampleTables + "direct ff4398c2",
		"no count":    sampleTables + "direct ff4398c200000000 pte leaf 8000000000000103 pa 0000000000000000\n",
		"not a digit": sampleTables + "direct ff4398c20000000x pte leaf 8000000000000103 pa 0000000000000000 n 1\n",
	} {
		if _, err := ParsePageTables(strings.NewReader(bad)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestComparePageTables(t *testing.T) {
	before := tablesOf(t, sampleTables)
	if err := before.Compare(tablesOf(t, sampleTables), StableRegions...); err != nil {
		t.Error(err)
	}
	// The vmalloc area is compared only if asked for.
	churned := tablesOf(t, strings.Replace(sampleTables, "600000 n 4", "800000 n 4", 1))
	if err := before.Compare(churned, StableRegions...); err != nil {
		t.Error(err)
	}
	if err := before.Compare(churned, RegionVmalloc); err == nil {
		t.Error("vmalloc: a difference was not told")
	}
	for name, test := range map[string]struct {
		old, with string
		lines     int
	}{
		"flag":     {"leaf 8000000000000183", "leaf 8000000000000181", 2},
		"mark":     {"table 0000000000000047 pa 000000001d804000", "table 0000000000000447 pa 000000001d804000", 2},
		"split":    {"pmd leaf 8000000000000183 pa 0000000000200000 n 17", "pmd table 0000000000000067 pa 0000000000300000", 2},
		"gone":     {"direct ff4398c200200000 pmd leaf 8000000000000183 pa 0000000000200000 n 17\n", "", 1},
		"address":  {"pa 0000000000200000", "pa 0000000000400000", 2},
		"one less": {"n 17", "n 16", 2},
	} {
		t.Run(name, func(t *testing.T) {
			err := before.Compare(tablesOf(t, strings.Replace(sampleTables, test.old, test.with, 1)), StableRegions...)
			var differ *PageTablesError
			if !errors.As(err, &differ) {
				t.Fatalf("got %v", err)
			}
			if n := differ.Differences[RegionDirect]; n != test.lines || len(differ.First) != test.lines {
				t.Errorf("%d lines: %v", n, err)
			}
		})
	}
}
