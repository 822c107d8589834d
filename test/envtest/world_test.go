// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"

	"livedump.io/api/v1alpha1"
	applyv1alpha1 "livedump.io/api/v1alpha1/applyconfiguration/api/v1alpha1"
)

func stderrLogger() logr.Logger {
	return funcr.New(func(prefix, args string) { fmt.Fprintln(os.Stderr, prefix, args) }, funcr.Options{Verbosity: 1, LogTimestamp: true})
}

// world is one test's node, claim and what plays the node's part. Names are the test's own,
// so that tests do not meet.
type world struct {
	t     *testing.T
	ctx   context.Context
	node  string
	claim string
}

var worlds int

// newWorld has a Ready amd64 node and a claim that is bound to a local volume of it.
func newWorld(t *testing.T) *world {
	t.Helper()
	worlds++
	w := &world{t: t, ctx: t.Context(), node: fmt.Sprintf("node-%d", worlds), claim: fmt.Sprintf("claim-%d", worlds)}
	w.createNode(w.node, nil)
	w.createVolume(w.claim, w.node, "4Gi", corev1.PersistentVolumeBlock)
	w.createClaim(w.claim, corev1.PersistentVolumeBlock)
	w.bind(w.claim)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) createNode(name string, change func(*corev1.Node)) {
	w.t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64"}}}
	w.must(admin.Create(w.ctx, node))
	w.t.Cleanup(func() {
		if err := client.IgnoreNotFound(admin.Delete(context.Background(), node)); err != nil {
			w.t.Error(err)
		}
	})
	node.Status = corev1.NodeStatus{
		Capacity:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("8Gi")},
		NodeInfo:   corev1.NodeSystemInfo{BootID: "boot-1", KernelVersion: "6.1.0-test", OperatingSystem: "linux", Architecture: "amd64"},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}},
	}
	if change != nil {
		change(node)
	}
	w.must(admin.Status().Update(w.ctx, node))
}

func (w *world) updateNode(change func(*corev1.Node)) {
	w.t.Helper()
	node := &corev1.Node{}
	w.must(admin.Get(w.ctx, client.ObjectKey{Name: w.node}, node))
	before := node.DeepCopy()
	change(node)
	w.must(admin.Status().Patch(w.ctx, node, client.MergeFrom(before)))
}

// createVolume makes a local volume, named like the claim that is to have it.
func (w *world) createVolume(name, node, size string, mode corev1.PersistentVolumeMode) {
	w.t.Helper()
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
		Capacity:         corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
		VolumeMode:       &mode,
		AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		StorageClassName: "disks",
		PersistentVolumeSource: corev1.PersistentVolumeSource{
			Local: &corev1.LocalVolumeSource{Path: "/dev/disk/by-id/" + name}},
		NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}},
	}}
	w.must(admin.Create(w.ctx, volume))
}

func (w *world) createClaim(name string, mode corev1.PersistentVolumeMode) {
	w.t.Helper()
	w.must(admin.Create(w.ctx, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: dumpNamespace, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			VolumeMode: &mode, StorageClassName: ptr.To("disks"),
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}},
		}}))
}

// bind does the volume binder's work.
func (w *world) bind(name string) {
	w.t.Helper()
	claim, volume := &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}
	w.must(admin.Get(w.ctx, client.ObjectKey{Namespace: dumpNamespace, Name: name}, claim))
	w.must(admin.Get(w.ctx, client.ObjectKey{Name: name}, volume))
	volume.Spec.ClaimRef = &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: dumpNamespace, Name: name, UID: claim.UID}
	w.must(admin.Update(w.ctx, volume))
	claim.Spec.VolumeName = name
	w.must(admin.Update(w.ctx, claim))
	claim.Status.Phase = corev1.ClaimBound
	w.must(admin.Status().Update(w.ctx, claim))
}

func newDump(namespace, name, node, claim string) *v1alpha1.LiveDump {
	return &v1alpha1.LiveDump{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: v1alpha1.LiveDumpSpec{NodeName: node, TimeoutSeconds: 600,
			Target: v1alpha1.Target{PersistentVolumeClaim: &v1alpha1.PersistentVolumeClaimTarget{ClaimName: claim}}},
	}
}

// create creates a LiveDump of the world's node to its claim, and takes it away with the test.
func (w *world) create(name string, change func(*v1alpha1.LiveDump)) *v1alpha1.LiveDump {
	w.t.Helper()
	dump := newDump(dumpNamespace, name+"-"+w.node, w.node, w.claim)
	if change != nil {
		change(dump)
	}
	w.must(admin.Create(w.ctx, dump))
	w.t.Cleanup(func() { w.finish(dump.Name) })
	return dump
}

// finish takes a LiveDump away whatever the test left of it: the next one must not wait for it.
func (w *world) finish(name string) {
	ctx := context.Background() // the test's own has ended
	dump := &v1alpha1.LiveDump{ObjectMeta: metav1.ObjectMeta{Namespace: dumpNamespace, Name: name}}
	err := admin.Patch(ctx, dump, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`)))
	if err == nil {
		err = admin.Delete(ctx, dump)
	}
	if client.IgnoreNotFound(err) != nil {
		w.t.Error(err)
	}
}

func (w *world) get(dump *v1alpha1.LiveDump) *v1alpha1.LiveDump {
	w.t.Helper()
	fresh := &v1alpha1.LiveDump{}
	w.must(admin.Get(w.ctx, client.ObjectKeyFromObject(dump), fresh))
	return fresh
}

// await polls for a condition by status and, unless it is empty, reason.
func (w *world) await(dump *v1alpha1.LiveDump, conditionType string, status metav1.ConditionStatus, reason string) metav1.Condition {
	w.t.Helper()
	var c *metav1.Condition
	eventually(w.t, func() error {
		fresh := w.get(dump)
		c = meta.FindStatusCondition(fresh.Status.Conditions, conditionType)
		if c == nil || c.Status != status || reason != "" && c.Reason != reason {
			return fmt.Errorf("%s is not %s/%s; conditions: %+v", conditionType, status, reason, fresh.Status.Conditions)
		}
		return nil
	})
	return *c
}

func (w *world) holder(dump *v1alpha1.LiveDump) (*corev1.Pod, error) {
	pods := &corev1.PodList{}
	if err := admin.List(w.ctx, pods, client.InNamespace(dumpNamespace), client.MatchingLabels{"app.kubernetes.io/component": "holder"}); err != nil {
		return nil, err
	}
	for i := range pods.Items {
		if metav1.IsControlledBy(&pods.Items[i], dump) {
			return &pods.Items[i], nil
		}
	}
	return nil, nil
}

// runHolder plays scheduler and kubelet for the holder.
func (w *world) runHolder(dump *v1alpha1.LiveDump) *corev1.Pod {
	w.t.Helper()
	dump = w.get(dump)
	var pod *corev1.Pod
	eventually(w.t, func() error {
		var err error
		if pod, err = w.holder(dump); err != nil {
			return err
		}
		if pod == nil {
			return fmt.Errorf("no holder; conditions: %+v", w.get(dump).Status.Conditions)
		}
		return nil
	})
	w.runPod(pod, dump.Spec.NodeName)
	return pod
}

func (w *world) runPod(pod *corev1.Pod, node string) {
	w.t.Helper()
	if pod.Spec.NodeName == "" {
		w.must(admin.SubResource("binding").Create(w.ctx, pod, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: node}}))
		w.must(admin.Get(w.ctx, client.ObjectKeyFromObject(pod), pod))
	}
	pod.Status.Phase = corev1.PodRunning
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	w.must(admin.Status().Update(w.ctx, pod))
}

// agent is the agent of a node, with the rights that it has on a real one.
type agent struct {
	w      *world
	pod    *corev1.Pod
	client client.Client
	// log is where a process of it logs to, if it matters.
	log *slog.Logger
}

// startAgent plays DaemonSet controller and kubelet, once the node has its label.
func (w *world) startAgent() *agent {
	w.t.Helper()
	w.awaitLabel(true)
	return w.startAgentOn(w.node)
}

func (w *world) startAgentOn(node string) *agent {
	w.t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: releaseNamespace, GenerateName: "agent-" + node + "-", Labels: map[string]string{
			"app.kubernetes.io/name": "livedump", "app.kubernetes.io/instance": release, "app.kubernetes.io/component": "agent"}},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: agentAccount,
			Containers: []corev1.Container{{Name: "agent", Image: "example.test/agent:1"}}},
	}
	w.must(admin.Create(w.ctx, pod))
	a := &agent{w: w, pod: pod}
	w.t.Cleanup(a.kill)
	w.runPod(pod, node)
	a.client = w.tokenClient(&authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID})
	return a
}

// tokenClient has a token of the agent's account, bound to a pod as the kubelet asks for it, or to nothing.
func (w *world) tokenClient(bound *authenticationv1.BoundObjectReference) client.Client {
	w.t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: releaseNamespace, Name: agentAccount}}
	w.must(admin.SubResource("token").Create(w.ctx, account, request))
	config := rest.AnonymousClientConfig(adminConfig)
	config.BearerToken = request.Status.Token
	config.QPS, config.Burst = 200, 400
	c, err := client.New(config, client.Options{Scheme: scheme})
	w.must(err)
	return c
}

// kill takes the pod away at once, as the loss of the process would be seen.
func (a *agent) kill() {
	a.w.t.Helper()
	err := admin.Delete(context.Background(), a.pod, client.GracePeriodSeconds(0))
	if client.IgnoreNotFound(err) != nil {
		a.w.t.Error(err)
	}
}

// report writes the agent's part of the status.
func (a *agent) report(dump *v1alpha1.LiveDump, status *applyv1alpha1.LiveDumpStatusApplyConfiguration) error {
	return a.client.Status().Apply(a.w.ctx, applyv1alpha1.LiveDump(dump.Name, dump.Namespace).WithStatus(status),
		client.FieldOwner("livedump-agent"), client.ForceOwnership)
}

func agentCondition(conditionType string, status metav1.ConditionStatus, reason, message string) *metav1ac.ConditionApplyConfiguration {
	return metav1ac.Condition().WithType(conditionType).WithStatus(status).WithReason(reason).WithMessage(message).
		WithLastTransitionTime(metav1.NewTime(time.Now()))
}

// atWork is what the agent reports as soon as it begins.
func atWork() *applyv1alpha1.LiveDumpStatusApplyConfiguration {
	return applyv1alpha1.LiveDumpStatus().WithSession("11111111-2222-3333-4444-555555555555").WithConditions(
		agentCondition(v1alpha1.ConditionModuleLoaded, metav1.ConditionTrue, "Loaded", "the module is loaded"),
		agentCondition(v1alpha1.ConditionCaptured, metav1.ConditionUnknown, v1alpha1.ReasonRunning, "copying pages"))
}

func complete() *applyv1alpha1.LiveDumpStatusApplyConfiguration {
	return applyv1alpha1.LiveDumpStatus().WithSession("11111111-2222-3333-4444-555555555555").WithConditions(
		agentCondition(v1alpha1.ConditionModuleLoaded, metav1.ConditionTrue, "Loaded", "the module is loaded"),
		agentCondition(v1alpha1.ConditionCaptured, metav1.ConditionTrue, v1alpha1.ReasonComplete, "verified")).
		WithResult(applyv1alpha1.Result().WithFormat("kdump-compressed v6").WithSizeBytes(123456).WithPagesDumped(1000).
			WithPagesLost(0).WithPagesUncovered(0).WithFreezeMicroseconds(900).WithFaults(77).
			WithReserve(applyv1alpha1.ReserveUse().WithPages(4096).WithUsedPages(100)).
			WithSteps(applyv1alpha1.StepDuration().WithName(v1alpha1.StepWrite).WithMilliseconds(1200)).
			WithPagesByClass(applyv1alpha1.PageClassCount().WithClass("Kernel").WithPages(1000).WithDisposition("Dumped")).
			WithSHA256("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"))
}

func gaveUp(reason, message string) *applyv1alpha1.LiveDumpStatusApplyConfiguration {
	return applyv1alpha1.LiveDumpStatus().WithSession("11111111-2222-3333-4444-555555555555").WithConditions(
		agentCondition(v1alpha1.ConditionModuleLoaded, metav1.ConditionTrue, "Loaded", "the module is loaded"),
		agentCondition(v1alpha1.ConditionCaptured, metav1.ConditionFalse, reason, message))
}

// begin brings a LiveDump to where the agent is at work.
func (w *world) begin(dump *v1alpha1.LiveDump) *agent {
	w.t.Helper()
	a := w.startAgent()
	w.runHolder(dump)
	w.await(dump, v1alpha1.ConditionTargetReady, metav1.ConditionTrue, "")
	w.await(dump, v1alpha1.ConditionAgentReady, metav1.ConditionTrue, "")
	w.must(a.report(dump, atWork()))
	w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	return a
}

func (w *world) awaitLabel(present bool) {
	w.t.Helper()
	eventually(w.t, func() error {
		node := &corev1.Node{}
		if err := admin.Get(w.ctx, client.ObjectKey{Name: w.node}, node); err != nil {
			return err
		}
		if value, ok := node.Labels["livedump.io/agent"]; ok != present || present && value != "on-demand" {
			return fmt.Errorf("agent label of node %s: present %v, value %q", w.node, ok, value)
		}
		return nil
	})
}

// awaitReleased polls until the LiveDump that ended holds on to nothing any more.
func (w *world) awaitReleased(dump *v1alpha1.LiveDump) {
	w.t.Helper()
	dump = w.get(dump)
	eventually(w.t, func() error {
		pod, err := w.holder(dump)
		if err != nil {
			return err
		}
		// There is no kubelet to end the pod; that it was asked to is what counts.
		if pod != nil && pod.DeletionTimestamp == nil {
			return errors.New("the holder is still there")
		}
		if fresh := w.get(dump); len(fresh.Finalizers) > 0 {
			return fmt.Errorf("finalizers: %v", fresh.Finalizers)
		}
		return nil
	})
}

func (w *world) awaitGone(dump *v1alpha1.LiveDump) {
	w.t.Helper()
	eventually(w.t, func() error {
		err := admin.Get(w.ctx, client.ObjectKeyFromObject(dump), &v1alpha1.LiveDump{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("LiveDump %s still exists", dump.Name)
		}
		return err
	})
}
