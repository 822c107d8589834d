// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"livedump.io/node-agent/engine"
	"livedump.io/test/guest"
	"livedump.io/test/guestdump"
	"livedump.io/test/judge"
	"livedump.io/test/trial"
)

const (
	guestShipped = "/opt/shipped/livedump.ko"
	churnAllowed = 20
)

// Shipped is a dump by the module as it is shipped, in the same guest: hashing every page
// makes the instrumented one's stop as long as memory is large.
type Shipped struct {
	StopNS         int64 `json:"stop_ns"`
	TablesRestored bool  `json:"tables_restored"`
	// Readers is "passed", or what crash and drgn do not agree with.
	Readers string `json:"readers"`

	dump        string
	expectation judge.Expectation
}

// shippedToo makes the dump, ends the guest, and has the dump judged.
func (b *bench) shippedToo(ctx context.Context, r *Report, kernel *guest.Kernel) error {
	var err error
	if r.Shipped, err = b.shipped(ctx); err != nil {
		return err
	}
	if err := b.guest.Stop(); err != nil {
		return err
	}
	return r.Shipped.judge(ctx, kernel, b.o.Out)
}

// shipped makes the dump. The readers look at it when the guest is gone.
func (b *bench) shipped(ctx context.Context) (s *Shipped, err error) {
	ctx, cancel := context.WithTimeout(ctx, dumpTimeout)
	defer cancel()
	trial.Step("dump with the module as it is shipped, for the readers")
	for _, argv := range [][]string{{"rmmod", "livedump"}, {"insmod", guestShipped}} {
		if _, err := b.guest.Run(ctx, argv...); err != nil {
			return nil, err
		}
	}
	parked, end, err := b.park(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	s = &Shipped{Readers: "not run", dump: filepath.Join(b.o.Out, "dump.kdump")}
	s.expectation = judge.Expectation{
		Churn: churnAllowed, ParkedTID: parked, ParkedFrames: judge.ParkedFrames, Modules: []string{"livedump"},
	}
	before, err := b.tables(ctx)
	if err != nil {
		return s, err
	}
	if s.expectation.Before, err = judge.Observe(ctx, b.guest); err != nil {
		return s, err
	}
	report, err := b.agent(ctx, guestShipped)
	if err != nil {
		return s, err
	}
	s.StopNS = report.FreezeNS
	if s.expectation.After, err = judge.Observe(ctx, b.guest); err != nil {
		return s, err
	}
	after, err := b.tables(ctx)
	if err != nil {
		return s, err
	}
	if err := before.Compare(after, guest.StableRegions...); err != nil {
		return s, err
	}
	s.TablesRestored = true
	return s, guestdump.CopyOff(ctx, b.image, s.dump, report)
}

// park starts a task that sleeps in a place that is known, and returns how to end it.
func (b *bench) park(ctx context.Context) (tid int, end func() error, err error) {
	in, out := io.Pipe()
	c := b.guest.Command("cat")
	c.Stdin = in
	if err := c.Start(ctx); err != nil {
		return 0, nil, err
	}
	return c.PID, func() error { return errors.Join(out.Close(), c.Wait(ctx)) }, nil
}

// agent makes a dump and returns its report.
func (b *bench) agent(ctx context.Context, module string) (*engine.Report, error) {
	said := &guest.Output{}
	c := b.guest.Command(b.takenOver([]string{guestAgent, "dump", "--device", guestDevice, "--module", module, "--keep-module",
		"--report", guestReport})...)
	c.Stdout, c.Stderr = said, said
	if err := c.Run(ctx); err != nil {
		return nil, fmt.Errorf("%w; the agent's last words: %s", err, said.LastLine())
	}
	raw, err := b.guest.ReadFile(ctx, guestReport)
	if err != nil {
		return nil, err
	}
	report := &engine.Report{}
	if err := json.Unmarshal(raw, report); err != nil {
		return nil, fmt.Errorf("the agent's report: %w", err)
	}
	return report, nil
}

// judge has the readers look at the dump, and keeps it only if they complain.
func (s *Shipped) judge(ctx context.Context, kernel *guest.Kernel, out string) error {
	err := judge.Prepare(ctx, kernel)
	if err == nil {
		err = judge.Judge(ctx, judge.Input{Dump: s.dump, Kernel: kernel, Expect: s.expectation, OutDir: out, Progress: trial.Step})
	}
	if err != nil {
		s.Readers = err.Error()
		return fmt.Errorf("readers: %w", err)
	}
	s.Readers = "passed"
	return os.Remove(s.dump)
}
