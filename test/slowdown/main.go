// SPDX-License-Identifier: Apache-2.0

// Command slowdown measures how long a fixed piece of work (test/slowdown/work)
// takes in a guest before the module is first used, while memory is frozen, and after
// the thaw. `make bench-slowdown` runs it.
//
// Frozen, it is done twice in each freeze: the first time is full of first writes
// to pages, the second time has what stays.
//
// Time is counted in instructions of the guest, one nanosecond each: what else the
// machine does at the time would hide everything otherwise. So caches play no part,
// and there is one CPU: QEMU brings up a second one in this mode only after very long.
//
// It writes OUT/slowdown.json. All numbers are medians; a ratio says how many times
// as long as before, and noise is the same of the slowest to the fastest quarter of
// the runs before: a ratio that is not larger says nothing.
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
	freezes, runs    int
}

func main() {
	o := options{}
	flag.StringVar(&o.series, "kernel", "6.1", "kernel `series`")
	flag.IntVar(&o.memoryMiB, "ram", 1024, "memory of the guest in `MiB`")
	flag.IntVar(&o.freezes, "freezes", 9, "freezes, and runs after a thaw")
	flag.IntVar(&o.runs, "runs", 12, "runs before")
	flag.StringVar(&o.out, "out", "out", "`directory` for the results")
	flag.StringVar(&o.bin, "bin", "bin", "`directory` with driver, work and kmod/")
	flag.Parse()
	trial.Run("bench-slowdown", limit, func(ctx context.Context) (string, error) {
		r, err := run(ctx, o)
		if err != nil {
			return "", err
		}
		fmt.Printf("%-10s %10s %15s %16s %10s  %s\n", "part", "before", "frozen, first", "frozen, steady", "after", "noise")
		for _, p := range r.Parts {
			fmt.Printf("%-10s %7.1f ms %14.2fx %15.2fx %9.2fx  %.2fx\n", p.Part, p.BeforeMS, p.FrozenFirst, p.FrozenSteady, p.After, p.Noise)
		}
		return "", nil
	})
}

type result struct {
	Kernel  string       `json:"kernel"`
	RAMMiB  int          `json:"ram_mib"`
	CPUs    int          `json:"cpus"`
	Runs    int          `json:"runs_before"`
	Freezes int          `json:"freezes"`
	Parts   []partResult `json:"parts"`
}

// partResult has ratios to BeforeMS.
type partResult struct {
	Part         string  `json:"part"`
	BeforeMS     float64 `json:"before_ms"`
	FrozenFirst  float64 `json:"frozen_first_ratio"`
	FrozenSteady float64 `json:"frozen_steady_ratio"`
	After        float64 `json:"after_ratio"`
	Noise        float64 `json:"noise_ratio"`
}

// times are the runs of a part, in nanoseconds.
type times map[string][]float64

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
	before, first, steady, after := times{}, times{}, times{}, times{}
	// The first one warms caches.
	if err := work(ctx, g, 1, times{}); err != nil {
		return nil, err
	}
	if err := work(ctx, g, o.runs, before); err != nil {
		return nil, err
	}
	if _, err := g.Run(ctx, "insmod", guestModule); err != nil {
		return nil, err
	}
	for range o.freezes {
		if err := frozen(ctx, g, first, steady); err != nil {
			return nil, err
		}
		if err := work(ctx, g, 1, after); err != nil {
			return nil, err
		}
	}
	r := &result{Kernel: kernel.Release, RAMMiB: o.memoryMiB, CPUs: 1, Runs: o.runs, Freezes: o.freezes}
	for _, part := range []string{"cpu", "memory", "files", "pipe", "processes", "all"} {
		b := before[part]
		if len(b) == 0 || len(first[part]) == 0 || len(steady[part]) == 0 || len(after[part]) == 0 {
			return nil, fmt.Errorf("no times of part %s", part)
		}
		m := quantile(b, 0.5)
		r.Parts = append(r.Parts, partResult{
			Part: part, BeforeMS: m / 1e6, FrozenFirst: quantile(first[part], 0.5) / m, FrozenSteady: quantile(steady[part], 0.5) / m,
			After: quantile(after[part], 0.5) / m, Noise: quantile(b, 0.75) / quantile(b, 0.25),
		})
	}
	return r, trial.WriteJSON(filepath.Join(o.out, "slowdown.json"), r)
}

// frozen works twice while memory is frozen, and thaws.
func frozen(ctx context.Context, g *guest.Guest, first, steady times) error {
	d, err := guestsession.Start(ctx, g)
	if err != nil {
		return err
	}
	if err := d.Do(ctx, "prepare", "freeze"); err != nil {
		return errors.Join(err, d.Kill(ctx))
	}
	both := times{}
	workErr := work(ctx, g, 2, both)
	a, err := d.Ask(ctx, "stats")
	if err == nil && a.Stats.Failure != 0 {
		err = fmt.Errorf("the session failed (%d) while the work was done", a.Stats.Failure)
	}
	if err := errors.Join(workErr, err, d.Do(ctx, "thaw", "close"), d.End(ctx)); err != nil {
		return err
	}
	for part, v := range both {
		first[part], steady[part] = append(first[part], v[0]), append(steady[part], v[1])
	}
	return nil
}

func work(ctx context.Context, g *guest.Guest, runs int, into times) error {
	out, err := g.Run(ctx, guestWork, strconv.Itoa(runs))
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(out.Stdout), "\n")
	if len(lines) != runs {
		return fmt.Errorf("%d lines of %d runs: %q", len(lines), runs, out.Stdout)
	}
	for _, line := range lines {
		var took map[string]float64
		if err := json.Unmarshal([]byte(line), &took); err != nil {
			return fmt.Errorf("work: %q: %w", line, err)
		}
		for part, ns := range took {
			into[part] = append(into[part], ns)
		}
	}
	return nil
}

func quantile(v []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(v))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
