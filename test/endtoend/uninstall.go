// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"context"
	"errors"
	"fmt"
	"time"

	apimeta "k8s.io/apimachinery/pkg/api/meta"

	livedumpv1alpha1 "livedump.io/api/v1alpha1"
	"livedump.io/test/cluster"
)

// uninstalled removes the release while pages are being written, and installs it again.
func (b *Bench) uninstalled(ctx context.Context) error {
	before, err := b.PageTables(ctx)
	if err != nil {
		return err
	}
	const running = "uninstall"
	if err := b.createWith(ctx, running, NodeName, ClaimName, slowly("1Mi")); err != nil {
		return err
	}
	if err := b.Follow(ctx, running, "pages being written", func(dump *livedumpv1alpha1.LiveDump) (bool, error) {
		if dump.Status.CompletionTime != nil {
			return false, fmt.Errorf("the dump was over before the release could be removed: %s", summary(dump))
		}
		return dump.Status.Progress.PagesWritten > 0, nil
	}); err != nil {
		return err
	}
	b.Step("  helm uninstall")
	if _, err := b.Helm(ctx, "uninstall", "livedump", "--namespace="+Namespace, "--wait", "--timeout=10m"); err != nil {
		return errors.Join(err, b.describe(Namespace))
	}
	dump, err := b.Get(ctx, running)
	if err != nil {
		return err // the CRD and all LiveDumps should still be there
	}
	if err := errors.Join(expectFailed(dump, livedumpv1alpha1.ReasonCanceled, ""), b.expectNoDump(ctx, b.Target)); err != nil {
		return err
	}
	if len(dump.Finalizers) > 0 {
		return fmt.Errorf("the release is gone and LiveDump %s keeps the finalizers %v", running, dump.Finalizers)
	}
	b.Step("  LiveDump %s: %s", running, summary(dump))
	if err := b.AwaitCleanNode(ctx); err != nil {
		return err
	}
	if err := b.ExpectSameTables(ctx, before); err != nil {
		return err
	}
	// Nobody is there to release it, so this shows that nobody has to.
	if err := b.delete(ctx, running); err != nil {
		return err
	}
	return b.install(ctx)
}

// stuckKubelet stops the node's kubelet and dumps the node all the same: by a warm agent, and by the path of the local volume.
func (b *Bench) stuckKubelet(ctx context.Context) (err error) {
	if _, err := b.Kubectl(ctx, nil, "label", "node", NodeName, "livedump.io/agent=resident"); err != nil {
		return err
	}
	if err := cluster.Poll(ctx, "a warm agent", 5*time.Minute, func(ctx context.Context) (bool, string, error) {
		out, err := b.Kubectl(ctx, nil, "--namespace="+Namespace, "get", "daemonset", "livedump-agent", "--output=jsonpath={.status.numberReady}")
		return out == "1", "ready: " + out, err
	}); err != nil {
		return err
	}
	if _, err := b.Guest.Run(ctx, "sh", "-c", "kill -STOP $(pidof kubelet)"); err != nil {
		return fmt.Errorf("stop the kubelet: %w", err)
	}
	running := false
	resume := func() error {
		if running {
			return nil
		}
		running = true
		_, err := b.Guest.Run(context.WithoutCancel(ctx), "sh", "-c", "kill -CONT $(pidof kubelet)")
		return err
	}
	defer func() { err = errors.Join(err, resume()) }()
	b.Step("  stopped the kubelet")
	const name = "stuck-kubelet"
	if err := b.create(ctx, name, NodeName, ClaimName); err != nil {
		return err
	}
	dump, err := b.AwaitSuccess(ctx, name)
	if err != nil {
		return err
	}
	if c := apimeta.FindStatusCondition(dump.Status.Conditions, livedumpv1alpha1.ConditionTargetReady); c == nil || c.Reason != livedumpv1alpha1.ReasonAttachedDirectly {
		return fmt.Errorf("LiveDump %s did not take the direct way: %+v", name, c)
	}
	if _, err := b.takeDump(ctx, dump, b.Target, name+".kdump"); err != nil {
		return err
	}
	if err := resume(); err != nil {
		return err
	}
	b.Step("  the kubelet goes on")
	if err := b.delete(ctx, name); err != nil {
		return err
	}
	if _, err := b.Kubectl(ctx, nil, "label", "node", NodeName, "livedump.io/agent-"); err != nil {
		return err
	}
	return b.AwaitCleanNode(ctx)
}
