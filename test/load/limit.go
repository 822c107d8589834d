// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	limitWorkers = 8
	limitBytes   = 64 << 20 // of all of them
	limitMemory  = 16 << 20 // that each goes through, more than it can have
	limitChunk   = 256      // pages that are checked and given up together
	limitPasses  = 4        // of a process
)

// limitVerb is the first argument with which the load starts this program.
const limitVerb = "limited"

var limitLoad = load{
	name: "limit",
	about: "anonymous memory of processes in a control group at its limit: for a page that one is given, others have to be taken " +
		"back",
	start: startLimit,
}

func startLimit(e *env) (*work, error) {
	dir, err := e.tempDir("limit")
	if err != nil {
		return nil, err
	}
	group, err := newGroup(e, filepath.Join(dir, "groups"))
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return &work{workers: limitWorkers, round: func(ctx context.Context, n int64) (int, error) {
		cmd := exec.CommandContext(ctx, self, limitVerb, strconv.FormatInt(n, 10))
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%w: %s", err, out)
		}
		return limitPasses * limitMemory / pageSize, nil
	}}, nil
}

// newGroup makes a control group with a limit of memory, in a mount of its own.
func newGroup(e *env, mount string) (*os.File, error) {
	if err := os.Mkdir(mount, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("none", mount, "cgroup2", 0, ""); err != nil {
		return nil, fmt.Errorf("mount control groups: %w", err)
	}
	e.atEnd(func() error { return unix.Unmount(mount, 0) })
	if err := os.WriteFile(filepath.Join(mount, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
		return nil, fmt.Errorf("control groups of memory: %w", err)
	}
	dir := filepath.Join(mount, "load-limit")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	e.atEnd(func() error { return os.Remove(dir) })
	if err := os.WriteFile(filepath.Join(dir, "memory.max"), []byte(strconv.Itoa(limitBytes)), 0); err != nil {
		return nil, err
	}
	group, err := os.Open(dir)
	if err == nil {
		e.atEnd(group.Close)
	}
	return group, err
}

// limited is the main of a process in the group. It says of what it has written that it can be taken away (MADV_FREE), so that the
// kernel need not write anything anywhere to take it back.
func limited(seed string) int {
	if err := limitedPasses(seed); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func limitedPasses(seed string) error {
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	m, err := unix.Mmap(-1, 0, limitMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	defer unix.Munmap(m)
	if err := singlePages(m); err != nil {
		return err
	}
	for pass := range uint64(limitPasses) {
		for at := 0; at < len(m); at += limitChunk * pageSize {
			if err := limitedChunk(m[at:at+limitChunk*pageSize], n<<8|pass); err != nil {
				return err
			}
		}
	}
	return nil
}

func limitedChunk(m []byte, seed uint64) error {
	stampOf := func(at int) uint64 { return seed ^ uint64(at) | 1 }
	for at := 0; at < len(m); at += pageSize {
		binary.LittleEndian.PutUint64(m[at:], stampOf(at))
	}
	for at := 0; at < len(m); at += pageSize {
		if got := binary.LittleEndian.Uint64(m[at:]); got != stampOf(at) {
			return fmt.Errorf("page %d holds %#x, want %#x", at/pageSize, got, stampOf(at))
		}
	}
	if err := unix.Madvise(m, unix.MADV_FREE); err != nil {
		return fmt.Errorf("give memory up: %w", err)
	}
	return nil
}
