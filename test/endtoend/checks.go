// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// check is one thing to see on a bench. Each leaves the bench as it found it, so
// that another can follow.
type check struct {
	name, what string
	run        func(*Bench, context.Context) error
}

var checks = []check{
	{"demo", "a dump while a workload runs, read by crash and drgn", (*Bench).demo},
	{"fetch", "an encrypted dump is fetched through the API server by who may, and by nobody else", (*Bench).fetch},
	{"other-targets", "dumps to a file in a claim, an object in an S3 store and a receiver are what the LiveDumps say", (*Bench).otherTargets},
	{"split", "a dump that is split among two claims is fetched part by part and read by crash, makedumpfile and drgn; one whose agent is killed leaves no part", (*Bench).split},
	{"bad-specs", "bad specs are refused at admission", (*Bench).badSpecs},
	{"bad-targets", "a LiveDump that cannot be carried out says why, and nothing is written", (*Bench).badTargets},
	{"agent-killed", "another agent goes on with the dump of one that was killed", (*Bench).killedAgent},
	{"stuck-kubelet", "a node whose kubelet starts no pods is dumped by a warm agent, to a local volume", (*Bench).stuckKubelet},
	{"uninstall", "the release is removed while a dump runs, and nothing stays behind", (*Bench).uninstalled},
	{"upgrade", "the previous release is upgraded while its agent is at work, which goes on to the end", (*Bench).upgraded},
	{"faults", "what goes wrong in the middle of a dump leaves it whole, or failed for the right reason", (*Bench).faultTable},
}

// Checks are the names that Check knows, in the order in which all can be run.
func Checks() []string {
	var names []string
	for _, c := range checks {
		names = append(names, c.name)
	}
	return names
}

// Check runs the check of a name on a bench that was started.
func (b *Bench) Check(ctx context.Context, name string) error {
	i := slices.IndexFunc(checks, func(c check) bool { return c.name == name })
	if i < 0 {
		return fmt.Errorf("there is no check %q", name)
	}
	c := checks[i]
	b.Step("checking %s: %s", c.name, c.what)
	if err := b.prepareTarget(ctx); err != nil {
		return err
	}
	if err := c.run(b, ctx); err != nil {
		err = fmt.Errorf("%s (%s): %w", c.name, c.what, err)
		if ctx.Err() == nil {
			err = errors.Join(err, b.describe(Namespace))
		}
		return err
	}
	if err := b.Guest.CheckConsole(); err != nil {
		return fmt.Errorf("%s (%s): %w", c.name, c.what, err)
	}
	return nil
}

// prepareTarget makes the claim and volume that all checks use.
func (b *Bench) prepareTarget(ctx context.Context) error {
	_, err := b.Kubectl(ctx, nil, "apply", "-f", b.sample("target.yaml"))
	return err
}
