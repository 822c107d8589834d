// SPDX-License-Identifier: Apache-2.0

// workload keeps a kernel busy while a dump runs and checks, all the time, that
// the kernel gives back what it was given: page cache (files), slab (inodes,
// dentries, sockets), pipe and socket buffers that hold data across a freeze,
// anonymous memory and processes.
//
// It prints one status line per interval:
//
//	workload: ok cache=12 slab=40 buffers=9 memory=20 process=31 parked=1234
//
// where each number counts rounds that were checked. The first failed check
// prints "workload: FAILED <kind>: <why>" and ends the program with status 1.
// SIGTERM or the end of -for prints "workload: passed ..." and ends it with 0.
//
// One thread, named ld-parked, sleeps in read(2) of an empty pipe for as long as
// the program lives, so that a reader of the dump can look for a task whose
// kernel stack is known beforehand. Its thread id is the value of parked=.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"livedump.io/test/churn"
)

func main() {
	if len(os.Args) == 4 && os.Args[1] == churn.ChildVerb {
		os.Exit(churn.Child(os.Args[2], os.Args[3]))
	}
	dir := flag.String("dir", os.TempDir(), "directory for the files that are written and checked")
	pause := flag.Duration("pause", 20*time.Millisecond, "rest between two rounds of one kind; bounds the load")
	interval := flag.Duration("interval", time.Second, "time between two status lines")
	length := flag.Duration("for", 0, "end by itself after this long (0: run until SIGTERM)")
	fileBytes := flag.Int("file-bytes", 2<<20, "size of each file of the page cache churn")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "workload: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if *length > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *length)
		defer cancel()
	}
	os.Exit(run(ctx, *dir, *pause, *interval, *fileBytes))
}

func run(ctx context.Context, parent string, pause, interval time.Duration, fileBytes int) int {
	dir, err := os.MkdirTemp(parent, "workload-")
	if err != nil {
		fmt.Fprintf(os.Stderr, "workload: %v\n", err)
		return 2
	}
	defer os.RemoveAll(dir)
	parked, err := park()
	if err != nil {
		fmt.Fprintf(os.Stderr, "workload: park a thread: %v\n", err)
		return 2
	}

	churns := []*churn.Churn{
		churn.NewCache(dir, fileBytes),
		churn.NewSlab(dir),
		churn.NewBuffers(),
		churn.NewMemory(),
		churn.NewProcess(),
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var failure atomic.Pointer[string]
	var all sync.WaitGroup
	for _, c := range churns {
		all.Go(func() {
			for n := int64(0); ctx.Err() == nil; n++ {
				if err := c.Round(ctx, n); err != nil {
					// What a cancelled round says is about the end of the program, not about the kernel.
					if ctx.Err() == nil || !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
						why := fmt.Sprintf("%s: round %d: %v", c.Name, n, err)
						failure.CompareAndSwap(nil, &why)
					}
					cancel()
					return
				}
				c.Rounds.Add(1)
				rest(ctx, pause)
			}
		})
	}

	status := func(word string) {
		var line strings.Builder
		fmt.Fprintf(&line, "workload: %s", word)
		for _, c := range churns {
			fmt.Fprintf(&line, " %s=%d", c.Name, c.Rounds.Load())
		}
		fmt.Printf("%s parked=%d\n", line.String(), parked)
	}
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	status("ok")
	for ctx.Err() == nil {
		select {
		case <-ticks.C:
			if failure.Load() == nil {
				status("ok")
			}
		case <-ctx.Done():
		}
	}
	all.Wait()
	if why := failure.Load(); why != nil {
		fmt.Printf("workload: FAILED %s\n", *why)
		return 1
	}
	status("passed")
	return 0
}

func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
