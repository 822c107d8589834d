// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"livedump.io/api/v1alpha1"
	"livedump.io/node-agent/engine"
	"livedump.io/test/guest"
)

// fault is something that goes wrong, and how the dump is to end.
type fault struct {
	name     string
	expected string // Complete or a reason
	reboots  bool
	run      func(ctx context.Context, d *attempt) (outcome string, err error)
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
	{name: "I/O error in the middle", expected: v1alpha1.ReasonIOError, run: broken("0 %d error")},
	{name: "target read-only in the middle", expected: v1alpha1.ReasonIOError, run: readOnly},
	{name: "clock set back an hour", expected: v1alpha1.ReasonComplete, run: clockSetBack},
	{name: "memory pressure", expected: v1alpha1.ReasonComplete, run: memoryPressure},
	{name: "canceled in the middle", expected: v1alpha1.ReasonCanceled, run: canceled},
	{name: "machine reset in the middle", expected: "interrupted by the reset", reboots: true, run: reset},
}...)

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
	_, err := d.during(ctx, func(c *guest.Cmd) error { return errors.Join(c.Kill(), d.sh(ctx, "rm -f "+guestReport)) })
	if err == nil {
		return "", errors.New("the process was killed, and reported all the same")
	}
	return d.dump(ctx)
}

// onMapped puts a device-mapper device above the disk.
func (d *attempt) onMapped(ctx context.Context, run func(sectors int64) (string, error)) (outcome string, err error) {
	sectors := int64(d.b.o.memoryMiB+diskExtraMiB) << 11
	if err := d.sh(ctx, fmt.Sprintf("dmsetup --noudevrules --noudevsync create %s --table '0 %d linear %s 0'", mapped, sectors, guestDisk)); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, d.sh(ctx, "dmsetup --noudevrules --noudevsync remove "+mapped)) }()
	d.device = "/dev/mapper/" + mapped
	return run(sectors)
}

// broken replaces the device's table while a dump is being written to it.
func broken(table string) func(context.Context, *attempt) (string, error) {
	return func(ctx context.Context, d *attempt) (string, error) {
		return d.onMapped(ctx, func(sectors int64) (string, error) {
			return d.during(ctx, func(*guest.Cmd) error {
				return d.sh(ctx, fmt.Sprintf("dmsetup --noudevsync suspend --noflush %[1]s; dmsetup load %[1]s --table '%[2]s'; dmsetup --noudevsync resume %[1]s",
					mapped, fmt.Sprintf(table, sectors)))
			})
		})
	}
}

func readOnly(ctx context.Context, d *attempt) (string, error) {
	return d.onMapped(ctx, func(int64) (string, error) {
		return d.during(ctx, func(*guest.Cmd) error { return d.sh(ctx, "blockdev --setro /dev/mapper/"+mapped) })
	})
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

// reset: the next boot finds a target that says what it is.
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
	if err := d.b.guest.Stop(); err != nil {
		return "", err
	}
	if err := d.b.boot(ctx); err != nil {
		return "", err
	}
	outcome, err := d.dump(ctx)
	if outcome == v1alpha1.ReasonAgentLost { // what was in memory is gone
		outcome = "interrupted by the reset"
	}
	return outcome, err
}
