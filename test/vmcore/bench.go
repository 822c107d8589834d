// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"livedump.io/test/guest"
	"livedump.io/test/judge"
	"livedump.io/test/trial"
	"livedump.io/test/workload/provide"
)

// Paths in the guest. The disk with the tools has a directory for each Debian release, and what
// they share in /tools; each release sees it, and the disk that takes results, at the same places.
const (
	guestModule   = "/opt/livedump.ko"
	guestPGTables = "/opt/livedump_pgtables.ko"
	guestAgent    = "/opt/livedump-agent"
	guestReport   = "/tmp/report.json"
	guestTarget   = "/dev/vdc"
	guestTools    = "/tools"
	guestResults  = "/results"
	node          = "/dev/livedump-vmcore"

	settleTimeout = 3 * time.Minute
	sessionWait   = 10 * time.Minute
	churnAllowed  = 20
)

//go:embed probe.py
var probeScript []byte

//go:embed pages.py
var pagesScript []byte

// bench is a guest with the tools on a disk and a workload.
type bench struct {
	o       options
	kernel  *guest.Kernel
	vmlinux string
	readers []judge.Reader
	guest   *guest.Guest
	images  map[string]string // by what they are for

	workload *provide.Workload

	report   Report
	versions map[string]string
	expect   judge.Expectation
}

func newBench(ctx context.Context, o options, kernel *guest.Kernel) (b *bench, err error) {
	b = &bench{o: o, kernel: kernel, images: map[string]string{}, versions: map[string]string{}}
	b.report = Report{Kernel: kernel.Release, MemoryMiB: o.MemoryMiB, GuestCPUs: o.CPUs, KVM: guest.UsesKVM(), Workload: "not finished"}
	if err := judge.Prepare(ctx, kernel); err != nil {
		return nil, err
	}
	if b.readers, err = judge.Readers(kernel); err != nil {
		return nil, err
	}
	if o.short {
		b.readers = b.readers[:1]
	}
	if b.vmlinux, err = kernel.FetchVmlinux(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if err := b.makeDisks(ctx); err != nil {
		return nil, err
	}
	module := func(dir, name string) string { return filepath.Join(o.Bin, dir, kernel.Release, name) }
	trial.Step("boot kernel %s with %d MiB and %d CPUs", kernel.Release, o.MemoryMiB, o.CPUs)
	b.guest, err = guest.Start(ctx, guest.Config{
		Kernel: kernel, Dir: o.Out, Console: filepath.Join(o.Out, "guest.log"),
		MemoryMiB: o.MemoryMiB, CPUs: o.CPUs, CPU: o.cpu, Hostname: "livedump-guest",
		Modules: []string{"ext4"},
		Disks: []guest.Disk{
			{Image: b.images["tools"], Serial: "tools", Snapshot: true},
			{Image: b.images["results"], Serial: "results"},
			{Image: b.images["target"], Serial: "livedump-target"},
		},
		Files: []guest.File{
			{Path: guestModule, Source: module("kmod", "livedump.ko")},
			{Path: guestPGTables, Source: module("kmod-test", "livedump_pgtables.ko")},
			{Path: guestAgent, Source: filepath.Join(o.Bin, "livedump-agent")},
			provide.File(filepath.Join(o.Bin, "workload")),
		},
	})
	if err != nil {
		return nil, err
	}
	return b, b.setUp(ctx)
}

// makeDisks makes the disk with the tools, the one for what they write, and the streamed dump's target.
func (b *bench) makeDisks(ctx context.Context) error {
	trial.Step("make the disk with the readers")
	files := []guest.File{
		{Path: "/shared/vmlinux", Source: b.vmlinux},
		{Path: "/shared/judge.py", Data: judge.DrgnScript()},
		{Path: "/shared/probe.py", Data: probeScript},
	}
	for _, r := range b.readers {
		root, err := judge.Chroot(ctx, r.Codename)
		if err != nil {
			return err
		}
		files = append(files, guest.File{Path: "/" + r.Codename, Source: root})
	}
	for _, name := range []string{"tools", "results", "target"} {
		b.images[name] = filepath.Join(b.o.Out, name+".img")
	}
	if err := guest.BuildDisk(ctx, b.images["tools"], 2048, files); err != nil {
		return err
	}
	// Sparse images: what counts is what is written.
	if err := guest.BuildDisk(ctx, b.images["results"], 3*b.o.MemoryMiB+1024, nil); err != nil {
		return err
	}
	return guest.CreateImage(b.images["target"], b.o.MemoryMiB+256)
}

const setUpScript = `
set -e
mkdir -p ` + guestTools + ` ` + guestResults + `
mount -t ext4 /dev/vda ` + guestTools + `
mount -t ext4 /dev/vdb ` + guestResults + `
for release in "$@"; do
	root=` + guestTools + `/$release
	mkdir -p $root` + guestTools + ` $root` + guestResults + `
	mount --rbind /dev $root/dev
	mount -t proc proc $root/proc
	mount --bind ` + guestTools + `/shared $root` + guestTools + `
	mount --bind ` + guestResults + ` $root` + guestResults + `
done
`

func (b *bench) setUp(ctx context.Context) error {
	argv := []string{"sh", "-c", setUpScript, "setup"}
	for _, r := range b.readers {
		argv = append(argv, r.Codename)
	}
	if _, err := b.guest.Run(ctx, argv...); err != nil {
		return err
	}
	for _, module := range []string{guestPGTables, guestModule} {
		if _, err := b.guest.Run(ctx, "insmod", module); err != nil {
			return err
		}
	}
	for _, r := range b.readers {
		for name, argv := range map[string][]string{
			"makedumpfile": {"makedumpfile", "-v"}, "crash": {"crash", "--version"},
			"drgn": {"drgn", "--version"}, "cp": {"cp", "--version"},
		} {
			out, err := b.inChroot(ctx, r.Codename, argv...)
			if err != nil {
				return err
			}
			first, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
			b.versions[r.Codename+" "+name] = strings.TrimSpace(first)
		}
	}
	return nil
}

// close ends the guest and removes the disks. It may be called twice.
func (b *bench) close() error {
	var problems []error
	if b.guest != nil {
		problems = append(problems, b.guest.Stop())
		b.guest = nil
	}
	for _, image := range b.images {
		if err := os.Remove(image); err != nil && !os.IsNotExist(err) {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// chrooted is a command of a release. /usr/bin/env by its path is the release's own, not busybox.
func chrooted(release string, argv ...string) []string {
	return append([]string{"chroot", guestTools + "/" + release, "/usr/bin/env", "-i",
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb"}, argv...)
}

// inChroot returns what the program says on both outputs.
func (b *bench) inChroot(ctx context.Context, release string, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionWait)
	defer cancel()
	said := &guest.Output{}
	c := b.guest.Command(chrooted(release, argv...)...)
	c.Stdout, c.Stderr = said, said
	if err := c.Run(ctx); err != nil {
		return said.String(), fmt.Errorf("%s of Debian %s: %w: %s", argv[0], release, err, said.LastLine())
	}
	return said.String(), nil
}

func (b *bench) state(ctx context.Context) (guest.MemoryState, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return b.guest.SettledMemoryState(ctx)
}

func (b *bench) checkRestored(ctx context.Context, before guest.MemoryState) error {
	trial.Step("compare page tables")
	after, err := b.state(ctx)
	if err != nil {
		return err
	}
	return before.Compare(after)
}

// agent makes a dump that keeps its pages.
func (b *bench) agent(pauses string, flags ...string) []string {
	return append([]string{guestAgent, "dump", "--device", guestTarget, "--module", guestModule, "--keep-module",
		"--keep-pages", "--pause-at", pauses, "--report", guestReport}, flags...)
}

// frozen is an agent that makes a dump and waits at some steps.
type frozen struct {
	cmd    *guest.Cmd
	said   *guest.Output
	resume io.WriteCloser
}

// freeze starts a dump that keeps its pages and returns when memory is frozen.
func (b *bench) freeze(ctx context.Context, pauses string, flags ...string) (*frozen, error) {
	f := &frozen{cmd: b.guest.Command(b.agent(pauses, flags...)...), said: &guest.Output{}}
	f.cmd.Stdout, f.cmd.Stderr = f.said, f.said
	f.cmd.Stdin, f.resume = io.Pipe()
	if err := f.cmd.Start(ctx); err != nil {
		return nil, err
	}
	return f, f.paused(ctx, "Writing")
}

func (f *frozen) paused(ctx context.Context, step string) error {
	ctx, cancel := context.WithTimeout(ctx, sessionWait)
	defer cancel()
	_, err := f.said.Wait(ctx, f.cmd, regexp.MustCompile("(?m)^paused before "+step+"$"))
	return err
}

// goOn lets the dump leave its pause.
func (f *frozen) goOn() error {
	_, err := io.WriteString(f.resume, "\n")
	return err
}

// wait returns when the dump has ended.
func (f *frozen) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sessionWait)
	defer cancel()
	if err := f.cmd.Wait(ctx); err != nil {
		return fmt.Errorf("%w; the agent's last words: %s", err, f.said.LastLine())
	}
	return f.resume.Close()
}
