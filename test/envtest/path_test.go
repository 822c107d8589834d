// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
)

// The whole path, with a claim that binds only for the holder.
func TestDumpToAnUnboundClaim(t *testing.T) {
	w := newWorld(t)
	w.claim += "-unbound"
	w.createVolume(w.claim, w.node, "4Gi", corev1.PersistentVolumeBlock)
	w.createClaim(w.claim, corev1.PersistentVolumeBlock)

	dump := w.create("dump", nil)
	w.await(dump, v1alpha1.ConditionAccepted, metav1.ConditionTrue, v1alpha1.ReasonAccepted)
	fresh := w.get(dump)
	set := sets.New[string]()
	for _, c := range fresh.Status.Conditions {
		set.Insert(c.Type)
	}
	if want := sets.New("Accepted", "TargetReady", "AgentReady", "ModuleLoaded", "Captured", "Succeeded"); !set.Equal(want) {
		t.Errorf("conditions after the first reconcile: %v, want %v", set, want)
	}
	if fresh.Status.StartTime == nil || fresh.Status.Node.BootID != "boot-1" || fresh.Status.Node.KernelRelease != "6.1.0-test" || fresh.Status.ObservedGeneration != fresh.Generation {
		t.Errorf("status at acceptance: %+v", fresh.Status)
	}

	pod := w.runHolder(dump)
	if terms := pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms; len(terms) != 1 || terms[0].MatchFields[0].Values[0] != w.node {
		t.Errorf("the holder is not pinned to %s: %+v", w.node, terms)
	}
	if c := w.await(dump, v1alpha1.ConditionTargetReady, metav1.ConditionUnknown, v1alpha1.ReasonTargetNotBound); !strings.Contains(c.Message, "not bound") {
		t.Errorf("message before the claim is bound: %q", c.Message)
	}
	w.bind(w.claim)
	a := w.startAgent()
	w.await(dump, v1alpha1.ConditionTargetReady, metav1.ConditionTrue, "")
	if target := w.get(dump).Status.Target; target.HolderPodUID != string(pod.UID) || target.PersistentVolumeName != w.claim || target.CapacityBytes != 4<<30 {
		t.Errorf("target for the agent: %+v", target)
	}
	w.must(a.report(dump, atWork()))
	w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	w.must(a.report(dump, complete()))
	c := w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionTrue, v1alpha1.ReasonComplete)
	if !strings.Contains(c.Message, "123456 bytes") {
		t.Errorf("message of the end: %q", c.Message)
	}

	// What the agent wrote must outlive the controller's writes, and the other way round.
	ended := w.get(dump)
	if ended.Status.Result == nil || ended.Status.Session == "" || ended.Status.CompletionTime == nil {
		t.Errorf("status at the end: %+v", ended.Status)
	}
	for _, c := range ended.Status.Conditions {
		if c.Status != metav1.ConditionTrue {
			t.Errorf("condition %s is %s (%s: %s) after success", c.Type, c.Status, c.Reason, c.Message)
		}
	}
	w.awaitReleased(dump)
	w.awaitLabel(false)
	w.awaitEvents(ended, "Accepted", "Attached", "AgentReady", "Complete")
	node := &corev1.Node{}
	w.must(admin.Get(w.ctx, client.ObjectKey{Name: w.node}, node))
	w.awaitEventsIn(metav1.NamespaceDefault, node.UID, "LiveDumpAccepted", "LiveDumpSucceeded")
}

func (w *world) awaitEvents(dump *v1alpha1.LiveDump, reasons ...string) {
	w.t.Helper()
	w.awaitEventsIn(dumpNamespace, dump.UID, reasons...)
}

func (w *world) awaitEventsIn(namespace string, regarding types.UID, reasons ...string) {
	w.t.Helper()
	eventually(w.t, func() error {
		list := &eventsv1.EventList{}
		if err := admin.List(w.ctx, list, client.InNamespace(namespace)); err != nil {
			return err
		}
		got := sets.New[string]()
		for _, e := range list.Items {
			if e.Regarding.UID == regarding {
				got.Insert(e.Reason)
			}
		}
		if !got.HasAll(reasons...) {
			return fmt.Errorf("events: %v, want %v", sets.List(got), reasons)
		}
		return nil
	})
}

func TestAgentsFailureIsTheOutcome(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	a := w.begin(dump)
	w.must(a.report(dump, gaveUp(v1alpha1.ReasonReserveExhausted, "the reserve was used up after 12 s")))
	c := w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonReserveExhausted)
	if c.Message != "the reserve was used up after 12 s" {
		t.Errorf("message: %q", c.Message)
	}
	w.awaitReleased(dump)
	w.awaitEvents(w.get(dump), v1alpha1.ReasonReserveExhausted)
}

// The node's only session goes to one LiveDump after the other.
func TestOneDumpPerNode(t *testing.T) {
	w := newWorld(t)
	first := w.create("first", nil)
	a := w.begin(first)

	second := w.claim + "-second"
	w.createVolume(second, w.node, "4Gi", corev1.PersistentVolumeBlock)
	w.createClaim(second, corev1.PersistentVolumeBlock)
	w.bind(second)
	other := w.create("second", func(d *v1alpha1.LiveDump) { d.Spec.Target.PersistentVolumeClaim.ClaimName = second })
	c := w.await(other, v1alpha1.ConditionAccepted, metav1.ConditionUnknown, v1alpha1.ReasonWaitingInLine)
	if !strings.Contains(c.Message, first.Name) {
		t.Errorf("message does not name the LiveDump that has the node: %q", c.Message)
	}
	if fresh := w.get(other); fresh.Status.StartTime != nil {
		t.Error("the time spent in line counts against timeoutSeconds")
	}
	w.must(a.report(first, complete()))
	w.await(first, v1alpha1.ConditionSucceeded, metav1.ConditionTrue, "")
	w.await(other, v1alpha1.ConditionAccepted, metav1.ConditionTrue, v1alpha1.ReasonAccepted)
}

// A second dump to the same claim would overwrite the first, so it does not wait in line.
func TestOneDumpPerClaim(t *testing.T) {
	w := newWorld(t)
	first := w.create("first", nil)
	a := w.begin(first)
	second := w.create("second", nil)
	c := w.await(second, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonTargetInUse)
	if !strings.Contains(c.Message, first.Name) {
		t.Errorf("message does not name the LiveDump that has the claim: %q", c.Message)
	}
	w.must(a.report(first, complete()))
	w.await(first, v1alpha1.ConditionSucceeded, metav1.ConditionTrue, "")
}

// A node that the administrator keeps an agent on keeps it.
func TestResidentAgentStays(t *testing.T) {
	w := newWorld(t)
	w.must(admin.Patch(w.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: w.node}},
		client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"livedump.io/agent":"resident"}}}`))))
	dump := w.create("dump", nil)
	a := w.startAgentOn(w.node)
	w.runHolder(dump)
	w.await(dump, v1alpha1.ConditionTargetReady, metav1.ConditionTrue, "")
	w.must(a.report(dump, atWork()))
	w.must(a.report(dump, complete()))
	w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionTrue, "")
	w.awaitReleased(dump)
	node := &corev1.Node{}
	w.must(admin.Get(w.ctx, client.ObjectKey{Name: w.node}, node))
	if node.Labels["livedump.io/agent"] != "resident" {
		t.Errorf("labels of the node: %v", node.Labels)
	}
}
