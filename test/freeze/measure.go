// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"livedump.io/internal/session"
	"livedump.io/test/guest"
	"livedump.io/test/trial"
	"livedump.io/test/workload/provide"
)

// boot is a guest in which several things are measured.
type boot struct {
	memoryMiB, cpus int
	plans           []plan
}

// plan is one condition and how often the machine is frozen under it. The numbers are odd, for the
// median is to be one of the freezes.
type plan struct {
	loaded       bool
	tasks        int
	level, eager int
}

const manyTasks = 5000

var (
	plans = []plan{
		{level: 9, eager: 5},
		{tasks: manyTasks, level: 7, eager: 3},
		{loaded: true, level: 9, eager: 5},
		{loaded: true, tasks: manyTasks, level: 7, eager: 3},
	}
	fullBoots = []boot{
		{2 << 10, 2, plans}, {4 << 10, 2, plans}, {8 << 10, 2, plans}, {16 << 10, 2, plans},
		{2 << 10, 4, plans}, {4 << 10, 4, plans}, {8 << 10, 4, plans}, {16 << 10, 4, plans},
	}
	shortPlans = []plan{{level: 7, eager: 3}}
	shortBoots = []boot{{2 << 10, 2, shortPlans}, {8 << 10, 2, shortPlans}, {16 << 10, 2, shortPlans}}
)

// Paths in the guest.
const (
	module     = "/opt/livedump.ko"
	freezes    = "/opt/freezes"
	parameters = "/sys/module/livedump/parameters/"
)

const (
	freezesTimeout = 20 * time.Minute
	// hurried is a pause of the workload that leaves no CPU idle for long.
	hurried = 5 * time.Millisecond
)

func (b boot) measure(ctx context.Context, o options) (runs []Run, err error) {
	kernel, err := guest.FetchKernel(ctx, o.series)
	if err != nil {
		return nil, err
	}
	trial.Step("boot kernel %s with %d MiB and %d CPUs", kernel.Release, b.memoryMiB, b.cpus)
	g, err := guest.Start(ctx, guest.Config{
		Kernel: kernel, MemoryMiB: b.memoryMiB, CPUs: b.cpus,
		Files: []guest.File{
			{Path: module, Source: filepath.Join(o.bin, "kmod-instrumented", kernel.Release, "livedump.ko")},
			{Path: freezes, Source: filepath.Join(o.bin, "freezes")},
			provide.File(filepath.Join(o.bin, "workload")),
		},
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.Stop()) }()
	if _, err := g.Run(ctx, "insmod", module); err != nil {
		return nil, err
	}
	// Not the instruments of other tests: they would be most of the stop.
	if err := g.Put(ctx, parameters+"measure", 0o644, strings.NewReader("1")); err != nil {
		return nil, err
	}
	for _, p := range b.plans {
		base := Run{Kernel: kernel.Release, RAMMiB: b.memoryMiB, CPUs: b.cpus, Loaded: p.loaded, Tasks: p.tasks}
		more, err := p.measure(ctx, g, base)
		runs = append(runs, more...)
		if err != nil {
			return runs, err
		}
	}
	return runs, g.CheckConsole()
}

// measure freezes the guest as planned and returns a run of each method.
func (p plan) measure(ctx context.Context, g *guest.Guest, base Run) (runs []Run, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, freezesTimeout, fmt.Errorf("no result after %v", freezesTimeout))
	defer cancel()
	if p.loaded {
		w, err := provide.Start(ctx, g, hurried)
		if err != nil {
			return nil, err
		}
		defer func() {
			_, failed := w.Stop(ctx)
			err = errors.Join(err, failed)
		}()
	}
	result, err := g.Run(ctx, freezes, "-tasks", strconv.Itoa(p.tasks),
		"-methods", fmt.Sprintf("level:%d,eager:%d", p.level, p.eager))
	if err != nil {
		return nil, err
	}
	byMethod := map[string][]session.Stats{}
	for _, text := range strings.Split(strings.TrimSpace(result.Stdout), "\n") {
		var line struct {
			Method string
			session.Stats
		}
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			return nil, fmt.Errorf("freezes: %w: %q", err, text)
		}
		byMethod[line.Method] = append(byMethod[line.Method], line.Stats)
	}
	for _, method := range []string{"level", "eager"} {
		if want := map[string]int{"level": p.level, "eager": p.eager}[method]; len(byMethod[method]) != want {
			return runs, fmt.Errorf("%d freezes by %s, want %d", len(byMethod[method]), method, want)
		}
		run := base.median(method, byMethod[method])
		trial.Step("%s", run)
		runs = append(runs, run)
	}
	return runs, nil
}
