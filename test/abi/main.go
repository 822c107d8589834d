// SPDX-License-Identifier: Apache-2.0

// Command abi uses the module's interface in guests as nobody should: every promise of its header, then a fuzzer for
// some time, then refusals, a reboot and a panic while memory is frozen. What the kernel was not configured for is left out,
// and said to be. Afterwards the page tables and memory are as
// they were, the module can be unloaded, and the console has nothing to say. `make test-abi` runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"livedump.io/test/guest"
	"livedump.io/test/trial"
)

// slownessOfKASAN: on a kernel that checks every access, a session's freeze outlasts the shortest deadline otherwise.
const slownessOfKASAN = 12

// Paths in the guest.
const (
	guestModule       = "/opt/livedump.ko"
	guestInstrumented = "/opt/livedump-instrumented.ko"
	guestPGTables     = "/opt/livedump_pgtables.ko"
	guestSoftbits     = "/opt/livedump_softbits.ko" // the guest's program loads it
	guestProgram      = "/opt/abi"
	guestKernel       = "/opt/vmlinuz"
)

type options struct {
	trial.Guest
	only    string
	seconds uint
	seed    uint64
}

func main() {
	o := options{}
	o.Guest.Flags(1024, 2, "out/abi", "test/abi, kmod/, kmod-instrumented/ and kmod-test/")
	flag.UintVar(&o.seconds, "seconds", 45, "how long to fuzz")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of the fuzzer")
	flag.StringVar(&o.only, "only", "", "one part: calls or panic")
	flag.Parse()

	limit := 30*time.Minute + time.Duration(o.seconds)*time.Second
	trial.Run("test-abi", limit, func(ctx context.Context) (string, error) {
		return fmt.Sprintf("on kernel %s (fuzzed for %d s, seed %d)", o.Series, o.seconds, o.seed), run(ctx, o)
	})
}

func run(ctx context.Context, o options) error {
	kernel, err := guest.FetchKernel(ctx, o.Series)
	if err != nil {
		return err
	}
	t := &test{o: o, kernel: kernel}
	if o.only != "panic" {
		if err := t.calls(ctx); err != nil {
			return fmt.Errorf("calls: %w", err)
		}
	}
	if lacks, err := t.lacks("MAGIC_SYSRQ", "KEXEC_FILE"); err != nil {
		return err
	} else if lacks != "" {
		trial.Step("without the panics: the kernel has no %s", lacks)
		return nil
	}
	if o.only != "calls" {
		if err := t.panics(ctx); err != nil {
			return fmt.Errorf("panic while frozen: %w", err)
		}
		if err := t.panicsAlone(ctx); err != nil {
			return fmt.Errorf("panic while frozen, without a crash kernel: %w", err)
		}
	}
	return nil
}

type test struct {
	o      options
	kernel *guest.Kernel
	guest  *guest.Guest
}

// lacks says which of these options the kernel has not; empty: it has all.
func (t *test) lacks(options ...string) (string, error) {
	var lacks []string
	for _, option := range options {
		has, err := t.kernel.Configured(option)
		if err != nil {
			return "", err
		}
		if !has {
			lacks = append(lacks, option)
		}
	}
	return strings.Join(lacks, ", "), nil
}

// boot starts a guest; name is that of its console's log.
func (t *test) boot(ctx context.Context, name string, words []string, files ...guest.File) error {
	module := func(dir, file string) string { return filepath.Join(t.o.Bin, dir, t.kernel.Release, file) }
	trial.Step("boot kernel %s for %s", t.kernel.Release, name)
	if err := os.MkdirAll(t.o.Out, 0o755); err != nil {
		return err
	}
	var err error
	t.guest, err = guest.Start(ctx, guest.Config{
		Kernel: t.kernel, Dir: filepath.Join(t.o.Out, name), Console: filepath.Join(t.o.Out, name+".log"),
		MemoryMiB: t.o.MemoryMiB, CPUs: t.o.CPUs, Append: words,
		Files: append(files,
			guest.File{Path: guestModule, Source: module("kmod", "livedump.ko")},
			guest.File{Path: guestInstrumented, Source: module("kmod-instrumented", "livedump.ko")},
			guest.File{Path: guestPGTables, Source: module("kmod-test", "livedump_pgtables.ko")},
			guest.File{Path: guestSoftbits, Source: module("kmod-test", "livedump_softbits.ko")},
			guest.File{Path: guestProgram, Source: filepath.Join(t.o.Bin, "test/abi"), Mode: 0o755}),
	})
	return err
}

// program runs a part of the guest's program and shows what it says.
func (t *test) program(ctx context.Context, argv ...string) error {
	trial.Step("abi %s", strings.Join(argv, " "))
	command := []string{"env"}
	if kasan, err := t.kernel.Configured("KASAN"); err != nil {
		return err
	} else if kasan {
		command = append(command, fmt.Sprint("ABI_SLOWNESS=", slownessOfKASAN))
	}
	if lacks, err := t.lacks("IA32_EMULATION"); err != nil {
		return err
	} else if lacks != "" {
		command = append(command, "ABI_NO_32BIT=1")
	}
	c := t.guest.Command(append(append(command, guestProgram), argv...)...)
	c.Stdout, c.Stderr = os.Stdout, os.Stdout
	return c.Run(ctx)
}

func (t *test) commands(ctx context.Context, commands ...string) error {
	for _, c := range commands {
		if _, err := t.guest.Run(ctx, "sh", "-c", c); err != nil {
			return err
		}
	}
	return nil
}

// state is what abuse must leave as it was.
type state struct {
	guest.MemoryState
	freeKiB int
}

var availableLine = regexp.MustCompile(`(?m)^MemAvailable: +(\d+) kB$`)

// memorySlackKiB is what a kernel may need more after thousands of processes than before: slab that it has not given back.
const memorySlackKiB = 24 << 10

func (t *test) state(ctx context.Context) (s state, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := t.commands(ctx, "sync; echo 3 > /proc/sys/vm/drop_caches"); err != nil {
		return s, err
	}
	if s.MemoryState, err = t.guest.SettledMemoryState(ctx); err != nil {
		return s, err
	}
	meminfo, err := t.guest.ReadFile(ctx, "/proc/meminfo")
	if err != nil {
		return s, err
	}
	m := availableLine.FindSubmatch(meminfo)
	if m == nil {
		return s, fmt.Errorf("/proc/meminfo does not say what is available:\n%s", meminfo)
	}
	s.freeKiB, err = strconv.Atoi(string(m[1]))
	return s, err
}

func (s state) compare(after state) error {
	var problems []error
	if err := s.Compare(after.MemoryState); err != nil {
		problems = append(problems, err)
	}
	if lost := s.freeKiB - after.freeKiB; lost > memorySlackKiB {
		problems = append(problems, fmt.Errorf("%d KiB of memory are gone: %d were available, now %d", lost, s.freeKiB, after.freeKiB))
	}
	return errors.Join(problems...)
}

// calls is the guest in which everything is called.
func (t *test) calls(ctx context.Context) (err error) {
	// Half of memory can be taken offline.
	if err := t.boot(ctx, "calls", []string{fmt.Sprintf("kernelcore=%dM", t.o.MemoryMiB/2)}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.guest.Stop()) }()
	if err := t.commands(ctx, "insmod "+guestPGTables, "insmod "+guestModule); err != nil {
		return err
	}
	// Once through all of it first: the hotplug of memory and CPUs makes the kernel change its own tables.
	cases := []string{"cases"}
	if lacks, err := t.lacks("IA32_EMULATION"); err != nil {
		return err
	} else if lacks != "" {
		trial.Step("without the 32-bit calls: the kernel has no %s", lacks)
		cases = append(cases, "-32-bit calls")
	}
	if err := t.program(ctx, cases...); err != nil {
		return errors.Join(err, t.guest.CheckConsole())
	}
	before, err := t.state(ctx)
	if err != nil {
		return err
	}
	if err := t.program(ctx, "fuzz", strconv.FormatUint(t.o.seed, 10), strconv.FormatUint(uint64(t.o.seconds), 10)); err != nil {
		return errors.Join(err, t.guest.CheckConsole())
	}
	trial.Step("compare page tables and memory")
	after, err := t.state(ctx)
	if err != nil {
		return err
	}
	if err := before.compare(after); err != nil {
		return errors.Join(err, t.guest.CheckConsole())
	}
	if err := t.commands(ctx, "rmmod livedump && [ ! -e /sys/module/livedump ]"); err != nil {
		return err
	}
	if err := t.instrumented(ctx); err != nil {
		return errors.Join(err, t.guest.CheckConsole())
	}
	if err := t.commands(ctx, "insmod "+guestModule); err != nil {
		return err
	}
	return t.reboot(ctx)
}

// instrumented is what needs the module's test instruments: refusals of machines that there are not.
func (t *test) instrumented(ctx context.Context) error {
	if err := t.commands(ctx, "insmod "+guestInstrumented); err != nil {
		return err
	}
	if err := t.program(ctx, "pretend"); err != nil {
		return err
	}
	return t.commands(ctx, "rmmod livedump")
}

// reboot locks the kernel down, which cannot be undone, and restarts the machine while memory is frozen.
func (t *test) reboot(ctx context.Context) error {
	lacks, err := t.lacks("SECURITYFS")
	if err != nil {
		return err
	}
	if lacks != "" {
		trial.Step("without lockdown: the kernel has no %s", lacks)
	} else if err := errors.Join(t.commands(ctx, "mkdir -p /sys/kernel/security"), t.program(ctx, "lockdown", "integrity")); err != nil {
		return err
	}
	if err := t.hold(ctx, "600000"); err != nil {
		return err
	}
	if lacks == "" {
		if err := t.program(ctx, "lockdown", "confidentiality"); err != nil {
			return err
		}
	}
	trial.Step("reboot while memory is frozen")
	// The session goes on as an orphan when its owner is killed by the shutdown, as it would be.
	if err := t.guest.Command("sh", "-c", "reboot -f").Start(ctx); err != nil {
		return err
	}
	select {
	case <-t.guest.Exited():
	case <-time.After(2 * time.Minute):
		return errors.New("the guest did not restart within two minutes")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	console, err := t.guest.ConsoleLog()
	if err != nil {
		return err
	}
	if !strings.Contains(console, "the machine goes down") {
		return errors.New("the module was not told that the machine goes down")
	}
	return guest.CheckConsole(console)
}

// hold freezes memory by a process that then waits.
func (t *test) hold(ctx context.Context, graceMS string) error {
	c := t.guest.Command("sh", "-c", guestProgram+" hold "+graceMS+" > /tmp/hold 2>&1")
	if err := c.Start(ctx); err != nil {
		return err
	}
	return t.commands(ctx, "i=0; until grep -q frozen /tmp/hold; do i=$((i+1)); [ $i -lt 600 ] || { cat /tmp/hold; exit 1; }; usleep 100000; done")
}

// crashMarker is what the crash kernel prints; the words are joined there, so that no echo of a command is taken for it.
const crashMarker = "livedump: crash kernel is up, vmcore is there"

// crashInit makes the crash kernel's init say so and end.
const crashInit = `mkdir -p /crash/bin /crash/dev /crash/proc && cp /bin/busybox /crash/bin/busybox && cat > /crash/init <<'END'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
[ -r /proc/vmcore ] && word=there
/bin/busybox printf '\nlivedump: crash kernel %s up, vmcore is %s\n' is "$word" > /dev/ttyS0
/bin/busybox poweroff -f
END
chmod 755 /crash/init && cd /crash && find . | cpio -o -H newc > /tmp/crash.cpio`

// panics is the guest that panics while memory is frozen: kdump's crash kernel must come up all the same.
func (t *test) panics(ctx context.Context) (err error) {
	if err := t.boot(ctx, "panic", []string{"crashkernel=256M"}, guest.File{Path: guestKernel, Source: t.kernel.Image()}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.guest.Stop()) }()
	if err := t.commands(ctx, crashInit); err != nil {
		return err
	}
	if err := t.program(ctx, "crash-kernel", guestKernel, "/tmp/crash.cpio",
		"console=ttyS0 irqpoll nr_cpus=1 reset_devices panic=-1"); err != nil {
		return err
	}
	said, err := t.panicWhileFrozen(ctx)
	if err != nil {
		return err
	}
	if !strings.Contains(said, crashMarker) {
		return fmt.Errorf("the crash kernel did not come up; the console's end:\n%s", said[max(0, len(said)-3000):])
	}
	dying, _, _ := strings.Cut(said, "Linux version")
	if err := checkPanic(dying); err != nil {
		return err
	}
	trial.Step("%s", crashMarker)
	return nil
}

// panicsAlone is the guest that has no crash kernel: it must stop its other CPUs and restart.
func (t *test) panicsAlone(ctx context.Context) (err error) {
	if err := t.boot(ctx, "panic-alone", []string{"panic=1"}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.guest.Stop()) }()
	said, err := t.panicWhileFrozen(ctx)
	if err != nil {
		return err
	}
	if err := checkPanic(said); err != nil {
		return err
	}
	// It has restarted, and this is said when the other CPUs are stopped; what comes after a real-time kernel does not print any more.
	if !strings.Contains(said, "Kernel Offset: ") {
		return fmt.Errorf("the machine restarted before it had stopped its other CPUs; the console's end:\n%s", said[max(0, len(said)-3000):])
	}
	trial.Step("it restarted")
	return nil
}

// panicWhileFrozen returns what the console said from the panic on.
func (t *test) panicWhileFrozen(ctx context.Context) (string, error) {
	if err := t.commands(ctx, "insmod "+guestModule); err != nil {
		return "", err
	}
	if err := t.hold(ctx, "0"); err != nil {
		return "", err
	}
	if err := t.guest.CheckConsole(); err != nil {
		return "", err
	}
	log, err := t.guest.ConsoleLog()
	if err != nil {
		return "", err
	}
	quiet := len(log)
	trial.Step("panic while memory is frozen")
	if err := t.guest.Command("sh", "-c", "echo c > /proc/sysrq-trigger").Start(ctx); err != nil {
		return "", err
	}
	select {
	case <-t.guest.Exited():
	case <-time.After(5 * time.Minute):
		log, err = t.guest.ConsoleLog()
		return "", errors.Join(fmt.Errorf("the guest did not end within five minutes; the console's end:\n%s", log[max(0, len(log)-3000):]), err)
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if log, err = t.guest.ConsoleLog(); err != nil {
		return "", err
	}
	return log[quiet:], nil
}

// checkPanic checks that there was one panic and nothing else: no fault that nobody mends any more.
func checkPanic(dying string) error {
	for _, trouble := range []string{"unable to handle", "Oops", "double fault", "BUG:"} {
		if strings.Contains(dying, trouble) {
			return fmt.Errorf("the panic did not go its way (%q):\n%.3000s", trouble, dying)
		}
	}
	if strings.Count(dying, "Kernel panic - not syncing") != 1 {
		return fmt.Errorf("not one panic:\n%.3000s", dying)
	}
	return nil
}
