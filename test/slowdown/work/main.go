// SPDX-License-Identifier: Apache-2.0

// Command work does a fixed piece of work in the guest, as often as its argument
// says, and prints how long each part of it took, in nanoseconds: one line of JSON
// for each time.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// parts are what there is to do: from none of the kernel's memory written to much.
var parts = []struct {
	name string
	do   func(dir string) error
}{
	{"cpu", cpu}, {"memory", memory}, {"files", files}, {"pipe", pipe}, {"processes", processes},
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "work:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: work TIMES")
	}
	times, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "work-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	out := json.NewEncoder(os.Stdout)
	for range times {
		took := map[string]int64{}
		begin := time.Now()
		for _, p := range parts {
			start := time.Now()
			if err := p.do(dir); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			took[p.name] = time.Since(start).Nanoseconds()
		}
		took["all"] = time.Since(begin).Nanoseconds()
		if err := out.Encode(took); err != nil {
			return err
		}
	}
	return nil
}

var block = bytes.Repeat([]byte("livedump"), 8<<10)

// cpu leaves the kernel alone.
func cpu(string) error {
	sum := sha256.Sum256(block)
	for range 200 {
		sum = sha256.Sum256(append(block[:len(block)-len(sum)], sum[:]...))
	}
	return nil
}

// memory has the kernel hand out fresh pages, zero them, and take them back.
func memory(string) error {
	for range 8 {
		m, err := unix.Mmap(-1, 0, 2<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		for at := 0; at < len(m); at += os.Getpagesize() {
			m[at] = 1
		}
		if err := unix.Munmap(m); err != nil {
			return err
		}
	}
	return nil
}

// files makes inodes, dentries and page cache, and unmakes them.
func files(dir string) error {
	for i := range 100 {
		name := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(name, block[:16<<10], 0o600); err != nil {
			return err
		}
		if err := os.Rename(name, name+"-renamed"); err != nil {
			return err
		}
	}
	for i := range 100 {
		name := filepath.Join(dir, strconv.Itoa(i)+"-renamed")
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if !bytes.Equal(b, block[:16<<10]) {
			return fmt.Errorf("%s holds something else than was written", name)
		}
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// pipe is system calls that write the same few kernel pages again and again.
func pipe(string) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	buf := make([]byte, 4096)
	for range 3000 {
		if _, err := unix.Write(p[1], buf); err != nil {
			return err
		}
		if _, err := unix.Read(p[0], buf); err != nil {
			return err
		}
	}
	return nil
}

func processes(string) error {
	for range 8 {
		if err := exec.Command("/bin/busybox", "true").Run(); err != nil {
			return err
		}
	}
	return nil
}
