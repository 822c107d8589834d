// SPDX-License-Identifier: Apache-2.0

// Command format shows that dumps of internal/kdump are what their readers expect,
// without the kernel module: QEMU dumps a guest's memory as an ELF core, the pages
// of which are written as kdump-compressed dumps. crash must say the same of both,
// and drgn must read the same bytes from every page, in every codec.
package main

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"livedump.io/internal/kdump"
	"livedump.io/test/guest"
)

//go:embed pages.py
var pagesScript []byte

const hostname = "format-guest"

func main() {
	series := flag.String("kernel", "6.1", "kernel `series`")
	mem := flag.Int("mem", 256, "memory of the guest in `MiB`")
	keep := flag.String("keep", "", "keep all files in this `directory`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx, *series, *mem, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "format:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, series string, mem int, keep string) (err error) {
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
	fmt.Println("format: booting a guest and having QEMU dump its memory")
	if err := dumpGuest(ctx, kernel, mem, core); err != nil {
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

	// crash 8 (trixie) ends while it looks for the active tasks of Debian's 6.1 cloud kernel in QEMU's
	// own dump: it takes the stack of an exception that this kernel does not have for one of size zero.
	newer := reader{ctx: ctx, dir: dir, vmlinux: vmlinux, release: "forky"}
	older := reader{ctx: ctx, dir: dir, vmlinux: vmlinux, release: "trixie"}
	for _, r := range []*reader{&newer, &older} {
		if r.root, err = guest.Hack(ctx, "debian-chroot", r.release, "judge", "crash", "python3-drgn", "makedumpfile"); err != nil {
			return err
		}
	}
	want, err := newer.crash("core.elf")
	if err != nil {
		return fmt.Errorf("crash on QEMU's own dump: %w", err)
	}
	var problems []error
	for _, codec := range []kdump.Codec{kdump.CodecZstd, kdump.CodecZlib, kdump.CodecSnappy, kdump.CodecNone} {
		name := codec.String() + ".kdump"
		s, err := m.convert(ctx, filepath.Join(dir, name), codec, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", codec, err)
		}
		problem := errors.Join(m.compareCrash(newer, name, want),
			m.compareDrgn(newer, name, m.digest, nil), m.compareDrgn(older, name, m.digest, nil))
		if problem != nil {
			problems = append(problems, fmt.Errorf("%s: %w", codec, problem))
			continue
		}
		fmt.Printf("format: %-6s %d pages in %d MiB: crash and drgn see what they see in QEMU's dump\n", codec, s.Pages, s.Bytes>>20)
	}
	// Lost pages can be part of a stack, so crash has less to say; drgn must miss these pages and no others.
	if _, err := m.convert(ctx, filepath.Join(dir, "lost.kdump"), kdump.CodecZstd, m.lost); err != nil {
		return fmt.Errorf("with lost pages: %w", err)
	}
	if err := m.compareDrgn(newer, "lost.kdump", m.digestOfRest, m.lost); err != nil {
		problems = append(problems, fmt.Errorf("with lost pages: %w", err))
	} else {
		fmt.Printf("format: drgn misses the %d lost pages, and no other\n", len(m.lost))
	}
	return errors.Join(problems...)
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

func (r reader) run(argv ...string) (string, error) {
	repo, err := guest.RepoRoot()
	if err != nil {
		return "", err
	}
	args := append([]string{r.root, "--ro", r.vmlinux + ":/judge/vmlinux", "--ro", r.dir + ":/judge/format", "--"}, argv...)
	out, err := exec.CommandContext(r.ctx, filepath.Join(repo, "hack", "in-chroot"), args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", argv[0], err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

const crashCommands = "sys\nps\nmod\nlog\nkmem -i\nforeach bt\nquit\n"

// crash returns what crash says of a dump, but for the lines that name the file.
func (r reader) crash(name string) (string, error) {
	if err := os.WriteFile(filepath.Join(r.dir, "commands"), []byte(crashCommands), 0o644); err != nil {
		return "", err
	}
	out, err := r.run("crash", "-s", "-i", "/judge/format/commands", "/judge/vmlinux", "/judge/format/"+name)
	if err != nil {
		return "", err
	}
	var kept []string
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "DUMPFILE:") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, ""), nil
}

func (m *image) compareCrash(r reader, name, want string) error {
	got, err := r.crash(name)
	if err != nil {
		return err
	}
	if got == want && strings.Contains(got, hostname) && strings.Contains(got, "kthreadd") {
		return nil
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Errorf("crash says %q, of QEMU's dump %q", g[i], w[i])
		}
	}
	return fmt.Errorf("crash says %d lines, of QEMU's dump %d", len(g), len(w))
}

func (m *image) compareDrgn(r reader, name string, digest [sha256.Size]byte, lost []uint64) error {
	argv := []string{"drgn", "-q", "-c", "/judge/format/" + name, "-s", "/judge/vmlinux", "/judge/format/pages.py"}
	for _, ram := range m.meta.RAM {
		argv = append(argv, fmt.Sprintf("%d-%d", ram.Start, ram.End))
	}
	out, err := r.run(argv...)
	if err != nil {
		return err
	}
	var got struct {
		SHA256 string   `json:"sha256"`
		Faults []uint64 `json:"faults"`
		Tasks  []int    `json:"tasks"`
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
		return fmt.Errorf("drgn: %w: %s", err, out)
	}
	switch {
	case !slices.Equal(got.Faults, lost):
		return fmt.Errorf("drgn of %s cannot read pages %v, lost were %v", r.release, got.Faults, lost)
	case got.SHA256 != fmt.Sprintf("%x", digest):
		return fmt.Errorf("drgn of %s reads other content: SHA-256 %s, want %x", r.release, got.SHA256, digest)
	case len(got.Tasks) < 20:
		return fmt.Errorf("drgn of %s lists only the tasks %v", r.release, got.Tasks)
	}
	return nil
}
