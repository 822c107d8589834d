// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
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
	if path := directPath(o); path != "" {
		return good(v1alpha1.ReasonAttachedDirectly, fmt.Sprintf("claim %s is %s on the node; its kubelet has not started the holder: %s", claimName(o.dump), path, f.message))
	}
	return f
}

// directPath is the path of a local volume on its node, "" unless the direct way is to be taken. That is so once the
// scheduler has given the holder to the node and its kubelet does nothing about it: up to there everybody
// who has a say (quotas, policies, the scheduler) has agreed to the claim being attached there.
func directPath(o *observation) string {
	h := o.holder
	if o.volume == nil || o.volume.Spec.Local == nil || !raw(o.volume.Spec.VolumeMode) || o.node == nil || o.dump.Status.StartTime == nil || !o.owned() || h.DeletionTimestamp != nil || h.Spec.NodeName != o.dump.Spec.NodeName || podEnded(h) {
		return ""
	}
	patience := directAfter
	if nodeTrouble(o.node) != "" {
		patience = directAfterNotReady
	}
	if o.now.Sub(h.CreationTimestamp.Time) < patience {
		return ""
	}
	return o.volume.Spec.Local.Path
}

// targetOf is what the agent is told of a target that is ready.
func targetOf(o *observation, f finding) v1alpha1.TargetStatus {
	if o.dump.Spec.Target.ObjectStorage != nil {
		return v1alpha1.TargetStatus{HolderPodUID: string(o.holder.UID)}
	}
	target := v1alpha1.TargetStatus{PersistentVolumeName: o.volume.Name, CapacityBytes: capacity(o.volume), HolderPodUID: string(o.holder.UID),
		VolumeMode: modeName(o.volume.Spec.VolumeMode)}
	if f.reason == v1alpha1.ReasonAttachedDirectly {
		target.LocalPath = o.volume.Spec.Local.Path
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
