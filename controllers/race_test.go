// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"livedump.io/api/v1alpha1"
)

// The user cancels and, between the controller's look and its verdict that the agent has
// not begun, the agent begins. The verdict must not stand, for memory is frozen now.
func TestAgentBeginsBetweenLookAndVerdict(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	o := fresh()
	o.proceed()
	o.withHolder().proceed()
	o.dump.Spec.DesiredState = v1alpha1.DesiredStateCancel
	o.dump.Finalizers = []string{Finalizer}
	o.claim.Namespace, o.holder.Namespace = "dumps", "dumps"

	begins := true
	c := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.LiveDump{}).
		WithIndex(&corev1.Pod{}, "spec.nodeName", func(object client.Object) []string { return []string{object.(*corev1.Pod).Spec.NodeName} }).
		WithObjects(o.dump, o.node, o.claim, o.volume, o.holder).
		WithInterceptorFuncs(interceptor.Funcs{
			SubResourceApply: func(ctx context.Context, c client.Client, sub string, apply runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
				if begins {
					begins = false
					dump := &v1alpha1.LiveDump{}
					if err := c.Get(ctx, client.ObjectKeyFromObject(o.dump), dump); err != nil {
						return err
					}
					agent := &observation{dump: dump}
					agent.report(metav1.ConditionUnknown, v1alpha1.ReasonRunning)
					if err := c.Status().Update(ctx, dump); err != nil {
						return err
					}
				}
				return c.SubResource(sub).Apply(ctx, apply, opts...)
			},
		}).Build()
	selector, err := labels.Parse(ComponentLabel + "=agent")
	if err != nil {
		t.Fatal(err)
	}
	r := &LiveDumpReconciler{
		Config: Config{Namespaces: []string{"dumps"}, AgentNamespace: "livedump-system", AgentSelector: selector, HolderImage: "image"},
		Client: c, Reader: c, Recorder: events.NewFakeRecorder(10), Clock: clocktesting.NewFakePassiveClock(start),
	}
	result, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(o.dump)})
	if err != nil || result.RequeueAfter != conflictRetry {
		t.Errorf("after a lost race: %+v, %v", result, err)
	}
	dump := &v1alpha1.LiveDump{}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(o.dump), dump); err != nil {
		t.Fatal(err)
	}
	if ended(dump) || !begun(dump) {
		t.Errorf("the controller ended a LiveDump that the agent has begun: %+v", dump.Status.Conditions)
	}
	if begins {
		t.Error("the agent never began: the test shows nothing")
	}
}
