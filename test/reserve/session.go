// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"livedump.io/test/guestsession"
)

// stepTimeout is how long one step of a session may take on a busy machine.
const stepTimeout = 5 * time.Minute

// driver holds a session in the guest.
type driver struct{ *guestsession.Driver }

// do takes a step. The error says that the driver is gone; that a step failed is in the answer.
func (d driver) do(ctx context.Context, step string) (guestsession.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return d.Ask(ctx, step)
}

// must takes steps that may not fail and returns the last one's answer.
func (d driver) must(ctx context.Context, steps ...string) (a guestsession.Answer, err error) {
	for _, step := range steps {
		if a, err = d.do(ctx, step); err != nil {
			return a, err
		}
		if a.Error != "" {
			return a, fmt.Errorf("step %q: %s", step, a.Error)
		}
	}
	return a, nil
}

// withDriver runs steps with a driver of their own, which is gone afterwards.
func (b *bench) withDriver(ctx context.Context, steps func(driver) error) error {
	d, err := guestsession.Start(ctx, b.g)
	if err != nil {
		return err
	}
	err = steps(driver{d})
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return errors.Join(err, d.End(ctx))
}

const sysfsDir = "/sys/class/misc/livedump/"

// sysfs reads one value.
func (b *bench) sysfs(ctx context.Context, name string) (string, error) {
	v, err := b.g.ReadFile(ctx, sysfsDir+name)
	return strings.TrimSpace(string(v)), err
}

func (b *bench) sysfsNumber(ctx context.Context, name string) (uint64, error) {
	v, err := b.sysfs(ctx, name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("sysfs %s: %w", name, err)
	}
	return n, nil
}

// shell runs a script in the guest.
func (b *bench) shell(ctx context.Context, script string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	r, err := b.g.Run(ctx, "sh", "-c", "set -e; "+script)
	return strings.TrimSpace(r.Stdout), err
}
