// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	livedumpv1alpha1 "livedump.io/api/v1alpha1"
)

// The node's second disk with a device-mapper device above it, whose table can be replaced by one that fails.
const (
	mappedName   = "livedump-target"
	mappedDisk   = "/dev/vdd"
	mappedClaim  = "mapped-target"
	mappedVolume = "node-1-mapped-disk"
	sectors      = secondTargetMiB << 11
)

// mapTarget makes the device, and a volume and a claim of it. There is no udev on the node, so it has no name but the kernel's.
func (b *Bench) mapTarget(ctx context.Context) error {
	if _, err := b.Guest.Run(ctx, "dmsetup", "--noudevrules", "--noudevsync", "create", mappedName,
		"--table", fmt.Sprintf("0 %d linear %s 0", sectors, mappedDisk)); err != nil {
		return err
	}
	name, err := b.Guest.Run(ctx, "dmsetup", "info", "--columns", "--noheadings", "-o", "blkdevname", mappedName)
	if err != nil {
		return err
	}
	size := corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(secondTargetMiB<<20, resource.BinarySI)}
	for _, object := range []client.Object{
		localVolume(mappedVolume, "/dev/"+strings.TrimSpace(name.Stdout), size, mappedClaim), blockClaim(mappedClaim, mappedVolume, size),
	} {
		if err := b.Client.Create(ctx, object); err != nil {
			return err
		}
	}
	return nil
}

// unmapTarget removes them. Nobody has the device any more when the node is clean.
func (b *Bench) unmapTarget(ctx context.Context) error {
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: mappedClaim}}
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: mappedVolume}}
	_, err := b.Guest.Run(ctx, "dmsetup", "--noudevrules", "--noudevsync", "--retry", "remove", mappedName)
	return errors.Join(err, client.IgnoreNotFound(b.Client.Delete(ctx, claim)), client.IgnoreNotFound(b.Client.Delete(ctx, volume)))
}

// breakTarget replaces the device's table.
func breakTarget(table string) func(*Bench, context.Context, *livedumpv1alpha1.LiveDump) error {
	return func(b *Bench, ctx context.Context, _ *livedumpv1alpha1.LiveDump) error {
		_, err := b.Guest.Run(ctx, "sh", "-ec", fmt.Sprintf(
			"dmsetup --noudevsync suspend --noflush %[1]s; dmsetup load %[1]s --table '0 %[2]d %[3]s'; dmsetup --noudevsync resume %[1]s", mappedName, sectors, table))
		return err
	}
}

// memoryLeft is more than what makes the kubelet evict pods, and little more than what the agent needs.
const memoryLeft = 300 << 10 // KiB

// fillMemory leaves little of the node's.
func (b *Bench) fillMemory(ctx context.Context) error {
	_, err := b.Guest.Run(ctx, "sh", "-ec", fmt.Sprintf(`mkdir -p /fill; mount -t tmpfs -o size=100%% tmpfs /fill
		n=$(( ( $(sed -n 's/^MemAvailable: *\([0-9]*\).*/\1/p' /proc/meminfo) - %d ) / 1024 ))
		[ $n -gt 100 ]; dd if=/dev/zero of=/fill/file bs=1M count=$n 2>/dev/null`, memoryLeft))
	return err
}

func (b *Bench) emptyMemory(ctx context.Context) error {
	_, err := b.Guest.Run(ctx, "sh", "-ec", "! grep -q ' /fill ' /proc/mounts || umount /fill")
	return err
}
