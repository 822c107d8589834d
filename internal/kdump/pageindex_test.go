// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSpilledIndex writes dumps whose index does not fit into memory by far: they must be the same, byte
// for byte in their metadata, as any other.
func TestSpilledIndex(t *testing.T) {
	for _, indexPages := range []int{1, 7, 100, 512, 699, 700, 701, 5000} {
		t.Run(fmt.Sprint(indexPages), func(t *testing.T) {
			checkDump(t, writeDump(t, 3001, Options{ChunkBytes: 4 * PageSize, IndexPages: indexPages}))
		})
	}
}

func TestSpilledIndexFindsDuplicates(t *testing.T) {
	dev := newMemDevice(t, 8<<20)
	w, err := NewWriter(dev, testMeta(4000, 1000, 1), Options{IndexPages: 64})
	if err != nil {
		t.Fatal(err)
	}
	for pfn := range uint64(999) {
		if err := addPages(w, pfn+1); err != nil {
			t.Fatal(err)
		}
	}
	if err := addPages(w, 17); err != nil {
		t.Fatal(err)
	}
	_, err = w.Finish(context.Background())
	if !errors.Is(err, ErrDuplicatePage) {
		t.Errorf("error %v, want ErrDuplicatePage", err)
	}
	if err := w.Abort(err); err != nil {
		t.Error(err)
	}
	checkFailed(t, dev, "page frame 0x11")
}

// spillingDump gives pages in random order to a Writer whose index spills.
func spillingDump(w *Writer, pages uint64) error {
	for _, i := range rand.New(rand.NewPCG(5, 6)).Perm(int(pages)) {
		if err := addPages(w, uint64(i)+1); err != nil {
			return err
		}
	}
	_, err := w.Finish(context.Background())
	return err
}

func TestSpilledIndexFailures(t *testing.T) {
	const pages, indexPages = 3000, 512
	meta := testMeta(4000, pages, 1)
	most, err := MaxSize(4000, pages, len(meta.Notes))
	if err != nil {
		t.Fatal(err)
	}
	size := most + spillBytes(pages, indexPages)
	for _, c := range []struct {
		name  string
		size  int64
		setUp func(d *memDevice)
		want  error
	}{
		{"fits", size, func(*memDevice) {}, nil},
		{"read back damaged", size, func(d *memDevice) { d.failRead = size - PageSize - 100 }, ErrReadBack},
		{"spill fails", size, func(d *memDevice) {
			d.onWrite = func(off int64) {
				if off > most {
					d.failWrite, d.failErr = d.writes, unix.EIO
				}
			}
		}, unix.EIO},
		{"no room", most - 1200*PageSize, func(*memDevice) {}, ErrTargetTooSmall},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := newMemDevice(t, int(c.size)&^(PageSize-1))
			c.setUp(dev)
			w, err := NewWriter(dev, meta, Options{Codec: CodecNone, IndexPages: indexPages})
			if err != nil {
				t.Fatal(err)
			}
			err = spillingDump(w, pages)
			if !errors.Is(err, c.want) || (c.want == nil && err != nil) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if err := w.Abort(err); err != nil {
				t.Error(err)
			}
			dev.onWrite, dev.failRead = nil, 0
			if c.want != nil {
				checkFailed(t, dev, c.want.Error())
			} else if _, err := NewReader(bytes.NewReader(dev.durable), int64(len(dev.durable))); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPace(t *testing.T) {
	now := time.Unix(1000, 0)
	var slept []time.Duration
	p := newPace(1 << 20)
	p.now = func() time.Time { return now }
	p.after = func(d time.Duration) <-chan time.Time {
		slept = append(slept, d)
		now = now.Add(d)
		c := make(chan time.Time, 1)
		c <- now
		return c
	}
	for range 5 {
		p.wait(1<<19, nil)
	}
	now = now.Add(time.Hour) // what was not used is gone
	for range 3 {
		p.wait(1<<20, nil)
	}
	if got, want := fmt.Sprint(slept), "[500ms 500ms 500ms 500ms 1s 1s]"; got != want {
		t.Errorf("waits %v, want %v", got, want)
	}
	p.after = func(time.Duration) <-chan time.Time { return nil }
	done := make(chan struct{})
	close(done)
	if p.wait(1, done) {
		t.Error("a dump that has ended waits for its turn")
	}
}

// TestPacedDump checks that the limit is in the path of a dump's data.
func TestPacedDump(t *testing.T) {
	dev := newMemDevice(t, 16<<20)
	w, err := NewWriter(dev, testMeta(4000, 1000, 1), Options{Codec: CodecNone, Bandwidth: 1, ChunkBytes: PageSize, Writes: 1})
	if err != nil {
		t.Fatal(err)
	}
	added := make(chan error)
	go func() { added <- spillingDump(w, 1000) }()
	// The first chunk may go at once; the second would have to wait for an hour.
	for w.Progress().BytesWritten == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := w.Abort(errors.New("enough")); err != nil {
		t.Error(err)
	}
	if err := <-added; !errors.Is(err, ErrAborted) {
		t.Errorf("error %v, want ErrAborted", err)
	}
	if n := w.Progress().BytesWritten; n != PageSize {
		t.Errorf("%d bytes were written at one byte per second", n)
	}
}

// TestSortPages has pages in the order in which goroutines give them, in none, in reverse, all alike, and far apart.
func TestSortPages(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const n = 50000
	orders := map[string]func(i int) uint64{
		"in order":          func(i int) uint64 { return 7 + uint64(i) },
		"of two goroutines": func(i int) uint64 { return uint64(i&^127 | i<<6&64 | i>>1&63) },
		"in no order":       func(int) uint64 { return rng.Uint64N(1 << 40) },
		"in reverse":        func(i int) uint64 { return n - uint64(i) },
		"alike":             func(int) uint64 { return 42 },
		"far apart":         func(i int) uint64 { return uint64(i%2)<<63 + uint64(i)*0x9e3779b1%n },
	}
	for name, order := range orders {
		for _, n := range []int{0, 1, 2, 1000, n} {
			got := make([]storedPage, n)
			for i := range got {
				got[i] = storedPage{pfn: order(i), crc: uint32(i)}
			}
			want := slices.Clone(got)
			slices.SortFunc(want, func(a, b storedPage) int { return cmp.Compare(a.pfn, b.pfn) })
			sortPages(got)
			seen := make([]bool, n)
			for i := range got {
				if got[i].pfn != want[i].pfn || seen[got[i].crc] {
					t.Fatalf("%s, %d pages: page %d is %d, want %d", name, n, i, got[i].pfn, want[i].pfn)
				}
				seen[got[i].crc] = true
			}
		}
	}
}

func BenchmarkSortPages(b *testing.B) {
	pages := make([]storedPage, 1<<20)
	for b.Loop() {
		for i := range pages {
			pages[i].pfn = uint64(i&^127 | i<<6&64 | i>>1&63)
		}
		sortPages(pages)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(pages)), "ns/page")
}
