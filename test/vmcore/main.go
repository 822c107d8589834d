// SPDX-License-Identifier: Apache-2.0

// Command vmcore tests /dev/livedump-vmcore in a guest: while a session is frozen
// and a workload goes on, makedumpfile, crash, drgn and cp run on the node inside
// the guest, before and after the pages were streamed to a target. Then every page
// that they saw is compared with the streamed dump. `make test-vmcore` runs it.
//
// It writes OUT/vmcore.json, the streamed dump and what the tools said.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"livedump.io/test/guest"
	"livedump.io/test/trial"
)

// limit is how long everything may take: crash alone takes some minutes in a
// guest without hardware support.
const limit = 45 * time.Minute

// options are the command's flags.
type options struct {
	trial.Guest
	cpu   string
	short bool
}

// Report is what vmcore.json holds.
type Report struct {
	Kernel    string `json:"kernel"`
	MemoryMiB int    `json:"memory_mib"`
	GuestCPUs int    `json:"guest_cpus"`
	KVM       bool   `json:"kvm"`

	Tools       []*Tool      `json:"tools"`
	Comparisons []Comparison `json:"comparisons"`

	// Of the session in which the tools ran.
	FrozenForNS    int64  `json:"frozen_for_ns"`
	PagesDumped    uint64 `json:"pages_dumped"`
	UncoveredPages uint64 `json:"uncovered_pages"`
	Faults         uint64 `json:"faults"`
	Copies         uint64 `json:"copies"`
	ReservePages   uint64 `json:"reserve_pages"`
	ReserveLow     uint64 `json:"reserve_low"`

	// Lost is what a reader saw of a session whose reserve was too small; absent if not tried.
	Lost           *LostReport `json:"lost,omitempty"`
	TablesRestored bool        `json:"tables_restored"`
	Workload       string      `json:"workload"`
	Error          string      `json:"error,omitempty"`
}

// Tool is one run of one tool on the node.
type Tool struct {
	Name    string  `json:"name"`
	Release string  `json:"debian_release"`
	Version string  `json:"version"`
	Command string  `json:"command"`
	When    string  `json:"when"` // before or after the pages were streamed
	Seconds float64 `json:"seconds"`
	Passed  bool    `json:"passed"`
}

// LostReport compares what a reader could not read with what the module counted.
type LostReport struct {
	PagesRead    uint64 `json:"pages_read"`
	PagesLeftOut uint64 `json:"pages_left_out"`
	ReadErrors   uint64 `json:"read_errors"`
	LostPages    uint64 `json:"lost_pages"` // at the thaw, so no fewer than a reader saw before
}

func main() {
	o := options{}
	o.Guest.Flags(2048, 2, "out/vmcore", "livedump-agent, workload, kmod/ and kmod-test/")
	flag.StringVar(&o.cpu, "cpu", "max", "QEMU's CPU `model`")
	flag.BoolVar(&o.short, "short", false, "one version of makedumpfile, drgn and cp, before the pages are streamed, and no crash")
	flag.Parse()

	trial.Run("test-vmcore", limit, func(ctx context.Context) (string, error) {
		return fmt.Sprintf("on kernel %s (%d MiB, %d CPUs)", o.Series, o.MemoryMiB, o.CPUs), run(ctx, o)
	})
}

func run(ctx context.Context, o options) (err error) {
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return err
	}
	kernel, err := guest.FetchKernel(ctx, o.Series)
	if err != nil {
		return err
	}
	b, err := newBench(ctx, o, kernel)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			b.report.Error = err.Error()
		}
		err = errors.Join(err, trial.WriteJSON(filepath.Join(o.Out, "vmcore.json"), b.report), b.close())
	}()
	if err := b.sessions(ctx); err != nil {
		return errors.Join(err, b.guest.CheckConsole())
	}
	return nil
}
