// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"livedump.io/internal/elfcore"
	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
	"livedump.io/internal/target"
)

// What the made-up node's dump in these tests has: two pages are lost, every fifth is uncovered.
var lostPages = []kdump.PFNRange{{Start: 300, End: 301}, {Start: 1100, End: 1102}}

func isLost(pfn uint64) bool {
	return slices.ContainsFunc(lostPages, func(r kdump.PFNRange) bool { return pfn >= r.Start && pfn < r.End })
}

func refOf(pfn uint64) kdump.PageRef {
	ref := kdump.PageRef{PFN: pfn, Class: kdump.ClassKernel}
	if pfn%5 == 0 {
		ref.Class, ref.Flags = kdump.ClassUser, kdump.PageUncovered
	}
	if isLost(pfn) {
		ref.Flags = kdump.PageLost
	}
	return ref
}

// nodePages are the pages in the file, in no order.
func nodePages() (pfns []uint64) {
	for _, r := range inFile {
		for pfn := r.Start; pfn < r.End; pfn++ {
			pfns = append(pfns, pfn)
		}
	}
	slices.SortFunc(pfns, func(a, b uint64) int { return int(a*7919%2003) - int(b*7919%2003) })
	return pfns
}

// writeAs has the node's dump written in a format, with so few whereabouts in memory that most go elsewhere.
func writeAs(t *testing.T, f format.Format) (string, kdump.Summary) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dump")
	pfns := nodePages()
	m := meta(uint64(len(pfns)))
	m.DumpLevel = 1
	room, err := f.MaxRoom(m.MaxPFN, m.Pages, len(m.Notes))
	if err != nil {
		t.Fatal(err)
	}
	out, err := target.CreateFile(path, target.FileOptions{Room: room + 1<<20})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w, err := format.NewWriter(out, f, m, kdump.Options{Codec: kdump.CodecSnappy, IndexPages: 100, Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	var givers sync.WaitGroup
	for part := range slices.Chunk(pfns, len(pfns)/3+1) {
		givers.Go(func() {
			for batch := range slices.Chunk(part, 37) {
				var refs []kdump.PageRef
				var data []byte
				for _, pfn := range batch {
					refs, data = append(refs, refOf(pfn)), append(data, physical(pfn)...)
				}
				if err := w.Add(refs, data); err != nil {
					t.Error(err)
				}
			}
		})
	}
	givers.Wait()
	sum, err := w.Finish(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return path, sum
}

// checkNode compares what a dump has with the node: content, classes, flags, and what is lost.
func checkNode(t *testing.T, path string) {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if u := s.Meta.Utsname; u.Release != "6.1.0-test" || u.Machine != "x86_64" {
		t.Errorf("utsname %+v", u)
	}
	want := meta(0)
	if m := s.Meta; m.Session != want.Session || !m.FrozenAt.Equal(want.FrozenAt) || m.Stop != want.Stop || m.DumpLevel != 1 ||
		!bytes.Equal(m.Notes, want.Notes) || m.VMCoreInfoOffset != want.VMCoreInfoOffset || m.NrCPUs != 1 {
		t.Errorf("other meta data: %+v", m)
	}
	var mu sync.Mutex
	seen := map[uint64]bool{}
	err = s.each(context.Background(), 2, func(refs []kdump.PageRef, data []byte) error {
		mu.Lock()
		defer mu.Unlock()
		for i, ref := range refs {
			want := refOf(ref.PFN)
			if isLost(ref.PFN) {
				want.Class = ref.Class
			}
			if seen[ref.PFN] || ref != want {
				t.Errorf("page %+v (before: %v), want %+v", ref, seen[ref.PFN], want)
			}
			seen[ref.PFN] = true
			if !isLost(ref.PFN) && !bytes.Equal(data[i*kdump.PageSize:][:kdump.PageSize], physical(ref.PFN)) {
				t.Errorf("page %d has other content", ref.PFN)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(nodePages()); len(seen) != n || s.Meta.Pages != uint64(n) || s.Lost != 3 {
		t.Errorf("%d pages, the dump says %d and %d lost; want %d and 3", len(seen), s.Meta.Pages, s.Lost, n)
	}
	report, err := s.Verify(context.Background(), kdump.VerifyOptions{})
	if err != nil || !report.OK {
		t.Errorf("verify: %+v, %v", report, err)
	}
	info, err := s.Info()
	if err != nil {
		t.Fatal(err)
	}
	if l := info.Livedump; l == nil || !slices.Equal(l.LostRanges, lostPages) || l.UncoveredPages == 0 || l.DumpedByClass["User"] != l.UncoveredPages {
		t.Errorf("info: %+v", l)
	}
}

func TestFormats(t *testing.T) {
	for _, f := range []format.Format{format.Kdump, format.Flattened, format.ELF} {
		t.Run(f.String(), func(t *testing.T) {
			path, sum := writeAs(t, f)
			checkNode(t, path)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if uint64(len(b)) != sum.Bytes || sum.Lost != 3 {
				t.Errorf("%d bytes, the summary says %+v", len(b), sum)
			}
			for _, to := range []format.Format{format.Kdump, format.Flattened, format.ELF} {
				other := filepath.Join(t.TempDir(), "other")
				run(t, path, other, Options{Format: to})
				checkNode(t, other)
			}
		})
	}
}

// TestELFHeaders has another reader of ELF files look at the program headers.
func TestELFHeaders(t *testing.T) {
	path, _ := writeAs(t, format.ELF)
	e, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	covered := map[uint64]bool{}
	image := 0
	for _, p := range e.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		if p.Vaddr >= 0xffffffff80000000 {
			image++
			if p.Vaddr != 0xffffffff80000000 || p.Paddr != 16*kdump.PageSize || p.Memsz != 12*kdump.PageSize {
				t.Errorf("the kernel's image: %+v", p.ProgHeader)
			}
		} else if p.Vaddr != 0xffff888000000000+p.Paddr {
			t.Errorf("not in the direct map: %+v", p.ProgHeader)
		}
		for at := uint64(0); at < p.Memsz; at += kdump.PageSize {
			b := make([]byte, kdump.PageSize)
			if _, err := p.ReadAt(b, int64(at)); err != nil {
				t.Fatal(err)
			}
			pfn := (p.Paddr + at) / kdump.PageSize
			covered[pfn] = true
			if !bytes.Equal(b, physical(pfn)) {
				t.Fatalf("page %d has other content", pfn)
			}
		}
	}
	for _, pfn := range nodePages() {
		if covered[pfn] == isLost(pfn) {
			t.Errorf("page %d, lost: %v, covered: %v", pfn, isLost(pfn), covered[pfn])
		}
	}
	if image != 1 {
		t.Errorf("the kernel's image comes %d times", image)
	}
	// The two ranges of the node, cut where pages are lost, and the image.
	if n := len(e.Progs); n != 1+1+4 {
		t.Errorf("%d program headers", n)
	}
}

// TestTornELF damages a vmcore in every way that matters.
func TestTornELF(t *testing.T) {
	path, _ := writeAs(t, format.ELF)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := elfcore.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	rec := *c.Record
	c.Close()
	write := func(b []byte) string {
		p := filepath.Join(t.TempDir(), "torn")
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, n := range []int{0, 40, 5000, int(rec.DataOffset) + 100*kdump.PageSize, int(rec.SumsOffset), len(whole) - 1} {
		if s, err := Open(write(whole[:n])); err == nil {
			s.Close()
			t.Errorf("%d of %d bytes are taken for a dump", n, len(whole))
		}
	}
	for name, at := range map[string]uint64{
		"a page":  rec.DataOffset + 31*kdump.PageSize + 77,
		"a table": rec.SumsOffset + 8*kdump.ELFEntryBytes + 12,
	} {
		b := bytes.Clone(whole)
		b[at] ^= 4
		s, err := Open(write(b))
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Verify(context.Background(), kdump.VerifyOptions{})
		s.Close()
		if err != nil || r.OK || r.DamagedPageCount != 1 {
			t.Errorf("%s was damaged: %+v, %v", name, r, err)
		} else if name == "a page" && r.DamagedPages[0].PFN != 31 {
			t.Errorf("page 31 was damaged: %+v", r.DamagedPages)
		}
	}
}

func TestTornFlattened(t *testing.T) {
	path, _ := writeAs(t, format.Flattened)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, b []byte, want error) {
		t.Helper()
		p := filepath.Join(t.TempDir(), "torn")
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(p); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
			if err == nil {
				s.Close()
			}
		}
		out := filepath.Join(t.TempDir(), "plain")
		if _, err := Rearrange(context.Background(), p, out, nil); !errors.Is(err, want) {
			t.Errorf("rearranging, %s: %v, want %v", what, err, want)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("rearranging, %s: there is a file", what)
		}
	}
	for _, n := range []int{20, 4000, 4100, len(whole) / 2, len(whole) - 1, len(whole) - 16} {
		check("cut", whole[:n], kdump.ErrTruncated)
	}
	check("continued", append(bytes.Clone(whole), 0), kdump.ErrDamaged)
	b := bytes.Clone(whole)
	binary.BigEndian.PutUint64(b[24:], 2)
	check("another version", b, kdump.ErrVersion)
	b = bytes.Clone(whole)
	binary.BigEndian.PutUint64(b[4096:], 1<<60)
	check("a record far away", b, kdump.ErrDamaged)
}

// TestRearrange: the plain dump is the one that would have been written directly, but for nothing.
func TestRearrange(t *testing.T) {
	flat, _ := writeAs(t, format.Flattened)
	plain := filepath.Join(t.TempDir(), "plain")
	size, err := Rearrange(context.Background(), flat, plain, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkNode(t, plain)
	if st, err := os.Stat(plain); err != nil || st.Size() != size {
		t.Errorf("size %d, %v", size, err)
	}
	if yes, err := IsFlattened(plain); yes || err != nil {
		t.Errorf("the plain dump is flattened: %v, %v", yes, err)
	}
}

// TestLaterRecords: of records for the same place the last one in the stream counts, as it does for makedumpfile -R.
func TestLaterRecords(t *testing.T) {
	b := make([]byte, 4096)
	copy(b, "makedumpfile")
	be := binary.BigEndian
	be.PutUint64(b[16:], 1)
	be.PutUint64(b[24:], 1)
	want := make([]byte, 9000)
	n := 0
	for i, r := range [][2]int{{0, 4096}, {8000, 1000}, {100, 50}, {4000, 500}, {120, 10}, {50, 3000}, {8999, 1}, {0, 0}, {2990, 1500}} {
		b = be.AppendUint64(be.AppendUint64(b, uint64(r[0])), uint64(r[1]))
		for k := range r[1] {
			v := byte(i*37 + k + 1)
			b, want[r[0]+k] = append(b, v), v
		}
		n = max(n, r[0]+r[1])
	}
	b = append(b, bytes.Repeat([]byte{0xff}, 16)...)
	f, err := kdump.OpenFlattened(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if f.Size() != int64(n) {
		t.Errorf("size %d, want %d", f.Size(), n)
	}
	for _, r := range [][2]int{{0, 9000}, {0, 1}, {4090, 20}, {49, 2}, {4500, 3000}, {4499, 3502}, {8998, 2}, {149, 1}} {
		got := bytes.Repeat([]byte{0xee}, r[1])
		if n, err := f.ReadAt(got, int64(r[0])); n != r[1] || err != nil {
			t.Errorf("reading %v: %d, %v", r, n, err)
		}
		if !bytes.Equal(got, want[r[0]:r[0]+r[1]]) {
			t.Errorf("reading %v: other content", r)
		}
	}
}

// TestManyRuns: more runs of pages than there may be PT_LOADs.
func TestManyRuns(t *testing.T) {
	const pages, step = 6000, 300
	m := meta(pages)
	m.MaxPFN, m.RAM = pages*step, nil
	path := filepath.Join(t.TempDir(), "dump")
	room, err := format.ELF.MaxRoom(m.MaxPFN, m.Pages, len(m.Notes))
	if err != nil {
		t.Fatal(err)
	}
	out, err := target.CreateFile(path, target.FileOptions{Room: room})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w, err := format.NewWriter(out, format.ELF, m, kdump.Options{NoReadBack: true})
	if err != nil {
		t.Fatal(err)
	}
	page := func(i uint64) []byte {
		if i%100 == 0 {
			return bytes.Repeat([]byte("x"), kdump.PageSize)
		}
		return zeroPage[:]
	}
	at := func(i uint64) uint64 { return i*step - i%3/2*50 } // gaps of 249, 299 and 349 pages
	for i := range uint64(pages) {
		if err := w.Add([]kdump.PageRef{{PFN: at(i), Class: kdump.ClassKernel}}, page(i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(context.Background()); err != nil {
		t.Fatal(err)
	}
	c, err := elfcore.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n := len(c.RAM()); n > 4096 || n < 1 {
		t.Errorf("%d PT_LOADs", n)
	}
	got := make([]byte, kdump.PageSize)
	for i := range uint64(pages) {
		if err := c.ReadPage(at(i), got); err != nil || !bytes.Equal(got, page(i)) {
			t.Fatalf("page %d: %v, or other content", at(i), err)
		}
	}
}
