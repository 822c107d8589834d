// SPDX-License-Identifier: Apache-2.0

// Command pivot takes dumps of a guest in whose kernel counters are bumped in a
// causal order (kmod/test/pivot.c), and checks that no dump has an effect without
// its cause. `make test-pivot` runs it.
//
// First it reads the same counters without a freeze, over and over, until the
// check finds fault with them: a check that cannot fail would prove nothing. With
// -spoil the instrumented module leaves a range of the kernel's addresses
// unprotected, and the dumps must show that.
//
// It writes OUT/pivot.json and OUT/pivot/guest.log.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"livedump.io/test/guest"
	"livedump.io/test/guestdump"
	"livedump.io/test/load/provide"
	"livedump.io/test/trial"
)

// limit is how long everything may take on two busy processors without KVM.
const limit = time.Hour

const (
	pivotModule = "/opt/livedump_pivot.ko"
	pivotDir    = "/sys/kernel/debug/livedump_pivot/"
	device      = "/dev/vda"
	loads       = "slab,fork,bpf"
	loadPause   = "200ms"
	// Each of these may take long on a busy machine; none of them does usually.
	loadWait  = 3 * time.Minute
	biteWait  = 2 * time.Minute
	dumpWait  = 5 * time.Minute
	diskExtra = 128 // MiB more than memory
)

type options struct {
	trial.Guest
	dumps int
	spoil string
}

func main() {
	o := options{}
	o.Guest.Flags(512, 2, "out", "livedump-agent, load, kmod/ and kmod-test/")
	flag.IntVar(&o.dumps, "dumps", 50, "dumps to take")
	flag.StringVar(&o.spoil, "spoil", "", "`range` that the instrumented module leaves unprotected: vmalloc, modules or image; violations are then expected")
	flag.Parse()

	trial.Run("test-pivot", limit, func(ctx context.Context) (string, error) {
		r := &result{RAMMiB: o.MemoryMiB, CPUs: o.CPUs, Load: loads, Spoiled: o.spoil}
		err := run(ctx, o, r)
		if o.spoil != "" {
			return fmt.Sprintf("on kernel %s: %d violations in %d dumps with %s left unprotected,", o.Series, len(r.Violations), r.Dumps, o.spoil),
				errors.Join(err, trial.WriteJSON(filepath.Join(o.Out, "pivot-spoiled.json"), r))
		}
		return fmt.Sprintf("on kernel %s: %d dumps, %d violations, %d of %d readings of the running memory with one,",
			o.Series, r.Dumps, len(r.Violations), r.LiveViolations, r.LiveReadings), errors.Join(err, trial.WriteJSON(filepath.Join(o.Out, "pivot.json"), r))
	})
}

// result is what pivot.json holds.
type result struct {
	Kernel string `json:"kernel"`
	RAMMiB int    `json:"ram_mib"`
	CPUs   int    `json:"cpus"`
	Load   string `json:"load"`
	// Spoiled is what was left unprotected on purpose.
	Spoiled string `json:"spoiled,omitempty"`
	Dumps   int    `json:"dumps"`
	// Chains by number: their cells from cause to effect, and how often the stop came when the cells
	// were not all equal.
	Chains []chainResult `json:"chains"`
	// Violations of the dumps.
	Violations []string `json:"violations"`
	// LiveReadings are readings without a freeze; LiveViolations of them were not of one instant.
	LiveReadings     int    `json:"live_readings"`
	LiveViolations   int    `json:"live_violations"`
	LiveExample      string `json:"live_example"`
	PagesUncovered   uint64 `json:"pages_uncovered_max"`
	FaultCopies      uint64 `json:"fault_copies"`
	MedianDumpMillis int64  `json:"median_dump_ms"`
}

type chainResult struct {
	Writers string   `json:"writers"`
	Cells   []string `json:"cells"`
	Unequal int      `json:"dumps_unequal"`
}

func run(ctx context.Context, o options, r *result) (err error) {
	kernel, err := guest.FetchKernel(ctx, o.Series)
	if err != nil {
		return err
	}
	r.Kernel = kernel.Release
	dir := filepath.Join(o.Out, "pivot")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	image := filepath.Join(dir, "disk.img")
	if err := guest.CreateImage(image, o.MemoryMiB+diskExtra); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(image)) }()
	files, err := provide.Files(ctx, kernel, filepath.Join(o.Bin, "load"))
	if err != nil {
		return err
	}
	modules, insert := "kmod", []string{"insmod", guestdump.Module}
	if o.spoil != "" {
		modules, insert = "kmod-instrumented", append(insert, "leave_uncovered="+o.spoil)
	}
	files = append(files, guestdump.Files(filepath.Join(o.Bin, modules, kernel.Release, "livedump.ko"), filepath.Join(o.Bin, "livedump-agent"))...)
	files = append(files, guest.File{Path: pivotModule, Source: filepath.Join(o.Bin, "kmod-test", kernel.Release, "livedump_pivot.ko")})

	trial.Step("boot kernel %s with %d MiB and %d CPUs", kernel.Release, o.MemoryMiB, o.CPUs)
	g, err := guest.Start(ctx, guest.Config{
		Kernel: kernel, Dir: dir, Console: filepath.Join(dir, "guest.log"), MemoryMiB: o.MemoryMiB, CPUs: o.CPUs,
		Disks: []guest.Disk{{Image: image, Serial: "livedump-target"}}, Files: files,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Stop()) }()
	// Whatever else went wrong, the console may say why.
	defer func() { err = errors.Join(err, g.CheckConsole()) }()

	for _, argv := range [][]string{{"insmod", pivotModule}, insert} {
		if _, err := g.Run(ctx, argv...); err != nil {
			return err
		}
	}
	text, err := g.ReadFile(ctx, pivotDir+"cells")
	if err != nil {
		return err
	}
	chains, err := parseCells(string(text))
	if err != nil {
		return err
	}
	for _, c := range chains {
		cr := chainResult{Writers: "relay"}
		if c.solo {
			cr.Writers = "solo"
		}
		for _, cell := range c.cells {
			cr.Cells = append(cr.Cells, cell.String())
		}
		r.Chains = append(r.Chains, cr)
	}
	trial.Step("read the counters without a freeze, which must show what is looked for")
	if err := bite(ctx, g, chains, r); err != nil {
		return err
	}
	trial.Step("%d of %d readings are not of one instant, such as %s", r.LiveViolations, r.LiveReadings, r.LiveExample)

	endLoad, err := startLoad(ctx, g)
	if err != nil {
		return err
	}
	err = dumps(ctx, g, o, image, chains, r)
	if loadErr := endLoad(); loadErr != nil {
		return errors.Join(err, loadErr)
	}
	if err != nil {
		return err
	}
	for _, module := range []string{"livedump", "livedump_pivot"} {
		if _, err := g.Run(ctx, "rmmod", module); err != nil {
			return err
		}
	}
	return nil
}

// bite reads running memory until the check has found fault with it often enough
// to believe that it can.
func bite(ctx context.Context, g *guest.Guest, chains []chain, r *result) error {
	const enough = 5
	ctx, cancel := context.WithTimeout(ctx, biteWait)
	defer cancel()
	for r.LiveViolations < enough {
		text, err := g.ReadFile(ctx, pivotDir+"live")
		if err != nil {
			return fmt.Errorf("after %d readings without a freeze, of which %d were not of one instant: %w", r.LiveReadings, r.LiveViolations, err)
		}
		values, err := parseLive(string(text), chains)
		if err != nil {
			return err
		}
		r.LiveReadings++
		if wrong := checkAll(chains, values); len(wrong) > 0 {
			r.LiveViolations++
			r.LiveExample = wrong[0]
		}
	}
	return nil
}

// startLoad keeps the guest a little busy; the function that it returns ends that.
func startLoad(ctx context.Context, g *guest.Guest) (end func() error, err error) {
	trial.Step("start the load %s", loads)
	starting, cancel := context.WithTimeout(ctx, loadWait)
	defer cancel()
	stop, err := provide.Start(starting, g, "-pause", loadPause, loads)
	if err != nil {
		return nil, err
	}
	return func() error {
		ctx, cancel := context.WithTimeout(ctx, loadWait)
		defer cancel()
		return stop(ctx)
	}, nil
}

func dumps(ctx context.Context, g *guest.Guest, o options, image string, chains []chain, r *result) error {
	var took []time.Duration
	last := make([]uint64, len(chains))
	for r.Dumps < o.dumps {
		begin := time.Now()
		ctx, cancel := context.WithTimeout(ctx, dumpWait)
		report, err := guestdump.Run(ctx, g, device, "--compression", "snappy")
		cancel()
		if err != nil {
			return fmt.Errorf("dump %d: %w", r.Dumps+1, err)
		}
		took = append(took, time.Since(begin))
		r.MedianDumpMillis = median(took).Milliseconds()
		r.PagesUncovered = max(r.PagesUncovered, report.UncoveredPages)
		r.FaultCopies += report.FaultCopies
		values, err := readDump(image, chains)
		if err != nil {
			return fmt.Errorf("dump %d: %w", r.Dumps+1, err)
		}
		r.Dumps++
		wrong := checkAll(chains, values)
		for _, w := range wrong {
			r.Violations = append(r.Violations, fmt.Sprintf("dump %d: %s", r.Dumps, w))
		}
		for n, v := range values {
			if v[0] <= last[n] {
				return fmt.Errorf("dump %d: chain %d stands still at %d", r.Dumps, n, v[0])
			}
			last[n] = v[0]
			if v[0] != v[len(v)-1] {
				r.Chains[n].Unequal++
			}
		}
		trial.Step("dump %d in %.1f s, frozen for %.1f s, %d copies by faults: %s", r.Dumps, time.Since(begin).Seconds(),
			float64(report.FrozenForNS)/1e9, report.FaultCopies, verdict(wrong))
	}
	if o.spoil != "" {
		if len(r.Violations) == 0 {
			return fmt.Errorf("%d dumps with %s left unprotected show nothing wrong: the check does not see it", r.Dumps, o.spoil)
		}
		return nil
	}
	if len(r.Violations) > 0 {
		return fmt.Errorf("%d violations in %d dumps:\n  %s", len(r.Violations), r.Dumps, strings.Join(r.Violations, "\n  "))
	}
	return nil
}

func verdict(wrong []string) string {
	if len(wrong) == 0 {
		return "of one instant"
	}
	return strings.Join(wrong, "; ")
}

func median(d []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[len(sorted)/2]
}
