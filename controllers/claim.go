// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	volumehelpers "k8s.io/component-helpers/storage/volume"

	"livedump.io/api/v1alpha1"
)

const pageSize = 4096

// leastBytes is what no dump is smaller than, whatever the node's memory: kernel memory
// compresses, but not to less. The exact check is the agent's, after the estimate.
const leastBytes = 16 << 20

// leastPart is what no part of a split dump is smaller than, besides its bitmaps: a chunk of data.
const leastPart = 1 << 20

// checkTarget says whether the target can take the dump, as far as it can be told from here.
func checkTarget(o *observation) finding {
	if stream := o.dump.Spec.Target.Stream; stream != nil {
		return streamReady(stream)
	}
	if storage := o.dump.Spec.Target.ObjectStorage; storage != nil {
		// Whether the bucket takes the dump only the agent finds out, before it freezes anything.
		return good(v1alpha1.ReasonAttached, fmt.Sprintf("the agent connects to %s when it begins", storage.Endpoint))
	}
	return checkClaims(o)
}

// streamReady is the finding about a stream, which needs nothing to be attached.
func streamReady(stream *v1alpha1.StreamTarget) finding {
	return good(v1alpha1.ReasonNothingToAttach, fmt.Sprintf("the agent connects to %s when it begins", stream.Address))
}

// checkClaims says whether the claims can take the dump. One that is unbound may: it binds for the holder.
func checkClaims(o *observation) finding {
	if len(o.dump.Spec.Target.Claims()) == 0 {
		return bad(v1alpha1.ReasonTargetInvalid, "the LiveDump names no target that this version knows")
	}
	for _, c := range o.claims {
		if f := checkClaim(o, c); f.state == failed {
			return f
		}
	}
	if f := checkRival(o); f.state == failed {
		return f
	}
	unbound := finding{}
	for _, c := range o.claims {
		if c.claim.Status.Phase != corev1.ClaimBound || c.volume == nil {
			if unbound.reason == "" {
				unbound = waiting(v1alpha1.ReasonTargetNotBound, fmt.Sprintf("claim %s is not bound to a volume yet", c.ClaimName))
			}
			continue
		}
		// Also while another one is unbound: what can never work is told at once.
		if f := checkVolume(o, c); f.state == failed {
			return f
		}
	}
	if unbound.reason != "" {
		return unbound
	}
	return checkRoom(o)
}

// checkClaim says whether anything is wrong with one of the claims.
func checkClaim(o *observation, c *claimSeen) finding {
	name, claim := c.ClaimName, c.claim
	switch {
	case claim == nil:
		return bad(v1alpha1.ReasonTargetNotFound, fmt.Sprintf("claim %s does not exist in namespace %s", name, o.dump.Namespace))
	case claim.DeletionTimestamp != nil:
		return bad(v1alpha1.ReasonTargetNotFound, fmt.Sprintf("claim %s is being deleted", name))
	case raw(claim.Spec.VolumeMode) && c.Path != "":
		return bad(v1alpha1.ReasonTargetWrongMode, fmt.Sprintf("claim %s has volumeMode Block, so there is no path in it; a file needs volumeMode Filesystem", name))
	case raw(claim.Spec.VolumeMode) && o.dump.Spec.Format != "" && o.dump.Spec.Format != v1alpha1.FormatKdump:
		return bad(v1alpha1.ReasonTargetWrongMode, fmt.Sprintf("claim %s has volumeMode Block, on which the format can only be Kdump; %s needs volumeMode Filesystem", name, o.dump.Spec.Format))
	case claim.Status.Phase == corev1.ClaimLost:
		return bad(v1alpha1.ReasonTargetInvalid, fmt.Sprintf("claim %s has lost its volume %s", name, claim.Spec.VolumeName))
	case len(c.users) > 0 && raw(claim.Spec.VolumeMode):
		return bad(v1alpha1.ReasonTargetInUse, fmt.Sprintf("claim %s is used by %s; the dump would overwrite its data", name, podNames(c.users)))
	}
	return good(v1alpha1.ReasonAttached, "the claim is there")
}

// checkVolume says whether the volume bound to a claim is one of the node.
func checkVolume(o *observation, c *claimSeen) finding {
	claim, volume := c.claim, c.volume
	if ref := volume.Spec.ClaimRef; ref == nil || ref.UID != claim.UID {
		return bad(v1alpha1.ReasonTargetInvalid, fmt.Sprintf("volume %s, which claim %s names, is not bound to it", volume.Name, claim.Name))
	}
	if raw(volume.Spec.VolumeMode) != raw(claim.Spec.VolumeMode) {
		return bad(v1alpha1.ReasonTargetWrongMode, fmt.Sprintf("volume %s has volumeMode %s, and claim %s has %s", volume.Name,
			modeName(volume.Spec.VolumeMode), claim.Name, modeName(claim.Spec.VolumeMode)))
	}
	if err := volumehelpers.CheckNodeAffinity(volume, o.node.Labels); err != nil {
		return bad(v1alpha1.ReasonTargetWrongNode, fmt.Sprintf("claim %s is bound to volume %s, which is not reachable from node %s: its node affinity excludes the node", claim.Name, volume.Name, o.node.Name))
	}
	return good(v1alpha1.ReasonAttached, "the volume is the node's")
}

// checkRoom says whether the volumes are not too small, each for its part and all together for the dump.
func checkRoom(o *observation) finding {
	if !o.dump.Spec.Target.Split() {
		c := o.claims[0]
		if has, needs := capacity(c.volume), leastSize(o.node, 1); has < needs {
			return bad(v1alpha1.ReasonTargetTooSmall, fmt.Sprintf("claim %s has %s; a dump of node %s needs at least %s, and most need much more", c.ClaimName,
				bytesString(has), o.node.Name, bytesString(needs)))
		}
		return good(v1alpha1.ReasonAttached, "the claim fits")
	}
	var all int64
	for _, c := range o.claims {
		has, needs := capacity(c.volume), leastPart+bitmapBytes(o.node)
		if has < needs {
			return bad(v1alpha1.ReasonTargetTooSmall, fmt.Sprintf("claim %s has %s; any part of a dump of node %s needs at least %s", c.ClaimName,
				bytesString(has), o.node.Name, bytesString(needs)))
		}
		all += has
	}
	if needs := leastSize(o.node, len(o.claims)); all < needs {
		return bad(v1alpha1.ReasonTargetTooSmall, fmt.Sprintf("claims %s have %s together; a dump of node %s in %d parts needs at least %s, and most need much more",
			claimNames(o.dump), bytesString(all), o.node.Name, len(o.claims), bytesString(needs)))
	}
	return good(v1alpha1.ReasonAttached, "the claims fit")
}

// checkRival refuses a claim that another LiveDump is to have.
func checkRival(o *observation) finding {
	if rival, claim := claimRival(o); rival != nil {
		return bad(v1alpha1.ReasonTargetInUse, fmt.Sprintf("claim %s is the target of LiveDump %s, which has not ended; the second dump would overwrite the first", claim, rival.Name))
	}
	return waiting(v1alpha1.ReasonPending, "not checked yet")
}

// claimRival is another LiveDump with one of the same claims, and the same file in it if it has files, that has the better
// right to it: it is running, or it was there first. At a glance, which does not show the claims, they may have files or not.
func claimRival(o *observation) (rival *v1alpha1.LiveDump, claim string) {
	for _, other := range o.others {
		if other.Namespace != o.dump.Namespace || other.Ended() || !comesBefore(other, o.dump) {
			continue
		}
		for _, theirs := range other.Spec.Target.Claims() {
			for _, ours := range o.dump.Spec.Target.Claims() {
				if theirs.ClaimName == ours.ClaimName && (!o.hasFiles(ours.ClaimName) || other.FileInVolume(theirs) == o.dump.FileInVolume(ours)) {
					return other, ours.ClaimName
				}
			}
		}
	}
	return nil, ""
}

// hasFiles says whether a claim was seen to be one with a file system.
func (o *observation) hasFiles(claim string) bool {
	return slices.ContainsFunc(o.claims, func(c *claimSeen) bool {
		return c.ClaimName == claim && c.claim != nil && !raw(c.claim.Spec.VolumeMode)
	})
}

// claimNames lists the claims of the target.
func claimNames(dump *v1alpha1.LiveDump) string {
	var names []string
	for _, claim := range dump.Spec.Target.Claims() {
		names = append(names, claim.ClaimName)
	}
	return strings.Join(names, ", ")
}

// raw says whether a volume is a device without a file system.
func raw(mode *corev1.PersistentVolumeMode) bool {
	return mode != nil && *mode == corev1.PersistentVolumeBlock
}

// modeName is the volumeMode, of which no value means Filesystem.
func modeName(mode *corev1.PersistentVolumeMode) string {
	if raw(mode) {
		return v1alpha1.VolumeModeBlock
	}
	return v1alpha1.VolumeModeFilesystem
}

// leastSize is a lower bound of the size of a dump in so many parts, in bytes: the bitmaps, which every part has, and the least of
// any kernel.
func leastSize(node *corev1.Node, parts int) int64 {
	return leastBytes + int64(parts)*bitmapBytes(node)
}

// bitmapBytes is the size of the two page bitmaps of the dump format: one bit each for every page of RAM.
func bitmapBytes(node *corev1.Node) int64 {
	return 2 * node.Status.Capacity.Memory().Value() / pageSize / 8
}

func capacity(volume *corev1.PersistentVolume) int64 {
	return volume.Spec.Capacity.Storage().Value()
}

func bytesString(n int64) string {
	return resource.NewQuantity(n, resource.BinarySI).String() + " bytes"
}

// podUsesClaim says whether the pod has the claim as a volume, be it named or the pod's own ephemeral one.
func podUsesClaim(pod *corev1.Pod, claim string) bool {
	return slices.Contains(claimsOf(pod), claim)
}

// claimsOf are the claims that the pod has as volumes.
func claimsOf(pod *corev1.Pod) []string {
	var claims []string
	for _, volume := range pod.Spec.Volumes {
		if named := volume.PersistentVolumeClaim; named != nil {
			claims = append(claims, named.ClaimName)
		}
		if volume.Ephemeral != nil {
			claims = append(claims, pod.Name+"-"+volume.Name)
		}
	}
	return claims
}

// podNames lists a few pods by name.
func podNames(names []string) string {
	const most = 3
	if len(names) == 1 {
		return "pod " + names[0]
	}
	if len(names) > most {
		return fmt.Sprintf("pods %s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return "pods " + strings.Join(names, ", ")
}
