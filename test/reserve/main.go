// SPDX-License-Identifier: Apache-2.0

// Command reserve tests in a guest what the module does with its reserve: by node and CPU, the part
// for the writer, both modes when it is used up, its limits, its size by a dry run; and what the
// module shows of itself in sysfs and trace events; and in a second guest that no fault loses more than a table's
// worth of pages. `make test-reserve` runs it.
//
// With -bench it measures what a fault costs, by kind, and writes OUT/bench-faults.json.
// `make bench-faults` does that.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"livedump.io/test/guest"
	"livedump.io/test/guestsession"
	"livedump.io/test/trial"
)

// limit is how long everything may take on a machine without hardware support for guests.
const limit = 20 * time.Minute

// Paths in the guest.
const (
	guestModule       = "/opt/livedump.ko"
	guestInstrumented = "/opt/instrumented/livedump.ko"
	guestPGTables     = "/opt/livedump_pgtables.ko"
)

type options struct {
	trial.Guest
	bench bool
}

func main() {
	o := options{}
	o.Guest.Flags(2048, 2, "out", "kmod/, kmod-instrumented/, kmod-test/ and driver")
	flag.BoolVar(&o.bench, "bench", false, "measure the cost of faults")
	flag.Parse()
	name := "test-reserve"
	if o.bench {
		name = "bench-faults"
	}

	trial.Run(name, limit, func(ctx context.Context) (string, error) {
		return "on kernel " + o.Series, run(ctx, o, name)
	})
}

func run(ctx context.Context, o options, name string) error {
	kernel, err := guest.FetchKernel(ctx, o.Series)
	if err != nil {
		return err
	}
	dir := filepath.Join(o.Out, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	module := func(kind, name string) string { return filepath.Join(o.Bin, kind, kernel.Release, name) }
	config := guest.Config{
		Kernel: kernel, Dir: dir, MemoryMiB: o.MemoryMiB, CPUs: o.CPUs,
		Files: []guest.File{
			{Path: guestModule, Source: module("kmod", "livedump.ko")},
			{Path: guestInstrumented, Source: module("kmod-instrumented", "livedump.ko")},
			{Path: guestPGTables, Source: module("kmod-test", "livedump_pgtables.ko")},
			{Path: guestsession.Program, Source: filepath.Join(o.Bin, "driver")},
		},
	}
	if o.bench {
		return inGuest(ctx, o, config, (*bench).measure)
	}
	huge := config
	huge.Dir, huge.MemoryMiB = filepath.Join(dir, "huge"), hugeMiB
	config.ExtraArgs = twoNodes(o)
	return errors.Join(inGuest(ctx, o, config, (*bench).test), inGuest(ctx, o, huge, (*bench).hugeLeaves))
}

// inGuest boots a guest for a piece of work.
func inGuest(ctx context.Context, o options, config guest.Config, work func(*bench, context.Context) error) (err error) {
	trial.Step("boot kernel %s with %d MiB and %d CPUs", config.Kernel.Release, config.MemoryMiB, config.CPUs)
	g, err := guest.Start(ctx, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.CheckConsole(), g.Stop()) }()
	return work(&bench{g: g, o: o, kernel: config.Kernel}, ctx)
}

// twoNodes shares memory and CPUs between two NUMA nodes.
func twoNodes(o options) []string {
	// A socket each, or the kernel doubts the machine. QEMU adds this to its other -smp.
	args := []string{"-smp", "sockets=2"}
	for node := range 2 {
		args = append(args,
			"-object", fmt.Sprintf("memory-backend-ram,id=node%d,size=%dM", node, o.MemoryMiB/2),
			"-numa", fmt.Sprintf("node,nodeid=%d,memdev=node%d,cpus=%d-%d", node, node,
				node*o.CPUs/2, (node+1)*o.CPUs/2-1))
	}
	return args
}

// bench is the guest, and what is asked of it.
type bench struct {
	g      *guest.Guest
	o      options
	kernel *guest.Kernel
}
