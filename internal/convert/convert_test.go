// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livedump.io/internal/kdump"
	"livedump.io/internal/kernelmem"
)

const vmcoreinfo = "OSRELEASE=6.1.0-test\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff80002000\n" +
	"SYMBOL(init_uts_ns)=ffffffff80001800\nOFFSET(uts_namespace.name)=16\nNUMBER(phys_base)=65536\n" +
	"SYMBOL(_stext)=ffffffff80000000\n"

// The memory of the made-up node: two ranges of page frames with a hole between them, and one that is
// RAM but not in the file.
var (
	inFile = []kdump.PFNRange{{Start: 16, End: 600}, {Start: 1000, End: 1300}}
	absent = kdump.PFNRange{Start: 1300, End: 1310}
)

func notes() []byte {
	var b []byte
	le := binary.LittleEndian
	add := func(name string, typ uint32, desc []byte) {
		b = le.AppendUint32(b, uint32(len(name)+1))
		b = le.AppendUint32(b, uint32(len(desc)))
		b = le.AppendUint32(b, typ)
		b = append(append(b, name...), make([]byte, 4-len(name)%4)...)
		b = append(append(b, desc...), make([]byte, -len(desc)&3)...)
	}
	prstatus := make([]byte, 336)
	prstatus[32] = 1
	add("CORE", 1, prstatus)
	add("VMCOREINFO", 0, []byte(vmcoreinfo))
	return b
}

// physical makes the content of a page: kernel's name and page tables where VMCOREINFO says they are.
func physical(pfn uint64) []byte {
	b := make([]byte, kdump.PageSize)
	le := binary.LittleEndian
	switch {
	case pfn == 17: // 0xffffffff80001000 with phys_base 16 pages
		for i, s := range []string{"Linux", "node-3", "6.1.0-test", "#7 SMP", "x86_64", "(none)"} {
			copy(b[0x800+16+65*i:], s)
		}
	case pfn == 18: // top of the page tables: 0xffff888000000000 is entry 273
		le.PutUint64(b[273*8:], 19<<12|1)
		le.PutUint64(b[511*8:], 22<<12|1)
	case pfn == 19: // one page of 1 GiB, and a table
		le.PutUint64(b[0:], 0<<12|1|1<<7)
		le.PutUint64(b[8:], 20<<12|1)
	case pfn == 20: // one of 2 MiB, and a table
		le.PutUint64(b[0:], 0x200000|1|1<<7|1<<63)
		le.PutUint64(b[8:], 21<<12|1)
	case pfn == 21:
		le.PutUint64(b[8:], 17<<12|1)
	case pfn == 22: // the kernel's image: 12 pages from page frame 16 on, with a gap
		le.PutUint64(b[510*8:], 23<<12|1)
	case pfn == 23:
		le.PutUint64(b, 24<<12|1)
	case pfn == 24:
		for i := range uint64(12) {
			if i != 10 {
				le.PutUint64(b[i*8:], (16+i)<<12|1)
			}
		}
	case pfn%3 == 0:
	case pfn%3 == 1:
		rng := rand.New(rand.NewPCG(pfn, 1))
		for i := 0; i < len(b); i += 8 {
			le.PutUint64(b[i:], rng.Uint64())
		}
	default:
		copy(b, bytes.Repeat([]byte(fmt.Sprintf("page %d ", pfn)), 300))
	}
	return b
}

// writeCore writes the node's memory as an ELF vmcore whose segments are not aligned, and overlap.
func writeCore(t *testing.T) string {
	t.Helper()
	type phdr struct {
		typ, flags                                uint32
		off, vaddr, paddr, filesz, memsz, aligned uint64
	}
	note := notes()
	headers := []phdr{{typ: 4, filesz: uint64(len(note)), off: 64 + 4*56}}
	data := append([]byte{}, note...)
	load := func(r kdump.PFNRange, memsz uint64) {
		headers = append(headers, phdr{typ: 1, off: 64 + 4*56 + uint64(len(data)), paddr: r.Start * 4096,
			filesz: (r.End - r.Start) * 4096, memsz: memsz})
		for pfn := r.Start; pfn < r.End; pfn++ {
			data = append(data, physical(pfn)...)
		}
	}
	load(kdump.PFNRange{Start: 16, End: 24}, 8*4096) // the kernel's text, in the next one as well
	load(inFile[0], (inFile[0].End-inFile[0].Start)*4096)
	load(inFile[1], (absent.End-inFile[1].Start)*4096)

	le := binary.LittleEndian
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57)...)
	le.PutUint16(b[16:], 4)
	le.PutUint16(b[18:], 62)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], uint16(len(headers)))
	var out bytes.Buffer
	out.Write(b)
	for _, h := range headers {
		if err := binary.Write(&out, le, h); err != nil {
			t.Fatal(err)
		}
	}
	out.Write(data)
	path := filepath.Join(t.TempDir(), "vmcore")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func run(t *testing.T, source, target string, o Options) kdump.Summary {
	t.Helper()
	s, err := Open(source)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sum, err := Run(context.Background(), s, target, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(target + ".partial"); err == nil {
		t.Error("a partial file is left")
	}
	return sum
}

// check compares every page of a dump with the node's memory.
func check(t *testing.T, path string, without func(pfn uint64) bool) {
	t.Helper()
	r, err := kdump.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, kdump.PageSize)
	for pfn := range uint64(1400) {
		in := pfn >= inFile[0].Start && pfn < inFile[0].End || pfn >= inFile[1].Start && pfn < inFile[1].End
		_, err := r.ReadPage(pfn, got)
		switch {
		case in && !without(pfn):
			if err != nil || !bytes.Equal(got, physical(pfn)) {
				t.Fatalf("page %d: %v, or other content", pfn, err)
			}
		case in || pfn >= absent.Start && pfn < absent.End:
			if !errors.Is(err, kdump.ErrExcluded) {
				t.Fatalf("page %d: %v, want ErrExcluded", pfn, err)
			}
		default:
			if !errors.Is(err, kdump.ErrNotRAM) {
				t.Fatalf("page %d: %v, want ErrNotRAM", pfn, err)
			}
		}
	}
	report, err := r.Verify(context.Background(), kdump.VerifyOptions{})
	if err != nil || !report.OK {
		t.Errorf("%v: %+v", err, report)
	}
}

func TestConvertCore(t *testing.T) {
	core := writeCore(t)
	for _, codec := range []kdump.Codec{kdump.CodecZstd, kdump.CodecZlib, kdump.CodecSnappy, kdump.CodecNone} {
		t.Run(codec.String(), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "dump")
			sum := run(t, core, path, Options{Codec: codec, Verify: true})
			if sum.Pages != 884 || sum.SHA256 == [32]byte{} {
				t.Errorf("%+v", sum)
			}
			check(t, path, func(uint64) bool { return false })
			// And on to another one, without zero pages.
			again := filepath.Join(t.TempDir(), "dump")
			run(t, path, again, Options{Codec: kdump.CodecZstd, DumpLevel: 1})
			zero := func(pfn uint64) bool { return bytes.Equal(physical(pfn), zeroPage[:]) }
			check(t, again, zero)
			direct := filepath.Join(t.TempDir(), "dump")
			run(t, core, direct, Options{Codec: kdump.CodecZstd, DumpLevel: 1})
			check(t, direct, zero)
		})
	}
}

func TestMemory(t *testing.T) {
	s, err := Open(writeCore(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if u := s.Meta.Utsname; u.Nodename != "node-3" || u.Version != "#7 SMP" || u.Machine != "x86_64" {
		t.Errorf("%+v", u)
	}
	m, err := s.Memory()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		addr, pfn uint64
		err       error
	}{
		{0xffff888000000000 + 500<<12, 500, nil},             // in the page of 1 GiB
		{0xffff888040000000 + 3<<12, 0x200 + 3, nil},         // in the one of 2 MiB
		{0xffff888040200000 + 1<<12, 17, nil},                // behind all levels of tables
		{0xffff888040200000, 0, kernelmem.ErrUnmapped},       // nothing there
		{0xffff888000000000 + 700<<12, 0, kdump.ErrExcluded}, // mapped, but not in the dump
		{0xffffffff80000000 + 2<<12, 18, nil},                // the kernel's image
		{0x00007fff00000000, 0, kernelmem.ErrUnmapped},       //
	} {
		b := make([]byte, 8)
		if err := m.Read(c.addr+0x810, b); !errors.Is(err, c.err) {
			t.Errorf("%#x: %v, want %v", c.addr, err, c.err)
		} else if c.err == nil && !bytes.Equal(b, physical(c.pfn)[0x810:0x818]) {
			t.Errorf("%#x: other content than page %#x", c.addr, c.pfn)
		}
	}
}

// meta is for dumps that livedump wrote, with classes.
func meta(pages uint64) kdump.Meta {
	n := notes()
	at := bytes.Index(n, []byte(vmcoreinfo))
	return kdump.Meta{Session: kdump.Session{1}, MaxPFN: 2000, Pages: pages, NrCPUs: 1, Notes: n,
		Utsname:          kdump.Utsname{Sysname: "Linux", Release: "6.1.0-test", Version: "#7", Machine: "x86_64"},
		VMCoreInfoOffset: uint64(at), VMCoreInfoBytes: uint64(len(vmcoreinfo)), FrozenAt: time.Unix(1e9, 5e6), Stop: time.Second}
}

type memory struct {
	b []byte
}

func (m memory) WriteAt(b []byte, off int64) (int, error) { return copy(m.b[off:], b), nil }
func (m memory) ReadAt(b []byte, off int64) (int, error)  { return copy(b, m.b[off:]), nil }
func (m memory) Sync() error                              { return nil }
func (m memory) Size() int64                              { return int64(len(m.b)) }

func TestRefilter(t *testing.T) {
	classes := []kdump.Class{kdump.ClassKernel, kdump.ClassCache, kdump.ClassCachePrivate, kdump.ClassUser, kdump.ClassHugetlb,
		kdump.ClassFree, kdump.ClassUnknown}
	out := memory{make([]byte, 16<<20)}
	w, err := kdump.NewWriter(out, meta(702), kdump.Options{})
	if err != nil {
		t.Fatal(err)
	}
	class := func(pfn uint64) kdump.Class { return classes[pfn%7] }
	for pfn := uint64(100); pfn < 800; pfn++ {
		ref := kdump.PageRef{PFN: pfn, Class: class(pfn), Flags: kdump.PageFlags(pfn % 2)}
		if err := w.Add([]kdump.PageRef{ref}, physical(pfn)); err != nil {
			t.Fatal(err)
		}
	}
	for _, pfn := range []uint64{5, 900} {
		if err := w.Add([]kdump.PageRef{{PFN: pfn, Flags: kdump.PageLost}}, make([]byte, kdump.PageSize)); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := w.Finish(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(source, out.b[:sum.Bytes], 0o600); err != nil {
		t.Fatal(err)
	}
	left := map[int]string{ // classes that are left out, as indices
		0: "", 1: "", 2: "1", 4: "12", 8: "34", 16: "5", 31: "12345",
	}
	for level, without := range left {
		path := filepath.Join(t.TempDir(), "dump")
		sum := run(t, source, path, Options{DumpLevel: level})
		if sum.Lost != 2 {
			t.Errorf("level %d: %d lost pages", level, sum.Lost)
		}
		r, err := kdump.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, kdump.PageSize)
		for pfn := uint64(100); pfn < 800; pfn++ {
			info, err := r.ReadPage(pfn, got)
			zero := level&1 != 0 && bytes.Equal(physical(pfn), zeroPage[:])
			if zero || strings.ContainsRune(without, rune('0'+pfn%7)) {
				if !errors.Is(err, kdump.ErrExcluded) {
					t.Fatalf("level %d, page %d of %v: %v, want ErrExcluded", level, pfn, class(pfn), err)
				}
			} else if err != nil || info.Class != class(pfn) || info.Flags != kdump.PageFlags(pfn%2) || !bytes.Equal(got, physical(pfn)) {
				t.Fatalf("level %d, page %d: %+v, %v, or other content", level, pfn, info, err)
			}
		}
		rec := r.Record()
		if rec.Stop != time.Second || rec.Session != (kdump.Session{1}) || !rec.FrozenAt.Equal(time.Unix(1e9, 5e6)) {
			t.Errorf("%+v", rec)
		}
		r.Close()
	}
}

func TestErrors(t *testing.T) {
	core := writeCore(t)
	s, err := Open(core)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	path := filepath.Join(t.TempDir(), "dump")
	if _, err := Run(context.Background(), s, path, Options{DumpLevel: 8}); err == nil || !strings.Contains(err.Error(), "classes") {
		t.Errorf("a level that the source cannot tell: %v", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("the user said so")
	cancel(cause)
	if _, err := Run(ctx, s, path, Options{}); !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
	for _, name := range []string{path, path + ".partial"} {
		if _, err := os.Stat(name); err == nil {
			t.Errorf("%s is left behind", name)
		}
	}
	// A vmcore that is cut, and one that is cut while it is read.
	b, err := os.ReadFile(core)
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut")
	if err := os.WriteFile(cut, b[:len(b)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cut); !errors.Is(err, kdump.ErrTruncated) {
		t.Errorf("half a vmcore: %v", err)
	}
	if err := os.Truncate(core, int64(len(b)/2)); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(context.Background(), s, path, Options{}); err == nil || !strings.Contains(err.Error(), "changed meanwhile") {
		t.Errorf("a vmcore that shrinks: %v", err)
	}
}
