// SPDX-License-Identifier: Apache-2.0

package matrix

import (
	"fmt"
	"slices"
	"strings"

	"livedump.io/test/guest"
)

// Row is a kernel on a machine.
type Row struct {
	// Kernel is a series, as hack/debian-kernel knows it.
	Kernel string
	// CPUs, Nodes (of NUMA) and MemoryMiB of the machine.
	CPUs, Nodes, MemoryMiB int
	// PTI is page-table isolation.
	PTI bool
	// Levels of page tables, 4 or 5.
	Levels int
	// Huge: the direct map has 1 GiB leaves.
	Huge bool
	// Preempt is the preemption model: none, voluntary, lazy, full or rt.
	Preempt string
	// Fixed: the kernel's preemption model is not to be had otherwise.
	Fixed bool
}

// 1 GiB leaves need a whole gigabyte of RAM and nothing else in its place: QEMU puts
// two below the place of its devices and what is more above 4 GiB. Modules are code, and break up any gigabyte that they
// land in: of four, none was left once.
const (
	smallMiB = 1024
	hugeMiB  = 10240
)

// Rows is the matrix: not every combination, for that would take days in guests without
// hardware support, but every value of every option at least once on each series
// that has it.
func Rows() []Row {
	var rows []Row
	add := func(kernel string, list ...Row) {
		for _, r := range list {
			r.Kernel = kernel
			r.MemoryMiB = smallMiB
			if r.Huge {
				r.MemoryMiB = hugeMiB
			}
			rows = append(rows, r)
		}
	}
	// Debian's cloud kernel 5.10 has neither 5-level page tables nor a choice of preemption.
	add("5.10.0-43",
		Row{CPUs: 2, Nodes: 2, PTI: true, Levels: 4, Huge: true, Preempt: "voluntary", Fixed: true},
		Row{CPUs: 1, Nodes: 1, PTI: false, Levels: 4, Huge: false, Preempt: "voluntary", Fixed: true},
		Row{CPUs: 8, Nodes: 1, PTI: true, Levels: 4, Huge: true, Preempt: "voluntary", Fixed: true})
	for _, kernel := range []string{"6.1", "6.12"} {
		add(kernel,
			Row{CPUs: 2, Nodes: 2, PTI: true, Levels: 5, Huge: true, Preempt: "full"},
			Row{CPUs: 1, Nodes: 1, PTI: false, Levels: 4, Huge: false, Preempt: "none"},
			Row{CPUs: 8, Nodes: 1, PTI: true, Levels: 4, Huge: true, Preempt: "voluntary"})
	}
	// None and voluntary are gone, lazy has come.
	add("newest",
		Row{CPUs: 2, Nodes: 2, PTI: true, Levels: 5, Huge: true, Preempt: "full"},
		Row{CPUs: 1, Nodes: 1, PTI: false, Levels: 4, Huge: false, Preempt: "lazy"},
		Row{CPUs: 8, Nodes: 1, PTI: true, Levels: 4, Huge: true, Preempt: "lazy"})
	add("6.1-rt",
		Row{CPUs: 2, Nodes: 2, PTI: true, Levels: 5, Huge: true, Preempt: "rt", Fixed: true},
		Row{CPUs: 1, Nodes: 1, PTI: true, Levels: 4, Huge: false, Preempt: "rt", Fixed: true},
		Row{CPUs: 8, Nodes: 1, PTI: false, Levels: 4, Huge: false, Preempt: "rt", Fixed: true})
	return rows
}

// Name tells a row from all others.
func (r Row) Name() string {
	pick := func(yes bool, a, b string) string {
		if yes {
			return a
		}
		return b
	}
	return fmt.Sprintf("%s-%dcpu-%dnode-%s-%dlevel-%s-%s", r.Kernel, r.CPUs, r.Nodes,
		pick(r.PTI, "pti", "nopti"), r.Levels, pick(r.Huge, "1g", "no1g"), r.Preempt)
}

// words are for the kernel's command line.
func (r Row) words() []string {
	words := []string{"nopti"}
	if r.PTI {
		words[0] = "pti=on"
	}
	if r.Levels == 4 {
		words = append(words, "no5lvl")
	}
	if !r.Fixed {
		words = append(words, "preempt="+r.Preempt)
	}
	return words
}

// cpu is QEMU's CPU model.
func (r Row) cpu() string {
	if r.Huge {
		return "max"
	}
	return "max,pdpe1gb=off"
}

// nodes is the number of NUMA nodes as QEMU takes it: one is no NUMA at all.
func (r Row) nodes() int {
	if r.Nodes == 1 {
		return 0
	}
	return r.Nodes
}

// check says in what a machine is not the row's.
func (r Row) check(m *guest.Machine) error {
	var wrong []string
	differ := func(what string, want, got any) {
		if want != got {
			wrong = append(wrong, fmt.Sprintf("%s: %v instead of %v", what, got, want))
		}
	}
	differ("CPUs", r.CPUs, m.CPUs)
	differ("NUMA nodes", r.Nodes, m.Nodes)
	differ("page-table isolation", r.PTI, m.PTI)
	differ("levels of page tables", r.Levels, m.Levels)
	differ("1 GiB leaves", r.Huge, m.HugeLeaves > 0)
	differ("preemption", r.Preempt, m.Preempt)
	slices.Sort(wrong)
	if wrong != nil {
		return fmt.Errorf("the guest is not what the row asks for: %s", strings.Join(wrong, ", "))
	}
	return nil
}
