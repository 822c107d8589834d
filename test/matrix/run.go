// SPDX-License-Identifier: Apache-2.0

// Package matrix runs the module on one kernel after another, on machines that differ in
// what matters to page tables and to the stop: Rows says which. Each row is one boot of
// a guest in which the program test/truth compares a dump with hashes that were taken
// in the stop, has crash and drgn judge another one, and compares page tables.
package matrix

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"livedump.io/test/guest"
)

// Runner runs rows.
type Runner struct {
	// Out gets a directory for each row, with its logs.
	Out string
	// Truth is the program test/truth.
	Truth string
	// Bin is the directory with the agent, the loads and the modules.
	Bin string
	// Load is what the guest does meanwhile.
	Load string
	// Commit is what is run.
	Commit string
	// Wrap is put before the command of each row, if not empty.
	Wrap []string
	// Log is told what the programs say.
	Log io.Writer
}

// truthReport is what is read of truth.json.
type truthReport struct {
	Machine    *guest.Machine `json:"machine"`
	Pages      uint64         `json:"pages"`
	Mismatches uint64         `json:"mismatches"`
	Lost       uint64         `json:"lost"`
	Unstable   struct {
		Pages uint64 `json:"pages"`
	} `json:"unstable"`
	TablesRestored bool `json:"tables_restored"`
	Shipped        *struct {
		StopNS         uint64 `json:"stop_ns"`
		Readers        string `json:"readers"`
		TablesRestored bool   `json:"tables_restored"`
	} `json:"shipped"`
}

// Run runs one row. What fails is in the result; only a run that was ended from outside is an error.
func (r *Runner) Run(ctx context.Context, row Row) (Result, error) {
	start := time.Now()
	result := Result{Row: row.Name(), Commit: r.Commit, Readers: "not run"}
	err := r.run(ctx, row, &result)
	if ctx.Err() != nil {
		return result, context.Cause(ctx)
	}
	if err != nil {
		result.Error = err.Error()
	}
	result.Ended, result.Seconds = time.Now().UTC().Truncate(time.Second), int(time.Since(start).Seconds())
	return result, nil
}

func (r *Runner) run(ctx context.Context, row Row, result *Result) error {
	for _, args := range [][]string{
		{row.Kernel, "kmod", filepath.Join(r.Bin, "kmod")},
		{"--test", row.Kernel, "kmod", filepath.Join(r.Bin, "kmod-instrumented")},
		{row.Kernel, "kmod/test", filepath.Join(r.Bin, "kmod-test")},
	} {
		if _, err := guest.Hack(ctx, "build-kmod", args...); err != nil {
			return err
		}
	}
	dir := filepath.Join(r.Out, row.Name())
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	argv := append(append([]string{}, r.Wrap...), r.Truth,
		"-kernel", row.Kernel, "-ram", strconv.Itoa(row.MemoryMiB), "-cpus", strconv.Itoa(row.CPUs),
		"-nodes", strconv.Itoa(row.nodes()), "-cpu", row.cpu(), "-append", strings.Join(row.words(), " "),
		"-load", r.Load, "-shipped", "-bin", r.Bin, "-out", filepath.Join(dir, "truth"))
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	said, err := os.Create(filepath.Join(dir, "truth.log"))
	if err != nil {
		return err
	}
	defer said.Close()
	out := io.MultiWriter(said, r.Log)
	cmd.Stdout, cmd.Stderr = out, out
	// It ends its guest when it is told to.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	runErr := cmd.Run()
	if runErr != nil {
		runErr = fmt.Errorf("test/truth: %w, see %s", runErr, said.Name())
	}
	return errors.Join(runErr, result.read(filepath.Join(dir, "truth.json"), row))
}

// read takes what the row's program found, and says what of it is not as it must be.
func (r *Result) read(file string, row Row) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var t truthReport
	if err := json.Unmarshal(b, &t); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	r.Machine = t.Machine
	r.Truth = &Truth{Pages: t.Pages, Mismatches: t.Mismatches, Lost: t.Lost, Unstable: t.Unstable.Pages}
	if t.Machine == nil || t.Shipped == nil {
		return fmt.Errorf("%s: not all of it was done", file)
	}
	r.Readers, r.StopNS = t.Shipped.Readers, t.Shipped.StopNS
	r.TablesRestored = t.TablesRestored && t.Shipped.TablesRestored
	var problems []error
	expect := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	expect(t.Pages > 0, "no page was compared")
	expect(t.Mismatches == 0, "%d pages are not as they were in the stop", t.Mismatches)
	expect(t.Lost == 0, "%d pages were lost", t.Lost)
	expect(t.Shipped.Readers == "passed", "readers: %s", t.Shipped.Readers)
	expect(t.Shipped.StopNS > 0, "the stop has no time")
	expect(r.TablesRestored, "page tables are not as they were")
	return errors.Join(append(problems, row.check(t.Machine))...)
}
