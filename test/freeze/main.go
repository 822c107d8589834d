// SPDX-License-Identifier: Apache-2.0

// Command freeze measures the stop in guests of several sizes, by level and by the
// eager method of earlier systems in the same boot, idle and loaded, with many tasks and
// without. `make bench-freeze` runs it.
//
// It writes the medians as JSON and as a plot, and exits with 1 if the stop is not
// what it must be: at 8 GiB at most a fiftieth of the eager one, from 2 to 16 GiB at most
// half as long again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"livedump.io/test/trial"
)

// limit is how long everything may take on two busy processors without KVM.
const limit = 90 * time.Minute

type options struct {
	series, bin, out, plot string
	short                  bool
}

func main() {
	o := options{}
	flag.StringVar(&o.series, "kernel", "6.1", "kernel `series`")
	flag.StringVar(&o.bin, "bin", "bin", "`directory` with freezes, workload and kmod-instrumented/")
	flag.StringVar(&o.out, "out", "out/bench-freeze.json", "`file` for the results")
	flag.StringVar(&o.plot, "plot", "out/bench-freeze.svg", "`file` for the plot")
	flag.BoolVar(&o.short, "short", false, "2 CPUs, idle, without many tasks; 2, 8 and 16 GiB")
	flag.Parse()
	trial.Run("bench-freeze", limit, func(ctx context.Context) (string, error) {
		return fmt.Sprintf("(%s, %s)", o.out, o.plot), run(ctx, o)
	})
}

func run(ctx context.Context, o options) error {
	results := Results{Machine: describeMachine()}
	boots := fullBoots
	if o.short {
		boots = shortBoots
	}
	for _, b := range boots {
		runs, err := b.measure(ctx, o)
		results.Runs = append(results.Runs, runs...)
		if err != nil {
			return errors.Join(fmt.Errorf("%d MiB, %d CPUs: %w", b.memoryMiB, b.cpus, err), trial.WriteJSON(o.out, results))
		}
	}
	if err := trial.WriteJSON(o.out, results); err != nil {
		return err
	}
	if err := os.WriteFile(o.plot, plot(results), 0o644); err != nil {
		return err
	}
	fmt.Print(results.table())
	return results.check()
}
