// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"

	"livedump.io/api/v1alpha1"
)

// checkLine lets one LiveDump of a node run at a time, in the order of creation: the kernel
// module has one session, and two dumps would share the reserve's memory.
func checkLine(o *observation) finding {
	for i := range o.others {
		other := &o.others[i]
		if other.Spec.NodeName == o.dump.Spec.NodeName && !ended(other) && comesBefore(other, o.dump) {
			return waiting(v1alpha1.ReasonWaitingInLine, fmt.Sprintf("waiting for LiveDump %s, which has node %s", reference(other), o.dump.Spec.NodeName))
		}
	}
	return accepted()
}

// comesBefore orders LiveDumps that have not ended: those that run first, then by age.
// It is a total order, so of any two exactly one yields.
func comesBefore(a, b *v1alpha1.LiveDump) bool {
	if runs := a.Status.StartTime != nil; runs != (b.Status.StartTime != nil) {
		return runs
	}
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	return a.UID < b.UID
}
