// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"livedump.io/api/v1alpha1"
)

// How long a kubelet may take to start the holder before the direct way is taken. A kubelet that does not
// report any more will hardly start pods.
const (
	directAfter         = 30 * time.Second
	directAfterNotReady = 5 * time.Second
)

// checkAttachment says whether the agent can reach the device: through the holder, or, on a node that
// starts no new pods, by the path that the volume itself names.
func checkAttachment(o *observation) finding {
	if stream := o.dump.Spec.Target.Stream; stream != nil {
		return streamReady(stream)
	}
	f := checkHolder(o)
	if f.state != pending {
		return f
	}
	if !o.whole {
		// A glance does not see the volume. What a look found stands until the next one.
		if c := condition(o.dump, v1alpha1.ConditionTargetReady); c != nil && c.Reason == v1alpha1.ReasonAttachedDirectly {
			return kept(o.dump, v1alpha1.ConditionTargetReady)
		}
		return f
	}
	if goDirectly(o) {
		var each []string
		for _, c := range o.claims {
			each = append(each, fmt.Sprintf("claim %s is %s", c.ClaimName, c.volume.Spec.Local.Path))
		}
		return good(v1alpha1.ReasonAttachedDirectly, fmt.Sprintf("%s on the node; its kubelet has not started the holder: %s", strings.Join(each, ", "), f.message))
	}
	return f
}

// goDirectly says whether the agent is to go by the paths of local volumes on their node, which all of the claims must have. That is so once the
// scheduler has given the holder to the node and its kubelet does nothing about it: up to there everybody
// who has a say (quotas, policies, the scheduler) has agreed to the claim being attached there.
func goDirectly(o *observation) bool {
	h := o.holder
	if !o.bound() || o.node == nil || o.dump.Status.StartTime == nil || !o.owned() || h.DeletionTimestamp != nil || h.Spec.NodeName != o.dump.Spec.NodeName || podEnded(h) {
		return false
	}
	for _, c := range o.claims {
		if c.volume.Spec.Local == nil || !raw(c.volume.Spec.VolumeMode) {
			return false
		}
	}
	patience := directAfter
	if nodeTrouble(o.node) != "" {
		patience = directAfterNotReady
	}
	return o.now.Sub(h.CreationTimestamp.Time) >= patience
}

// bound says whether the target has claims, all of which were seen with their volumes.
func (o *observation) bound() bool {
	return len(o.claims) > 0 && !slices.ContainsFunc(o.claims, func(c *claimSeen) bool { return c.volume == nil })
}

// targetOf is what the agent is told of a target that is ready.
func targetOf(o *observation, f finding) v1alpha1.TargetStatus {
	if o.dump.Spec.Target.ObjectStorage != nil {
		return v1alpha1.TargetStatus{HolderPodUID: string(o.holder.UID)}
	}
	target := v1alpha1.TargetStatus{HolderPodUID: string(o.holder.UID)}
	for _, c := range o.claims {
		found := v1alpha1.ClaimStatus{ClaimName: c.ClaimName, PersistentVolumeName: c.volume.Name, CapacityBytes: capacity(c.volume),
			VolumeMode: modeName(c.volume.Spec.VolumeMode)}
		if f.reason == v1alpha1.ReasonAttachedDirectly {
			found.LocalPath = c.volume.Spec.Local.Path
		}
		target.Claims = append(target.Claims, found)
	}
	if one := target.Claims[0]; !o.dump.Spec.Target.Split() {
		target.PersistentVolumeName, target.CapacityBytes, target.VolumeMode, target.LocalPath = one.PersistentVolumeName, one.CapacityBytes, one.VolumeMode, one.LocalPath
		target.Claims = nil
	}
	return target
}

// successor is the UID of a holder that was made anew while the agent is at work, "" if there is none. An agent
// that takes the session over finds the device by it.
func successor(o *observation) string {
	if was := o.dump.Status.Target.HolderPodUID; was != "" && o.owned() && podReady(o.holder) && o.holder.Spec.NodeName == o.dump.Spec.NodeName && string(o.holder.UID) != was {
		return string(o.holder.UID)
	}
	return ""
}
