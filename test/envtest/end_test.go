// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
)

func (w *world) cancel(dump *v1alpha1.LiveDump) {
	w.t.Helper()
	w.must(admin.Patch(w.ctx, dump.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"desiredState":"Cancel"}}`))))
}

func TestCancelBeforeTheAgentBegins(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	a := w.startAgent()
	w.runHolder(dump)
	w.await(dump, v1alpha1.ConditionTargetReady, metav1.ConditionTrue, "")
	w.cancel(dump)
	w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonCanceled)
	w.awaitReleased(dump)
	// An agent that had been about to begin is told that it is too late.
	if err := a.report(dump, atWork()); err == nil || !strings.Contains(err.Error(), "the LiveDump has ended") {
		t.Errorf("the agent's late begin: %v", err)
	}
}

// Once the agent is at work only it can say that memory is thawed.
func TestCancelWaitsForTheAgentAtWork(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	a := w.begin(dump)
	w.cancel(dump)
	w.mustStay(dump, v1alpha1.ReasonRunning)
	w.must(a.report(dump, gaveUp(v1alpha1.ReasonCanceled, "canceled after 10 pages; memory is thawed")))
	c := w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonCanceled)
	if !strings.Contains(c.Message, "thawed") {
		t.Errorf("message: %q", c.Message)
	}
	w.awaitReleased(dump)
}

// mustStay checks, after a change of the spec, that the controller has seen it and did not end the LiveDump.
func (w *world) mustStay(dump *v1alpha1.LiveDump, reason string) {
	w.t.Helper()
	eventually(w.t, func() error {
		if fresh := w.get(dump); fresh.Status.ObservedGeneration != fresh.Generation {
			return errors.New("the controller has not looked yet")
		}
		return nil
	})
	w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionUnknown, reason)
}

func TestDeleteBeforeTheAgentBegins(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	w.runHolder(dump)
	w.must(admin.Delete(w.ctx, dump))
	w.awaitGone(dump)
	w.awaitLabel(false)
}

func TestDeleteCancelsTheAgentAtWork(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	a := w.begin(dump)
	w.must(admin.Delete(w.ctx, dump))
	eventually(t, func() error {
		if w.get(dump).Spec.DesiredState != v1alpha1.DesiredStateCancel {
			return errors.New("the agent was not told to cancel")
		}
		return nil
	})
	w.must(a.report(dump, gaveUp(v1alpha1.ReasonCanceled, "canceled")))
	w.awaitGone(dump)
	w.awaitLabel(false)
}

// The finalizer is released even if nobody is there any more to confirm anything.
func TestDeleteWithADeadAgent(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	a := w.begin(dump)
	a.kill()
	w.must(admin.Delete(w.ctx, dump))
	eventually(t, func() error {
		if w.get(dump).Spec.DesiredState != v1alpha1.DesiredStateCancel {
			return errors.New("not canceled yet")
		}
		return nil
	})
	now.step(61 * time.Second)
	w.awaitGone(dump)
}

func TestDeleteWithTheNodeGone(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	w.begin(dump)
	w.must(admin.Delete(w.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: w.node}}))
	w.must(admin.Delete(w.ctx, dump))
	w.awaitGone(dump)
}

func TestNodeDeletedWhileAtWork(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	w.begin(dump)
	w.must(admin.Delete(w.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: w.node}}))
	w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonNodeNotFound)
	w.await(dump, v1alpha1.ConditionCaptured, metav1.ConditionFalse, v1alpha1.ReasonNodeNotFound)
	w.awaitReleased(dump)
}

func TestNodeRebooted(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	w.begin(dump)
	w.updateNode(func(n *corev1.Node) { n.Status.NodeInfo.BootID = "boot-2" })
	c := w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonNodeRebooted)
	if !strings.Contains(c.Message, "boot-2") || !strings.Contains(c.Message, "boot-1") {
		t.Errorf("message: %q", c.Message)
	}
	w.awaitReleased(dump)
}

// setReady turns the node's readiness, which makes the controller look.
func (w *world) setReady(status corev1.ConditionStatus) {
	w.t.Helper()
	w.updateNode(func(n *corev1.Node) {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, Reason: "Test", Message: "the kubelet is " + string(status)}}
	})
}

func TestTimeouts(t *testing.T) {
	t.Run("node-not-ready", func(t *testing.T) {
		w := newWorld(t)
		w.setReady(corev1.ConditionFalse)
		dump := w.create("dump", nil)
		c := w.await(dump, v1alpha1.ConditionAgentReady, metav1.ConditionUnknown, "")
		if !strings.Contains(c.Message, "is not Ready") {
			t.Errorf("message while waiting: %q", c.Message)
		}
		now.step(601 * time.Second)
		w.setReady(corev1.ConditionUnknown)
		c = w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonNodeNotReady)
		if !strings.Contains(c.Message, "not ended within 600 seconds: waiting for the holder") && !strings.Contains(c.Message, "not ended within 600 seconds: waiting for the claim") {
			t.Errorf("message: %q", c.Message)
		}
		w.awaitReleased(dump)
		w.awaitLabel(false)
	})
	t.Run("no-agent", func(t *testing.T) {
		w := newWorld(t)
		dump := w.create("dump", nil)
		w.runHolder(dump)
		w.await(dump, v1alpha1.ConditionTargetReady, metav1.ConditionTrue, "")
		w.awaitLabel(true)
		now.step(601 * time.Second)
		// An agent pod that does not get ready, which also makes the controller look.
		a := w.startAgentOn(w.node)
		a.pod.Status.Conditions = nil
		a.pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "agent", Image: "i", ImageID: "i",
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}}}
		w.must(admin.Status().Update(w.ctx, a.pod))
		c := w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonDeadlineExceeded)
		if !strings.Contains(c.Message, "waiting for the agent") {
			t.Errorf("message: %q", c.Message)
		}
		w.awaitReleased(dump)
	})
	t.Run("agent-lost", func(t *testing.T) {
		w := newWorld(t)
		dump := w.create("dump", nil)
		a := w.begin(dump)
		now.step(601 * time.Second)
		a.kill()
		w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonAgentLost)
		w.await(dump, v1alpha1.ConditionCaptured, metav1.ConditionFalse, v1alpha1.ReasonAgentLost)
		w.awaitReleased(dump)
	})
	t.Run("agent-too-slow", func(t *testing.T) {
		w := newWorld(t)
		dump := w.create("dump", nil)
		w.begin(dump)
		// After the deadline the agent has some time to report by itself.
		now.step(631 * time.Second)
		w.setReady(corev1.ConditionFalse)
		w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonDeadlineExceeded)
		w.awaitReleased(dump)
	})
}

func TestTTLDeletesTheLiveDump(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", func(d *v1alpha1.LiveDump) { d.Spec.TTLSecondsAfterFinished = new(int32(1)) })
	w.cancel(dump)
	w.awaitGone(dump)
}

// A holder that the kubelet gave up on is made anew.
func TestFailedHolderIsReplaced(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	pod := w.runHolder(dump)
	now.step(11 * time.Second)
	pod.Status = corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted"}
	w.must(admin.Status().Update(w.ctx, pod))
	eventually(t, func() error {
		fresh := &corev1.Pod{}
		if err := admin.Get(w.ctx, client.ObjectKeyFromObject(pod), fresh); err != nil {
			return client.IgnoreNotFound(err)
		}
		if fresh.DeletionTimestamp == nil && fresh.UID == pod.UID {
			return errors.New("the failed holder was not deleted")
		}
		return nil
	})
	// The kubelet's part. There may be none: the API server deletes a failed pod at once, and then the controller may have made the next one.
	if err := admin.Delete(w.ctx, pod, client.GracePeriodSeconds(0), client.Preconditions{UID: &pod.UID}); client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
		t.Fatal(err)
	}
	eventually(t, func() error {
		fresh, err := w.holder(dump)
		if err == nil && (fresh == nil || fresh.UID == pod.UID) {
			err = errors.New("no new holder")
		}
		return err
	})
}

// What keeps the holder from being created is the user's to mend, so it is told on the LiveDump;
// the agent's words may be longer than an event takes.
func TestEventsOfTrouble(t *testing.T) {
	w := newWorld(t)
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: dumpNamespace, Name: "no-pods"},
		Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}}}
	w.must(admin.Create(w.ctx, quota))
	quota.Status.Hard = quota.Spec.Hard
	quota.Status.Used = corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}
	w.must(admin.Status().Update(w.ctx, quota))
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(admin.Delete(context.Background(), quota)); err != nil {
			t.Error(err)
		}
	})
	// The quota is in force once the API server has seen it.
	eventually(t, func() error {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: dumpNamespace, Name: "probe"}, Spec: userPodSpec("c")}
		if err := admin.Create(w.ctx, pod, client.DryRunAll); err == nil || !strings.Contains(err.Error(), "quota") {
			return fmt.Errorf("no quota yet: %v", err)
		}
		return nil
	})
	dump := w.create("dump", nil)
	w.awaitEvents(dump, "HolderNotCreated")
	w.must(admin.Delete(w.ctx, quota))

	a := w.begin(dump)
	w.must(a.report(dump, gaveUp(v1alpha1.ReasonIOError, strings.Repeat("é", 2000))))
	w.awaitEvents(dump, v1alpha1.ReasonIOError)
}

// An agent's word is checked where it can be.
func TestImpossibleReports(t *testing.T) {
	for name, size := range map[string]int64{"no-result": 0, "larger-than-the-target": 5 << 30} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dump := w.create("dump", nil)
			a := w.begin(dump)
			status := complete()
			if size == 0 {
				status.Result = nil
			} else {
				status.Result.WithSizeBytes(size)
			}
			w.must(a.report(dump, status))
			w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonInternalError)
		})
	}
}
