// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestState(t *testing.T) {
	with := func(conditionType string, status metav1.ConditionStatus, reason string) func(*LiveDump) {
		return func(d *LiveDump) {
			d.Status.Conditions = append(d.Status.Conditions, metav1.Condition{Type: conditionType, Status: status, Reason: reason})
		}
	}
	type state struct{ ended, begun, canceled bool }
	tests := map[string]struct {
		change func(*LiveDump)
		want   state
	}{
		"new":                          {func(*LiveDump) {}, state{}},
		"waiting":                      {with(ConditionSucceeded, metav1.ConditionUnknown, ReasonPending), state{}},
		"succeeded":                    {with(ConditionSucceeded, metav1.ConditionTrue, ReasonComplete), state{ended: true}},
		"failed":                       {with(ConditionSucceeded, metav1.ConditionFalse, ReasonIOError), state{ended: true}},
		"the controller's placeholder": {with(ConditionCaptured, metav1.ConditionUnknown, ReasonPending), state{}},
		"the agent at work":            {with(ConditionCaptured, metav1.ConditionUnknown, ReasonRunning), state{begun: true}},
		"the agent's end":              {with(ConditionCaptured, metav1.ConditionTrue, ReasonComplete), state{begun: true}},
		"a session":                    {func(d *LiveDump) { d.Status.Session = "0a1b" }, state{begun: true}},
		"canceled":                     {func(d *LiveDump) { d.Spec.DesiredState = DesiredStateCancel }, state{canceled: true}},
		"deleted":                      {func(d *LiveDump) { d.DeletionTimestamp = &metav1.Time{} }, state{canceled: true}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := &LiveDump{Spec: LiveDumpSpec{DesiredState: DesiredStateRun}}
			test.change(d)
			if got := (state{d.Ended(), d.Begun(), d.Canceled()}); got != test.want {
				t.Errorf("%+v, want %+v", got, test.want)
			}
		})
	}
}

func TestDeadline(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	d := &LiveDump{Spec: LiveDumpSpec{TimeoutSeconds: 600}}
	if got, want := d.Deadline(now), now.Add(10*time.Minute); !got.Equal(want) {
		t.Errorf("not accepted yet: %s, want %s", got, want)
	}
	d.Status.StartTime = &metav1.Time{Time: now.Add(-time.Hour)}
	if got, want := d.Deadline(now), now.Add(-50*time.Minute); !got.Equal(want) {
		t.Errorf("accepted: %s, want %s", got, want)
	}
}
