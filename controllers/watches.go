// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"livedump.io/api/v1alpha1"
)

// nodeNameField is the selectable field of LiveDumps.
const nodeNameField = "spec.nodeName"

// CacheOptions keep only what the watches need: the pods of livedump itself, in the
// namespaces where they may be.
func CacheOptions(config Config) cache.Options {
	own, err := labels.NewRequirement(NameLabel, selection.Exists, nil)
	if err != nil {
		panic(err) // a constant
	}
	namespaces := map[string]cache.Config{config.AgentNamespace: {}}
	for _, namespace := range config.Namespaces {
		namespaces[namespace] = cache.Config{}
	}
	return cache.Options{ByObject: map[client.Object]cache.ByObject{
		&corev1.Pod{}: {Namespaces: namespaces, Label: labels.NewSelector().Add(*own)},
	}}
}

// SetupWithManager starts both reconcilers with the manager.
func SetupWithManager(mgr ctrl.Manager, live *LiveDumpReconciler, placement *PlacementReconciler) error {
	if err := live.validate(); err != nil {
		return err
	}
	dumps := dumpsOf{mgr.GetClient()}
	err := ctrl.NewControllerManagedBy(mgr).Named("livedump").
		For(&v1alpha1.LiveDump{}, builder.WithPredicates(predicate.Funcs{UpdateFunc: steps})).
		// The end of one is the turn of the next.
		Watches(&v1alpha1.LiveDump{}, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			return dumps.node(ctx, o.(*v1alpha1.LiveDump).Spec.NodeName)
		}), builder.WithPredicates(predicate.Funcs{
			CreateFunc: func(event.CreateEvent) bool { return false },
			UpdateFunc: func(e event.UpdateEvent) bool {
				return ended(e.ObjectNew.(*v1alpha1.LiveDump)) && !ended(e.ObjectOld.(*v1alpha1.LiveDump))
			},
		})).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			return dumps.pod(ctx, o.(*corev1.Pod), live)
		}), builder.WithPredicates(predicate.Funcs{UpdateFunc: podChanged})).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			return dumps.node(ctx, o.GetName())
		}), builder.WithPredicates(predicate.Funcs{UpdateFunc: nodeChanged})).
		Complete(live)
	if err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(mgr).Named("placement").
		For(&corev1.Node{}, builder.WithPredicates(predicate.Funcs{
			// At the start only nodes that may have to lose the label; LiveDumps name the others.
			CreateFunc: func(e event.CreateEvent) bool { return e.Object.GetLabels()[AgentLabel] == AgentOnDemand },
			UpdateFunc: func(e event.UpdateEvent) bool {
				return e.ObjectOld.GetLabels()[AgentLabel] != e.ObjectNew.GetLabels()[AgentLabel]
			},
			DeleteFunc: func(event.DeleteEvent) bool { return false },
		})).
		Watches(&v1alpha1.LiveDump{}, handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
			return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: o.(*v1alpha1.LiveDump).Spec.NodeName}}}
		}), builder.WithPredicates(predicate.Funcs{UpdateFunc: steps})).
		Complete(placement)
}

// steps leaves out writes of progress, which come every second.
func steps(e event.UpdateEvent) bool {
	was, is := e.ObjectOld.(*v1alpha1.LiveDump), e.ObjectNew.(*v1alpha1.LiveDump)
	if was.Generation != is.Generation || !equality.Semantic.DeepEqual(was.DeletionTimestamp, is.DeletionTimestamp) {
		return true
	}
	for _, c := range is.Status.Conditions {
		before := condition(was, c.Type)
		if before == nil || before.Status != c.Status || before.Reason != c.Reason {
			return true
		}
	}
	return len(was.Status.Conditions) != len(is.Status.Conditions)
}

func podChanged(e event.UpdateEvent) bool {
	was, is := e.ObjectOld.(*corev1.Pod), e.ObjectNew.(*corev1.Pod)
	return podReady(was) != podReady(is) || podEnded(was) != podEnded(is) || podTrouble(was) != podTrouble(is) || was.Spec.NodeName != is.Spec.NodeName
}

func nodeChanged(e event.UpdateEvent) bool {
	was, is := e.ObjectOld.(*corev1.Node), e.ObjectNew.(*corev1.Node)
	return was.Status.NodeInfo != is.Status.NodeInfo || nodeTrouble(was) != nodeTrouble(is)
}

// dumpsOf finds the LiveDumps that something else concerns.
type dumpsOf struct{ reader client.Reader }

// node lists the LiveDumps of a node that have not ended.
func (d dumpsOf) node(ctx context.Context, name string) []reconcile.Request {
	list := &v1alpha1.LiveDumpList{}
	if err := d.reader.List(ctx, list); err != nil {
		return nil // the cache is not there yet; then every LiveDump is looked at anyway
	}
	var requests []reconcile.Request
	for i := range list.Items {
		if dump := &list.Items[i]; dump.Spec.NodeName == name && !ended(dump) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(dump)})
		}
	}
	return requests
}

// pod finds the owner of a holder, or the LiveDumps of an agent's node.
func (d dumpsOf) pod(ctx context.Context, pod *corev1.Pod, live *LiveDumpReconciler) []reconcile.Request {
	if isHolder(pod) {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: pod.Namespace, Name: metav1.GetControllerOf(pod).Name}}}
	}
	if pod.Namespace == live.AgentNamespace && live.AgentSelector.Matches(labels.Set(pod.Labels)) && pod.Spec.NodeName != "" {
		return d.node(ctx, pod.Spec.NodeName)
	}
	return nil
}
