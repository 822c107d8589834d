// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"testing"

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
	o := fresh()
	o.proceed()
	o.withHolder().proceed()
	o.dump.Spec.DesiredState = v1alpha1.DesiredStateCancel
	o.dump.Finalizers = []string{Finalizer}
	o.claims[0].claim.Namespace, o.holder.Namespace = "dumps", "dumps"

	begins := true
	r := reconcilerOf(t, o, interceptor.Funcs{
		SubResourceApply: func(ctx context.Context, c client.Client, sub string, apply runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
			if begins {
				begins = false
				agentWrites(t, c, o.dump)
			}
			return c.SubResource(sub).Apply(ctx, apply, opts...)
		},
	})
	result, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(o.dump)})
	if err != nil || result.RequeueAfter != conflictRetry {
		t.Errorf("after a lost race: %+v, %v", result, err)
	}
	dump := &v1alpha1.LiveDump{}
	if err := r.Reader.Get(t.Context(), client.ObjectKeyFromObject(o.dump), dump); err != nil {
		t.Fatal(err)
	}
	if dump.Ended() || !dump.Begun() {
		t.Errorf("the controller ended a LiveDump that the agent has begun: %+v", dump.Status.Conditions)
	}
	if begins {
		t.Error("the agent never began: the test shows nothing")
	}
}

// An agent that writes during every look must not keep the controller from ever writing.
func TestWritesOfTheAgentDoNotStarveTheController(t *testing.T) {
	o := running()
	o.dump.Finalizers = []string{Finalizer}
	o.claims[0].claim.Namespace, o.holder.Namespace = "dumps", "dumps"
	writes := 0
	r := reconcilerOf(t, o, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			agentWrites(t, c, o.dump)
			writes++
			return c.List(ctx, list, opts...)
		},
	})
	if _, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(o.dump)}); err != nil {
		t.Fatal(err)
	}
	dump := &v1alpha1.LiveDump{}
	if err := r.Reader.Get(t.Context(), client.ObjectKeyFromObject(o.dump), dump); err != nil {
		t.Fatal(err)
	}
	if c := condition(dump, v1alpha1.ConditionSucceeded); c == nil || c.Reason != v1alpha1.ReasonRunning || writes == 0 {
		t.Errorf("after %d writes of the agent: %+v", writes, c)
	}
}

// reconcilerOf reconciles what was observed, on a fake API server.
func reconcilerOf(t *testing.T, o *observation, funcs interceptor.Funcs) *LiveDumpReconciler {
	t.Helper()
	return reconcilerOn(t, funcs, o.dump, o.node, o.claims[0].claim, o.claims[0].volume, o.holder)
}

func reconcilerOn(t *testing.T, funcs interceptor.Funcs, objects ...client.Object) *LiveDumpReconciler {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	builder := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.LiveDump{}).WithInterceptorFuncs(funcs)
	for _, i := range indexes {
		builder.WithIndex(i.object, i.field, i.values)
	}
	for _, object := range objects {
		builder.WithObjects(object)
	}
	c := builder.Build()
	selector, err := labels.Parse(ComponentLabel + "=agent")
	if err != nil {
		t.Fatal(err)
	}
	return &LiveDumpReconciler{
		Config: Config{Namespaces: []string{"dumps"}, AgentNamespace: "livedump-system", AgentSelector: selector, HolderImage: "image"},
		Client: c, Reader: c, Recorder: events.NewFakeRecorder(10), Clock: clocktesting.NewFakePassiveClock(start),
	}
}

// agentWrites is a write of the agent at work.
func agentWrites(t *testing.T, c client.Client, name *v1alpha1.LiveDump) {
	t.Helper()
	dump := &v1alpha1.LiveDump{}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(name), dump); err != nil {
		t.Fatal(err)
	}
	agent := &observation{dump: dump}
	agent.report(metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	dump.Status.Progress.PagesWritten++
	if err := c.Status().Update(t.Context(), dump); err != nil {
		t.Fatal(err)
	}
}
