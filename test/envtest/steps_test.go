// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
)

// steps bring a LiveDump to a point on its way at which no agent is at work.
var steps = map[string]func(w *world) *v1alpha1.LiveDump{
	"in line": func(w *world) *v1alpha1.LiveDump {
		w.begin(w.create("first", nil))
		dump := w.create("dump", func(d *v1alpha1.LiveDump) { d.Spec.Target.PersistentVolumeClaim.ClaimName = w.anotherClaim("line") })
		w.await(dump, v1alpha1.ConditionAccepted, metav1.ConditionUnknown, v1alpha1.ReasonWaitingInLine)
		return dump
	},
	"claim not bound": func(w *world) *v1alpha1.LiveDump {
		w.claim += "-unbound"
		w.createClaim(w.claim, corev1.PersistentVolumeBlock)
		dump := w.create("dump", nil)
		w.await(dump, v1alpha1.ConditionTargetReady, metav1.ConditionUnknown, v1alpha1.ReasonTargetNotBound)
		return dump
	},
	"holder not scheduled": func(w *world) *v1alpha1.LiveDump {
		dump := w.create("dump", nil)
		w.awaitHolder(dump)
		return dump
	},
	"holder not running": func(w *world) *v1alpha1.LiveDump {
		dump := w.create("dump", nil)
		w.schedule(w.awaitHolder(dump))
		return dump
	},
	"no agent": func(w *world) *v1alpha1.LiveDump {
		dump := w.create("dump", nil)
		w.runHolder(dump)
		w.await(dump, v1alpha1.ConditionTargetReady, metav1.ConditionTrue, "")
		return dump
	},
	"node not ready": func(w *world) *v1alpha1.LiveDump {
		w.setReady(corev1.ConditionUnknown)
		dump := w.create("dump", nil)
		w.awaitHolder(dump)
		return dump
	},
	"agent ready": func(w *world) *v1alpha1.LiveDump {
		dump := w.create("dump", nil)
		w.startAgent()
		w.runHolder(dump)
		w.await(dump, v1alpha1.ConditionAgentReady, metav1.ConditionTrue, "")
		return dump
	},
}

func TestCancelAtEveryStep(t *testing.T) {
	for name, reach := range steps {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dump := reach(w)
			w.cancel(dump)
			c := w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonCanceled)
			if !strings.Contains(c.Message, "nothing was written") {
				t.Errorf("message: %q", c.Message)
			}
			w.awaitReleased(dump)
		})
	}
}

func TestDeleteAtEveryStep(t *testing.T) {
	for name, reach := range steps {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dump := reach(w)
			w.must(admin.Delete(w.ctx, dump.DeepCopy()))
			w.awaitGone(dump)
			if pod, err := w.holder(dump); err != nil || pod != nil && pod.DeletionTimestamp == nil {
				t.Errorf("the holder: %v, %v", pod, err)
			}
		})
	}
}

// anotherClaim is one more that is bound to a volume of the node.
func (w *world) anotherClaim(suffix string) string {
	w.t.Helper()
	name := w.claim + "-" + suffix
	w.createVolume(name, w.node, "4Gi", corev1.PersistentVolumeBlock)
	w.createClaim(name, corev1.PersistentVolumeBlock)
	w.bind(name)
	return name
}

// schedule plays the scheduler only: the kubelet does nothing.
func (w *world) schedule(pod *corev1.Pod) {
	w.t.Helper()
	w.must(admin.SubResource("binding").Create(w.ctx, pod, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: w.node}}))
}

// Everyone in line is told the place, and it moves up.
func TestPlacesInLine(t *testing.T) {
	w := newWorld(t)
	first := w.create("first", nil)
	a := w.begin(first)
	var line []*v1alpha1.LiveDump
	place := func(dump *v1alpha1.LiveDump, want int32, message string) {
		t.Helper()
		eventually(t, func() error {
			fresh := w.get(dump)
			c := w.await(dump, v1alpha1.ConditionAccepted, metav1.ConditionUnknown, v1alpha1.ReasonWaitingInLine)
			if fresh.Status.PlaceInLine != want || !strings.Contains(c.Message, message) {
				return fmt.Errorf("%s has place %d: %q; want %d: %q", dump.Name, fresh.Status.PlaceInLine, c.Message, want, message)
			}
			return nil
		})
	}
	for i := range 3 {
		claim := w.anotherClaim(fmt.Sprint(i))
		dump := w.create(fmt.Sprintf("line-%d", i), func(d *v1alpha1.LiveDump) { d.Spec.Target.PersistentVolumeClaim.ClaimName = claim })
		w.await(dump, v1alpha1.ConditionAccepted, metav1.ConditionUnknown, v1alpha1.ReasonWaitingInLine)
		line = append(line, w.get(dump))
	}
	// Times of creation have seconds only; those of one second are in the order of their UIDs.
	slices.SortFunc(line, func(a, b *v1alpha1.LiveDump) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.UID, b.UID))
	})
	w.cancel(line[1])
	w.await(line[1], v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonCanceled)
	place(line[0], 1, "place 1 in line")
	place(line[2], 2, "waiting for LiveDump dumps/"+first.Name)
	w.must(a.report(first, complete()))
	w.await(line[0], v1alpha1.ConditionAccepted, metav1.ConditionTrue, "")
	if got := w.get(line[0]).Status.PlaceInLine; got != 0 {
		t.Errorf("one that begins has place %d", got)
	}
	place(line[2], 1, "waiting for LiveDump dumps/"+line[0].Name)
}

// On a node whose kubelet starts no pods the agent is given the path of the local volume.
func TestDirectWay(t *testing.T) {
	w := newWorld(t)
	w.setReady(corev1.ConditionUnknown)
	dump := w.create("dump", nil)
	pod := w.awaitHolder(dump)
	w.schedule(pod)
	now.step(6 * time.Second)
	w.setReady(corev1.ConditionFalse) // makes the controller look
	now.step(11 * time.Second)
	w.setReady(corev1.ConditionUnknown)
	w.await(dump, v1alpha1.ConditionTargetReady, metav1.ConditionTrue, v1alpha1.ReasonAttachedDirectly)
	want := v1alpha1.TargetStatus{PersistentVolumeName: w.claim, CapacityBytes: 4 << 30, VolumeMode: v1alpha1.VolumeModeBlock,
		HolderPodUID: string(pod.UID), LocalPath: "/dev/disk/by-id/" + w.claim}
	if got := w.get(dump).Status.Target; !equality.Semantic.DeepEqual(got, want) {
		t.Errorf("target %+v, want %+v", got, want)
	}
	// The agent of such a node is not Ready either, and works all the same.
	a := w.startAgentOn(w.node)
	w.must(a.report(dump, atWork()))
	w.must(a.report(dump, complete()))
	w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionTrue, v1alpha1.ReasonComplete)
	w.awaitReleased(dump)
}

// A holder that is evicted while the agent is at work is made anew, and an agent that takes over is told of it.
func TestHolderEvictedWhileAtWork(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	a := w.begin(dump)
	pod, err := w.holder(dump)
	w.must(err)
	w.must(admin.Delete(w.ctx, pod, client.GracePeriodSeconds(0)))
	var again *corev1.Pod
	eventually(t, func() error {
		if again, err = w.holder(dump); err == nil && (again == nil || again.UID == pod.UID) {
			err = errors.New("no new holder")
		}
		return err
	})
	w.runPod(again, w.node)
	eventually(t, func() error {
		if uid := w.get(dump).Status.Target.HolderPodUID; uid != string(again.UID) {
			return fmt.Errorf("holder %s, want %s", uid, again.UID)
		}
		return nil
	})
	w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	w.must(a.report(dump, complete()))
	w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionTrue, v1alpha1.ReasonComplete)
	w.awaitReleased(dump)
}

func (w *world) deleteClaim() {
	w.t.Helper()
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: dumpNamespace, Name: w.claim}}
	w.must(admin.Delete(w.ctx, claim))
}

func TestClaimDeletedBeforeTheAgentBegins(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	w.awaitHolder(dump)
	w.deleteClaim()
	w.runHolder(dump)
	c := w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonTargetNotFound)
	if !strings.Contains(c.Message, "claim "+w.claim) {
		t.Errorf("message: %q", c.Message)
	}
	w.awaitReleased(dump)
}

// The agent has the device open, and the claim's finalizer waits for the holder.
func TestClaimDeletedWhileAtWork(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	a := w.begin(dump)
	w.deleteClaim()
	w.setReady(corev1.ConditionFalse) // makes the controller look
	w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	w.must(a.report(dump, complete()))
	w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionTrue, v1alpha1.ReasonComplete)
	w.awaitReleased(dump)
}

// Also on different nodes two dumps to one claim would overwrite each other.
func TestOneDumpPerClaimOnTwoNodes(t *testing.T) {
	w := newWorld(t)
	first := w.create("first", nil)
	w.begin(first)
	w.createNode(w.node+"-b", nil)
	second := w.create("second", func(d *v1alpha1.LiveDump) { d.Spec.NodeName += "-b" })
	c := w.await(second, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonTargetInUse)
	if !strings.Contains(c.Message, first.Name) {
		t.Errorf("message: %q", c.Message)
	}
}

// A node that was taken over must not get at what others keep secret.
func TestAgentReachesNoSecrets(t *testing.T) {
	w := newWorld(t)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: dumpNamespace, Name: "secret-of-" + w.node}}
	w.must(admin.Create(w.ctx, secret))
	a := w.startAgentOn(w.node)
	token := a.client
	wantForbidden(t, token.Get(w.ctx, client.ObjectKeyFromObject(secret), &corev1.Secret{}), "cannot get")
	wantForbidden(t, token.Delete(w.ctx, secret), "cannot delete")
	wantForbidden(t, token.Create(w.ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: dumpNamespace, Name: "x"}}), "cannot create")
	// Nor may it ask for a token of somebody who can.
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: releaseNamespace, Name: controllerAccount}}
	wantForbidden(t, token.SubResource("token").Create(w.ctx, account, &authenticationv1.TokenRequest{}), "cannot create")
	wantForbidden(t, token.Create(w.ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: dumpNamespace, Name: "x"}, Spec: userPodSpec("c")}), "cannot create")
}
