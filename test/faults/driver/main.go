// SPDX-License-Identifier: Apache-2.0

// Command driver runs in the guest: it holds a session of the kernel module and takes the steps
// that it is told on its standard input, one a line. It answers each with one line of JSON.
//
//	open                     open the device; prepare does so if it is not
//	prepare [level=N] [mode=strict|best-effort] [reserve=BYTES] [deadline=DURATION] [calibrate=DURATION] [expected=DURATION]
//	freeze
//	exec ARGUMENT...         run a command, a process of its own, and wait for it
//	start ARGUMENT...        run a command until the next "end"
//	end
//	write FILE COUNT         write one byte to each of the first COUNT pages of a file
//	fault COUNT              take COUNT ordinary page faults; how long one takes
//	hold DURATION            let time pass
//	next COUNT               fetch some pages
//	drain [DEVICE]           fetch all pages, write them to a device; says "draining" when the first have come
//	fill MIB                 take memory until so little is available
//	stats
//	thaw
//	close
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"livedump.io/internal/session"
)

func main() {
	d := &driver{out: json.NewEncoder(os.Stdout)}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		words := strings.Fields(in.Text())
		if len(words) == 0 {
			continue
		}
		answer, err := d.step(words[0], words[1:])
		if answer == nil {
			answer = map[string]any{}
		}
		answer["step"] = words[0]
		if err != nil {
			answer["error"] = err.Error()
			answer["kind"] = kind(err)
		}
		if err := d.out.Encode(answer); err != nil {
			fmt.Fprintln(os.Stderr, "driver:", err)
			os.Exit(1)
		}
	}
	if err := in.Err(); err != nil {
		fmt.Fprintln(os.Stderr, "driver:", err)
		os.Exit(1)
	}
}

// kind is the error as a word that a test can compare.
func kind(err error) string {
	for word, target := range map[string]error{
		"busy": session.ErrBusy, "no-memory": session.ErrNoMemory, "reserve": session.ErrReserveExhausted,
		"deadline": session.ErrDeadlineExceeded, "stop": session.ErrStopFailed,
	} {
		if errors.Is(err, target) {
			return word
		}
	}
	return "other"
}

type answer = map[string]any

type driver struct {
	out     *json.Encoder
	device  *session.Device
	buffer  *session.Buffer
	started *exec.Cmd
	pages   uint64
	filled  [][]byte
}

func (d *driver) step(name string, args []string) (answer, error) {
	switch name {
	case "open":
		return nil, d.open()
	case "prepare":
		return d.prepare(args)
	case "freeze":
		f, err := d.device.Freeze()
		d.pages = f.PagesToDump
		return answer{"stop_ns": f.Stop.Nanoseconds(), "pages": f.PagesToDump}, err
	case "exec":
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		return answer{"output": string(out)}, err
	case "start":
		d.started = exec.Command(args[0], args[1:]...)
		d.started.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
		return nil, d.started.Start()
	case "end":
		if err := unix.Kill(-d.started.Process.Pid, unix.SIGKILL); err != nil {
			return nil, err
		}
		_ = d.started.Wait() // it was killed
		return nil, nil
	case "write":
		return d.write(args)
	case "fault":
		return d.fault(args)
	case "hold":
		t, err := time.ParseDuration(args[0])
		if err != nil {
			return nil, err
		}
		time.Sleep(t)
		return nil, nil
	case "next":
		return d.next(args)
	case "drain":
		return d.drain(args)
	case "fill":
		return d.fill(args)
	case "stats":
		st, err := d.device.Stats()
		return answer{"stats": st}, err
	case "thaw":
		return nil, d.device.Thaw()
	case "close":
		device := d.device
		d.device = nil
		return nil, device.Close()
	}
	return nil, fmt.Errorf("unknown step %q", name)
}

func (d *driver) open() (err error) {
	if d.device == nil {
		d.device, err = session.Open("/dev/livedump")
	}
	return err
}

func (d *driver) prepare(args []string) (answer, error) {
	o := session.Options{Level: session.ExcludeAll}
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		var err error
		switch key {
		case "level":
			var n uint64
			n, err = strconv.ParseUint(value, 0, 32)
			o.Level = session.DumpLevel(n)
		case "mode":
			if value == "best-effort" {
				o.Mode = session.BestEffort
			}
		case "reserve":
			o.ReserveBytes, err = strconv.ParseUint(value, 0, 64)
		case "calibrate":
			o.Calibrate, err = time.ParseDuration(value)
		case "expected":
			o.Expected, err = time.ParseDuration(value)
		case "deadline":
			o.Deadline, err = time.ParseDuration(value)
		default:
			err = fmt.Errorf("unknown option %q", arg)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := d.open(); err != nil {
		return nil, err
	}
	// Before the freeze, as the agent does: after it, new memory is a page to be kept each.
	if d.buffer == nil {
		var err error
		if d.buffer, err = session.NewBuffer(256); err != nil {
			return nil, err
		}
	}
	p, err := d.device.Prepare(o)
	return answer{"prepared": p}, err
}

// write changes pages through the page cache, in a system call of this process.
func (d *driver) write(args []string) (answer, error) {
	if len(args) != 2 {
		return nil, errors.New("want a file and a number of pages")
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(args[0], os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for i := range n {
		if _, err := f.WriteAt([]byte{0x5a}, int64(i)*session.PageSize); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// fault measures the ordinary fault on a new page of anonymous memory: what the kernel does
// anyway, many times a second.
func (d *driver) fault(args []string) (answer, error) {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, err
	}
	b, err := unix.Mmap(-1, 0, n*session.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(b)
	if err := unix.Madvise(b, unix.MADV_NOHUGEPAGE); err != nil {
		return nil, err
	}
	touch := func() float64 {
		start := time.Now()
		for i := range n {
			b[i*session.PageSize]++
		}
		return float64(time.Since(start).Nanoseconds()) / float64(n)
	}
	faulting := touch()
	return answer{"fault_ns": faulting - touch()}, nil
}

// next fetches a number of pages and forgets them.
func (d *driver) next(args []string) (answer, error) {
	want, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, err
	}
	b, err := session.NewBuffer(min(want, session.MaxBatch))
	if err != nil {
		return nil, err
	}
	defer b.Free()
	reported := 0
	for reported < want {
		n, err := d.device.Next(b.Data, b.Pages[:min(want-reported, len(b.Pages))])
		reported += n
		if err != nil || n == 0 {
			return answer{"reported": reported}, err
		}
	}
	return answer{"reported": reported}, nil
}

// fill takes memory and keeps it, until only so many MiB are available.
func (d *driver) fill(args []string) (answer, error) {
	leave, err := strconv.ParseUint(args[0], 0, 64)
	if err != nil {
		return nil, err
	}
	const step = 1 << 20
	for {
		available, err := meminfo("MemAvailable")
		if err != nil {
			return nil, err
		}
		boost, err := watermarkBoost()
		if err != nil {
			return nil, err
		}
		if available <= leave<<20+boost {
			return answer{"available": available}, nil
		}
		m, err := unix.Mmap(-1, 0, step, unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE|unix.MAP_LOCKED)
		if err != nil {
			return nil, err
		}
		d.filled = append(d.filled, m)
	}
}

// watermarkBoost is, in bytes, what the kernel keeps free beyond its usual watermarks while it makes room for huge
// pages. MemAvailable does not know of it, and who takes it is killed.
func watermarkBoost() (uint64, error) {
	text, err := os.ReadFile("/proc/zoneinfo")
	if err != nil {
		return 0, err
	}
	var pages uint64
	for _, line := range strings.Split(string(text), "\n") {
		// Kernels before 5.14 do not show it.
		if f := strings.Fields(line); len(f) == 2 && f[0] == "boost" {
			n, err := strconv.ParseUint(f[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/zoneinfo: %w", err)
			}
			pages += n
		}
	}
	return pages * session.PageSize, nil
}

// meminfo is a line of /proc/meminfo, in bytes.
func meminfo(name string) (uint64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == name+":" {
			n, err := strconv.ParseUint(f[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no %s", name)
}

// drain fetches every page, as the agent does, and counts what came.
func (d *driver) drain(args []string) (answer, error) {
	var target *os.File
	if len(args) > 0 {
		var err error
		if target, err = os.OpenFile(args[0], os.O_WRONLY|unix.O_DIRECT, 0); err != nil {
			return nil, err
		}
		defer target.Close()
	}
	b := d.buffer
	var err error
	var reported, copies, lost, uncovered uint64
	var offset int64
	for {
		n, err := d.device.Next(b.Data, b.Pages)
		if err != nil {
			return answer{"reported": reported}, err
		}
		if n == 0 {
			break
		}
		if reported == 0 {
			if err := d.out.Encode(answer{"step": "draining"}); err != nil {
				return nil, err
			}
		}
		for _, p := range b.Pages[:n] {
			reported++
			switch {
			case p.Flags&session.PageLost != 0:
				lost++
			case p.Flags&session.PageCopy != 0:
				copies++
			}
			if p.Flags&session.PageUncovered != 0 {
				uncovered++
			}
		}
		if target != nil {
			if _, err := target.WriteAt(b.Data[:n*session.PageSize], offset); err != nil {
				return nil, err
			}
			offset += int64(n) * session.PageSize
		}
	}
	if reported != d.pages {
		err = fmt.Errorf("%d pages were reported, %d announced", reported, d.pages)
	}
	return answer{"reported": reported, "copies": copies, "lost": lost, "uncovered": uncovered}, err
}
