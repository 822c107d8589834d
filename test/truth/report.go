// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"sort"
	"strings"

	"livedump.io/test/guest"
)

// Run is one dump under one load.
type Run struct {
	Load string `json:"load"`
	// Bite is the range of mappings that was left uncovered on purpose.
	Bite string `json:"bite,omitempty"`
	*Comparison
	// DMAPages are those of the unstable pages that devices may write; of DMADevicesUnknown it is not known what they write.
	DMAPages          uint64 `json:"dma_pages"`
	DMADevices        uint32 `json:"dma_devices"`
	DMADevicesUnknown uint32 `json:"dma_devices_unknown"`
	// DMA are the module's own counts, by the way in which it found them.
	DMA            map[string]uint64 `json:"dma,omitempty"`
	Faults         uint64            `json:"faults"`
	Copies         uint64            `json:"copies"`
	TablesRestored bool              `json:"tables_restored"`
	// Hidden says what of the pages that must not be touched there was; of the load of that name only.
	Hidden string `json:"hidden,omitempty"`
	// LoadSaid is the last line of the load.
	LoadSaid string `json:"load_said"`
	Error    string `json:"error,omitempty"`
}

// Report is truth.json.
type Report struct {
	Kernel         string            `json:"kernel"`
	MemoryMiB      int               `json:"memory_mib"`
	CPUs           int               `json:"cpus"`
	KVM            bool              `json:"kvm"`
	DumpLevel      uint              `json:"dump_level"`
	Load           string            `json:"load"`
	Pages          uint64            `json:"pages"`
	Mismatches     uint64            `json:"mismatches"`
	Lost           uint64            `json:"lost"`
	ByClass        map[string]*Count `json:"by_class"`
	Unstable       Count             `json:"unstable"`
	TablesRestored bool              `json:"tables_restored"`
	// Bites says for each range that was left uncovered on purpose how many pages differed.
	Bites map[string]uint64 `json:"bites,omitempty"`
	Runs  []*Run            `json:"runs"`
	// Machine is the guest as it was before the first load.
	Machine *guest.Machine `json:"machine"`
	// Shipped is there with -shipped only.
	Shipped *Shipped `json:"shipped,omitempty"`
}

// total sums up the runs that were not spoilt.
func (r *Report) total() {
	var loads []string
	r.ByClass, r.TablesRestored = map[string]*Count{}, true
	for _, run := range r.Runs {
		r.TablesRestored = r.TablesRestored && run.TablesRestored
		if run.Comparison == nil {
			continue
		}
		if run.Bite != "" {
			if r.Bites == nil {
				r.Bites = map[string]uint64{}
			}
			r.Bites[run.Bite] += run.Mismatches
			continue
		}
		if n := len(loads); n == 0 || loads[n-1] != run.Load {
			loads = append(loads, run.Load)
		}
		r.Pages += run.Pages
		r.Mismatches += run.Mismatches
		r.Lost += run.Lost
		r.Unstable.Pages += run.Unstable.Pages
		r.Unstable.Differ += run.Unstable.Differ
		for class, n := range run.ByClass {
			if r.ByClass[class] == nil {
				r.ByClass[class] = &Count{}
			}
			r.ByClass[class].Pages += n.Pages
			r.ByClass[class].Differ += n.Differ
		}
	}
	r.Load = strings.Join(loads, ",")
}

// verdict is nil if all runs are as they must be.
func (r *Report) verdict() error {
	var problems []error
	fail := func(run *Run, format string, args ...any) {
		name := run.Load
		if run.Bite != "" {
			name += ", spoilt: " + run.Bite
		}
		problems = append(problems, fmt.Errorf("%s: "+format, append([]any{name}, args...)...))
	}
	for _, run := range r.Runs {
		switch {
		case run.Error != "":
			fail(run, "%s", run.Error)
		case run.Bite != "" && run.Mismatches == 0:
			fail(run, "no page differs though the range was left uncovered: the check is blind")
		case run.Bite == "" && run.Mismatches > 0:
			fail(run, "%d of %d pages are not as they were in the stop:\n%s", run.Mismatches, run.Pages, run.list())
		}
		if run.Comparison != nil && run.Lost > 0 {
			fail(run, "%d pages lost", run.Lost)
		}
		if run.Error == "" && !run.TablesRestored {
			fail(run, "page tables are not as they were")
		}
	}
	if len(r.Runs) == 0 {
		problems = append(problems, errors.New("no dump was made"))
	}
	return errors.Join(problems...)
}

func (run *Run) list() string {
	var s strings.Builder
	for _, m := range run.List {
		fmt.Fprintf(&s, "  %s %s, %s, flags %s; %s\n", m.PFN, m.Class, m.Alias, m.Flags, m.Page)
		for _, w := range m.Words {
			fmt.Fprintf(&s, "      %s\n", w)
		}
	}
	return s.String()
}

func (run *Run) line() string {
	name := run.Load
	if run.Bite != "" {
		name += ", spoilt: " + run.Bite
	}
	if run.Comparison == nil {
		return name + ": " + run.Error
	}
	var unstable []string
	for key, n := range run.UnstableByAlias {
		unstable = append(unstable, fmt.Sprintf("%s %d/%d", key, n.Differ, n.Pages))
	}
	sort.Strings(unstable)
	return fmt.Sprintf("%s: %d pages, %d mismatches, %d lost; unstable: %d, of these differ %d (%s); DMA: %d pages %v, %d of %d devices unknown; page tables: %d of %d got Accessed or Dirty; %d faults, %d copies",
		name, run.Pages, run.Mismatches, run.Lost, run.Unstable.Pages, run.Unstable.Differ, strings.Join(unstable, ", "),
		run.DMAPages, run.DMA, run.DMADevicesUnknown, run.DMADevices,
		run.PageTables.Differ, run.PageTables.Pages, run.Faults, run.Copies)
}

func (r *Report) summary() string {
	return fmt.Sprintf("kernel %s, %d MiB, %d CPUs, load %s: %d pages compared, %d mismatches, %d lost, %d unstable (%d differ), tables restored: %t, spoilt: %v",
		r.Kernel, r.MemoryMiB, r.CPUs, r.Load, r.Pages, r.Mismatches, r.Lost, r.Unstable.Pages, r.Unstable.Differ, r.TablesRestored, r.Bites)
}
