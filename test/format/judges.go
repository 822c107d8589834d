// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"livedump.io/internal/convert"
	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
)

// judgement has the readers of two releases look at the image in every form.
type judgement struct {
	image        *image
	dir          string
	newer, older reader
}

// Debian's makedumpfile is built without snappy.
var forms = []form{
	{name: "zstd.kdump", format: format.Kdump, codec: kdump.CodecZstd, both: true, makedumpfile: true},
	{name: "zlib.kdump", format: format.Kdump, codec: kdump.CodecZlib, makedumpfile: true},
	{name: "snappy.kdump", format: format.Kdump, codec: kdump.CodecSnappy},
	{name: "none.kdump", format: format.Kdump, codec: kdump.CodecNone, makedumpfile: true},
	{name: "zstd.flat", format: format.Flattened, codec: kdump.CodecZstd, both: true},
	{name: "split.kdump", format: format.Kdump, codec: kdump.CodecZstd, parts: 3},
	{name: "vmcore.elf", format: format.ELF, codec: kdump.CodecNone, both: true, makedumpfile: true},
}

// crash 8 (trixie) ends while it looks for the active tasks of Debian's 6.1 cloud kernel in QEMU's own dump: it takes
// the stack of an exception that this kernel does not have for one of size zero. So it reads without tasks.
var (
	fullCrash    = crashSession{args: []string{"-s"}, commands: "sys\nps\nmod\nlog\nkmem -i\nforeach bt\nquit\n", must: []string{hostname, "kthreadd"}}
	minimalCrash = crashSession{args: []string{"-s", "--minimal"}, commands: "log\nrd -p 0x1000000 2048\nsym init_task\nrd init_task 64\nquit\n", must: []string{"Linux version", "init_task"}}
)

func (j *judgement) all(ctx context.Context) error {
	want, err := j.newer.crash([]string{"core.elf"}, fullCrash)
	if err != nil {
		return fmt.Errorf("crash on QEMU's own dump: %w", err)
	}
	wantMinimal, err := j.older.crash([]string{"core.elf"}, minimalCrash)
	if err != nil {
		return fmt.Errorf("crash of %s on QEMU's own dump: %w", j.older.release, err)
	}
	// Two at a time: a reader is one thread.
	var mu sync.Mutex
	var problems []error
	var judges sync.WaitGroup
	slots := make(chan struct{}, 2)
	judge := func(name, what string, f func() error) {
		judges.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			start := time.Now()
			err := f()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				problems = append(problems, fmt.Errorf("%s: %s: %w", name, what, err))
				return
			}
			fmt.Printf("format: %-12s %s (%.1f s)\n", name, what, time.Since(start).Seconds())
		})
	}
	for _, f := range forms {
		s, err := j.image.write(ctx, j.dir, f, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		fmt.Printf("format: %-12s %d pages, %d bytes\n", f.name, s.Pages, s.Bytes)
		if f.parts > 0 {
			judge(f.name, "crash "+j.newer.release+" reads all parts together", func() error { return j.compareCrash(j.newer, f.files(), fullCrash, want) })
			judge(f.name, "crash "+j.older.release+" reads all parts together", func() error { return j.compareCrash(j.older, f.files(), minimalCrash, wantMinimal) })
			judge(f.name, "makedumpfile makes one dump of them, of which drgn reads every page", func() error { return j.reassemble(f) })
			judge(f.name, "livedump makes one dump of them", func() error { return j.join(ctx, f) })
			judge(f.name, "crash "+j.newer.release+" reads the parts of a filtered dump as it reads that dump", func() error { return j.filteredParts(ctx, f.parts) })
			continue
		}
		// The codecs differ in nothing but the pages, so the tasks are looked at in one of them.
		older := "crash " + j.older.release + " reads what it reads of QEMU's dump"
		if f.both {
			judge(f.name, "crash "+j.newer.release+" says what it says of QEMU's dump", func() error { return j.compareCrash(j.newer, f.files(), fullCrash, want) })
			judge(f.name, "drgn "+j.older.release+" reads every page", func() error { return j.compareDrgn(j.older, f.name, j.image.digest, nil) })
		}
		judge(f.name, older, func() error { return j.compareCrash(j.older, f.files(), minimalCrash, wantMinimal) })
		judge(f.name, "drgn "+j.newer.release+" reads every page", func() error { return j.compareDrgn(j.newer, f.name, j.image.digest, nil) })
		if f.format == format.Flattened {
			judge(f.name, "makedumpfile -R makes the plain dump that livedump makes", func() error { return j.rearrange(ctx, f.name) })
		}
		if f.makedumpfile {
			judge(f.name, "makedumpfile finds the log", func() error { return j.dmesg(f.name) })
			judge(f.name, "makedumpfile takes kernel memory out of it", func() error { return j.refilter(f.name) })
		}
	}
	judges.Wait()
	// Lost pages can be part of a stack, so crash has less to say; drgn must miss these pages and no others.
	for _, f := range []form{{name: "lost.kdump", format: format.Kdump}, {name: "lost.elf", format: format.ELF}} {
		if _, err := j.image.write(ctx, j.dir, f, j.image.lost); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		judge(f.name, fmt.Sprintf("drgn misses the %d lost pages, and no other", len(j.image.lost)), func() error {
			return j.compareDrgn(j.newer, f.name, j.image.digestOfRest, j.image.lost)
		})
	}
	if err := j.torn(ctx, judge); err != nil {
		return err
	}
	judges.Wait()
	return errors.Join(problems...)
}

// crashSession is how crash is run.
type crashSession struct {
	args     []string
	commands string
	must     []string // what it must say
}

// crash returns what crash says of a dump, but for the lines that name its files.
func (r reader) crash(files []string, s crashSession) (string, error) {
	commands := "crash-" + r.release + "-" + files[0]
	if err := os.WriteFile(filepath.Join(r.dir, commands), []byte(s.commands), 0o644); err != nil {
		return "", err
	}
	argv := append([]string{"crash"}, s.args...)
	argv = append(argv, "-i", "/judge/format/"+commands, "/judge/vmlinux")
	for _, f := range files {
		argv = append(argv, "/judge/format/"+f)
	}
	out, err := r.run(argv...)
	if err != nil {
		return "", err
	}
	var kept []string
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "DUMPFILE") && !strings.Contains(line, "/judge/format/") {
			kept = append(kept, line)
		}
	}
	said := strings.Join(kept, "")
	for _, must := range s.must {
		if !strings.Contains(said, must) {
			return "", fmt.Errorf("crash does not say %q: %s", must, said[:min(len(said), 1000)])
		}
	}
	return said, nil
}

func (j *judgement) compareCrash(r reader, files []string, s crashSession, want string) error {
	got, err := r.crash(files, s)
	if err != nil || got == want {
		return err
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Errorf("crash says %q, of QEMU's dump %q", g[i], w[i])
		}
	}
	return fmt.Errorf("crash says %d lines, of QEMU's dump %d", len(g), len(w))
}

func (j *judgement) compareDrgn(r reader, name string, digest [sha256.Size]byte, lost []uint64) error {
	argv := []string{"drgn", "-q", "-c", "/judge/format/" + name, "-s", "/judge/vmlinux", "/judge/format/pages.py"}
	for _, ram := range j.image.meta.RAM {
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

// makedumpfile runs a shell script in which $1 is the dump and the working folder is a new one; it returns that folder.
func (j *judgement) makedumpfile(name, script string) (string, error) {
	dir, err := os.MkdirTemp(j.dir, "makedumpfile.")
	if err != nil {
		return "", err
	}
	_, err = j.newer.runWith([]string{"--bind", dir + ":/judge/out"}, "sh", "-ec", "cd /judge/out; "+script, "sh", "/judge/format/"+name)
	return dir, err
}

func (j *judgement) dmesg(name string) error {
	dir, err := j.makedumpfile(name, `makedumpfile --dump-dmesg "$1" log`)
	if err != nil {
		return err
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err == nil && !strings.Contains(string(log), "Linux version "+j.image.meta.Utsname.Release) {
		err = fmt.Errorf("the log that it finds has %d bytes and not the kernel's first line", len(log))
	}
	return err
}

// refilter has makedumpfile leave out what is no kernel memory, and compares what is left with the image.
func (j *judgement) refilter(name string) error {
	dir, err := j.makedumpfile(name, `makedumpfile -c -d 31 "$1" filtered`)
	if err != nil {
		return err
	}
	return j.compareFiltered(filepath.Join(dir, "filtered"))
}

func (j *judgement) compareFiltered(path string) error {
	r, err := kdump.Open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	want, got := make([]byte, kdump.PageSize), make([]byte, kdump.PageSize)
	kept := 0
	for _, pfn := range j.image.pfns {
		_, err := r.ReadPage(pfn, got)
		if errors.Is(err, kdump.ErrExcluded) {
			continue
		}
		if err == nil {
			err = j.image.page(pfn, want)
		}
		if err != nil {
			return err
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("page frame %#x has other content than in the image", pfn)
		}
		kept++
	}
	// The kernel of a guest that has just booted: neither next to nothing nor most of its memory.
	if all := len(j.image.pfns); kept < all/50 || kept > all*9/10 {
		return fmt.Errorf("%d of %d pages are left", kept, all)
	}
	return nil
}

// reassemble has makedumpfile put the parts together, and drgn read all of the result.
func (j *judgement) reassemble(f form) error {
	var parts []string
	for _, name := range f.files() {
		parts = append(parts, "/judge/format/"+name)
	}
	dir, err := j.makedumpfile(f.name, "makedumpfile --reassemble "+strings.Join(parts, " ")+" whole")
	if err != nil {
		return err
	}
	name, err := filepath.Rel(j.dir, filepath.Join(dir, "whole"))
	if err != nil {
		return err
	}
	return j.compareDrgn(j.newer, name, j.image.digest, nil)
}

// join does that with livedump, for the parts in another order, and wants all of them.
func (j *judgement) join(ctx context.Context, f form) error {
	var parts []string
	for _, name := range f.files() {
		parts = append(parts, filepath.Join(j.dir, name))
	}
	slices.Reverse(parts)
	if _, err := convert.OpenAll(parts[1:]); !errors.Is(err, convert.ErrPart) {
		return fmt.Errorf("livedump on all parts but one: %v, want ErrPart", err)
	}
	s, err := convert.OpenAll(parts)
	if err != nil {
		return err
	}
	defer s.Close()
	name := f.name + ".joined"
	if _, err := convert.Run(ctx, s, filepath.Join(j.dir, name), convert.Options{Verify: true}); err != nil {
		return err
	}
	return j.compareDrgn(j.older, name, j.image.digest, nil)
}

// filteredParts splits a dump that lacks pages everywhere. In one that has them all, a reader that looks for a page's descriptor
// in the wrong place may find it nevertheless.
func (j *judgement) filteredParts(ctx context.Context, parts int) error {
	dir, err := j.makedumpfile(forms[0].name, `makedumpfile -c -d 31 "$1" filtered`)
	if err != nil {
		return err
	}
	whole := form{name: "filtered.kdump"}
	split := form{name: "filtered.split", parts: parts}
	if err := os.Rename(filepath.Join(dir, "filtered"), filepath.Join(j.dir, whole.name)); err != nil {
		return err
	}
	want, err := j.newer.crash(whole.files(), fullCrash)
	if err != nil {
		return err
	}
	s, err := convert.Open(filepath.Join(j.dir, whole.name))
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := convert.Run(ctx, s, filepath.Join(j.dir, split.name), convert.Options{Parts: parts}); err != nil {
		return err
	}
	return j.compareCrash(j.newer, split.files(), fullCrash, want)
}

// rearrange compares byte for byte.
func (j *judgement) rearrange(ctx context.Context, name string) error {
	dir, err := j.makedumpfile(name, `makedumpfile -R theirs <"$1"`)
	if err != nil {
		return err
	}
	ours, theirs := filepath.Join(dir, "ours"), filepath.Join(dir, "theirs")
	if _, err := convert.Rearrange(ctx, filepath.Join(j.dir, name), ours, nil); err != nil {
		return err
	}
	a, err := os.ReadFile(ours)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(theirs)
	if err != nil {
		return err
	}
	if !slices.Equal(a, b) {
		return fmt.Errorf("%d bytes, %d of livedump, and they differ", len(b), len(a))
	}
	return nil
}
