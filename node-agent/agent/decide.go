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
	ended, canceled := dump.Ended(), dump.Canceled()
	captured := status(dump, v1alpha1.ConditionCaptured)
	switch {
	case r == worker && ended:
		return decision{stop, endedByController(dump)}
	case r == worker && canceled:
		return decision{stop, engine.ErrCanceled}
	case r == done, r == worker, ended, captured == metav1.ConditionTrue, captured == metav1.ConditionFalse:
		return decision{}
	case dump.Begun() && r != claimant:
		return decision{action: resume}
	case canceled && dump.Begun():
		return decision{action: resume} // claimed by this process, but nothing was done
	case canceled:
		return decision{} // the controller ends it alone
	case status(dump, v1alpha1.ConditionAccepted) != metav1.ConditionTrue,
		status(dump, v1alpha1.ConditionTargetReady) != metav1.ConditionTrue,
		!ready(dump):
		return decision{}
	case !now.Before(dump.Deadline(now)):
		return decision{} // too late; the controller ends it
	}
	return decision{action: start}
}

func endedByController(dump *v1alpha1.LiveDump) error {
	c := meta.FindStatusCondition(dump.Status.Conditions, v1alpha1.ConditionSucceeded)
	cause := engine.ErrCanceled
	if c.Reason == v1alpha1.ReasonDeadlineExceeded {
		cause = engine.ErrDeadline
	}
	return fmt.Errorf("the controller has ended the LiveDump (%s): %w", c.Reason, cause)
}

// status of a condition; empty without one.
func status(dump *v1alpha1.LiveDump, conditionType string) metav1.ConditionStatus {
	if c := meta.FindStatusCondition(dump.Status.Conditions, conditionType); c != nil {
		return c.Status
	}
	return ""
}
