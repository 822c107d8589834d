// SPDX-License-Identifier: Apache-2.0

// Command guestwrite measures whole dumps in a guest against dd writing the same bytes to the same virtio disk past
// the page cache, and how much of the reserve they take while the guest is idle and under load.
// `make bench-guest-write` runs it.
//
// It writes OUT/bench-guest-write.json.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"livedump.io/node-agent/engine"
	"livedump.io/test/guest"
	"livedump.io/test/guestdump"
	"livedump.io/test/load/provide"
	"livedump.io/test/trial"
)

const (
	device = "/dev/vda"
	copied = "/tmp/bytes" // in memory
	limit  = time.Hour
)

type options struct {
	trial.Guest
	load string
	runs int
}

func main() {
	o := options{}
	o.Guest.Flags(2048, 2, "out", "livedump-agent, load and kmod/")
	flag.IntVar(&o.runs, "runs", 3, "dumps of each kind; the medians count")
	flag.StringVar(&o.load, "load", "fork,slab", "`names` of loads, all at once")
	flag.Parse()
	trial.Run("bench-guest-write", limit, func(ctx context.Context) (string, error) {
		r, err := run(ctx, o)
		if err != nil {
			return "", err
		}
		r.print()
		return "", trial.WriteJSON(filepath.Join(o.Out, "bench-guest-write.json"), r)
	})
}

// result is bench-guest-write.json. Times are seconds.
type result struct {
	Kernel    string        `json:"kernel"`
	MemoryMiB int           `json:"memory_mib"`
	CPUs      int           `json:"cpus"`
	KVM       bool          `json:"kvm"` // without it the guest's processor is emulated, and compression is slow beyond measure
	Runs      []measurement `json:"runs"`
	Kinds     []kind        `json:"medians"`
}

// measurement is one dump, and dd of its bytes.
type measurement struct {
	Compression string  `json:"compression"`
	DumpLevel   int     `json:"dump_level"`
	Load        string  `json:"load,omitempty"`
	Bytes       uint64  `json:"bytes"`
	Seconds     float64 `json:"seconds"`       // of the whole dump, from the target's checks to the last byte read back
	Frozen      float64 `json:"frozen"`        // of these, memory was frozen
	Write       float64 `json:"write"`         // the step: until all pages are on the target
	Verify      float64 `json:"verify"`        // the step: reading it back
	DD          float64 `json:"dd,omitempty"`  // dd oflag=direct conv=fsync of the same bytes; only without load
	Faults      uint64  `json:"faults"`        // first writes to frozen pages
	Reserve     uint64  `json:"reserve_pages"` // its size
	HighWater   uint64  `json:"reserve_high_water_pages"`
}

// kind is the medians of measurements that are alike.
type kind struct {
	Compression string  `json:"compression"`
	DumpLevel   int     `json:"dump_level"`
	Load        string  `json:"load,omitempty"`
	MiB         float64 `json:"mib"`
	Seconds     float64 `json:"seconds"`
	Write       float64 `json:"write"`
	DD          float64 `json:"dd,omitempty"`
	// Ratios of throughput to that of dd: the whole dump, and the step that writes.
	Whole     float64 `json:"whole_to_dd,omitempty"`
	Writing   float64 `json:"write_to_dd,omitempty"`
	HighWater float64 `json:"reserve_high_water_pages"`
}

func run(ctx context.Context, o options) (_ *result, err error) {
	kernel, err := guest.FetchKernel(ctx, o.Series)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(o.Out, "guest-write")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	image := filepath.Join(dir, "disk.img")
	if err := guest.CreateImage(image, o.MemoryMiB+256); err != nil {
		return nil, err
	}
	files, err := provide.Files(ctx, kernel, filepath.Join(o.Bin, "load"))
	if err != nil {
		return nil, err
	}
	dd, err := provide.WithLibraries(ctx, "/bin/dd") // busybox's knows no direct I/O
	if err != nil {
		return nil, err
	}
	files = append(append(files, dd...), guestdump.Files(filepath.Join(o.Bin, "kmod", kernel.Release, "livedump.ko"), filepath.Join(o.Bin, "livedump-agent"))...)
	g, err := guest.Start(ctx, guest.Config{
		Kernel: kernel, Dir: dir, Console: filepath.Join(dir, "guest.log"), MemoryMiB: o.MemoryMiB, CPUs: o.CPUs,
		Disks: []guest.Disk{{Image: image, Serial: "livedump-target", Snapshot: true}}, Files: files,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.CheckConsole(), g.Stop(), os.Remove(image)) }()
	if _, err := g.Run(ctx, "insmod", guestdump.Module); err != nil {
		return nil, err
	}
	r := &result{Kernel: kernel.Release, MemoryMiB: o.MemoryMiB, CPUs: o.CPUs, KVM: guest.UsesKVM()}
	for _, m := range []measurement{
		{Compression: "zstd", DumpLevel: 31},
		{Compression: "none", DumpLevel: 31},
		{Compression: "zstd", DumpLevel: 31, Load: o.load},
	} {
		if err := r.measure(ctx, g, m, o.runs); err != nil {
			return nil, fmt.Errorf("%s, level %d, load %q: %w", m.Compression, m.DumpLevel, m.Load, err)
		}
	}
	return r, nil
}

// measure makes dumps of a kind.
func (r *result) measure(ctx context.Context, g *guest.Guest, like measurement, runs int) (err error) {
	if like.Load != "" {
		end, err := provide.Start(ctx, g, like.Load)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, end(ctx)) }()
	}
	first := len(r.Runs)
	for range runs {
		m := like
		trial.Step("dump: %s, level %d, load %q", m.Compression, m.DumpLevel, m.Load)
		report, err := guestdump.Run(ctx, g, device, "--compression", m.Compression, "--dump-level", fmt.Sprint(m.DumpLevel))
		if err != nil {
			return err
		}
		m.take(report)
		if m.Load == "" {
			if m.DD, err = write(ctx, g, m.Bytes); err != nil {
				return err
			}
		}
		r.Runs = append(r.Runs, m)
	}
	r.Kinds = append(r.Kinds, medians(r.Runs[first:]))
	return nil
}

func (m *measurement) take(r *engine.Report) {
	seconds := func(ns int64) float64 { return time.Duration(ns).Seconds() }
	m.Bytes, m.Seconds, m.Frozen = r.SizeBytes, seconds(r.TotalNS), seconds(r.FrozenForNS)
	m.Faults, m.Reserve, m.HighWater = r.Faults, r.ReservePages, r.ReservePages-r.ReserveLow
	for _, s := range r.Steps {
		switch engine.Step(s.Name) {
		case engine.StepWrite:
			m.Write = seconds(s.NS)
		case engine.StepVerify:
			m.Verify = seconds(s.NS)
		}
	}
}

// write has dd write the dump that is on the disk to it once more, from memory, and tells how long that took by the guest's
// clock: a command's way in and out is no part of it.
func write(ctx context.Context, g *guest.Guest, bytes uint64) (float64, error) {
	const block = 1 << 20
	blocks := fmt.Sprint((bytes + block - 1) / block)
	if _, err := g.Run(ctx, "/bin/dd", "if="+device, "of="+copied, "bs=1M", "count="+blocks, "status=none"); err != nil {
		return 0, err
	}
	defer func() { _, _ = g.Run(context.WithoutCancel(ctx), "rm", "-f", copied) }()
	out, err := g.Run(ctx, "sh", "-ec", "cut -d' ' -f1 /proc/uptime; /bin/dd if="+copied+" of="+device+" bs=1M oflag=direct conv=fsync status=none; cut -d' ' -f1 /proc/uptime")
	if err != nil {
		return 0, err
	}
	var from, to float64
	if _, err := fmt.Sscan(out.Stdout, &from, &to); err != nil {
		return 0, fmt.Errorf("the guest's clock says %q: %w", out.Stdout, err)
	}
	return to - from, nil
}
