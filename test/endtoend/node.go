// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/test/cluster"
	"livedump.io/test/guest"
	"livedump.io/test/pagetables"
)

// PageTables reads the node's page tables, with the help of a test module.
func (b *Bench) PageTables(ctx context.Context) (guest.PageTables, error) {
	if _, err := b.Guest.Run(ctx, "test", "-e", guest.PageTablesFile); err != nil {
		const inGuest = "/tmp/livedump_pgtables.ko"
		module := filepath.Join(b.Options.Root, "bin/kmod-test", b.kernel.Release, "livedump_pgtables.ko")
		if err := b.Guest.PutFile(ctx, inGuest, module); err != nil {
			return nil, err
		}
		if _, err := b.Guest.Run(ctx, "insmod", inGuest); err != nil {
			return nil, fmt.Errorf("load the module that shows page tables: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return b.Guest.SettledPageTables(ctx)
}

// ExpectSameTables compares the node's page tables with those of before.
func (b *Bench) ExpectSameTables(ctx context.Context, before guest.PageTables) error {
	after, err := b.PageTables(ctx)
	if err != nil {
		return err
	}
	d, err := pagetables.CompareLive(before, after)
	if err != nil {
		return fmt.Errorf("the node's page tables before and after: %w", err)
	}
	b.Step("page tables are as before (but for %d pages of code that came or went, and %d huge pages that such code has split)", d.CodePages, d.Split)
	return nil
}

// AwaitCleanNode returns when nothing of livedump is left on the node: no agent
// label, no agent or holder pod and no module.
func (b *Bench) AwaitCleanNode(ctx context.Context) error {
	return cluster.Poll(ctx, "the node without livedump", 3*time.Minute, func(ctx context.Context) (bool, string, error) {
		var node corev1.Node
		if err := b.Client.Get(ctx, types.NamespacedName{Name: b.NodeName()}, &node); err != nil {
			return false, "", err
		}
		if value, ok := node.Labels["livedump.io/agent"]; ok {
			return false, "the node still has the label livedump.io/agent=" + value, nil
		}
		var pods corev1.PodList
		if err := b.Client.List(ctx, &pods, client.InNamespace(Namespace)); err != nil {
			return false, "", err
		}
		for _, pod := range pods.Items {
			if !strings.HasPrefix(pod.Name, "livedump-controller-") {
				return false, "pod " + pod.Name + " is still there", nil
			}
		}
		loaded, err := b.moduleLoaded(ctx)
		if err != nil {
			return false, "", err
		}
		return !loaded, "the module is still loaded", nil
	})
}

// moduleLoaded says whether the node's kernel has the module.
func (b *Bench) moduleLoaded(ctx context.Context) (bool, error) {
	modules, err := b.Guest.ReadFile(ctx, "/proc/modules")
	if err != nil {
		return false, err
	}
	return strings.HasPrefix(string(modules), "livedump ") || strings.Contains(string(modules), "\nlivedump "), nil
}
