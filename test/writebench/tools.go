// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"livedump.io/test/guest"
)

// measurement is one run of a tool.
type measurement struct {
	Tool        string  `json:"tool"`
	Format      string  `json:"format"`
	Compression string  `json:"compression"`
	Threads     int     `json:"threads"`
	BytesIn     uint64  `json:"bytes_in"`
	BytesOut    uint64  `json:"bytes_out"`
	Seconds     float64 `json:"seconds"`
	CPUSeconds  float64 `json:"cpu_seconds"`
	RSSKiB      int64   `json:"rss_kib"`
	TimedOut    bool    `json:"timed_out,omitempty"` // seconds is a lower bound
	Failed      string  `json:"failed,omitempty"`    // what it said; seconds do not count then
}

// runner is a tool with its settings.
type runner struct {
	name        string
	measurement measurement
	argv        func(out string) []string
	env         []string
}

// A tool that takes so many times as long as the fastest has lost beyond doubt and is ended, but not before
// leastLimit: makedumpfile's threads can wait for each other for a very long time.
const (
	lostBeyondDoubt = 4
	leastLimit      = 30 * time.Second
	mostLimit       = 20 * time.Minute
)

// run measures the whole process, which is ended at the limit. Its output is removed.
func (t *runner) run(ctx context.Context, dir string, limit time.Duration) (measurement, error) {
	out := filepath.Join(dir, "dump")
	defer os.Remove(out)
	defer os.Remove(out + ".partial")
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	argv := t.argv(out)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), t.env...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	start := time.Now()
	err := cmd.Run()
	m := t.measurement
	m.Seconds = time.Since(start).Seconds()
	m.TimedOut = errors.Is(ctx.Err(), context.DeadlineExceeded)
	if err != nil && !m.TimedOut {
		if ctx.Err() != nil {
			return m, ctx.Err()
		}
		// Progress is shown in one line, over and over.
		lines := strings.FieldsFunc(strings.TrimSpace(said.String()), func(r rune) bool { return r == '\n' || r == '\r' })
		m.Failed = fmt.Sprintf("%v: %s", err, strings.Join(lines[max(0, len(lines)-2):], ": "))
		return m, nil
	}
	m.CPUSeconds = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	m.RSSKiB = cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
	if st, err := os.Stat(out); err == nil {
		m.BytesOut = uint64(st.Size())
	} else if !m.TimedOut {
		return m, err
	}
	return m, nil
}

// warm reads a file once, so that nobody's first run has to.
func warm(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(struct{ io.Writer }{io.Discard}, f)
	return err
}

func sizeOf(path string) uint64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return uint64(st.Size())
}

const formatName = "kdump-compressed v6"

// convert is livedump.
func (o *options) convert(image, compression string) runner {
	return runner{
		name:        "livedump " + compression,
		measurement: measurement{Tool: "livedump", Format: formatName, Compression: compression, Threads: 2, BytesIn: sizeOf(image)},
		argv: func(out string) []string {
			return []string{o.livedump, "convert", "--compression", compression, "--workers", "2", image, out}
		},
	}
}

// copyDirect writes the same bytes as they are.
func (o *options) copyDirect(image string) runner {
	return runner{
		name:        "dd oflag=direct",
		measurement: measurement{Tool: "dd", Format: "copy", Compression: "none", Threads: 1, BytesIn: sizeOf(image)},
		argv: func(out string) []string {
			return []string{"dd", "if=" + image, "of=" + out, "bs=1M", "oflag=direct", "conv=fsync", "status=none"}
		},
	}
}

// makedumpfile is a program in a chroot, run without the chroot by the loader there: a chroot and its
// mounts would be part of the time.
type makedumpfile struct {
	command []string
	version string
	snappy  bool
}

// findMakedumpfile builds one that has every codec. Where its source cannot be had it is Debian's.
func findMakedumpfile(ctx context.Context) (*makedumpfile, error) {
	program := "usr/local/bin/makedumpfile"
	root, err := guest.Hack(ctx, "makedumpfile")
	if err != nil {
		fmt.Println("write-bench:", err)
		program = "usr/bin/makedumpfile"
		if root, err = guest.Hack(ctx, "debian-chroot", "trixie", "judge", "crash", "python3-drgn", "makedumpfile"); err != nil {
			return nil, err
		}
	}
	libs := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	m := &makedumpfile{command: []string{filepath.Join(root, "usr/lib64/ld-linux-x86-64.so.2"), "--library-path",
		libs + ":" + filepath.Join(libs, "elfutils"), filepath.Join(root, program)}}
	out, err := exec.CommandContext(ctx, m.command[0], append(m.command[1:], "-v")...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("makedumpfile -v: %w: %s", err, out)
	}
	m.version, _, _ = strings.Cut(string(out), "\n")
	m.snappy = strings.Contains(string(out), "snappy\tenabled")
	fmt.Println("write-bench:", m.version)
	return m, nil
}

// settings are makedumpfile on one CPU and on two.
func (m *makedumpfile) settings(image, compression, flag string) []runner {
	var all []runner
	for threads := range 2 {
		name, args := "makedumpfile "+compression, []string{"-d", "0", flag}
		if threads > 0 {
			name += " --num-threads 2"
			args = append(args, "--num-threads", "2")
		}
		all = append(all, runner{
			name: name,
			measurement: measurement{Tool: "makedumpfile", Format: formatName, Compression: compression, Threads: max(1, 2*threads),
				BytesIn: sizeOf(image)},
			argv: func(out string) []string {
				return append(append(append([]string{}, m.command...), args...), image, out)
			},
		})
	}
	return all
}

// simulated is what the simulation found.
type simulated struct {
	RAMGiB      int     `json:"ram_gib"`
	KernelGiB   int     `json:"kernel_gib"`
	Compression string  `json:"compression"`
	Bytes       uint64  `json:"bytes_out"`
	Seconds     float64 `json:"seconds"`
	PeakRSSKiB  int     `json:"peak_rss_kib"`
}

func (o *options) simulateNode(ctx context.Context) (*simulated, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := o.simulate
	cmd := exec.CommandContext(ctx, self, "-simulation", "-disk", o.disk, "-simulate-ram", fmt.Sprint(s.ramGiB),
		"-simulate-kernel", fmt.Sprint(s.kernelGiB), "-simulate-compression", s.compression)
	cmd.Stderr = os.Stderr
	start := time.Now()
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("the simulation: %w", err)
	}
	r := &simulated{RAMGiB: s.ramGiB, KernelGiB: s.kernelGiB, Compression: s.compression, Seconds: time.Since(start).Seconds()}
	if _, err := fmt.Sscan(string(out), &r.Bytes, &r.PeakRSSKiB); err != nil {
		return nil, fmt.Errorf("the simulation says %q: %w", out, err)
	}
	fmt.Printf("write-bench: a node of %d GiB with %d GiB of kernel pages: %d MiB out in %.0f s, at most %d MiB resident (goal: %d)\n",
		r.RAMGiB, r.KernelGiB, r.Bytes>>20, r.Seconds, r.PeakRSSKiB>>10, goalRSS>>10)
	return r, nil
}

func machine() string {
	name := "unknown"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				name = strings.TrimSpace(value)
				break
			}
		}
	}
	return name
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}
