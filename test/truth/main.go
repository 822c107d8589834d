// SPDX-License-Identifier: Apache-2.0

// Command truth compares dumps with the ground truth: the module built with the
// tests' instruments (LIVEDUMP_TEST=y) takes a hash of every page inside the stop,
// and this program compares what the finished dump holds with it, page by page,
// while the guest is under load. `make test-truth` runs it.
//
// It writes OUT/truth.json. It fails on a page that differs though nothing said
// that it might, on a lost page, if page tables are not as they were, and if the
// guest's console has trouble.
//
// With -shipped the module without instruments makes one more dump at the end, which crash and
// drgn judge.
//
// With -bite a range of mappings is left uncovered on purpose; then it is the
// absence of mismatches that is the failure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"livedump.io/test/guest"
	"livedump.io/test/trial"
)

const limit = 90 * time.Minute

// options are the command's flags.
type options struct {
	trial.Guest
	cpu     string
	nodes   int
	shipped bool
	loads   []string
	bites   []string
	dumps   int
	level   uint
	keepMiB int
	words   []string
	kill    string
	iommu   bool
}

// names splits a list; empty elements are none.
func names(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

func main() {
	o := options{}
	o.Guest.Flags(2048, 2, "out/truth", "livedump-agent, load, kmod-instrumented/ and kmod-test/")
	flag.IntVar(&o.nodes, "nodes", 0, "NUMA nodes of the guest; 0: no NUMA")
	flag.StringVar(&o.cpu, "cpu", "max", "QEMU's CPU `model`")
	loads := flag.String("load", "fork,slab", "`names` of loads, separated by commas (several at once: a+b), hidden, code, ring, idle, or all")
	bites := flag.String("bite", "", "`ranges` to leave uncovered, one dump each: vmalloc, modules, image, vmemmap; inflight, outside: look for none of these; marks: leave them in page tables")
	flag.IntVar(&o.dumps, "dumps", 1, "dumps under each load")
	flag.UintVar(&o.level, "dump-level", 31, "dump level, makedumpfile's `bits`")
	flag.IntVar(&o.keepMiB, "keep", 256, "`MiB` of the guest's memory for content of the stop, to show what differs")
	flag.BoolVar(&o.shipped, "shipped", false, "dump with the module as it is shipped too, and have the readers judge that dump")
	flag.StringVar(&o.kill, "kill", "", "`point` at which the process that makes a dump dies, for another to go on (Acknowledged, Thawed, ...)")
	words := flag.String("append", "", "`words` for the guest's kernel command line")
	flag.BoolVar(&o.iommu, "iommu", false, "give the guest an IOMMU that translates for its network devices")
	flag.Parse()
	o.loads, o.bites, o.words = names(*loads), names(*bites), strings.Fields(*words)

	trial.Run("test-truth", limit, func(ctx context.Context) (string, error) {
		report, err := run(ctx, o)
		if report != nil {
			fmt.Println(report.summary())
		}
		return "", err
	})
}

func run(ctx context.Context, o options) (r *Report, err error) {
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return nil, err
	}
	kernel, err := guest.FetchKernel(ctx, o.Series)
	if err != nil {
		return nil, err
	}
	b, err := newBench(ctx, o, kernel)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	r = &Report{Kernel: kernel.Release, MemoryMiB: o.MemoryMiB, CPUs: o.CPUs, KVM: guest.UsesKVM(), DumpLevel: o.level}
	// Now: loads put code into memory, and that breaks up leaves of the direct map for good.
	if r.Machine, err = b.guest.Machine(ctx); err != nil {
		return nil, err
	}
	err = b.all(ctx, r)
	if o.shipped {
		err = errors.Join(err, b.shippedToo(ctx, r, kernel))
	}
	err = errors.Join(err, b.guest.CheckConsole())
	r.total()
	return r, errors.Join(r.verdict(), err, trial.WriteJSON(filepath.Join(filepath.Dir(o.Out), "truth.json"), r))
}
