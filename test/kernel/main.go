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
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"livedump.io/test/guest"
)

// limit is how long everything may take: a guest without hardware support, on
// two busy processors, is some thirty times slower than the machine.
const limit = 45 * time.Minute

func main() {
	o := options{}
	flag.StringVar(&o.series, "kernel", "6.1", "kernel `series`")
	flag.IntVar(&o.memoryMiB, "ram", 2048, "memory of the guest in `MiB`")
	flag.IntVar(&o.cpus, "cpus", 2, "virtual CPUs of the guest")
	flag.StringVar(&o.cpu, "cpu", "max", "QEMU's CPU `model`")
	flag.StringVar(&o.out, "out", "out/kernel", "`directory` for the results")
	flag.StringVar(&o.bin, "bin", "bin", "`directory` with livedump-agent, workload, kmod/ and kmod-test/")
	flag.BoolVar(&o.short, "short", false, "only one dump and its judges")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
	defer cancel()
	start := time.Now()
	if err := run(ctx, o); err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = errors.Join(err, cause)
		}
		fmt.Fprintf(os.Stderr, "\n%v\n", err)
		fmt.Printf("test-kernel: FAILED on kernel %s (%d MiB, %d CPUs) after %v\n",
			o.series, o.memoryMiB, o.cpus, time.Since(start).Round(time.Second))
		os.Exit(1)
	}
	fmt.Printf("test-kernel: passed on kernel %s (%d MiB, %d CPUs) in %v\n",
		o.series, o.memoryMiB, o.cpus, time.Since(start).Round(time.Second))
}

// options are the command's flags.
type options struct {
	series, cpu, out, bin string
	memoryMiB, cpus       int
	short                 bool
}

// step tells what begins. Work here is long; silence would look like a hang.
func step(format string, args ...any) {
	fmt.Printf("%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

func run(ctx context.Context, o options) (err error) {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	kernel, err := guest.FetchKernel(ctx, o.series)
	if err != nil {
		return err
	}
	b, err := newBench(ctx, o, kernel)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.scenarios(ctx); err != nil {
		return errors.Join(err, b.report.write(o.out), b.guest.CheckConsole())
	}
	if err := b.close(); err != nil {
		return err
	}
	if err := b.judge(ctx); err != nil {
		b.report.Readers = err.Error()
		return errors.Join(err, b.report.write(o.out))
	}
	b.report.Readers = "passed"
	return b.report.write(o.out)
}
