// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
	applyv1alpha1 "livedump.io/api/v1alpha1/applyconfiguration/api/v1alpha1"
)

// notBegun is the message of the agent's conditions as long as they are the controller's,
// which sets them so that all conditions are there from the first reconcile on.
const notBegun = "the agent has not begun"

// agentConditions are the agent's to write once it has begun.
var agentConditions = []string{v1alpha1.ConditionModuleLoaded, v1alpha1.ConditionCaptured}

func condition(dump *v1alpha1.LiveDump, conditionType string) *metav1.Condition {
	return meta.FindStatusCondition(dump.Status.Conditions, conditionType)
}

// runningStatus is the status of a LiveDump that goes on.
func runningStatus(o *observation, f findings) v1alpha1.LiveDumpStatus {
	status := checkedStatus(o, f)
	status.PlaceInLine = f.accepted.place
	if f.accepted.state == fine && status.StartTime == nil {
		now := metav1.NewTime(o.now).Rfc3339Copy()
		status.StartTime = &now
	}
	if f.accepted.state == fine && status.Node.BootID == "" && o.node != nil {
		status.Node = v1alpha1.NodeIdentity{BootID: o.node.Status.NodeInfo.BootID, KernelRelease: o.node.Status.NodeInfo.KernelVersion}
	}
	succeeded := waiting(v1alpha1.ReasonPending, awaited(f))
	if o.dump.Begun() {
		succeeded = waiting(v1alpha1.ReasonRunning, "the agent is at work, see condition Captured")
		if f.agent.state != fine {
			succeeded.message = f.agent.message
		}
	}
	setCondition(&status, o, v1alpha1.ConditionSucceeded, succeeded)
	return status
}

// endedStatus is the status that stays.
func endedStatus(o *observation, f findings, end outcome) v1alpha1.LiveDumpStatus {
	status := checkedStatus(o, f)
	// Nothing will happen any more, so nothing may look as if it might.
	for i := range status.Conditions {
		c := &status.Conditions[i]
		if c.Status != metav1.ConditionUnknown {
			continue
		}
		closed := bad(v1alpha1.ReasonNotReached, fmt.Sprintf("ended with %s before; last: %s", end.reason, c.Message))
		if c.Type == v1alpha1.ConditionCaptured && o.dump.Begun() {
			closed = bad(end.reason, end.message)
		}
		setCondition(&status, o, c.Type, closed)
	}
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionSucceeded, Status: end.status, Reason: end.reason, Message: end.message,
		ObservedGeneration: o.dump.Generation, LastTransitionTime: metav1.NewTime(o.now),
	})
	now := metav1.NewTime(o.now).Rfc3339Copy()
	status.CompletionTime = &now
	return status
}

// checkedStatus is the status with what the checks found, but for the outcome.
func checkedStatus(o *observation, f findings) v1alpha1.LiveDumpStatus {
	status := *o.dump.Status.DeepCopy()
	status.ObservedGeneration = o.dump.Generation
	setCondition(&status, o, v1alpha1.ConditionAccepted, f.accepted)
	setCondition(&status, o, v1alpha1.ConditionTargetReady, f.target)
	setCondition(&status, o, v1alpha1.ConditionAgentReady, f.agent)
	for _, conditionType := range agentConditions {
		if meta.FindStatusCondition(status.Conditions, conditionType) == nil {
			setCondition(&status, o, conditionType, waiting(v1alpha1.ReasonPending, notBegun))
		}
	}
	status.PlaceInLine = 0
	switch {
	case o.dump.Begun():
		if uid := successor(o); uid != "" {
			status.Target.HolderPodUID = uid
		}
	case f.target.state == fine && (o.bound() || o.dump.Spec.Target.ObjectStorage != nil && o.owned()):
		status.Target = targetOf(o, f.target)
	}
	return status
}

// sameButMessages says whether two statuses of a LiveDump that goes on differ in nothing but messages.
func sameButMessages(a, b v1alpha1.LiveDumpStatus) bool {
	silent := func(s v1alpha1.LiveDumpStatus) v1alpha1.LiveDumpStatus {
		s.Conditions = slices.Clone(s.Conditions)
		for i := range s.Conditions {
			s.Conditions[i].Message = ""
		}
		return s
	}
	return len(a.Conditions) > 0 && equality.Semantic.DeepEqual(silent(a), silent(b))
}

func setCondition(status *v1alpha1.LiveDumpStatus, o *observation, conditionType string, f finding) {
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{
		Type: conditionType, Status: f.status(), Reason: f.reason, Message: f.message,
		ObservedGeneration: o.dump.Generation, LastTransitionTime: metav1.NewTime(o.now),
	})
}

// applyStatus writes the controller's part of the status, if it changed. The write is
// refused with a conflict if the LiveDump is not the one that was looked at any more: the
// agent may have begun between the look and the decision.
func (r *LiveDumpReconciler) applyStatus(ctx context.Context, dump *v1alpha1.LiveDump, status v1alpha1.LiveDumpStatus) error {
	if equality.Semantic.DeepEqual(dump.Status, status) {
		return nil
	}
	apply := applyv1alpha1.LiveDump(dump.Name, dump.Namespace).
		WithUID(dump.UID).
		WithResourceVersion(dump.ResourceVersion).
		WithStatus(controllerPart(&dump.Status, &status))
	if err := r.Client.Status().Apply(ctx, apply, client.FieldOwner(FieldManager), client.ForceOwnership); err != nil {
		return err
	}
	dump.Status = status
	dump.ResourceVersion = *apply.ResourceVersion
	return nil
}

// controllerPart is what the controller owns of the status that is to be. Server-side apply
// takes away what its owner leaves out, so it is always all of it.
func controllerPart(before, after *v1alpha1.LiveDumpStatus) *applyv1alpha1.LiveDumpStatusApplyConfiguration {
	part := applyv1alpha1.LiveDumpStatus().WithObservedGeneration(after.ObservedGeneration)
	for _, c := range after.Conditions {
		if isAgents(before, c) {
			continue
		}
		part.WithConditions(metav1ac.Condition().WithType(c.Type).WithStatus(c.Status).WithReason(c.Reason).
			WithMessage(c.Message).WithObservedGeneration(c.ObservedGeneration).WithLastTransitionTime(c.LastTransitionTime))
	}
	if after.StartTime != nil {
		part.WithStartTime(*after.StartTime)
	}
	if after.CompletionTime != nil {
		part.WithCompletionTime(*after.CompletionTime)
	}
	if node := after.Node; node != (v1alpha1.NodeIdentity{}) {
		part.WithNode(applyv1alpha1.NodeIdentity().WithBootID(node.BootID).WithKernelRelease(node.KernelRelease))
	}
	if target := after.Target; !equality.Semantic.DeepEqual(target, v1alpha1.TargetStatus{}) {
		part.WithTarget(targetPart(target))
	}
	if after.PlaceInLine > 0 {
		part.WithPlaceInLine(after.PlaceInLine)
	}
	return part
}

// targetPart is what the agent is told of the target.
func targetPart(target v1alpha1.TargetStatus) *applyv1alpha1.TargetStatusApplyConfiguration {
	t := applyv1alpha1.TargetStatus().WithPersistentVolumeName(target.PersistentVolumeName).
		WithCapacityBytes(target.CapacityBytes).WithHolderPodUID(target.HolderPodUID).WithLocalPath(target.LocalPath)
	if target.VolumeMode != "" { // the schema has no value for none
		t.WithVolumeMode(target.VolumeMode)
	}
	for _, c := range target.Claims {
		t.WithClaims(applyv1alpha1.ClaimStatus().WithClaimName(c.ClaimName).WithPersistentVolumeName(c.PersistentVolumeName).
			WithCapacityBytes(c.CapacityBytes).WithVolumeMode(c.VolumeMode).WithLocalPath(c.LocalPath))
	}
	return t
}

// isAgents says whether the condition is the agent's and stays as the agent wrote it.
func isAgents(before *v1alpha1.LiveDumpStatus, c metav1.Condition) bool {
	for _, conditionType := range agentConditions {
		if c.Type == conditionType {
			was := meta.FindStatusCondition(before.Conditions, c.Type)
			initial := c.Reason == v1alpha1.ReasonPending && c.Message == notBegun
			return was != nil && !initial && equality.Semantic.DeepEqual(*was, c)
		}
	}
	return false
}
