// SPDX-License-Identifier: Apache-2.0

// Command slowdown measures how long a fixed piece of work (test/slowdown/work)
// takes in a guest before the module is first used, while memory is frozen, and after
// the thaw. `make bench-slowdown` runs it.
//
// It is always done twice by one process: frozen, the first time is full of first writes to pages, and the second
// has what stays. A process's first time is slower in any case, for its heap grows; so each is compared with the same
// one before.
//
// Time is counted in instructions of the guest, one nanosecond each: what else the
// machine does at the time would hide everything otherwise. So caches play no part,
// and there is one CPU: QEMU brings up a second one in this mode only after very long.
//
// It writes OUT/slowdown.json. All numbers are medians; a ratio says how many times
// as long as before, and noise is the same of the slowest to the fastest quarter of
// the runs before, of the first or the second time, whichever has more: a ratio that is not larger says nothing.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"livedump.io/test/guest"
	"livedump.io/test/guestsession"
	"livedump.io/test/trial"
)

const (
	guestModule = "/opt/livedump.ko"
	guestWork   = "/opt/work"
	limit       = time.Hour
)

type options struct {
	series, out, bin string
	memoryMiB        int
	freezes          int
}

func main() {
	o := options{}
	flag.StringVar(&o.series, "kernel", "6.1", "kernel `series`")
	flag.IntVar(&o.memoryMiB, "ram", 1024, "memory of the guest in `MiB`")
	flag.IntVar(&o.freezes, "freezes", 12, "runs before, freezes, and runs after a thaw")
	flag.StringVar(&o.out, "out", "out", "`directory` for the results")
	flag.StringVar(&o.bin, "bin", "bin", "`directory` with driver, work and kmod/")
	flag.Parse()
	trial.Run("bench-slowdown", limit, func(ctx context.Context) (string, error) {
		r, err := run(ctx, o)
		if err != nil {
			return "", err
		}
		fmt.Printf("%-10s %12s %15s %16s %14s %15s %7s\n", "part", "before", "frozen, first", "frozen, steady", "after, first", "after, steady", "noise")
		for _, p := range r.Parts {
			fmt.Printf("%-10s %9.1f ms %14.2fx %15.2fx %13.2fx %14.2fx %6.2fx\n", p.Part, p.BeforeMS, p.FrozenFirst, p.FrozenSteady, p.AfterFirst,
				p.AfterSteady, p.Noise)
		}
		return "", nil
	})
}

type result struct {
	Kernel  string       `json:"kernel"`
	RAMMiB  int          `json:"ram_mib"`
	CPUs    int          `json:"cpus"`
	Freezes int          `json:"freezes"`
	Parts   []partResult `json:"parts"`
}

// partResult has ratios to the same time of a process before. BeforeMS is the second.
type partResult struct {
	Part         string  `json:"part"`
	BeforeMS     float64 `json:"before_ms"`
	FrozenFirst  float64 `json:"frozen_first_ratio"`
	FrozenSteady float64 `json:"frozen_steady_ratio"`
	AfterFirst   float64 `json:"after_first_ratio"`
	AfterSteady  float64 `json:"after_steady_ratio"`
	Noise        float64 `json:"noise_ratio"`
}

// twice are a process's first and second time.
const twice = 2

// times are the runs of each part, in nanoseconds, of the first and the second time.
type times [twice]map[string][]float64

func newTimes() times { return times{{}, {}} }

func run(ctx context.Context, o options) (_ *result, err error) {
	kernel, err := guest.FetchKernel(ctx, o.series)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(o.out, "slowdown")
	g, err := guest.Start(ctx, guest.Config{
		Kernel: kernel, Dir: dir, Console: filepath.Join(dir, "guest.log"), MemoryMiB: o.memoryMiB, CPUs: 1,
		CountInstructions: true,
		Files: []guest.File{
			{Path: guestModule, Source: filepath.Join(o.bin, "kmod", kernel.Release, "livedump.ko")},
			{Path: guestsession.Program, Source: filepath.Join(o.bin, "driver"), Mode: 0o755},
			{Path: guestWork, Source: filepath.Join(o.bin, "work"), Mode: 0o755},
		},
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.CheckConsole(), g.Stop()) }()
	before, froze, after := newTimes(), newTimes(), newTimes()
	// The first one warms caches.
	if err := work(ctx, g, newTimes()); err != nil {
		return nil, err
	}
	for range o.freezes {
		if err := work(ctx, g, before); err != nil {
			return nil, err
		}
	}
	if _, err := g.Run(ctx, "insmod", guestModule); err != nil {
		return nil, err
	}
	for range o.freezes {
		if err := frozen(ctx, g, froze); err != nil {
			return nil, err
		}
		if err := work(ctx, g, after); err != nil {
			return nil, err
		}
	}
	r := &result{Kernel: kernel.Release, RAMMiB: o.memoryMiB, CPUs: 1, Freezes: o.freezes}
	for _, part := range []string{"cpu", "memory", "files", "pipe", "processes", "all"} {
		p := partResult{Part: part}
		for i, to := range [twice]struct{ frozen, after *float64 }{{&p.FrozenFirst, &p.AfterFirst}, {&p.FrozenSteady, &p.AfterSteady}} {
			b := before[i][part]
			if len(b) == 0 || len(froze[i][part]) == 0 || len(after[i][part]) == 0 {
				return nil, fmt.Errorf("no times of part %s", part)
			}
			m := quantile(b, 0.5)
			p.BeforeMS = m / 1e6
			*to.frozen, *to.after = quantile(froze[i][part], 0.5)/m, quantile(after[i][part], 0.5)/m
			p.Noise = max(p.Noise, quantile(b, 0.75)/quantile(b, 0.25))
		}
		r.Parts = append(r.Parts, p)
	}
	return r, trial.WriteJSON(filepath.Join(o.out, "slowdown.json"), r)
}

// frozen works while memory is frozen, and thaws.
func frozen(ctx context.Context, g *guest.Guest, into times) error {
	d, err := guestsession.Start(ctx, g)
	if err != nil {
		return err
	}
	if err := d.Do(ctx, "prepare", "freeze"); err != nil {
		return errors.Join(err, d.Kill(ctx))
	}
	workErr := work(ctx, g, into)
	a, err := d.Ask(ctx, "stats")
	if err == nil && a.Stats.Failure != 0 {
		err = fmt.Errorf("the session failed (%d) while the work was done", a.Stats.Failure)
	}
	return errors.Join(workErr, err, d.Do(ctx, "thaw", "close"), d.End(ctx))
}

// work has a process of the guest do the work twice.
func work(ctx context.Context, g *guest.Guest, into times) error {
	out, err := g.Run(ctx, guestWork, strconv.Itoa(twice))
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(out.Stdout), "\n")
	if len(lines) != twice {
		return fmt.Errorf("%d lines of %d runs: %q", len(lines), twice, out.Stdout)
	}
	for i, line := range lines {
		var took map[string]float64
		if err := json.Unmarshal([]byte(line), &took); err != nil {
			return fmt.Errorf("work: %q: %w", line, err)
		}
		for part, ns := range took {
			into[i][part] = append(into[i][part], ns)
		}
	}
	return nil
}

func quantile(v []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(v))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
