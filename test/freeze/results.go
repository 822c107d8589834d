// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"livedump.io/internal/session"
	"livedump.io/test/guest"
)

// Run is the median of several freezes: the one whose stop is the median, with its parts.
type Run struct {
	Kernel       string `json:"kernel"`
	RAMMiB       int    `json:"ram_mib"`
	CPUs         int    `json:"cpus"`
	Loaded       bool   `json:"loaded"`
	Tasks        int    `json:"tasks"`
	Method       string `json:"method"`
	StopNS       int64  `json:"stop_ns"`
	RendezvousNS int64  `json:"rendezvous_ns"`
	CopiesNS     int64  `json:"copies_ns"`
	EntriesNS    int64  `json:"entries_ns"`
	RegistersNS  int64  `json:"registers_ns"`
	FlushNS      int64  `json:"flush_ns"`
	Entries      uint64 `json:"entries"`
	// Besides what everybody reads.
	Copies  uint64 `json:"copies"`
	Freezes int    `json:"freezes"`
	MinNS   int64  `json:"stop_min_ns"`
	MaxNS   int64  `json:"stop_max_ns"`
}

// Results is what the JSON holds.
type Results struct {
	Machine string `json:"machine"`
	Runs    []Run  `json:"runs"`
}

func describeMachine() string {
	how := "QEMU without KVM (TCG)"
	if guest.UsesKVM() {
		how = "QEMU with KVM"
	}
	model := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for _, line := range strings.Split(string(b), "\n") {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%s on %d CPUs, %s", how, runtime.NumCPU(), model)
}

func (r Run) median(method string, freezes []session.Stats) Run {
	slices.SortFunc(freezes, func(a, b session.Stats) int { return int(a.Stop - b.Stop) })
	st := freezes[len(freezes)/2]
	r.Method, r.Freezes = method, len(freezes)
	r.MinNS, r.MaxNS = freezes[0].Stop.Nanoseconds(), freezes[len(freezes)-1].Stop.Nanoseconds()
	r.StopNS, r.RendezvousNS = st.Stop.Nanoseconds(), st.Rendezvous.Nanoseconds()
	r.CopiesNS, r.EntriesNS = st.CopiesTook.Nanoseconds(), st.Entries.Nanoseconds()
	r.RegistersNS, r.FlushNS = st.Registers.Nanoseconds(), st.Flush.Nanoseconds()
	r.Entries, r.Copies = st.EntriesPUD+st.EntriesPMD+st.EntriesPTE, st.StopCopies
	return r
}

func milliseconds(ns int64) float64 { return float64(ns) / 1e6 }

func (r Run) condition() string {
	load := "idle"
	if r.Loaded {
		load = "loaded"
	}
	if r.Tasks > 0 {
		load += fmt.Sprintf(", %d tasks", r.Tasks)
	}
	return fmt.Sprintf("%d CPUs, %s", r.CPUs, load)
}

func (r Run) String() string {
	return fmt.Sprintf("%5d MiB, %s, %s: stop %.2f ms (%.2f to %.2f; rendezvous %.2f, copies %.2f, entries %.2f, flush %.2f), %d entries, %d copies",
		r.RAMMiB, r.condition(), r.Method, milliseconds(r.StopNS), milliseconds(r.MinNS), milliseconds(r.MaxNS),
		milliseconds(r.RendezvousNS), milliseconds(r.CopiesNS), milliseconds(r.EntriesNS), milliseconds(r.FlushNS),
		r.Entries, r.Copies)
}

// table is the results as Markdown, level and eager side by side. Times are in milliseconds.
func (r Results) table() string {
	var b strings.Builder
	b.WriteString("| RAM | CPUs | load | tasks | by level: stop | rendezvous | copies | entries | flush | entries changed | eager: stop | entries changed | ratio |\n")
	b.WriteString("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, run := range r.Runs {
		if run.Method != "level" {
			continue
		}
		load := "idle"
		if run.Loaded {
			load = "loaded"
		}
		fmt.Fprintf(&b, "| %d GiB | %d | %s | %d | %.2f | %.2f | %.2f | %.2f | %.2f | %d |", run.RAMMiB>>10, run.CPUs, load, run.Tasks,
			milliseconds(run.StopNS), milliseconds(run.RendezvousNS), milliseconds(run.CopiesNS),
			milliseconds(run.EntriesNS), milliseconds(run.FlushNS), run.Entries)
		if eager, ok := r.find(run, run.RAMMiB, "eager"); ok {
			fmt.Fprintf(&b, " %.1f | %d | %.0f |", milliseconds(eager.StopNS), eager.Entries,
				float64(eager.StopNS)/float64(run.StopNS))
		} else {
			b.WriteString(" | | |")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// find returns the run of a size and method under the same conditions as another.
func (r Results) find(like Run, ramMiB int, method string) (Run, bool) {
	for _, run := range r.Runs {
		if run.RAMMiB == ramMiB && run.Method == method && run.condition() == like.condition() {
			return run, true
		}
	}
	return Run{}, false
}

const (
	// comparedMiB is where the two methods are compared, and by how much they must differ.
	comparedMiB = 8 << 10
	wantRatio   = 50
	// Between these sizes the stop by level may grow by so much.
	smallMiB, largeMiB = 2 << 10, 16 << 10
	wantGrowth         = 1.5
)

// check judges the runs without many tasks: copying the stacks of thousands of tasks is the
// same work for both methods, and hides what they differ in. Nor those with more virtual CPUs than the
// machine has: one that the machine does not run is waited for. It prints all.
func (r Results) check() error {
	var problems []error
	compared := 0
	for _, run := range r.Runs {
		if run.Method != "level" {
			continue
		}
		judged := run.Tasks == 0 && run.CPUs <= runtime.NumCPU()
		if eager, ok := r.find(run, comparedMiB, "eager"); ok && run.RAMMiB == comparedMiB {
			ratio := float64(eager.StopNS) / float64(run.StopNS)
			fmt.Printf("%d MiB, %s: by level %.2f ms, eager %.2f ms: 1/%.0f\n",
				comparedMiB, run.condition(), milliseconds(run.StopNS), milliseconds(eager.StopNS), ratio)
			compared++
			if judged && ratio < wantRatio {
				problems = append(problems, fmt.Errorf("%s: by level 1/%.1f of the eager stop, want 1/%d",
					run.condition(), ratio, wantRatio))
			}
		}
		if large, ok := r.find(run, largeMiB, "level"); ok && run.RAMMiB == smallMiB {
			growth := float64(large.StopNS) / float64(run.StopNS)
			fmt.Printf("%d to %d MiB, %s: from %.2f to %.2f ms: x%.2f\n", smallMiB, largeMiB,
				run.condition(), milliseconds(run.StopNS), milliseconds(large.StopNS), growth)
			compared++
			if judged && growth > wantGrowth {
				problems = append(problems, fmt.Errorf("%s: the stop grows by %.2f, want at most %.1f",
					run.condition(), growth, wantGrowth))
			}
		}
	}
	if compared == 0 {
		problems = append(problems, errors.New("nothing to compare"))
	}
	return errors.Join(problems...)
}
