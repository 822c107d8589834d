// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"time"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/blockdev"
	"livedump.io/internal/kdump"
	"livedump.io/internal/stream"
	"livedump.io/internal/target"
	"livedump.io/node-agent/engine"
)

// Target says how the target of a LiveDump is opened on this node. The controller has found it; what is behind a
// claim is found through the kubelet's directory of the holder. resume: a process that has ended began the dump; what can't be gone on with
// is only looked at.
func Target(node engine.Node, kubeletDir string, dump *v1alpha1.LiveDump, resume bool) engine.Open {
	spec := &dump.Spec.Target
	var before kdump.Session
	if resume {
		before = sessionOf(dump)
	}
	switch {
	case spec.Stream != nil && resume:
		return func(context.Context) (target.Target, error) {
			return nil, fmt.Errorf("%w: it was sent to %s", engine.ErrUnknown, spec.Stream.Address)
		}
	case spec.Stream != nil:
		return engine.Stream(streamOptions(spec.Stream))
	case spec.ObjectStorage != nil:
		return openObject(node, kubeletDir, dump, resume)
	case spec.PersistentVolumeClaim != nil:
		return openClaim(node, kubeletDir, dump, *spec.PersistentVolumeClaim, before)
	case spec.Split():
		var opens []engine.Open
		for _, claim := range spec.PersistentVolumeClaims {
			opens = append(opens, openPart(claim.ClaimName, openClaim(node, kubeletDir, dump, claim, before)))
		}
		return engine.Parts(before, opens...)
	}
	return func(context.Context) (target.Target, error) {
		return nil, fmt.Errorf("%w: this agent does not know the kind of target", blockdev.ErrNotFound)
	}
}

func streamOptions(s *v1alpha1.StreamTarget) stream.Options {
	return stream.Options{Address: s.Address, ServerName: s.TLS.ServerName, CA: []byte(s.TLS.CABundle)}
}

// othersPatience is how long the volume may still be attached for another pod: the holder of an earlier LiveDump that is ending.
const othersPatience = 30 * time.Second

// openClaim opens what is behind one claim.
func openClaim(node engine.Node, kubeletDir string, dump *v1alpha1.LiveDump, claim v1alpha1.PersistentVolumeClaimTarget, before kdump.Session) engine.Open {
	holder := dump.Status.Target.HolderPodUID
	// Without a name no volume is found, and the error says so.
	found, _ := dump.Status.Target.OfClaim(&dump.Spec.Target, claim.ClaimName)
	if found.VolumeMode == v1alpha1.VolumeModeFilesystem {
		file := dump.FileInVolume(claim)
		return engine.FileInVolume(func() (*blockdev.Filesystem, error) {
			return node.Host.FindFilesystem(kubeletDir, holder, found.PersistentVolumeName)
		}, file, fmt.Sprintf("file %s in volume %s", file, found.PersistentVolumeName), policy(dump), before)
	}
	return node.Device(func(ctx context.Context) (blockdev.ID, error) {
		if path := found.LocalPath; path != "" {
			return node.Host.FindLocal(path, kubeletDir, holder, found.PersistentVolumeName)
		}
		return node.Host.FindVolume(ctx, kubeletDir, holder, found.PersistentVolumeName, othersPatience)
	}, need(dump, found))
}

// openPart has the errors of one of several targets say which it is.
func openPart(claim string, open engine.Open) engine.Open {
	return func(ctx context.Context) (target.Target, error) {
		t, err := open(ctx)
		if err != nil {
			return nil, fmt.Errorf("claim %s: %w", claim, err)
		}
		return t, nil
	}
}

// ready says whether the controller has found all that Target needs.
func ready(dump *v1alpha1.LiveDump) bool {
	spec, found := &dump.Spec.Target, &dump.Status.Target
	if spec.ObjectStorage != nil {
		return found.HolderPodUID != ""
	}
	for _, claim := range spec.Claims() {
		if _, ok := found.OfClaim(spec, claim.ClaimName); !ok || found.HolderPodUID == "" {
			return false
		}
	}
	return true
}

// need is what the device behind a claim of a LiveDump must be like.
func need(dump *v1alpha1.LiveDump, found v1alpha1.ClaimStatus) blockdev.Need {
	// A device smaller than its volume is not the device of that volume.
	return blockdev.Need{Bytes: found.CapacityBytes, Policy: policy(dump), Session: sessionOf(dump)}
}

// policy says what may be overwritten. What is not understood counts as the policy that protects more.
func policy(dump *v1alpha1.LiveDump) blockdev.Policy {
	if p := dump.Spec.OverwritePolicy; p == v1alpha1.OverwriteIfEmptyOrLiveDump || p == "" {
		return blockdev.IfEmptyOrLiveDump
	}
	return blockdev.Never
}

// volumesOf are the volumes behind the claims, if there are any.
func volumesOf(dump *v1alpha1.LiveDump) []string {
	var volumes []string
	for _, claim := range dump.Spec.Target.Claims() {
		found, _ := dump.Status.Target.OfClaim(&dump.Spec.Target, claim.ClaimName)
		volumes = append(volumes, found.PersistentVolumeName)
	}
	return volumes
}
