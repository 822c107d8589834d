// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/agefile"
	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
	"livedump.io/internal/module"
	"livedump.io/internal/session"
	"livedump.io/internal/target"
)

var (
	// ErrLost: another process began the dump, and it can't be gone on with. ErrNoDump is that of a target that was looked at, ErrUnknown of
	// one that cannot be.
	ErrLost    = errors.New("the agent that made this dump ended, and another cannot go on with it")
	ErrNoDump  = fmt.Errorf("%w; the target carries no valid dump", ErrLost)
	ErrUnknown = fmt.Errorf("%w; what the target holds is not known here (livedump verify tells)", ErrLost)
	// ErrUnreported: the dump is complete, but the agent ended before it could say so, and how it was made is not known.
	ErrUnreported = errors.New("the target carries a dump, but the agent that made it ended before it could report")
	// ErrLeft: this process left the dump to the next one. Nothing is to be reported.
	ErrLeft = errors.New("left to the next agent")
)

// progress of the process before this one, as far as it can be told from the session and from the target.
type resumption int

const (
	afresh   resumption = iota // nothing was captured
	midway                     // memory is frozen; the journal, if there is one, says which pages the target has
	sealed                     // the target has all pages
	complete                   // the target is a dump, and only the report is missing
)

// again is how long is waited between two attempts to take over a session whose owner is ending.
const again = 200 * time.Millisecond

// takeUp finds out how far the process before this one has come, and makes the session its own if there is one.
func (d *dump) takeUp(ctx context.Context) (resumption, error) {
	if err := d.begin(ctx, StepModule); err != nil {
		return 0, err
	}
	var ok bool
	d.out, ok = d.target.(target.Random)
	journaled := ok && d.options.Grace > 0
	// A dump that is complete needs no session. Thawing was begun before its target was completed, and as long as a CPU is stuck
	// the module answers nobody.
	switch {
	case !d.isWhole():
	case journaled:
		d.report.Takeovers++
		return complete, d.reportAgain(ctx)
	default:
		return 0, ErrUnreported
	}
	taken, err := d.takeOver(ctx)
	if err != nil {
		return 0, err
	}
	if !journaled {
		return 0, d.unjournaled()
	}
	rec, found, err := kdump.ReadRecord(d.out)
	if err != nil {
		return 0, fmt.Errorf("%w: its target: %w", ErrUnknown, err)
	}
	if !found || rec.Session != d.options.UUID {
		if taken != nil {
			return 0, fmt.Errorf("%w: memory is frozen for it, but the target knows nothing of it", ErrNoDump)
		}
		return afresh, nil
	}
	d.touched = true
	d.report.Takeovers++
	switch rec.State {
	case kdump.StateComplete:
		d.touched = false // whatever is wrong, it is not to be overwritten
		return complete, d.reportAgain(ctx)
	case kdump.StateFailed:
		if rec.Reason != errInterrupted.Error() {
			d.touched = false // it says more than could be said now
			return 0, &failedBefore{rec.Reason}
		}
		if taken == nil {
			return 0, fmt.Errorf("%w: it ended when memory was to be frozen", ErrNoDump)
		}
	case kdump.StateInProgress:
		d.journal, err = kdump.ReadJournal(d.out, d.options.UUID)
		if err != nil && (taken == nil || !errors.Is(err, kdump.ErrNoJournal)) {
			return 0, fmt.Errorf("%w: %w", ErrNoDump, err)
		}
	}
	if d.journal != nil {
		if err := d.recall(d.journal.State); err != nil {
			return 0, err
		}
		d.log.Info("taken over", "frozen", taken != nil, "pages", d.journal.Pages, "of", d.journal.Meta.Pages)
		if d.journal.All {
			return sealed, nil
		}
	}
	if taken == nil {
		return 0, fmt.Errorf("%w: memory was thawed before all pages were on the target (%d of %d were)", ErrNoDump, d.journal.Pages,
			d.journal.Meta.Pages)
	}
	return midway, d.goOn(taken)
}

// takeOver makes the session its own; nil if there is none any more.
func (d *dump) takeOver(ctx context.Context) (*session.Taken, error) {
	if d.engine.OpenLoaded == nil {
		return nil, nil
	}
	s, err := d.engine.OpenLoaded(ctx)
	if errors.Is(err, session.ErrNoDevice) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for {
		taken, err := s.Takeover(d.options.UUID)
		if err == nil {
			d.session = s
			d.report.Module.How = module.OutcomeAdopted
			d.frozen = d.engine.Now().Add(-taken.FrozenFor)
			d.mu.Lock()
			d.loaded = true
			d.mu.Unlock()
			return &taken, nil
		}
		if errors.Is(err, session.ErrOwnerAlive) {
			// The former agent is on its way out.
			select {
			case <-ctx.Done():
				_ = s.Close() // it owns nothing
				return nil, fmt.Errorf("taking over the session: %w (%w)", context.Cause(ctx), err)
			case <-time.After(again):
			}
			continue
		}
		_ = s.Close()
		if errors.Is(err, session.ErrNoSession) || errors.Is(err, session.ErrOtherSession) {
			return nil, nil
		}
		return nil, fmt.Errorf("%w: taking over the session: %w", ErrLost, err)
	}
}

// unjournaled is why a dump that has no journal cannot be gone on with. What the process before this one has left of it is
// marked: of several parts some may have their header already.
func (d *dump) unjournaled() error {
	if d.isWhole() { // by now
		return ErrUnreported
	}
	const why = "it was made without a journal, or the target cannot hold one"
	var begun []target.Random
	var said, unread error
	all := target.RandomsOf(d.opened)
	for _, out := range all {
		rec, found, err := leftOn(out, d.options.UUID)
		if err != nil {
			unread = errors.Join(unread, fmt.Errorf("reading what is left of it: %s: %w", out.Describe(), err))
			continue
		}
		if !found {
			continue
		}
		begun = append(begun, out)
		if rec.State == kdump.StateFailed && rec.Reason != errInterrupted.Error() {
			said = &failedBefore{rec.Reason} // it says more than could be said now
		}
	}
	var err error
	switch {
	case said != nil:
		err = said
	case unread != nil:
		err = fmt.Errorf("%w: %s; %w", ErrUnknown, why, unread)
	case len(all) == 0: // what was sent away
		err = fmt.Errorf("%w: %s", ErrUnknown, why)
	default:
		err = fmt.Errorf("%w: %s", ErrNoDump, why)
	}
	for _, out := range begun {
		if merr := kdump.MarkFailed(out, d.options.UUID, markedReason(err)); merr != nil {
			d.log.Error("what is left of the dump is not marked", "device", out.Describe(), "error", merr)
		}
	}
	return err
}

// isWhole says whether the target, or each of its parts, is a complete dump of this session.
func (d *dump) isWhole() bool {
	all := target.RandomsOf(d.opened)
	for _, out := range all {
		if rec, found, err := leftOn(out, d.options.UUID); err != nil || !found || rec.State != kdump.StateComplete {
			return false
		}
	}
	return len(all) > 0
}

// leftOn is what a target says of a dump that a session has begun there, encrypted or not; found is false if that is nothing.
func leftOn(out io.ReaderAt, id kdump.Session) (rec kdump.Record, found bool, err error) {
	rec, found, err = kdump.ReadRecord(out)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return rec, false, nil // a file that is new ends too early
	}
	if err != nil {
		return rec, false, err
	}
	if found {
		return rec, rec.Session == id, nil
	}
	head, free, err := kdump.NewBuffer(kdump.PageSize)
	if err != nil {
		return rec, false, err
	}
	defer free()
	if n, err := out.ReadAt(head, 0); n < len(head) {
		return rec, false, err
	}
	owner, found := agefile.OwnerOf(head)
	return kdump.Record{State: kdump.StateComplete}, found && owner.Session == id, nil
}

// goOn gets ready for the pages of a session that was taken over.
func (d *dump) goOn(taken *session.Taken) error {
	stats, err := d.session.Stats()
	if err != nil {
		return err
	}
	missing := !taken.Options.Acks && taken.PagesReported > 0
	if d.journal == nil && (missing || stats.PagesAcked > 0) {
		return fmt.Errorf("%w: %d pages were captured, and the target has no journal of them", ErrNoDump, max(stats.PagesAcked, taken.PagesReported))
	}
	if d.journal != nil && (missing || d.journal.Pages < stats.PagesAcked) {
		return fmt.Errorf("%w: the target's journal has %d pages, and %d were captured", ErrNoDump, d.journal.Pages, stats.PagesAcked)
	}
	d.options.Grace = taken.Options.Grace
	d.report.prepared(taken.Prepared)
	d.report.frozen(taken.Frozen)
	if err := d.allocate(); err != nil {
		return err
	}
	if d.ram, err = d.engine.RAM(); err != nil {
		return err
	}
	d.taken = taken
	return nil
}

// resumeWriter goes on from the journal, or begins if there is none.
func (d *dump) resumeWriter() (format.Writer, error) {
	if d.journal != nil {
		return format.Resume(d.out, d.journal, d.writerOptions())
	}
	n, err := d.session.Notes()
	if err != nil {
		return nil, err
	}
	return d.newWriter(d.taken.Frozen, n)()
}

// adoptWriter has all pages.
func (d *dump) adoptWriter() error {
	w, err := format.Resume(d.out, d.journal, d.writerOptions())
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.writer = w
	d.mu.Unlock()
	return nil
}

// reportAgain says of a dump that is complete what the process that completed it could not say any more.
func (d *dump) reportAgain(ctx context.Context) error {
	j, err := kdump.ReadCompleteJournal(d.out, d.options.UUID)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreported, err)
	}
	if err := d.recall(j.State); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreported, err)
	}
	if err := d.begin(ctx, StepVerify); err != nil {
		return err
	}
	s, found, err := kdump.Recheck(ctx, d.out, d.options.UUID)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("%w: it has changed since", ErrUnreported)
	}
	d.report.summary(s)
	return nil
}

// acknowledge tells the module that pages need not come again.
func (d *dump) acknowledge(pfns []uint64) error {
	pages := make([]session.Page, 0, min(len(pfns), session.MaxBatch))
	for len(pfns) > 0 {
		pages = pages[:0]
		for _, pfn := range pfns[:min(len(pfns), session.MaxBatch)] {
			pages = append(pages, session.Page{PFN: pfn})
		}
		if err := d.session.Acknowledge(pages); err != nil {
			return err
		}
		pfns = pfns[len(pages):]
	}
	d.point(context.Background(), PointAcknowledged)
	return nil
}

// leaving says whether an error means that the next process is to go on.
func (d *dump) leaving(err error) bool {
	return errors.Is(err, ErrShutdown) && d.options.Grace > 0 && (d.writer == nil || d.journaled() != nil)
}

// journaled is the writer, if another process could go on with what it writes; else nil.
func (d *dump) journaled() format.Journaled {
	if w, ok := d.writer.(format.Journaled); ok && w.Journaled() {
		return w
	}
	return nil
}

// leave ends this process's part. Memory stays frozen, if it is, and the target as it is.
func (d *dump) leave(cause error) error {
	d.left = true
	if j := d.journaled(); j != nil {
		j.Leave()
	}
	return fmt.Errorf("%w: %w", ErrLeft, cause)
}

// saved is what the journal keeps of a dump besides its pages.
type saved struct {
	Report  *Report                    `json:"report"`
	Classes [session.NumClasses]uint64 `json:"classes"`
	Failure session.Failure            `json:"failure,omitempty"`
}

func (d *dump) state() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, err := json.Marshal(saved{d.report, d.report.classes, d.report.failure})
	if err != nil {
		// There is nothing in it that could not be encoded.
		d.log.Error("the journal will not tell how the dump was made", "error", err)
	}
	return b
}

// recall takes what the process before this one has measured for its own.
func (d *dump) recall(state []byte) error {
	s := saved{}
	if err := json.Unmarshal(state, &s); err != nil || s.Report == nil {
		return fmt.Errorf("%w: its report cannot be read (%w)", ErrLost, errors.Join(err, kdump.ErrDamaged))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	device, takeovers := d.report.Device, s.Report.Takeovers+1
	steps := append(s.Report.Steps, d.report.Steps...)
	*d.report = *s.Report
	d.report.classes, d.report.failure = s.Classes, s.Failure
	d.report.Device, d.report.Takeovers, d.report.Steps = device, takeovers, steps
	return nil
}

// failedBefore is the failure of a process that could not report it any more.
type failedBefore struct{ said string }

func (e *failedBefore) Error() string { return e.said }

// reason is what the text begins with; see markedReason.
func (e *failedBefore) reason() string {
	before, _, _ := strings.Cut(e.said, ": ")
	for _, r := range v1alpha1.FailureReasons {
		if r == before {
			return r
		}
	}
	return v1alpha1.ReasonAgentLost
}

// markedReason is what the target is to say of a failure: the reason first, for an agent that comes after this one.
func markedReason(err error) error { return fmt.Errorf("%s: %w", Reason(err), err) }

// Abandon ends a session that nobody goes on with: memory is thawed. found is false if there is none of that UUID without
// an owner.
func (e *Engine) Abandon(ctx context.Context, uuid [16]byte) (found bool, err error) {
	if e.OpenLoaded == nil {
		return false, nil
	}
	s, err := e.OpenLoaded(ctx)
	if errors.Is(err, session.ErrNoDevice) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer s.Close()
	_, err = s.Takeover(uuid)
	if errors.Is(err, session.ErrNoSession) || errors.Is(err, session.ErrOtherSession) || errors.Is(err, session.ErrOwnerAlive) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, s.Thaw()
}
