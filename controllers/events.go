// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"livedump.io/api/v1alpha1"
)

// told are the conditions whose turn to True or False is worth an event, and the action
// (in the sense of events.k8s.io) that it stands for.
var told = []struct{ conditionType, action string }{
	{v1alpha1.ConditionAccepted, "Accept"},
	{v1alpha1.ConditionTargetReady, "AttachTarget"},
	{v1alpha1.ConditionAgentReady, "PlaceAgent"},
	{v1alpha1.ConditionSucceeded, "End"},
}

// longestNote is what the API server takes of an event's note, in bytes; a condition has room for more.
const longestNote = 1024

// record records one event about the LiveDump.
func (r *LiveDumpReconciler) record(dump *v1alpha1.LiveDump, eventType, reason, action, note string) {
	if len(note) > longestNote {
		note = strings.ToValidUTF8(note[:longestNote], "")
	}
	r.Recorder.Eventf(dump, nil, eventType, reason, action, "%s", note)
}

// recordOnNode records that a dump of the node began or ended, for whoever looks at the node and
// wonders about a short stop or about memory that was in use.
func (r *LiveDumpReconciler) recordOnNode(node *corev1.Node, dump *v1alpha1.LiveDump, c *metav1.Condition) {
	if node == nil {
		return
	}
	switch {
	case c.Type == v1alpha1.ConditionAccepted && c.Status == metav1.ConditionTrue:
		r.Recorder.Eventf(node, dump, corev1.EventTypeNormal, "LiveDumpAccepted", "Dump",
			"LiveDump %s is about to freeze this node's memory for a moment", reference(dump))
	case c.Type == v1alpha1.ConditionSucceeded && c.Status == metav1.ConditionTrue:
		r.Recorder.Eventf(node, dump, corev1.EventTypeNormal, "LiveDumpSucceeded", "Dump",
			"LiveDump %s of this node is complete", reference(dump))
	case c.Type == v1alpha1.ConditionSucceeded && c.Status == metav1.ConditionFalse && dump.Status.StartTime != nil:
		r.Recorder.Eventf(node, dump, corev1.EventTypeWarning, "LiveDumpEnded", "Dump",
			"LiveDump %s of this node ended with %s", reference(dump), c.Reason)
	}
}

// tell records an event for each step from the status before to the one after.
func (r *LiveDumpReconciler) tell(ctx context.Context, seen *observation, after v1alpha1.LiveDumpStatus) {
	before := seen.dump
	for _, t := range told {
		is := meta.FindStatusCondition(after.Conditions, t.conditionType)
		was := condition(before, t.conditionType)
		if is == nil || was != nil && was.Status == is.Status && was.Reason == is.Reason {
			continue
		}
		log.FromContext(ctx).Info("LiveDump", "node", before.Spec.NodeName, "condition", is.Type, "status", is.Status, "reason", is.Reason, "message", is.Message)
		if t.conditionType == v1alpha1.ConditionSucceeded && is.Status != metav1.ConditionUnknown {
			recordEnd(is, &after)
		}
		r.recordOnNode(seen.node, before, is)
		switch {
		case is.Status == metav1.ConditionUnknown && is.Reason != v1alpha1.ReasonWaitingInLine:
			// still on the way
		case is.Status == metav1.ConditionFalse && t.conditionType != v1alpha1.ConditionSucceeded:
			// its reason comes with the end
		case is.Status == metav1.ConditionFalse:
			r.record(before, corev1.EventTypeWarning, is.Reason, t.action, is.Message)
		default:
			r.record(before, corev1.EventTypeNormal, is.Reason, t.action, is.Message)
		}
	}
}
