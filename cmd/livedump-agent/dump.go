// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"livedump.io/internal/agefile"
	"livedump.io/internal/blockdev"
	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
	"livedump.io/internal/module"
	"livedump.io/internal/session"
	"livedump.io/node-agent/agent"
	"livedump.io/node-agent/engine"
)

// dumpFlags are the flags of "dump", as they were read.
type dumpFlags struct {
	target     targetFlags
	moduleFile string
	report     string
	keepModule bool
	pauseAt    []engine.Step
	cpus       int
	timeout    time.Duration
	policy     blockdev.Policy
	options    engine.Options
	dirs       module.Dirs
	log        *slog.Logger
}

func parseDump(args []string, out io.Writer) (*dumpFlags, error) {
	d := &dumpFlags{}
	flags := flag.NewFlagSet("livedump-agent dump", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Usage = func() {
		fmt.Fprint(out, "usage: livedump-agent dump (--device DEVICE | --output FILE | --stdout | --connect ADDRESS) [flags]\n\n"+
			"Dumps the memory of the running kernel, verifies the dump where it can be read back, and prints a report.\nNeeds root.\n\nFlags:\n")
		flags.PrintDefaults()
	}
	d.target.add(flags)
	form := flags.String("format", "", "`format` of the dump: kdump, flattened or elf (default: kdump, flattened for a stream)")
	flags.StringVar(&d.moduleFile, "module", "", "module `file` (default: the one for the running kernel in --module-dir or --host-module-dir)")
	flags.StringVar(&d.dirs.Image, "module-dir", module.DefaultDirs.Image, "`directory` with <release>/livedump.ko")
	flags.StringVar(&d.dirs.Host, "host-module-dir", module.DefaultDirs.Host, "`directory` with <release>/{extra,updates}/livedump.ko")
	flags.BoolVar(&d.keepModule, "keep-module", false, "leave the module loaded afterwards")
	flags.StringVar(&d.report, "report", "", "`file` for the report in JSON (default: standard output)")
	compression := flags.String("compression", "zstd", "`codec` of the pages: zstd, zlib, snappy or none")
	level := flags.Uint("dump-level", uint(session.ExcludeAll), "page classes to leave out, makedumpfile's `bits` (0 to 31)")
	consistency := flags.String("consistency", "Strict", "`mode` when the reserve is used up: Strict or BestEffort")
	policy := flags.String("overwrite-policy", blockdev.IfEmptyOrLiveDump.String(), "what may be on the device: Never or IfEmptyOrLiveDump")
	id := flags.String("session", "", "`UUID` of the session (default: a new one)")
	flags.Uint64Var(&d.options.ReserveBytes, "reserve", 0, "limit for copies and page tables, in `bytes` (0: a share of free memory)")
	flags.IntVar(&d.options.CodecLevel, "compression-level", 0, "`level` of zstd (1 to 4) or zlib (1 to 9), 0: the fastest")
	flags.IntVar(&d.cpus, "cpus", 0, "how many `CPUs` the dump may keep busy (0: all that the process may use)")
	flags.Int64Var(&d.options.Bandwidth, "bandwidth", 0, "limit for writing to the target, `bytes` per second (0: none)")
	flags.DurationVar(&d.timeout, "timeout", 30*time.Minute, "longest `time` for the whole dump")
	flags.DurationVar(&d.options.Deadline, "deadline", 0, "longest `time` that memory stays frozen, kept by the kernel (0: that of --timeout)")
	flags.DurationVar(&d.options.Grace, "takeover-grace", 0, "how long memory stays frozen when this process ends in the middle, for the `time` until another goes on with --resume (at most 1h; 0: not at all)")
	flags.BoolVar(&d.options.Resume, "resume", false, "go on with the dump of a process that has ended: with the same --session and --device")
	dieAt := flags.String("die-at", "", "for tests: `file` with the name of a point at which the process kills itself")
	flags.BoolVar(&d.options.KeepPages, "keep-pages", false, "let /dev/livedump-vmcore show the frozen memory until the thaw; takes a larger reserve")
	flags.Func("pause-at", "for tests: `steps`, separated by commas, before each of which to print its name and wait for a line on standard input",
		func(list string) error {
			for _, s := range strings.Split(list, ",") {
				d.pauseAt = append(d.pauseAt, engine.Step(s))
			}
			return nil
		})
	var recipients []string
	flags.Func("recipient", "encrypt the dump for this public `key` of age-keygen (age1...); may be given several times",
		func(key string) error {
			recipients = append(recipients, key)
			return nil
		})
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
	if err := d.target.check(); err != nil {
		return nil, usageError{err}
	}
	if d.target.stdout && len(d.pauseAt) > 0 {
		return nil, usageError{errors.New("--pause-at prints to standard output, which --stdout needs for the dump")}
	}
	var err error
	if d.options.Format, err = format.ParseFormat(*form); err != nil {
		return nil, usageError{err}
	}
	if d.options.Codec, err = kdump.ParseCodec(*compression); err != nil {
		return nil, usageError{err}
	}
	if d.options.Recipients, err = agefile.ParseRecipients(recipients); err != nil {
		return nil, usageError{fmt.Errorf("--recipient: %w", err)}
	}
	fastest, smallest := d.options.Codec.Levels()
	if l := d.options.CodecLevel; l != 0 && (l < fastest || l > smallest) {
		return nil, usageError{fmt.Errorf("--compression-level %d: %s has %d to %d", l, d.options.Codec, fastest, smallest)}
	}
	if d.cpus < 0 || d.options.Bandwidth < 0 {
		return nil, usageError{errors.New("--cpus and --bandwidth must not be negative")}
	}
	if *level > uint(session.ExcludeAll) {
		return nil, usageError{fmt.Errorf("--dump-level %d: want 0 to %d", *level, session.ExcludeAll)}
	}
	d.options.Level = session.DumpLevel(*level)
	switch *consistency {
	case "Strict":
		d.options.Mode = session.Strict
	case "BestEffort":
		d.options.Mode = session.BestEffort
	default:
		return nil, usageError{fmt.Errorf("--consistency %q: want Strict or BestEffort", *consistency)}
	}
	if d.policy, err = blockdev.ParsePolicy(*policy); err != nil {
		return nil, usageError{err}
	}
	if *id == "" {
		_, _ = rand.Read(d.options.UUID[:]) // never fails
		d.options.UUID[6] = d.options.UUID[6]&0x0f | 0x40
		d.options.UUID[8] = d.options.UUID[8]&0x3f | 0x80
	} else {
		parsed, err := uuid.Parse(*id)
		if err != nil {
			return nil, usageError{fmt.Errorf("--session %q: %w", *id, err)}
		}
		d.options.UUID = kdump.Session(parsed)
	}
	if d.options.Grace < 0 || d.options.Grace > time.Hour {
		return nil, usageError{errors.New("--takeover-grace must be at most 1h and not negative")}
	}
	if d.options.Resume && *id == "" {
		return nil, usageError{errors.New("--resume needs the --session that is to be gone on with")}
	}
	if d.options.Resume && d.options.Grace == 0 {
		d.options.Grace = time.Minute
	}
	if *dieAt != "" {
		d.options.OnStep = agent.DieAt(*dieAt)
	}
	if d.timeout <= 0 || d.options.Deadline < 0 {
		return nil, usageError{errors.New("--timeout and --deadline must be positive")}
	}
	if d.options.Deadline == 0 {
		d.options.Deadline = d.timeout
	}
	d.log, err = newLogger(*logLevel)
	if err != nil {
		return nil, usageError{err}
	}
	return d, nil
}

func newLogger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", level)
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: l})), nil
}

// refuseHugePages is for every command that lives while memory is frozen.
func refuseHugePages(log *slog.Logger) {
	if err := engine.RefuseHugePages(); err != nil {
		log.Warn("memory may wait for a stuck CPU", "error", err)
	}
}

// dump is "livedump-agent dump".
func dump(args []string, out io.Writer) error {
	d, err := parseDump(args, out)
	if err != nil || d == nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, d.timeout, engine.ErrDeadline)
	defer cancel()

	defer limitCPUs(d.cpus)()
	node := engine.Node{
		Host: blockdev.LocalHost,
		Loader: module.Loader{
			Kernel: module.Running{Sys: blockdev.LocalHost.Sys, Root: blockdev.LocalHost.Root},
			Dirs:   d.dirs, File: d.moduleFile,
		},
		Log: d.log,
	}
	open, err := d.target.open(node, d.policy, d.options.UUID, d.options.Resume)
	if err != nil {
		return err
	}
	if d.target.stdout {
		out = os.Stderr
	}
	refuseHugePages(d.log)
	unlock, err := engine.LockMemory()
	if err != nil {
		d.log.Warn("memory is not locked", "error", err)
	}
	defer unlock()
	d.options.Progress = printProgress(d.log)
	if len(d.pauseAt) > 0 {
		d.options.OnStep = pauseAt(d.pauseAt, os.Stdout, os.Stdin)
	}
	report, dumpErr := node.Engine(open).Dump(ctx, d.options)

	if !d.keepModule && report.Module.How != "" {
		if err := node.Loader.Unload(); err != nil {
			d.log.Error("the module stays loaded", "error", err)
			dumpErr = errors.Join(dumpErr, err)
		} else {
			d.log.Info("module unloaded")
		}
	}
	if err := writeReport(report, d.report, out); err != nil {
		return errors.Join(dumpErr, err)
	}
	return dumpErr
}

func writeReport(r *engine.Report, path string, out io.Writer) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	text = append(text, '\n')
	if path != "" {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return fmt.Errorf("report: %w", err)
		}
		return nil
	}
	if _, err := out.Write(text); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// printProgress logs steps as they begin, and how far the pages are, once a second.
func printProgress(log *slog.Logger) func(engine.Progress) {
	var step engine.Step
	var last time.Time
	return func(p engine.Progress) {
		if p.Step == step && time.Since(last) < time.Second {
			return
		}
		step, last = p.Step, time.Now()
		log.Info("progress", "step", p.Step, "percent", p.Percent(), "pages", p.PagesDone, "of", p.PagesTotal, "bytes", p.BytesWritten)
	}
}

// pauseAt lets a test stop the dump at a known place: it prints the step's name and waits for a line, or for the end
// of the dump's time.
func pauseAt(at []engine.Step, out io.Writer, in io.Reader) func(context.Context, engine.Step) {
	return func(ctx context.Context, s engine.Step) {
		if !slices.Contains(at, s) {
			return
		}
		fmt.Fprintf(out, "paused before %s\n", s)
		line := make(chan struct{})
		go func() {
			defer close(line)
			var b [1]byte
			for b[0] != '\n' {
				if _, err := in.Read(b[:]); err != nil {
					return
				}
			}
		}()
		select {
		case <-line:
		case <-ctx.Done():
		}
	}
}
