// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Machine is what a guest turned out to be, whatever was asked of it: a kernel may
// not know a word of its command line, and QEMU may not emulate a flag.
type Machine struct {
	Release string `json:"release"`
	CPUs    int    `json:"cpus"`
	Nodes   int    `json:"nodes"`
	// Levels of the page tables: 4 or 5.
	Levels int `json:"levels"`
	// HugeLeaves of the direct map, of 1 GiB.
	HugeLeaves int `json:"huge_leaves"`
	// PTI is page-table isolation.
	PTI bool `json:"pti"`
	// Preempt is none, voluntary, lazy, full or rt.
	Preempt string `json:"preempt"`
}

var (
	isolationOn  = regexp.MustCompile(`Kernel/User page tables isolation: (force )?enabled`)
	preemptIsNow = regexp.MustCompile(`\((\w+)\)`)
)

// Machine looks at the guest. The test module that shows page tables is loaded.
func (g *Guest) Machine(ctx context.Context) (*Machine, error) {
	tables, err := g.PageTables(ctx)
	if err != nil {
		return nil, err
	}
	m := &Machine{Release: g.Release(), Levels: 4, HugeLeaves: tables.Leaves(RegionDirect)["pud"]}
	for _, entries := range tables {
		for _, e := range entries {
			if e.Level == "pgd" {
				m.Levels = 5
			}
		}
	}
	console, err := g.ConsoleLog()
	if err != nil {
		return nil, err
	}
	m.PTI = isolationOn.MatchString(console)
	for file, n := range map[string]*int{"cpu": &m.CPUs, "node": &m.Nodes} {
		text, err := g.ReadFile(ctx, "/sys/devices/system/"+file+"/online")
		if err != nil {
			return nil, err
		}
		if *n, err = countList(strings.TrimSpace(string(text))); err != nil {
			return nil, err
		}
	}
	m.Preempt, err = g.preempt(ctx)
	return m, err
}

// preempt is what the running kernel says or, if it can't be changed at boot, what it
// was configured to be.
func (g *Guest) preempt(ctx context.Context) (string, error) {
	kernel := g.config.Kernel
	if rt, err := kernel.Configured("PREEMPT_RT"); err != nil {
		return "", err
	} else if rt {
		return "rt", nil
	}
	if dynamic, err := kernel.Configured("PREEMPT_DYNAMIC"); err != nil {
		return "", err
	} else if dynamic {
		text, err := g.ReadFile(ctx, "/sys/kernel/debug/sched/preempt")
		if err != nil {
			return "", err
		}
		now := preemptIsNow.FindSubmatch(text)
		if now == nil {
			return "", fmt.Errorf("preemption model: unexpected %q", text)
		}
		return string(now[1]), nil
	}
	for option, name := range map[string]string{"PREEMPT_NONE": "none", "PREEMPT_VOLUNTARY": "voluntary", "PREEMPT": "full"} {
		if has, err := kernel.Configured(option); err != nil {
			return "", err
		} else if has {
			return name, nil
		}
	}
	return "", errors.New("the kernel's configuration names no preemption model")
}

// countList counts the members of a list such as 0-3,7.
func countList(list string) (int, error) {
	n := 0
	for _, part := range strings.Split(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, err := strconv.Atoi(first)
		if err != nil {
			return 0, fmt.Errorf("list %q: %w", list, err)
		}
		b, err := strconv.Atoi(last)
		if err != nil {
			return 0, fmt.Errorf("list %q: %w", list, err)
		}
		n += b - a + 1
	}
	return n, nil
}
