// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"livedump.io/node-agent/engine"
	"livedump.io/test/guest"
	"livedump.io/test/judge"
	"livedump.io/test/trial"
)

// Paths in the guest.
const (
	guestModule    = "/opt/livedump.ko"
	guestPGTables  = "/opt/livedump_pgtables.ko"
	guestAgent     = "/opt/livedump-agent"
	guestWorkload  = "/opt/workload"
	guestReport    = "/tmp/report.json"
	guestDevice    = "/dev/vda"
	moduleSysfs    = "/sys/module/livedump"
	settleTimeout  = 2 * time.Minute
	dumpTimeout    = 15 * time.Minute
	workloadWait   = 2 * time.Minute
	workloadPause  = 100 * time.Millisecond
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

	workload  *guest.Cmd
	said      *tail
	parkedTID int

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
	b = &bench{o: o, kernel: kernel, image: filepath.Join(o.out, "disk.img")}
	b.report = Report{
		Kernel: kernel.Release, MemoryMiB: o.memoryMiB, GuestCPUs: o.cpus, KVM: guest.UsesKVM(),
		Workload: "not finished", Readers: "not run",
	}
	if err := guest.CreateImage(b.image, o.memoryMiB+diskExtraMiB); err != nil {
		return nil, err
	}
	module := func(dir, name string) string { return filepath.Join(o.bin, dir, kernel.Release, name) }
	trial.Step("boot kernel %s with %d MiB and %d CPUs", kernel.Release, o.memoryMiB, o.cpus)
	b.guest, err = guest.Start(ctx, guest.Config{
		Kernel: kernel, Dir: o.out, Console: filepath.Join(o.out, "guest.log"),
		MemoryMiB: o.memoryMiB, CPUs: o.cpus, CPU: o.cpu, Hostname: "livedump-guest",
		Disks: []guest.Disk{{Image: b.image, Serial: "livedump-target"}},
		Files: []guest.File{
			{Path: guestModule, Source: module("kmod", "livedump.ko")},
			{Path: guestPGTables, Source: module("kmod-test", "livedump_pgtables.ko")},
			{Path: guestAgent, Source: filepath.Join(o.bin, "livedump-agent")},
			{Path: guestWorkload, Source: filepath.Join(o.bin, "workload")},
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
	return b, b.startWorkload(ctx)
}

// close ends the guest and removes the disk. It may be called twice.
func (b *bench) close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	return errors.Join(b.guest.Stop(), os.Remove(b.image))
}

// tail keeps the last line that was written to it, and all of them.
type tail struct {
	mu   sync.Mutex
	text bytes.Buffer
	// more is closed and made anew when something was written.
	more chan struct{}
}

func newTail() *tail { return &tail{more: make(chan struct{})} }

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.more)
	t.more = make(chan struct{})
	return t.text.Write(b)
}

func (t *tail) read() (string, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String(), t.more
}

func (t *tail) lastLine() string {
	text, _ := t.read()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// wait returns the first match of an expression in what is written.
func (t *tail) wait(ctx context.Context, expression *regexp.Regexp) ([]string, error) {
	for {
		text, more := t.read()
		if m := expression.FindStringSubmatch(text); m != nil {
			return m, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %q in %q: %w", expression, text, context.Cause(ctx))
		}
	}
}

var parkedWord = regexp.MustCompile(`(?m)^workload: ok .*\bparked=(\d+)$`)

func (b *bench) startWorkload(ctx context.Context) error {
	trial.Step("start the workload")
	b.said = newTail()
	b.workload = b.guest.Command(guestWorkload, "-dir", "/tmp", "-pause", workloadPause.String())
	b.workload.Stdout, b.workload.Stderr = b.said, b.said
	if err := b.workload.Start(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, workloadWait)
	defer cancel()
	m, err := b.said.wait(ctx, parkedWord)
	if err != nil {
		return fmt.Errorf("workload: %w", err)
	}
	b.parkedTID, err = strconv.Atoi(m[1])
	return err
}

// stopWorkload ends the workload and reports what its own checks found.
func (b *bench) stopWorkload(ctx context.Context) error {
	if err := b.workload.Signal(unix.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, workloadWait)
	defer cancel()
	err := b.workload.Wait(ctx)
	b.report.Workload = b.said.lastLine()
	if err != nil {
		return fmt.Errorf("the workload's own checks: %w: %s", err, b.report.Workload)
	}
	if !strings.HasPrefix(b.report.Workload, "workload: passed") {
		return fmt.Errorf("the workload ended without a verdict: %q", b.report.Workload)
	}
	return nil
}

// state is what a session must leave as it was.
type state struct {
	tables    guest.PageTables
	directMap string
}

var directMapLine = regexp.MustCompile(`(?m)^DirectMap.*$`)

func (b *bench) state(ctx context.Context) (state, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	tables, err := b.guest.SettledPageTables(ctx)
	if err != nil {
		return state{}, err
	}
	meminfo, err := b.guest.ReadFile(ctx, "/proc/meminfo")
	if err != nil {
		return state{}, err
	}
	lines := directMapLine.FindAllString(string(meminfo), -1)
	if len(lines) == 0 {
		return state{}, errors.New("/proc/meminfo has no DirectMap lines")
	}
	return state{tables, strings.Join(lines, "\n")}, nil
}

// compare checks that a session left nothing behind.
func (s state) compare(other state) error {
	var problems []error
	if err := s.tables.Compare(other.tables, guest.StableRegions...); err != nil {
		problems = append(problems, err)
	}
	if s.directMap != other.directMap {
		problems = append(problems, fmt.Errorf("/proc/meminfo: was\n%s\nis\n%s", s.directMap, other.directMap))
	}
	return errors.Join(problems...)
}

// dump runs the agent once. Its report is returned even if it failed.
func (b *bench) dump(ctx context.Context, flags ...string) (*engine.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, dumpTimeout)
	defer cancel()
	argv := append([]string{guestAgent, "dump", "--device", guestDevice, "--module", guestModule, "--report", guestReport}, flags...)
	c := b.guest.Command(argv...)
	said := newTail()
	c.Stdout, c.Stderr = said, said
	runErr := c.Run(ctx)
	text, _ := said.read()
	if err := os.WriteFile(filepath.Join(b.o.out, "agent.log"), []byte(text), 0o644); err != nil {
		return nil, err
	}
	if runErr != nil {
		runErr = fmt.Errorf("%w; the agent's last words: %s", runErr, said.lastLine())
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
