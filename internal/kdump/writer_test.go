// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// memDevice is a block device in memory that takes only what direct I/O takes. It keeps what was
// written since the last sync apart, to show what a power cut would leave.
type memDevice struct {
	t testing.TB

	mu      sync.Mutex
	data    []byte
	durable []byte
	writes  int

	failWrite int   // the n-th write fails, counted from 1
	failErr   error // with this
	failRead  int64 // reads that contain this offset return other data; 0: none
	onWrite   func(off int64)
}

func newMemDevice(t testing.TB, size int) *memDevice {
	d := &memDevice{t: t, data: make([]byte, size), durable: make([]byte, size)}
	rng := rand.New(rand.NewPCG(1, uint64(size)))
	for i := 0; i < size&^7; i += 8 { // old content, that must not get into a dump
		binary.LittleEndian.PutUint64(d.data[i:], rng.Uint64()|1)
	}
	copy(d.durable, d.data)
	return d
}

func (d *memDevice) check(op string, b []byte, off int64) {
	if len(b) == 0 || len(b)%PageSize != 0 || off%PageSize != 0 || uintptr(unsafe.Pointer(&b[0]))%PageSize != 0 {
		d.t.Errorf("%s of %d bytes at %d from %p is not aligned", op, len(b), off, &b[0])
	}
}

func (d *memDevice) WriteAt(b []byte, off int64) (int, error) {
	d.check("write", b, off)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writes++
	if d.onWrite != nil {
		d.onWrite(off)
	}
	if d.writes == d.failWrite {
		return 0, d.failErr
	}
	if off+int64(len(b)) > int64(len(d.data)) {
		d.t.Errorf("write of %d bytes at %d is beyond the end at %d", len(b), off, len(d.data))
		return 0, unix.ENOSPC
	}
	return copy(d.data[off:], b), nil
}

func (d *memDevice) ReadAt(b []byte, off int64) (int, error) {
	d.check("read", b, off)
	d.mu.Lock()
	defer d.mu.Unlock()
	if off >= int64(len(d.data)) {
		return 0, io.EOF
	}
	n := copy(b, d.data[off:])
	if d.failRead > 0 && d.failRead >= off && d.failRead < off+int64(n) {
		b[d.failRead-off] ^= 1
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (d *memDevice) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.durable, d.data)
	return nil
}

func (d *memDevice) Size() int64 { return int64(len(d.data)) }

const testVMCoreInfo = "OSRELEASE=6.1.0-test\nPAGESIZE=4096\nNUMBER(phys_base)=-16777216\nKERNELOFFSET=1f000000\n"

var testSession = Session{0: 0xab, 15: 0xcd}

func note(name string, typ uint32, desc []byte) []byte {
	var b []byte
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(len(name)+1))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, typ)
	b = append(b, name...)
	b = append(b, make([]byte, 4-len(name)%4)...)
	b = append(b, desc...)
	return append(b, make([]byte, -len(desc)&3)...)
}

func testMeta(maxPFN, pages uint64, cpus int) Meta {
	m := Meta{
		Session: testSession,
		Utsname: Utsname{"Linux", "node-7", "6.1.0-test", "#1 SMP", "x86_64", "(none)"},
		MaxPFN:  maxPFN, Pages: pages,
		RAM:       []PFNRange{{1, maxPFN / 2}, {maxPFN/2 + 3, maxPFN}},
		NrCPUs:    cpus,
		DumpLevel: 31,
		FrozenAt:  time.Date(2026, 3, 4, 5, 6, 7, 8192_000, time.UTC),
		Stop:      1234567 * time.Nanosecond,
	}
	m.ClassPages[ClassKernel] = pages
	m.ClassPages[ClassFree] = 17
	for cpu := range cpus {
		desc := make([]byte, prstatusBytes)
		binary.LittleEndian.PutUint32(desc[prstatusPID:], uint32(cpu+1))
		binary.LittleEndian.PutUint64(desc[prstatusRegIP:], 0xffffffff81000000+uint64(cpu))
		m.Notes = append(m.Notes, note("CORE", ntPRStatus, desc)...)
	}
	vm := note("VMCOREINFO", 0, []byte(testVMCoreInfo))
	m.VMCoreInfoOffset = uint64(len(m.Notes) + noteHeaderSize + 12)
	m.VMCoreInfoBytes = uint64(len(testVMCoreInfo))
	m.Notes = append(m.Notes, vm...)
	return m
}

// testPage is the content of a page: some zero, some that shrink, some that do not.
func testPage(pfn uint64) []byte {
	b := make([]byte, PageSize)
	switch pfn % 4 {
	case 0:
	case 1:
		rng := rand.New(rand.NewPCG(pfn, 2))
		for i := 0; i < PageSize; i += 8 {
			binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
		}
	default:
		for i := range b {
			b[i] = byte(pfn + uint64(i/64))
		}
		copy(b, fmt.Sprintf("page %d", pfn))
	}
	return b
}

func testRef(pfn uint64) PageRef {
	r := PageRef{PFN: pfn, Class: ClassKernel}
	if pfn%5 == 0 {
		r.Flags |= PageCopy
	}
	if pfn%7 == 0 {
		r.Flags |= PageUncovered
		r.Class = ClassUser
	}
	return r
}

// addLost gives a page whose content could not be kept.
func addLost(w *Writer, pfn uint64) error {
	return w.Add([]PageRef{{PFN: pfn, Flags: PageLost}}, zeroPage[:])
}

func addPages(w *Writer, pfns ...uint64) error {
	refs := make([]PageRef, len(pfns))
	data := make([]byte, 0, len(pfns)*PageSize)
	for i, pfn := range pfns {
		refs[i] = testRef(pfn)
		data = append(data, testPage(pfn)...)
	}
	err := w.Add(refs, data)
	for i := range data { // the caller may reuse both
		data[i] = 0xee
	}
	clear(refs)
	return err
}

// dump describes a dump that a test wrote.
type dump struct {
	pfns    []uint64
	lost    []uint64
	meta    Meta
	summary Summary
	dev     *memDevice
}

func (d *dump) bytes() []byte { return d.dev.durable[:d.summary.Bytes] }

// writeDump writes a dump of every third page frame but the lost ones, in random order, from several
// goroutines.
func writeDump(t testing.TB, maxPFN uint64, opts Options) *dump {
	t.Helper()
	d := &dump{}
	for pfn := uint64(2); pfn < maxPFN; pfn += 3 {
		if pfn%10 == 0 || pfn%10 == 1 {
			d.lost = append(d.lost, pfn)
		} else {
			d.pfns = append(d.pfns, pfn)
		}
	}
	d.meta = testMeta(maxPFN, uint64(len(d.pfns)+len(d.lost)), 3)
	size, err := sizeWith(maxPFN, d.meta.Pages, len(d.meta.Notes), int64(len(d.pfns)+1)*PageSize)
	if err != nil {
		t.Fatal(err)
	}
	d.dev = newMemDevice(t, int(size)+1<<20)
	w, err := NewWriter(d.dev, d.meta, opts)
	if err != nil {
		t.Fatal(err)
	}
	order := append([]uint64{}, d.pfns...)
	rand.New(rand.NewPCG(3, 4)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	const givers = 4
	var wg sync.WaitGroup
	for g := range givers {
		wg.Go(func() {
			mine := order[g*len(order)/givers : (g+1)*len(order)/givers]
			for n := 1; len(mine) > 0; n = n*3%401 + 1 {
				k := min(n, len(mine))
				if err := addPages(w, mine[:k]...); err != nil {
					t.Error(err)
					return
				}
				mine = mine[k:]
			}
		})
	}
	for i, pfn := range d.lost {
		var err error
		if i%2 == 0 {
			err = addLost(w, pfn)
		} else {
			err = w.Add([]PageRef{{PFN: pfn, Class: ClassKernel, Flags: PageLost}}, bytes.Repeat([]byte{0x5a}, PageSize))
		}
		if err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	if d.summary, err = w.Finish(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(errors.New("too late")); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *dump) reader(t testing.TB) *Reader {
	t.Helper()
	r, err := NewReader(bytes.NewReader(d.bytes()), int64(d.summary.Bytes))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRoundTrip(t *testing.T) {
	for _, codec := range []Codec{CodecZstd, CodecZlib, CodecSnappy, CodecNone} {
		for _, chunk := range []int{0, PageSize, 5 * PageSize} {
			t.Run(fmt.Sprintf("%s/%d", codec, chunk), func(t *testing.T) {
				d := writeDump(t, 3001, Options{Codec: codec, ChunkBytes: chunk})
				checkDump(t, d)
			})
		}
	}
}

func checkDump(t *testing.T, d *dump) {
	t.Helper()
	if got := sha256.Sum256(d.bytes()); got != d.summary.SHA256 {
		t.Errorf("summary says SHA-256 %x, the bytes have %x", d.summary.SHA256, got)
	}
	if d.summary.Pages != uint64(len(d.pfns)) || d.summary.Lost != uint64(len(d.lost)) {
		t.Errorf("summary %+v, want %d pages and %d lost", d.summary, len(d.pfns), len(d.lost))
	}
	r := d.reader(t)
	dumped, lost := map[uint64]bool{}, map[uint64]bool{}
	for _, pfn := range d.pfns {
		dumped[pfn] = true
	}
	for _, pfn := range d.lost {
		lost[pfn] = true
	}
	inRAM := func(pfn uint64) bool {
		for _, r := range d.meta.RAM {
			if pfn >= r.Start && pfn < r.End {
				return true
			}
		}
		return dumped[pfn] || lost[pfn]
	}
	var uncovered, zeros uint64
	buf := make([]byte, PageSize)
	for pfn := uint64(0); pfn < d.meta.MaxPFN+70; pfn++ {
		info, err := r.ReadPage(pfn, buf)
		switch {
		case dumped[pfn]:
			want := testRef(pfn)
			if err != nil {
				t.Fatalf("page %d: %v", pfn, err)
			}
			if !bytes.Equal(buf, testPage(pfn)) {
				t.Fatalf("page %d has other content", pfn)
			}
			if info.Class != want.Class || info.Flags != want.Flags {
				t.Fatalf("page %d: %+v, want %+v", pfn, info, want)
			}
			if want.Flags&PageUncovered != 0 {
				uncovered++
			}
			if pfn%4 == 0 {
				zeros++
			}
		case pfn < d.meta.MaxPFN && inRAM(pfn):
			if !errors.Is(err, ErrExcluded) {
				t.Fatalf("page %d: %v, want ErrExcluded", pfn, err)
			}
		default:
			if !errors.Is(err, ErrNotRAM) {
				t.Fatalf("page %d: %v, want ErrNotRAM", pfn, err)
			}
		}
	}
	if d.summary.Uncovered != uncovered || d.summary.ZeroPages != zeros {
		t.Errorf("summary %+v, want %d uncovered, %d zero", d.summary, uncovered, zeros)
	}
	ranges, err := r.LostPages()
	if err != nil {
		t.Fatal(err)
	}
	var listed []uint64
	for _, l := range ranges {
		for pfn := l.Start; pfn < l.End; pfn++ {
			listed = append(listed, pfn)
		}
	}
	if fmt.Sprint(listed) != fmt.Sprint(d.lost) {
		t.Errorf("lost pages %v, want %v", listed, d.lost)
	}
	rep, err := r.Verify(context.Background(), VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !rep.OK || rep.SHA256 != fmt.Sprintf("%x", d.summary.SHA256) {
		t.Errorf("report %+v", rep)
	}
}

// TestStructure looks at the raw bytes, at offsets written here a second time.
func TestStructure(t *testing.T) {
	d := writeDump(t, 40000, Options{Codec: CodecZlib})
	b := d.bytes()
	le := binary.LittleEndian
	str := func(off int) string { return cString(b[off : off+65]) }
	if string(b[:8]) != "KDUMP   " || str(12) != "Linux" || str(12+65) != "node-7" || str(12+4*65) != "x86_64" {
		t.Errorf("header %q", b[:464])
	}
	notesBlocks := (104 + len(d.meta.Notes) + 4095) / 4096
	for _, f := range []struct {
		name string
		off  int
		want uint32
	}{
		{"header_version", 8, 6},
		{"timestamp.tv_sec", 408, uint32(d.meta.FrozenAt.Unix())},
		{"timestamp.tv_usec", 416, 0},
		{"status", 424, 1},
		{"block_size", 428, 4096},
		{"sub_hdr_size", 432, uint32(notesBlocks)},
		{"bitmap_blocks", 436, 4},
		{"max_mapnr", 440, 40000},
		{"nr_cpus", 460, 3},
		{"dump_level", 4096 + 8, 31},
		{"split", 4096 + 12, 0},
		{"size_vmcoreinfo", 4096 + 40, uint32(len(testVMCoreInfo))},
		{"offset_note", 4096 + 48, 4096 + 104},
		{"size_note", 4096 + 56, uint32(len(d.meta.Notes))},
		{"end_pfn_64", 4096 + 88, 40000},
		{"max_mapnr_64", 4096 + 96, 40000},
	} {
		if got := le.Uint32(b[f.off:]); got != f.want {
			t.Errorf("%s is %d, want %d", f.name, got, f.want)
		}
	}
	if got := int64(le.Uint64(b[4096:])); got != -16777216 {
		t.Errorf("phys_base %d", got)
	}
	vm := le.Uint64(b[4096+32:])
	if got := string(b[vm : vm+uint64(len(testVMCoreInfo))]); got != testVMCoreInfo {
		t.Errorf("VMCOREINFO %q", got)
	}

	// A reader finds a page by its rank in the second bitmap. Count it the slow way.
	second := b[(1+notesBlocks+2)*4096:]
	descs := b[(1+notesBlocks+4)*4096:]
	rank, zeroOffset := 0, uint64(0)
	for pfn := range uint64(40000) {
		if second[pfn/8]>>(pfn%8)&1 == 0 {
			continue
		}
		desc := descs[rank*24:]
		off, size, flags := le.Uint64(desc), le.Uint32(desc[8:]), le.Uint32(desc[12:])
		switch pfn % 4 {
		case 0: // all share one raw page
			if zeroOffset == 0 {
				zeroOffset = off
			}
			if off != zeroOffset || size != 4096 || flags != 0 {
				t.Fatalf("zero page %d: offset %d, size %d, flags %d", pfn, off, size, flags)
			}
		case 1: // does not shrink
			if size != 4096 || flags != 0 || !bytes.Equal(b[off:off+4096], testPage(pfn)) {
				t.Fatalf("random page %d: size %d, flags %d", pfn, size, flags)
			}
		default:
			if size >= 4096 || flags != 1 {
				t.Fatalf("page %d: size %d, flags %d", pfn, size, flags)
			}
		}
		rank++
	}
	if rank != len(d.pfns) {
		t.Errorf("%d pages in the second bitmap, want %d", rank, len(d.pfns))
	}
	if len(b)%4096 != 0 {
		t.Errorf("%d bytes", len(b))
	}
}

func TestAddRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		add  func(w *Writer) error
		want error
	}{
		"duplicate":           {func(w *Writer) error { return addPages(w, 7, 8, 9, 1, 2, 3, 7, 4, 5, 6) }, ErrDuplicatePage},
		"lost and dumped":     {func(w *Writer) error { return errors.Join(addPages(w, 1, 2, 3, 4, 5, 6, 7, 8, 9), addLost(w, 7)) }, ErrDuplicatePage},
		"out of range":        {func(w *Writer) error { return addPages(w, 1000) }, nil},
		"lost out of range":   {func(w *Writer) error { return addLost(w, 1<<60) }, nil},
		"data does not match": {func(w *Writer) error { return w.Add(make([]PageRef, 2), make([]byte, PageSize)) }, nil},
		"too few":             {func(w *Writer) error { return addPages(w, 7, 8) }, ErrPagesMissing},
		"too many":            {func(w *Writer) error { return addPages(w, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dev := newMemDevice(t, 4<<20)
			w, err := NewWriter(dev, testMeta(1000, 10, 1), Options{})
			if err != nil {
				t.Fatal(err)
			}
			err = c.add(w)
			if err == nil {
				_, err = w.Finish(context.Background())
			}
			if err == nil || (c.want != nil && !errors.Is(err, c.want)) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if err := w.Abort(err); err != nil {
				t.Error(err)
			}
			checkFailed(t, dev, err.Error())
			if _, err := w.Finish(context.Background()); err == nil {
				t.Error("Finish after Abort succeeds")
			}
			if err := addPages(w, 20); err == nil {
				t.Error("Add after Abort succeeds")
			}
		})
	}
}

// checkFailed wants a target that says that its dump failed.
func checkFailed(t *testing.T, dev *memDevice, reason string) {
	t.Helper()
	_, err := NewReader(bytes.NewReader(dev.durable), int64(len(dev.durable)))
	if !errors.Is(err, ErrFailed) || !bytes.Contains([]byte(err.Error()), []byte(reason)) {
		t.Errorf("target opens with %v, want ErrFailed: %s", err, reason)
	}
	rec, found, err := ReadRecord(dev)
	if err != nil || !found || rec.State != StateFailed || rec.Session != testSession {
		t.Errorf("record %+v, %v, %v", rec, found, err)
	}
}

func TestMetaIsChecked(t *testing.T) {
	for name, change := range map[string]func(*Meta){
		"no machine":         func(m *Meta) { m.Utsname.Machine = "" },
		"no version":         func(m *Meta) { m.Utsname.Version = "" },
		"long nodename":      func(m *Meta) { m.Utsname.Nodename = string(make([]byte, 65)) },
		"no CPUs":            func(m *Meta) { m.NrCPUs = 0 },
		"CPUs and notes":     func(m *Meta) { m.NrCPUs = 2 },
		"RAM beyond the end": func(m *Meta) { m.RAM = []PFNRange{{0, 1001}} },
		"pages":              func(m *Meta) { m.Pages = 1001 },
		"max_pfn":            func(m *Meta) { m.MaxPFN = 1 << 50; m.Pages = 1 },
		"no VMCOREINFO":      func(m *Meta) { m.VMCoreInfoBytes = 0 },
		"VMCOREINFO bounds":  func(m *Meta) { m.VMCoreInfoOffset = ^uint64(0) },
		"no phys_base":       func(m *Meta) { m.VMCoreInfoBytes = 20 },
		"cut note":           func(m *Meta) { m.Notes[4] = 0xff },
	} {
		t.Run(name, func(t *testing.T) {
			dev := newMemDevice(t, 4<<20)
			m := testMeta(1000, 10, 1)
			change(&m)
			if _, err := NewWriter(dev, m, Options{}); err == nil {
				t.Error("accepted")
			}
			if dev.writes != 0 {
				t.Error("something was written")
			}
		})
	}
}

func TestTargetTooSmall(t *testing.T) {
	const maxPFN, pages = 4000, 1000
	meta := testMeta(maxPFN, pages, 1)
	least, err := MinSize(maxPFN, pages, len(meta.Notes))
	if err != nil {
		t.Fatal(err)
	}
	most, err := MaxSize(maxPFN, pages, len(meta.Notes))
	if err != nil {
		t.Fatal(err)
	}
	var tooSmall *TargetTooSmallError

	t.Run("from the start", func(t *testing.T) {
		dev := newMemDevice(t, int(least)-1)
		_, err := NewWriter(dev, meta, Options{})
		if !errors.As(err, &tooSmall) || tooSmall.Needed != least || tooSmall.Available != least-PageSize || !errors.Is(err, ErrTargetTooSmall) {
			t.Errorf("error %v, want %d bytes needed", err, least)
		}
		if dev.writes != 0 {
			t.Error("something was written")
		}
	})
	fill := func(w *Writer, page func(pfn uint64) []byte) error {
		for pfn := uint64(1); pfn <= pages; pfn++ {
			if err := w.Add([]PageRef{{PFN: pfn}}, page(pfn)); err != nil {
				return err
			}
		}
		_, err := w.Finish(context.Background())
		return err
	}
	random := func(pfn uint64) []byte { return testPage(4*pfn + 1) }
	t.Run("on the way", func(t *testing.T) {
		dev := newMemDevice(t, int(least+most)/2)
		w, err := NewWriter(dev, meta, Options{})
		if err != nil {
			t.Fatal(err)
		}
		err = fill(w, random)
		if !errors.As(err, &tooSmall) || !tooSmall.Estimated || tooSmall.Needed < most*9/10 || tooSmall.Needed > most+PageSize {
			t.Errorf("error %v, want about %d bytes needed", err, most)
		}
		if err := w.Abort(err); err != nil {
			t.Error(err)
		}
		checkFailed(t, dev, "target too small")
	})
	t.Run("lost pages at the end", func(t *testing.T) {
		// Each second page is lost: the table of ranges needs 8000 bytes that were not planned for.
		m := testMeta(maxPFN, pages, 1)
		size := least
		dev := newMemDevice(t, int(size))
		w, err := NewWriter(dev, m, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for pfn := uint64(1); pfn <= pages; pfn++ {
			if pfn%2 == 0 {
				err = addLost(w, pfn)
			} else {
				err = w.Add([]PageRef{{PFN: pfn}}, zeroPage[:])
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		_, err = w.Finish(context.Background())
		if !errors.As(err, &tooSmall) || tooSmall.Needed != least+2*PageSize {
			t.Errorf("error %v, want %d bytes needed", err, least+2*PageSize)
		}
		if err := w.Abort(err); err != nil {
			t.Error(err)
		}
		checkFailed(t, dev, "target too small")
	})
	t.Run("just fits", func(t *testing.T) {
		for _, c := range []struct {
			size int64
			page func(uint64) []byte
		}{{least, func(uint64) []byte { return zeroPage[:] }}, {most, random}} {
			dev := newMemDevice(t, int(c.size))
			w, err := NewWriter(dev, meta, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := fill(w, c.page); err != nil {
				t.Errorf("%d bytes: %v", c.size, err)
			}
			if err := w.Abort(nil); err != nil {
				t.Error(err)
			}
			if _, err := NewReader(bytes.NewReader(dev.durable), c.size); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("a thin volume runs full", func(t *testing.T) {
		dev := newMemDevice(t, int(most))
		dev.failWrite, dev.failErr = 3, unix.ENOSPC
		w, err := NewWriter(dev, meta, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err = fill(w, random); !errors.Is(err, ErrTargetTooSmall) || !errors.Is(err, unix.ENOSPC) {
			t.Errorf("error %v", err)
		}
		if err := w.Abort(err); err != nil {
			t.Error(err)
		}
		checkFailed(t, dev, "target too small")
	})
}

// TestWriteErrors fails every single write of a dump in turn. None may leave a dump behind.
func TestWriteErrors(t *testing.T) {
	const maxPFN = 400
	opts := Options{Codec: CodecNone, ChunkBytes: 4 * PageSize, Workers: 2, Writes: 2}
	for n := 1; ; n++ {
		dev := newMemDevice(t, 4<<20)
		dev.failWrite, dev.failErr = n, unix.EIO
		w, err := NewWriter(dev, testMeta(maxPFN, 100, 1), opts)
		if err == nil {
			for pfn := uint64(0); pfn < 100 && err == nil; pfn++ {
				err = addPages(w, 3*pfn)
			}
			if err == nil {
				_, err = w.Finish(context.Background())
			}
			if err == nil {
				if dev.writes >= n {
					t.Errorf("write %d failed, and nobody noticed", n)
				}
				if n < 25 { // block 0, 24 chunks and more, the checksums, block 0
					t.Errorf("only %d writes were tried", n)
				}
				return
			}
			if err := w.Abort(err); err != nil {
				t.Errorf("write %d: abort: %v", n, err)
			}
			checkFailed(t, dev, "input/output error")
		}
		var werr *WriteError
		if !errors.Is(err, unix.EIO) || !errors.As(err, &werr) {
			t.Errorf("write %d: error %v, want EIO", n, err)
		}
		if r, err := NewReader(bytes.NewReader(dev.data), int64(len(dev.data))); err == nil {
			t.Errorf("write %d failed, but the target opens as a dump of %d pages", n, r.Pages())
		}
	}
}

// TestNeverADumpTooEarly looks at the target before each write, and at what a power cut would leave.
func TestNeverADumpTooEarly(t *testing.T) {
	dev := newMemDevice(t, 4<<20)
	old := writeDump(t, 300, Options{})
	copy(dev.data, old.bytes()) // an earlier dump, that must not come to life again
	copy(dev.durable, dev.data)
	writes := 0
	dev.onWrite = func(off int64) {
		writes++
		if writes == 1 {
			if off != 0 {
				t.Errorf("the first write is at %d", off)
			}
			return
		}
		for _, b := range [][]byte{dev.data, dev.durable} {
			if _, err := NewReader(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrInProgress) {
				t.Errorf("before write %d, at %d: %v, want ErrInProgress", writes, off, err)
			}
		}
	}
	w, err := NewWriter(dev, testMeta(400, 100, 1), Options{ChunkBytes: 4 * PageSize})
	if err != nil {
		t.Fatal(err)
	}
	for pfn := range uint64(100) {
		if err := addPages(w, 3*pfn); err != nil {
			t.Fatal(err)
		}
	}
	s, err := w.Finish(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	dev.onWrite = nil
	if _, err := NewReader(bytes.NewReader(dev.durable), int64(s.Bytes)); err != nil {
		t.Error(err)
	}
}

func TestReadBackFindsDifference(t *testing.T) {
	d := writeDump(t, 400, Options{ChunkBytes: 4 * PageSize})
	for off := int64(100); off < int64(d.summary.Bytes); off += 3 * PageSize {
		dev := newMemDevice(t, 4<<20)
		dev.failRead = off
		w, err := NewWriter(dev, d.meta, Options{ChunkBytes: 4 * PageSize})
		if err != nil {
			t.Fatal(err)
		}
		if err := addPages(w, d.pfns...); err != nil {
			t.Fatal(err)
		}
		for _, pfn := range d.lost {
			if err := addLost(w, pfn); err != nil {
				t.Fatal(err)
			}
		}
		_, err = w.Finish(context.Background())
		if !errors.Is(err, ErrReadBack) {
			t.Fatalf("offset %d: error %v, want ErrReadBack", off, err)
		}
		if err := w.Abort(err); err != nil {
			t.Error(err)
		}
		dev.failRead = 0
		checkFailed(t, dev, "read-back")
	}
}

// TestAbortFreesBlockedAdd has a device that does not return from its writes until it is told to.
func TestAbortFreesBlockedAdd(t *testing.T) {
	dev := newMemDevice(t, 8<<20)
	gate := make(chan struct{})
	slow := &gatedDevice{memDevice: dev, gate: gate, blocked: make(chan struct{})}
	w, err := NewWriter(slow, testMeta(40000, 1000, 1), Options{Codec: CodecNone, ChunkBytes: 4 * PageSize})
	if err != nil {
		t.Fatal(err)
	}
	added := make(chan error)
	go func() {
		for pfn := uint64(1); ; pfn += 4 {
			if err := addPages(w, pfn); err != nil {
				added <- err
				return
			}
		}
	}()
	<-slow.blocked
	aborted := make(chan error)
	go func() { aborted <- w.Abort(errors.New("the user said so")) }()
	if err := <-added; !errors.Is(err, ErrAborted) { // while the device is still stuck
		t.Errorf("Add: %v, want ErrAborted", err)
	}
	close(gate)
	if err := <-aborted; err != nil {
		t.Error(err)
	}
	checkFailed(t, dev, "the user said so")
}

type gatedDevice struct {
	*memDevice
	gate    chan struct{}
	once    sync.Once
	blocked chan struct{}
}

func (g *gatedDevice) WriteAt(b []byte, off int64) (int, error) {
	if off > 0 {
		g.once.Do(func() { close(g.blocked) })
		<-g.gate
	}
	return g.memDevice.WriteAt(b, off)
}

func TestFinishStopsWithContext(t *testing.T) {
	dev := newMemDevice(t, 4<<20)
	w, err := NewWriter(dev, testMeta(400, 1, 1), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := addPages(w, 2); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("deadline of the dump")
	cancel(cause)
	if _, err := w.Finish(ctx); !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
	if err := w.Abort(cause); err != nil {
		t.Error(err)
	}
	checkFailed(t, dev, cause.Error())
}

// BenchmarkAdd shows that the hot path allocates nothing per page.
func BenchmarkAdd(b *testing.B) {
	for _, codec := range []Codec{CodecZstd, CodecZlib, CodecSnappy, CodecNone} {
		b.Run(codec.String(), func(b *testing.B) {
			const batch = 256
			data := make([]byte, 0, batch*PageSize)
			refs := make([]PageRef, batch)
			for i := range refs {
				data = append(data, testPage(uint64(4*i+2))...)
			}
			pages := uint64(b.N+batch) / batch * batch
			meta := testMeta(pages, pages, 1)
			size, err := MaxSize(pages, pages, len(meta.Notes))
			if err != nil {
				b.Fatal(err)
			}
			w, err := NewWriter(nullDevice{size}, meta, Options{Codec: codec})
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(PageSize)
			b.ReportAllocs()
			b.ResetTimer()
			for pfn := uint64(0); pfn < pages; pfn += batch {
				for i := range refs {
					refs[i].PFN = pfn + uint64(i)
				}
				if err := w.Add(refs, data); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			if err := w.Abort(nil); err != nil {
				b.Fatal(err)
			}
		})
	}
}

type nullDevice struct{ size int64 }

func (nullDevice) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }
func (nullDevice) ReadAt([]byte, int64) (int, error)      { return 0, io.EOF }
func (nullDevice) Sync() error                            { return nil }
func (n nullDevice) Size() int64                          { return n.size }
