// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"livedump.io/internal/kdump"
	"livedump.io/test/guest"
	"livedump.io/test/judge"
	"livedump.io/test/trial"
)

// task is a command that runs in the guest while memory is frozen.
type task struct {
	name string // of the file that takes what it says
	argv []string
	// fails is what it must say as it fails; empty: it must not fail.
	fails string
	// check, if not nil, judges what it said, after the thaw.
	check func(ctx context.Context, said string) error
	tool  *Tool // if it counts as one
}

// tool is a task that the report lists.
func (b *bench) tool(release, when string, argv ...string) task {
	t := &Tool{Name: argv[0], Release: release, Version: b.versions[release+" "+argv[0]], When: when, Command: strings.Join(argv, " ")}
	b.report.Tools = append(b.report.Tools, t)
	return task{name: fmt.Sprintf("%s-%s-%s", t.Name, release, when), argv: chrooted(release, argv...), tool: t}
}

func makedumpfileFile(release, when string) string { return "dump-" + release + "-" + when }

func (b *bench) makedumpfile(release, when string) task {
	// Its file is compared afterwards.
	return b.tool(release, when, "makedumpfile", "--message-level", "5", "-d", "31", "-l", node, guestResults+"/"+makedumpfileFile(release, when))
}

func cpFile(when string) string { return "vmcore-" + when }

func (b *bench) cp(release, when string) []task {
	file := guestResults + "/" + cpFile(when)
	// Its blocks tell whether what is left out became holes.
	blocks := task{name: "stat-" + when, argv: []string{"stat", "-c", "%s %b", file}, check: func(_ context.Context, said string) error {
		var bytes, blocks int64
		if _, err := fmt.Sscan(said, &bytes, &blocks); err != nil {
			return fmt.Errorf("the copy's size: %q: %w", said, err)
		}
		if blocks*512 > bytes*9/10 {
			return fmt.Errorf("the copy of %d bytes takes %d: it has no holes", bytes, blocks*512)
		}
		return nil
	}}
	return []task{b.tool(release, when, "cp", "--sparse=always", node, file), blocks}
}

func (b *bench) probeTask(release, when string) task {
	check := func(_ context.Context, said string) error {
		p, err := parseProbe(said)
		if err == nil && p.Errors > 0 {
			err = fmt.Errorf("%d pages could not be read, with a reserve that suffices", p.Errors)
		}
		return err
	}
	return task{name: "probe-" + when, argv: chrooted(release, "python3", guestTools+"/probe.py", node), check: check}
}

func (b *bench) drgn(release, when string) task {
	t := b.tool(release, when, "drgn", "-q", "-c", node, "-s", guestTools+"/vmlinux", guestTools+"/judge.py", strconv.Itoa(b.workload.ParkedTID))
	t.check = func(_ context.Context, said string) error { return judge.CheckDrgn(said, b.expect) }
	return t
}

func (b *bench) crash(ctx context.Context, release, when string) (task, error) {
	dir := fmt.Sprintf("%s/crash-%s-%s", guestResults, release, when)
	if _, err := b.guest.Run(ctx, "mkdir", dir); err != nil {
		return task{}, err
	}
	script := judge.CrashScript(b.workload.ParkedTID, dir)
	if err := b.guest.Put(ctx, dir+"/commands", 0o644, strings.NewReader(script)); err != nil {
		return task{}, err
	}
	t := b.tool(release, when, "crash", "-s", "-i", dir+"/commands", guestTools+"/vmlinux", node)
	t.check = func(ctx context.Context, said string) error {
		var text bytes.Buffer
		err := judge.CheckCrash(said, func(name string) ([]byte, error) { return b.guest.ReadFile(ctx, dir+"/"+name) }, b.expect, &text)
		return errors.Join(err, os.WriteFile(filepath.Join(b.o.Out, t.name+"-commands.txt"), text.Bytes(), 0o644))
	}
	return t, nil
}

// check judges a task that has run.
func (b *bench) check(ctx context.Context, t task) error {
	said, err := b.guest.ReadFile(ctx, guestResults+"/"+t.name+".txt")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.o.Out, t.name+".txt"), said, 0o644); err != nil {
		return err
	}
	if !strings.Contains(string(said), t.fails) {
		return fmt.Errorf("%s: want %q, got: %s", strings.Join(t.argv, " "), t.fails, said)
	}
	if t.check != nil {
		if err := t.check(ctx, string(said)); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	if t.tool != nil {
		t.tool.Passed = true
	}
	return nil
}

// compareAll compares every file that the tools wrote with the streamed dump.
func (b *bench) compareAll(ctx context.Context) error {
	dump, err := kdump.Open(b.dumpFile())
	if err != nil {
		return err
	}
	defer dump.Close()
	var problems []error
	for _, t := range b.report.Tools {
		var c Comparison
		switch t.Name {
		case "cp":
			c, err = b.compareCore(ctx, cpFile(t.When), dump)
		case "makedumpfile":
			c, err = b.compareMakedumpfile(ctx, t.Release, makedumpfileFile(t.Release, t.When), dump)
		default:
			continue
		}
		if err != nil {
			return err
		}
		trial.Step("%s: %d pages, %d equal to the streamed dump's, %d mismatches, %d differ and may", c.File, c.Pages, c.Equal, c.Mismatches, c.UncoveredDiffer)
		b.report.Comparisons = append(b.report.Comparisons, c)
		problems = append(problems, c.err())
	}
	return errors.Join(problems...)
}

// result copies a file off the disk with the results.
func (b *bench) result(ctx context.Context, name string) (file string, err error) {
	file = filepath.Join(b.o.Out, name)
	out, err := exec.CommandContext(ctx, "/sbin/debugfs", "-R", "dump /"+name+" "+file, b.images["results"]).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("debugfs: %w: %s", err, out)
	}
	if info, err := os.Stat(file); err != nil || info.Size() == 0 {
		return "", fmt.Errorf("debugfs did not copy %s: %s", name, out)
	}
	return file, nil
}

func (b *bench) compareCore(ctx context.Context, name string, dump *kdump.Reader) (Comparison, error) {
	file, err := b.result(ctx, name)
	if err != nil {
		return Comparison{}, err
	}
	defer os.Remove(file)
	c, err := openCore(file)
	if err != nil {
		return Comparison{}, err
	}
	defer c.file.Close()
	if err := sameNotes(c.notes, dump); err != nil {
		return Comparison{}, fmt.Errorf("%s: %w", name, err)
	}
	return compare(name, c.pages(), dump, dump.MaxPFN())
}

// sameNotes checks that registers and VMCOREINFO are those of the dump.
func sameNotes(raw []byte, dump *kdump.Reader) error {
	notes, err := kdump.ParseNotes(raw)
	if err != nil {
		return err
	}
	info, err := dump.Info()
	if err != nil {
		return err
	}
	registers := kdump.CPUs(notes)
	if len(registers) == 0 || fmt.Sprint(registers) != fmt.Sprint(info.Registers) {
		return fmt.Errorf("registers are %+v, in the dump %+v", registers, info.Registers)
	}
	for _, n := range notes {
		if n.Name == "VMCOREINFO" {
			if text := kdump.ParseVMCoreInfo(n.Desc); fmt.Sprint(text) != fmt.Sprint(info.VMCoreInfo) {
				return errors.New("VMCOREINFO is not the dump's")
			}
			return nil
		}
	}
	return errors.New("no VMCOREINFO")
}

// compareMakedumpfile has drgn take the file apart, which is compressed with LZO.
func (b *bench) compareMakedumpfile(ctx context.Context, release, name string, dump *kdump.Reader) (Comparison, error) {
	file, err := b.result(ctx, name)
	if err != nil {
		return Comparison{}, err
	}
	defer os.Remove(file)
	root, err := judge.Chroot(ctx, b.readers[0].Codename)
	if err != nil {
		return Comparison{}, err
	}
	repo, err := guest.RepoRoot()
	if err != nil {
		return Comparison{}, err
	}
	work, err := os.MkdirTemp("", "livedump-vmcore-")
	if err != nil {
		return Comparison{}, err
	}
	defer os.RemoveAll(work)
	if err := os.WriteFile(filepath.Join(work, "pages.py"), pagesScript, 0o644); err != nil {
		return Comparison{}, err
	}
	if file, err = filepath.Abs(file); err != nil {
		return Comparison{}, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(repo, "hack", "in-chroot"), root,
		"--ro", b.vmlinux+":/judge/vmlinux", "--ro", file+":/judge/dump", "--bind", work+":/judge/io", "--",
		"drgn", "-q", "-c", "/judge/dump", "-s", "/judge/vmlinux", "/judge/io/pages.py", "/judge/io/pages",
		fmt.Sprintf("0-%d", dump.MaxPFN()))
	if out, err := cmd.CombinedOutput(); err != nil {
		return Comparison{}, fmt.Errorf("drgn reads %s of Debian %s: %w: %s", name, release, err, out)
	}
	in, err := os.Open(filepath.Join(work, "pages"))
	if err != nil {
		return Comparison{}, err
	}
	defer in.Close()
	return compare(name, records(in), dump, dump.MaxPFN())
}
