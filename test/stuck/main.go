// SPDX-License-Identifier: Apache-2.0

// Command stuck tests the stop on a machine that is in trouble, in a guest:
//
//   - one CPU spins with preemption off, another with interrupts off: the dump
//     succeeds, and crash and drgn name the function in which each spins (but for a
//     kernel without debug information, as that of hack/debug-kernel is);
//   - a CPU that takes neither interrupt nor NMI (simulated by the instrumented
//     module): the freeze retreats and says which CPU, the page tables are as they
//     were, and the next dump succeeds.
//
// `make test-stuck` runs it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"livedump.io/node-agent/engine"
	"livedump.io/test/guest"
	"livedump.io/test/guestdump"
	"livedump.io/test/judge"
	"livedump.io/test/trial"
)

// limit is how long everything may take on two busy processors without KVM.
const limit = 30 * time.Minute

type options struct {
	trial.Guest
}

func main() {
	o := options{}
	o.Guest.Flags(1024, 4, "out/stuck", "livedump-agent, kmod-instrumented/ and kmod-test/")
	flag.Parse()
	trial.Run("test-stuck", limit, func(ctx context.Context) (string, error) {
		return fmt.Sprintf("on kernel %s (%d MiB, %d CPUs)", o.Series, o.MemoryMiB, o.CPUs), run(ctx, o)
	})
}

// Paths in the guest.
const (
	module      = "/opt/livedump.ko"
	stuckModule = "/opt/livedump_stuck.ko"
	tables      = "/opt/livedump_pgtables.ko"
	agent       = "/opt/livedump-agent"
	report      = "/tmp/report.json"
	device      = "/dev/vda"
	parameters  = "/sys/module/livedump/parameters/"
	stuck       = "/sys/module/livedump_stuck/parameters/"
)

// Files in the directory for results.
const (
	agentLog = "agent.log"
	hungCore = "hung.kdump"
)

// spinFor bounds the spinning if the test cannot end it, for the guest's sake.
const spinFor = 15 * time.Minute

// patience is how long one operation in the guest may take on two busy processors without KVM. It is
// less than spinFor: what waits for a stuck CPU must not get it after all.
const patience = 3 * time.Minute

// slownessOfKASAN multiplies it on a kernel that checks every access.
const slownessOfKASAN = 4

// machine is the guest under test.
type machine struct {
	options
	*guest.Guest
	kernel *guest.Kernel
	image  string
}

func run(ctx context.Context, o options) (err error) {
	if o.CPUs < 3 {
		return errors.New("two stuck CPUs and one that works are three")
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return err
	}
	// What an earlier run has left would be taken for this one's.
	for _, name := range []string{agentLog, hungCore} {
		if err := os.RemoveAll(filepath.Join(o.Out, name)); err != nil {
			return err
		}
	}
	kernel, err := guest.FetchKernel(ctx, o.Series)
	if err != nil {
		return err
	}
	m := &machine{options: o, kernel: kernel, image: filepath.Join(o.Out, "disk.img")}
	if err := guest.CreateImage(m.image, o.MemoryMiB+128); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(m.image)) }()
	file := func(dir, name string) string { return filepath.Join(o.Bin, dir, kernel.Release, name) }
	trial.Step("boot kernel %s with %d MiB and %d CPUs", kernel.Release, o.MemoryMiB, o.CPUs)
	m.Guest, err = guest.Start(ctx, guest.Config{
		Kernel: kernel, Dir: o.Out, Console: filepath.Join(o.Out, "guest.log"),
		MemoryMiB: o.MemoryMiB, CPUs: o.CPUs,
		Append: []string{
			// The kernel's watchdogs would rightly report the CPUs that this test makes stuck.
			"nowatchdog", "rcupdate.rcu_cpu_stall_suppress=1", "workqueue.watchdog_thresh=0",
			// What the scheduler has put on such a CPU waits with it, the guest's own init too.
			fmt.Sprintf("isolcpus=%d,%d", o.CPUs-2, o.CPUs-1),
			// The kernel spreads devices' interrupts among all CPUs. Those of the port over which
			// this test commands the guest would wait on the CPU that takes none.
			fmt.Sprintf("irqaffinity=0-%d", o.CPUs-3),
			// Where khugepaged joins the pages of a process, which by default may be the guest's init, it interrupts
			// every CPU and waits, with the process's mmap lock held. The agent has to keep itself out of that:
			// refusesHugePages checks it.
			"transparent_hugepage=madvise",
		},
		Disks: []guest.Disk{{Image: m.image, Serial: "livedump-target"}},
		Files: []guest.File{
			{Path: module, Source: file("kmod-instrumented", "livedump.ko")},
			{Path: stuckModule, Source: file("kmod-test", "livedump_stuck.ko")},
			{Path: tables, Source: file("kmod-test", "livedump_pgtables.ko")},
			{Path: agent, Source: filepath.Join(o.Bin, "livedump-agent")},
		},
	})
	if err != nil {
		return err
	}
	in, err := m.scenarios(ctx)
	if err == nil {
		err = m.CheckConsole()
	}
	if err = errors.Join(err, m.Stop()); err != nil {
		return err
	}
	if info, err := kernel.Configured("DEBUG_INFO"); err != nil {
		return err
	} else if !info {
		trial.Step("no reader judges the dump: kernel %s has no debug information", kernel.Release)
		return nil
	}
	if err := judge.Prepare(ctx, kernel); err != nil {
		return err
	}
	return judge.Judge(ctx, in)
}

func (m *machine) scenarios(ctx context.Context) (in judge.Input, err error) {
	for _, file := range []string{tables, module, stuckModule} {
		if _, err := m.Run(ctx, "insmod", file); err != nil {
			return in, err
		}
	}
	// No hashes: they would be most of the stop.
	if err := m.set(ctx, parameters+"measure", "1"); err != nil {
		return in, err
	}
	before, err := m.SettledPageTables(ctx)
	if err != nil {
		return in, err
	}
	if in, err = m.dumpStuck(ctx); err != nil {
		return in, fmt.Errorf("stuck CPUs: %w", err)
	}
	if err := m.restored(ctx, before); err != nil {
		return in, fmt.Errorf("stuck CPUs: %w", err)
	}
	if err := m.absent(ctx, before); err != nil {
		return in, fmt.Errorf("a CPU that does not answer: %w", err)
	}
	return in, nil
}

// within does one operation in the guest, which must end whatever CPUs are stuck. Who waits for whom if it
// does not is in the guest's memory, which is kept for crash and drgn.
func (m *machine) within(ctx context.Context, what string, operation func(context.Context) error) error {
	patience := patience
	kasan, err := m.kernel.Configured("KASAN")
	if err != nil {
		return err
	}
	if kasan {
		patience *= slownessOfKASAN
	}
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = operation(bounded)
	if err == nil || bounded.Err() == nil || ctx.Err() != nil {
		return err
	}
	core := filepath.Join(m.Out, hungCore)
	return errors.Join(fmt.Errorf("%s did not end within %v, the guest's memory is in %s: %w", what, patience, core, err),
		m.Dump(ctx, core, guest.DumpZlib))
}

func (m *machine) set(ctx context.Context, file, value string) error {
	return m.within(ctx, fmt.Sprintf("writing %q to %s", value, file), func(ctx context.Context) error {
		return m.Put(ctx, file, 0o644, strings.NewReader(value))
	})
}

func (m *machine) observe(ctx context.Context) (o *judge.Observation, err error) {
	err = m.within(ctx, "looking at the guest's tasks", func(ctx context.Context) error {
		o, err = judge.Observe(ctx, m.Guest)
		return err
	})
	return o, err
}

func (m *machine) restored(ctx context.Context, before guest.PageTables) error {
	after, err := m.SettledPageTables(ctx)
	if err != nil {
		return err
	}
	return before.Compare(after, guest.StableRegions...)
}

// dumpStuck makes a dump of CPUs that are stuck, and stay so until the dump is complete on its target.
func (m *machine) dumpStuck(ctx context.Context) (in judge.Input, err error) {
	preemptOff, interruptsOff := m.CPUs-2, m.CPUs-1
	trial.Step("prepare a dump")
	in = judge.Input{
		Dump: filepath.Join(m.Out, "dump.kdump"), Kernel: m.kernel, OutDir: m.Out, Progress: trial.Step,
		ModuleFiles: []string{filepath.Join(m.Bin, "kmod-test", m.kernel.Release, "livedump_stuck.ko")},
		Expect:      judge.Expectation{Churn: 20, Modules: []string{"livedump", "livedump_stuck"}},
	}
	d, err := m.startDump(ctx, "--pause-at", string(engine.StepFreeze))
	if err != nil {
		return in, err
	}
	if err := d.waitFor(ctx, string(engine.StepFreeze)); err != nil {
		return in, err
	}
	if err := m.refusesHugePages(ctx, d.cmd.PID); err != nil {
		return in, err
	}
	trial.Step("CPU %d spins with preemption off, CPU %d with interrupts off", preemptOff, interruptsOff)
	for file, cpu := range map[string]int{"preempt_off": preemptOff, "interrupts_off": interruptsOff} {
		if err := m.set(ctx, stuck+file, fmt.Sprintf("%d %d", cpu, spinFor.Milliseconds())); err != nil {
			return in, err
		}
	}
	if err := m.spinning(ctx, fmt.Sprintf("%d-%d", preemptOff, interruptsOff)); err != nil {
		return in, err
	}
	if in.Expect.Before, err = m.observe(ctx); err != nil {
		return in, err
	}
	in.Expect.Active = map[int]judge.ActiveTask{}
	for tid, task := range in.Expect.Before.Tasks {
		switch task.Comm {
		case "stuck_preempt":
			in.Expect.Active[preemptOff] = judge.ActiveTask{TID: tid, Function: "livedump_stuck_preempt_off"}
		case "stuck_irqs":
			in.Expect.Active[interruptsOff] = judge.ActiveTask{TID: tid, Function: "livedump_stuck_interrupts_off"}
		}
	}
	if len(in.Expect.Active) != 2 {
		return in, fmt.Errorf("the stuck threads are not among the guest's tasks: %v", in.Expect.Active)
	}
	trial.Step("freeze, and complete the dump")
	d.proceed()
	if err := m.within(ctx, "the dump", func(ctx context.Context) error { return m.complete(ctx, d) }); err != nil {
		return in, err
	}
	// That is what the agent reports, though memory is not thawed.
	if err := d.waitForEnd(ctx); err != nil {
		return in, err
	}
	// The CPUs are stuck until after the last byte, and the report.
	if err := m.spinning(ctx, fmt.Sprintf("%d-%d", preemptOff, interruptsOff)); err != nil {
		return in, err
	}
	if in.Expect.After, err = m.observe(ctx); err != nil {
		return in, err
	}
	trial.Step("release the CPUs")
	if err := m.set(ctx, stuck+"released", "1"); err != nil {
		return in, err
	}
	r, err := d.wait(ctx)
	if err != nil {
		return in, err
	}
	trial.Step("frozen in %.1f ms: CPUs arrived after %.1f ms, in attempt %d",
		float64(r.FreezeNS)/1e6, float64(r.RendezvousNS)/1e6, r.StopAttempts)
	if thawed := slices.ContainsFunc(r.Steps, func(s engine.StepReport) bool { return s.Name == string(engine.StepThaw) }); !thawed || r.FrozenForNS == 0 {
		return in, fmt.Errorf("the thaw is not in the last report: %+v", r.Steps)
	}
	if r.CPUs != m.CPUs || r.LostPages != 0 {
		return in, fmt.Errorf("registers of %d CPUs, %d pages lost", r.CPUs, r.LostPages)
	}
	return in, guestdump.CopyOff(ctx, m.image, in.Dump, r)
}

// refusesHugePages checks that khugepaged would leave a process alone, however the guest is set.
func (m *machine) refusesHugePages(ctx context.Context, pid int) error {
	status, err := m.ReadFile(ctx, fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	if !strings.Contains(string(status), "\nTHP_enabled:\t0\n") {
		return fmt.Errorf("khugepaged may keep the agent waiting for a stuck CPU: its status is\n%s", status)
	}
	return nil
}

// spinning waits until exactly these CPUs spin.
func (m *machine) spinning(ctx context.Context, cpus string) error {
	return m.within(ctx, "waiting for CPUs "+cpus+" to spin", func(ctx context.Context) error {
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for {
			text, err := m.ReadFile(ctx, stuck+"spinning")
			if err != nil {
				return err
			}
			if strings.TrimSpace(string(text)) == cpus {
				return nil
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return fmt.Errorf("CPUs %q spin: %w", strings.TrimSpace(string(text)), ctx.Err())
			}
		}
	})
}

// complete waits until the target has the header that makes it a dump, which is written last.
func (m *machine) complete(ctx context.Context, d *dump) error {
	f, err := os.Open(m.image)
	if err != nil {
		return err
	}
	defer f.Close()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		head := make([]byte, 8)
		if _, err := f.ReadAt(head, 0); err != nil {
			return err
		}
		if string(head) == "KDUMP   " {
			return nil
		}
		select {
		case <-ticker.C:
		case <-d.cmd.Exited():
			return fmt.Errorf("the agent ended before the dump was complete: %s", d.said)
		case <-ctx.Done():
			return fmt.Errorf("the dump is not complete: %w; the agent said %s", context.Cause(ctx), d.said)
		}
	}
}

// absent has a CPU not arrive in the stop.
func (m *machine) absent(ctx context.Context, before guest.PageTables) error {
	trial.Step("CPU 1 answers neither interrupt nor NMI")
	if err := m.set(ctx, parameters+"absent_cpu", "1"); err != nil {
		return err
	}
	// On CPU 0: the CPU of the FREEZE call is there anyhow.
	d, err := m.startDumpOn(ctx, "1")
	if err != nil {
		return err
	}
	r, err := d.wait(ctx)
	var exit *guest.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("the dump was to fail, but its error is %v", err)
	}
	if r.Reason != "StopFailed" || r.MissingCPUs != 1<<1 || !strings.Contains(r.Error, "[1]") {
		return fmt.Errorf("reason %q, CPUs %#x, error %q: want StopFailed and CPU 1", r.Reason, r.MissingCPUs, r.Error)
	}
	log, err := m.Run(ctx, "dmesg")
	if err != nil {
		return err
	}
	if !strings.Contains(log.Stdout, "neither interrupt nor NMI: 1\n") {
		return errors.New("the kernel log does not name the CPU")
	}
	if err := m.restored(ctx, before); err != nil {
		return err
	}
	trial.Step("unload the module at once, load it again and dump")
	if _, err := m.Run(ctx, "sh", "-c", "rmmod livedump && insmod "+module); err != nil {
		return err
	}
	if err := m.set(ctx, parameters+"measure", "1"); err != nil {
		return err
	}
	if d, err = m.startDump(ctx); err != nil {
		return err
	}
	if r, err = d.wait(ctx); err != nil {
		return err
	}
	if r.MissingCPUs != 0 || r.PagesDumped == 0 {
		return fmt.Errorf("the dump after it: CPUs %#x missing, %d pages", r.MissingCPUs, r.PagesDumped)
	}
	return nil
}

// dump is a running agent.
type dump struct {
	m     *machine
	cmd   *guest.Cmd
	said  *guest.Output
	log   *os.File
	input *io.PipeWriter
}

func (m *machine) startDump(ctx context.Context, flags ...string) (*dump, error) {
	return m.startDumpOn(ctx, "", flags...)
}

// startDumpOn keeps the agent on the CPUs of a mask in hexadecimal digits, if there is one.
func (m *machine) startDumpOn(ctx context.Context, mask string, flags ...string) (*dump, error) {
	if err := m.erase(); err != nil {
		return nil, err
	}
	var argv []string
	if mask != "" {
		argv = []string{"taskset", mask}
	}
	log, err := os.OpenFile(filepath.Join(m.Out, agentLog), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	argv = append(argv, append([]string{agent, "dump", "--device", device, "--module", module, "--keep-module",
		"--report", report}, flags...)...)
	r, w := io.Pipe()
	d := &dump{m: m, cmd: m.Command(argv...), said: &guest.Output{}, log: log, input: w}
	d.cmd.Stdin = r
	both := io.MultiWriter(d.said, log)
	d.cmd.Stdout, d.cmd.Stderr = both, both
	return d, d.cmd.Start(ctx)
}

// erase makes the target as if it were new.
func (m *machine) erase() error {
	f, err := os.OpenFile(m.image, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, info.Size())
}

// waitFor waits until the agent has come to a step that it pauses at.
func (d *dump) waitFor(ctx context.Context, step string) error {
	return d.m.within(ctx, "the agent's way to "+step, func(ctx context.Context) error {
		_, err := d.said.Wait(ctx, d.cmd, regexp.MustCompile("(?m)^paused before "+regexp.QuoteMeta(step)+`\s*$`))
		return err
	})
}

// waitForEnd waits until the agent has given the target up and waits for nothing but the thaw.
func (d *dump) waitForEnd(ctx context.Context) error {
	return d.m.within(ctx, "the end of the dump, before the thaw", func(ctx context.Context) error {
		_, err := d.said.Wait(ctx, d.cmd, regexp.MustCompile(`(?s)"dump complete".*"waiting for memory to be thawed"`))
		return err
	})
}

func (d *dump) proceed() { _, _ = d.input.Write([]byte("\n")) }

// wait returns the agent's report, also if it failed.
func (d *dump) wait(ctx context.Context) (*engine.Report, error) {
	d.input.Close()
	runErr := d.m.within(ctx, "the agent's end", d.cmd.Wait)
	d.log.Close()
	var exit *guest.ExitError
	if runErr != nil && !errors.As(runErr, &exit) {
		return nil, fmt.Errorf("%w; the agent said %s", runErr, d.said)
	}
	raw, err := d.m.ReadFile(ctx, report)
	if err != nil {
		return nil, errors.Join(runErr, err)
	}
	r := &engine.Report{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, errors.Join(runErr, err)
	}
	if runErr != nil {
		runErr = fmt.Errorf("%w; the agent said %s", runErr, d.said)
	}
	return r, runErr
}
