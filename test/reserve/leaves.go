// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"livedump.io/internal/session"
	"livedump.io/test/pagetables"
	"livedump.io/test/trial"
)

// A guest whose direct map has leaves of 1 GiB: they need a whole gigabyte of RAM above 4 GiB with nothing in it that
// stays writable, and modules break up those that they land in.
const (
	hugeMiB = 10240
	// hugeLoadMiB is more than two gigabytes: some leaf of 1 GiB is first written when the reserve has long been used up.
	hugeLoadMiB   = 3072
	pagesOfATable = 512
	parameters    = "/sys/module/livedump/parameters/"
)

// hugeLeaves uses the reserve up, and then has leaves of 1 GiB written: no fault may lose more than what one
// table stands for. Without the slots that are set aside for their tables one must lose more, or this shows nothing.
func (b *bench) hugeLeaves(ctx context.Context) error {
	for _, script := range []string{
		"mkdir -p /t && mount -t tmpfs -o size=4g none /t",
		"insmod " + guestPGTables,
		"insmod " + guestInstrumented + " measure=1",
	} {
		if out, err := b.shell(ctx, script); err != nil {
			return fmt.Errorf("%s: %w: %s", script, err, out)
		}
	}
	m, err := b.g.Machine(ctx)
	if err != nil {
		return err
	}
	if m.HugeLeaves == 0 {
		return errors.New("the guest's direct map has no leaves of 1 GiB")
	}
	before, err := b.g.SettledPageTables(ctx)
	if err != nil {
		return err
	}
	tables, most, err := b.writeHugeLeaves(ctx, "0")
	if err != nil {
		return err
	}
	trial.Step("  %d leaves of 1 GiB, %d slots for their tables: a fault lost at most %d pages", m.HugeLeaves, tables, most)
	// As many as there are, and some for CPUs that come at once.
	if tables < uint64(m.HugeLeaves) {
		return fmt.Errorf("%d slots are set aside for the tables of %d leaves of 1 GiB", tables, m.HugeLeaves)
	}
	if most == 0 || most > pagesOfATable {
		return fmt.Errorf("a fault lost %d pages at most; it must be some, but not more than %d", most, pagesOfATable)
	}
	tables, most, err = b.writeHugeLeaves(ctx, "1")
	if err != nil {
		return err
	}
	trial.Step("  without these slots it lost %d", most)
	if tables != 0 || most <= pagesOfATable {
		return fmt.Errorf("with %d slots for tables no fault lost more than %d pages: the test shows nothing", tables, most)
	}
	after, err := b.g.SettledPageTables(ctx)
	if err != nil {
		return err
	}
	_, err = pagetables.CompareLive(before, after)
	return err
}

// writeHugeLeaves returns how many slots were set aside for tables, and how many pages the worst fault lost.
func (b *bench) writeHugeLeaves(ctx context.Context, without string) (tables, most uint64, err error) {
	script := fmt.Sprintf("rm -f /t/new; echo %s >%sno_tables_1g; echo 0 >%slost_at_once", without, parameters, parameters)
	if out, err := b.shell(ctx, script); err != nil {
		return 0, 0, fmt.Errorf("%w: %s", err, out)
	}
	err = b.withDriver(ctx, func(d driver) error {
		if _, err := d.must(ctx, fmt.Sprintf("prepare level=0 mode=best-effort reserve=%d", smallReserve), "freeze"); err != nil {
			return err
		}
		if tables, err = b.sysfsNumber(ctx, "reserve/tables_1g"); err != nil {
			return err
		}
		r, err := d.must(ctx, fmt.Sprintf("exec dd if=/dev/zero of=/t/new bs=1M count=%d", hugeLoadMiB), "stats")
		if err != nil {
			return err
		}
		if r.Stats.Failure != session.FailureNone {
			return fmt.Errorf("the session failed: %s", r.Stats.Failure)
		}
		if _, err := d.must(ctx, "thaw", "close"); err != nil {
			return err
		}
		out, err := b.shell(ctx, "cat "+parameters+"lost_at_once")
		if err != nil {
			return err
		}
		_, err = fmt.Sscan(out, &most)
		return err
	})
	return tables, most, err
}
