// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/module"
	"livedump.io/node-agent/engine"
	"livedump.io/test/guest"
	"livedump.io/test/guestdump"
	"livedump.io/test/load/provide"
)

// fault is something that goes wrong, and how the dump is to end.
type fault struct {
	name     string
	expected string // Complete or a reason
	run      func(ctx context.Context, d *attempt) (outcome string, err error)
	// check, if not nil, looks at what is reported.
	check func(*engine.Report) error
	// loads: modules come or go, which changes page tables by itself.
	loads bool
	// putBack, if not nil, undoes what cannot stay for the next dump.
	putBack func(ctx context.Context, d *attempt) error
}

// killed: the process dies at points, one after the other, and the last goes on to the end.
func killed(points ...engine.Step) func(context.Context, *attempt) (string, error) {
	return func(ctx context.Context, d *attempt) (string, error) {
		for _, p := range points {
			if err := d.dieAt(ctx, p); err != nil {
				return "", err
			}
		}
		return d.dump(ctx)
	}
}

var faults = append(killedAtEachStep(), []fault{
	{name: "killed, and so is the next", expected: v1alpha1.ReasonComplete,
		run: killed(engine.PointAcknowledged, engine.PointAcknowledged, engine.StepFinish)},
	{name: "killed, nobody goes on in time", expected: v1alpha1.ReasonAgentLost, run: nobodyGoesOn},
	{name: "killed by kill -9 in the middle", expected: v1alpha1.ReasonComplete, run: killedInTheMiddle},
	{name: "I/O error in the middle", expected: v1alpha1.ReasonIOError, run: broken("error")},
	{name: "target read-only in the middle", expected: v1alpha1.ReasonIOError, run: broken(readOnlyTable)},
	{name: "clock set back an hour", expected: v1alpha1.ReasonComplete, run: clockSetBack},
	{name: "memory pressure", expected: v1alpha1.ReasonComplete, run: memoryPressure},
	{name: "canceled in the middle", expected: v1alpha1.ReasonCanceled, run: canceled},
	{name: "reserve used up, Strict", expected: v1alpha1.ReasonReserveExhausted, run: reserveUsedUp("Strict")},
	{name: "reserve used up, BestEffort", expected: v1alpha1.ReasonComplete, run: reserveUsedUp("BestEffort"), check: lostSome},
	{name: "frozen for longer than the kernel may be", expected: v1alpha1.ReasonDeadlineExceeded, run: late("--deadline=5s")},
	{name: "time is up", expected: v1alpha1.ReasonDeadlineExceeded, run: late("--timeout=10s")},
	{name: "another session", expected: v1alpha1.ReasonNodeBusy, run: otherSession},
	{name: "module loaded already", expected: v1alpha1.ReasonComplete, run: undisturbed, check: moduleWas(module.OutcomeAdopted)},
	{name: "other build of the module loaded", expected: v1alpha1.ReasonComplete, run: otherBuild, check: moduleWas(module.OutcomeReplaced), loads: true},
	{name: "other build of the module in use", expected: v1alpha1.ReasonModuleRejected, run: otherBuildInUse, loads: true, putBack: rightBuild},
	{name: "no module for this kernel", expected: v1alpha1.ReasonModuleNotFound, run: noModule},
	{name: "signatures enforced, module not signed", expected: v1alpha1.ReasonModuleRejected, run: signaturesEnforced, loads: true, putBack: anotherBoot},
	{name: "machine reset in the middle", expected: "interrupted by the reset", run: reset},
}...)

// readOnlyTable fails all writes and no reads, as a disk does that has become write-protected. (Marking the device read-only,
// as blockdev --setro does, changes nothing for who has it open already.)
const readOnlyTable = "flakey " + guestDisk + " 0 0 3600 1 error_writes"

func killedAtEachStep() (all []fault) {
	for _, p := range []engine.Step{
		engine.StepTarget, engine.StepModule, engine.StepPrepare, engine.StepFreeze, engine.PointFrozen, engine.StepWrite,
		engine.PointAcknowledged, engine.StepThaw, engine.PointThawed, engine.StepFinish, engine.StepVerify,
	} {
		all = append(all, fault{name: "killed at " + string(p), expected: v1alpha1.ReasonComplete, run: killed(p)})
	}
	return all
}

// nobodyGoesOn: the kernel thaws by itself when the grace is over, and who comes then says that the dump is lost.
func nobodyGoesOn(ctx context.Context, d *attempt) (string, error) {
	if err := d.b.guest.Put(ctx, guestDieAt, 0o644, strings.NewReader(string(engine.PointAcknowledged))); err != nil {
		return "", err
	}
	_ = d.b.guest.Command(d.argv("--die-at", guestDieAt, "--takeover-grace=2s")...).Run(ctx)
	if err := d.sh(ctx, `while [ "$(cat /sys/class/misc/livedump/state)" = frozen ]; do sleep 0.2; done`); err != nil {
		return "", err
	}
	return d.dump(ctx)
}

func killedInTheMiddle(ctx context.Context, d *attempt) (string, error) {
	_, err := d.during(ctx, func(c *guest.Cmd) error { return c.Kill() })
	if err == nil {
		return "", errors.New("the process was killed, and reported all the same")
	}
	return d.dump(ctx)
}

// onMapped puts a device-mapper device above the disk.
func (d *attempt) onMapped(ctx context.Context, run func(sectors int64) (string, error)) (outcome string, err error) {
	sectors := int64(d.b.o.MemoryMiB+diskExtraMiB) << 11
	if err := d.sh(ctx, fmt.Sprintf("dmsetup --noudevrules --noudevsync create %s --table '0 %d linear %s 0'", mapped, sectors, guestDisk)); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, d.sh(ctx, "dmsetup --noudevrules --noudevsync remove "+mapped)) }()
	// There is no udev that would give it the other name.
	name, err := d.b.guest.Run(ctx, "dmsetup", "info", "--columns", "--noheadings", "-o", "blkdevname", mapped)
	if err != nil {
		return "", err
	}
	d.device = "/dev/" + strings.TrimSpace(name.Stdout)
	return run(sectors)
}

// broken replaces the device's table while a dump is being written to it.
func broken(table string) func(context.Context, *attempt) (string, error) {
	return func(ctx context.Context, d *attempt) (string, error) {
		return d.onMapped(ctx, func(sectors int64) (string, error) {
			return d.during(ctx, func(*guest.Cmd) error {
				return d.sh(ctx, fmt.Sprintf("dmsetup --noudevsync suspend --noflush %[1]s; dmsetup load %[1]s --table '0 %[2]d %[3]s'; dmsetup --noudevsync resume %[1]s",
					mapped, sectors, table))
			})
		})
	}
}

func clockSetBack(ctx context.Context, d *attempt) (string, error) {
	outcome, err := d.during(ctx, func(*guest.Cmd) error { return d.sh(ctx, `date -s "@$(( $(date +%s) - 3600 ))"`) })
	return outcome, errors.Join(err, d.sh(ctx, `date -s "@$(( $(date +%s) + 3600 ))"`))
}

// memoryPressure leaves little more than what an agent needs.
func memoryPressure(ctx context.Context, d *attempt) (outcome string, err error) {
	const left = 160 << 10 // KiB
	if err := d.sh(ctx, fmt.Sprintf(`mkdir -p /tmp/fill; mount -t tmpfs -o size=100%% tmpfs /tmp/fill
		n=$(( ( $(sed -n 's/^MemAvailable: *\([0-9]*\).*/\1/p' /proc/meminfo) - %d ) / 1024 ))
		[ $n -gt 100 ]; dd if=/dev/zero of=/tmp/fill/file bs=1M count=$n 2>/dev/null`, left)); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, d.sh(ctx, "umount /tmp/fill")) }()
	return d.dump(ctx)
}

func canceled(ctx context.Context, d *attempt) (string, error) {
	return d.during(ctx, func(c *guest.Cmd) error { return d.sh(ctx, fmt.Sprintf("kill -TERM %d", c.PID)) })
}

// reserveUsedUp writes more pages than the smallest reserve holds: with nothing left out of the dump, every page that changes hands takes a copy.
func reserveUsedUp(consistency string) func(context.Context, *attempt) (string, error) {
	return func(ctx context.Context, d *attempt) (string, error) {
		end, err := provide.Start(ctx, d.b.guest, "alloc")
		if err != nil {
			return "", err
		}
		outcome, err := d.dump(ctx, "--dump-level=0", fmt.Sprintf("--reserve=%d", 10<<20), "--consistency="+consistency)
		return outcome, errors.Join(err, end(ctx))
	}
}

func lostSome(r *engine.Report) error {
	if r.LostPages == 0 {
		return errors.New("no page was lost: the reserve was not used up")
	}
	return nil
}

// late takes more time than there is.
func late(limit string) func(context.Context, *attempt) (string, error) {
	return func(ctx context.Context, d *attempt) (string, error) {
		return d.dump(ctx, limit, "--bandwidth=1048576")
	}
}

func undisturbed(ctx context.Context, d *attempt) (string, error) { return d.dump(ctx) }

// frozenByAnother runs something while a program of somebody else has memory frozen.
func frozenByAnother(ctx context.Context, d *attempt, run func() (string, error)) (outcome string, err error) {
	other := d.b.guest.Command(guestdump.Agent, "freeze", "--for=10m", "--module="+d.moduleFile, "--keep-module")
	if err := other.Start(ctx); err != nil {
		return "", err
	}
	// Whatever comes of it: the next fault is to find memory that nobody has frozen.
	defer func() { err = errors.Join(err, other.Signal(unix.SIGTERM), other.Wait(ctx)) }()
	if err := d.sh(ctx, `while [ "$(cat /sys/class/misc/livedump/state)" != frozen ]; do sleep 0.2; done`); err != nil {
		return "", err
	}
	return run()
}

func otherSession(ctx context.Context, d *attempt) (string, error) {
	return frozenByAnother(ctx, d, func() (string, error) { return d.dump(ctx) })
}

func moduleWas(how string) func(*engine.Report) error {
	return func(r *engine.Report) error {
		if r.Module.How != how {
			return fmt.Errorf("the module was %s, want %s", r.Module.How, how)
		}
		return nil
	}
}

// loadOtherBuild has the guest load a module that says of itself that it was built from other sources.
func (d *attempt) loadOtherBuild(ctx context.Context) error {
	return d.sh(ctx, "rmmod livedump; insmod "+guestOtherBuild)
}

func otherBuild(ctx context.Context, d *attempt) (string, error) {
	if err := d.loadOtherBuild(ctx); err != nil {
		return "", err
	}
	return d.dump(ctx)
}

func otherBuildInUse(ctx context.Context, d *attempt) (string, error) {
	if err := d.loadOtherBuild(ctx); err != nil {
		return "", err
	}
	d.moduleFile = guestOtherBuild
	return frozenByAnother(ctx, d, func() (string, error) {
		d.moduleFile = guestdump.Module
		return d.dump(ctx)
	})
}

func rightBuild(ctx context.Context, d *attempt) error {
	return d.sh(ctx, "rmmod livedump; insmod "+guestdump.Module)
}

func noModule(ctx context.Context, d *attempt) (string, error) {
	d.moduleFile = ""
	return d.dump(ctx, "--module-dir=/nowhere", "--host-module-dir=/nowhere")
}

// signaturesEnforced: nobody has signed the module that the tests build.
func signaturesEnforced(ctx context.Context, d *attempt) (string, error) {
	if err := d.sh(ctx, "rmmod livedump; echo 1 > /sys/module/module/parameters/sig_enforce"); err != nil {
		return "", err
	}
	return d.dump(ctx)
}

// anotherBoot: what has been enforced is enforced until the kernel's end.
func anotherBoot(ctx context.Context, d *attempt) error { return d.b.bootAnew(ctx) }

// reset: the next boot finds a target that says what it is. Whether the new kernel's page tables stay what they are is seen from there on.
func reset(ctx context.Context, d *attempt) (string, error) {
	_, err := d.during(ctx, func(*guest.Cmd) error { return d.b.guest.Reset(ctx) })
	if err == nil {
		return "", errors.New("the dump went on after the reset")
	}
	select {
	case <-d.b.guest.Exited():
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if err := d.b.bootAnew(ctx); err != nil {
		return "", err
	}
	if d.before, err = d.b.tables(ctx); err != nil {
		return "", err
	}
	outcome, err := d.dump(ctx)
	if outcome == v1alpha1.ReasonAgentLost { // what was in memory is gone
		outcome = "interrupted by the reset"
	}
	return outcome, err
}
