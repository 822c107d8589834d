// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"livedump.io/internal/session"
	"livedump.io/test/pagetables"
	"livedump.io/test/trial"
)

const (
	mib = 1 << 20
	// The files live in a tmpfs: a page of them is one page of memory, always.
	loadFile, loadMiB     = "/t/load", 96
	writerFile, writerMiB = "/t/writer", 4
	// writerPages fit into what of the emergency part is the writer's alone, in a reserve of 32 MiB:
	// a quarter of a sixteenth.
	smallReserve = 32 * mib
	writerPages  = smallReserve / session.PageSize / 16 / 4 / 2
	// calibratedFactor is how far a reserve that was sized by a dry run may be from what a dump then
	// uses of it, up or down, under the same load.
	calibratedFactor = 3
)

type scenario struct {
	name string
	run  func(context.Context) error
}

func (b *bench) test(ctx context.Context) error {
	for _, script := range []string{
		"mkdir -p /t && mount -t tmpfs -o size=1g none /t",
		"mount -t tracefs none /sys/kernel/tracing || [ -d /sys/kernel/tracing/events ]",
		fmt.Sprintf("dd if=/dev/zero of=%s bs=1M count=%d 2>/dev/null", loadFile, loadMiB),
		fmt.Sprintf("dd if=/dev/zero of=%s bs=1M count=%d 2>/dev/null", writerFile, writerMiB),
		"insmod " + guestPGTables,
		"insmod " + guestModule,
	} {
		if out, err := b.shell(ctx, script); err != nil {
			return fmt.Errorf("%s: %w: %s", script, err, out)
		}
	}
	before, err := b.g.SettledPageTables(ctx)
	if err != nil {
		return err
	}
	for _, s := range []scenario{
		{"the reserve is shared out between nodes", b.nodes},
		{"best effort: a load loses pages, the writer none", b.emergency},
		{"strict: the dump fails, the node goes on", b.strict},
		{"limits: prepare leaves the node enough, or fails and gives all back", b.limits},
		{"a dry run finds the size", b.calibrate},
		{"trace events are as many as the counters say", b.traceEvents},
		{"without the emergency part the writer loses pages", b.emergencyBites},
	} {
		trial.Step("%s", s.name)
		if err := s.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := b.g.CheckConsole(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	trial.Step("the page tables are as they were")
	after, err := b.g.SettledPageTables(ctx)
	if err != nil {
		return err
	}
	_, err = pagetables.CompareLive(before, after)
	return err
}

// check collects what is not as it should be.
type check struct{ problems []error }

func (c *check) that(ok bool, format string, args ...any) {
	if !ok {
		c.problems = append(c.problems, fmt.Errorf(format, args...))
	}
}

func (c *check) err() error { return errors.Join(c.problems...) }

var memFreeLine = regexp.MustCompile(`MemFree:\s+(\d+) kB`)

// free returns a node's free pages.
func (b *bench) free(ctx context.Context, node int) (int64, error) {
	text, err := b.g.ReadFile(ctx, fmt.Sprintf("/sys/devices/system/node/node%d/meminfo", node))
	if err != nil {
		return 0, err
	}
	m := memFreeLine.FindSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("node %d has no MemFree: %q", node, text)
	}
	kib, err := strconv.ParseInt(string(m[1]), 10, 64)
	return kib / 4, err
}

func (b *bench) nodes(ctx context.Context) error {
	return b.withDriver(ctx, func(d driver) error {
		var c check
		state, err := b.sysfs(ctx, "state")
		c.that(err == nil && state == "idle", "state before: %q (%v)", state, err)
		var was, is [2]int64
		for node := range was {
			if was[node], err = b.free(ctx, node); err != nil {
				return err
			}
		}
		const pages = 64 * mib / session.PageSize
		r, err := d.must(ctx, fmt.Sprintf("prepare reserve=%d", 64*mib))
		if err != nil {
			return err
		}
		for node := range is {
			if is[node], err = b.free(ctx, node); err != nil {
				return err
			}
			// Half of it each; other things are allocated and freed meanwhile.
			taken := was[node] - is[node]
			c.that(taken > pages*3/8 && taken < pages*3/4, "node %d gave %d of %d pages", node, taken, pages)
		}
		c.that(r.Prepared.ReservePages == pages, "a reserve of %d pages, want %d", r.Prepared.ReservePages, pages)
		gigabytes, err := b.sysfsNumber(ctx, "reserve/blocks_1g")
		c.that(err == nil && gigabytes <= 2, "it lies in %d gigabytes (%v), one for each node would do", gigabytes, err)
		leaves, err := b.sysfsNumber(ctx, "reserve/blocks_2m")
		c.that(err == nil && leaves == pages/512, "it lies in %d blocks of 2 MiB (%v), want %d", leaves, err, pages/512)
		state, err = b.sysfs(ctx, "state")
		c.that(err == nil && state == "prepared", "state after PREPARE: %q (%v)", state, err)
		return c.err()
	})
}

// exhaust freezes everything with a small reserve and lets a process that is not the writer write
// more than that holds.
func exhaust(ctx context.Context, d driver, mode string) (session.Stats, error) {
	r, err := d.must(ctx,
		fmt.Sprintf("prepare level=0 mode=%s reserve=%d", mode, smallReserve),
		"freeze",
		fmt.Sprintf("exec dd if=/dev/zero of=%s bs=1M count=%d conv=notrunc", loadFile, loadMiB),
		"stats")
	return r.Stats, err
}

func (b *bench) emergency(ctx context.Context) error {
	return b.withDriver(ctx, func(d driver) error {
		loaded, err := exhaust(ctx, d, "best-effort")
		if err != nil {
			return err
		}
		var c check
		c.that(loaded.LostPages > 0, "the load lost nothing: %+v", loaded)
		c.that(loaded.Failure == session.FailureNone, "the session failed: %s", loaded.Failure)
		r, err := d.must(ctx, fmt.Sprintf("write %s %d", writerFile, writerPages), "stats")
		if err != nil {
			return err
		}
		c.that(r.Stats.FaultCopies >= loaded.FaultCopies+writerPages,
			"of the writer's %d pages %d were copied", writerPages, r.Stats.FaultCopies-loaded.FaultCopies)
		drawn, err := b.sysfsNumber(ctx, "reserve/emergency_drawn")
		c.that(err == nil && drawn >= writerPages, "%d pages were drawn from the emergency part (%v)", drawn, err)

		drained, err := d.must(ctx, "drain", "stats")
		if err != nil {
			return err
		}
		st := drained.Stats
		byWriter, err := b.sysfsNumber(ctx, "statistics/lost_by_writer")
		c.that(err == nil && byWriter == 0, "the writer lost %d pages (%v)", byWriter, err)
		lost, err := b.sysfsNumber(ctx, "statistics/lost")
		c.that(err == nil && lost == st.LostPages, "sysfs says %d lost pages, STATS %d (%v)", lost, st.LostPages, err)
		c.that(st.PagesReported == st.PagesToDump, "%d pages reported of %d", st.PagesReported, st.PagesToDump)
		state, err := b.sysfs(ctx, "state")
		c.that(err == nil && state == "frozen", "state: %q (%v)", state, err)
		_, err = d.must(ctx, "thaw", "close")
		return errors.Join(c.err(), err)
	})
}

// emergencyBites takes the emergency part away: then the check above must fail.
func (b *bench) emergencyBites(ctx context.Context) error {
	if out, err := b.shell(ctx, "rmmod livedump && insmod "+guestInstrumented+" no_emergency=1 measure=1"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return b.withDriver(ctx, func(d driver) error {
		if _, err := exhaust(ctx, d, "best-effort"); err != nil {
			return err
		}
		if _, err := d.must(ctx, fmt.Sprintf("write %s %d", writerFile, writerPages)); err != nil {
			return err
		}
		lost, err := b.sysfsNumber(ctx, "statistics/lost_by_writer")
		if err == nil && lost == 0 {
			err = errors.New("the writer lost nothing even so: the test shows nothing")
		}
		return err
	})
}

func (b *bench) strict(ctx context.Context) error {
	return b.withDriver(ctx, func(d driver) error {
		st, err := exhaust(ctx, d, "strict")
		if err != nil {
			return err
		}
		var c check
		c.that(st.Failure == session.FailureReserve, "failure is %s", st.Failure)
		r, err := d.do(ctx, "drain")
		if err != nil {
			return err
		}
		c.that(strings.Contains(r.Error, session.ErrReserveExhausted.Error()), "drain: %q", r.Error)
		failure, err := b.sysfsNumber(ctx, "failure")
		c.that(err == nil && failure == uint64(session.FailureReserve), "sysfs: failure %d (%v)", failure, err)
		_, err = d.must(ctx, "thaw", "close")
		return errors.Join(c.err(), err)
	})
}

func (b *bench) limits(ctx context.Context) error {
	available := func() (int64, error) {
		out, err := b.shell(ctx, "sed -n 's/^MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")
		if err != nil {
			return 0, err
		}
		return strconv.ParseInt(out, 10, 64)
	}
	was, err := available()
	if err != nil {
		return err
	}
	var c check
	err = b.withDriver(ctx, func(d driver) error {
		// More than there is: half of what is available is the most.
		r, err := d.must(ctx, fmt.Sprintf("prepare reserve=%d", 64<<30))
		if err != nil {
			return err
		}
		kib := int64(r.Prepared.ReservePages) * 4
		c.that(kib <= was/2 && kib > was/4, "a reserve of %d KiB with %d KiB available", kib, was)
		_, err = d.must(ctx, "close")
		return err
	})
	if err != nil {
		return err
	}
	is, err := available()
	if err != nil {
		return err
	}
	c.that(is > was-was/50, "%d KiB were available, %d are after close", was, is)

	// Memory that was full once is spread differently over the kernel's lists and caches: what
	// is available afterwards, without the module, is what counts.
	err = b.withDriver(ctx, func(d driver) error {
		_, err := d.must(ctx, "fill 24")
		return err
	})
	if err != nil {
		return err
	}
	if was, err = available(); err != nil {
		return err
	}
	// With so little available, a quarter of it is less than the smallest reserve.
	err = b.withDriver(ctx, func(d driver) error {
		if _, err := d.must(ctx, "fill 24"); err != nil {
			return err
		}
		r, err := d.do(ctx, "prepare")
		c.that(strings.Contains(r.Error, session.ErrNoMemory.Error()), "prepare in full memory: %q, reserve of %d pages",
			r.Error, r.Prepared.ReservePages)
		return err
	})
	if err != nil {
		return err
	}
	log, err := b.g.ConsoleLog()
	if err != nil {
		return err
	}
	c.that(!strings.Contains(log, "Out of memory"), "the OOM killer was at work")
	if is, err = available(); err != nil {
		return err
	}
	c.that(is > was-was/50, "%d KiB were available, %d are after the failed prepare", was, is)
	return c.err()
}

// steadyLoad writes new pages of files, slab and page tables all the time.
const steadyLoad = "while :; do i=0; while [ $i -lt 16 ]; do i=$((i+1)); dd if=/dev/zero of=/t/s$i bs=64k count=16 2>/dev/null; " +
	"done; rm -f /t/s*; ls -laR /proc/self >/dev/null; done"

func (b *bench) calibrate(ctx context.Context) error {
	if err := b.g.Put(ctx, "/opt/load.sh", 0o755, strings.NewReader("#!/bin/sh\n"+steadyLoad+"\n")); err != nil {
		return err
	}
	return b.withDriver(ctx, func(d driver) error {
		r, err := d.must(ctx, "start /opt/load.sh", "prepare mode=best-effort calibrate=1s expected=6s")
		if err != nil {
			return err
		}
		p := r.Prepared
		if r, err = d.must(ctx, "freeze", "hold 6s", "stats"); err != nil {
			return err
		}
		used := r.Stats.Copies + r.Stats.LostPages
		trial.Step("  estimated %d pages, a reserve of %d; 6 s used %d, %d of them in the stop", p.EstimatePages, p.ReservePages,
			used, r.Stats.StopCopies)
		var c check
		c.that(p.EstimatePages > 0, "there is no estimate")
		c.that(p.EstimatePages <= calibratedFactor*used && used <= calibratedFactor*p.EstimatePages,
			"estimated %d pages, used %d: more than a factor of %d", p.EstimatePages, used, calibratedFactor)
		c.that(r.Stats.LostPages == 0, "%d pages were lost", r.Stats.LostPages)
		var rates uint64
		for _, class := range []string{"kernel", "cache", "cache_private", "user", "hugetlb", "free"} {
			n, err := b.sysfsNumber(ctx, "calibration/"+class+"_per_second")
			c.that(err == nil, "%s: %v", class, err)
			rates += n
		}
		c.that(rates > 0, "no page of any class was written in the dry run")
		estimate, err := b.sysfsNumber(ctx, "calibration/estimate")
		c.that(err == nil && estimate == p.EstimatePages, "sysfs says %d, PREPARE %d (%v)", estimate, p.EstimatePages, err)
		_, err = d.must(ctx, "thaw", "close", "end")
		return errors.Join(c.err(), err)
	})
}

const tracing = "/sys/kernel/tracing/"

// traceEvents runs a session with its events recorded, which makes the fault path fault on the
// memory of tracing itself.
func (b *bench) traceEvents(ctx context.Context) error {
	enable := func(on int) error {
		_, err := b.shell(ctx, fmt.Sprintf("echo 16384 >%[1]sbuffer_size_kb; echo >%[1]strace; echo %[2]d >%[1]sevents/livedump/enable", tracing, on))
		return err
	}
	if err := enable(1); err != nil {
		return err
	}
	return b.withDriver(ctx, func(d driver) error {
		if _, err := exhaust(ctx, d, "best-effort"); err != nil {
			return err
		}
		if _, err := d.must(ctx, "drain", "thaw"); err != nil {
			return err
		}
		r, err := d.must(ctx, "stats")
		if err != nil {
			return err
		}
		st := r.Stats
		trace, err := b.g.ReadFile(ctx, tracing+"trace")
		if err != nil {
			return err
		}
		dropped, err := b.shell(ctx, "cat "+tracing+"per_cpu/cpu*/stats | sed -n 's/^\\(overrun\\|dropped events\\): *//p' | sort -nr | head -n 1")
		if err != nil {
			return err
		}
		var c check
		c.that(dropped == "0", "the ring buffer was too small: %s events lost", dropped)
		counts := map[string]uint64{}
		for _, line := range strings.Split(string(trace), "\n") {
			for _, event := range []string{"freeze", "fault", "copy", "lost", "thaw"} {
				if strings.Contains(line, " "+event+": ") {
					counts[event]++
				}
			}
		}
		trial.Step("  events %v; counted %d faults, %d copies, %d lost", counts, st.Faults, st.FaultCopies, st.LostPages)
		c.that(counts["freeze"] == 1 && counts["thaw"] == 1, "freeze and thaw: %v", counts)
		for event, counted := range map[string]uint64{"fault": st.Faults, "copy": st.FaultCopies, "lost": st.LostPages} {
			// Never more; fewer by what was nested too deeply (see kmod/trace.h).
			c.that(counts[event] <= counted && counts[event] >= counted-counted/100, "%d events of %s, %d counted",
				counts[event], event, counted)
		}
		_, err = d.must(ctx, "close")
		return errors.Join(c.err(), err, enable(0))
	})
}
