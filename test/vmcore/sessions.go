// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"livedump.io/node-agent/engine"
	"livedump.io/test/guest"
	"livedump.io/test/judge"
	"livedump.io/test/trial"
	"livedump.io/test/workload/provide"
)

const (
	beforeStream = "before"
	afterStream  = "after"
	// What is written while some tools run for minutes must all fit.
	reserveBytes = 448 << 20
	// A reserve that the workload uses up. The module takes no smaller one.
	smallReserve = 2048 * 4096
)

// sessions runs everything that needs the guest.
func (b *bench) sessions(ctx context.Context) error {
	before, err := b.state(ctx)
	if err != nil {
		return err
	}
	if err := b.refused(ctx, "without a session", "No data available", "cat", node); err != nil {
		return err
	}
	trial.Step("start the workload")
	if b.workload, err = provide.Start(ctx, b.guest, provide.Unhurried); err != nil {
		return err
	}
	if err := b.tools(ctx); err != nil {
		return err
	}
	if err := b.checkRestored(ctx, before); err != nil {
		return err
	}
	b.report.TablesRestored = true
	// Nothing is written to the results any more: what is there gets to the disk.
	if _, err := b.guest.Run(ctx, "mount", "-o", "remount,ro", guestResults); err != nil {
		return err
	}
	if err := b.compareAll(ctx); err != nil {
		return err
	}
	if !b.o.short {
		if err := b.held(ctx); err != nil {
			return fmt.Errorf("session without a dump: %w", err)
		}
		if err := b.losing(ctx); err != nil {
			return fmt.Errorf("session with too small a reserve: %w", err)
		}
		if err := b.pastDeadline(ctx); err != nil {
			return fmt.Errorf("session past its deadline: %w", err)
		}
		if err := b.checkRestored(ctx, before); err != nil {
			return err
		}
	}
	if b.report.Workload, err = b.workload.Stop(ctx); err != nil {
		return err
	}
	if _, err := b.guest.Run(ctx, "rmmod", "livedump"); err != nil {
		return err
	}
	return b.guest.CheckConsole()
}

// refused checks that a command fails with an error of the system.
func (b *bench) refused(ctx context.Context, when, message string, argv ...string) error {
	_, err := b.guest.Run(ctx, argv...)
	var exit *guest.ExitError
	if !errors.As(err, &exit) || !strings.Contains(exit.Stderr, message) {
		return fmt.Errorf("%s %s: want %q, got: %w", strings.Join(argv, " "), when, message, err)
	}
	return nil
}

// tools has all tools read the node, streams the dump, and has some read the node again.
//
// All of it is one script in the guest: what the host sends to a guest is written by a
// device into buffers of the kernel, past all page tables, and would differ in the dumps.
func (b *bench) tools(ctx context.Context) error {
	var err error
	b.expect = judge.Expectation{Churn: churnAllowed, ParkedTID: b.workload.ParkedTID, ParkedFrames: judge.ParkedFrames, Modules: []string{"livedump"}}
	before := b.privileges()
	first := b.readers[0].Codename
	for _, r := range b.readers {
		before = append(before, b.makedumpfile(r.Codename, beforeStream))
	}
	before = append(before, b.cp(first, beforeStream)...)
	before = append(before, b.probeTask(first, beforeStream))
	for _, r := range b.readers {
		if r.Drgn {
			before = append(before, b.drgn(r.Codename, beforeStream))
		}
		if r.Crash && !b.o.short {
			t, err := b.crash(ctx, r.Codename, beforeStream)
			if err != nil {
				return err
			}
			before = append(before, t)
		}
	}
	var after []task
	if !b.o.short {
		after = append(after, b.makedumpfile(first, afterStream))
		after = append(after, b.cp(first, afterStream)...)
		after = append(after, b.probeTask(first, afterStream))
	}
	if b.expect.Before, err = judge.Observe(ctx, b.guest); err != nil {
		return err
	}
	// The uptime is set when memory is frozen.
	if b.expect.After, err = judge.Observe(ctx, b.guest); err != nil {
		return err
	}
	if err := b.runFrozen(ctx, before, after); err != nil {
		return err
	}
	if b.expect.After, err = b.observedAt(ctx, b.expect.After.UptimeSeconds); err != nil {
		return err
	}
	for _, t := range append(before, after...) {
		if err := b.check(ctx, t); err != nil {
			return err
		}
	}
	r, err := b.readReport(ctx)
	if err != nil {
		return err
	}
	b.report.FrozenForNS, b.report.PagesDumped, b.report.UncoveredPages = r.FrozenForNS, r.PagesDumped, r.UncoveredPages
	b.report.Faults, b.report.Copies = r.Faults, r.Copies
	b.report.ReservePages, b.report.ReserveLow = r.ReservePages, r.ReserveLow
	trial.Step("frozen for %v: %d faults, %d copies, %d of %d pages of the reserve never used", time.Duration(r.FrozenForNS).Round(time.Second),
		r.Faults, r.Copies, r.ReserveLow, r.ReservePages)
	return b.copyTarget(r)
}

// observedAt is what the guest says now, as if it had said so at the given time: tasks that live
// throughout must be in the dump.
func (b *bench) observedAt(ctx context.Context, uptime float64) (*judge.Observation, error) {
	o, err := judge.Observe(ctx, b.guest)
	if err == nil {
		o.UptimeSeconds = uptime
	}
	return o, err
}

// copyTarget takes the dump off the target, for the next session overwrites it.
func (b *bench) copyTarget(r *engine.Report) error {
	in, err := os.Open(b.images["target"])
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(b.dumpFile())
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.CopyN(out, in, int64(r.SizeBytes)); err != nil {
		return fmt.Errorf("copy the dump: %w", err)
	}
	return out.Close()
}

func (b *bench) dumpFile() string { return filepath.Join(b.o.Out, "dump.kdump") }

// privileges checks that the node's mode is not all that keeps others out.
func (b *bench) privileges() []task {
	asNobody := chrooted(b.readers[0].Codename, "setpriv", "--reuid=65534", "--clear-groups", "cat", node)
	return []task{
		{name: "nobody", argv: asNobody, fails: "Permission denied"},
		{name: "chmod-0444", argv: []string{"chmod", "0444", node}},
		{name: "nobody-by-mode", argv: asNobody, fails: "Operation not permitted"},
		{name: "chmod-0400", argv: []string{"chmod", "0400", node}},
	}
}

func (b *bench) readReport(ctx context.Context) (*engine.Report, error) {
	raw, err := b.guest.ReadFile(ctx, guestReport)
	if err != nil {
		return nil, err
	}
	r := &engine.Report{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("the agent's report: %w", err)
	}
	return r, nil
}

// probe is what probe.py prints.
type probe struct {
	Pages         uint64   `json:"pages"`
	Holes         uint64   `json:"holes"`
	Errors        uint64   `json:"errors"`
	HolesWithData uint64   `json:"holesWithData"`
	OtherErrors   []string `json:"otherErrors"`
}

func (b *bench) probe(ctx context.Context) (probe, error) {
	out, err := b.inChroot(ctx, b.readers[0].Codename, "python3", guestTools+"/probe.py", node)
	if err != nil {
		return probe{}, err
	}
	return parseProbe(out)
}

func parseProbe(out string) (probe, error) {
	var p probe
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		return p, fmt.Errorf("probe.py: %w: %s", err, out)
	}
	if len(p.OtherErrors) > 0 || p.HolesWithData > 0 || p.Pages == 0 || p.Holes == 0 {
		return p, fmt.Errorf("reading the node from hole to hole: %+v", p)
	}
	return p, nil
}

// held has "livedump-agent freeze" freeze memory until it is interrupted.
func (b *bench) held(ctx context.Context) error {
	trial.Step("freeze without a dump")
	said := &guest.Output{}
	c := b.guest.Command(guestAgent, "freeze", "--module", guestModule, "--keep-module", "--for", limit.String())
	c.Stdout, c.Stderr = said, said
	if err := c.Start(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sessionWait)
	defer cancel()
	if _, err := said.Wait(ctx, c, regexp.MustCompile("(?m)^frozen in ")); err != nil {
		return err
	}
	p, err := b.probe(ctx)
	if err != nil {
		return err
	}
	if p.Errors > 0 {
		return fmt.Errorf("%d pages could not be read", p.Errors)
	}
	if err := c.Signal(unix.SIGINT); err != nil {
		return err
	}
	if err := c.Wait(ctx); err != nil {
		return fmt.Errorf("%w; its last words: %s", err, said.LastLine())
	}
	if !strings.HasPrefix(said.LastLine(), "thawed: ") {
		return fmt.Errorf("its last words: %s", said.LastLine())
	}
	return b.refused(ctx, "after the thaw", "No data available", "cat", node)
}

// losing has a session lose pages: these must be errors and never read as something.
func (b *bench) losing(ctx context.Context) error {
	trial.Step("freeze with a reserve that is too small")
	f, err := b.freeze(ctx, "Writing", "--reserve", strconv.Itoa(smallReserve), "--consistency", "BestEffort")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sessionWait)
	defer cancel()
	var p probe
	for p.Errors == 0 {
		// The workload uses up the reserve, sooner or later.
		if p, err = b.probe(ctx); err != nil {
			return err
		}
	}
	if err := f.goOn(); err != nil {
		return err
	}
	if err := f.wait(ctx); err != nil {
		return err
	}
	r, err := b.readReport(ctx)
	if err != nil {
		return err
	}
	b.report.Lost = &LostReport{PagesRead: p.Pages, PagesLeftOut: p.Holes, ReadErrors: p.Errors, LostPages: r.LostPages}
	trial.Step("%d pages read, %d left out, %d lost", p.Pages, p.Holes, p.Errors)
	if r.LostPages < p.Errors {
		return fmt.Errorf("%d pages could not be read, but only %d were lost", p.Errors, r.LostPages)
	}
	if p.Pages+p.Errors != r.PagesToDump {
		return fmt.Errorf("%d pages and %d errors, but %d pages are to be dumped", p.Pages, p.Errors, r.PagesToDump)
	}
	return nil
}

// pastDeadline lets a session's deadline pass while its owner and a reader go on.
func (b *bench) pastDeadline(ctx context.Context) error {
	trial.Step("let a session's deadline pass")
	f, err := b.freeze(ctx, "Writing", "--deadline", "3s")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	// The node can be read, or it says that there is nothing to be had: nothing else.
	for ended := false; !ended; {
		_, err := b.guest.Run(ctx, "dd", "if="+node, "of=/dev/null", "bs=64k", "count=64")
		var exit *guest.ExitError
		switch {
		case err == nil:
		case errors.As(err, &exit) && strings.Contains(exit.Stderr, "No data available"):
			ended = true
		default:
			return err
		}
	}
	if err := f.goOn(); err != nil {
		return err
	}
	err = f.cmd.Wait(ctx)
	var exit *guest.ExitError
	if !errors.As(err, &exit) || exit.Code == 0 {
		return fmt.Errorf("the dump was to fail, but: %w", err)
	}
	return f.resume.Close()
}
