// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/agefile"
	"livedump.io/internal/blockdev"
	"livedump.io/internal/blockdev/blockdevtest"
	"livedump.io/internal/kdump"
	"livedump.io/internal/module"
	"livedump.io/internal/session"
	"livedump.io/internal/session/sessiontest"
	"livedump.io/internal/target"
)

const testVMCoreInfo = "OSRELEASE=6.1.0-test\nPAGESIZE=4096\nNUMBER(phys_base)=16777216\nKERNELOFFSET=1f000000\n"

var testUUID = kdump.Session{0xde, 0xad, 15: 1}

// testPage is what page pfn holds: noise that does not compress, but for every fourth page.
func testPage(pfn uint64) []byte {
	if pfn%4 == 0 {
		return nil
	}
	page := make([]byte, session.PageSize)
	_, _ = rand.NewChaCha8([32]byte{byte(pfn), byte(pfn >> 8), byte(pfn >> 16)}).Read(page) // never fails
	return page
}

// testMemory is RAM from 1 MiB on, every eighth page being free.
func testMemory(pages uint64) *sessiontest.Memory {
	m := &sessiontest.Memory{
		Pages: map[uint64][]byte{}, Classes: map[uint64]session.Class{}, Flags: map[uint64]session.PageFlags{}, CPUs: 2,
		VMCoreInfo: testVMCoreInfo,
		Utsname: session.Utsname{Sysname: "Linux", Nodename: "n1", Release: "6.1.0-test", Version: "#1", Machine: "x86_64",
			Domainname: "(none)"},
	}
	for pfn := uint64(256); pfn < 256+pages; pfn++ {
		m.Pages[pfn] = testPage(pfn)
		if pfn%8 == 7 {
			m.Classes[pfn] = session.ClassFree
		}
	}
	return m
}

// file is a target that can fail.
type file struct {
	*os.File
	size int64

	mu           sync.Mutex
	written      int64
	failAfter    int64 // bytes; 0: never
	failMetadata bool  // writing block 1 fails, which comes after all pages
	failWith     error
	corrupt      bool          // flips a bit of everything that is not block 0
	block        chan struct{} // writes beyond block 0 wait until it is closed
	hangs        atomic.Bool   // one of them does
	syncErr      error
	// onHeader, if not nil, is called when block 0 has become that of a dump; commitErr is what Commit fails with.
	onHeader  func()
	commitErr error
	markErr   error // of writing block 0
	closed    bool
}

func newFile(t *testing.T, size int64) *file {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "target"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return &file{File: f, size: size}
}

func (f *file) Size() int64      { return f.size }
func (f *file) Describe() string { return "test file" }

func (f *file) Abilities() target.Abilities { return target.Abilities{RandomAccess: true} }

func (f *file) Commit(ctx context.Context, size int64) (target.Receipt, error) {
	if err := context.Cause(ctx); err != nil {
		return target.Receipt{}, err
	}
	if err := f.commitErr; err != nil {
		return target.Receipt{}, err
	}
	return target.Receipt{Bytes: size}, nil
}

func (f *file) Abort(error) error { return nil }
func (f *file) Close() error      { f.mu.Lock(); defer f.mu.Unlock(); f.closed = true; return nil }

func (f *file) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.syncErr
}

func (f *file) WriteAt(p []byte, offset int64) (int, error) {
	if f.block != nil && offset > 0 {
		f.hangs.Store(true)
		<-f.block
	}
	f.mu.Lock()
	f.written += int64(len(p))
	if f.markErr != nil && offset == 0 {
		f.mu.Unlock()
		return 0, f.markErr
	}
	fail := f.failAfter > 0 && f.written > f.failAfter && offset > 0 || f.failMetadata && offset == session.PageSize
	f.mu.Unlock()
	if fail {
		return 0, f.failWith
	}
	if f.corrupt && offset > 0 {
		p = bytes.Clone(p)
		p[len(p)/2] ^= 1
	}
	n, err := f.File.WriteAt(p, offset)
	if f.onHeader != nil && offset == 0 && !kdump.IsMark(p) {
		f.onHeader()
	}
	return n, err
}

// record is what block 0 says.
func record(t *testing.T, r io.ReaderAt) (kdump.Record, bool) {
	t.Helper()
	rec, found, err := kdump.ReadRecord(r)
	if err != nil {
		t.Fatal(err)
	}
	return rec, found
}

func testEngine(to target.Target, m *sessiontest.Memory) *Engine {
	return &Engine{
		OpenTarget: func(context.Context) (target.Target, error) { return to, nil },
		LoadModule: func() (module.Outcome, error) {
			return module.Outcome{How: module.OutcomeLoaded, File: "livedump.ko"}, nil
		},
		OpenSession: func(context.Context) (session.Session, error) { return m.NewSession() },
		RAM: func() ([]kdump.PFNRange, error) {
			return []kdump.PFNRange{{Start: 0, End: 159}, {Start: 256, End: 1 << 30}}, nil
		},
		Now: time.Now,
		Log: slog.New(slog.DiscardHandler),
	}
}

func testOptions() Options {
	return Options{UUID: testUUID, Level: session.ExcludeAll, Codec: kdump.CodecZstd, Readers: 3}
}

func TestDump(t *testing.T) {
	m := testMemory(20000)
	for pfn := uint64(300); pfn < 310; pfn++ {
		m.Flags[pfn] = session.PageLost
	}
	m.Flags[401] = session.PageUncovered
	target := newFile(t, 256<<20)
	var progress []Progress
	o := testOptions()
	o.Progress = func(p Progress) { progress = append(progress, p) }
	var frozenAtFinish bool
	o.OnStep = func(_ context.Context, s Step) {
		if s == StepFinish {
			frozenAtFinish = m.Frozen()
		}
	}
	r, err := testEngine(target, m).Dump(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if frozenAtFinish {
		t.Error("memory was still frozen when all pages had been fetched")
	}
	if m.Open() || m.Thaws() != 1 || !target.closed {
		t.Errorf("session open: %v, thaws: %d, target closed: %v", m.Open(), m.Thaws(), target.closed)
	}

	// The dump holds what memory held.
	d, err := kdump.NewReader(target.File, target.size)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.Record().Session != testUUID {
		t.Errorf("session of the dump: %s", d.Record().Session)
	}
	page := make([]byte, session.PageSize)
	zero := make([]byte, session.PageSize)
	var dumped, lost uint64
	for pfn, want := range m.Pages {
		_, err := d.ReadPage(pfn, page)
		switch {
		case m.Flags[pfn]&session.PageLost != 0 && m.Classes[pfn] != session.ClassFree:
			lost++
			fallthrough
		case m.Classes[pfn] == session.ClassFree:
			if !errors.Is(err, kdump.ErrExcluded) {
				t.Fatalf("page %#x: got %v, want %v", pfn, err, kdump.ErrExcluded)
			}
		case err != nil:
			t.Fatalf("page %#x: %v", pfn, err)
		default:
			dumped++
			if want == nil {
				want = zero
			}
			if !bytes.Equal(page, want) {
				t.Fatalf("page %#x differs", pfn)
			}
		}
	}
	if r.PagesDumped != dumped || r.LostPages != lost || lost == 0 || r.UncoveredPages != 1 {
		t.Errorf("report: %d pages, %d lost, %d uncovered; the dump has %d and %d", r.PagesDumped, r.LostPages,
			r.UncoveredPages, dumped, lost)
	}
	if r.ClassPages(session.ClassFree) != 2500 || r.PagesByClass["Free"] != 2500 || r.PagesByClass["Kernel"] != 17500 {
		t.Errorf("pages by class: %v", r.PagesByClass)
	}

	// The checksum is that of the bytes on the target.
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(target.File, 0, int64(r.SizeBytes))); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != r.SHA256 {
		t.Errorf("SHA-256 of the target: %s, report: %s", got, r.SHA256)
	}

	if len(progress) == 0 || progress[0].Step != StepTarget {
		t.Fatalf("progress: %+v", progress)
	}
	last := progress[len(progress)-1]
	if last.PagesDone != r.PagesToDump || last.PagesTotal != r.PagesToDump || last.Percent() != 100 || !last.ModuleLoaded {
		t.Errorf("last progress: %+v", last)
	}
	var steps []string
	for _, s := range r.Steps {
		steps = append(steps, s.Name)
	}
	if len(steps) < 7 || steps[0] != string(StepTarget) {
		t.Errorf("steps: %v", steps)
	}
}

// TestEncryptedDump: the target holds an age file, and the report is about that.
func TestEncryptedDump(t *testing.T) {
	path, backing := blockdevtest.Loop(t, 64<<20)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	m := testMemory(8000)
	node := Node{Host: blockdev.LocalHost, Log: slog.New(slog.DiscardHandler)}
	e := node.Engine(node.Device(func(context.Context) (blockdev.ID, error) { return node.Host.Resolve(path) }, blockdev.Need{Bytes: 64 << 20, Policy: blockdev.IfEmptyOrLiveDump}))
	fake := testEngine(nil, m)
	e.LoadModule, e.OpenSession, e.RAM = fake.LoadModule, fake.OpenSession, fake.RAM
	o := testOptions()
	o.Recipients = []age.Recipient{id.Recipient()}
	for range 2 { // the second one over the first
		m = testMemory(8000)
		e.OpenSession = testEngine(nil, m).OpenSession
		r, err := e.Dump(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		unix.Sync()
		b, err := os.ReadFile(backing)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(b[:r.SizeBytes]); hex.EncodeToString(sum[:]) != r.SHA256 || r.Encryption != "age" || !r.ReadBack {
			t.Errorf("SHA-256 of the target %x, report: %s, %q", sum, r.SHA256, r.Encryption)
		}
		if bytes.Contains(b, []byte("OSRELEASE=")) || bytes.Contains(b, []byte("VMCOREINFO")) {
			t.Error("the notes are on the target in clear")
		}
		f, err := agefile.Open(backing, id)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d, err := kdump.NewReader(f, f.Size)
		if err != nil {
			t.Fatal(err)
		}
		verified, err := d.Verify(context.Background(), kdump.VerifyOptions{})
		if err != nil || !verified.OK || d.Pages() != 7000 {
			t.Errorf("%d pages, verify: %v %v", d.Pages(), err, verified.Problems)
		}
	}

	// One that fails says so in clear, without anything of memory.
	ctx, cancel := context.WithCancelCause(context.Background())
	o.OnStep = func(_ context.Context, s Step) {
		if s == StepFinish {
			cancel(ErrCanceled)
		}
	}
	e.OpenSession = testEngine(nil, testMemory(8000)).OpenSession
	if _, err := e.Dump(ctx, o); Reason(err) != v1alpha1.ReasonCanceled {
		t.Errorf("canceled: %v", err)
	}
	unix.Sync()
	f, err := os.Open(backing)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if rec, found, err := kdump.ReadRecord(f); err != nil || !found || rec.State != kdump.StateFailed || rec.Session != o.UUID {
		t.Errorf("record %+v, %v, %v", rec, found, err)
	}
}

// TestDumpToDevice goes through a real block device with direct I/O.
func TestDumpToDevice(t *testing.T) {
	path, backing := blockdevtest.Loop(t, 64<<20)
	m := testMemory(8000)
	node := Node{Host: blockdev.LocalHost, Log: slog.New(slog.DiscardHandler)}
	e := node.Engine(node.Device(func(context.Context) (blockdev.ID, error) { return node.Host.Resolve(path) }, blockdev.Need{Bytes: 64 << 20, Policy: blockdev.Never}))
	fake := testEngine(nil, m)
	e.LoadModule, e.OpenSession, e.RAM = fake.LoadModule, fake.OpenSession, fake.RAM

	r, err := e.Dump(context.Background(), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	unix.Sync()
	d, err := kdump.Open(backing)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.Pages() != 7000 || r.PagesDumped != 7000 {
		t.Errorf("%d pages in the dump, report: %d", d.Pages(), r.PagesDumped)
	}
	verified, err := d.Verify(context.Background(), kdump.VerifyOptions{})
	if err != nil || len(verified.Problems) > 0 {
		t.Errorf("verify: %v %v", err, verified.Problems)
	}

	// The next dump to the same device: not if nothing may be overwritten, ...
	before, err := os.ReadFile(backing)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Dump(context.Background(), testOptions()); Reason(err) != v1alpha1.ReasonTargetNotEmpty {
		t.Errorf("over a dump, policy Never: %v", err)
	}
	unix.Sync()
	after, err := os.ReadFile(backing)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("a refused target was written to")
	}
	if m.Sessions() != 1 {
		t.Errorf("%d sessions: a refused target must be found before memory is frozen", m.Sessions())
	}
	// ... but with the other policy.
	e2 := node.Engine(node.Device(func(context.Context) (blockdev.ID, error) { return node.Host.Resolve(path) }, blockdev.Need{Policy: blockdev.IfEmptyOrLiveDump}))
	e2.LoadModule, e2.OpenSession, e2.RAM = fake.LoadModule, fake.OpenSession, fake.RAM
	if _, err := e2.Dump(context.Background(), testOptions()); err != nil {
		t.Errorf("over a dump, policy IfEmptyOrLiveDump: %v", err)
	}
}

// TestFailures: whatever step fails, memory is thawed, the session is gone, and the target does not look like a dump.
func TestFailures(t *testing.T) {
	errTest := errors.New("made to fail")
	for _, tc := range []struct {
		name    string
		size    int64
		arrange func(m *sessiontest.Memory, f *file, e *Engine)
		reason  string
		froze   bool // memory was frozen
		touched bool // the target was
	}{
		{name: "target refused", reason: v1alpha1.ReasonTargetInUse, arrange: func(_ *sessiontest.Memory, _ *file, e *Engine) {
			e.OpenTarget = func(context.Context) (target.Target, error) { return nil, fmt.Errorf("vdb: %w", blockdev.ErrMounted) }
		}},
		{name: "no module", reason: v1alpha1.ReasonModuleNotFound, arrange: func(_ *sessiontest.Memory, _ *file, e *Engine) {
			e.LoadModule = func() (module.Outcome, error) { return module.Outcome{}, module.ErrNotFound }
		}},
		{name: "no session", reason: v1alpha1.ReasonInternalError, arrange: func(_ *sessiontest.Memory, _ *file, e *Engine) {
			e.OpenSession = func(context.Context) (session.Session, error) { return nil, session.ErrNoDevice }
		}},
		{name: "no RAM", reason: v1alpha1.ReasonInternalError, arrange: func(_ *sessiontest.Memory, _ *file, e *Engine) {
			e.RAM = func() ([]kdump.PFNRange, error) { return nil, errTest }
		}},
		{name: "prepare", reason: v1alpha1.ReasonLockedDown, arrange: func(m *sessiontest.Memory, _ *file, _ *Engine) {
			m.PrepareError = session.ErrLockedDown
		}},
		{name: "too small for any dump", reason: v1alpha1.ReasonTargetTooSmall, size: 128 << 10, arrange: func(*sessiontest.Memory, *file, *Engine) {}},
		{name: "freeze", touched: true, reason: v1alpha1.ReasonStopFailed, arrange: func(m *sessiontest.Memory, _ *file, _ *Engine) {
			m.FreezeError = session.ErrStopFailed
		}},
		{name: "notes", touched: true, reason: v1alpha1.ReasonInternalError, froze: true, arrange: func(m *sessiontest.Memory, _ *file, _ *Engine) {
			m.NotesError = errTest
		}},
		{name: "bad notes", touched: true, reason: v1alpha1.ReasonInternalError, froze: true, arrange: func(m *sessiontest.Memory, _ *file, _ *Engine) {
			m.VMCoreInfo = "nothing\n"
		}},
		{name: "reserve exhausted", reason: v1alpha1.ReasonReserveExhausted, froze: true, touched: true, arrange: func(m *sessiontest.Memory, _ *file, _ *Engine) {
			m.NextError, m.NextPages = session.ErrReserveExhausted, 3000
		}},
		{name: "deadline", reason: v1alpha1.ReasonDeadlineExceeded, froze: true, touched: true, arrange: func(m *sessiontest.Memory, _ *file, _ *Engine) {
			m.NextError, m.NextPages = session.ErrDeadlineExceeded, 0
		}},
		{name: "too small, seen late", reason: v1alpha1.ReasonTargetTooSmall, froze: true, touched: true, size: 16 << 20, arrange: func(*sessiontest.Memory, *file, *Engine) {}},
		{name: "I/O error", reason: v1alpha1.ReasonIOError, froze: true, touched: true, arrange: func(_ *sessiontest.Memory, f *file, _ *Engine) {
			f.failAfter, f.failWith = 8<<20, unix.EIO
		}},
		{name: "I/O error at the end", reason: v1alpha1.ReasonIOError, froze: true, touched: true, arrange: func(_ *sessiontest.Memory, f *file, _ *Engine) {
			f.failMetadata, f.failWith = true, fmt.Errorf("%w: EIO", blockdev.ErrIO)
		}},
		{name: "what is read back differs", reason: v1alpha1.ReasonVerifyFailed, froze: true, touched: true, arrange: func(_ *sessiontest.Memory, f *file, _ *Engine) {
			f.corrupt = true
		}},
		{name: "thaw", reason: v1alpha1.ReasonInternalError, froze: true, touched: true, arrange: func(m *sessiontest.Memory, _ *file, _ *Engine) {
			m.ThawError = errTest
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := testMemory(20000)
			size := tc.size
			if size == 0 {
				size = 128 << 20
			}
			target := newFile(t, size)
			e := testEngine(target, m)
			tc.arrange(m, target, e)
			r, err := e.Dump(context.Background(), testOptions())
			if err == nil {
				t.Fatal("the dump succeeded")
			}
			t.Log(err)
			if got := Reason(err); got != tc.reason || r.Reason != got || r.Error == "" {
				t.Errorf("reason %s (report: %q), want %s", got, r.Reason, tc.reason)
			}
			checkEnded(t, m, tc.froze)
			rec, found := record(t, target.File)
			switch {
			case found != tc.touched:
				t.Errorf("mark on the target: %v, want %v", found, tc.touched)
			case found && (rec.State != kdump.StateFailed || rec.Session != testUUID || rec.Reason == ""):
				t.Errorf("the target says: %s, session %s, %q", rec.State, rec.Session, rec.Reason)
			}
			if _, err := kdump.NewReader(target.File, size); err == nil {
				t.Error("the target looks like a dump")
			}
		})
	}
}

func checkEnded(t *testing.T, m *sessiontest.Memory, froze bool) {
	t.Helper()
	if m.Open() || m.Frozen() {
		t.Errorf("session open: %v, memory frozen: %v", m.Open(), m.Frozen())
	}
	if got := m.Thaws() == 1; got != froze {
		t.Errorf("frozen and thawed again: %v, want %v", got, froze)
	}
}

// TestCancel cancels before every step, and in the middle of the pages.
func TestCancel(t *testing.T) {
	for _, at := range []Step{StepTarget, StepModule, StepPrepare, StepFreeze, StepWrite, StepFinish} {
		t.Run(string(at), func(t *testing.T) {
			m := testMemory(20000)
			target := newFile(t, 128<<20)
			ctx, cancel := context.WithCancelCause(context.Background())
			defer cancel(nil)
			o := testOptions()
			o.OnStep = func(_ context.Context, s Step) {
				if s == at {
					cancel(ErrCanceled)
				}
			}
			_, err := testEngine(target, m).Dump(ctx, o)
			if Reason(err) != v1alpha1.ReasonCanceled {
				t.Errorf("got %v", err)
			}
			checkEnded(t, m, at == StepWrite || at == StepFinish)
			rec, found := record(t, target.File)
			if touched := at == StepWrite || at == StepFinish; found != touched || found && rec.State != kdump.StateFailed {
				t.Errorf("mark on the target: %v %s", found, rec.State)
			}
		})
	}
	t.Run("among the pages", func(t *testing.T) {
		m := testMemory(20000)
		target := newFile(t, 128<<20)
		ctx, cancel := context.WithCancelCause(context.Background())
		defer cancel(nil)
		m.OnNext = func(reported uint64) {
			if reported > 4000 {
				cancel(ErrShutdown)
			}
		}
		_, err := testEngine(target, m).Dump(ctx, testOptions())
		if Reason(err) != v1alpha1.ReasonAgentLost {
			t.Errorf("got %v", err)
		}
		checkEnded(t, m, true)
		if rec, found := record(t, target.File); !found || rec.State != kdump.StateFailed {
			t.Errorf("mark on the target: %v %s", found, rec.State)
		}
	})
}

// TestEndsAtTheLastWrite: once block 0 is written the target is a dump to every reader. If the dump fails all the same, it is marked; and if
// even that fails, the error says so.
func TestEndsAtTheLastWrite(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, recipients := range map[string][]age.Recipient{"in clear": nil, "encrypted": {id.Recipient()}} {
		for _, c := range []struct {
			name, reason string
			arrange      func(f *file, cancel context.CancelCauseFunc)
			unmarked     bool
		}{
			{name: "canceled", reason: v1alpha1.ReasonCanceled, arrange: func(f *file, cancel context.CancelCauseFunc) {
				f.onHeader = func() { cancel(ErrCanceled) }
			}},
			{name: "out of time", reason: v1alpha1.ReasonDeadlineExceeded, arrange: func(f *file, cancel context.CancelCauseFunc) {
				f.onHeader = func() { cancel(ErrDeadline) }
			}},
			{name: "not committed", reason: v1alpha1.ReasonIOError, arrange: func(f *file, _ context.CancelCauseFunc) {
				f.commitErr = blockdev.ErrIO
			}},
			{name: "nor marked", reason: v1alpha1.ReasonIOError, unmarked: true, arrange: func(f *file, _ context.CancelCauseFunc) {
				f.commitErr = blockdev.ErrIO
				f.onHeader = func() {
					f.mu.Lock()
					defer f.mu.Unlock()
					f.markErr = unix.EIO
				}
			}},
		} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				m, target := testMemory(2000), newFile(t, 64<<20)
				ctx, cancel := context.WithCancelCause(context.Background())
				defer cancel(nil)
				c.arrange(target, cancel)
				o := testOptions()
				o.Recipients = recipients
				_, err := testEngine(target, m).Dump(ctx, o)
				if Reason(err) != c.reason || errors.Is(err, errUnmarked) != c.unmarked {
					t.Errorf("got %v", err)
				}
				checkEnded(t, m, true)
				if c.unmarked {
					return
				}
				rec, found := record(t, target.File)
				if !found || rec.State != kdump.StateFailed || rec.Session != testUUID || !strings.HasPrefix(rec.Reason, c.reason+": ") {
					t.Errorf("mark on the target: %v, %s, %q", found, rec.State, rec.Reason)
				}
			})
		}
	}
}

// TestHangingDevice: memory must not stay frozen because the device hangs.
func TestHangingDevice(t *testing.T) {
	m := testMemory(40000)
	target := newFile(t, 256<<20)
	target.block = make(chan struct{})
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	done := make(chan error, 1)
	go func() {
		_, err := testEngine(target, m).Dump(ctx, testOptions())
		done <- err
	}()
	waitFor(t, "the device to hang", target.hangs.Load)
	cancel(ErrCanceled)
	waitFor(t, "memory to be thawed while the device hangs", func() bool { return m.Thaws() == 1 })
	select {
	case err := <-done:
		t.Fatalf("the dump ended although the device hangs: %v", err)
	default:
	}
	close(target.block)
	if err := <-done; Reason(err) != v1alpha1.ReasonCanceled {
		t.Errorf("got %v", err)
	}
	checkEnded(t, m, true)
	if rec, found := record(t, target.File); !found || rec.State != kdump.StateFailed {
		t.Errorf("mark on the target: %v %s", found, rec.State)
	}
}

// hangingThaw makes a dump whose thaw hangs, as while a CPU is stuck, and waits until it is reported. finish lets the thaw end and gives
// what Dump returned.
func hangingThaw(t *testing.T, m *sessiontest.Memory, target *file, change func(*Engine, *Options)) (early *Report, err error, finish func() (*Report, error)) {
	t.Helper()
	m.HoldThaw = make(chan struct{})
	e, o := testEngine(target, m), testOptions()
	e.ThawPatience = time.Millisecond
	type result struct {
		r   *Report
		err error
	}
	reported, done := make(chan result, 2), make(chan result, 1)
	var ended atomic.Bool
	o.Progress = func(p Progress) {
		if ended.Load() {
			t.Errorf("progress after the end: %+v", p)
		}
	}
	o.Unthawed = func(r *Report, err error) {
		ended.Store(true)
		reported <- result{r, err}
	}
	change(e, &o)
	go func() {
		r, err := e.Dump(context.Background(), o)
		done <- result{r, err}
	}()
	var got result
	select {
	case got = <-reported:
	case r := <-done:
		t.Fatalf("Dump returned before the thaw: %v", r.err)
	case <-time.After(30 * time.Second):
		t.Fatal("the end of the dump is not reported while the thaw hangs")
	}
	if !m.Open() || !m.Frozen() {
		t.Error("the session was ended before it was thawed")
	}
	target.mu.Lock()
	if !target.closed {
		t.Error("the target is not given up when the end is reported")
	}
	target.mu.Unlock()
	select {
	case r := <-done:
		t.Fatalf("Dump returned before the thaw: %v", r.err)
	default:
	}
	return got.r, got.err, func() (*Report, error) {
		close(m.HoldThaw)
		r := <-done
		if len(reported) != 0 {
			t.Error("the end was reported twice")
		}
		checkEnded(t, m, true)
		return r.r, r.err
	}
}

// thawSteps are the thaws among the steps.
func thawSteps(r *Report) (n int) {
	for _, s := range r.Steps {
		if s.Name == string(StepThaw) {
			n++
		}
	}
	return n
}

// TestHangingThaw: a CPU that is stuck keeps the module from giving back its memory. The dump, and the report of it, must not wait for
// that; what is not known before the thaw is not in that report.
func TestHangingThaw(t *testing.T) {
	t.Run("complete", func(t *testing.T) {
		m, target := testMemory(2000), newFile(t, 256<<20)
		early, err, finish := hangingThaw(t, m, target, func(*Engine, *Options) {})
		if err != nil {
			t.Fatal(err)
		}
		d, rerr := kdump.NewReader(target.File, target.size)
		if rerr != nil {
			t.Fatalf("reported as complete: %v", rerr)
		}
		defer d.Close()
		if early.PagesDumped != d.Pages() || early.SHA256 == "" || early.SizeBytes == 0 || early.Faults != 7 || early.Error != "" || early.TotalNS <= 0 {
			t.Errorf("report: %+v", early)
		}
		if !early.Unthawed || early.FrozenForNS != 0 || thawSteps(early) != 0 {
			t.Errorf("the report has a thaw that is not over: %v, frozen for %d, steps %v", early.Unthawed, early.FrozenForNS, early.Steps)
		}
		late, err := finish()
		if err != nil || late.Unthawed || late.FrozenForNS <= 0 || thawSteps(late) != 1 || late.SHA256 != early.SHA256 {
			t.Errorf("after the thaw: %v, %+v", err, late)
		}
		if early.FrozenForNS != 0 || thawSteps(early) != 0 {
			t.Error("the report that was given away has changed")
		}
	})
	t.Run("failed", func(t *testing.T) {
		m, target := testMemory(20000), newFile(t, 128<<20)
		target.failAfter, target.failWith = 8<<20, unix.EIO
		early, err, finish := hangingThaw(t, m, target, func(*Engine, *Options) {})
		if Reason(err) != v1alpha1.ReasonIOError || early.Reason != v1alpha1.ReasonIOError || early.Error == "" || !early.Unthawed {
			t.Errorf("%v, report: %+v", err, early)
		}
		if rec, found := record(t, target.File); !found || rec.State != kdump.StateFailed {
			t.Errorf("mark on the target: %v %s", found, rec.State)
		}
		if _, late := finish(); Reason(late) != v1alpha1.ReasonIOError {
			t.Errorf("after the thaw: %v", late)
		}
	})
	t.Run("nobody asks", func(t *testing.T) {
		m := testMemory(2000)
		r, err := testEngine(newFile(t, 256<<20), m).Dump(context.Background(), testOptions())
		if err != nil || r.Unthawed || thawSteps(r) != 1 {
			t.Errorf("%v, %+v", err, r)
		}
	})
	// An agent that comes meanwhile has nothing to ask of the module, which would not answer it.
	t.Run("another agent reports", func(t *testing.T) {
		m, target := testMemory(2000), newFile(t, 256<<20)
		early, err, finish := hangingThaw(t, m, target, func(_ *Engine, o *Options) { o.Grace = time.Minute })
		if err != nil {
			t.Fatal(err)
		}
		next := testEngine(target, m)
		next.OpenLoaded = func(context.Context) (session.Session, error) {
			t.Error("the module was asked for a session that it cannot give")
			return nil, session.ErrNoDevice
		}
		o := testOptions()
		o.Grace, o.Resume = time.Minute, true
		again, err := next.Dump(context.Background(), o)
		if err != nil || !again.ReadBack || again.SHA256 != early.SHA256 || again.PagesDumped != early.PagesDumped || again.Takeovers != 1 {
			t.Errorf("%v, %+v", err, again)
		}
		if _, err := finish(); err != nil {
			t.Error(err)
		}
	})
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestInProgress: while the dump runs, and if the process dies, the target says that it holds none.
func TestInProgress(t *testing.T) {
	m := testMemory(20000)
	target := newFile(t, 128<<20)
	var states []kdump.State
	var mu sync.Mutex
	m.OnNext = func(uint64) {
		rec, found, err := kdump.ReadRecord(target.File)
		mu.Lock()
		defer mu.Unlock()
		if err != nil || !found {
			t.Errorf("no mark: %v", err)
			return
		}
		states = append(states, rec.State)
		if _, err := kdump.NewReader(target.File, target.size); !errors.Is(err, kdump.ErrInProgress) {
			t.Errorf("reading the target: got %v, want %v", err, kdump.ErrInProgress)
		}
	}
	if _, err := testEngine(target, m).Dump(context.Background(), testOptions()); err != nil {
		t.Fatal(err)
	}
	if len(states) == 0 {
		t.Fatal("no page was fetched")
	}
	for _, s := range states {
		if s != kdump.StateInProgress {
			t.Errorf("state %s", s)
		}
	}
}

// TestKernelLog: what the module said is in the error, if it was the module that failed.
func TestKernelLog(t *testing.T) {
	m := testMemory(100)
	m.PrepareError = session.ErrUnsupported
	e := testEngine(newFile(t, 64<<20), m)
	e.KernelLog = func() func() []string {
		return func() []string { return []string{"Xen PV guests do not own their page tables"} }
	}
	r, err := e.Dump(context.Background(), testOptions())
	if Reason(err) != v1alpha1.ReasonUnsupportedKernel || !strings.Contains(r.Error, "Xen PV") {
		t.Errorf("got %v", err)
	}
	e.OpenTarget = func(context.Context) (target.Target, error) { return nil, blockdev.ErrSwap }
	if _, err := e.Dump(context.Background(), testOptions()); strings.Contains(err.Error(), "Xen PV") {
		t.Errorf("got %v", err)
	}
}

func TestIOMem(t *testing.T) {
	ram, err := parseIOMem(bytes.NewBufferString("00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n" +
		"000f0000-000fffff : Reserved\n00100000-7ffdffff : System RAM\n  01000000-01ffffff : Kernel code\n" +
		"100000000-17fffffff : System RAM\n  150000000-15fffffff : System RAM nested\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []kdump.PFNRange{{Start: 1, End: 0x9f}, {Start: 0x100, End: 0x7ffe0}, {Start: 0x100000, End: 0x180000}}
	if fmt.Sprint(ram) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", ram, want)
	}
	for _, bad := range []string{"", "00000000-00000000 : System RAM\n", "zz : System RAM\n"} {
		if ram, err := parseIOMem(bytes.NewBufferString(bad)); err == nil {
			t.Errorf("%q gave %v", bad, ram)
		}
	}
}
