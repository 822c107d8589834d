// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"livedump.io/internal/session"
	"livedump.io/test/guest"
	"livedump.io/test/guestsession"
	"livedump.io/test/load/provide"
	"livedump.io/test/pagetables"
	"livedump.io/test/trial"
)

// Paths in the guest.
const (
	guestModule   = "/opt/livedump.ko"
	guestPGTables = "/opt/livedump_pgtables.ko"
)

// What may take long on a busy machine; none of it does usually.
const (
	caseTimeout = 5 * time.Minute
	pollPause   = 100 * time.Millisecond
	// Under load, a kernel with KASAN takes a minute to prepare and freeze.
	slownessOfKASAN = 12
)

// steadyLoad goes on beside most cases: frozen memory that nobody writes is easy to restore.
// Nothing of it loads code, which changes page tables.
var steadyLoad = []string{"-pause", "50ms", "alloc,slab,fork"}

// An end of a session that must leave nothing behind.
type endCase struct {
	name string
	run  func(ctx context.Context, b *bench) error
}

var cases = []endCase{
	{name: "all pages, thaw, close", run: func(ctx context.Context, b *bench) error {
		return b.session(ctx, "prepare", "freeze", "drain", "thaw", "close")
	}},
	{name: "thaw early", run: func(ctx context.Context, b *bench) error {
		return b.session(ctx, "prepare", "freeze", "next 64", "thaw", "close")
	}},
	{name: "close after PREPARE", run: func(ctx context.Context, b *bench) error {
		return b.session(ctx, "prepare", "close")
	}},
	{name: "close while frozen", run: func(ctx context.Context, b *bench) error {
		return b.session(ctx, "prepare", "freeze", "next 64", "close")
	}},
	{name: "killed after open", run: killedAfter("open")},
	{name: "killed after PREPARE", run: killedAfter("prepare")},
	{name: "killed after FREEZE", run: killedAfter("prepare", "freeze")},
	{name: "killed in the middle of NEXT", run: killedInNext},
	{name: "killed before THAW", run: killedAfter("prepare", "freeze", "drain")},
	{name: "strict failure", run: strictFailure},
	{name: "deadline", run: deadline},
	{name: "a killed owner's deadline", run: killedOwnersDeadline},
	{name: "PREPARE with too small a limit", run: func(ctx context.Context, b *bench) error {
		return b.refused(ctx, "prepare reserve=4096", "no-memory")
	}},
}

// idleCases run without the steady load, which would not survive them.
var idleCases = []endCase{
	{name: "PREPARE under memory pressure", run: memoryPressure},
}

// bench is the guest.
type bench struct {
	*guest.Guest
	// slowness multiplies what is waited for.
	slowness time.Duration
}

// state is what must be the same before and after.
type state struct {
	tables    guest.PageTables
	directMap string
}

func (b *bench) state(ctx context.Context) (state, error) {
	tables, err := b.SettledPageTables(ctx)
	if err != nil {
		return state{}, err
	}
	info, err := b.meminfo(ctx)
	return state{tables, info.directMap()}, err
}

// compare counts the pages of the regions that change by themselves that were compared too.
func (s state) compare(now state) (shared int, err error) {
	err = s.tables.Compare(now.tables, guest.StableRegions...)
	if s.directMap != now.directMap {
		err = errors.Join(err, fmt.Errorf("/proc/meminfo: was %s; is %s", s.directMap, now.directMap))
	}
	for _, region := range []guest.Region{guest.RegionVmalloc, guest.RegionModules} {
		pages, sharedErr := pagetables.CompareShared(s.tables, now.tables, region)
		if sharedErr == nil && pages == 0 {
			sharedErr = fmt.Errorf("region %s has nothing in common with what it was: nothing was compared", region)
		}
		shared += pages
		err = errors.Join(err, sharedErr)
	}
	return shared, err
}

// try runs a case with the module loaded for it alone.
func (b *bench) try(ctx context.Context, c endCase, r *caseResult) error {
	timeout := caseTimeout * b.slowness
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done after %v", timeout))
	defer cancel()
	begin := time.Now()
	if _, err := b.Run(ctx, "insmod", guestModule); err != nil {
		return err
	}
	before, err := b.state(ctx)
	if err != nil {
		return err
	}
	runErr := c.run(ctx, b)
	// Also after a failure: what is left behind is worth knowing.
	after, err := b.state(ctx)
	if err != nil {
		return errors.Join(runErr, err)
	}
	shared, err := before.compare(after)
	r.SharedPages, r.TablesRestored = shared, err == nil
	err = errors.Join(runErr, err)
	if _, unloadErr := b.Run(ctx, "rmmod", "livedump"); unloadErr != nil {
		return errors.Join(err, unloadErr)
	}
	r.Unloaded = true
	if err == nil {
		trial.Step("%s: restored and unloaded, %d pages of vmalloc and modules compared too (%.1f s)", c.name, shared, time.Since(begin).Seconds())
	}
	return err
}

// session has a driver take steps that must all succeed.
func (b *bench) session(ctx context.Context, steps ...string) error {
	d, err := guestsession.Start(ctx, b.Guest)
	if err != nil {
		return err
	}
	if err := d.Do(ctx, steps...); err != nil {
		return errors.Join(err, d.Kill(ctx))
	}
	return d.End(ctx)
}

func killedAfter(steps ...string) func(context.Context, *bench) error {
	return func(ctx context.Context, b *bench) error {
		d, err := guestsession.Start(ctx, b.Guest)
		if err != nil {
			return err
		}
		return errors.Join(d.Do(ctx, steps...), d.Kill(ctx))
	}
}

func killedInNext(ctx context.Context, b *bench) error {
	d, err := guestsession.Start(ctx, b.Guest)
	if err != nil {
		return err
	}
	if err := d.Do(ctx, "prepare", "freeze"); err != nil {
		return errors.Join(err, d.Kill(ctx))
	}
	if err := d.Tell("drain"); err != nil {
		return err
	}
	a, err := d.Answer(ctx)
	if err == nil && a.Step != "draining" {
		err = fmt.Errorf("the driver was to fetch pages, but it said %+v", a)
	}
	if err := errors.Join(err, d.Kill(ctx)); err != nil {
		return err
	}
	if a, err := d.Answer(ctx); err == nil && a.Step == "drain" && a.Error == "" {
		return errors.New("all pages had been fetched when the driver was killed")
	}
	return nil
}

// refused has a driver take a step that must fail in a certain way.
func (b *bench) refused(ctx context.Context, step, kind string) error {
	d, err := guestsession.Start(ctx, b.Guest)
	if err != nil {
		return err
	}
	a, err := d.Ask(ctx, step)
	if err == nil && a.Kind != kind {
		err = fmt.Errorf("%s was to be refused with %q, but: %+v", step, kind, a)
	}
	return errors.Join(err, d.End(ctx))
}

// untilStats asks for statistics until they are as wanted.
func untilStats(ctx context.Context, d *guestsession.Driver, wanted func(guestsession.Answer) (bool, error)) error {
	for {
		a, err := d.Ask(ctx, "stats")
		if err == nil && a.Error != "" {
			err = errors.New(a.Error)
		}
		if err != nil {
			return err
		}
		ok, err := wanted(a)
		if err != nil {
			return err
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; the session's state is %v, its failure %v", context.Cause(ctx),
				session.State(a.Stats.State), session.Failure(a.Stats.Failure))
		case <-time.After(pollPause):
		}
	}
}

// strictFailure writes more pages than the smallest reserve holds. With nothing left out of the dump, every
// page that changes hands takes a copy.
func strictFailure(ctx context.Context, b *bench) error {
	end, err := provide.Start(ctx, b.Guest, "alloc")
	if err != nil {
		return err
	}
	d, err := guestsession.Start(ctx, b.Guest)
	if err != nil {
		return err
	}
	err = func() error {
		if err := d.Do(ctx, fmt.Sprintf("prepare level=0 mode=strict reserve=%d", 10<<20), "freeze"); err != nil {
			return err
		}
		if err := untilStats(ctx, d, func(a guestsession.Answer) (bool, error) {
			return session.Failure(a.Stats.Failure) == session.FailureReserve, nil
		}); err != nil {
			return err
		}
		a, err := d.Ask(ctx, "next 1")
		if err == nil && a.Kind != "reserve" {
			err = fmt.Errorf("NEXT was to fail for want of reserve, but: %+v", a)
		}
		return errors.Join(err, d.Do(ctx, "close"))
	}()
	return errors.Join(err, d.End(ctx), end(ctx))
}

func deadline(ctx context.Context, b *bench) error {
	d, err := guestsession.Start(ctx, b.Guest)
	if err != nil {
		return err
	}
	err = func() error {
		if err := d.Do(ctx, "prepare deadline=3s", "freeze"); err != nil {
			return err
		}
		if err := untilStats(ctx, d, func(a guestsession.Answer) (bool, error) {
			return session.State(a.Stats.State) == session.StateThawed, nil
		}); err != nil {
			return err
		}
		a, err := d.Ask(ctx, "next 1")
		if err == nil && a.Kind != "deadline" {
			err = fmt.Errorf("NEXT was to fail for the deadline, but: %+v", a)
		}
		return errors.Join(err, d.Do(ctx, "close"))
	}()
	return errors.Join(err, d.End(ctx))
}

// killedOwnersDeadline: the deadline of a session ends with it. A session that
// follows one whose owner was killed must live on when the former one's time is up.
func killedOwnersDeadline(ctx context.Context, b *bench) error {
	former := 12 * time.Second * b.slowness
	first, err := guestsession.Start(ctx, b.Guest)
	if err != nil {
		return err
	}
	err = first.Do(ctx, fmt.Sprintf("prepare deadline=%v", former), "freeze")
	// The deadline began before the answer came.
	up := time.Now().Add(former)
	if err := errors.Join(err, first.Kill(ctx)); err != nil {
		return err
	}
	second, err := guestsession.Start(ctx, b.Guest)
	if err != nil {
		return err
	}
	err = func() error {
		if err := second.Do(ctx, "prepare deadline=10m", "freeze"); err != nil {
			return err
		}
		if !time.Now().Before(up) {
			return fmt.Errorf("the second session froze after the first one's deadline of %v: nothing was tested", former)
		}
		// A margin: the kernel acts on a deadline a little late.
		const margin = 3 * time.Second
		if err := untilStats(ctx, second, func(a guestsession.Answer) (bool, error) {
			if session.State(a.Stats.State) != session.StateFrozen || session.Failure(a.Stats.Failure) != session.FailureNone {
				return false, fmt.Errorf("the second session is %v (failure %v) %v after the first one's deadline",
					session.State(a.Stats.State), session.Failure(a.Stats.Failure), time.Since(up))
			}
			return time.Now().After(up.Add(margin)), nil
		}); err != nil {
			return err
		}
		return second.Do(ctx, "drain", "thaw", "close")
	}()
	return errors.Join(err, second.End(ctx))
}

// memoryPressure leaves less and less memory until PREPARE is refused for it.
func memoryPressure(ctx context.Context, b *bench) error {
	var said []string
	for _, leave := range []int{24, 16, 12, 8} {
		d, err := guestsession.Start(ctx, b.Guest)
		if err != nil {
			return err
		}
		// A process of its own holds the memory, so that closing has no part in giving it back.
		a, err := d.Ask(ctx, fmt.Sprintf("fill %d", leave))
		if err == nil && a.Error != "" {
			err = errors.New(a.Error)
		}
		if err == nil {
			a, err = d.Ask(ctx, "prepare")
		}
		if err := errors.Join(err, d.Kill(ctx)); err != nil {
			return err
		}
		if a.Kind == "no-memory" {
			return nil
		}
		said = append(said, fmt.Sprintf("%d MiB: %q", leave, a.Error))
	}
	return fmt.Errorf("PREPARE was not refused for want of memory: %s", strings.Join(said, ", "))
}
