// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// mortalDevice is a target whose writer dies in the middle of a write: what comes after it does nothing. Of that write a
// part may be on the device, and of those that were not synced any.
type mortalDevice struct {
	*memDevice
	mu     sync.Mutex
	dieAt  int // the write, counted from 1; 0: never
	writes int
	dead   bool
	tear   func(old, b []byte)
	// unsynced: what was written since the last sync is lost too, as in a device that loses its cache.
	unsynced bool
}

var errDead = errors.New("the process is dead")

func (d *mortalDevice) WriteAt(b []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return 0, errDead
	}
	d.writes++
	if d.writes != d.dieAt {
		return d.memDevice.WriteAt(b, off)
	}
	d.tear(d.memDevice.data[off:off+int64(len(b))], b)
	d.die()
	return 0, errDead
}

func (d *mortalDevice) die() {
	d.dead = true
	if d.unsynced {
		copy(d.memDevice.data, d.memDevice.durable)
	}
}

func (d *mortalDevice) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errDead
	}
	return d.memDevice.Sync()
}

// frozen stands for a session that acknowledges: its pages come until they are acknowledged.
type frozen struct {
	t  *testing.T
	mu sync.Mutex
	// pages that are not acknowledged.
	pages  map[uint64]bool
	lost   map[uint64]bool
	device *mortalDevice
	dieAt  int // the acknowledgement before which the process dies; 0: none
	given  int // pages that were given although they are in the journal
}

func (f *frozen) acknowledge(pfns []uint64) error {
	f.device.mu.Lock()
	defer f.device.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dieAt--; f.dieAt == 0 && !f.device.dead {
		f.device.die()
	}
	if f.device.dead {
		return errDead
	}
	for _, pfn := range pfns {
		delete(f.pages, pfn)
	}
	return nil
}

// feed gives all pages that are not acknowledged, in the order of rng.
func (f *frozen) feed(w *Writer, rng *rand.Rand) error {
	f.mu.Lock()
	var pfns []uint64
	for pfn := range f.pages {
		pfns = append(pfns, pfn)
	}
	f.mu.Unlock()
	slices.Sort(pfns)
	rng.Shuffle(len(pfns), func(i, j int) { pfns[i], pfns[j] = pfns[j], pfns[i] })
	for part := range slices.Chunk(pfns, 37) {
		refs := make([]PageRef, len(part))
		var data []byte
		for i, pfn := range part {
			refs[i] = testRef(pfn)
			content := testPage(pfn)
			if f.lost[pfn] {
				refs[i] = PageRef{PFN: pfn, Class: ClassKernel, Flags: PageLost}
				content = bytes.Repeat([]byte{0xa5}, PageSize)
			}
			data = append(data, content...)
		}
		if err := w.Add(refs, data); err != nil {
			return err
		}
	}
	return nil
}

// lives are the processes that make one dump, one after the other.
type lives struct {
	t    *testing.T
	dump *dump
	dev  *memDevice
	f    *frozen
	opts Options
	rng  *rand.Rand
	// What the last of them did.
	resumed, sealed, scratch int
}

func newLives(t *testing.T, seed uint64, opts Options) *lives {
	t.Helper()
	const maxPFN = 900
	l := &lives{t: t, dump: &dump{}, opts: opts, rng: rand.New(rand.NewPCG(seed, 1))}
	l.f = &frozen{t: t, pages: map[uint64]bool{}, lost: map[uint64]bool{}}
	for pfn := uint64(2); pfn < maxPFN; pfn += 3 {
		l.f.pages[pfn] = true
		if pfn%10 == 0 || pfn%10 == 1 {
			l.f.lost[pfn] = true
			l.dump.lost = append(l.dump.lost, pfn)
		} else {
			l.dump.pfns = append(l.dump.pfns, pfn)
		}
	}
	l.dump.meta = testMeta(maxPFN, uint64(len(l.f.pages)), 2)
	l.dev = newMemDevice(t, 8<<20)
	l.dump.dev = l.dev
	return l
}

// live makes as much of the dump as the device lets it; nil when the dump is complete.
func (l *lives) live(out *mortalDevice) error {
	l.f.device = out
	if s, found, err := Recheck(context.Background(), out, testSession); found {
		l.dump.summary = s
		return err
	}
	opts := l.opts
	opts.Journal, opts.Durable, opts.State = true, l.f.acknowledge, []byte("begun")
	w, all, err := l.open(out, opts)
	if err != nil {
		return err
	}
	defer w.Leave()
	if !all {
		if err := l.f.feed(w, l.rng); err != nil {
			return err
		}
		if err := w.Seal([]byte("sealed")); err != nil {
			return err
		}
		l.sealed++
		if n := len(l.f.pages); n != 0 {
			l.t.Errorf("%d pages were not acknowledged although all are durable", n)
		}
	}
	if err := w.SaveState([]byte("thawed")); err != nil {
		return err
	}
	l.dump.summary, err = w.Finish(context.Background())
	return err
}

func (l *lives) open(out Output, opts Options) (w *Writer, all bool, err error) {
	j, err := ReadJournal(out, testSession)
	switch {
	case errors.Is(err, ErrNoJournal):
		if n := len(l.dump.pfns) + len(l.dump.lost); len(l.f.pages) != n {
			l.t.Fatalf("no journal although %d pages were acknowledged", n-len(l.f.pages))
		}
		l.scratch++
		w, err = NewWriter(out, l.dump.meta, opts)
		return w, false, err
	case err != nil:
		l.t.Fatalf("the journal cannot be read: %v", err)
	}
	want := []string{"begun"}
	if j.All {
		want = []string{"sealed", "thawed"}
	} else if l.sealed > 0 {
		l.t.Error("a sealed journal has not all pages")
	} else {
		want = append(want, "sealed")
	}
	if !slices.Contains(want, string(j.State)) {
		l.t.Errorf("state %q, want %q", j.State, want)
	}
	if total := uint64(len(l.dump.pfns) + len(l.dump.lost)); j.Pages+uint64(len(l.f.pages)) < total {
		l.t.Errorf("%d pages in the journal, %d to come, of %d", j.Pages, len(l.f.pages), total)
	}
	if !j.All {
		l.f.given += int(j.Pages) + len(l.f.pages) - len(l.dump.pfns) - len(l.dump.lost)
	}
	l.resumed++
	w, err = Resume(j, opts)
	return w, j.All, err
}

// deaths are ways in which a process dies in the middle of a write.
var deaths = []mortalDevice{
	{tear: func(_, _ []byte) {}},
	{tear: func(_, _ []byte) {}, unsynced: true},
	{tear: func(old, b []byte) { copy(old, b) }},
	{tear: func(old, b []byte) { copy(old, b[:len(b)/2&^511]) }},
	{tear: func(old, b []byte) { copy(old[len(b)/2&^511:], b[len(b)/2&^511:]) }},
	{tear: func(old, b []byte) {
		for i := 0; i < len(b); i += 1024 {
			copy(old[i:i+512], b[i:i+512])
		}
	}},
}

var resumeOptions = []Options{
	{ChunkBytes: 4 * PageSize, Workers: 2, Writes: 3, JournalPages: 30},
	{ChunkBytes: 16 * PageSize, Workers: 1, Writes: 1, JournalPages: 20, Codec: CodecNone},
	{Workers: 3, JournalPages: 300, Codec: CodecSnappy},
}

// TestDieAtEveryWrite kills the process that makes a dump in each of its writes, and the one that goes on with it in one of
// its own, and so on. The dump must be what it would have been.
func TestDieAtEveryWrite(t *testing.T) {
	for i, opts := range resumeOptions {
		for n := range deaths {
			if i > 0 && n != 1 && n != 5 {
				continue
			}
			t.Run(fmt.Sprintf("%d/%d", i, n), func(t *testing.T) {
				t.Parallel()
				resumed := 0
				for dieAt := 1; ; dieAt++ {
					l := newLives(t, uint64(dieAt), opts)
					died := l.run(func() *mortalDevice {
						d := &mortalDevice{memDevice: l.dev, dieAt: dieAt, tear: deaths[n].tear, unsynced: deaths[n].unsynced}
						if l.resumed+l.scratch > 0 {
							d.dieAt = 1 + l.rng.IntN(40)
						}
						return d
					})
					if t.Failed() {
						t.Fatalf("killed in write %d, then %d times more", dieAt, died-1)
					}
					resumed += l.resumed
					if died == 0 {
						if dieAt < 10 {
							t.Errorf("only %d writes", dieAt)
						}
						break
					}
				}
				if resumed == 0 {
					t.Error("nothing was ever resumed")
				}
			})
		}
	}
}

// TestDieBeforeAcknowledging: the journal has pages that nobody was told of, so they come again.
func TestDieBeforeAcknowledging(t *testing.T) {
	given := 0
	for dieAt := 1; ; dieAt++ {
		l := newLives(t, uint64(dieAt), resumeOptions[0])
		died := l.run(func() *mortalDevice {
			l.f.dieAt = dieAt
			if l.resumed > 0 {
				l.f.dieAt = l.rng.IntN(8)
			}
			return &mortalDevice{memDevice: l.dev, unsynced: dieAt%2 == 0}
		})
		given += l.f.given
		if t.Failed() {
			t.Fatalf("killed before acknowledgement %d, then %d times more", dieAt, died-1)
		}
		if died == 0 {
			break
		}
	}
	if given == 0 {
		t.Error("no page was given again")
	}
	t.Logf("%d pages were given again", given)
}

// run makes the dump by one process after the other, each with its device, and says how many died.
func (l *lives) run(device func() *mortalDevice) (died int) {
	l.t.Helper()
	for {
		d := device()
		err := l.live(d)
		if err == nil {
			checkDump(l.t, l.dump)
			return died
		}
		if !d.isDead() {
			l.t.Fatal(err)
		}
		if died++; died > 500 {
			l.t.Fatal("it never ends")
		}
	}
}

func (d *mortalDevice) isDead() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dead
}

// begin begins a dump by a process that does not die.
func (l *lives) begin(durable func([]uint64) error) *Writer {
	l.t.Helper()
	l.f.device = &mortalDevice{memDevice: l.dev}
	opts := l.opts
	opts.Journal, opts.State, opts.Durable = true, []byte("begun"), durable
	w, err := NewWriter(l.f.device, l.dump.meta, opts)
	if err != nil {
		l.t.Fatal(err)
	}
	return w
}

// TestJournalIsNotTrusted: whatever is damaged in the journal, no dump comes of it that lacks or repeats pages.
func TestJournalIsNotTrusted(t *testing.T) {
	l := newLives(t, 1, Options{ChunkBytes: 4 * PageSize, Workers: 1, JournalPages: 300})
	w := l.begin(nil)
	for _, part := range [][]uint64{l.dump.pfns[:100], l.dump.pfns[100:200]} {
		if err := addPages(w, part...); err != nil {
			t.Fatal(err)
		}
		w.disk.pending.Wait()
		if err := w.journal.commit(1); err != nil {
			t.Fatal(err)
		}
	}
	w.Leave()
	j, err := ReadJournal(l.dev, testSession)
	if err != nil {
		t.Fatal(err)
	}
	if len(j.segments) < 2 || j.All {
		t.Fatalf("%d segments", len(j.segments))
	}
	if _, err := ReadJournal(l.dev, Session{1}); !errors.Is(err, ErrNoJournal) {
		t.Errorf("the journal of another session: %v", err)
	}
	image := bytes.Clone(l.dev.data)
	pages := j.Pages
	for off := j.top; off < l.dev.Size(); off += 512 {
		copy(l.dev.data, image)
		l.dev.data[off+off%509] ^= 0x10
		j, err := ReadJournal(l.dev, testSession)
		if err == nil && j.Pages == pages {
			if w, err = Resume(j, l.opts); err == nil {
				w.Leave()
			}
			if err == nil && !allZero(image[off:min(off+512, l.dev.Size())]) {
				t.Errorf("byte %d of %d of the journal is damaged, and nobody noticed", off+off%509-j.top, l.dev.Size()-j.top)
			}
		}
	}
}

// TestGenerations: a dump of the same session that was begun anew must not be continued by what the old one had.
func TestGenerations(t *testing.T) {
	l := newLives(t, 1, Options{ChunkBytes: 4 * PageSize, Workers: 1, JournalPages: 30})
	w := l.begin(l.f.acknowledge)
	if err := errors.Join(l.f.feed(w, l.rng), w.Seal(nil)); err != nil {
		t.Fatal(err)
	}
	w.Leave()
	l.begin(nil).Leave()
	j, err := ReadJournal(l.dev, testSession)
	if err != nil {
		t.Fatal(err)
	}
	if len(j.segments) > 0 {
		t.Errorf("%d segments of the dump before", len(j.segments))
	}
}
