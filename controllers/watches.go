// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"livedump.io/api/v1alpha1"
)

// workers is how many LiveDumps, and how many nodes, are reconciled at a time.
const workers = 4

// nodeNameField is the selectable field of LiveDumps.
const nodeNameField = "spec.nodeName"

// Indexes of the cache.
const (
	// activeIndex has the LiveDumps that have not ended, the other two those of a node and of a claim.
	activeIndex      = "active"
	activeIndexValue = "true"
	activeNodeIndex  = "active.node"
	activeClaimIndex = "active.claim"

	podNodeIndex  = "spec.nodeName"
	podClaimIndex = "claim"
)

// index is by what the cache finds objects.
type index struct {
	object client.Object
	field  string
	values client.IndexerFunc
}

var indexes = []index{
	{&v1alpha1.LiveDump{}, nodeNameField, func(o client.Object) []string { return []string{o.(*v1alpha1.LiveDump).Spec.NodeName} }},
	{&v1alpha1.LiveDump{}, activeIndex, active(func(*v1alpha1.LiveDump) []string { return []string{activeIndexValue} })},
	{&v1alpha1.LiveDump{}, activeNodeIndex, active(func(dump *v1alpha1.LiveDump) []string { return []string{dump.Spec.NodeName} })},
	{&v1alpha1.LiveDump{}, activeClaimIndex, active(claimIndexValues)},
	{&corev1.Pod{}, podNodeIndex, func(o client.Object) []string { return []string{o.(*corev1.Pod).Spec.NodeName} }},
	{&corev1.Pod{}, podClaimIndex, func(o client.Object) []string { return claimsOf(o.(*corev1.Pod)) }},
}

func active(values func(*v1alpha1.LiveDump) []string) client.IndexerFunc {
	return func(o client.Object) []string {
		dump := o.(*v1alpha1.LiveDump)
		if dump.Ended() {
			return nil
		}
		return values(dump)
	}
}

// claimIndexValues are the claims of the target, if it has any, with their namespace.
func claimIndexValues(dump *v1alpha1.LiveDump) []string {
	var values []string
	for _, claim := range dump.Spec.Target.Claims() {
		values = append(values, dump.Namespace+"/"+claim.ClaimName)
	}
	return values
}

// CacheOptions keep only what the controller needs: the pods of livedump itself, in the
// namespaces where they may be, and of all objects only what is looked at.
func CacheOptions(config Config) cache.Options {
	holders := labels.SelectorFromSet(labels.Set{ComponentLabel: holderComponent})
	namespaces := map[string]cache.Config{}
	for _, namespace := range config.Namespaces {
		namespaces[namespace] = cache.Config{LabelSelector: holders}
	}
	// Agents are found by a selector of the user's, and holders may be here too.
	namespaces[config.AgentNamespace] = cache.Config{LabelSelector: labels.Everything()}
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:  {Namespaces: namespaces},
			&corev1.Node{}: {Transform: leanNode},
		},
	}
}

// leanNode leaves out what may be large and is never looked at: a node lists all its images.
func leanNode(object any) (any, error) {
	if node, ok := object.(*corev1.Node); ok {
		node.ManagedFields, node.Annotations = nil, nil
		node.Spec = corev1.NodeSpec{}
		node.Status = corev1.NodeStatus{NodeInfo: node.Status.NodeInfo, Conditions: node.Status.Conditions, Capacity: node.Status.Capacity}
	}
	return object, nil
}

// SetupWithManager starts both reconcilers with the manager.
func SetupWithManager(mgr ctrl.Manager, live *LiveDumpReconciler, placement *PlacementReconciler) error {
	if err := live.validate(); err != nil {
		return err
	}
	for _, i := range indexes {
		if err := mgr.GetFieldIndexer().IndexField(context.Background(), i.object, i.field, i.values); err != nil {
			return fmt.Errorf("index %s: %w", i.field, err)
		}
	}
	live.Cache, placement.Cache = mgr.GetCache(), mgr.GetCache()
	dumps := dumpsOf{reader: mgr.GetCache(), maxConcurrent: live.MaxConcurrent}
	options := controller.Options{MaxConcurrentReconciles: workers}
	err := ctrl.NewControllerManagedBy(mgr).Named("livedump").
		For(&v1alpha1.LiveDump{}, builder.WithPredicates(predicate.Funcs{UpdateFunc: steps})).
		// The end of one is the turn of the next.
		Watches(&v1alpha1.LiveDump{}, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			return append(dumps.node(ctx, o.(*v1alpha1.LiveDump).Spec.NodeName), dumps.next(ctx)...)
		}), builder.WithPredicates(predicate.Funcs{
			CreateFunc: func(event.CreateEvent) bool { return false },
			UpdateFunc: func(e event.UpdateEvent) bool {
				return e.ObjectNew.(*v1alpha1.LiveDump).Ended() && !e.ObjectOld.(*v1alpha1.LiveDump).Ended()
			},
		})).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			return dumps.pod(ctx, o.(*corev1.Pod), live)
		}), builder.WithPredicates(predicate.Funcs{UpdateFunc: podChanged})).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			return dumps.node(ctx, o.GetName())
		}), builder.WithPredicates(predicate.Funcs{UpdateFunc: nodeChanged})).
		WithOptions(options).
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
		WithOptions(options).
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
type dumpsOf struct {
	reader        client.Reader
	maxConcurrent int
}

// node lists the LiveDumps of a node that have not ended.
func (d dumpsOf) node(ctx context.Context, name string) []reconcile.Request {
	return requests(d.active(ctx, client.MatchingFields{activeNodeIndex: name}))
}

// next lists the LiveDumps whose turn it may be when another one has ended, if the number of those that run is limited.
func (d dumpsOf) next(ctx context.Context) []reconcile.Request {
	if d.maxConcurrent == 0 {
		return nil
	}
	heads, running := next(d.active(ctx, client.MatchingFields{activeIndex: activeIndexValue}))
	// One more than there is room for, since the cache may be behind.
	return requests(heads[:min(len(heads), max(0, d.maxConcurrent-running)+1)])
}

func (d dumpsOf) active(ctx context.Context, selection client.MatchingFields) []*v1alpha1.LiveDump {
	list := &v1alpha1.LiveDumpList{}
	if err := d.reader.List(ctx, list, selection, client.UnsafeDisableDeepCopy); err != nil {
		return nil // the cache is not there yet; then every LiveDump is looked at anyway
	}
	dumps := make([]*v1alpha1.LiveDump, len(list.Items))
	for i := range list.Items {
		dumps[i] = &list.Items[i]
	}
	return dumps
}

func requests(dumps []*v1alpha1.LiveDump) []reconcile.Request {
	var requests []reconcile.Request
	for _, dump := range dumps {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(dump)})
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
