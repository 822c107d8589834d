// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"livedump.io/api/v1alpha1"
)

// outcome of a LiveDump, for the condition Succeeded.
type outcome struct {
	status          metav1.ConditionStatus
	reason, message string
}

func failure(reason, message string) *outcome {
	return &outcome{metav1.ConditionFalse, reason, message}
}

// unknownTarget is said of every end that is not the agent's word. The agent may have completed the dump, and not have been able to say
// so: on a node that is cut off it works on.
const unknownTarget = "; what the target holds is not known here; livedump verify tells"

// findEnd says how the LiveDump ended; nil if it goes on.
// What the agent reports comes first: it was there, and a dump that is complete is
// complete even if the node was rebooted, or the user canceled, right after.
func findEnd(o *observation, f findings) *outcome {
	dump := o.dump
	if end := reportedEnd(o); end != nil {
		return end
	}
	working := dump.Begun()
	if dump.Canceled() && !working {
		return failure(v1alpha1.ReasonCanceled, "canceled before the agent began; nothing was written to the target")
	}
	if rebooted(o) {
		message := fmt.Sprintf("node %s was rebooted (boot ID %s, before %s): the memory to be dumped is gone",
			dump.Spec.NodeName, o.node.Status.NodeInfo.BootID, dump.Status.Node.BootID)
		if working {
			message += unknownTarget
		}
		return failure(v1alpha1.ReasonNodeRebooted, message)
	}
	if working && o.node == nil {
		return failure(v1alpha1.ReasonNodeNotFound, fmt.Sprintf("node %s was deleted while the agent was at work%s", dump.Spec.NodeName, unknownTarget))
	}
	for _, check := range []finding{f.accepted, f.target, f.agent} {
		if check.state == failed {
			return failure(check.reason, check.message)
		}
	}
	if deleting(dump) && o.now.Sub(dump.DeletionTimestamp.Time) >= deletionGrace {
		return failure(v1alpha1.ReasonCanceled, fmt.Sprintf("deleted; the agent did not confirm within %s that it ended the session%s", deletionGrace, unknownTarget))
	}
	if !o.now.Before(deadline(o, f)) {
		return overdue(o, f)
	}
	return nil
}

// reportedEnd is the end as the agent reports it in Captured.
func reportedEnd(o *observation) *outcome {
	captured := condition(o.dump, v1alpha1.ConditionCaptured)
	if captured == nil || captured.Status == metav1.ConditionUnknown {
		return nil
	}
	if captured.Status == metav1.ConditionFalse {
		return failure(captured.Reason, captured.Message)
	}
	// The agent's word is a claim: what it can be checked against, it is.
	result := o.dump.Status.Result
	switch {
	case o.dump.Status.StartTime == nil:
		return failure(v1alpha1.ReasonInternalError, "the agent reported a dump that was never accepted")
	case result == nil || result.SizeBytes <= 0 || result.PagesDumped <= 0:
		return failure(v1alpha1.ReasonInternalError, "the agent reported a complete dump without its result")
	}
	if wrong := wrongParts(o.dump); wrong != "" {
		return failure(v1alpha1.ReasonInternalError, wrong)
	}
	return &outcome{metav1.ConditionTrue, v1alpha1.ReasonComplete, fmt.Sprintf("%s: %d bytes, %d pages, %d lost", whereabouts(o.dump),
		result.SizeBytes, result.PagesDumped, result.PagesLost)}
}

// wrongParts says what cannot be in the report of a complete dump on where its bytes are; "" if all can be.
func wrongParts(dump *v1alpha1.LiveDump) string {
	result, target := dump.Status.Result, &dump.Spec.Target
	if !target.Split() {
		if result.SHA256 == "" {
			return "the agent reported a complete dump without its result"
		}
		c, _ := dump.Status.Target.OfClaim(target, "")
		return wrongSize(c, result.SizeBytes)
	}
	sum, claims := int64(0), target.Claims()
	for _, claim := range claims {
		i := slices.IndexFunc(result.Parts, func(p v1alpha1.PartResult) bool { return p.ClaimName == claim.ClaimName })
		if i < 0 || result.Parts[i].SizeBytes <= 0 || result.Parts[i].SHA256 == "" {
			return fmt.Sprintf("the agent reported a complete dump without its part on claim %s", claim.ClaimName)
		}
		c, _ := dump.Status.Target.OfClaim(target, claim.ClaimName)
		if wrong := wrongSize(c, result.Parts[i].SizeBytes); wrong != "" {
			return wrong
		}
		sum += result.Parts[i].SizeBytes
	}
	if len(result.Parts) != len(claims) || sum != result.SizeBytes {
		return fmt.Sprintf("the agent reported a dump of %d bytes, and %d parts that have %d", result.SizeBytes, len(result.Parts), sum)
	}
	return ""
}

// wrongSize says so if there are more bytes than a device has; "" otherwise. A file has holes.
func wrongSize(c v1alpha1.ClaimStatus, size int64) string {
	if c.CapacityBytes > 0 && size > c.CapacityBytes && c.VolumeMode != v1alpha1.VolumeModeFilesystem {
		return fmt.Sprintf("the agent reported a dump of %d bytes on a target of %d", size, c.CapacityBytes)
	}
	return ""
}

// whereabouts says where a complete dump is.
func whereabouts(dump *v1alpha1.LiveDump) string {
	target := &dump.Spec.Target
	switch {
	case target.Stream != nil:
		return fmt.Sprintf("the dump was sent to %s, which has confirmed it", target.Stream.Address)
	case target.ObjectStorage != nil:
		return fmt.Sprintf("the dump is object %s, every part acknowledged by the store", dump.Status.Result.Device)
	case target.Split():
		return fmt.Sprintf("the dump is split among claims %s, every part read back and verified", claimNames(dump))
	case dump.Status.Target.VolumeMode == v1alpha1.VolumeModeFilesystem:
		return fmt.Sprintf("the dump is file %s on claim %s, read back and verified", dump.FileInVolume(*target.PersistentVolumeClaim), claimNames(dump))
	}
	return fmt.Sprintf("the dump is on claim %s from its first byte on, read back and verified", claimNames(dump))
}

// deadline by which the LiveDump has to end.
func deadline(o *observation, f findings) time.Time {
	at := o.dump.Deadline(o.now)
	if o.dump.Begun() && f.agent.state == fine {
		at = at.Add(agentGrace)
	}
	return at
}

// overdue says what the LiveDump was waiting for when its time was up.
func overdue(o *observation, f findings) *outcome {
	within := fmt.Sprintf("not ended within %d seconds: ", o.dump.Spec.TimeoutSeconds)
	switch {
	case o.dump.Begun() && f.agent.state != fine:
		return failure(v1alpha1.ReasonAgentLost, within+"the agent began and did not come back ("+f.agent.message+")"+unknownTarget)
	case o.dump.Begun():
		return failure(v1alpha1.ReasonDeadlineExceeded, within+"the agent was still at work"+unknownTarget)
	case nodeTrouble(o.node) != "":
		return failure(v1alpha1.ReasonNodeNotReady, within+awaited(f))
	case f.target.reason == v1alpha1.ReasonTargetNotBound:
		return failure(v1alpha1.ReasonTargetNotBound, within+awaited(f))
	}
	return failure(v1alpha1.ReasonDeadlineExceeded, within+awaited(f))
}

// awaited is what a LiveDump that the agent has not begun is waiting for.
func awaited(f findings) string {
	for _, check := range []finding{f.accepted, f.target, f.agent} {
		if check.state != fine {
			return check.message
		}
	}
	return "waiting for the agent to begin"
}
