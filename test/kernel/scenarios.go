// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"livedump.io/internal/session"
	"livedump.io/node-agent/engine"
	"livedump.io/test/guest"
	"livedump.io/test/guestdump"
	"livedump.io/test/judge"
	"livedump.io/test/trial"
)

// scenarios runs everything that needs the guest.
func (b *bench) scenarios(ctx context.Context) error {
	// The module is loaded by hand and stays for all dumps whose page tables are
	// compared: loading code is what makes the kernel itself change its tables.
	if _, err := b.guest.Run(ctx, "insmod", guestModule); err != nil {
		return err
	}
	before, err := b.state(ctx)
	if err != nil {
		return err
	}
	b.report.DirectMapLeaves = before.Tables.Leaves(guest.RegionDirect)
	if err := b.judgedDump(ctx, before); err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	if !b.o.short {
		if err := b.killed(ctx, before); err != nil {
			return fmt.Errorf("dump process killed in the middle: %w", err)
		}
		if err := b.afterKill(ctx, before); err != nil {
			return fmt.Errorf("dump after a killed one: %w", err)
		}
		if err := b.moduleByAgent(ctx); err != nil {
			return fmt.Errorf("dump with the module loaded by the agent: %w", err)
		}
	}
	trial.Step("end the workload")
	if b.report.Workload, err = b.workload.Stop(ctx); err != nil {
		return err
	}
	return b.guest.CheckConsole()
}

// judgedDump makes the dump that the readers judge afterwards.
func (b *bench) judgedDump(ctx context.Context, before guest.MemoryState) error {
	var err error
	if b.before, err = judge.Observe(ctx, b.guest); err != nil {
		return err
	}
	trial.Step("dump to the virtio disk")
	r, err := b.dump(ctx, "--keep-module")
	b.report.Report = r
	if err != nil {
		return err
	}
	if b.after, err = judge.Observe(ctx, b.guest); err != nil {
		return err
	}
	trial.Step("frozen in %.1f ms (%d PUD, %d PMD, %d PTE entries), %d faults, %d copies, %d lost; %d pages in %.0f MiB",
		float64(r.FreezeNS)/1e6, r.Entries.PUD, r.Entries.PMD, r.Entries.PTE, r.Faults, r.Copies, r.LostPages,
		r.PagesDumped, float64(r.SizeBytes)/(1<<20))
	if err := checkReport(r); err != nil {
		return err
	}
	if err := guestdump.CopyOff(ctx, b.image, b.dumpFile(), r); err != nil {
		return err
	}
	b.report.TablesRestored, err = b.restored(ctx, before)
	return err
}

func (b *bench) dumpFile() string { return filepath.Join(b.o.Out, "dump.kdump") }

func (b *bench) state(ctx context.Context) (guest.MemoryState, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return b.guest.SettledMemoryState(ctx)
}

// restored compares page tables and DirectMap lines with those of before.
func (b *bench) restored(ctx context.Context, before guest.MemoryState) (bool, error) {
	trial.Step("compare page tables")
	after, err := b.state(ctx)
	if err != nil {
		return false, err
	}
	if err := before.Compare(after); err != nil {
		return false, err
	}
	return true, nil
}

// checkReport checks the numbers of a good dump against each other.
func checkReport(r *engine.Report) error {
	var problems []error
	expect := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf("report: "+format, args...))
		}
	}
	expect(r.Error == "" && r.Reason == "", "error %q, reason %q in a good dump", r.Error, r.Reason)
	expect(r.FreezeNS > 0, "no freeze time")
	expect(r.LostPages == 0, "%d pages lost in strict mode", r.LostPages)
	expect(r.PagesDumped > 0 && r.PagesReported == r.PagesToDump, "%d of %d pages reported", r.PagesReported, r.PagesToDump)
	expect(r.Entries.PUD+r.Entries.PMD+r.Entries.PTE > 0, "no page-table entry was changed")
	expect(r.Faults > 0, "no fault, though a workload was writing")
	expect(r.Copies > 0, "no copy, though a workload was writing")
	expect(r.TablesSplit == r.TablesJoined, "%d tables split, %d joined", r.TablesSplit, r.TablesJoined)
	expect(r.PagesByClass[session.ClassKernel.String()] > 0, "no kernel pages among %v", r.PagesByClass)
	return errors.Join(problems...)
}

// midDump is how much of a dump must be on the disk before its process is killed.
const midDump = 4 << 20

// killed kills a dump process while memory is frozen and pages are being written,
// and checks that the guest is as before and that the target is not a dump.
func (b *bench) killed(ctx context.Context, before guest.MemoryState) error {
	ctx, cancel := context.WithTimeout(ctx, dumpTimeout)
	defer cancel()
	trial.Step("kill the dump process while memory is frozen")
	if err := b.eraseTarget(); err != nil {
		return err
	}
	c := b.guest.Command(guestAgent, "dump", "--device", guestDevice, "--module", guestModule, "--keep-module")
	said := &guest.Output{}
	c.Stdout, c.Stderr = said, said
	if err := c.Start(ctx); err != nil {
		return err
	}
	if err := b.waitForBytes(ctx, c, midDump); err != nil {
		return fmt.Errorf("%w; the agent's last words: %s", err, said.LastLine())
	}
	if err := c.Kill(); err != nil {
		return err
	}
	var exit *guest.ExitError
	if err := c.Wait(ctx); !errors.As(err, &exit) || exit.Signal != int(unix.SIGKILL) {
		return fmt.Errorf("the process was to die of SIGKILL, but: %w", err)
	}
	head, err := b.header()
	if err != nil {
		return err
	}
	if bytes.HasPrefix(head, []byte("KDUMP   ")) {
		return errors.New("the target has a valid header after the dump process was killed")
	}
	if !bytes.HasPrefix(head, []byte("LIVEDUMP in progress")) {
		return fmt.Errorf("the target does not say that a dump was in progress: %q", bytes.TrimRight(head[:64], "\x00"))
	}
	ok, err := b.restored(ctx, before)
	b.report.TablesRestoredAfterKill = &ok
	return err
}

// afterKill makes one more dump: a killed one must not stand in its way.
func (b *bench) afterKill(ctx context.Context, before guest.MemoryState) error {
	trial.Step("dump again")
	r, err := b.dump(ctx, "--keep-module")
	if err != nil {
		return err
	}
	if err := checkReport(r); err != nil {
		return err
	}
	if err := b.verifyTarget(ctx, r); err != nil {
		return err
	}
	_, err = b.restored(ctx, before)
	return err
}

// moduleByAgent has the agent load the module and unload it again. The page
// tables are not compared: loading code changes them.
func (b *bench) moduleByAgent(ctx context.Context) error {
	trial.Step("dump with the module loaded and unloaded by the agent")
	if _, err := b.guest.Run(ctx, "rmmod", "livedump"); err != nil {
		return err
	}
	r, err := b.dump(ctx)
	if err != nil {
		return err
	}
	if err := checkReport(r); err != nil {
		return err
	}
	if err := b.verifyTarget(ctx, r); err != nil {
		return err
	}
	result, err := b.guest.Run(ctx, "sh", "-c", "if [ -e "+moduleSysfs+" ]; then echo loaded; else echo gone; fi")
	if err != nil {
		return err
	}
	unloaded := strings.TrimSpace(result.Stdout) == "gone"
	b.report.ModuleUnloaded = &unloaded
	if !unloaded {
		return errors.New("the module is still loaded after the agent's last dump")
	}
	return nil
}

// verifyTarget checks the dump on the disk, without keeping it.
func (b *bench) verifyTarget(ctx context.Context, r *engine.Report) error {
	return guestdump.Verify(ctx, b.image, r)
}

// judge has the readers look at the judged dump. The guest is gone by then.
func (b *bench) judge(ctx context.Context) error {
	if err := judge.Prepare(ctx, b.kernel); err != nil {
		return err
	}
	return judge.Judge(ctx, judge.Input{
		Dump: b.dumpFile(), Kernel: b.kernel, OutDir: b.o.Out, Progress: trial.Step,
		Expect: judge.Expectation{
			Before: b.before, After: b.after, Churn: churnAllowed,
			ParkedTID: b.workload.ParkedTID, ParkedFrames: judge.ParkedFrames, Modules: []string{"livedump"},
		},
	})
}
