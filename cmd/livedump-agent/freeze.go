// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"livedump.io/internal/blockdev"
	"livedump.io/internal/module"
	"livedump.io/internal/session"
	"livedump.io/node-agent/engine"
)

// freezeFlags are the flags of "freeze", as they were read.
type freezeFlags struct {
	moduleFile string
	keepModule bool
	length     time.Duration
	options    session.Options
	dirs       module.Dirs
	log        *slog.Logger
}

func parseFreeze(args []string, out io.Writer) (*freezeFlags, error) {
	f := &freezeFlags{options: session.Options{Keep: true}}
	flags := flag.NewFlagSet("livedump-agent freeze", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Usage = func() {
		fmt.Fprint(out, "usage: livedump-agent freeze [flags]\n\n"+
			"Freezes the memory of the running kernel and lets /dev/livedump-vmcore show it, for crash, drgn, makedumpfile and cp,\n"+
			"until --for has passed or the program is interrupted. The machine goes on meanwhile. Needs root.\n\nFlags:\n")
		flags.PrintDefaults()
	}
	flags.StringVar(&f.moduleFile, "module", "", "module `file` (default: the one for the running kernel in --module-dir or --host-module-dir)")
	flags.StringVar(&f.dirs.Image, "module-dir", module.DefaultDirs.Image, "`directory` with <release>/livedump.ko")
	flags.StringVar(&f.dirs.Host, "host-module-dir", module.DefaultDirs.Host, "`directory` with <release>/{extra,updates}/livedump.ko")
	flags.BoolVar(&f.keepModule, "keep-module", false, "leave the module loaded afterwards")
	flags.DurationVar(&f.length, "for", 10*time.Minute, "longest `time` that memory stays frozen")
	level := flags.Uint("dump-level", uint(session.ExcludeAll), "page classes that read as zeros, makedumpfile's `bits` (0 to 31)")
	flags.Uint64Var(&f.options.ReserveBytes, "reserve", 0, "limit for copies and page tables, in `bytes` (0: a share of free memory); every page that is written takes one")
	consistency := flags.String("consistency", "Strict", "`mode` when the reserve is used up: Strict (nothing can be read any more) or BestEffort (lost pages can't)")
	logLevel := flags.String("log-level", "info", "debug, info, warn or error")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, nil
		}
		return nil, usageError{err}
	}
	if flags.NArg() > 0 {
		return nil, usageError{fmt.Errorf("unexpected argument %q", flags.Arg(0))}
	}
	if *level > uint(session.ExcludeAll) {
		return nil, usageError{fmt.Errorf("--dump-level %d: want 0 to %d", *level, session.ExcludeAll)}
	}
	if f.length <= 0 {
		return nil, usageError{errors.New("--for must be positive")}
	}
	switch *consistency {
	case "Strict":
		f.options.Mode = session.Strict
	case "BestEffort":
		f.options.Mode = session.BestEffort
	default:
		return nil, usageError{fmt.Errorf("--consistency %q: want Strict or BestEffort", *consistency)}
	}
	f.options.Level, f.options.Deadline = session.DumpLevel(*level), f.length
	_, _ = rand.Read(f.options.UUID[:]) // never fails
	f.options.UUID[6] = f.options.UUID[6]&0x0f | 0x40
	f.options.UUID[8] = f.options.UUID[8]&0x3f | 0x80
	var err error
	if f.log, err = newLogger(*logLevel); err != nil {
		return nil, usageError{err}
	}
	return f, nil
}

// freeze is "livedump-agent freeze".
func freeze(args []string, out io.Writer) (err error) {
	f, err := parseFreeze(args, out)
	if err != nil || f == nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	node := engine.Node{
		Host: blockdev.LocalHost,
		Loader: module.Loader{
			Kernel: module.Running{Sys: blockdev.LocalHost.Sys, Root: blockdev.LocalHost.Root},
			Dirs:   f.dirs, File: f.moduleFile,
		},
		Log: f.log,
	}
	refuseHugePages(f.log)
	e := node.Engine(nil) // no target
	if _, err := e.LoadModule(); err != nil {
		return err
	}
	if !f.keepModule {
		defer func() { err = errors.Join(err, node.Loader.Unload()) }()
	}
	s, err := e.OpenSession(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return hold(ctx, s, f.options, out)
}

// watchEvery is how often a frozen session is asked whether it is still good.
const watchEvery = 500 * time.Millisecond

// hold freezes memory until the context ends, the options' deadline passes or the session fails.
func hold(ctx context.Context, s session.Session, o session.Options, out io.Writer) error {
	if _, err := s.Prepare(o); err != nil {
		return err
	}
	frozen, err := s.Freeze()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "frozen in %v: for at most %v /dev/%s shows memory as of %s; interrupt to thaw\n",
		frozen.Stop.Round(time.Microsecond), o.Deadline, session.VMCoreDevice, frozen.At.Format(time.RFC3339Nano))
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		stats, err := s.Stats()
		if err != nil {
			return err
		}
		if stats.Failure == session.FailureDeadline || stats.State != session.StateFrozen {
			break
		}
		if err := stats.Failure.Err(); err != nil {
			return err // Close thaws
		}
		select {
		case <-ticker.C:
			continue
		case <-ctx.Done():
		}
		break
	}
	if err := s.Thaw(); err != nil {
		return err
	}
	stats, err := s.Stats()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "thawed: %d faults, %d copies, %d of %d pages of the reserve were never used\n",
		stats.Faults, stats.Copies, stats.ReserveLow, stats.ReservePages)
	return nil
}
