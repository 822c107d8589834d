// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// badDevice does one of its writes, or all of its syncs, wrong.
type badDevice struct {
	*memDevice
	mu      sync.Mutex
	badAt   int // write, counted from 1
	writes  int
	how     func(d *memDevice, b []byte, off int64) (int, error)
	syncErr error
}

func (d *badDevice) WriteAt(b []byte, off int64) (int, error) {
	d.mu.Lock()
	d.writes++
	bad := d.writes == d.badAt
	d.mu.Unlock()
	if bad {
		return d.how(d.memDevice, b, off)
	}
	return d.memDevice.WriteAt(b, off)
}

func (d *badDevice) Sync() error {
	if d.syncErr != nil {
		return d.syncErr
	}
	return d.memDevice.Sync()
}

// emptyDevice reads as zeros, as the ELF form wants it.
func emptyDevice(t *testing.T) *memDevice {
	const n = 5 << 19
	return &memDevice{t: t, data: make([]byte, n), durable: make([]byte, n)}
}

// part writes the first bytes as the device does it.
func part(d *memDevice, b []byte, off int64, n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.data[off:], b[:n])
}

// writeFaults are what can go wrong with a write. Those with an error are told to the writer; the others are lies,
// which only reading back finds.
var writeFaults = []struct {
	name string
	err  error // that must be in the chain; nil: a lie
	how  func(d *memDevice, b []byte, off int64) (int, error)
}{
	{"EIO", unix.EIO, func(*memDevice, []byte, int64) (int, error) { return 0, unix.EIO }},
	{"half, then EIO", unix.EIO, func(d *memDevice, b []byte, off int64) (int, error) { return part(d, b, off, len(b)/2), unix.EIO }},
	{"half, then ENOSPC", unix.ENOSPC, func(d *memDevice, b []byte, off int64) (int, error) { return part(d, b, off, len(b)/2), unix.ENOSPC }},
	{"short without an error", io.ErrShortWrite, func(d *memDevice, b []byte, off int64) (int, error) {
		return part(d, b, off, len(b)-512), nil
	}},
	{"nothing, and it says all", nil, func(_ *memDevice, b []byte, _ int64) (int, error) { return len(b), nil }},
	{"half, and it says all", nil, func(d *memDevice, b []byte, off int64) (int, error) {
		part(d, b, off, len(b)/2)
		return len(b), nil
	}},
	{"another place", nil, func(d *memDevice, b []byte, off int64) (int, error) {
		part(d, b, (off+3*PageSize)%(d.Size()-int64(len(b))), len(b))
		return len(b), nil
	}},
	{"a bit is wrong", nil, func(d *memDevice, b []byte, off int64) (int, error) {
		wrong := slices.Clone(b)
		wrong[len(b)/3] ^= 0x10
		part(d, wrong, off, len(b))
		return len(b), nil
	}},
}

// faultForms are the ways in which a Writer uses a target.
var faultForms = []struct {
	name string
	make func(out Output, m Meta) (*Writer, error)
}{
	{"spilled", func(out Output, m Meta) (*Writer, error) {
		return NewWriter(out, m, Options{ChunkBytes: 8 * PageSize, Workers: 2, Writes: 2, IndexPages: 30})
	}},
	{"journal", func(out Output, m Meta) (*Writer, error) {
		return NewWriter(out, m, Options{ChunkBytes: 8 * PageSize, Workers: 1, Writes: 1, Journal: true, JournalPages: 40, Codec: CodecNone})
	}},
	{"ELF", func(out Output, m Meta) (*Writer, error) {
		return NewELFWriter(out, m, Options{Workers: 2}, nil)
	}},
}

// dumpOn makes a dump and says whether that succeeded. A Writer that fails is aborted, as its caller does it.
func dumpOn(out Output, form func(Output, Meta) (*Writer, error)) (s Summary, err error) {
	const pages = 90
	w, err := form(out, testMeta(400, pages, 1))
	if err != nil {
		return s, err
	}
	for pfn := uint64(0); pfn < pages && err == nil; pfn += 3 {
		err = addPages(w, 3*pfn, 3*pfn+3, 3*pfn+6)
	}
	if err == nil {
		err = w.Seal(nil)
	}
	if err == nil {
		if s, err = w.Finish(context.Background()); err == nil {
			return s, nil
		}
	}
	return s, errors.Join(err, w.Abort(err))
}

// claims says what a reader of the first bytes would take the target for; nil: a dump.
func claims(b []byte) error {
	if bytes.HasPrefix(b, []byte("\x7fELF")) {
		return nil
	}
	if bytes.HasPrefix(b, kdumpSignature) {
		return nil
	}
	return ErrNotDump
}

// TestWriteFaults does every write of a dump wrong, in every way. Either the dump is what it would have been, or
// there is an error that says what happened, and nothing on the target that looks like a dump.
func TestWriteFaults(t *testing.T) {
	for _, form := range faultForms {
		for _, fault := range writeFaults {
			t.Run(form.name+"/"+fault.name, func(t *testing.T) {
				t.Parallel()
				found := 0
				for n := 1; ; n++ {
					dev := &badDevice{memDevice: emptyDevice(t), badAt: n, how: fault.how}
					s, err := dumpOn(dev, form.make)
					if dev.writes < n {
						if err != nil {
							t.Fatalf("without a fault: %v", err)
						}
						break
					}
					if err == nil {
						if fault.err != nil {
							t.Fatalf("write %d: nobody noticed", n)
						}
						checkWhole(t, dev.memDevice, s, n)
						continue
					}
					found++
					var tooSmall *TargetTooSmallError
					switch {
					case fault.err == nil:
						if !errors.Is(err, ErrReadBack) {
							t.Errorf("write %d: error %v, want ErrReadBack", n, err)
						}
					case !errors.Is(err, fault.err):
						t.Errorf("write %d: error %v, want %v", n, err, fault.err)
					case fault.err == unix.ENOSPC && n > 1 && !errors.As(err, &tooSmall):
						t.Errorf("write %d: error %v, want that the target is too small", n, err)
					}
					if claims(dev.data) == nil {
						t.Errorf("write %d: the target looks like a dump after %v", n, err)
					}
				}
				if found < 5 {
					t.Errorf("only %d writes mattered", found)
				}
			})
		}
	}
}

// checkWhole compares what Finish called a dump with what it said of it.
func checkWhole(t *testing.T, dev *memDevice, s Summary, n int) {
	t.Helper()
	if bytes.HasPrefix(dev.data, []byte("\x7fELF")) {
		return // its checksum is compared by whoever made it: there is none in the file
	}
	r, err := NewReader(bytes.NewReader(dev.data), int64(s.Bytes))
	if err != nil {
		t.Fatalf("write %d went wrong, Finish says it is a dump, and it does not open: %v", n, err)
	}
	report, err := r.Verify(context.Background(), VerifyOptions{Workers: 1})
	if err != nil || !report.OK || report.SHA256 != fmt.Sprintf("%x", s.SHA256) {
		t.Errorf("write %d went wrong, Finish says it is a dump, and it is none: %v, %+v", n, err, report)
	}
}

func TestSyncFails(t *testing.T) {
	for _, form := range faultForms {
		t.Run(form.name, func(t *testing.T) {
			dev := &badDevice{memDevice: emptyDevice(t), syncErr: unix.EIO}
			if _, err := dumpOn(dev, form.make); !errors.Is(err, unix.EIO) {
				t.Errorf("error %v, want EIO", err)
			}
			if claims(dev.data) == nil {
				t.Error("the target looks like a dump")
			}
		})
	}
}

// TestLostWrites is a device that says of its cache that it is on stable storage, and then loses power: of all writes
// one has not come to be. No writer can know that, but whoever opens the dump must not be told that it is good.
func TestLostWrites(t *testing.T) {
	type write struct {
		b   []byte
		off int64
	}
	var log []write
	dev := newMemDevice(t, 4<<20)
	old := slices.Clone(dev.data)
	var mu sync.Mutex
	record := &badDevice{memDevice: dev, badAt: -1}
	s, err := dumpOn(recorder{record, func(b []byte, off int64) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, write{slices.Clone(b), off})
	}}, faultForms[0].make)
	if err != nil {
		t.Fatal(err)
	}
	good := slices.Clone(dev.data[:s.Bytes])
	mattered := 0
	for lost := range log {
		image := slices.Clone(old)
		for i, w := range log {
			if i != lost {
				copy(image[w.off:], w.b)
			}
		}
		if bytes.Equal(image[:s.Bytes], good) {
			continue
		}
		mattered++
		r, err := NewReader(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			continue
		}
		report, err := r.Verify(context.Background(), VerifyOptions{Workers: 1})
		if err != nil {
			t.Fatal(err)
		}
		if report.OK {
			t.Errorf("without the write of %d bytes at %d the dump is called good", len(log[lost].b), log[lost].off)
		}
	}
	if mattered < 6 {
		t.Errorf("only %d of %d writes mattered", mattered, len(log))
	}
}

type recorder struct {
	*badDevice
	write func(b []byte, off int64)
}

func (r recorder) WriteAt(b []byte, off int64) (int, error) {
	r.write(b, off)
	return r.badDevice.WriteAt(b, off)
}

// shortWriter takes so many bytes of a stream, and then fails, or says it takes more than it does.
type shortWriter struct {
	b    bytes.Buffer
	left int
	err  error
}

func (w *shortWriter) Write(b []byte) (int, error) {
	n := min(len(b), w.left)
	w.b.Write(b[:n])
	if w.left -= n; n < len(b) {
		return n, w.err
	}
	return n, nil
}

// TestStreamFaults cuts a flattened stream at many places: it is never a dump, whether the writer hears of it or not.
func TestStreamFaults(t *testing.T) {
	opts := Options{ChunkBytes: 8 * PageSize, Workers: 1, Writes: 1, Scratch: ScratchIn(t.TempDir())}
	form := func(w io.Writer) func(Output, Meta) (*Writer, error) {
		return func(_ Output, m Meta) (*Writer, error) { return NewFlattenedWriter(w, m, opts) }
	}
	whole := &shortWriter{left: 1 << 30}
	if _, err := dumpOn(nil, form(whole)); err != nil {
		t.Fatal(err)
	}
	if r, err := OpenAt(bytes.NewReader(whole.b.Bytes()), int64(whole.b.Len())); err != nil || r.Pages() == 0 {
		t.Fatalf("the whole stream: %v", err)
	}
	for left := 0; left < whole.b.Len(); left += 3001 {
		for _, wrong := range []error{unix.EPIPE, nil} {
			w := &shortWriter{left: left, err: wrong}
			_, err := dumpOn(nil, form(w))
			if err == nil || wrong != nil && !errors.Is(err, wrong) {
				t.Errorf("after %d bytes: error %v, want %v", left, err, wrong)
			}
			if _, err := OpenAt(bytes.NewReader(w.b.Bytes()), int64(w.b.Len())); err == nil {
				t.Errorf("%d bytes of the stream are a dump", w.b.Len())
			}
		}
	}
}
