// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"livedump.io/internal/session"
	"livedump.io/test/guest"
	"livedump.io/test/trial"
)

const (
	costRounds    = 5
	costParameter = "/sys/module/livedump/parameters/cost"
	// minorFaults are taken in each round, before the freeze and after it.
	minorFaults = 4000
)

// faultCost is one kind of fault. Times are medians over the rounds, in nanoseconds.
type faultCost struct {
	Kind string `json:"kind"`
	// Writes were timed from the instruction before to the one after; ratio is to an ordinary minor fault.
	Writes   int     `json:"writes"`
	WriteNS  float64 `json:"write_ns"`
	MaxNS    float64 `json:"write_max_ns"`
	Ratio    float64 `json:"ratio_to_minor_fault"`
	Handled  int     `json:"handled"`
	HandleNS float64 `json:"handler_ns"`
}

// costReport is bench-faults.json.
type costReport struct {
	Kernel      string      `json:"kernel"`
	RAMMiB      int         `json:"ram_mib"`
	CPUs        int         `json:"cpus"`
	KVM         bool        `json:"kvm"`
	Rounds      int         `json:"rounds"`
	MinorNS     float64     `json:"minor_fault_ns"`
	FrozenNS    float64     `json:"minor_fault_frozen_ns"`
	ReserveUsed uint64      `json:"reserve_pages_used"`
	Faults      []faultCost `json:"faults"`
	Leaves      leafCost    `json:"leaves"`
}

// leafCost is what it brings to release a huge leaf as a whole when nothing in it needs a copy: faults
// mended while new memory was written, mostly to what was free at the stop.
type leafCost struct {
	LoadMiB int        `json:"load_mib"`
	With    leafFaults `json:"with"`
	Without leafFaults `json:"without"`
}

// leafFaults are the faults of one load, in all and by what they did. A leaf that holds a single page to be dumped
// is split, and then each of its other pages that is written has a fault of its own.
type leafFaults struct {
	Faults   uint64 `json:"faults"`
	Leaves   uint64 `json:"leaves"`
	Splits   uint64 `json:"splits"`
	Copies   uint64 `json:"copies"`
	Excluded uint64 `json:"excluded"`
}

func (f leafFaults) String() string {
	return fmt.Sprintf("%d faults (%d leaves released as a whole, %d split; %d pages copied, %d let through)", f.Faults, f.Leaves, f.Splits, f.Copies, f.Excluded)
}

// faultsSoFar reads the session's counters.
func (b *bench) faultsSoFar(ctx context.Context) (f leafFaults, err error) {
	for name, value := range map[string]*uint64{"faults": &f.Faults, "fault_leaves": &f.Leaves, "fault_splits": &f.Splits,
		"fault_copies": &f.Copies, "fault_excluded": &f.Excluded} {
		if *value, err = b.sysfsNumber(ctx, "statistics/"+name); err != nil {
			return f, err
		}
	}
	return f, nil
}

const leafLoadMiB = 128

// leaves counts the faults of a load that takes free memory, with huge leaves released as a whole or not.
func (b *bench) leaves(ctx context.Context, without string) (f leafFaults, err error) {
	script := "echo " + without + " >/sys/module/livedump/parameters/no_leaves; mkdir -p /t; mount | grep -q ' /t ' || mount -t tmpfs -o size=1g none /t; rm -f /t/new"
	if out, err := b.shell(ctx, script); err != nil {
		return f, fmt.Errorf("%w: %s", err, out)
	}
	err = b.withDriver(ctx, func(d driver) error {
		if _, err := d.must(ctx, "prepare", "freeze"); err != nil {
			return err
		}
		before, err := b.faultsSoFar(ctx)
		if err != nil {
			return err
		}
		if _, err := d.must(ctx, fmt.Sprintf("exec dd if=/dev/zero of=/t/new bs=1M count=%d", leafLoadMiB)); err != nil {
			return err
		}
		if f, err = b.faultsSoFar(ctx); err != nil {
			return err
		}
		f = leafFaults{Faults: f.Faults - before.Faults, Leaves: f.Leaves - before.Leaves, Splits: f.Splits - before.Splits,
			Copies: f.Copies - before.Copies, Excluded: f.Excluded - before.Excluded}
		_, err = d.must(ctx, "thaw", "close")
		return err
	})
	return f, err
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[len(v)/2]
}

// measure times every kind of fault in several sessions of one guest.
func (b *bench) measure(ctx context.Context) error {
	if out, err := b.shell(ctx, "insmod "+guestInstrumented+" measure=1"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	report := costReport{Kernel: b.kernel.Release, RAMMiB: b.o.MemoryMiB, CPUs: b.o.CPUs, KVM: guest.UsesKVM(), Rounds: costRounds}
	var minor, frozen, used []float64
	type samples struct {
		writes, handled         int
		writeNS, maxNS, handler []float64
	}
	kinds := map[string]*samples{}
	var names []string
	for round := range costRounds {
		trial.Step("round %d of %d", round+1, costRounds)
		if err := b.g.Put(ctx, "/opt/run-cost", 0o755, strings.NewReader("#!/bin/sh\necho run >"+costParameter+"\n")); err != nil {
			return err
		}
		if out, err := b.shell(ctx, "echo prepare >"+costParameter); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		err := b.withDriver(ctx, func(d driver) error {
			r, err := d.must(ctx, fmt.Sprintf("fault %d", minorFaults))
			if err != nil {
				return err
			}
			minor = append(minor, r.FaultNS)
			if _, err = d.must(ctx, "prepare", "freeze"); err != nil {
				return err
			}
			if r, err = d.must(ctx, fmt.Sprintf("fault %d", minorFaults)); err != nil {
				return err
			}
			frozen = append(frozen, r.FaultNS)
			if r, err = d.must(ctx, "exec /opt/run-cost", "stats"); err != nil {
				return err
			}
			used = append(used, float64(r.Stats.ReservePages-r.Stats.ReserveLow))
			if r.Stats.Failure != session.FailureNone {
				return fmt.Errorf("the session failed: %s", r.Stats.Failure)
			}
			_, err = d.must(ctx, "thaw", "close")
			return err
		})
		if err != nil {
			return err
		}
		text, err := b.g.ReadFile(ctx, costParameter)
		if err != nil {
			return err
		}
		for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
			var kind string
			var writes, handled int
			var writeNS, writeMax, handlerNS, handlerMax float64
			if _, err := fmt.Sscan(line, &kind, &writes, &writeNS, &writeMax, &handled, &handlerNS, &handlerMax); err != nil {
				return fmt.Errorf("%q: %w", line, err)
			}
			s := kinds[kind]
			if s == nil {
				s = &samples{}
				kinds[kind], names = s, append(names, kind)
			}
			s.writes += writes
			s.handled += handled
			if writes > 0 {
				s.writeNS, s.maxNS = append(s.writeNS, writeNS), append(s.maxNS, writeMax)
			}
			if handled > 0 {
				s.handler = append(s.handler, handlerNS)
			}
		}
	}
	report.MinorNS, report.FrozenNS, report.ReserveUsed = median(minor), median(frozen), uint64(median(used))
	for _, name := range names {
		s := kinds[name]
		f := faultCost{Kind: name, Writes: s.writes, WriteNS: median(s.writeNS), MaxNS: median(s.maxNS),
			Handled: s.handled, HandleNS: median(s.handler)}
		if report.MinorNS > 0 {
			f.Ratio = f.WriteNS / report.MinorNS
		}
		report.Faults = append(report.Faults, f)
	}
	report.Leaves.LoadMiB = leafLoadMiB
	var err error
	if report.Leaves.Without, err = b.leaves(ctx, "1"); err != nil {
		return err
	}
	if report.Leaves.With, err = b.leaves(ctx, "0"); err != nil {
		return err
	}
	for _, kind := range []string{"plain", "copy", "split"} {
		if s := kinds[kind]; s == nil || s.writes == 0 {
			return fmt.Errorf("no write was a %q one: nothing was measured", kind)
		}
	}
	file := filepath.Join(b.o.Out, "bench-faults.json")
	if err := trial.WriteJSON(file, report); err != nil {
		return err
	}
	fmt.Printf("an ordinary minor fault takes %.0f ns, %.0f ns while frozen\n", report.MinorNS, report.FrozenNS)
	for _, f := range report.Faults {
		fmt.Printf("%-9s %6d writes, median %7.0f ns, %5.2f minor faults; handler %6d times, %7.0f ns\n",
			f.Kind, f.Writes, f.WriteNS, f.Ratio, f.Handled, f.HandleNS)
	}
	fmt.Printf("%d MiB of new memory: %s\n", leafLoadMiB, report.Leaves.With)
	fmt.Printf("and if no huge leaf is released as a whole: %s\n", report.Leaves.Without)
	fmt.Printf("bench-faults: %s\n", file)
	return nil
}
