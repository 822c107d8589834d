// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	livedumpv1alpha1 "livedump.io/api/v1alpha1"
	"livedump.io/test/judge"
)

// parkedName is the workload's thread that sleeps at a known place; see test/workload.
const parkedName = "ld-parked"

const (
	// observePause bounds the load of looking at all tasks again and again.
	observePause = 3 * time.Second
	// observeSlack is how exactly the time of the freeze is known on the clock of
	// uptimes: /proc/stat gives the boot's time in whole seconds.
	observeSlack = 1.5
	// taskChurn is how many tasks come and go between two observations: processes
	// of the workload, health checks, the runtime's helpers.
	taskChurn = 30
)

// observer asks the node again and again what tasks it has, because nobody
// knows beforehand when the freeze will be.
type observer struct {
	b      *Bench
	cancel context.CancelFunc
	done   chan struct{}

	mu   sync.Mutex
	seen []*judge.Observation
	err  error
}

// observe begins to observe the node and goes on until memory is frozen for a
// LiveDump: what is seen after that is of no use, and looking is not free.
func (b *Bench) observe(ctx context.Context, name string) *observer {
	ctx, cancel := context.WithCancel(ctx)
	o := &observer{b: b, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		for {
			// A LiveDump that is not there yet is not frozen either.
			if dump, err := b.Get(ctx, name); err == nil && dump.Status.Progress.PagesTotal > 0 {
				return
			}
			observation, err := judge.Observe(ctx, b.Guest)
			if ctx.Err() != nil {
				return
			}
			o.mu.Lock()
			if err != nil {
				o.err = err
			} else {
				o.seen = append(o.seen, observation)
			}
			o.mu.Unlock()
			select {
			case <-ctx.Done():
				return
			case <-time.After(observePause):
			}
		}
	}()
	return o
}

// stop ends the observer. It may be called twice.
func (o *observer) stop() {
	o.cancel()
	<-o.done
}

// around stops the observer and returns what the node said of itself just
// before the freeze of a dump and what it says now.
func (o *observer) around(ctx context.Context, dump *livedumpv1alpha1.LiveDump) (before, after *judge.Observation, err error) {
	o.stop()
	if o.err != nil {
		return nil, nil, o.err
	}
	if dump.Status.Result.FrozenAt == nil {
		return nil, nil, fmt.Errorf("LiveDump %s does not say when memory was frozen", dump.Name)
	}
	booted, err := o.b.bootTime(ctx)
	if err != nil {
		return nil, nil, err
	}
	frozen := dump.Status.Result.FrozenAt.Sub(booted).Seconds()
	// An observation was over when the next one began.
	for i := 0; i+1 < len(o.seen); i++ {
		if o.seen[i+1].UptimeSeconds < frozen-observeSlack {
			before = o.seen[i]
		}
	}
	if before == nil {
		return nil, nil, fmt.Errorf("no observation of the node before the freeze at %.1f s after its boot", frozen)
	}
	after, err = judge.Observe(ctx, o.b.Guest)
	return before, after, err
}

// bootTime is when the node booted, by its own clock, to the second.
func (b *Bench) bootTime(ctx context.Context) (time.Time, error) {
	stat, err := b.Guest.ReadFile(ctx, "/proc/stat")
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(stat)) {
		if value, ok := strings.CutPrefix(line, "btime "); ok {
			seconds, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return time.Unix(seconds, 0), err
		}
	}
	return time.Time{}, errors.New("the node's /proc/stat has no btime")
}

// judge has crash and drgn read a dump, of one file or of several parts, and compares what they see with what the
// node reported.
func (b *Bench) judge(ctx context.Context, files []string, before, after *judge.Observation) error {
	parked := 0
	for tid, task := range before.Tasks {
		if task.Comm == parkedName {
			parked = tid
		}
	}
	if parked == 0 {
		return fmt.Errorf("the node has no task %s: the workload did not park it", parkedName)
	}
	in := judge.Input{
		Dump: files[0], Kernel: b.kernel, OutDir: b.Options.Out, Progress: b.Step,
		Expect: judge.Expectation{
			Before: before, After: after, Churn: taskChurn,
			ParkedTID: parked, ParkedFrames: judge.ParkedFrames,
			Modules: []string{"livedump"},
		},
	}
	if len(files) > 1 {
		in.Parts = files
	}
	if err := judge.Judge(ctx, in); err != nil {
		return err
	}
	b.Step("crash and drgn agree with what the node said of itself: %d tasks, %s asleep in %s, %d CPUs",
		len(before.Tasks), parkedName, judge.ParkedFrames[0], before.CPUs)
	return nil
}
