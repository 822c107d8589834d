// SPDX-License-Identifier: Apache-2.0

// Command writebench measures the writer of dumps natively, without a guest: whole processes of livedump
// and makedumpfile, side by side on the same two CPUs, make dumps of the memory of a guest of 4 GiB that
// QEMU wrote once. It also writes the dump of a made-up large node, to see how much memory that takes.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"livedump.io/test/guest"
)

type options struct {
	kernel   string
	livedump string
	out      string // directory of the result
	memory   string // directory in memory, for the dumps
	disk     string // directory on a disk, for what is compared with direct I/O
	runs     int
	simulate simulation
}

func main() {
	var o options
	flag.StringVar(&o.kernel, "kernel", "6.1", "kernel `series` of the guest")
	flag.StringVar(&o.livedump, "livedump", "bin/livedump", "the `program` to measure")
	flag.StringVar(&o.out, "out", "out", "`directory` for bench-write.json")
	flag.StringVar(&o.memory, "memory", "/dev/shm", "`directory` on tmpfs for the dumps")
	flag.StringVar(&o.disk, "disk", "", "`directory` on a disk (default: in the cache)")
	flag.IntVar(&o.runs, "runs", 5, "how often each tool runs; the medians count. 0: only the simulation")
	flag.IntVar(&o.simulate.ramGiB, "simulate-ram", 1024, "memory of the made-up node in `GiB`, 0: no simulation")
	flag.IntVar(&o.simulate.kernelGiB, "simulate-kernel", 64, "kernel pages of the made-up node in `GiB`")
	flag.StringVar(&o.simulate.compression, "simulate-compression", "zstd", "`codec` of the simulation")
	child := flag.Bool("simulation", false, "internal: be the process that simulates")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	err := error(nil)
	if *child {
		o.simulate.dir = o.disk
		err = o.simulate.child()
	} else {
		err = o.run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "write-bench:", err)
		os.Exit(1)
	}
}

// result is bench-write.json.
type result struct {
	Machine      string             `json:"machine"`
	Load         string             `json:"load_average"` // before the first run
	Makedumpfile string             `json:"makedumpfile"` // its version
	Runs         []measurement      `json:"runs"`
	Medians      map[string]float64 `json:"median_seconds"`
	// Ratios of throughput: livedump's to that of the fastest of the other tool's settings. Sizes: livedump's
	// output to that of the other tool.
	Ratios     map[string]float64 `json:"ratios"`
	Sizes      map[string]float64 `json:"sizes"`
	Notes      []string           `json:"notes,omitempty"`
	Simulation *simulated         `json:"simulation,omitempty"`
}

func (o *options) run(ctx context.Context) (err error) {
	// All children inherit this: the same two CPUs for everybody.
	if err := pinTo(2); err != nil {
		return err
	}
	if o.disk == "" {
		cache, err := guest.CacheDir()
		if err != nil {
			return err
		}
		o.disk = filepath.Join(cache, "memory")
	}
	if o.disk, err = os.MkdirTemp(o.disk, ".bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(o.disk)
	if o.memory, err = os.MkdirTemp(o.memory, "livedump-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(o.memory)

	r := &result{Machine: machine(), Load: loadAverage(), Medians: map[string]float64{}, Ratios: map[string]float64{}, Sizes: map[string]float64{}}
	fmt.Printf("write-bench: %s, load average %s\n", r.Machine, r.Load)
	if o.runs > 0 {
		if err := o.compare(ctx, r); err != nil {
			return err
		}
	}
	if o.simulate.ramGiB > 0 {
		if r.Simulation, err = o.simulateNode(ctx); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.out, "bench-write.json"), append(text, '\n'), 0o644)
}

// goals that the project has set itself.
const (
	goalCompressed = 1.7
	goalPlain      = 0.9
	goalRSS        = 160 << 10 // KiB
)

func (o *options) compare(ctx context.Context, r *result) error {
	image, err := loadedImage(ctx, o.kernel)
	if err != nil {
		return err
	}
	m, err := findMakedumpfile(ctx)
	if err != nil {
		return err
	}
	r.Makedumpfile = m.version
	if err := warm(image); err != nil {
		return err
	}
	contests := []contest{
		{"zstd", o.memory, o.convert(image, "zstd"), m.settings(image, "zstd", "-z")},
		{"snappy", o.memory, o.convert(image, "snappy"), nil},
		{"none", o.disk, o.convert(image, "none"), []runner{o.copyDirect(image)}},
	}
	if m.snappy {
		contests[1].others = m.settings(image, "snappy", "-p")
	} else {
		contests[1].others = m.settings(image, "lzo", "-l")
		r.Notes = append(r.Notes, "makedumpfile with snappy could not be built: livedump's snappy is compared with the LZO of Debian's, the fastest codec that it has")
	}
	for _, c := range contests {
		if err := c.run(ctx, o.runs, r); err != nil {
			return err
		}
	}
	return nil
}

// contest is livedump against settings of another tool, in one directory.
type contest struct {
	compression string
	dir         string
	ours        runner
	others      []runner
}

func (c *contest) run(ctx context.Context, runs int, r *result) error {
	all := append([]runner{c.ours}, c.others...)
	seconds := map[string][]float64{}
	size := map[string]uint64{}
	stopped := map[string]bool{}
	best := 0.0
	// Everybody's turn comes before anybody's second one: what else happens on the machine hits all.
	for range runs {
		for _, t := range all {
			if stopped[t.name] {
				continue // once over the limit is enough
			}
			limit := mostLimit
			if best > 0 {
				limit = max(leastLimit, time.Duration(lostBeyondDoubt*best*float64(time.Second)))
			}
			m, err := t.run(ctx, c.dir, limit)
			if err != nil {
				return err
			}
			r.Runs = append(r.Runs, m)
			if m.Failed != "" {
				if t.name == c.ours.name {
					return fmt.Errorf("%s: %s", t.name, m.Failed)
				}
				r.Notes = append(r.Notes, t.name+" failed and is left out: "+m.Failed)
				fmt.Printf("write-bench: %-28s failed and is left out: %s\n", t.name, m.Failed)
				stopped[t.name] = true
				continue
			}
			seconds[t.name] = append(seconds[t.name], m.Seconds)
			size[t.name] = m.BytesOut
			stopped[t.name] = m.TimedOut
			if best == 0 || m.Seconds < best {
				best = m.Seconds
			}
			fmt.Printf("write-bench: %-28s %7.2f s  %6d MiB out  %6.2f s of CPU  %4d MiB resident%s\n", t.name, m.Seconds,
				m.BytesOut>>20, m.CPUSeconds, m.RSSKiB>>10, map[bool]string{true: "  (stopped)"}[m.TimedOut])
		}
	}
	fastest := ""
	for _, t := range c.others {
		if len(seconds[t.name]) > 0 && (fastest == "" || median(seconds[t.name]) < median(seconds[fastest])) {
			fastest = t.name
		}
	}
	if fastest == "" {
		return fmt.Errorf("%s: there is nothing to compare with", c.compression)
	}
	for name, s := range seconds {
		r.Medians[name] = median(s)
	}
	r.Ratios[c.compression] = median(seconds[fastest]) / median(seconds[c.ours.name])
	r.Sizes[c.compression] = float64(size[c.ours.name]) / float64(size[fastest])
	goal := goalCompressed
	if c.compression == "none" {
		goal = goalPlain
	}
	fmt.Printf("write-bench: %s: %.2f × the throughput of %s (goal: %.1f), %.4f × its size\n", c.compression,
		r.Ratios[c.compression], fastest, goal, r.Sizes[c.compression])
	return nil
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func pinTo(n int) error {
	var have, want unix.CPUSet
	if err := unix.SchedGetaffinity(0, &have); err != nil {
		return err
	}
	for cpu := 0; cpu < len(have)*64 && want.Count() < n; cpu++ {
		if have.IsSet(cpu) {
			want.Set(cpu)
		}
	}
	if want.Count() < n {
		return fmt.Errorf("%d CPUs are needed", n)
	}
	// Every thread: children are started from any of them.
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		var tid int
		if _, err := fmt.Sscan(t.Name(), &tid); err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(tid, &want); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}
