// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
)

// What can never succeed ends at once, before anything is created or touched for it.
func TestRefusals(t *testing.T) {
	tests := []struct {
		name    string
		arrange func(w *world)
		change  func(*v1alpha1.LiveDump)
		reason  string
		message string
	}{
		{name: "node-missing", change: func(d *v1alpha1.LiveDump) { d.Spec.NodeName = "no-such-node" },
			reason: v1alpha1.ReasonNodeNotFound, message: "node no-such-node does not exist"},
		{name: "node-arm64", arrange: func(w *world) {
			w.updateNode(func(n *corev1.Node) { n.Status.NodeInfo.Architecture = "arm64" })
		}, reason: v1alpha1.ReasonUnsupportedNode, message: "has architecture arm64; only amd64 can be dumped"},
		{name: "node-windows", arrange: func(w *world) {
			w.updateNode(func(n *corev1.Node) { n.Status.NodeInfo.OperatingSystem = "windows" })
		}, reason: v1alpha1.ReasonUnsupportedNode, message: "runs windows; only linux can be dumped"},
		{name: "claim-missing", change: func(d *v1alpha1.LiveDump) { d.Spec.Target.PersistentVolumeClaim.ClaimName = "no-such-claim" },
			reason: v1alpha1.ReasonTargetNotFound, message: "claim no-such-claim does not exist in namespace dumps"},
		{name: "path-in-a-device", change: func(d *v1alpha1.LiveDump) { d.Spec.Target.PersistentVolumeClaim.Path = "a/b.kdump" },
			reason: v1alpha1.ReasonTargetWrongMode, message: "there is no path in it"},
		{name: "elf-on-a-device", change: func(d *v1alpha1.LiveDump) { d.Spec.Format = v1alpha1.FormatELF },
			reason: v1alpha1.ReasonTargetWrongMode, message: "can only be Kdump"},
		{name: "claim-small", arrange: func(w *world) {
			w.claim += "-small"
			w.createVolume(w.claim, w.node, "16Mi", corev1.PersistentVolumeBlock)
			w.createClaim(w.claim, corev1.PersistentVolumeBlock)
			w.bind(w.claim)
		}, reason: v1alpha1.ReasonTargetTooSmall, message: "has 16Mi bytes; a dump of node"},
		{name: "claim-of-another-node", arrange: func(w *world) {
			w.claim += "-far"
			w.createVolume(w.claim, "elsewhere", "4Gi", corev1.PersistentVolumeBlock)
			w.createClaim(w.claim, corev1.PersistentVolumeBlock)
			w.bind(w.claim)
		}, reason: v1alpha1.ReasonTargetWrongNode, message: "not reachable from node"},
		{name: "claim-terminating", arrange: func(w *world) {
			claim := &corev1.PersistentVolumeClaim{}
			w.must(admin.Get(w.ctx, client.ObjectKey{Namespace: dumpNamespace, Name: w.claim}, claim))
			claim.Finalizers = append(claim.Finalizers, "example.test/hold")
			w.must(admin.Update(w.ctx, claim))
			w.must(admin.Delete(w.ctx, claim))
		}, reason: v1alpha1.ReasonTargetNotFound, message: "is being deleted"},
		{name: "claim-lost", arrange: func(w *world) {
			claim := &corev1.PersistentVolumeClaim{}
			w.must(admin.Get(w.ctx, client.ObjectKey{Namespace: dumpNamespace, Name: w.claim}, claim))
			claim.Status.Phase = corev1.ClaimLost
			w.must(admin.Status().Update(w.ctx, claim))
		}, reason: v1alpha1.ReasonTargetInvalid, message: "has lost its volume"},
		{name: "claim-in-use", arrange: func(w *world) { w.createUser("database", "") },
			reason: v1alpha1.ReasonTargetInUse, message: "used by pod database"},
		{name: "one-of-several-missing", change: func(d *v1alpha1.LiveDump) {
			splitAmong(d, d.Spec.Target.PersistentVolumeClaim.ClaimName, "no-such-claim")
		},
			reason: v1alpha1.ReasonTargetNotFound, message: "claim no-such-claim does not exist in namespace dumps"},
		{name: "one-of-several-of-another-node", arrange: func(w *world) {
			w.createVolume(w.claim+"-far-part", "elsewhere", "4Gi", corev1.PersistentVolumeBlock)
			w.createClaim(w.claim+"-far-part", corev1.PersistentVolumeBlock)
			w.bind(w.claim + "-far-part")
		}, change: func(d *v1alpha1.LiveDump) {
			one := d.Spec.Target.PersistentVolumeClaim.ClaimName
			splitAmong(d, one, one+"-far-part")
		}, reason: v1alpha1.ReasonTargetWrongNode, message: "-far-part is bound to volume"},
		{name: "one-of-several-small", arrange: func(w *world) {
			w.createVolume(w.claim+"-small-part", w.node, "1Mi", corev1.PersistentVolumeBlock)
			w.createClaim(w.claim+"-small-part", corev1.PersistentVolumeBlock)
			w.bind(w.claim + "-small-part")
		}, change: func(d *v1alpha1.LiveDump) {
			one := d.Spec.Target.PersistentVolumeClaim.ClaimName
			splitAmong(d, one, one+"-small-part")
		}, reason: v1alpha1.ReasonTargetTooSmall, message: "-small-part has 1Mi bytes; any part of a dump of node"},
		{name: "one-of-several-in-use", arrange: func(w *world) {
			w.anotherClaim("free-part")
			w.createUser("database-part", "")
		}, change: func(d *v1alpha1.LiveDump) {
			one := d.Spec.Target.PersistentVolumeClaim.ClaimName
			splitAmong(d, one+"-free-part", one)
		}, reason: v1alpha1.ReasonTargetInUse, message: "used by pod database-part"},
		{name: "canceled-from-the-start", change: func(d *v1alpha1.LiveDump) { d.Spec.DesiredState = v1alpha1.DesiredStateCancel },
			reason: v1alpha1.ReasonCanceled, message: "nothing was written"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			if test.arrange != nil {
				test.arrange(w)
			}
			dump := w.create(test.name, test.change)
			c := w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, "")
			if c.Reason != test.reason || !strings.Contains(c.Message, test.message) {
				t.Errorf("ended with %s: %q, want %s: %q", c.Reason, c.Message, test.reason, test.message)
			}
			ended := w.get(dump)
			if len(ended.Status.Conditions) != 6 {
				t.Errorf("not all conditions are set: %+v", ended.Status.Conditions)
			}
			for _, c := range ended.Status.Conditions {
				if c.Status == metav1.ConditionUnknown {
					t.Errorf("condition %s is still Unknown after the end", c.Type)
				}
			}
			if ended.Status.StartTime != nil || ended.Status.CompletionTime == nil {
				t.Errorf("startTime %v, completionTime %v", ended.Status.StartTime, ended.Status.CompletionTime)
			}
			w.awaitReleased(dump)
			if pod, err := w.holder(ended); err != nil || pod != nil {
				t.Errorf("a holder was created: %v %v", pod, err)
			}
			node := &corev1.Node{}
			w.must(admin.Get(w.ctx, client.ObjectKey{Name: w.node}, node))
			if _, labelled := node.Labels["livedump.io/agent"]; labelled {
				t.Error("the agent was asked to the node")
			}
		})
	}
}

// A pod that used the claim and ended does not keep it.
func TestEndedPodDoesNotKeepTheClaim(t *testing.T) {
	w := newWorld(t)
	w.createUser("finished", corev1.PodSucceeded)
	dump := w.create("dump", nil)
	w.await(dump, v1alpha1.ConditionAccepted, metav1.ConditionTrue, "")
}

// Another pod may take the claim after acceptance; the agent must not begin then.
func TestClaimTakenBeforeTheAgentBegins(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	w.await(dump, v1alpha1.ConditionAccepted, metav1.ConditionTrue, "")
	w.createUser("late", "")
	w.runHolder(dump)
	w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonTargetInUse)
	w.awaitReleased(dump)
}

// createUser makes a pod with the world's claim.
func (w *world) createUser(name string, phase corev1.PodPhase) {
	w.t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: dumpNamespace, Name: name}, Spec: userPodSpec(w.claim)}
	w.must(admin.Create(w.ctx, pod))
	w.t.Cleanup(func() {
		if err := client.IgnoreNotFound(admin.Delete(context.Background(), pod, client.GracePeriodSeconds(0))); err != nil {
			w.t.Error(err)
		}
	})
	if phase != "" {
		pod.Status.Phase = phase
		w.must(admin.Status().Update(w.ctx, pod))
	}
}

// userPodSpec is a pod with a block claim, by the rules of the namespace.
func userPodSpec(claim string) corev1.PodSpec {
	return corev1.PodSpec{
		SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: new(true), RunAsUser: new(int64(1000)),
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
		Containers: []corev1.Container{{Name: "c", Image: "example.test/c:1",
			SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
			VolumeDevices:   []corev1.VolumeDevice{{Name: "d", DevicePath: "/dev/x"}}}},
		Volumes: []corev1.Volume{{Name: "d", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}},
	}
}
