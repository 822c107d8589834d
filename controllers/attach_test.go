// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"livedump.io/api/v1alpha1"
)

// A node whose kubelet starts no pods is reached by the path of a local volume.
func TestDirectWay(t *testing.T) {
	// A holder that the scheduler gave to the node, and that is all.
	stuck := func(change func(*observation)) *observation {
		o := fresh()
		o.claims[0].volume.Spec.Local = &corev1.LocalVolumeSource{Path: "/dev/disk/by-id/wwn-1"}
		o.proceed()
		o.withHolder()
		o.holder.Status = corev1.PodStatus{Phase: corev1.PodPending}
		o.now = start.Add(directAfter)
		if change != nil {
			change(o)
		}
		return o
	}
	sick := func(o *observation) { o.node.Status.Conditions[0].Status = corev1.ConditionUnknown }
	for name, test := range map[string]struct {
		o      *observation
		direct bool
	}{
		"a kubelet that does nothing": {stuck(nil), true},
		"not for long yet":            {stuck(func(o *observation) { o.now = start.Add(directAfter - time.Second) }), false},
		"a sick node, soon":           {stuck(func(o *observation) { sick(o); o.now = start.Add(directAfterNotReady) }), true},
		"a sick node, at once":        {stuck(func(o *observation) { sick(o); o.now = start.Add(directAfterNotReady - time.Second) }), false},
		"not a local volume":          {stuck(func(o *observation) { o.claims[0].volume.Spec.Local = nil }), false},
		// Whoever keeps the pod from being created or scheduled may have a reason.
		"no holder":                {stuck(func(o *observation) { o.holder = nil }), false},
		"not scheduled":            {stuck(func(o *observation) { o.holder.Spec.NodeName = "" }), false},
		"somebody else's pod":      {stuck(func(o *observation) { o.holder.OwnerReferences = nil }), false},
		"a holder that goes":       {stuck(func(o *observation) { o.holder.DeletionTimestamp = &metav1.Time{Time: start} }), false},
		"a holder that was killed": {stuck(func(o *observation) { o.holder.Status.Phase = corev1.PodFailed }), false},
	} {
		t.Run(name, func(t *testing.T) {
			d := decide(test.o)
			c := conditionOf(d, v1alpha1.ConditionTargetReady)
			if direct := c.Status == metav1.ConditionTrue && c.Reason == v1alpha1.ReasonAttachedDirectly; direct != test.direct {
				t.Errorf("TargetReady: %+v", c)
			}
			want := ""
			if test.direct {
				want = "/dev/disk/by-id/wwn-1"
			}
			if d.status.Target.LocalPath != want || test.direct && d.status.Target.HolderPodUID != "holder-uid" {
				t.Errorf("target: %+v", d.status.Target)
			}
		})
	}

	for name, change := range map[string]func(*observation){
		"used by another pod": func(o *observation) { o.claims[0].users = []string{"database"} },
		"of another node": func(o *observation) {
			o.claims[0].volume.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"x"}}}}}}}
		},
		"bound to another claim": func(o *observation) { o.claims[0].volume.Spec.ClaimRef.UID = "other" },
	} {
		if d := decide(stuck(change)); d.status.CompletionTime == nil || d.status.Target.LocalPath != "" {
			t.Errorf("%s: taken directly: %+v", name, d.status)
		}
	}
}

// Until the next look a glance leaves the direct way as it is; a holder that comes up after all is the better way.
func TestDirectWayBetweenLooks(t *testing.T) {
	o := fresh()
	o.claims[0].volume.Spec.Local = &corev1.LocalVolumeSource{Path: "/dev/sdx"}
	o.proceed()
	o.withHolder()
	o.holder.Status = corev1.PodStatus{Phase: corev1.PodPending}
	o.now = start.Add(directAfter)
	o.proceed()
	o.whole, o.claims = false, nil
	if d := decide(o); d.weighs(o) || d.status.Target.LocalPath != "/dev/sdx" || !strings.Contains(conditionOf(d, v1alpha1.ConditionTargetReady).Message, "has not started") {
		t.Errorf("at a glance: %+v", d.status)
	}
	o.holder.Status = runningPod()
	if d := decide(o); !d.weighs(o) {
		t.Error("the holder came up, and nobody looks")
	}
}
