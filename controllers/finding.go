// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"livedump.io/api/v1alpha1"
)

// state of one thing that was checked.
type state int

const (
	pending state = iota // may become fine by itself
	fine
	failed // ends the LiveDump
)

// finding is the result of one check. reason and message go to the condition.
type finding struct {
	state           state
	reason, message string
	// place in the line, for one that waits in it.
	place int32
}

func waiting(reason, message string) finding {
	return finding{state: pending, reason: reason, message: message}
}
func good(reason, message string) finding {
	return finding{state: fine, reason: reason, message: message}
}
func bad(reason, message string) finding {
	return finding{state: failed, reason: reason, message: message}
}

// accepted is the finding that the spec can be carried out.
func accepted() finding {
	return good(v1alpha1.ReasonAccepted, "node and target fit")
}

// kept is a condition as it stands.
func kept(dump *v1alpha1.LiveDump, conditionType string) finding {
	c := condition(dump, conditionType)
	switch {
	case c == nil:
		return waiting(v1alpha1.ReasonPending, "not known")
	case c.Status == metav1.ConditionTrue:
		return good(c.Reason, c.Message)
	default:
		return waiting(c.Reason, c.Message)
	}
}

// status of the condition that says this.
func (f finding) status() metav1.ConditionStatus {
	switch f.state {
	case fine:
		return metav1.ConditionTrue
	case failed:
		return metav1.ConditionFalse
	default:
		return metav1.ConditionUnknown
	}
}
