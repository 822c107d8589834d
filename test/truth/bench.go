// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"livedump.io/internal/kdump"
	"livedump.io/internal/session"
	"livedump.io/node-agent/engine"
	"livedump.io/test/guest"
	"livedump.io/test/guestdump"
	"livedump.io/test/load/provide"
	"livedump.io/test/pagetables"
	"livedump.io/test/trial"
)

// Paths in the guest.
const (
	guestModule   = "/opt/livedump.ko"
	guestPGTables = "/opt/livedump_pgtables.ko"
	guestAgent    = "/opt/livedump-agent"
	guestReport   = "/tmp/report.json"
	guestLog      = "/tmp/agent.log"
	guestPages    = "/tmp/truth.pages"
	guestPage     = "/tmp/truth.page"
	guestDevice   = "/dev/vda"
	guestHidden   = "/opt/hidden"
	parameters    = "/sys/module/livedump/parameters/"

	settleTimeout = 3 * time.Minute
	dumpTimeout   = 15 * time.Minute
	loadTimeout   = 5 * time.Minute
	diskExtraMiB  = 256
	// A guest without hardware support holds its CPUs long while every page is hashed.
	stopDeadline = 2 * time.Second
)

// bench is a guest that is dumped again and again.
type bench struct {
	o      options
	guest  *guest.Guest
	image  string
	kernel *guest.Kernel
}

func newBench(ctx context.Context, o options, kernel *guest.Kernel) (b *bench, err error) {
	b = &bench{o: o, kernel: kernel, image: filepath.Join(o.Out, "disk.img")}
	if err := guest.CreateImage(b.image, o.MemoryMiB+diskExtraMiB); err != nil {
		return nil, err
	}
	files, err := provide.Files(ctx, kernel, filepath.Join(o.Bin, "load"))
	if err != nil {
		return nil, err
	}
	module := func(dir, name string) string { return filepath.Join(o.Bin, dir, kernel.Release, name) }
	trial.Step("boot kernel %s with %d MiB and %d CPUs", kernel.Release, o.MemoryMiB, o.CPUs)
	b.guest, err = guest.Start(ctx, guest.Config{
		Kernel: kernel, Dir: o.Out, Console: filepath.Join(o.Out, "guest.log"),
		MemoryMiB: o.MemoryMiB, CPUs: o.CPUs, NUMANodes: o.nodes, CPU: o.cpu, Hostname: "livedump-guest", Append: slices.Concat(o.words, []string{"secretmem.enable=1"}, patience),
		Disks: []guest.Disk{{Image: b.image, Serial: "livedump-target"}}, NICPairs: o.nicModels(provide.NICsOf(kernel)), IOMMU: o.iommu,
		Files: append(files, []guest.File{
			{Path: guestModule, Source: module("kmod-instrumented", "livedump.ko")},
			{Path: guestShipped, Source: module("kmod", "livedump.ko")},
			{Path: guestPGTables, Source: module("kmod-test", "livedump_pgtables.ko")},
			{Path: guestAgent, Source: filepath.Join(o.Bin, "livedump-agent")},
			{Path: guestHidden, Source: filepath.Join(o.Bin, "test/hidden")},
			{Path: guestRing, Source: filepath.Join(o.Bin, "test/ring")},
		}...),
	})
	if err != nil {
		return nil, errors.Join(err, os.Remove(b.image))
	}
	for _, argv := range [][]string{
		{"insmod", guestPGTables},
		{"insmod", guestModule, fmt.Sprint("stop_deadline_us=", stopDeadline.Microseconds()), fmt.Sprint("truth_keep_mib=", o.keepMiB)},
	} {
		if _, err := b.guest.Run(ctx, argv...); err != nil {
			return nil, errors.Join(err, b.close())
		}
	}
	return b, nil
}

// patience is for the kernel's watchdogs: the instruments hash all memory inside the stop. On 10 GiB, with 8 CPUs on two
// busy processors, that took 24 s, and a lockup is 20 by default.
var patience = []string{"watchdog_thresh=60", "rcupdate.rcu_cpu_stall_timeout=120", "workqueue.watchdog_thresh=120"}

// close ends the guest and removes the disk.
func (b *bench) close() error {
	return errors.Join(b.guest.Stop(), os.Remove(b.image))
}

// loadNeeds is the option of the kernel that a load is about, where Debian has kernels without it.
var loadNeeds = map[string]string{"thp": "TRANSPARENT_HUGEPAGE", "hugetlb": "HUGETLBFS", vmemmapLoad: "HUGETLB_PAGE_OPTIMIZE_VMEMMAP"}

// vmemmapLoad has struct pages of huge pages mapped anew. Debian's 6.12 reports bad pages under it, with no module loaded.
const vmemmapLoad = "hugetlb-vmemmap"

var vmemmapSpoils = []string{"6.12"}

// all makes every dump that was asked for.
func (b *bench) all(ctx context.Context, r *Report) error {
	if slices.Equal(b.o.loads, allLoads) {
		result, err := b.guest.Run(ctx, provide.Program, "list")
		if err != nil {
			return err
		}
		b.o.loads = []string{"idle"}
		for _, line := range strings.Split(strings.TrimSpace(result.Stdout), "\n") {
			name := strings.Fields(line)[0]
			if b.o.lacksNIC(provide.NICsOf(b.kernel), name) {
				trial.Step("without the load %s: no driver for its devices, no network namespaces, or no IOMMU", name)
				continue
			}
			if name == vmemmapLoad && slices.Contains(vmemmapSpoils, b.kernel.Series) {
				trial.Step("without the load %s: under it this kernel itself reports bad pages", name)
				continue
			}
			if option := loadNeeds[name]; option != "" {
				has, err := b.kernel.Configured(option)
				if err != nil {
					return err
				}
				if !has {
					trial.Step("without the load %s: the kernel has no CONFIG_%s", name, option)
					continue
				}
			}
			b.o.loads = append(b.o.loads, name)
		}
		b.o.loads = append(b.o.loads, hiddenLoad, codeLoad, ringLoad)
	}
	for _, load := range b.o.loads {
		if err := b.underLoad(ctx, r, load, nil); err != nil {
			return fmt.Errorf("%s: %w", load, err)
		}
	}
	if len(b.o.bites) > 0 && len(b.o.loads) > 0 {
		return b.underLoad(ctx, r, b.o.loads[0], b.o.bites)
	}
	return nil
}

// underLoad makes dumps while a load runs: the plain ones, or one for each range left uncovered.
func (b *bench) underLoad(ctx context.Context, r *Report, name string, bites []string) error {
	before, err := b.tables(ctx)
	if err != nil {
		return err
	}
	trial.Step("load %s", name)
	l, err := b.startLoad(ctx, name)
	if err != nil {
		return err
	}
	var runs []*Run
	dump := func(bite string) {
		run := &Run{Load: name, Bite: bite}
		runs = append(runs, run)
		if err := b.dump(ctx, run, l); err != nil {
			run.Error = err.Error()
		}
		trial.Step("%s", run.line())
	}
	if bites == nil {
		for range b.o.dumps {
			dump("")
		}
	}
	for _, bite := range bites {
		if err := b.spoil(ctx, bite); err != nil {
			return errors.Join(err, l.kill())
		}
		dump(bite)
	}
	if bites != nil {
		err = b.spoil(ctx, "")
	}
	said, loadErr := l.stop(ctx)
	after, tablesErr := b.tables(ctx)
	restored := tablesErr == nil
	if restored {
		tablesErr = compareTables(before, after, l.changes)
	}
	if restored && name == codeLoad {
		tablesErr = errors.Join(tablesErr, checkCode(before, after))
		if _, err := b.guest.Run(ctx, "rmmod", provide.LoopModules[0]); err != nil {
			return err
		}
	}
	for _, run := range runs {
		run.LoadSaid, run.TablesRestored = said, restored && tablesErr == nil
		// The next load may be better.
		if err := errors.Join(loadErr, tablesErr); err != nil && run.Error == "" {
			run.Error = err.Error()
		}
	}
	r.Runs = append(r.Runs, runs...)
	return err
}

func (b *bench) spoil(ctx context.Context, what string) error {
	return b.guest.Put(ctx, parameters+"leave_uncovered", 0o644, strings.NewReader(what+"\n"))
}

func (b *bench) tables(ctx context.Context) (guest.PageTables, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return b.guest.SettledPageTables(ctx)
}

// softwareBits of an entry mark what a session has changed: SOFTW2, and SOFTW4, which is bit 58 up to Linux 6.5 and 57 since.
const softwareBits = 1<<10 | 1<<57 | 1<<58

// changes is what a load makes the kernel itself do to its page tables.
type changes int

const (
	changeNothing changes = iota
	// changeCode is what loading and unloading code changes in the direct map, and in the image's mapping of what was free there.
	changeCode
	// changePresence takes pages out of the direct map.
	changePresence
	// changeVmemmap maps struct pages anew.
	changeVmemmap
)

// compareTables checks that the sessions left nothing behind, but for what the load explains.
func compareTables(before, after guest.PageTables, by changes) error {
	for region, entries := range after {
		for _, e := range entries {
			if e.Flags&softwareBits != 0 && region != guest.RegionOther {
				return fmt.Errorf("a page-table entry is still marked: %s %v", region, e)
			}
		}
	}
	switch by {
	case changeCode:
		_, err := pagetables.CompareLive(before, after)
		return err
	case changePresence:
		return before.Compare(after, guest.RegionVmemmap)
	case changeVmemmap:
		return before.Compare(after, guest.RegionDirect, guest.RegionImage)
	default:
		return before.Compare(after, guest.StableRegions...)
	}
}

// dump makes one dump and compares it with the truth.
func (b *bench) dump(ctx context.Context, run *Run, l *load) error {
	ctx, cancel := context.WithTimeout(ctx, dumpTimeout)
	defer cancel()
	argv := []string{guestAgent, "dump", "--device", guestDevice, "--module", guestModule, "--keep-module",
		"--dump-level", strconv.Itoa(int(b.o.level)), "--report", guestReport}
	if run.Load == codeLoad {
		var err error
		if argv, err = b.insertingCode(ctx, argv); err != nil {
			return err
		}
	}
	if run.Load == ringLoad {
		argv = mappingRing(argv)
	}
	argv = b.takenOver(argv)
	// Nothing may come and go through the guest's port meanwhile: its device writes memory, and nobody can tell which.
	c := b.guest.Command(argv...)
	c.LogFile = guestLog
	if err := c.Run(ctx); err != nil {
		said := &guest.Output{}
		log, logErr := b.guest.ReadFile(ctx, guestLog)
		said.Write(log)
		return errors.Join(fmt.Errorf("%w; the agent's last words: %s", err, said.LastLine()), logErr)
	}
	raw, err := b.guest.ReadFile(ctx, guestReport)
	if err != nil {
		return err
	}
	var report engine.Report
	if err := json.Unmarshal(raw, &report); err != nil {
		return fmt.Errorf("the agent's report: %w", err)
	}
	if err := errors.Join(b.expectTakenOver(&report), guestdump.Verify(ctx, b.image, &report)); err != nil {
		return err
	}
	run.Faults, run.Copies = report.Faults, report.Copies
	run.DMAPages, run.DMADevices, run.DMADevicesUnknown = report.DMAPages, report.DMADevices, report.DMADevicesUnknown
	if run.DMA, err = b.dmaPages(ctx); err != nil {
		return err
	}
	records, err := b.records(ctx)
	if err != nil {
		return err
	}
	dump, err := kdump.Open(b.image)
	if err != nil {
		return err
	}
	defer dump.Close()
	if run.Comparison, err = compare(dump, records, b.o.kill != ""); err != nil {
		return err
	}
	if run.Load == ringLoad {
		if err := b.checkRing(ctx, records); err != nil {
			return errors.Join(err, b.explain(ctx, run.List))
		}
	}
	if run.Load == hiddenLoad {
		text := l.said.String()
		if run.Hidden, err = checkHidden(dump, text, &report); err != nil {
			return err
		}
	}
	return b.explain(ctx, run.List)
}

// takenOver makes one process begin the dump and die, and another go on with it, if that is asked for.
func (b *bench) takenOver(argv []string) []string {
	if b.o.kill == "" {
		return argv
	}
	return append([]string{"sh", "-c", `echo "$0" >/tmp/die-at; s=` + uuid.NewString() + `
		"$@" --session $s --takeover-grace 10m --die-at /tmp/die-at; [ $? = 137 ] || exit 99
		exec "$@" --session $s --resume`, b.o.kill}, argv...)
}

// expectTakenOver is an error if one process has made the dump, though two were to.
func (b *bench) expectTakenOver(r *engine.Report) error {
	if b.o.kill != "" && r.Takeovers == 0 {
		return fmt.Errorf("nothing was taken over from the process that died at %s", b.o.kill)
	}
	return nil
}

// records are copied to a file first: a file of debugfs has no size.
func (b *bench) records(ctx context.Context) ([]record, error) {
	if _, err := b.guest.Run(ctx, "dd", "if="+truthPages, "of="+guestPages, "bs=64k"); err != nil {
		return nil, err
	}
	raw, err := b.guest.ReadFile(ctx, guestPages)
	if err != nil {
		return nil, err
	}
	_, err = b.guest.Run(ctx, "rm", guestPages)
	return errorsOr(readRecords(bufio.NewReader(bytes.NewReader(raw))))(err)
}

func errorsOr[T any](v T, err error) func(error) (T, error) {
	return func(other error) (T, error) { return v, errors.Join(err, other) }
}

// maxExplained bounds how many pages are fetched from the guest.
const maxExplained = 16

func (b *bench) explain(ctx context.Context, list []Mismatch) error {
	for i := range list[:min(len(list), maxExplained)] {
		m := &list[i]
		if m.kept == 0 {
			continue
		}
		if _, err := b.guest.Run(ctx, "dd", "if="+truthContent, "of="+guestPage, "bs="+strconv.Itoa(session.PageSize),
			"skip="+strconv.Itoa(int(m.kept-1)), "count=1"); err != nil {
			return err
		}
		was, err := b.guest.ReadFile(ctx, guestPage)
		if err != nil {
			return err
		}
		if len(was) != session.PageSize {
			return fmt.Errorf("page frame %s: %d bytes of its content in the stop", m.PFN, len(was))
		}
		m.explain(was)
	}
	return nil
}

// codeLoads make the kernel load code: modules, BPF programs.
var codeLoads = append([]string{"limit", "module", "bpf", "network", "vmalloc", "ext4", "xfs", codeLoad}, nicLoads...)

// load is a program in the guest that keeps it busy.
type load struct {
	cmd     *guest.Cmd
	said    *guest.Output
	changes changes
}

func (b *bench) startLoad(ctx context.Context, name string) (*load, error) {
	l := &load{said: &guest.Output{}}
	kinds := strings.Split(name, "+")
	for _, kind := range kinds {
		if slices.Contains(codeLoads, kind) {
			l.changes = changeCode
		}
		if kind == vmemmapLoad {
			l.changes = changeVmemmap
		}
	}
	if name == "idle" || name == codeLoad || name == ringLoad {
		return l, nil
	}
	ready := provide.Running
	l.cmd = b.guest.Command(provide.Program, strings.Join(kinds, ","))
	if name == hiddenLoad {
		ready, l.changes = hiddenReady, changePresence
		l.cmd = b.guest.Command(guestHidden)
	}
	l.cmd.Stdout, l.cmd.Stderr = l.said, l.said
	if err := l.cmd.Start(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	if _, err := l.said.Wait(ctx, l.cmd, ready); err != nil {
		return nil, errors.Join(fmt.Errorf("the load: %w", err), l.kill())
	}
	return l, nil
}

// stop ends the load and returns its last line.
func (l *load) stop(ctx context.Context) (string, error) {
	if l.cmd == nil {
		return "", nil
	}
	if err := l.cmd.Signal(unix.SIGTERM); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	err := l.cmd.Wait(ctx)
	last := l.said.LastLine()
	if err != nil {
		return last, fmt.Errorf("%w: %s", err, last)
	}
	return last, nil
}

func (l *load) kill() error {
	if l.cmd == nil {
		return nil
	}
	return l.cmd.Kill()
}
