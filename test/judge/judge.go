// SPDX-License-Identifier: Apache-2.0

// Package judge has the readers that people use, crash and drgn, read a dump, and
// compares what they see with what the machine said of itself around the freeze.
// The readers are those of newer Debian releases, in chroots: Debian 12's cannot
// read the tasks of its own kernels.
package judge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"livedump.io/test/guest"
)

// Input is one dump to judge.
type Input struct {
	// Dump is the file.
	Dump string
	// Parts are, in place of Dump, the files that a dump is split among. crash reads them together; drgn, which takes one file, what
	// makedumpfile makes of them.
	Parts []string
	// Kernel is whose debug information is used.
	Kernel *guest.Kernel
	// Expect is what the readers must see.
	Expect Expectation
	// OutDir gets crash.txt and drgn.txt, the readers' whole output.
	OutDir string
	// AnyFormat accepts a dump that is not kdump-compressed. Without it the dump
	// must be, so that drgn reads it with libkdumpfile.
	AnyFormat bool
	// ModuleFiles are modules whose functions the readers must know by name.
	ModuleFiles []string
	// Progress, if set, is told what begins.
	Progress func(format string, args ...any)
}

// Reader is one version of the readers.
type Reader struct {
	// Codename is the Debian release they are from.
	Codename string
	// Crash and Drgn say which of them can judge.
	Crash, Drgn bool
}

// packages are what the chroot of a reader has.
var packages = []string{"crash", "python3-drgn", "makedumpfile"}

// commands are crash's, each with the name of the file that takes its output.
func commands(parked int, moduleFiles []string) [][2]string {
	list := [][2]string{{"sys", "sys"}, {"ps", "ps"}}
	for _, file := range moduleFiles {
		name := strings.TrimSuffix(filepath.Base(file), ".ko")
		list = append(list, [2]string{"mod-" + name, "mod -s " + name + " /judge/io/" + name + ".ko"})
	}
	if parked != 0 {
		list = append(list, [2]string{"btParked", "bt " + strconv.Itoa(parked)})
	}
	return append(list, [][2]string{
		{"btAll", "bt -a"}, {"btEach", "foreach bt"}, {"mod", "mod"}, {"kmem", "kmem -i"}, {"log", "log"},
	}...)
}

// Readers says which readers can judge a kernel's dumps.
//
// crash 8.0.6 (Debian 13) cannot show the active tasks of a kernel without
// machine-check support, which Debian's 6.1 cloud kernel is: it takes the stack
// of a missing exception to be one of size zero, and gives up there, whatever the
// dump. crash 9 (Debian 14) can.
//
// crash 9.0.1 asks for a member of struct module that kernel 7.2 no longer has, before it has
// opened any dump; and drgn 0.0.31 (Debian 13) does not know that kernel's unwind tables.
// drgn 0.3.0 (Debian 14) does.
func Readers(kernel *guest.Kernel) ([]Reader, error) {
	machineCheck, err := kernel.Configured("X86_MCE")
	if err != nil {
		return nil, err
	}
	header, err := kernel.ReadHeader("linux/module.h")
	if err != nil {
		return nil, err
	}
	known := bytes.Contains(header, []byte("num_gpl_syms"))
	return []Reader{
		{Codename: "forky", Crash: known, Drgn: true},
		{Codename: "trixie", Crash: known && machineCheck, Drgn: known},
	}, nil
}

// Prepare makes the chroots of the readers, which takes a minute or two on first
// use, and fetches the kernel's debug information.
func Prepare(ctx context.Context, kernel *guest.Kernel) error {
	readers, err := Readers(kernel)
	if err != nil {
		return err
	}
	for _, r := range readers {
		if _, err := Chroot(ctx, r.Codename); err != nil {
			return err
		}
	}
	_, err = kernel.FetchVmlinux(ctx)
	return err
}

// Chroot returns the directory with the readers of a Debian release, which is made if need be.
func Chroot(ctx context.Context, codename string) (string, error) {
	return guest.Hack(ctx, "debian-chroot", append([]string{codename, "judge"}, packages...)...)
}

// Judge runs the readers on a dump and returns nil if all of them see what is
// expected. The readers' output is written whatever they say.
func Judge(ctx context.Context, in Input) error {
	if in.Progress == nil {
		in.Progress = func(string, ...any) {}
	}
	for _, file := range in.files() {
		if in.AnyFormat {
			break
		}
		if err := checkMagic(file); err != nil {
			return err
		}
	}
	readers, err := Readers(in.Kernel)
	if err != nil {
		return err
	}
	vmlinux, err := in.Kernel.FetchVmlinux(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(in.OutDir, 0o755); err != nil {
		return err
	}
	texts := map[string]*bytes.Buffer{"crash.txt": {}, "drgn.txt": {}}
	var problems []error
	for _, r := range readers {
		problem := judgeWith(ctx, r, in, vmlinux, texts["crash.txt"], texts["drgn.txt"])
		if problem != nil {
			problems = append(problems, fmt.Errorf("readers of Debian %s: %w", r.Codename, problem))
		}
	}
	for name, text := range texts {
		if err := os.WriteFile(filepath.Join(in.OutDir, name), text.Bytes(), 0o644); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// files are the dump's.
func (in *Input) files() []string {
	if len(in.Parts) > 0 {
		return in.Parts
	}
	return []string{in.Dump}
}

// checkMagic checks that the file is a kdump-compressed dump.
func checkMagic(dump string) error {
	f, err := os.Open(dump)
	if err != nil {
		return err
	}
	defer f.Close()
	magic := make([]byte, 8)
	if _, err := io.ReadFull(f, magic); err != nil {
		return fmt.Errorf("%s: %w", dump, err)
	}
	if string(magic) != "KDUMP   " {
		return fmt.Errorf("%s is not a kdump-compressed dump: it begins with %q", dump, magic)
	}
	return nil
}

func judgeWith(ctx context.Context, r Reader, in Input, vmlinux string, crashText, drgnText io.Writer) (err error) {
	root, err := Chroot(ctx, r.Codename)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "livedump-judge-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	c := call{ctx: ctx, root: root, work: work, vmlinux: vmlinux, files: in.files(), moduleFiles: in.ModuleFiles}
	for _, file := range in.ModuleFiles {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(work, filepath.Base(file)), b, 0o644); err != nil {
			return err
		}
	}
	var problems []error
	if r.Crash {
		in.Progress("crash of Debian %s reads the dump", r.Codename)
		out, err := c.crash(in.Expect.ParkedTID, crashText)
		if err == nil {
			err = checkCrash(out, in.Expect)
		}
		problems = append(problems, err)
	}
	if r.Drgn {
		in.Progress("drgn of Debian %s reads the dump", r.Codename)
		out, err := c.drgn(in.Expect, drgnText)
		if err == nil {
			err = checkDrgn(out, in.Expect)
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// call runs programs in a reader's chroot.
type call struct {
	ctx                 context.Context
	root, work, vmlinux string
	files               []string // of the dump
	moduleFiles         []string
}

// dump is where the programs have the files of the dump.
func (c call) dump() []string {
	if len(c.files) == 1 {
		return []string{"/judge/dump"}
	}
	var parts []string
	for i := range c.files {
		parts = append(parts, fmt.Sprintf("/judge/dump.%d", i+1))
	}
	return parts
}

// reassembled is one file with the dump, which makedumpfile makes of the parts.
func (c call) reassembled() (string, error) {
	parts := c.dump()
	if len(parts) == 1 {
		return parts[0], nil
	}
	const whole = "/judge/io/whole"
	_, err := c.run(slices.Concat([]string{"makedumpfile", "--reassemble"}, parts, []string{whole})...)
	return whole, err
}

// patience is how long one reader may take.
const patience = 10 * time.Minute

// run returns what the program says on both outputs.
func (c call) run(argv ...string) (string, error) {
	repo, err := guest.RepoRoot()
	if err != nil {
		return "", err
	}
	args := []string{c.root, "--ro", c.vmlinux + ":/judge/vmlinux", "--bind", c.work + ":/judge/io"}
	for i, inside := range c.dump() {
		file, err := filepath.Abs(c.files[i])
		if err != nil {
			return "", err
		}
		args = append(args, "--ro", file+":"+inside)
	}
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(repo, "hack", "in-chroot"), slices.Concat(args, []string{"--"}, argv)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", argv[0], err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

func (c call) crash(parked int, text io.Writer) (crashOutput, error) {
	list := commands(parked, c.moduleFiles)
	if err := os.WriteFile(filepath.Join(c.work, "commands"), []byte(crashScript(list, "/judge/io")), 0o644); err != nil {
		return crashOutput{}, err
	}
	version, err := c.run("crash", "--version")
	if err != nil {
		return crashOutput{}, err
	}
	first, _, _ := strings.Cut(strings.TrimSpace(version), "\n")
	fmt.Fprintf(text, "### %s\n", first)
	session, runErr := c.run(append([]string{"crash", "-s", "-i", "/judge/io/commands", "/judge/vmlinux"}, c.dump()...)...)
	fmt.Fprint(text, session)
	out, err := readCrashOutput(session, list, func(name string) ([]byte, error) {
		return os.ReadFile(filepath.Join(c.work, name))
	}, text)
	if runErr != nil {
		err = runErr
	}
	return out, err
}

func (c call) drgn(e Expectation, text io.Writer) (drgnOutput, error) {
	if err := os.WriteFile(filepath.Join(c.work, "judge.py"), drgnScript, 0o644); err != nil {
		return drgnOutput{}, err
	}
	version, err := c.run("drgn", "--version")
	if err != nil {
		return drgnOutput{}, err
	}
	fmt.Fprintf(text, "### %s\n", strings.TrimSpace(version))
	dump, err := c.reassembled()
	if err != nil {
		return drgnOutput{}, err
	}
	argv := []string{"drgn", "-q", "-c", dump, "-s", "/judge/vmlinux"}
	for _, file := range c.moduleFiles {
		argv = append(argv, "-s", "/judge/io/"+filepath.Base(file))
	}
	argv = append(argv, "/judge/io/judge.py")
	if e.ParkedTID != 0 {
		argv = append(argv, strconv.Itoa(e.ParkedTID))
	}
	for _, task := range e.Active {
		argv = append(argv, strconv.Itoa(task.TID))
	}
	out, err := c.run(argv...)
	fmt.Fprintln(text, out)
	if err != nil {
		return drgnOutput{}, err
	}
	return parseDrgn(out)
}
