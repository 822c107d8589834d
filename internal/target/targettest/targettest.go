// SPDX-License-Identifier: Apache-2.0

// Package targettest judges targets: every kind of target runs it in its own test.
package targettest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
	"livedump.io/internal/target"
)

// Place is where a target writes to, made anew for every test.
type Place struct {
	// Open opens the target. It is called once.
	Open func(t *testing.T) target.Target
	// Found is what somebody else finds at the place at that moment: all bytes, or false if there is nothing at all. Of a
	// block device it is the whole device.
	Found func(t *testing.T) ([]byte, bool)
	// Decrypt, if not nil, is what somebody with the key makes of what was found.
	Decrypt func([]byte) ([]byte, error)
}

// Fault is a place with something wrong.
type Fault struct {
	Name string
	// Place with less room than DumpBytes, a connection that breaks, a store that refuses, ... Something must go wrong
	// between Open, which succeeds, and the end of Commit.
	Place func(t *testing.T) Place
	// Want is what the error must be, by errors.Is. nil: any.
	Want error
	// Says must be in the error's text.
	Says string
}

// DumpBytes is less than any dump of Run has; a place needs four times as much room.
const DumpBytes = 8 << 20

// Run judges a kind of target. place makes an empty place with enough room.
func Run(t *testing.T, place func(t *testing.T) Place, faults ...Fault) {
	t.Run("whole", func(t *testing.T) { whole(t, place(t)) })
	t.Run("abilities", func(t *testing.T) { abilities(t, place(t)) })
	t.Run("unfinished", func(t *testing.T) { unfinished(t, place(t)) })
	t.Run("abort", func(t *testing.T) { abort(t, place(t)) })
	t.Run("close-aborts", func(t *testing.T) { closeAborts(t, place(t)) })
	t.Run("untouched", func(t *testing.T) { untouched(t, place(t)) })
	t.Run("ends-once", func(t *testing.T) { endsOnce(t, place(t)) })
	t.Run("context", func(t *testing.T) { canceled(t, place(t)) })
	for _, f := range faults {
		t.Run("fault/"+f.Name, func(t *testing.T) { fault(t, f) })
	}
	if len(faults) == 0 {
		t.Error("no fault is tried: every place can at least have too little room or lose its other end")
	}
}

// whole: a complete dump is equal to its source, and is what the summary says.
func whole(t *testing.T, p Place) {
	tg := open(t, p)
	w := begin(t, tg)
	give(t, w, pages)
	sum, err := w.Finish(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(errors.New("too late")); err != nil {
		t.Errorf("Abort after the end: %v", err)
	}
	for range 2 {
		if err := tg.Close(); err != nil {
			t.Fatalf("closing: %v", err)
		}
	}
	found, ok := p.Found(t)
	if !ok || uint64(len(found)) < sum.Bytes {
		t.Fatalf("%d bytes are there (%v), the dump has %d", len(found), ok, sum.Bytes)
	}
	if a := tg.Abilities(); (!a.RandomAccess || a.Sized) && uint64(len(found)) != sum.Bytes {
		t.Errorf("%d bytes are there, the dump has %d", len(found), sum.Bytes)
	}
	if got := sha256.Sum256(found[:sum.Bytes]); got != sum.SHA256 {
		t.Errorf("SHA-256 of what is there is %x, the summary says %x", got, sum.SHA256)
	}
	judge(t, plain(t, p, found))
}

// abilities: what the target says it can do is what it can do.
func abilities(t *testing.T, p Place) {
	tg := open(t, p)
	random, isRandom := tg.(target.Random)
	_, isStream := tg.(target.Stream)
	a := tg.Abilities()
	if a.RandomAccess != isRandom || isRandom == isStream {
		t.Fatalf("it says %+v; it is a Random: %v, a Stream: %v", a, isRandom, isStream)
	}
	if d := tg.Describe(); d == "" || len(d) > 256 || strings.ContainsAny(d, "\n\x00") {
		t.Errorf("it describes itself as %q", d)
	}
	if !isRandom {
		return
	}
	b := alignedBytes(t, 3*kdump.PageSize)
	for i := range b {
		b[i] = byte(i % 253)
	}
	at := random.Size()&^(kdump.PageSize-1) - int64(len(b))
	for _, off := range []int64{at, 5 * kdump.PageSize} {
		if n, err := random.WriteAt(b, off); n != len(b) || err != nil {
			t.Fatalf("writing at %d: %d, %v", off, n, err)
		}
	}
	if err := random.Sync(); err != nil {
		t.Fatal(err)
	}
	got := alignedBytes(t, len(b))
	if n, err := random.ReadAt(got, 5*kdump.PageSize); n < len(got) {
		t.Fatalf("reading back: %d, %v", n, err)
	}
	if !bytes.Equal(got, b) {
		t.Error("something else was read back than was written")
	}
	n, err := random.WriteAt(b, at+kdump.PageSize)
	if err == nil {
		t.Errorf("writing beyond the end: %d, no error", n)
	}
}

// unfinished: as long as the dump is being written nobody takes it for one.
func unfinished(t *testing.T, p Place) {
	w := begin(t, open(t, p))
	give(t, w, pages/2)
	noDump(t, p, "while it is written")
	give2(t, w, pages/2, pages)
	noDump(t, p, "before the end")
	if err := w.Abort(errors.New("test")); err != nil {
		t.Fatal(err)
	}
}

func abort(t *testing.T, p Place) {
	tg := open(t, p)
	w := begin(t, tg)
	give(t, w, pages/2)
	for range 2 {
		if err := w.Abort(errors.New("the test does not want it")); err != nil {
			t.Fatal(err)
		}
		if err := tg.Abort(errors.New("again")); err != nil {
			t.Fatal(err)
		}
	}
	noDump(t, p, "after an abort")
	if _, err := w.Finish(context.Background()); err == nil {
		t.Error("an aborted dump can be finished")
	}
	if err := tg.Close(); err != nil {
		t.Errorf("closing after an abort: %v", err)
	}
	noDump(t, p, "after an abort and a close")
}

func closeAborts(t *testing.T, p Place) {
	tg := open(t, p)
	w := begin(t, tg)
	give(t, w, pages)
	if err := tg.Close(); err != nil {
		t.Fatal(err)
	}
	noDump(t, p, "after a close without commit")
	if _, err := w.Finish(context.Background()); err == nil {
		t.Error("a closed target took the end of a dump")
	}
	_ = w.Abort(errors.New("the target is closed")) // frees the writer; the target may complain
	noDump(t, p, "after a close without commit, and an abort")
}

// untouched: opening and giving up leaves nothing.
func untouched(t *testing.T, p Place) {
	tg := open(t, p)
	for range 2 {
		if err := tg.Close(); err != nil {
			t.Fatal(err)
		}
	}
	noDump(t, p, "after an open and a close")
	if found, ok := p.Found(t); ok && (len(found) == 0 || !tg.Abilities().RandomAccess || tg.Abilities().Sized) {
		t.Errorf("%d bytes were left", len(found))
	}
}

func endsOnce(t *testing.T, p Place) {
	tg := open(t, p)
	w := begin(t, tg)
	give(t, w, pages)
	sum, err := w.Finish(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tg.Commit(context.Background(), int64(sum.Bytes)); !errors.Is(err, target.ErrEnded) {
		t.Errorf("a second commit: %v, want %v", err, target.ErrEnded)
	}
	if err := tg.Abort(errors.New("too late")); err != nil {
		t.Errorf("an abort after the commit: %v", err)
	}
	if err := tg.Close(); err != nil {
		t.Error(err)
	}
	found, ok := p.Found(t)
	if !ok {
		t.Fatal("the dump is gone")
	}
	judge(t, plain(t, p, found))
}

func canceled(t *testing.T, p Place) {
	tg := open(t, p)
	w := begin(t, tg)
	give(t, w, pages)
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("nobody wants it any more")
	cancel(why)
	if _, err := w.Finish(ctx); !errors.Is(err, why) {
		t.Errorf("%v, want %v", err, why)
	}
	if err := w.Abort(why); err != nil {
		t.Error(err)
	}
	noDump(t, p, "after its context ended")
}

// fault: a clear error, and no dump.
func fault(t *testing.T, f Fault) {
	p := f.Place(t)
	tg := open(t, p)
	w, err := format.NewWriter(tg, format.Natural, meta(), options())
	if err == nil {
		err = add(w, 0, pages)
		if err == nil {
			_, err = w.Finish(context.Background())
		}
		if err == nil {
			t.Fatal("no error")
		}
		// Marking a place that takes no writes may fail too.
		if aerr := w.Abort(err); aerr != nil {
			t.Logf("abort: %v", aerr)
		}
	}
	t.Log(err)
	if f.Want != nil && !errors.Is(err, f.Want) {
		t.Errorf("%v is not %v", err, f.Want)
	}
	if !strings.Contains(err.Error(), f.Says) {
		t.Errorf("%v does not say %q", err, f.Says)
	}
	noDump(t, p, "after "+f.Name)
	if err := tg.Close(); err != nil {
		t.Logf("close: %v", err)
	}
	noDump(t, p, "after "+f.Name+" and a close")
}

func open(t *testing.T, p Place) target.Target {
	t.Helper()
	tg := p.Open(t)
	t.Cleanup(func() { _ = tg.Close() }) // a second time
	return tg
}

func begin(t *testing.T, tg target.Target) format.Writer {
	t.Helper()
	w, err := format.NewWriter(tg, format.Natural, meta(), options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Abort(errors.New("the test has ended")) })
	return w
}

// options: few pages' whereabouts in memory, so that the rest goes where it goes for a large dump.
func options() kdump.Options {
	return kdump.Options{Codec: kdump.CodecSnappy, Workers: 2, IndexPages: 1000}
}

func give(t *testing.T, w format.Writer, n int) { t.Helper(); give2(t, w, 0, n) }

func give2(t *testing.T, w format.Writer, from, to int) {
	t.Helper()
	if err := add(w, from, to); err != nil {
		t.Fatal(err)
	}
}

// noDump: whoever reads the place is told that there is no dump.
func noDump(t *testing.T, p Place, when string) {
	t.Helper()
	found, ok := p.Found(t)
	if !ok {
		return
	}
	if p.Decrypt != nil {
		if b, err := p.Decrypt(found); err == nil {
			found = b
		}
	}
	if b, err := unflatten(found); err == nil {
		found = b
	}
	if r, err := kdump.NewReader(bytes.NewReader(found), int64(len(found))); err == nil {
		t.Errorf("%s, %d bytes are taken for a dump of %d pages", when, len(found), r.Pages())
	}
}

// plain is the plain dump of what was found.
func plain(t *testing.T, p Place, found []byte) []byte {
	t.Helper()
	if p.Decrypt != nil {
		if _, err := kdump.NewReader(bytes.NewReader(found), int64(len(found))); err == nil {
			t.Error("there is a dump in clear")
		}
		var err error
		if found, err = p.Decrypt(found); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.HasPrefix(found, []byte("makedumpfile\x00")) {
		return found
	}
	b, err := unflatten(found)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// judge compares every page with its source, and has the dump verified.
func judge(t *testing.T, dump []byte) {
	t.Helper()
	r, err := kdump.NewReader(bytes.NewReader(dump), int64(len(dump)))
	if err != nil {
		t.Fatal(err)
	}
	var b [kdump.PageSize]byte
	for i := range pages {
		_, err := r.ReadPage(pfn(i), b[:])
		if lost(i) {
			if !errors.Is(err, kdump.ErrExcluded) {
				t.Fatalf("lost page %d: %v", i, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b[:], page(i)) {
			t.Fatalf("page %d has other content than its source", i)
		}
	}
	report, err := r.Verify(context.Background(), kdump.VerifyOptions{})
	if err != nil || !report.OK {
		t.Errorf("verify: %+v, %v", report, err)
	}
	ranges, err := r.LostPages()
	if err != nil || !slices.Equal(ranges, []kdump.PFNRange{{Start: pfn(lostPage), End: pfn(lostPage) + 1}}) {
		t.Errorf("lost pages: %v, %v", ranges, err)
	}
}

// alignedBytes are at a page boundary, as direct I/O wants them.
func alignedBytes(t *testing.T, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	if uintptr(unsafe.Pointer(&b[0]))%kdump.PageSize != 0 {
		t.Fatal("a mapping is not aligned")
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}
