// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const cpuDir = "/sys/devices/system/cpu/"

var hotplugLoad = load{
	name:  "hotplug",
	about: "CPU hotplug: every CPU but the first off and on; needs two",
	start: func(e *env) (*work, error) {
		b, err := os.ReadFile(cpuDir + "online")
		if err != nil {
			return nil, err
		}
		online, err := parseCPUs(string(b))
		if err != nil {
			return nil, err
		}
		var cpus []int
		for _, cpu := range online {
			if _, err := os.Stat(onlineFile(cpu)); err == nil && cpu != 0 {
				cpus = append(cpus, cpu)
			}
		}
		if len(cpus) == 0 {
			return nil, fmt.Errorf("none of the CPUs %s can be switched off", strings.TrimSpace(string(b)))
		}
		e.atEnd(func() error {
			var errs []error
			for _, cpu := range cpus {
				if is, err := isOnline(cpu); err != nil || !is {
					errs = append(errs, err, os.WriteFile(onlineFile(cpu), []byte("1"), 0))
				}
			}
			return errors.Join(errs...)
		})
		return &work{round: func(_ context.Context, n int64) (int, error) {
			cpu := cpus[int(n)%len(cpus)]
			done := 0
			for _, on := range []bool{false, true} {
				switched, err := switchCPU(cpu, on)
				if err != nil {
					return done, err
				}
				if switched {
					done++
				}
			}
			return done, nil
		}}, nil
	},
}

func onlineFile(cpu int) string { return fmt.Sprintf("%scpu%d/online", cpuDir, cpu) }

func isOnline(cpu int) (bool, error) {
	b, err := os.ReadFile(onlineFile(cpu))
	return strings.TrimSpace(string(b)) == "1", err
}

// switchCPU switches a CPU and looks whether it is. A kernel may refuse for a
// while, a frozen one for instance; that is no error, and nothing was done.
func switchCPU(cpu int, on bool) (bool, error) {
	value := "0"
	if on {
		value = "1"
	}
	err := os.WriteFile(onlineFile(cpu), []byte(value), 0)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EPERM) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	is, err := isOnline(cpu)
	if err == nil && is != on {
		err = fmt.Errorf("CPU %d: wrote %s to its online file, but it reads otherwise", cpu, value)
	}
	return true, err
}

// parseCPUs reads a list such as 0-2,5.
func parseCPUs(text string) ([]int, error) {
	var cpus []int
	for _, part := range strings.Split(strings.TrimSpace(text), ",") {
		first, last, span := strings.Cut(part, "-")
		from, err := strconv.Atoi(first)
		if err != nil {
			return nil, fmt.Errorf("list of CPUs %q: %w", text, err)
		}
		to := from
		if span {
			if to, err = strconv.Atoi(last); err != nil {
				return nil, fmt.Errorf("list of CPUs %q: %w", text, err)
			}
		}
		for cpu := from; cpu <= to; cpu++ {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}
