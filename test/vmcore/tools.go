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
	"time"

	"livedump.io/internal/kdump"
	"livedump.io/test/guest"
	"livedump.io/test/judge"
)

// runTools runs the tools that write files, and those of readers that look at the machine.
func (b *bench) runTools(ctx context.Context, when string, readers []judge.Reader) error {
	first := b.readers[0].Codename
	writers := []string{first}
	for _, r := range readers[min(1, len(readers)):] {
		writers = append(writers, r.Codename)
	}
	for _, release := range writers {
		if err := b.makedumpfile(ctx, release, when); err != nil {
			return err
		}
	}
	if err := b.cp(ctx, first, when); err != nil {
		return err
	}
	p, err := b.probe(ctx)
	if err != nil {
		return err
	}
	step("%d pages, %d holes", p.Pages, p.Holes)
	if p.Errors > 0 {
		return fmt.Errorf("%d pages could not be read, with a reserve that suffices", p.Errors)
	}
	for _, r := range readers {
		if err := b.drgn(ctx, r.Codename, when); err != nil {
			return err
		}
		if r.Crash && !b.o.short {
			if err := b.crash(ctx, r.Codename, when); err != nil {
				return err
			}
		}
	}
	return nil
}

// run runs one tool, keeps what it says, and takes note of it in the report.
func (b *bench) run(ctx context.Context, release, when string, argv ...string) (*Tool, string, error) {
	t := &Tool{Name: argv[0], Release: release, Version: b.versions[release+" "+argv[0]], When: when, Command: strings.Join(argv, " ")}
	b.report.Tools = append(b.report.Tools, t)
	step("%s of Debian %s", t.Command, release)
	start := time.Now()
	said, err := b.inChroot(ctx, release, argv...)
	t.Seconds = time.Since(start).Seconds()
	name := fmt.Sprintf("%s-%s-%s.txt", t.Name, release, when)
	return t, said, errors.Join(err, os.WriteFile(filepath.Join(b.o.out, name), []byte(said), 0o644))
}

func makedumpfileFile(release, when string) string { return "makedumpfile-" + release + "-" + when }

func (b *bench) makedumpfile(ctx context.Context, release, when string) error {
	t, said, err := b.run(ctx, release, when, "makedumpfile", "--message-level", "5", "-d", "31", "-l", node,
		guestResults+"/"+makedumpfileFile(release, when))
	if err != nil {
		return fmt.Errorf("%w: %s", err, said)
	}
	t.Passed = true // its file is compared afterwards
	return nil
}

func cpFile(when string) string { return "vmcore-" + when }

func (b *bench) cp(ctx context.Context, release, when string) error {
	t, _, err := b.run(ctx, release, when, "cp", "--sparse=always", node, guestResults+"/"+cpFile(when))
	if err != nil {
		return err
	}
	// Its blocks tell whether what is left out became holes.
	size, err := b.guest.Run(ctx, "stat", "-c", "%s %b", guestResults+"/"+cpFile(when))
	if err != nil {
		return err
	}
	var bytes, blocks int64
	if _, err := fmt.Sscan(size.Stdout, &bytes, &blocks); err != nil {
		return fmt.Errorf("the copy's size: %q: %w", size.Stdout, err)
	}
	if blocks*512 > bytes*9/10 {
		return fmt.Errorf("the copy of %d bytes takes %d: it has no holes", bytes, blocks*512)
	}
	t.Passed = true
	return nil
}

func (b *bench) drgn(ctx context.Context, release, when string) error {
	t, said, err := b.run(ctx, release, when, "drgn", "-q", "-c", node, "-s", guestTools+"/vmlinux", guestTools+"/judge.py", strconv.Itoa(b.parkedTID))
	if err != nil {
		return err
	}
	if err := judge.CheckDrgn(said, b.expect); err != nil {
		return fmt.Errorf("Debian %s: %w", release, err)
	}
	t.Passed = true
	return nil
}

func (b *bench) crash(ctx context.Context, release, when string) error {
	dir := fmt.Sprintf("%s/crash-%s-%s", guestResults, release, when)
	if _, err := b.guest.Run(ctx, "mkdir", dir); err != nil {
		return err
	}
	script := judge.CrashScript(b.parkedTID, dir)
	if err := b.guest.Put(ctx, dir+"/commands", 0o644, strings.NewReader(script)); err != nil {
		return err
	}
	t, said, err := b.run(ctx, release, when, "crash", "-s", "-i", dir+"/commands", guestTools+"/vmlinux", node)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	fmt.Fprint(&text, said)
	err = judge.CheckCrash(said, func(name string) ([]byte, error) { return b.guest.ReadFile(ctx, dir+"/"+name) }, b.expect, &text)
	name := fmt.Sprintf("crash-%s-%s.txt", release, when)
	if err := errors.Join(err, os.WriteFile(filepath.Join(b.o.out, name), text.Bytes(), 0o644)); err != nil {
		return fmt.Errorf("Debian %s: %w", release, err)
	}
	t.Passed = true
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
		step("%s: %d pages, %d equal to the streamed dump's, %d mismatches, %d differ and may", c.File, c.Pages, c.Equal, c.Mismatches, c.UncoveredDiffer)
		b.report.Comparisons = append(b.report.Comparisons, c)
		problems = append(problems, c.err())
	}
	return errors.Join(problems...)
}

// result copies a file off the disk with the results.
func (b *bench) result(ctx context.Context, name string) (file string, err error) {
	file = filepath.Join(b.o.out, name)
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
