// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
)

// LiveDumps of the check upgrade.
const (
	upgradedDump = "upgrade"
	nextDump     = "after-upgrade"
)

// upgraded puts the previous release in the place of this one, with its own images and module, and upgrades it to this one in the middle of
// a dump. The previous agent goes on to the end, under the new controller, CRD and policies; the next dump is the new agent's.
func (b *Bench) upgraded(ctx context.Context) error {
	if b.Options.Previous == "" {
		return errors.New("the previous release was not built")
	}
	before, err := b.PageTables(ctx)
	if err != nil {
		return err
	}
	b.Step("  the previous release instead of this one")
	if _, err := b.Helm(ctx, "uninstall", "livedump", "--namespace="+Namespace, "--wait", "--timeout=10m"); err != nil {
		return errors.Join(err, b.describe(Namespace))
	}
	if err := b.releaseOf(ctx, "install", filepath.Join(b.Options.Previous, "chart"), previousTag, previousTag, "--wait", "--timeout=5m"); err != nil {
		return errors.Join(err, b.describe(Namespace))
	}
	if err := b.create(ctx, upgradedDump, NodeName, ClaimName); err != nil {
		return err
	}
	if _, err := b.awaitPages(ctx, upgradedDump); err != nil {
		return err
	}
	if err := b.upgradeUnderAgent(ctx); err != nil {
		return errors.Join(err, b.describe(Namespace))
	}
	dump, err := b.AwaitEnd(ctx, upgradedDump)
	if err != nil {
		return err
	}
	if err := b.expectWhole(ctx, dump, false); err != nil {
		return err
	}
	if err := b.AwaitCleanNode(ctx); err != nil {
		return err
	}
	b.Step("  the next dump is the new agent's")
	if err := b.create(ctx, nextDump, NodeName, ClaimName); err != nil {
		return err
	}
	if dump, err = b.AwaitEnd(ctx, nextDump); err != nil {
		return err
	}
	if err := errors.Join(b.expectWhole(ctx, dump, false), b.AwaitCleanNode(ctx), b.ExpectSameTables(ctx, before)); err != nil {
		return err
	}
	return errors.Join(b.delete(ctx, upgradedDump), b.delete(ctx, nextDump))
}

// upgradeUnderAgent upgrades to this release while the agent at work stands still, so that the dump is not over before.
func (b *Bench) upgradeUnderAgent(ctx context.Context) (err error) {
	pod, err := b.agentPod(ctx)
	if err != nil {
		return err
	}
	if _, err := b.Guest.Run(ctx, "sh", "-c", "kill -STOP $(pidof livedump-agent)"); err != nil {
		return fmt.Errorf("stop the agent: %w", err)
	}
	defer func() {
		_, cerr := b.Guest.Run(ctx, "sh", "-c", "kill -CONT $(pidof livedump-agent)")
		err = errors.Join(err, cerr)
	}()
	// helm's own waiting would be for the agent too, which stands still.
	if err := b.release(ctx, "upgrade", imageTag); err != nil {
		return err
	}
	if _, err := b.Kubectl(ctx, nil, "--namespace="+Namespace, "rollout", "status", "deployment/livedump-controller", "--timeout=5m"); err != nil {
		return err
	}
	b.Step("  upgraded to this release")
	now, err := b.agentPod(ctx)
	if err != nil {
		return err
	}
	if now.UID != pod.UID {
		return errors.New("the upgrade replaced the agent's pod in the middle of a dump")
	}
	dump, err := b.Get(ctx, upgradedDump)
	if err != nil {
		return err
	}
	if dump.Status.CompletionTime != nil {
		return fmt.Errorf("the dump was over before the upgrade was: %s", summary(dump))
	}
	return nil
}
