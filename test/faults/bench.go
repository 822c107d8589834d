// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"livedump.io/api/v1alpha1"
	"livedump.io/node-agent/engine"
	"livedump.io/test/faultrow"
	"livedump.io/test/guest"
	"livedump.io/test/guestdump"
	"livedump.io/test/load/provide"
	"livedump.io/test/pagetables"
	"livedump.io/test/trial"
)

// Paths in the guest.
const (
	guestPGTables = "/opt/livedump_pgtables.ko"
	guestDisk     = "/dev/vda"
	// guestOtherBuild is the module with another srcversion.
	guestOtherBuild = "/opt/livedump-other.ko"
	guestReport     = "/tmp/report.json"
	guestDieAt      = "/tmp/die-at"
	mapped          = "target" // the device-mapper device above the disk
	settleTimeout   = 3 * time.Minute
	faultTimeout    = 8 * time.Minute
	diskExtraMiB    = 256
	// slowly is a limit for writing, so that there is time to let something go wrong.
	slowly = "--bandwidth=4194304"
	// midDump is how much is on the disk when something goes wrong in the middle.
	midDump = 6 << 20
)

type bench struct {
	o      options
	kernel *guest.Kernel
	guest  *guest.Guest
	image  string
	tools  []guest.File
}

func newBench(ctx context.Context, o options, kernel *guest.Kernel) (*bench, error) {
	b := &bench{o: o, kernel: kernel, image: filepath.Join(o.Out, "disk.img")}
	if err := guest.CreateImage(b.image, o.MemoryMiB+diskExtraMiB); err != nil {
		return nil, err
	}
	var err error
	if b.tools, err = provide.WithLibraries(ctx, "/usr/sbin/dmsetup"); err != nil {
		return nil, err
	}
	if err := b.boot(ctx); err != nil {
		return nil, errors.Join(err, os.Remove(b.image))
	}
	return b, nil
}

func (b *bench) boot(ctx context.Context) error {
	o := b.o
	trial.Step("boot kernel %s with %d MiB and %d CPUs", b.kernel.Release, o.MemoryMiB, o.CPUs)
	module := func(dir, name string) string { return filepath.Join(o.Bin, dir, b.kernel.Release, name) }
	other, err := otherSources(module("kmod", "livedump.ko"))
	if err != nil {
		return err
	}
	// It lives until close, also if it is booted in the middle of one fault.
	b.guest, err = guest.Start(context.WithoutCancel(ctx), guest.Config{
		Kernel: b.kernel, Dir: o.Out, Console: filepath.Join(o.Out, "guest.log"), MemoryMiB: o.MemoryMiB, CPUs: o.CPUs,
		Hostname: "livedump-guest", Modules: []string{"dm_mod", "dm_flakey"},
		Disks: []guest.Disk{{Image: b.image, Serial: "livedump-target"}},
		Files: append(append(guestdump.Files(module("kmod", "livedump.ko"), filepath.Join(o.Bin, "livedump-agent")),
			guest.File{Path: guestPGTables, Source: module("kmod-test", "livedump_pgtables.ko")},
			guest.File{Path: guestOtherBuild, Data: other},
			guest.File{Path: provide.Program, Source: filepath.Join(o.Bin, "load"), Mode: 0o755}), b.tools...),
	})
	if err != nil {
		return err
	}
	for _, argv := range [][]string{{"insmod", guestPGTables}, {"insmod", guestdump.Module}} {
		if _, err := b.guest.Run(ctx, argv...); err != nil {
			return errors.Join(err, b.guest.Stop())
		}
	}
	return nil
}

// bootAnew gives a kernel that is as it was.
func (b *bench) bootAnew(ctx context.Context) error {
	if err := errors.Join(b.guest.CheckConsole(), b.guest.Stop()); err != nil {
		return err
	}
	return b.boot(ctx)
}

// otherSources is the module with another srcversion, as if it had been built from other sources.
func otherSources(file string) ([]byte, error) {
	ko, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	key := []byte("\x00srcversion=")
	at := bytes.Index(ko, key)
	if at < 0 || bytes.Count(ko, key) != 1 {
		return nil, fmt.Errorf("%s has no srcversion", file)
	}
	at += len(key)
	if ko[at] == '0' {
		ko[at] = '1'
	} else {
		ko[at] = '0'
	}
	return ko, nil
}

func (b *bench) close() error { return errors.Join(b.guest.Stop(), os.Remove(b.image)) }

func (b *bench) tables(ctx context.Context) (guest.PageTables, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return b.guest.SettledPageTables(ctx)
}

// fault lets something go wrong in a dump, looks at what has come of it, and makes another dump if there is none.
func (b *bench) fault(ctx context.Context, f fault) (row faultrow.Row, err error) {
	ctx, cancel := context.WithTimeout(ctx, faultTimeout)
	defer cancel()
	row = faultrow.Row{Fault: f.name, Expected: f.expected, Header: "?"}
	if err := b.erase(); err != nil {
		return row, err
	}
	trial.Step("%s", f.name)
	before, err := b.tables(ctx)
	if err != nil {
		return row, err
	}
	d := &attempt{b: b, device: guestDisk, moduleFile: guestdump.Module, session: uuid.NewString(), before: before}
	outcome, runErr := f.run(ctx, d)
	if ctx.Err() != nil {
		return row, errors.Join(context.Cause(ctx), runErr)
	}
	if runErr != nil {
		outcome = "error: " + runErr.Error()
	}
	row.Seen = outcome
	if row.Header, err = faultrow.Header(b.image); err != nil {
		return row, err
	}
	problems := []error{runErr}
	if outcome == v1alpha1.ReasonComplete {
		problems = append(problems, guestdump.Verify(ctx, b.image, d.report))
		if row.Header != faultrow.HeaderDump {
			problems = append(problems, errors.New("the target does not begin as a dump"))
		}
	} else if row.Header == faultrow.HeaderDump {
		problems = append(problems, errors.New("the target looks like a dump"))
	}
	if f.check != nil && d.report != nil {
		problems = append(problems, f.check(d.report))
	}
	after, err := b.tables(ctx)
	if err != nil {
		return row, err
	}
	var compared error
	if f.loads {
		_, compared = pagetables.CompareLive(d.before, after)
	} else {
		compared = d.before.Compare(after, guest.StableRegions...)
	}
	row.TablesEqual = compared == nil
	problems = append(problems, compared)
	if f.putBack != nil {
		problems = append(problems, f.putBack(ctx, d))
	}
	if outcome != v1alpha1.ReasonComplete {
		// The next one must succeed.
		next := &attempt{b: b, device: guestDisk, moduleFile: guestdump.Module, session: uuid.NewString()}
		said, err := next.dump(ctx)
		if err == nil && said != v1alpha1.ReasonComplete {
			err = fmt.Errorf("the next dump: %s", said)
		}
		if err == nil {
			err = guestdump.Verify(ctx, b.image, next.report)
		}
		problems = append(problems, err)
	}
	problem := errors.Join(problems...)
	if problem != nil {
		row.Explain(problem)
	}
	row.OK = outcome == f.expected && problem == nil
	return row, nil
}

func (b *bench) erase() error {
	f, err := os.OpenFile(b.image, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(make([]byte, 1<<20), 0)
	return err
}

// attempt is one LiveDump, as it were: what one process after the other makes of one session.
type attempt struct {
	b          *bench
	device     string
	moduleFile string // empty: the agent looks for one
	session    string
	begun      bool
	report     *engine.Report
	// before are the page tables that those of afterwards are compared with.
	before guest.PageTables
}

func (d *attempt) argv(flags ...string) []string {
	argv := []string{guestdump.Agent, "dump", "--device", d.device, "--keep-module", "--session", d.session,
		"--takeover-grace=5m", "--report", guestReport}
	if d.moduleFile != "" {
		argv = append(argv, "--module", d.moduleFile)
	}
	if d.begun {
		argv = append(argv, "--resume")
	}
	d.begun = true
	return append(argv, flags...)
}

// dump runs a process to its end, and says how it ended: Complete, or a reason.
func (d *attempt) dump(ctx context.Context, flags ...string) (string, error) {
	if err := d.forget(ctx); err != nil {
		return "", err
	}
	c := d.b.guest.Command(d.argv(flags...)...)
	return d.outcome(ctx, c.Run(ctx))
}

func (d *attempt) outcome(ctx context.Context, runErr error) (string, error) {
	var exit *guest.ExitError
	if runErr != nil && !errors.As(runErr, &exit) {
		return "", runErr
	}
	raw, err := d.b.guest.ReadFile(ctx, guestReport)
	if err != nil {
		return "", errors.Join(runErr, err)
	}
	d.report = &engine.Report{}
	if err := json.Unmarshal(raw, d.report); err != nil {
		return "", err
	}
	if d.report.Reason != "" {
		trial.Step("  %s: %s", d.report.Reason, d.report.Error)
		return d.report.Reason, nil
	}
	if runErr != nil {
		return "", runErr
	}
	return v1alpha1.ReasonComplete, nil
}

// dieAt runs a process that kills itself at a point.
func (d *attempt) dieAt(ctx context.Context, point engine.Step) error {
	if err := d.b.guest.Put(ctx, guestDieAt, 0o644, strings.NewReader(string(point))); err != nil {
		return err
	}
	err := d.b.guest.Command(d.argv("--die-at", guestDieAt)...).Run(ctx)
	var exit *guest.ExitError
	if !errors.As(err, &exit) || exit.Signal != int(unix.SIGKILL) {
		return fmt.Errorf("the process was to die at %s, but: %w", point, errors.Join(err, errors.New("it did not")))
	}
	return nil
}

// during starts a dump that takes its time, does something when a part of it is on the disk, and waits for its end.
func (d *attempt) during(ctx context.Context, do func(*guest.Cmd) error) (string, error) {
	if err := d.forget(ctx); err != nil {
		return "", err
	}
	written, err := d.written(ctx)
	if err != nil {
		return "", err
	}
	c := d.b.guest.Command(d.argv(slowly)...)
	if err := c.Start(ctx); err != nil {
		return "", err
	}
	for {
		now, err := d.written(ctx)
		if err != nil {
			return "", err
		}
		if now-written >= midDump {
			break
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-c.Exited():
			said, err := d.outcome(ctx, c.Wait(ctx))
			return "", errors.Join(fmt.Errorf("the dump ended (%s) before anything could go wrong", said), err)
		case <-ctx.Done():
			return "", errors.Join(context.Cause(ctx), c.Kill())
		}
	}
	if err := do(c); err != nil {
		return "", errors.Join(err, c.Kill())
	}
	return d.outcome(ctx, c.Wait(ctx))
}

// forget removes the report of the process before.
func (d *attempt) forget(ctx context.Context) error { return d.sh(ctx, "rm -f "+guestReport) }

// written is how many bytes were written to the disk since it is there.
func (d *attempt) written(ctx context.Context) (int64, error) {
	raw, err := d.b.guest.ReadFile(ctx, "/sys/block/vda/stat")
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(raw))
	if len(fields) < 7 {
		return 0, fmt.Errorf("/sys/block/vda/stat: %q", raw)
	}
	sectors, err := strconv.ParseInt(fields[6], 10, 64)
	return sectors * 512, err
}

func (d *attempt) sh(ctx context.Context, script string) error {
	_, err := d.b.guest.Run(ctx, "sh", "-ec", script)
	return err
}
