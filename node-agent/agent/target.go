// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/blockdev"
	"livedump.io/internal/stream"
	"livedump.io/internal/target"
	"livedump.io/node-agent/engine"
)

// Target says how the target of a LiveDump is opened on this node. The controller has found it; what is behind a
// claim is found through the kubelet's directory of the holder.
func Target(node engine.Node, kubeletDir string, dump *v1alpha1.LiveDump) engine.Open {
	found := &dump.Status.Target
	claim := dump.Spec.Target.PersistentVolumeClaim
	switch {
	case dump.Spec.Target.Stream != nil:
		s := dump.Spec.Target.Stream
		return engine.Stream(stream.Options{Address: s.Address, ServerName: s.TLS.ServerName, CA: []byte(s.TLS.CABundle)})
	case dump.Spec.Target.ObjectStorage != nil:
		return openObject(node, kubeletDir, dump)
	case claim != nil && found.VolumeMode == v1alpha1.VolumeModeFilesystem:
		file := dump.FileInVolume()
		return engine.FileInVolume(func() (*blockdev.Filesystem, error) {
			return node.Host.FindFilesystem(kubeletDir, found.HolderPodUID, found.PersistentVolumeName)
		}, file, fmt.Sprintf("file %s in volume %s", file, found.PersistentVolumeName), policy(dump))
	case claim != nil:
		return node.Device(func() (blockdev.ID, error) {
			if path := found.LocalPath; path != "" {
				return node.Host.FindLocal(path, kubeletDir, found.HolderPodUID, found.PersistentVolumeName)
			}
			return node.Host.FindVolume(kubeletDir, found.HolderPodUID, found.PersistentVolumeName)
		}, need(dump))
	}
	return func(context.Context) (target.Target, error) {
		return nil, fmt.Errorf("%w: this agent does not know the kind of target", blockdev.ErrNotFound)
	}
}

// ready says whether the controller has found all that Target needs.
func ready(dump *v1alpha1.LiveDump) bool {
	if dump.Spec.Target.ObjectStorage != nil {
		return dump.Status.Target.HolderPodUID != ""
	}
	if dump.Spec.Target.PersistentVolumeClaim == nil {
		return true
	}
	return dump.Status.Target.HolderPodUID != "" && dump.Status.Target.PersistentVolumeName != ""
}

// need is what the device of a LiveDump must be like.
func need(dump *v1alpha1.LiveDump) blockdev.Need {
	// A device smaller than its volume is not the device of that volume.
	return blockdev.Need{Bytes: dump.Status.Target.CapacityBytes, Policy: policy(dump), Session: sessionOf(dump)}
}

// policy says what may be overwritten. What is not understood counts as the policy that protects more.
func policy(dump *v1alpha1.LiveDump) blockdev.Policy {
	if p := dump.Spec.OverwritePolicy; p == v1alpha1.OverwriteIfEmptyOrLiveDump || p == "" {
		return blockdev.IfEmptyOrLiveDump
	}
	return blockdev.Never
}
