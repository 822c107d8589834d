// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"livedump.io/test/trial"
	"strconv"
	"strings"
	"time"
)

// Sessions at both ends of the row whose medians are compared: single values
// swing with the load. The first sessions of a boot fill the kernel's caches once (some 2 MiB, measured
// in a row of 40: 420,236 KiB available in the median of the first ten, 417,988 of the second, 418,136 of
// the last), so the beginning of the row is what follows them.
const (
	ends     = 10
	settling = 10
)

// rowLoad goes on beside the row. It holds the same memory at any time, so that little hides what
// a session loses.
var rowLoad = []string{"-pause", "50ms", "slab,fork"}

// growth is what of /proc/meminfo may not grow, and by how much it may all the same, in KiB. In a row of
// 100 sessions the bounds show a loss of five pages a session, of three in slab, of one in vmalloc. The
// load's processes and the kernel's lists of free pages for each CPU make the values swing by less.
var growth = []struct {
	name string
	sign int64 // 1: growing is bad; -1: shrinking is
	kib  int64
}{
	{"MemAvailable", -1, 2 << 10},
	{"Slab", 1, 1 << 10},
	{"VmallocUsed", 1, 256},
	{"Percpu", 1, 64},
}

// slower is how much longer the last sessions may take than the first: the machine
// that runs the guest has other work too.
const slower = 2

type rowResult struct {
	Sessions int `json:"sessions"`
	// Medians of the first sessions, once settled, and of the last: KiB of /proc/meminfo, and time from PREPARE to close.
	FirstKiB map[string]int64 `json:"first_kib"`
	LastKiB  map[string]int64 `json:"last_kib"`
	FirstMS  int64            `json:"first_ms"`
	LastMS   int64            `json:"last_ms"`
	// DirectMap is the same after every session.
	DirectMap string `json:"direct_map"`
}

// meminfo is /proc/meminfo in KiB.
type meminfo map[string]int64

func (b *bench) meminfo(ctx context.Context) (meminfo, error) {
	text, err := b.ReadFile(ctx, "/proc/meminfo")
	if err != nil {
		return nil, err
	}
	m := meminfo{}
	for _, line := range strings.Split(string(text), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		if m[strings.TrimSuffix(f[0], ":")], err = strconv.ParseInt(f[1], 10, 64); err != nil {
			return nil, fmt.Errorf("/proc/meminfo: %q: %w", line, err)
		}
	}
	return m, nil
}

// directMap is the size of the direct map by the size of its entries.
func (m meminfo) directMap() string {
	var words []string
	for _, name := range []string{"DirectMap4k", "DirectMap2M", "DirectMap1G"} {
		if kib, ok := m[name]; ok {
			words = append(words, fmt.Sprintf("%s=%d", name, kib))
		}
	}
	return strings.Join(words, " ")
}

// inARow holds whole sessions, one after the other.
func (b *bench) inARow(ctx context.Context, sessions int) (*rowResult, error) {
	trial.Step("%d sessions in a row", sessions)
	if _, err := b.Run(ctx, "insmod", guestModule); err != nil {
		return nil, err
	}
	before, err := b.state(ctx)
	if err != nil {
		return nil, err
	}
	values := map[string][]int64{}
	var took []time.Duration
	for n := range sessions {
		begin := time.Now()
		if err := b.session(ctx, "prepare", "freeze", "drain", "thaw", "close"); err != nil {
			return nil, fmt.Errorf("session %d of the row: %w", n+1, err)
		}
		took = append(took, time.Since(begin))
		info, err := b.meminfo(ctx)
		if err != nil {
			return nil, err
		}
		if is := info.directMap(); is != before.directMap {
			return nil, fmt.Errorf("after session %d of the row: /proc/meminfo: was %s; is %s", n+1, before.directMap, is)
		}
		for _, g := range growth {
			kib, ok := info[g.name]
			if !ok {
				return nil, fmt.Errorf("/proc/meminfo has no %s", g.name)
			}
			values[g.name] = append(values[g.name], kib)
		}
		if n%10 == 9 {
			trial.Step("%d sessions, the last in %.1f s, %d KiB available", n+1, took[n].Seconds(), median(values["MemAvailable"][n-9:]))
		}
	}
	after, err := b.state(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := before.compare(after); err != nil {
		return nil, err
	}
	if _, err := b.Run(ctx, "rmmod", "livedump"); err != nil {
		return nil, err
	}
	r, err := judgeRow(values, took)
	r.DirectMap = before.directMap
	return r, err
}

// judgeRow compares both ends of a row.
func judgeRow(values map[string][]int64, took []time.Duration) (*rowResult, error) {
	settled := min(settling, len(took)/3)
	took = took[settled:]
	n := min(ends, len(took)/2)
	r := &rowResult{Sessions: settled + len(took), FirstKiB: map[string]int64{}, LastKiB: map[string]int64{}}
	if n == 0 {
		return r, fmt.Errorf("%d sessions are no row", r.Sessions)
	}
	var errs []error
	for _, g := range growth {
		v := values[g.name][settled:]
		first, last := median(v[:n]), median(v[len(v)-n:])
		r.FirstKiB[g.name], r.LastKiB[g.name] = first, last
		if grown := g.sign * (last - first); grown > g.kib {
			errs = append(errs, fmt.Errorf("%s: %d KiB at the beginning of %d sessions, %d KiB at their end: more than %d KiB of difference",
				g.name, first, r.Sessions, last, g.kib))
		}
	}
	first, last := median(took[:n]), median(took[len(took)-n:])
	r.FirstMS, r.LastMS = first.Milliseconds(), last.Milliseconds()
	if last > slower*first {
		errs = append(errs, fmt.Errorf("a session took %v at the beginning of %d, and %v at their end", first, r.Sessions, last))
	}
	return r, errors.Join(errs...)
}
