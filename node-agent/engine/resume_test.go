// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/kdump"
	"livedump.io/internal/session"
	"livedump.io/internal/session/sessiontest"
	"livedump.io/internal/target"
)

// process is one that can be killed: after that, whatever its goroutines do has no effect.
type process struct {
	mu       sync.Mutex
	dead     bool
	sessions []session.Session
	count    map[string]int
	dieAt    string        // what it dies of, with its number: "write 3"
	acked    chan struct{} // if not nil, closed when pages have been acknowledged
}

var errKilled = errors.New("killed")

// at counts an event; the process dies of the one that it is to die of. It returns errKilled if it is dead.
func (p *process) at(event string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return errKilled
	}
	p.count[event]++
	if fmt.Sprintf("%s %d", event, p.count[event]) != p.dieAt {
		return nil
	}
	p.dead = true
	for _, s := range p.sessions {
		_ = s.Close() // as the kernel does
	}
	return errKilled
}

type mortalSession struct {
	session.Session
	p *process
}

func (s *mortalSession) Prepare(o session.Options) (session.Prepared, error) {
	if err := s.p.at("prepare"); err != nil {
		return session.Prepared{}, err
	}
	return s.Session.Prepare(o)
}

func (s *mortalSession) Freeze() (session.Frozen, error) {
	if err := s.p.at("freeze"); err != nil {
		return session.Frozen{}, err
	}
	f, err := s.Session.Freeze()
	if kerr := s.p.at("frozen"); kerr != nil {
		return f, kerr
	}
	return f, err
}

func (s *mortalSession) Notes() (session.Notes, error) {
	if err := s.p.at("notes"); err != nil {
		return session.Notes{}, err
	}
	return s.Session.Notes()
}

func (s *mortalSession) Next(data []byte, pages []session.Page) (int, error) {
	if err := s.p.at("next"); err != nil {
		return 0, err
	}
	n, err := s.Session.Next(data, pages)
	if kerr := s.p.at("handed out"); kerr != nil {
		return 0, kerr
	}
	return n, err
}

func (s *mortalSession) Acknowledge(pages []session.Page) error {
	if err := s.p.at("acknowledge"); err != nil {
		return err
	}
	err := s.Session.Acknowledge(pages)
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	if err == nil && s.p.acked != nil {
		close(s.p.acked)
		s.p.acked = nil
	}
	return err
}

func (s *mortalSession) Thaw() error {
	if err := s.p.at("thaw"); err != nil {
		return err
	}
	err := s.Session.Thaw()
	if kerr := s.p.at("thawed"); kerr != nil {
		return kerr
	}
	return err
}

func (s *mortalSession) Close() error {
	if err := s.p.at("close"); err != nil {
		return err
	}
	return s.Session.Close()
}

type mortalTarget struct {
	*file
	p *process
}

func (t mortalTarget) WriteAt(b []byte, off int64) (int, error) {
	if err := t.p.at("write"); err != nil {
		return 0, err
	}
	return t.file.WriteAt(b, off)
}

func (t mortalTarget) Sync() error {
	if err := t.p.at("sync"); err != nil {
		return err
	}
	return t.file.Sync()
}

// engine of the process.
func (p *process) engine(m *sessiontest.Memory, target *file) *Engine {
	p.count = map[string]int{}
	e := testEngine(mortalTarget{target, p}, m)
	e.OpenSession = func(context.Context) (session.Session, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.dead {
			return nil, errKilled
		}
		s, err := m.NewSession()
		if err != nil {
			return nil, err
		}
		p.sessions = append(p.sessions, s)
		return &mortalSession{s, p}, nil
	}
	e.OpenLoaded = e.OpenSession
	return e
}

func resumable() Options {
	o := testOptions()
	o.Grace = time.Minute
	o.Codec = kdump.CodecNone
	o.journalPages = 300
	return o
}

// makeDump makes the dump by one process after the other; each but the last dies of what dieAt says.
func makeDump(t *testing.T, m *sessiontest.Memory, target *file, dieAt ...string) (r *Report, died int, err error) {
	t.Helper()
	for i := 0; ; i++ {
		p := &process{}
		if i < len(dieAt) {
			p.dieAt = dieAt[i]
		}
		o := resumable()
		o.Resume = i > 0
		o.OnStep = func(_ context.Context, s Step) { _ = p.at(string(s)) }
		r, err = p.engine(m, target).Dump(context.Background(), o)
		if !p.dead {
			return r, i, err
		}
	}
}

func memoryWithFlags() *sessiontest.Memory {
	m := testMemory(4000)
	for pfn := uint64(300); pfn < 310; pfn++ {
		m.Flags[pfn] = session.PageLost
	}
	for pfn := uint64(400); pfn < 450; pfn++ {
		m.Flags[pfn] = session.PageUncovered
	}
	return m
}

// content is all that a dump says of its pages.
func content(t *testing.T, target *file) map[uint64]string {
	t.Helper()
	d, err := kdump.NewReader(target.File, target.size)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	v, err := d.Verify(context.Background(), kdump.VerifyOptions{})
	if err != nil || !v.OK {
		t.Fatalf("verify: %+v, %v", v, err)
	}
	all := map[uint64]string{}
	page := make([]byte, session.PageSize)
	for pfn := range d.MaxPFN() {
		info, err := d.ReadPage(pfn, page)
		if errors.Is(err, kdump.ErrExcluded) || errors.Is(err, kdump.ErrNotRAM) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		all[pfn] = fmt.Sprintf("%+v %x", info, page[:16])
	}
	return all
}

// TestKilledAnywhere kills the process at each step, write, and call of the module, and the one that takes over too. What
// could be captured is not lost, and what the report says is what it would have said.
func TestKilledAnywhere(t *testing.T) {
	whole := newFile(t, 64<<20)
	want, _, err := makeDump(t, memoryWithFlags(), whole)
	if err != nil {
		t.Fatal(err)
	}
	wantPages := content(t, whole)

	// Before memory is frozen nothing is lost by beginning anew; from the freeze until the writer is at work there is nothing
	// to go on from if the session is gone, which is so only where it is not frozen yet.
	lost := map[string]bool{"write 1": true, "sync 1": true, "freeze 1": true}
	events := []string{string(StepTarget), string(StepModule), string(StepPrepare), string(StepFreeze), string(StepWrite),
		string(StepThaw), string(StepFinish), string(StepVerify), "prepare", "freeze", "frozen", "notes", "next", "handed out", "acknowledge",
		"write", "sync", "thaw", "thawed"}
	for _, event := range events {
		t.Run(event, func(t *testing.T) {
			t.Parallel()
			n := 0
			for i := 1; ; i += 1 + i/3 {
				for _, second := range []string{"", "acknowledge 2"} {
					at := fmt.Sprintf("%s %d", event, i)
					m, target := memoryWithFlags(), newFile(t, 64<<20)
					r, died, err := makeDump(t, m, target, at, second)
					if died == 0 {
						if n == 0 {
							t.Errorf("there is no %q", at)
						}
						return
					}
					n++
					if m.Frozen() || m.Open() || m.Orphaned() {
						t.Fatalf("%s: frozen %v, open %v", at, m.Frozen(), m.Open())
					}
					if lost[at] {
						if Reason(err) != v1alpha1.ReasonAgentLost && err != nil {
							t.Fatalf("%s: %v", at, err)
						}
						if err != nil {
							if _, err := kdump.NewReader(target.File, target.size); err == nil {
								t.Fatalf("%s: the target looks like a dump", at)
							}
							continue
						}
					}
					if err != nil {
						t.Fatalf("%s, then %q: %v", at, second, err)
					}
					got := content(t, target)
					if len(got) != len(wantPages) {
						t.Fatalf("%s, then %q: %d pages, want %d", at, second, len(got), len(wantPages))
					}
					for pfn, page := range wantPages {
						if got[pfn] != page {
							t.Fatalf("%s, then %q: page %#x is %s, want %s", at, second, pfn, got[pfn], page)
						}
					}
					same := func(what string, got, want any) {
						if fmt.Sprint(got) != fmt.Sprint(want) {
							t.Errorf("%s, then %q: %s %v, want %v", at, second, what, got, want)
						}
					}
					same("pages", r.PagesDumped, want.PagesDumped)
					same("lost", r.LostPages, want.LostPages)
					same("uncovered", r.UncoveredPages, want.UncoveredPages)
					same("zero", r.ZeroPages, want.ZeroPages)
					same("by class", r.PagesByClass, want.PagesByClass)
					same("classes", r.classes, want.classes)
					same("faults", r.Faults, want.Faults)
					same("copies", r.Copies, want.Copies)
					same("freeze", r.FreezeNS, want.FreezeNS)
					same("frozen at", r.FrozenAt.UnixNano(), want.FrozenAt.UnixNano())
					same("nodename", r.Nodename, want.Nodename)
					if t.Failed() {
						t.FailNow()
					}
				}
			}
		})
	}
}

// TestLeave: the agent has to go, and another goes on.
func TestLeave(t *testing.T) {
	for _, at := range []Step{StepTarget, StepPrepare, StepWrite, StepFinish, ""} {
		m, target := memoryWithFlags(), newFile(t, 64<<20)
		ctx, cancel := context.WithCancelCause(context.Background())
		o := resumable()
		o.OnStep = func(_ context.Context, s Step) {
			if s == at {
				cancel(ErrShutdown)
			}
		}
		m.OnNext = func(reported uint64) {
			if at == "" && reported > 1500 {
				cancel(ErrShutdown)
			}
		}
		p := &process{}
		_, err := p.engine(m, target).Dump(ctx, o)
		if !errors.Is(err, ErrLeft) {
			t.Fatalf("%q: %v", at, err)
		}
		if frozen := at == StepWrite || at == ""; m.Orphaned() != frozen {
			t.Errorf("%q: memory is frozen: %v, want %v", at, m.Orphaned(), frozen)
		}
		m.OnNext = nil
		o = resumable()
		o.Resume = true
		r, err := (&process{}).engine(m, target).Dump(context.Background(), o)
		if err != nil {
			t.Fatalf("%q: %v", at, err)
		}
		if got := content(t, target); uint64(len(got)) != r.PagesDumped {
			t.Errorf("%q: %d pages, report: %d", at, len(got), r.PagesDumped)
		}
		if m.Frozen() {
			t.Errorf("%q: memory is frozen", at)
		}
		cancel(nil)
	}
}

// TestNotResumed: when it is impossible to go on, the reason says so, memory is thawed, and no dump is left.
func TestNotResumed(t *testing.T) {
	begin := func(t *testing.T) (*sessiontest.Memory, *file) {
		m, target := memoryWithFlags(), newFile(t, 64<<20)
		// Some pages are acknowledged, and some have not come yet.
		acknowledged := make(chan struct{})
		m.OnNext = func(reported uint64) {
			if reported > 1500 {
				<-acknowledged
			}
		}
		defer func() { m.OnNext = nil }()
		p := &process{dieAt: "next 11", acked: acknowledged}
		if _, err := p.engine(m, target).Dump(context.Background(), resumable()); !p.dead {
			t.Fatal(err)
		}
		if !m.Orphaned() {
			t.Fatal("memory is not frozen")
		}
		return m, target
	}
	resume := func(ctx context.Context, m *sessiontest.Memory, target *file, change func(*Engine)) error {
		o := resumable()
		o.Resume = true
		e := (&process{}).engine(m, target)
		if change != nil {
			change(e)
		}
		_, err := e.Dump(ctx, o)
		return err
	}
	for _, c := range []struct {
		name   string
		spoil  func(m *sessiontest.Memory, target *file)
		change func(*Engine)
		reason string
	}{
		{name: "the grace is over", spoil: func(m *sessiontest.Memory, _ *file) { m.EndGrace() }, reason: v1alpha1.ReasonAgentLost},
		{name: "the module was unloaded", spoil: func(m *sessiontest.Memory, _ *file) { m.EndGrace() }, reason: v1alpha1.ReasonAgentLost,
			change: func(e *Engine) {
				e.OpenLoaded = func(context.Context) (session.Session, error) { return nil, session.ErrNoDevice }
			}},
		{name: "the journal is gone", spoil: func(_ *sessiontest.Memory, f *file) {
			_, _ = f.File.WriteAt(make([]byte, 4<<20), f.size-4<<20)
		}, reason: v1alpha1.ReasonAgentLost},
		{name: "another wrote to the target", spoil: func(_ *sessiontest.Memory, f *file) {
			_, _ = f.File.WriteAt(bytes.Repeat([]byte{7}, 8192), 0)
		}, reason: v1alpha1.ReasonAgentLost},
		{name: "the target is not there", change: func(e *Engine) {
			e.OpenTarget = func(context.Context) (target.Target, error) { return nil, errKilled }
		}, reason: v1alpha1.ReasonInternalError},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, target := begin(t)
			if c.spoil != nil {
				c.spoil(m, target)
			}
			err := resume(context.Background(), m, target, c.change)
			if err == nil || Reason(err) != c.reason {
				t.Errorf("reason %s (%v), want %s", Reason(err), err, c.reason)
			}
			if m.Frozen() || m.Orphaned() || m.Open() {
				t.Errorf("memory is frozen: %v", m.Frozen())
			}
			if _, err := kdump.NewReader(target.File, target.size); err == nil {
				t.Error("the target looks like a dump")
			}
		})
	}
	t.Run("canceled meanwhile", func(t *testing.T) {
		m, target := begin(t)
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(ErrCanceled)
		if err := resume(ctx, m, target, nil); Reason(err) != v1alpha1.ReasonCanceled {
			t.Errorf("%v", err)
		}
		if m.Frozen() {
			t.Error("memory is frozen")
		}
	})
	t.Run("another session", func(t *testing.T) {
		m, target := begin(t)
		o := resumable()
		o.Resume, o.UUID = true, kdump.Session{9}
		// Not ours to thaw, and no room for another.
		if _, err := (&process{}).engine(m, target).Dump(context.Background(), o); Reason(err) != v1alpha1.ReasonNodeBusy {
			t.Errorf("%v", err)
		}
		if !m.Orphaned() {
			t.Error("another's session was ended")
		}
	})
	t.Run("it had failed", func(t *testing.T) {
		m, target := memoryWithFlags(), newFile(t, 64<<20)
		target.failAfter, target.failWith = 4<<20, fmt.Errorf("broken: %w", session.ErrReserveExhausted)
		if _, err := testEngine(target, m).Dump(context.Background(), resumable()); err == nil {
			t.Fatal("it did not fail")
		}
		if err := resume(context.Background(), m, target, nil); Reason(err) != v1alpha1.ReasonReserveExhausted {
			t.Errorf("%s: %v", Reason(err), err)
		}
	})
}

func TestAcknowledgesInBatches(t *testing.T) {
	m, target := memoryWithFlags(), newFile(t, 64<<20)
	acked := map[uint64]int{}
	var mu sync.Mutex
	m.OnAcknowledge = func(pages []session.Page) error {
		mu.Lock()
		defer mu.Unlock()
		for _, p := range pages {
			acked[p.PFN]++
		}
		return nil
	}
	r, _, err := makeDump(t, m, target)
	if err != nil {
		t.Fatal(err)
	}
	if uint64(len(acked)) != r.PagesToDump {
		t.Errorf("%d of %d pages were acknowledged", len(acked), r.PagesToDump)
	}
	if !slices.Contains([]int{1}, acked[301]) {
		t.Errorf("a lost page was acknowledged %d times", acked[301])
	}
}
