// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"filippo.io/age"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
	"livedump.io/internal/module"
	"livedump.io/internal/session"
	"livedump.io/internal/target"
)

// Engine makes dumps. Its functions are the edges to the machine.
type Engine struct {
	// OpenTarget checks and claims the target. Nothing has been written when it returns.
	OpenTarget Open
	// LoadModule makes sure that the module is loaded.
	LoadModule func() (module.Outcome, error)
	// OpenSession opens a session of the loaded module.
	OpenSession func(context.Context) (session.Session, error)
	// OpenLoaded opens a session of the module that is loaded, whichever it is. session.ErrNoDevice: none is.
	OpenLoaded func(context.Context) (session.Session, error)
	// RAM gives the ranges of page frames that are memory.
	RAM func() ([]kdump.PFNRange, error)
	// KernelLog, if not nil, begins to listen to the kernel's log. What it returns gives the module's complaints since
	// then, and ends listening. They hold nothing of memory.
	KernelLog func() (complaints func() []string)
	// ThawPatience is how long the target waits for memory to be thawed; 0 is thawPatience.
	ThawPatience time.Duration
	// Now is the clock.
	Now func() time.Time
	Log *slog.Logger
}

// Options of one dump.
type Options struct {
	UUID         kdump.Session
	Level        session.DumpLevel
	Mode         session.Mode
	ReserveBytes uint64
	// Format of the dump; Natural is what suits the target.
	Format format.Format
	Codec  kdump.Codec
	// Recipients, if there are any, are who can decrypt the dump; nobody else can read it.
	Recipients []age.Recipient
	// CodecLevel is one of Codec.Levels; 0 is the fastest.
	CodecLevel int
	// Readers is how many goroutines fetch pages and compress them; 0 is one for each CPU that Go uses.
	Readers int
	// Bandwidth limits writing to the target, bytes per second; 0 is no limit.
	Bandwidth int64
	// Deadline is the longest time that memory may stay frozen; the kernel enforces it. 0 leaves it to the module.
	Deadline time.Duration
	// Grace is how long memory stays frozen when this process dies or leaves, so that another can go on with the dump: with
	// Resume and the same UUID. 0: not at all. Only some targets can be gone on with; see kdump.Options.Journal.
	Grace time.Duration
	// Resume says that another process has begun this dump. What can be gone on with is; what was not begun is begun;
	// otherwise the error is ErrLost. Memory is thawed in any case.
	Resume bool
	// Calibrate is the length of a dry run by which the module sizes the reserve for a dump that takes Expected; 0: none.
	Calibrate, Expected time.Duration
	// KeepPages makes the frozen memory readable through /dev/livedump-vmcore until it is thawed. The reserve must then
	// hold every page that is written in that time.
	KeepPages bool
	// journalPages, if not 0, make a segment of the journal.
	journalPages int
	// Progress, if not nil, is called now and then, and at every step. It must not block for long. It is called by
	// one goroutine at a time.
	Progress func(Progress)
	// Unthawed, if not nil, is called once if it is known how the dump ended, and memory is not thawed yet, which it is not while a CPU
	// is stuck. The target is given up by then, and Progress is not called any more. What only the thaw will tell is not in that
	// report, which is the caller's own. Dump returns when memory is thawed. It must not block.
	Unthawed func(*Report, error)
	// OnStep, if not nil, is called before each step, and at the points below, and may wait: for tests that need a dump
	// at a known place.
	OnStep func(context.Context, Step)
}

// Points between the steps that OnStep hears of.
const (
	PointFrozen       Step = "Frozen"       // memory was frozen a moment ago
	PointAcknowledged Step = "Acknowledged" // some pages are durable, again and again
	PointThawed       Step = "Thawed"       // all pages are on the target and memory is thawed
)

// Step of a dump.
type Step = v1alpha1.Step

// The steps, in their order.
const (
	StepTarget  = v1alpha1.StepTarget
	StepModule  = v1alpha1.StepModule
	StepPrepare = v1alpha1.StepPrepare
	StepFreeze  = v1alpha1.StepFreeze
	StepWrite   = v1alpha1.StepWrite
	StepThaw    = v1alpha1.StepThaw
	StepFinish  = v1alpha1.StepFinish
	StepVerify  = v1alpha1.StepVerify
)

const progressEvery = 250 * time.Millisecond

// Progress of a dump.
type Progress struct {
	Step         Step
	PagesTotal   uint64 // 0 before the freeze
	PagesDone    uint64
	BytesWritten uint64
	// ModuleLoaded is true from the moment the module is loaded.
	ModuleLoaded bool
}

// Percent of the pages that are done.
func (p Progress) Percent() int32 {
	if p.PagesTotal == 0 {
		return 0
	}
	return int32(min(100, p.PagesDone*100/p.PagesTotal))
}

// errInterrupted is what the target says from just before the freeze until the writer takes over.
var errInterrupted = errors.New("interrupted before the first page was written")

// errUnmarked is said of a target that could not be marked when its dump had failed at its very end.
var errUnmarked = errors.New("the target could not be marked as failed, and may have what looks like a dump (livedump verify tells)")

// batchPages are fetched by one call: 1 MiB, which keeps the number of calls small and the buffers modest.
const batchPages = 256

// Dump makes one dump. The report is never nil; it has what was measured until the end or the failure. The error, if
// any, is also in the report; Reason gives its reason.
func (e *Engine) Dump(ctx context.Context, o Options) (*Report, error) {
	if o.KeepPages { // what is kept for readers is not given back page by page
		o.Grace = 0
	}
	d := &dump{engine: e, options: o, log: e.Log.With("session", o.UUID.String())}
	d.report = &Report{Session: o.UUID.String(), StartedAt: e.Now().UTC(),
		Compression: o.Codec.String(), DumpLevel: uint32(o.Level)}
	complaints := func() []string { return nil }
	if e.KernelLog != nil {
		complaints = e.KernelLog()
	}
	err := d.run(ctx)
	d.endStep()
	if err != nil && d.leaving(err) && !d.left {
		err = d.leave(err)
	}
	if err != nil && o.Resume && d.session == nil && !errors.Is(err, ErrLeft) && !errors.Is(err, ErrUnreported) {
		// It ended before it came to the session that there may be.
		if _, aerr := e.Abandon(context.WithoutCancel(ctx), o.UUID); aerr != nil {
			err = fmt.Errorf("%w; and thawing memory (the kernel does it after a while): %w", err, aerr)
		}
	}
	// The module says in the kernel's log what an errno cannot.
	if said := complaints(); err != nil && ofModule(err) && len(said) > 0 {
		err = fmt.Errorf("%w; the kernel's log says: %s", err, strings.Join(said, "; "))
	}
	d.conclude(err)
	if d.isThawing() && o.Unthawed != nil && !errors.Is(err, ErrLeft) {
		o.Unthawed(d.report.beforeThaw(), err)
	}
	d.endSession()
	return d.report, err
}

// conclude takes note of how the dump ended.
func (d *dump) conclude(err error) {
	if errors.Is(err, ErrLeft) {
		d.log.Info("left to the next agent", "frozen", !d.frozen.IsZero())
		return
	}
	d.report.TotalNS = d.engine.Now().Sub(d.report.StartedAt).Nanoseconds()
	if err != nil {
		d.report.Error, d.report.Reason = err.Error(), Reason(err)
		d.log.Error("dump failed", "reason", d.report.Reason, "error", err)
		return
	}
	d.log.Info("dump complete", "bytes", d.report.SizeBytes, "sha256", d.report.SHA256, "pages", d.report.PagesDumped,
		"lost", d.report.LostPages, "stop", time.Duration(d.report.FreezeNS))
}

// dump is one dump under way.
type dump struct {
	engine  *Engine
	options Options
	log     *slog.Logger
	report  *Report

	target  target.Target
	opened  target.Target // the same without encryption
	format  format.Format
	session session.Session
	writer  format.Writer
	frozen  time.Time // zero if memory is not frozen
	// thawing: the thaw, begun at thawStart, goes on while the target is completed; it tells its end.
	thawing   chan error
	thawStart time.Time
	ram       []kdump.PFNRange
	touched   bool // block 0 of the target was written
	ending    bool // block 0 may be that of a dump
	left      bool // the target was left to another process

	abortOnce sync.Once
	abortErr  error

	mu        sync.Mutex // for progress: step, writer, steps of the report
	step      Step
	stepStart time.Time
	loaded    bool
	reporting sync.Mutex // one call of Progress at a time

	buffers []*session.Buffer
	journal *kdump.Journal // of the process before this one
	taken   *session.Taken
	out     target.Random
}

// run makes the dump. Afterwards the target is given up, and the session, if there is one, is thawed or being thawed.
func (d *dump) run(ctx context.Context) (err error) {
	if err := d.begin(ctx, StepTarget); err != nil {
		return err
	}
	d.target, err = d.engine.OpenTarget(ctx)
	if err != nil && d.options.Resume && !errors.Is(err, ErrLost) && !errors.Is(err, ErrUnreported) {
		err = fmt.Errorf("going on with the dump of an agent that ended (what its target holds is not known here, livedump verify tells): %w", err)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err := d.target.Close(); err != nil {
			d.log.Warn("giving up the target", "error", err)
		}
	}()
	d.opened, d.report.Device = d.target, d.target.Describe()
	if len(d.options.Recipients) > 0 {
		encrypted, err := target.Encrypt(d.target, d.options.Recipients, d.options.UUID)
		if err != nil {
			return err
		}
		d.target, d.report.Encryption = encrypted, "age"
	}
	if d.format, err = d.options.Format.For(d.target); err != nil {
		return err
	}
	d.report.Format = d.format.String()
	if d.format == format.ELF {
		d.report.Compression = kdump.CodecNone.String()
	}
	if !d.format.Resumable(d.target) {
		d.options.Grace = 0
	}
	d.log.Info("target claimed", "device", d.report.Device)

	stopTicks := d.tick()
	defer stopTicks()

	isDump, err := d.capture(ctx)
	if err == nil {
		d.point(ctx, StepThaw)
	}
	if err != nil && d.leaving(err) {
		return d.leave(err)
	}
	// Thaw first: the node must not wait for the device.
	thawErr := d.thaw()
	if err == nil {
		err = thawErr
	} else if thawErr != nil {
		err = fmt.Errorf("%w; and %w", err, thawErr)
	}
	d.point(ctx, PointThawed)
	if err == nil && !isDump {
		err = d.finish(ctx)
	}
	if err != nil && d.leaving(err) {
		return d.leave(err)
	}
	if err != nil && d.options.Resume && d.writer == nil && !d.touched {
		return err // nothing is known of the target, or what it says is the news
	}
	if err != nil {
		if merr := d.markFailed(err); merr != nil {
			d.log.Error("the target does not tell why its dump failed", "error", merr)
			if d.ending {
				err = fmt.Errorf("%w; %w: %w", err, errUnmarked, merr)
			}
		}
	}
	return err
}

// capture brings all pages to the target. isDump: it is a dump already.
func (d *dump) capture(ctx context.Context) (isDump bool, err error) {
	how := afresh
	if d.options.Resume {
		if how, err = d.takeUp(ctx); err != nil {
			return false, err
		}
	}
	switch how {
	case afresh:
		if err := d.loadModule(ctx); err != nil {
			return false, err
		}
		f, n, err := d.freeze(ctx)
		if err != nil {
			return false, err
		}
		return false, d.write(ctx, d.newWriter(f, n))
	case midway:
		return false, d.write(ctx, d.resumeWriter)
	case sealed:
		return false, d.adoptWriter()
	}
	return how == complete, nil
}

// loadModule makes sure that the right module is loaded.
func (d *dump) loadModule(ctx context.Context) error {
	if err := d.begin(ctx, StepModule); err != nil {
		return err
	}
	outcome, err := d.engine.LoadModule()
	if err != nil {
		return err
	}
	d.report.Module = ModuleReport{How: outcome.How, File: outcome.File, Version: outcome.Info.Version,
		SrcVersion: outcome.Info.SrcVersion}
	d.log.Info("module "+outcome.How, "file", outcome.File, "version", outcome.Info.Version)
	d.mu.Lock()
	d.loaded = true
	d.mu.Unlock()
	return nil
}

// markFailed leaves the reason on a target that was touched.
func (d *dump) markFailed(reason error) error {
	switch {
	case d.writer != nil:
		return d.abort(reason)
	case d.touched:
		return errors.Join(d.mark(markedReason(reason)), d.target.Abort(reason))
	}
	return nil
}

// mark says on a target that can be written at any place that its dump failed. A stream says it by having no end.
func (d *dump) mark(reason error) error {
	var errs []error
	for _, out := range target.RandomsOf(d.target) {
		errs = append(errs, kdump.MarkFailed(out, d.options.UUID, reason))
	}
	return errors.Join(errs...)
}

// abort ends the writer and marks the target as failed. Every call gives the result of the first.
func (d *dump) abort(reason error) error {
	d.abortOnce.Do(func() { d.abortErr = d.writer.Abort(markedReason(reason)) })
	return d.abortErr
}

// begin starts a step, unless the dump is to end.
func (d *dump) begin(ctx context.Context, s Step) error {
	d.point(ctx, s)
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("%s: %w", s, err)
	}
	d.setStep(s)
	return nil
}

func (d *dump) point(ctx context.Context, s Step) {
	if d.options.OnStep != nil {
		d.options.OnStep(ctx, s)
	}
}

func (d *dump) setStep(s Step) {
	d.endStep()
	d.mu.Lock()
	d.step, d.stepStart = s, d.engine.Now()
	d.mu.Unlock()
	d.log.Debug("step", "step", s)
	d.progress()
}

// endStep takes note of how long the last step took.
func (d *dump) endStep() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closeStep()
}

func (d *dump) closeStep() {
	if d.step != "" {
		d.report.Steps = append(d.report.Steps, StepReport{Name: string(d.step),
			NS: d.engine.Now().Sub(d.stepStart).Nanoseconds()})
		d.step = ""
	}
}

// tick reports progress until the function that it returns is called.
func (d *dump) tick() (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(progressEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				d.progress()
			case <-done:
				return
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

func (d *dump) progress() {
	if d.options.Progress == nil {
		return
	}
	d.reporting.Lock()
	defer d.reporting.Unlock()
	d.mu.Lock()
	p := Progress{Step: d.step, ModuleLoaded: d.loaded}
	if d.writer != nil {
		w := d.writer.Progress()
		p.PagesTotal, p.PagesDone, p.BytesWritten = w.Pages, w.PagesDone, w.BytesWritten
		// The writer verifies inside its Finish.
		if d.step == StepFinish && w.Step == string(StepVerify) {
			d.closeStep()
			d.step, d.stepStart = StepVerify, d.engine.Now()
			p.Step = d.step
		}
	}
	d.mu.Unlock()
	if p.Step != "" {
		d.options.Progress(p)
	}
}

// allocate makes the readers' buffers.
func (d *dump) allocate() error {
	readers := d.options.Readers
	if readers <= 0 {
		readers = runtime.GOMAXPROCS(0)
	}
	for range readers {
		b, err := session.NewBuffer(batchPages)
		if err != nil {
			return err
		}
		d.buffers = append(d.buffers, b)
	}
	return nil
}

// freeze goes from no session to frozen memory. Everything that can be allocated before the stop is. When it returns
// an error, the session may be open and must be ended by the caller.
func (d *dump) freeze(ctx context.Context) (f session.Frozen, n session.Notes, err error) {
	if err := d.begin(ctx, StepPrepare); err != nil {
		return f, n, err
	}
	if err := d.allocate(); err != nil {
		return f, n, err
	}
	if d.ram, err = d.engine.RAM(); err != nil {
		return f, n, err
	}
	d.session, err = d.engine.OpenSession(ctx)
	if err != nil {
		d.session = nil
		return f, n, err
	}
	p, err := d.session.Prepare(session.Options{Level: d.options.Level, Mode: d.options.Mode,
		ReserveBytes: d.options.ReserveBytes, Deadline: d.options.Deadline, UUID: d.options.UUID,
		Grace: d.options.Grace, Acks: d.options.Grace > 0,
		Calibrate: d.options.Calibrate, Expected: d.options.Expected,
		Keep: d.options.KeepPages})
	if err != nil {
		return f, n, err
	}
	d.report.prepared(p)
	d.log.Info("session prepared", "ramPages", p.RAMPages, "reservePages", p.ReservePages, "overheadBytes", p.OverheadBytes)
	// What a dump of no page at all would take. The rest is known only when the pages have been compressed.
	least, err := kdump.MinSize(p.MaxPFN, 0, 0)
	if err != nil {
		return f, n, fmt.Errorf("size of the dump: %w", err)
	}
	for _, out := range target.RandomsOf(d.target) {
		if out.Size() < least {
			return f, n, &kdump.TargetTooSmallError{Needed: least, Available: out.Size()}
		}
	}

	if err := d.begin(ctx, StepFreeze); err != nil {
		return f, n, err
	}
	// From here on an earlier dump on the target is gone. Marked before the freeze, because a process that is killed
	// while memory is frozen must not leave a dump that looks like the one it was making.
	d.touched = true
	if err := d.mark(errInterrupted); err != nil {
		return f, n, err
	}
	d.frozen = d.engine.Now()
	if f, err = d.session.Freeze(); err != nil {
		d.frozen = time.Time{}
		return f, n, err
	}
	d.point(ctx, PointFrozen)
	d.report.frozen(f)
	d.log.Info("memory frozen", "stop", f.Stop, "pagesToDump", f.PagesToDump, "cpus", f.CPUs)
	if n, err = d.session.Notes(); err != nil {
		return f, n, err
	}
	return f, n, nil
}

// newWriter begins the dump of a session.
func (d *dump) newWriter(f session.Frozen, n session.Notes) func() (format.Writer, error) {
	return func() (format.Writer, error) {
		d.report.Nodename, d.report.KernelRelease = n.Utsname.Nodename, n.Utsname.Release
		o := d.writerOptions()
		o.State = d.state()
		d.preallocate(f, n)
		return format.NewWriter(d.target, d.format, d.meta(f, n), o)
	}
}

func (d *dump) writerOptions() kdump.Options {
	return kdump.Options{
		Codec: d.options.Codec, Level: d.options.CodecLevel, Workers: len(d.buffers), Bandwidth: d.options.Bandwidth,
		Journal: d.options.Grace > 0, JournalPages: d.options.journalPages, Durable: d.acknowledge,
		OnVerify: func() { d.point(context.Background(), StepVerify) }}
}

// write feeds the pages of the session to a Writer until there are no more, and sees to it that another process could
// complete the dump. Afterwards memory may be thawed.
func (d *dump) write(ctx context.Context, open func() (format.Writer, error)) error {
	if err := d.begin(ctx, StepWrite); err != nil {
		return err
	}
	w, err := open()
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.writer = w
	d.mu.Unlock()

	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	// A reader may be waiting for the writer, and the writer for a device that hangs. Aborting lets the reader go
	// at once, so that memory can be thawed.
	stop := context.AfterFunc(ctx, func() {
		if cause := context.Cause(ctx); d.leaving(cause) {
			d.journaled().Leave()
		} else {
			_ = d.abort(cause) // run asks for the error when memory is thawed
		}
	})
	defer stop()
	var readers sync.WaitGroup
	for _, b := range d.buffers {
		readers.Go(func() {
			if err := d.read(ctx, w, b); err != nil {
				fail(err)
			}
		})
	}
	readers.Wait()
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("%s: %w", StepWrite, err)
	}
	j := d.journaled()
	if j == nil {
		return nil
	}
	if stats, err := d.session.Stats(); err == nil {
		d.report.statistics(stats)
	}
	if err := j.Seal(d.state()); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("%w (%w)", cause, err)
		}
		return err
	}
	return nil
}

// read is the loop of one reader.
func (d *dump) read(ctx context.Context, w format.Writer, b *session.Buffer) error {
	refs := make([]kdump.PageRef, 0, len(b.Pages))
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := d.session.Next(b.Data, b.Pages)
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		refs = refs[:0]
		for _, p := range b.Pages[:n] {
			refs = append(refs, kdump.PageRef{PFN: p.PFN, Class: kdump.Class(p.Class), Flags: kdump.PageFlags(p.Flags)})
		}
		if err := w.Add(refs, b.Data[:n*session.PageSize]); err != nil {
			return err
		}
		if d.options.Grace > 0 && d.journaled() == nil {
			// Nobody can go on with this dump, so no page is worth being kept for it.
			if err := d.session.Acknowledge(b.Pages[:n]); err != nil {
				return err
			}
		}
	}
}

// preallocate takes the room for the dump at once, if there is enough even for one that does not compress. It helps, but
// a dump that compresses may fit all the same, and some file systems cannot do it.
func (d *dump) preallocate(f session.Frozen, n session.Notes) {
	file, ok := d.target.(*target.File)
	if !ok || d.format != format.Kdump {
		return
	}
	room, err := d.format.MaxRoom(d.report.MaxPFN, f.PagesToDump, len(n.Data))
	if err != nil || room > file.Size() {
		return
	}
	if err := file.Preallocate(room); err != nil {
		d.log.Info("the room for the dump was not taken at once", "error", err)
	}
}

func (d *dump) meta(f session.Frozen, n session.Notes) kdump.Meta {
	m := kdump.Meta{
		Session:          d.options.UUID,
		Utsname:          kdump.Utsname(n.Utsname),
		MaxPFN:           d.report.MaxPFN,
		Pages:            f.PagesToDump,
		NrCPUs:           f.CPUs,
		DumpLevel:        int(d.options.Level),
		Notes:            n.Data,
		VMCoreInfoOffset: n.VMCoreInfoOffset,
		VMCoreInfoBytes:  n.VMCoreInfoBytes,
		FrozenAt:         f.At,
		Stop:             f.Stop,
	}
	copy(m.ClassPages[:], f.ClassPages[:])
	for _, r := range d.ram {
		// What lies above the module's last page frame came after the freeze.
		r.End = min(r.End, m.MaxPFN)
		if r.Start < r.End {
			m.RAM = append(m.RAM, r)
		}
	}
	return m
}

// thawPatience is how long the target waits for memory to be thawed. As a rule that takes a fraction of a second; while a
// CPU is stuck the module lets every write through at once, but cannot give back its memory.
const thawPatience = 10 * time.Second

// thaw ends the freeze and reads the statistics. With no session, or one that was not frozen, it does little. If it takes longer than
// anybody should wait for, it goes on by itself, and endSession waits for it.
func (d *dump) thaw() error {
	if d.session == nil {
		return nil
	}
	if d.frozen.IsZero() {
		return d.thawed(d.session.Thaw())
	}
	d.setStep(StepThaw)
	d.thawStart = d.engine.Now()
	// What may not be asked for while the session is being thawed.
	if stats, err := d.session.Stats(); err == nil {
		d.report.statistics(stats)
	}
	done := make(chan error, 1)
	go func() { done <- d.session.Thaw() }()
	patience := d.engine.ThawPatience
	if patience == 0 {
		patience = thawPatience
	}
	select {
	case err := <-done:
		return d.thawed(err)
	case <-time.After(patience):
	}
	d.log.Warn("memory is not thawed yet: is a CPU stuck? completing the target meanwhile")
	d.thawing = done
	d.mu.Lock()
	d.step = "" // how long it takes is not known yet
	d.mu.Unlock()
	return nil
}

// isThawing says whether the thaw goes on still.
func (d *dump) isThawing() bool {
	if d.thawing == nil {
		return false
	}
	select {
	case err := <-d.thawing:
		d.thawedLate(err)
		return false
	default:
		return true
	}
}

// thawedLate takes note of a thaw that ended after the target had been completed.
func (d *dump) thawedLate(err error) {
	d.thawing = nil
	d.report.Steps = append(d.report.Steps, StepReport{Name: string(StepThaw), NS: d.engine.Now().Sub(d.thawStart).Nanoseconds()})
	if err := d.thawed(err); err != nil {
		d.log.Warn("after the dump had ended", "error", err)
	}
}

// endSession waits for the thaw, if need be, and gives everything back.
func (d *dump) endSession() {
	if d.thawing != nil {
		d.log.Warn("waiting for memory to be thawed")
		d.thawedLate(<-d.thawing)
	}
	if d.session != nil {
		if err := d.session.Close(); err != nil {
			d.log.Warn("ending the session", "error", err)
		}
	}
	for _, b := range d.buffers {
		if err := b.Free(); err != nil {
			d.log.Warn("freeing a buffer", "error", err)
		}
	}
}

// thawed takes note of the end of the session.
func (d *dump) thawed(err error) error {
	wasFrozen := !d.frozen.IsZero()
	if wasFrozen {
		d.report.FrozenForNS = d.engine.Now().Sub(d.frozen).Nanoseconds()
		d.frozen = time.Time{}
	}
	stats, serr := d.session.Stats()
	if serr == nil {
		d.report.statistics(stats)
	}
	if err != nil {
		return fmt.Errorf("thawing (the kernel does it when the session is closed): %w", err)
	}
	if wasFrozen {
		d.log.Info("memory thawed", "frozenFor", time.Duration(d.report.FrozenForNS))
	}
	if serr != nil && wasFrozen {
		return serr
	}
	return nil
}

// finish completes the dump on the target and verifies it.
func (d *dump) finish(ctx context.Context) error {
	// All pages came, but if the session failed meanwhile, what the module says counts.
	if err := d.report.failure.Err(); err != nil {
		return err
	}
	if err := d.begin(ctx, StepFinish); err != nil {
		return err
	}
	if j := d.journaled(); j != nil {
		if err := j.SaveState(d.state()); err != nil {
			return err
		}
	}
	d.ending = len(target.RandomsOf(d.target)) > 0
	s, err := d.writer.Finish(ctx)
	if err != nil {
		return err
	}
	d.report.summary(s)
	for i, p := range s.Parts {
		d.report.Parts = append(d.report.Parts, PartReport{Device: target.RandomsOf(d.target)[i].Describe(), SizeBytes: p.Bytes,
			SHA256: hex.EncodeToString(p.SHA256[:])})
	}
	d.progress()
	return nil
}
