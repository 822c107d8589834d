// SPDX-License-Identifier: Apache-2.0

// Command kernel tests the module and the agent's engine in a guest without
// Kubernetes: it makes dumps to a virtio disk while a workload runs, has the
// readers judge one, kills the dump process in the middle of another, and checks
// each time that the guest is as it was. `make test-kernel` runs it.
//
// It writes OUT/report.json, the dump, and what readers and guest said.
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
	"livedump.io/test/trial"
)

// limit is how long everything may take: a guest without hardware support, on
// two busy processors, is some thirty times slower than the machine.
const limit = 45 * time.Minute

func main() {
	o := options{}
	o.Guest.Flags(2048, 2, "out/kernel", "livedump-agent, workload, kmod/ and kmod-test/")
	flag.StringVar(&o.cpu, "cpu", "max", "QEMU's CPU `model`")
	flag.BoolVar(&o.short, "short", false, "only one dump and its judges")
	flag.Parse()

	trial.Run("test-kernel", limit, func(ctx context.Context) (string, error) {
		return fmt.Sprintf("on kernel %s (%d MiB, %d CPUs)", o.Series, o.MemoryMiB, o.CPUs), run(ctx, o)
	})
}

// options are the command's flags.
type options struct {
	trial.Guest
	cpu   string
	short bool
}

func run(ctx context.Context, o options) (err error) {
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return err
	}
	kernel, err := guest.FetchKernel(ctx, o.Series)
	if err != nil {
		return err
	}
	b, err := newBench(ctx, o, kernel)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.scenarios(ctx); err != nil {
		return errors.Join(err, trial.WriteJSON(filepath.Join(o.Out, reportFileName), b.report), b.guest.CheckConsole())
	}
	if err := b.close(); err != nil {
		return err
	}
	if err := b.judge(ctx); err != nil {
		b.report.Readers = err.Error()
		return errors.Join(err, trial.WriteJSON(filepath.Join(o.Out, reportFileName), b.report))
	}
	b.report.Readers = "passed"
	return trial.WriteJSON(filepath.Join(o.Out, reportFileName), b.report)
}
