// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"livedump.io/api/v1alpha1"
)

// What a LiveDump holds on to is given back though no controller does it; what is not its own stays.
func TestUninstallTakesHoldersBack(t *testing.T) {
	forbidden := apierrors.NewForbidden(corev1.Resource("pods"), "holder", nil)
	tests := map[string]struct {
		change func(o *observation)
		funcs  interceptor.Funcs
		stays  bool
	}{
		"agent at work": {change: func(*observation) {}},
		"ended, and the controller came no further": {change: func(o *observation) {
			o.dump.Status = endedStatus(o, keptFindings(o.dump), *failure(v1alpha1.ReasonIOError, "an I/O error"))
		}},
		"a pod of somebody else has the name": {stays: true, change: func(o *observation) { o.holder.OwnerReferences = nil }},
		"no right to look at pods": {stays: true, change: func(*observation) {}, funcs: interceptor.Funcs{
			Get: func(ctx context.Context, c client.WithWatch, name client.ObjectKey, into client.Object, opts ...client.GetOption) error {
				if _, ok := into.(*corev1.Pod); ok {
					return forbidden
				}
				return c.Get(ctx, name, into, opts...)
			}}},
		"no right to delete pods": {stays: true, change: func(*observation) {}, funcs: interceptor.Funcs{
			Delete: func(context.Context, client.WithWatch, client.Object, ...client.DeleteOption) error { return forbidden }}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			o := running()
			o.dump.Finalizers = []string{Finalizer}
			o.claims[0].claim.Namespace, o.holder.Namespace = o.dump.Namespace, o.dump.Namespace
			test.change(o)
			r := reconcilerOf(t, o, test.funcs)
			u := &Uninstaller{Client: r.Client, Clock: clocktesting.NewFakePassiveClock(start), Patience: time.Minute}
			if err := u.release(t.Context()); err != nil {
				t.Fatal(err)
			}
			dump := &v1alpha1.LiveDump{}
			if err := r.Client.Get(t.Context(), client.ObjectKeyFromObject(o.dump), dump); err != nil {
				t.Fatal(err)
			}
			if c := condition(dump, v1alpha1.ConditionSucceeded); c == nil || c.Status != metav1.ConditionFalse || len(dump.Finalizers) > 0 {
				t.Errorf("Succeeded is %+v, finalizers %v", c, dump.Finalizers)
			}
			if c := condition(dump, v1alpha1.ConditionSucceeded); c.Reason == v1alpha1.ReasonCanceled && !strings.HasSuffix(c.Message, unknownTarget) {
				t.Errorf("of a target that the agent was writing to: %q", c.Message)
			}
			pods := &corev1.PodList{}
			if err := r.Client.List(t.Context(), pods); err != nil {
				t.Fatal(err)
			}
			if stays := len(pods.Items) == 1; stays != test.stays {
				t.Errorf("the pod stays: %v, want %v", stays, test.stays)
			}
		})
	}
}
