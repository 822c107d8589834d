// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"livedump.io/node-agent/engine"
	"livedump.io/test/guest"
	"livedump.io/test/judge"
	"livedump.io/test/trial"
	"livedump.io/test/workload/provide"
)

// Paths in the guest.
const (
	guestModule    = "/opt/livedump.ko"
	guestPGTables  = "/opt/livedump_pgtables.ko"
	guestAgent     = "/opt/livedump-agent"
	guestReport    = "/tmp/report.json"
	guestDevice    = "/dev/vda"
	moduleSysfs    = "/sys/module/livedump"
	settleTimeout  = 2 * time.Minute
	dumpTimeout    = 15 * time.Minute
	churnAllowed   = 20
	diskExtraMiB   = 256
	reportFileName = "report.json"
)

// bench is a guest with a workload, and what was found out so far.
type bench struct {
	o      options
	kernel *guest.Kernel
	guest  *guest.Guest
	image  string
	closed bool

	workload *provide.Workload

	report Report
	before *judge.Observation
	after  *judge.Observation
}

// Report is what report.json holds: the agent's own numbers of the judged dump,
// and what this test found.
type Report struct {
	*engine.Report
	Kernel         string `json:"kernel"`
	MemoryMiB      int    `json:"memory_mib"`
	GuestCPUs      int    `json:"guest_cpus"`
	KVM            bool   `json:"kvm"`
	TablesRestored bool   `json:"tables_restored"`
	// TablesRestoredAfterKill is absent if that was not tried.
	TablesRestoredAfterKill *bool `json:"tables_restored_after_kill,omitempty"`
	// ModuleUnloaded says that the module could be removed at the end.
	ModuleUnloaded *bool `json:"module_unloaded,omitempty"`
	// Leaves of the direct map by level: before the module was ever used.
	DirectMapLeaves map[string]int `json:"direct_map_leaves"`
	Workload        string         `json:"workload"`
	Readers         string         `json:"readers"`
}

// newBench boots the guest and starts the workload.
func newBench(ctx context.Context, o options, kernel *guest.Kernel) (b *bench, err error) {
	b = &bench{o: o, kernel: kernel, image: filepath.Join(o.Out, "disk.img")}
	b.report = Report{
		Kernel: kernel.Release, MemoryMiB: o.MemoryMiB, GuestCPUs: o.CPUs, KVM: guest.UsesKVM(),
		Workload: "not finished", Readers: "not run",
	}
	if err := guest.CreateImage(b.image, o.MemoryMiB+diskExtraMiB); err != nil {
		return nil, err
	}
	module := func(dir, name string) string { return filepath.Join(o.Bin, dir, kernel.Release, name) }
	trial.Step("boot kernel %s with %d MiB and %d CPUs", kernel.Release, o.MemoryMiB, o.CPUs)
	b.guest, err = guest.Start(ctx, guest.Config{
		Kernel: kernel, Dir: o.Out, Console: filepath.Join(o.Out, "guest.log"),
		MemoryMiB: o.MemoryMiB, CPUs: o.CPUs, CPU: o.cpu, Hostname: "livedump-guest",
		Disks: []guest.Disk{{Image: b.image, Serial: "livedump-target"}},
		Files: []guest.File{
			{Path: guestModule, Source: module("kmod", "livedump.ko")},
			{Path: guestPGTables, Source: module("kmod-test", "livedump_pgtables.ko")},
			{Path: guestAgent, Source: filepath.Join(o.Bin, "livedump-agent")},
			provide.File(filepath.Join(o.Bin, "workload")),
		},
	})
	if err != nil {
		return nil, errors.Join(err, os.Remove(b.image))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if _, err := b.guest.Run(ctx, "insmod", guestPGTables); err != nil {
		return nil, err
	}
	trial.Step("start the workload")
	b.workload, err = provide.Start(ctx, b.guest, provide.Unhurried)
	return b, err
}

// close ends the guest and removes the disk. It may be called twice.
func (b *bench) close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	return errors.Join(b.guest.Stop(), os.Remove(b.image))
}

// dump runs the agent once. Its report is returned even if it failed.
func (b *bench) dump(ctx context.Context, flags ...string) (*engine.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, dumpTimeout)
	defer cancel()
	argv := append([]string{guestAgent, "dump", "--device", guestDevice, "--module", guestModule, "--report", guestReport}, flags...)
	c := b.guest.Command(argv...)
	said := &guest.Output{}
	c.Stdout, c.Stderr = said, said
	runErr := c.Run(ctx)
	if err := os.WriteFile(filepath.Join(b.o.Out, "agent.log"), []byte(said.String()), 0o644); err != nil {
		return nil, err
	}
	if runErr != nil {
		runErr = fmt.Errorf("%w; the agent's last words: %s", runErr, said.LastLine())
	}
	raw, err := b.guest.ReadFile(ctx, guestReport)
	if err != nil {
		return nil, errors.Join(runErr, err)
	}
	r := &engine.Report{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, errors.Join(runErr, fmt.Errorf("the agent's report: %w", err))
	}
	return r, runErr
}

// header returns the first bytes of the target.
func (b *bench) header() ([]byte, error) {
	f, err := os.Open(b.image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head := make([]byte, 4096)
	_, err = io.ReadFull(f, head)
	return head, err
}

// eraseTarget makes the disk empty, as if it were new.
func (b *bench) eraseTarget() error {
	f, err := os.OpenFile(b.image, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, info.Size())
	if err != nil {
		return fmt.Errorf("erase the target: %w", err)
	}
	return nil
}

// waitForBytes waits until a command has written so much to the disk.
func (b *bench) waitForBytes(ctx context.Context, c *guest.Cmd, bytes int64) error {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		var st unix.Stat_t
		if err := unix.Stat(b.image, &st); err != nil {
			return err
		}
		if st.Blocks*512 >= bytes {
			return nil
		}
		select {
		case <-ticker.C:
		case <-c.Exited():
			return fmt.Errorf("the command ended with %d bytes on the disk, before %d were there", st.Blocks*512, bytes)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
