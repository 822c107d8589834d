// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Condition types. All of them are set from the first reconcile on.
const (
	// ConditionAccepted: the spec can be carried out on this node. Set by the controller.
	ConditionAccepted = "Accepted"
	// ConditionTargetReady: the claim is bound, fit and attached by its holder. Set by the controller.
	ConditionTargetReady = "TargetReady"
	// ConditionAgentReady: the agent of the node is there. Set by the controller.
	ConditionAgentReady = "AgentReady"
	// ConditionModuleLoaded: the kernel module is loaded. Set by the agent.
	ConditionModuleLoaded = "ModuleLoaded"
	// ConditionCaptured: memory is (or was) frozen for this dump. Set by the agent.
	ConditionCaptured = "Captured"
	// ConditionSucceeded is Unknown while the dump runs; then its reason is the outcome.
	ConditionSucceeded = "Succeeded"
)

// Reasons of conditions on the way to the end.
const (
	ReasonAccepted      = "Accepted"      // Accepted, True
	ReasonWaitingInLine = "WaitingInLine" // Accepted, Unknown: another LiveDump has the node
	ReasonAttached      = "Attached"      // TargetReady, True
	ReasonAgentReady    = "AgentReady"    // AgentReady, True
	// ReasonNothingToAttach (TargetReady, True): the target is no volume.
	ReasonNothingToAttach = "NothingToAttach"
	// ReasonAttachedDirectly (TargetReady, True): by the path of a local volume, for the kubelet starts no holder.
	ReasonAttachedDirectly = "AttachedDirectly"
	// ReasonNotReached closes a condition that was still Unknown when the dump ended.
	ReasonNotReached = "NotReached"
)

// Reasons of the condition Succeeded.
const (
	ReasonPending  = "Pending"  // Unknown: waiting for node, target or agent
	ReasonRunning  = "Running"  // Unknown: the agent is at work
	ReasonComplete = "Complete" // True

	// Reasons with which the dump ended without success.
	ReasonNamespaceNotAllowed = "NamespaceNotAllowed"
	ReasonNodeNotFound        = "NodeNotFound"
	ReasonNodeNotReady        = "NodeNotReady"
	ReasonNodeRebooted        = "NodeRebooted"
	ReasonUnsupportedNode     = "UnsupportedNode"
	ReasonTargetNotFound      = "TargetNotFound"
	ReasonTargetWrongMode     = "TargetWrongMode"
	ReasonTargetWrongNode     = "TargetWrongNode"
	ReasonTargetTooSmall      = "TargetTooSmall"
	ReasonTargetInUse         = "TargetInUse"
	ReasonTargetNotEmpty      = "TargetNotEmpty"
	ReasonTargetNotBound      = "TargetNotBound"
	ReasonTargetInvalid       = "TargetInvalid" // not a usable block device
	ReasonModuleNotFound      = "ModuleNotFound"
	ReasonModuleRejected      = "ModuleRejected"
	ReasonLockedDown          = "LockedDown"
	ReasonUnsupportedKernel   = "UnsupportedKernel"
	ReasonNodeBusy            = "NodeBusy"     // another session, or suspend, hibernation or memory hotplug
	ReasonNotPermitted        = "NotPermitted" // the agent lacks the right to use the module
	ReasonStopFailed          = "StopFailed"   // a CPU could not be held
	ReasonOutOfMemory         = "OutOfMemory"
	ReasonReserveExhausted    = "ReserveExhausted"
	ReasonDeadlineExceeded    = "DeadlineExceeded"
	ReasonCanceled            = "Canceled"
	ReasonAgentLost           = "AgentLost"
	ReasonIOError             = "IOError"
	ReasonVerifyFailed        = "VerifyFailed" // what was read back differs from what was written
	ReasonInternalError       = "InternalError"
)

// FailureReasons are all reasons with which a LiveDump ends without success.
var FailureReasons = []string{
	ReasonNamespaceNotAllowed, ReasonNodeNotFound, ReasonNodeNotReady, ReasonNodeRebooted, ReasonUnsupportedNode,
	ReasonTargetNotFound, ReasonTargetWrongMode, ReasonTargetWrongNode, ReasonTargetTooSmall, ReasonTargetInUse,
	ReasonTargetNotEmpty, ReasonTargetNotBound, ReasonTargetInvalid,
	ReasonModuleNotFound, ReasonModuleRejected, ReasonLockedDown, ReasonUnsupportedKernel, ReasonNodeBusy, ReasonNotPermitted,
	ReasonStopFailed, ReasonOutOfMemory, ReasonReserveExhausted, ReasonDeadlineExceeded, ReasonCanceled,
	ReasonAgentLost, ReasonIOError, ReasonVerifyFailed, ReasonInternalError,
}
