// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Controller and agent go by these together: what one of them took for ended, begun, canceled or overdue and the other did not would be
// nobody's, or both would be at it.

// Ended says whether the outcome stands. From then on the status does not change.
func (d *LiveDump) Ended() bool {
	c := meta.FindStatusCondition(d.Status.Conditions, ConditionSucceeded)
	return c != nil && c.Status != metav1.ConditionUnknown
}

// Begun says whether an agent has taken the LiveDump up: from then on a session may exist, and only the agent (or its loss) brings
// the end.
func (d *LiveDump) Begun() bool {
	c := meta.FindStatusCondition(d.Status.Conditions, ConditionCaptured)
	return d.Status.Session != "" || c != nil && c.Reason != ReasonPending
}

// Canceled says whether it is to end early. Deleting it cancels it too.
func (d *LiveDump) Canceled() bool {
	return d.Spec.DesiredState == DesiredStateCancel || d.DeletionTimestamp != nil
}

// Deadline is when spec.timeoutSeconds are over, counted from the acceptance; from now for one that is not accepted yet. The agent ends its dump
// then; the controller waits somewhat longer, for the agent knows more of how it ended.
func (d *LiveDump) Deadline(now time.Time) time.Time {
	if d.Status.StartTime != nil {
		now = d.Status.StartTime.Time
	}
	return now.Add(time.Duration(d.Spec.TimeoutSeconds) * time.Second)
}
