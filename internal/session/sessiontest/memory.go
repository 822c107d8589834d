// SPDX-License-Identifier: Apache-2.0

// Package sessiontest is a session on memory that the test makes up. It keeps the rules of the real one: steps in
// order, every page once, the content of the stop, thawed at the latest by Close.
package sessiontest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"livedump.io/internal/session"
)

// Memory is a machine's RAM, and what is to go wrong with it. Set the fields before the session starts.
type Memory struct {
	// Pages of RAM by page frame number; the content is what they hold at the stop. nil is a page of zeros.
	Pages map[uint64][]byte
	// Classes of pages; a page without one is of the kernel.
	Classes map[uint64]session.Class
	// Flags that Next reports for pages (lost, uncovered).
	Flags map[uint64]session.PageFlags
	// CPUs with registers in the notes; 0 means 1.
	CPUs int
	// Utsname of the machine.
	Utsname session.Utsname
	// VMCoreInfo text.
	VMCoreInfo string

	// Errors to return instead of doing the step: prepare, freeze, notes, stats, thaw.
	PrepareError, FreezeError, NotesError, ThawError error
	// NextError ends the session after NextPages pages.
	NextError error
	NextPages uint64
	// HoldThaw, if not nil, keeps Thaw from returning until it is closed.
	HoldThaw chan struct{}
	// OnNext is called with the number of pages reported so far, before every batch.
	OnNext func(reported uint64)

	// OnAcknowledge is called with the pages before every acknowledgement; its error is that of the acknowledgement.
	OnAcknowledge func([]session.Page) error

	mu       sync.Mutex
	sessions int
	open     bool
	frozen   bool
	thaws    int
	orphan   *state // frozen, and its owner is gone
}

// Sessions is how many sessions were opened.
func (m *Memory) Sessions() int { m.mu.Lock(); defer m.mu.Unlock(); return m.sessions }

// Frozen says whether the memory is frozen now.
func (m *Memory) Frozen() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.frozen }

// Open says whether a session is open now.
func (m *Memory) Open() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.open }

// Orphaned says whether frozen memory waits for another owner.
func (m *Memory) Orphaned() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.orphan != nil }

// EndGrace thaws memory that nobody has taken over.
func (m *Memory) EndGrace() {
	m.mu.Lock()
	orphan := m.orphan
	m.orphan = nil
	m.mu.Unlock()
	if orphan != nil {
		m.thaw()
	}
}

// Thaws counts how often frozen memory was thawed.
func (m *Memory) Thaws() int { m.mu.Lock(); defer m.mu.Unlock(); return m.thaws }

// NewSession opens a session, of which there is at most one.
func (m *Memory) NewSession() (session.Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.open {
		return nil, fmt.Errorf("sessiontest: open: %w", session.ErrBusy)
	}
	m.open = true
	m.sessions++
	return &fake{m: m, state: &state{}}, nil
}

type fake struct {
	m      *Memory
	mu     sync.Mutex
	closed bool
	*state
}

// state is what outlives an owner.
type state struct {
	state    session.State
	options  session.Options
	prepared session.Prepared
	frozen   session.Frozen
	queue    []uint64
	out      map[uint64]bool // handed out and not acknowledged
	snapshot map[uint64][]byte
	reported uint64
	acked    uint64
	lost     map[uint64]bool
	failure  session.Failure
	classes  [session.NumClasses]uint64
	toDump   uint64
}

func (f *fake) Prepare(o session.Options) (session.Prepared, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state.state != session.StateIdle || f.closed {
		return session.Prepared{}, errors.New("sessiontest: prepare: wrong state")
	}
	if f.m.PrepareError != nil {
		return session.Prepared{}, f.m.PrepareError
	}
	if o.Keep && o.Acks || o.Grace > 0 && o.UUID == [16]byte{} {
		return session.Prepared{}, fmt.Errorf("sessiontest: prepare: %w", session.ErrABI)
	}
	f.m.mu.Lock()
	busy := f.m.orphan != nil
	f.m.mu.Unlock()
	if busy {
		return session.Prepared{}, fmt.Errorf("sessiontest: prepare: %w", session.ErrBusy)
	}
	f.state.state, f.options = session.StatePrepared, o
	var maxPFN uint64
	for pfn := range f.m.Pages {
		maxPFN = max(maxPFN, pfn+1)
	}
	f.prepared = session.Prepared{MaxPFN: maxPFN, RAMPages: uint64(len(f.m.Pages)), ReservePages: 64,
		Took: time.Millisecond}
	return f.prepared, nil
}

func (f *fake) class(pfn uint64) session.Class {
	if c, ok := f.m.Classes[pfn]; ok {
		return c
	}
	return session.ClassKernel
}

func (f *fake) Freeze() (session.Frozen, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state.state != session.StatePrepared {
		return session.Frozen{}, errors.New("sessiontest: freeze: not prepared")
	}
	if f.m.FreezeError != nil {
		return session.Frozen{}, f.m.FreezeError
	}
	f.state.state = session.StateFrozen
	f.out, f.lost = map[uint64]bool{}, map[uint64]bool{}
	f.m.mu.Lock()
	f.m.frozen = true
	f.m.mu.Unlock()
	f.snapshot = map[uint64][]byte{}
	for pfn, data := range f.m.Pages {
		class := f.class(pfn)
		f.classes[class]++
		if !class.Dumped(f.options.Level) {
			continue
		}
		f.queue = append(f.queue, pfn)
		f.snapshot[pfn] = slices.Clone(data)
	}
	slices.Sort(f.queue)
	// Copies of the reserve come before the sweep, so pages do not come in order.
	for i := 0; i+7 < len(f.queue); i += 13 {
		f.queue[i], f.queue[i+7] = f.queue[i+7], f.queue[i]
	}
	f.toDump = uint64(len(f.queue))
	f.state.frozen = session.Frozen{CPUs: f.cpus(), Stop: 1500 * time.Microsecond, NotesBytes: uint64(len(f.notes())),
		PagesToDump: f.toDump, ClassPages: f.classes, At: time.Unix(1700000000, 123456000)}
	return f.state.frozen, nil
}

func (f *fake) cpus() int { return max(1, f.m.CPUs) }

// note is an ELF note, name and content padded to four bytes.
func note(name string, kind uint32, desc []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(name)+1))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(desc)))
	b = binary.LittleEndian.AppendUint32(b, kind)
	b = append(b, name...)
	b = append(b, 0)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	b = append(b, desc...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func (f *fake) notes() []byte {
	var b []byte
	for cpu := range f.cpus() {
		prstatus := make([]byte, 336)
		binary.LittleEndian.PutUint32(prstatus[32:], uint32(cpu+1)) // pr_pid
		b = append(b, note("CORE", 1, prstatus)...)
	}
	return append(b, note("VMCOREINFO", 0, []byte(f.m.VMCoreInfo))...)
}

func (f *fake) Notes() (session.Notes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state.state != session.StateFrozen {
		return session.Notes{}, errors.New("sessiontest: notes: not frozen")
	}
	if f.m.NotesError != nil {
		return session.Notes{}, f.m.NotesError
	}
	data := f.notes()
	size := uint64(len(f.m.VMCoreInfo))
	return session.Notes{Data: data, VMCoreInfoOffset: uint64(len(data)) - (size+3)/4*4, VMCoreInfoBytes: size,
		Utsname: f.m.Utsname}, nil
}

func (f *fake) Next(data []byte, pages []session.Page) (int, error) {
	f.mu.Lock()
	hook, reported := f.m.OnNext, f.reported
	f.mu.Unlock()
	if hook != nil {
		hook(reported)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state.state != session.StateFrozen {
		return 0, errors.New("sessiontest: next: not frozen")
	}
	if f.m.NextError != nil && f.reported >= f.m.NextPages {
		if errors.Is(f.m.NextError, session.ErrReserveExhausted) {
			f.failure = session.FailureReserve
		}
		return 0, f.m.NextError
	}
	n := 0
	for n < len(pages) && len(f.queue) > 0 {
		pfn := f.queue[0]
		f.queue = f.queue[1:]
		flags := f.m.Flags[pfn]
		pages[n] = session.Page{PFN: pfn, Class: f.class(pfn), Flags: flags}
		page := data[n*session.PageSize : (n+1)*session.PageSize]
		if flags&session.PageLost != 0 {
			f.lost[pfn] = true // the buffer keeps what it held: a caller that uses it is wrong
		} else {
			clear(page[copy(page, f.snapshot[pfn]):])
		}
		f.reported++
		if f.options.Acks {
			f.out[pfn] = true
		}
		n++
	}
	return n, nil
}

func (f *fake) Stats() (session.Stats, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var uncovered uint64
	for _, flags := range f.m.Flags {
		if flags&session.PageUncovered != 0 {
			uncovered++
		}
	}
	return session.Stats{State: f.state.state, PagesAcked: f.acked, Failure: f.failure, Stop: 1500 * time.Microsecond, StopAttempts: 1,
		LostPages: uint64(len(f.lost)), UncoveredPages: uncovered, PagesToDump: f.toDump, PagesReported: f.reported,
		ClassPages: f.classes, Faults: 7, Copies: 3, TablesSplit: 2, TablesJoined: 2}, nil
}

func (f *fake) Acknowledge(pages []session.Page) error {
	if f.m.OnAcknowledge != nil {
		if err := f.m.OnAcknowledge(pages); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state.state != session.StateFrozen || !f.options.Acks || len(pages) > session.MaxBatch {
		return errors.New("sessiontest: acknowledge: not frozen, not asked for, or too many")
	}
	for _, p := range pages {
		if f.out[p.PFN] {
			delete(f.out, p.PFN)
			f.acked++
		}
	}
	return nil
}

func (f *fake) Takeover(uuid [16]byte) (session.Taken, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	switch o := f.m.orphan; {
	case o == nil && f.m.frozen:
		return session.Taken{}, fmt.Errorf("sessiontest: takeover: %w", session.ErrOwnerAlive)
	case o == nil:
		return session.Taken{}, fmt.Errorf("sessiontest: takeover: %w", session.ErrNoSession)
	case o.options.UUID != uuid:
		return session.Taken{}, fmt.Errorf("sessiontest: takeover: %w", session.ErrOtherSession)
	}
	f.state, f.m.orphan = f.m.orphan, nil
	for pfn := range f.out {
		f.queue = append(f.queue, pfn)
	}
	f.reported -= uint64(len(f.out))
	clear(f.out)
	return session.Taken{Options: f.options, Prepared: f.prepared, Frozen: f.state.frozen, PagesReported: f.reported,
		FrozenFor: time.Second}, nil
}

func (m *Memory) thaw() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.frozen {
		m.frozen = false
		m.thaws++
	}
}

func (f *fake) Thaw() error {
	if f.m.HoldThaw != nil {
		<-f.m.HoldThaw
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m.ThawError != nil {
		return f.m.ThawError
	}
	if f.state.state == session.StateFrozen || f.state.state == session.StatePrepared {
		f.state.state = session.StateThawed
		f.m.thaw()
	}
	return nil
}

func (f *fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return errors.New("sessiontest: closed twice")
	}
	f.closed = true
	frozen := f.state.state == session.StateFrozen
	if frozen && f.options.Grace > 0 {
		f.m.mu.Lock()
		f.m.orphan = f.state
		f.m.mu.Unlock()
	} else if frozen {
		f.m.thaw()
	}
	f.m.mu.Lock()
	f.m.open = false
	f.m.mu.Unlock()
	// Whoever still uses the file gets errors.
	f.state = &state{state: session.StateThawed}
	return nil
}
