// SPDX-License-Identifier: Apache-2.0

// load puts one or more kinds of load on the kernel of a test guest, and checks
// what it gets back wherever there is something to check:
//
//	load list
//	load [flags] NAME[,NAME...]
//
// It prints "load: running NAME..." when each load has finished its first round,
// and at the end, after --seconds or on SIGTERM, what was done:
//
//	load: ok alloc=1034 bpf=211
//
// with "(vmalloc without extended attributes)" after a load that leaves out what the kernel lacks.
//
// A load that cannot run on this kernel, or saw wrong data, prints
// "load: FAILED <name>: <why>", ends all others and makes the exit status 1.
// It wants root, a guest of its own, and the files of package provide. What it
// changed of the system's settings is put back at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"livedump.io/test/churn"
	"livedump.io/test/load/provide"
)

// loads are all there are, in the order of "load list".
var loads = []load{
	allocLoad, slabLoad, vmallocLoad, forkLoad, ext4Load, xfsLoad, networkLoad,
	moduleLoad, bpfLoad, hotplugLoad, compactLoad, thpLoad, hugetlbLoad, hugetlbOptimizedLoad, limitLoad,
}

func init() {
	for _, n := range provide.NICs {
		loads = append(loads, nicLoad(n))
	}
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == churn.ChildVerb {
		os.Exit(churn.Child(os.Args[2], os.Args[3]))
	}
	if len(os.Args) == 3 && os.Args[1] == limitVerb {
		os.Exit(limited(os.Args[2]))
	}
	e := &env{disks: map[string]string{}}
	flag.Usage = func() {
		fmt.Fprint(os.Stderr, "usage: load list\n       load [flags] NAME[,NAME...]\n\nFlags:\n")
		flag.PrintDefaults()
	}
	seconds := flag.Float64("seconds", 0, "end after so many `seconds` (0: on SIGTERM)")
	flag.DurationVar(&e.pause, "pause", 0, "rest between two rounds of a load; bounds the load")
	flag.StringVar(&e.dir, "dir", os.TempDir(), "directory for files")
	flag.Func("disk", "`NAME=DEVICE`: the file system load NAME uses this disk, overwriting it, and not a loop device", func(s string) error {
		name, device, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("want NAME=DEVICE")
		}
		e.disks[name] = device
		return nil
	})
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if flag.Arg(0) == "list" {
		for _, l := range loads {
			fmt.Printf("%-10s  %s\n", l.name, l.about)
		}
		return
	}
	chosen, err := choose(flag.Arg(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(2)
	}
	// Before 5.11, maps and programs of BPF count as locked memory.
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); err != nil {
		fmt.Fprintln(os.Stderr, "load: lift the limit of locked memory:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if *seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*seconds*float64(time.Second)))
		defer cancel()
	}
	line, err := run(ctx, e, chosen)
	if err != nil {
		fmt.Println("load: FAILED", err)
		os.Exit(1)
	}
	fmt.Println("load: ok", line)
}

func choose(names string) ([]load, error) {
	var chosen []load
	for _, name := range strings.Split(names, ",") {
		i := slices.IndexFunc(loads, func(l load) bool { return l.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no load %q; \"load list\" names them", name)
		}
		chosen = append(chosen, loads[i])
	}
	return chosen, nil
}

// run runs the loads until the context ends or one fails.
func run(ctx context.Context, e *env, chosen []load) (line string, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer func() { err = errors.Join(err, e.close()) }()

	works := make([]*work, len(chosen))
	for i, l := range chosen {
		w, err := l.start(e)
		if err != nil {
			return "", fmt.Errorf("%s: cannot run here: %w", l.name, err)
		}
		works[i] = w
	}
	operations := make([]atomic.Int64, len(chosen))
	var all, warm sync.WaitGroup
	for i, w := range works {
		for worker := range max(1, w.workers) {
			warm.Add(1)
			all.Go(func() {
				warmed := sync.OnceFunc(warm.Done)
				defer warmed()
				// Workers of one load count their rounds apart.
				for n := int64(worker) << 32; ctx.Err() == nil; n++ {
					did, err := w.round(ctx, n)
					operations[i].Add(int64(did))
					if err != nil {
						// What a cancelled round says is about the end of the program.
						if ctx.Err() == nil {
							cancel(fmt.Errorf("%s: round %d: %w", chosen[i].name, n, err))
						}
						return
					}
					warmed()
					rest(ctx, e.pause)
				}
			})
		}
	}
	running := make(chan struct{})
	go func() {
		warm.Wait()
		close(running)
	}()
	select {
	case <-running:
		if ctx.Err() == nil {
			fmt.Print("load: running")
			for _, l := range chosen {
				fmt.Print(" ", l.name)
			}
			fmt.Println()
		}
	case <-ctx.Done():
	}
	all.Wait()
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return "", cause
	}
	var words []string
	for i, l := range chosen {
		if operations[i].Load() == 0 {
			err = errors.Join(err, fmt.Errorf("%s: did nothing in the time it had", l.name))
		}
		words = append(words, fmt.Sprintf("%s=%d", l.name, operations[i].Load()))
		if without := works[i].without; without != "" {
			words = append(words, fmt.Sprintf("(%s without %s)", l.name, without))
		}
	}
	return strings.Join(words, " "), err
}

func rest(ctx context.Context, d time.Duration) {
	if d == 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
