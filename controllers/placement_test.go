// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"livedump.io/api/v1alpha1"
)

func TestPlace(t *testing.T) {
	const linger = 15 * time.Second
	waitingInLine := v1alpha1.LiveDump{}
	active := v1alpha1.LiveDump{Status: v1alpha1.LiveDumpStatus{StartTime: &metav1.Time{Time: start}}}
	over := *active.DeepCopy()
	over.Status.CompletionTime = &metav1.Time{Time: start}
	over.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionSucceeded, Status: metav1.ConditionTrue}}
	for name, test := range map[string]struct {
		label     string
		dumps     []v1alpha1.LiveDump
		after     time.Duration
		want      want
		lookAgain time.Duration
	}{
		"nothing to do":                {"", nil, 0, leave, 0},
		"in line only":                 {"", []v1alpha1.LiveDump{waitingInLine}, 0, leave, 0},
		"wanted":                       {"", []v1alpha1.LiveDump{over, active}, 0, ensure, 0},
		"there":                        {AgentOnDemand, []v1alpha1.LiveDump{active}, 0, leave, 0},
		"lingers":                      {AgentOnDemand, []v1alpha1.LiveDump{over}, 5 * time.Second, leave, 10 * time.Second},
		"lingered":                     {AgentOnDemand, []v1alpha1.LiveDump{over}, linger, remove, 0},
		"clock a little behind":        {AgentOnDemand, []v1alpha1.LiveDump{over}, -time.Second, leave, linger},
		"clock set back an hour":       {AgentOnDemand, []v1alpha1.LiveDump{over}, -time.Hour, remove, 0},
		"wanted again while lingering": {AgentOnDemand, []v1alpha1.LiveDump{over, active}, 20 * time.Second, leave, 0},
		"all deleted":                  {AgentOnDemand, nil, 0, remove, 0},
		"resident":                     {AgentResident, nil, 0, leave, 0},
		"resident and wanted":          {AgentResident, []v1alpha1.LiveDump{active}, 0, leave, 0},
	} {
		t.Run(name, func(t *testing.T) {
			node := &corev1.Node{}
			if test.label != "" {
				node.Labels = map[string]string{AgentLabel: test.label}
			}
			got, lookAgain := place(node, test.dumps, linger, start.Add(test.after))
			if got != test.want || lookAgain != test.lookAgain {
				t.Errorf("%v after %s, want %v after %s", got, lookAgain, test.want, test.lookAgain)
			}
		})
	}
}
