// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"livedump.io/api/v1alpha1"
	"livedump.io/node-agent/engine"
)

// action is the next step for one LiveDump.
type action int

const (
	leave  action = iota
	start         // take it up
	stop          // end the dump that is running here; see decision.cause
	resume        // an earlier process had taken it up: go on with it, or say why that can't be
)

type decision struct {
	action action
	// cause of a stop.
	cause error
}

// role is what this process has to do with a LiveDump.
type role int

const (
	stranger role = iota
	claimant      // tried to take it up, and does not know whether the API server took the write
	worker        // its dump runs here
	done          // its dump ran here; what the cache shows may be older
)

// decide depends on nothing but its arguments.
func decide(dump *v1alpha1.LiveDump, nodeName string, r role, now time.Time) decision {
	if dump.Spec.NodeName != nodeName {
		return decision{}
	}
	ended, canceled := ended(dump), canceled(dump)
	captured := status(dump, v1alpha1.ConditionCaptured)
	switch {
	case r == worker && ended:
		return decision{stop, endedByController(dump)}
	case r == worker && canceled:
		return decision{stop, engine.ErrCanceled}
	case r == done, r == worker, ended, captured == metav1.ConditionTrue, captured == metav1.ConditionFalse:
		return decision{}
	case begun(dump) && r != claimant:
		return decision{action: resume}
	case canceled && begun(dump):
		return decision{action: resume} // claimed by this process, but nothing was done
	case canceled:
		return decision{} // the controller ends it alone
	case status(dump, v1alpha1.ConditionAccepted) != metav1.ConditionTrue,
		status(dump, v1alpha1.ConditionTargetReady) != metav1.ConditionTrue,
		!ready(dump):
		return decision{}
	case !now.Before(deadline(dump, now)):
		return decision{} // too late; the controller ends it
	}
	return decision{action: start}
}

// ended says whether the controller has ended the LiveDump.
func ended(dump *v1alpha1.LiveDump) bool {
	s := status(dump, v1alpha1.ConditionSucceeded)
	return s == metav1.ConditionTrue || s == metav1.ConditionFalse
}

func canceled(dump *v1alpha1.LiveDump) bool {
	return dump.Spec.DesiredState == v1alpha1.DesiredStateCancel || dump.DeletionTimestamp != nil
}

// begun says whether an agent has taken the LiveDump up; the controller asks the same.
func begun(dump *v1alpha1.LiveDump) bool {
	c := meta.FindStatusCondition(dump.Status.Conditions, v1alpha1.ConditionCaptured)
	return dump.Status.Session != "" || c != nil && c.Reason != v1alpha1.ReasonPending
}

func endedByController(dump *v1alpha1.LiveDump) error {
	c := meta.FindStatusCondition(dump.Status.Conditions, v1alpha1.ConditionSucceeded)
	cause := engine.ErrCanceled
	if c.Reason == v1alpha1.ReasonDeadlineExceeded {
		cause = engine.ErrDeadline
	}
	return fmt.Errorf("the controller has ended the LiveDump (%s): %w", c.Reason, cause)
}

// deadline is when the time of the LiveDump is over. The controller waits somewhat longer, so that the agent, which
// knows more, can say how it ended.
func deadline(dump *v1alpha1.LiveDump, now time.Time) time.Time {
	from := now
	if dump.Status.StartTime != nil {
		from = dump.Status.StartTime.Time
	}
	timeout := time.Duration(dump.Spec.TimeoutSeconds) * time.Second
	if timeout <= 0 {
		timeout = 30 * time.Minute // the default of the API
	}
	return from.Add(timeout)
}

// status of a condition; empty without one.
func status(dump *v1alpha1.LiveDump, conditionType string) metav1.ConditionStatus {
	if c := meta.FindStatusCondition(dump.Status.Conditions, conditionType); c != nil {
		return c.Status
	}
	return ""
}
