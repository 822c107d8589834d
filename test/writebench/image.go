// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"livedump.io/test/guest"
)

const (
	imageMiB     = 4096
	heapMiB      = 2000 // of the load, in two processes
	loadDeadline = 20 * time.Minute
	// imageVersion changes with what is in the image: the name in the cache has it.
	imageVersion = 1
)

// loadedImage is an ELF core of all memory of a guest of 4 GiB that is in use, made once and kept in
// the cache.
func loadedImage(ctx context.Context, series string) (string, error) {
	cache, err := guest.CacheDir()
	if err != nil {
		return "", err
	}
	kernel, err := guest.FetchKernel(ctx, series)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "memory")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	image := filepath.Join(dir, fmt.Sprintf("%s-%d-v%d.elf", kernel.Release, imageMiB, imageVersion))
	if _, err := os.Stat(image); err == nil {
		return image, nil
	}
	tmp, err := os.MkdirTemp(dir, ".making-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	core := filepath.Join(tmp, "core.elf")
	if err := dumpLoaded(ctx, kernel, tmp, core); err != nil {
		return "", err
	}
	if err := moveProgramHeaders(core); err != nil {
		return "", err
	}
	return image, os.Rename(core, image)
}

// dumpLoaded boots a guest, fills its memory, and has QEMU dump it.
func dumpLoaded(ctx context.Context, kernel *guest.Kernel, tmp, core string) (err error) {
	disk, err := loadDisk(ctx, tmp)
	if err != nil {
		return err
	}
	g, err := guest.Start(ctx, guest.Config{Kernel: kernel, Dir: tmp, MemoryMiB: imageMiB,
		Modules: []string{"ext4"}, Disks: []guest.Disk{{Image: disk, ReadOnly: true}}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Stop()) }()
	if _, err := g.Run(ctx, "sh", "-c", "mkdir -p /data && mount -t ext4 -o ro /dev/vda /data"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, loadDeadline)
	defer cancel()
	for i := range 2 {
		// Garbage is part of a heap, but collecting it takes time where there is no KVM.
		c := g.Command("/data/load", "/data", fmt.Sprint(heapMiB/2))
		c.Env = []string{"GOGC=off", fmt.Sprintf("GOMEMLIMIT=%dMiB", heapMiB*6/10)}
		said := &firstLine{done: make(chan struct{})}
		c.Stdout, c.Stderr = said, said
		if err := c.Start(ctx); err != nil {
			return err
		}
		select {
		case <-said.done:
		case <-c.Exited():
		case <-ctx.Done():
		}
		if line := said.String(); line != "load: full" {
			return fmt.Errorf("process %d of the load says %q: %w", i, line, ctx.Err())
		}
	}
	out, err := g.Run(ctx, "cat", "/proc/meminfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(out.Stdout) {
		for _, name := range []string{"MemTotal", "MemFree", "Cached", "AnonPages", "Slab"} {
			if strings.HasPrefix(line, name+":") {
				fmt.Print("write-bench: the guest's ", line)
			}
		}
	}
	if err := g.Dump(ctx, core, guest.DumpELF); err != nil {
		return err
	}
	return g.CheckConsole()
}

// firstLine keeps what comes before the first end of a line.
type firstLine struct {
	mu   sync.Mutex
	line []byte
	done chan struct{}
	end  bool
}

func (f *firstLine) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if line, _, ends := bytes.Cut(b, []byte("\n")); !f.end {
		f.line = append(f.line, line...)
		if f.end = ends; ends {
			close(f.done)
		}
	}
	return len(b), nil
}

func (f *firstLine) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return string(f.line)
}

// loadDisk has what every machine that builds livedump has: Go's own sources and programs, and the
// machine's programs and libraries.
func loadDisk(ctx context.Context, tmp string) (string, error) {
	load := filepath.Join(tmp, "load")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", load, "./test/writebench/load")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the load: %w: %s", err, out)
	}
	goroot, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w", err)
	}
	disk := filepath.Join(tmp, "disk.ext4")
	return disk, guest.BuildDisk(ctx, disk, 4096, []guest.File{
		{Path: "/load", Source: load, Mode: 0o755},
		{Path: "/go", Source: string(bytes.TrimSpace(goroot))},
		{Path: "/lib", Source: "/usr/lib/" + map[string]string{"amd64": "x86_64-linux-gnu"}[runtime.GOARCH]},
		{Path: "/bin", Source: "/usr/bin"},
	})
}

// moveProgramHeaders moves the program headers of an ELF file to where most programs write them, right
// behind the ELF header: makedumpfile takes for granted that they are there. QEMU has one section
// header there instead, that nobody needs.
func moveProgramHeaders(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const ehdr, phdr = 64, 56
	var h [ehdr]byte
	if _, err := f.ReadAt(h[:], 0); err != nil {
		return err
	}
	le := binary.LittleEndian
	offset, count := le.Uint64(h[32:]), uint64(le.Uint16(h[56:]))
	if offset == ehdr {
		return nil
	}
	table := make([]byte, count*phdr)
	if _, err := f.ReadAt(table, int64(offset)); err != nil {
		return err
	}
	for i := range count {
		if at := le.Uint64(table[i*phdr+8:]); at < offset+count*phdr {
			return fmt.Errorf("%s: a segment begins at %d, within the program headers", path, at)
		}
	}
	le.PutUint64(h[32:], ehdr)
	le.PutUint64(h[40:], 0)       // no section headers
	copy(h[58:], make([]byte, 6)) // of no size, none, no names
	if _, err := f.WriteAt(append(h[:], table...), 0); err != nil {
		return err
	}
	return f.Close()
}
