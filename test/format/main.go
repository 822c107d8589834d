// SPDX-License-Identifier: Apache-2.0

// Command format shows that dumps are what their readers expect, without the kernel module:
// QEMU dumps a guest's memory as an ELF core, the pages of which are written in every format and
// compression. crash must say the same of both, drgn must read the same bytes from every page, and
// makedumpfile must take its part from them.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"livedump.io/test/guest"
)

//go:embed pages.py
var pagesScript []byte

const hostname = "format-guest"

func main() {
	series := flag.String("kernel", "6.1", "kernel `series`")
	mem := flag.Int("mem", 256, "memory of the guest in `MiB`")
	core := flag.String("core", "", "judge with this `file`, QEMU's dump that an earlier run kept, instead of a new guest's")
	keep := flag.String("keep", "", "keep all files in this `directory`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx, *series, *mem, *keep, *core); err != nil {
		fmt.Fprintln(os.Stderr, "format:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, series string, mem int, keep, given string) (err error) {
	dir, err := os.MkdirTemp("", "livedump-format.")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if keep != "" {
		if dir, err = filepath.Abs(keep); err != nil {
			return err
		}
	}
	kernel, err := guest.FetchKernel(ctx, series)
	if err != nil {
		return err
	}
	vmlinux, err := kernel.FetchVmlinux(ctx)
	if err != nil {
		return err
	}
	core := filepath.Join(dir, "core.elf")
	if given != "" {
		err = os.Link(given, core)
	} else {
		fmt.Println("format: booting a guest and having QEMU dump its memory")
		err = dumpGuest(ctx, kernel, mem, core)
	}
	if err != nil {
		return err
	}
	m, err := openImage(core, hostname)
	if err != nil {
		return err
	}
	defer m.file.Close()
	if err := os.WriteFile(filepath.Join(dir, "pages.py"), pagesScript, 0o644); err != nil {
		return err
	}

	newer := reader{ctx: ctx, dir: dir, vmlinux: vmlinux, release: "forky"}
	older := reader{ctx: ctx, dir: dir, vmlinux: vmlinux, release: "trixie"}
	for _, r := range []*reader{&newer, &older} {
		if r.root, err = guest.Hack(ctx, "debian-chroot", r.release, "judge", "crash", "python3-drgn", "makedumpfile"); err != nil {
			return err
		}
	}
	return (&judgement{image: m, dir: dir, newer: newer, older: older}).all(ctx)
}

func dumpGuest(ctx context.Context, kernel *guest.Kernel, mem int, core string) error {
	g, err := guest.Start(ctx, guest.Config{Kernel: kernel, MemoryMiB: mem, Hostname: hostname})
	if err != nil {
		return err
	}
	return errors.Join(g.Dump(ctx, core, guest.DumpELF), g.Stop())
}

// reader is crash and drgn of one Debian release.
type reader struct {
	ctx                         context.Context
	release, root, dir, vmlinux string
}

func (r reader) run(argv ...string) (string, error) { return r.runWith(nil, argv...) }

// runWith runs a command in the reader's chroot, with more of the machine bound into it.
func (r reader) runWith(binds []string, argv ...string) (string, error) {
	repo, err := guest.RepoRoot()
	if err != nil {
		return "", err
	}
	args := append([]string{r.root, "--ro", r.vmlinux + ":/judge/vmlinux", "--ro", r.dir + ":/judge/format"}, binds...)
	args = append(append(args, "--"), argv...)
	out, err := exec.CommandContext(r.ctx, filepath.Join(repo, "hack", "in-chroot"), args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", argv[0], err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}
