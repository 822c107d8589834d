// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// PageTablesFile is where kmod/test's module shows the page tables.
const PageTablesFile = "/sys/kernel/debug/livedump_pgtables"

// Region is a range of kernel addresses.
type Region string

// Regions of the kernel half. The vmalloc area and the modules' change with the
// workload, and Other holds what is per process.
const (
	RegionDirect  Region = "direct"
	RegionVmalloc Region = "vmalloc"
	RegionVmemmap Region = "vmemmap"
	RegionImage   Region = "image"
	RegionModules Region = "modules"
	RegionOther   Region = "other"
)

// StableRegions are those that a workload leaves alone, and a session too.
var StableRegions = []Region{RegionDirect, RegionVmemmap, RegionImage}

// Entry is one line of a page-table dump: a table entry, or Count leaves in a row
// with the same flags and consecutive physical addresses.
type Entry struct {
	Region Region
	VA     uint64
	Level  string // pgd, p4d, pud, pmd, pte
	Leaf   bool
	Flags  uint64
	PA     uint64
	Count  int
}

func (e Entry) String() string {
	kind := "table"
	if e.Leaf {
		kind = fmt.Sprintf("leaf x%d", e.Count)
	}
	return fmt.Sprintf("%016x %s %s flags %016x pa %016x", e.VA, e.Level, kind, e.Flags, e.PA)
}

// PageTables is a dump by region, in order of address.
type PageTables map[Region][]Entry

// ParsePageTables reads a dump.
func ParsePageTables(r io.Reader) (PageTables, error) {
	tables := PageTables{}
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		e, err := parseEntry(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("page tables, line %d: %w", n, err)
		}
		tables[e.Region] = append(tables[e.Region], e)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	for _, region := range StableRegions {
		if len(tables[region]) == 0 {
			return nil, fmt.Errorf("page tables: nothing in region %s: the dump is not whole", region)
		}
	}
	return tables, nil
}

func parseEntry(line string) (Entry, error) {
	f := strings.Fields(line)
	if len(f) < 7 || f[5] != "pa" {
		return Entry{}, fmt.Errorf("unexpected %q", line)
	}
	e := Entry{Region: Region(f[0]), Level: f[2], Leaf: f[3] == "leaf", Count: 1}
	var err error
	for _, hex := range []struct {
		text string
		into *uint64
	}{{f[1], &e.VA}, {f[4], &e.Flags}, {f[6], &e.PA}} {
		if *hex.into, err = strconv.ParseUint(hex.text, 16, 64); err != nil {
			return e, err
		}
	}
	if e.Leaf {
		if len(f) != 9 || f[7] != "n" {
			return Entry{}, fmt.Errorf("unexpected %q", line)
		}
		e.Count, err = strconv.Atoi(f[8])
	}
	return e, err
}

// Leaves counts the leaves of a region by level.
func (t PageTables) Leaves(region Region) map[string]int {
	count := map[string]int{}
	for _, e := range t[region] {
		if e.Leaf {
			count[e.Level] += e.Count
		}
	}
	return count
}

// PageTablesError says in what two dumps differ.
type PageTablesError struct {
	// Differences counts the lines that only one of the dumps has, by region.
	Differences map[Region]int
	// First are some of them, "-" for the first dump and "+" for the second.
	First []string
}

func (e *PageTablesError) Error() string {
	s := "page tables differ:"
	for _, region := range []Region{RegionDirect, RegionVmemmap, RegionImage, RegionVmalloc, RegionModules, RegionOther} {
		if n := e.Differences[region]; n > 0 {
			s += fmt.Sprintf(" %d lines of %s", n, region)
		}
	}
	return s + "\n  " + strings.Join(e.First, "\n  ")
}

// Compare returns a *PageTablesError if two dumps differ in the given regions.
func (t PageTables) Compare(other PageTables, regions ...Region) error {
	const shown = 20
	result := &PageTablesError{Differences: map[Region]int{}}
	note := func(sign string, e Entry) {
		result.Differences[e.Region]++
		if len(result.First) < shown {
			result.First = append(result.First, fmt.Sprintf("%s %s %s", sign, e.Region, e))
		}
	}
	for _, region := range regions {
		a, b := t[region], other[region]
		for len(a) > 0 || len(b) > 0 {
			switch {
			case len(a) > 0 && len(b) > 0 && a[0] == b[0]:
				a, b = a[1:], b[1:]
			case len(b) == 0 || len(a) > 0 && before(a[0], b[0]):
				note("-", a[0])
				a = a[1:]
			case len(a) == 0 || before(b[0], a[0]):
				note("+", b[0])
				b = b[1:]
			default: // the same place, another content
				note("-", a[0])
				note("+", b[0])
				a, b = a[1:], b[1:]
			}
		}
	}
	if len(result.Differences) > 0 {
		return result
	}
	return nil
}

// levelOrder is the order of the lines of one address: tables come before what
// they hold.
var levelOrder = map[string]int{"pgd": 0, "p4d": 1, "pud": 2, "pmd": 3, "pte": 4}

func before(a, b Entry) bool {
	if a.VA != b.VA {
		return a.VA < b.VA
	}
	return levelOrder[a.Level] < levelOrder[b.Level]
}

// PageTables dumps the guest's page tables. kmod/test's module must be loaded.
func (g *Guest) PageTables(ctx context.Context) (PageTables, error) {
	b, err := g.ReadFile(ctx, PageTablesFile)
	if err != nil {
		return nil, err
	}
	return ParsePageTables(strings.NewReader(string(b)))
}

// SettledPageTables dumps until two dumps in a row agree in the stable regions,
// or the context ends. The kernel frees a loaded module's init sections a moment
// later, and that changes the direct map.
func (g *Guest) SettledPageTables(ctx context.Context) (PageTables, error) {
	last, err := g.PageTables(ctx)
	if err != nil {
		return nil, err
	}
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("page tables did not settle: %w", ctx.Err())
		case <-time.After(500 * time.Millisecond):
		}
		now, err := g.PageTables(ctx)
		if err != nil {
			return nil, err
		}
		if last.Compare(now, StableRegions...) == nil {
			return now, nil
		}
		last = now
	}
}
