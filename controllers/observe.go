// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
)

// observation is all that a decision about one LiveDump rests on. What does not exist is nil.
type observation struct {
	now  time.Time
	dump *v1alpha1.LiveDump

	namespaceAllowed bool
	agentNamespace   string

	node   *corev1.Node
	claim  *corev1.PersistentVolumeClaim
	volume *corev1.PersistentVolume
	// claimUsers are the names of pods, holders aside, that use the claim.
	claimUsers []string
	// holder is the pod by the name of this LiveDump's holder, whoever owns it.
	holder *corev1.Pod
	// agent is the agent's pod on the node, a ready one if there are several.
	agent *corev1.Pod
	// others are all other LiveDumps, of any node and namespace.
	others []v1alpha1.LiveDump
}

// observe reads the LiveDump by this name and all around it.
// It returns nil if the LiveDump does not exist.
func (r *LiveDumpReconciler) observe(ctx context.Context, name types.NamespacedName) (*observation, error) {
	dump, err := get(ctx, r.Reader, name, &v1alpha1.LiveDump{})
	if err != nil {
		return nil, fmt.Errorf("reading LiveDump: %w", err)
	}
	if dump == nil {
		return nil, nil
	}
	o := &observation{
		dump:             dump,
		namespaceAllowed: slices.Contains(r.Namespaces, dump.Namespace),
		agentNamespace:   r.AgentNamespace,
	}
	reads := []func(context.Context, *observation) error{r.observeOthers, r.observeNode}
	if o.namespaceAllowed {
		// In other namespaces the controller has no rights to look.
		reads = append(reads, r.observeTarget, r.observeHolder)
	}
	for _, read := range reads {
		if err := read(ctx, o); err != nil {
			return nil, err
		}
	}
	// Once more, and last: an agent at work writes every second, and on a busy node the reads
	// above may take longer. Were the LiveDump as old as the first of them, every write of the
	// controller would come too late.
	latest, err := get(ctx, r.Reader, name, &v1alpha1.LiveDump{})
	if err != nil {
		return nil, fmt.Errorf("reading LiveDump: %w", err)
	}
	if latest == nil {
		return nil, nil
	}
	if latest.UID != dump.UID {
		return nil, fmt.Errorf("LiveDump %s was created anew while it was looked at", name)
	}
	o.dump, o.now = latest, r.Clock.Now()
	return o, nil
}

func (r *LiveDumpReconciler) observeOthers(ctx context.Context, o *observation) error {
	list := &v1alpha1.LiveDumpList{}
	if err := r.Reader.List(ctx, list); err != nil {
		return fmt.Errorf("listing LiveDumps: %w", err)
	}
	o.others = slices.DeleteFunc(list.Items, func(d v1alpha1.LiveDump) bool { return d.UID == o.dump.UID })
	return nil
}

func (r *LiveDumpReconciler) observeNode(ctx context.Context, o *observation) error {
	node, err := get(ctx, r.Reader, types.NamespacedName{Name: o.dump.Spec.NodeName}, &corev1.Node{})
	if err != nil {
		return fmt.Errorf("reading node: %w", err)
	}
	o.node = node
	pods := &corev1.PodList{}
	if err := r.Reader.List(ctx, pods, client.InNamespace(r.AgentNamespace),
		client.MatchingLabelsSelector{Selector: r.AgentSelector},
		client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("spec.nodeName", o.dump.Spec.NodeName)}); err != nil {
		return fmt.Errorf("listing agent pods: %w", err)
	}
	for i := range pods.Items {
		if pod := &pods.Items[i]; o.agent == nil || podReady(pod) {
			o.agent = pod
		}
	}
	return nil
}

func (r *LiveDumpReconciler) observeTarget(ctx context.Context, o *observation) error {
	name := claimName(o.dump)
	claim, err := get(ctx, r.Reader, types.NamespacedName{Namespace: o.dump.Namespace, Name: name}, &corev1.PersistentVolumeClaim{})
	if err != nil {
		return fmt.Errorf("reading claim: %w", err)
	}
	o.claim = claim
	if claim == nil {
		return nil
	}
	if claim.Spec.VolumeName != "" {
		if o.volume, err = get(ctx, r.Reader, types.NamespacedName{Name: claim.Spec.VolumeName}, &corev1.PersistentVolume{}); err != nil {
			return fmt.Errorf("reading volume: %w", err)
		}
	}
	pods := &corev1.PodList{}
	if err := r.Reader.List(ctx, pods, client.InNamespace(o.dump.Namespace)); err != nil {
		return fmt.Errorf("listing pods that use the claim: %w", err)
	}
	for i := range pods.Items {
		if pod := &pods.Items[i]; podUsesClaim(pod, name) && !podEnded(pod) && !isHolder(pod) {
			o.claimUsers = append(o.claimUsers, pod.Name)
		}
	}
	slices.Sort(o.claimUsers)
	return nil
}

func (r *LiveDumpReconciler) observeHolder(ctx context.Context, o *observation) error {
	holder, err := get(ctx, r.Reader, types.NamespacedName{Namespace: o.dump.Namespace, Name: holderName(o.dump)}, &corev1.Pod{})
	if err != nil {
		return fmt.Errorf("reading holder pod: %w", err)
	}
	o.holder = holder
	return nil
}

// get reads one object; nil without an error means that it does not exist.
func get[T client.Object](ctx context.Context, reader client.Reader, name types.NamespacedName, into T) (T, error) {
	var none T
	if err := reader.Get(ctx, name, into); err != nil {
		return none, client.IgnoreNotFound(err)
	}
	return into, nil
}

// owned says whether the holder that was seen is this LiveDump's own.
func (o *observation) owned() bool {
	return o.holder != nil && metav1.IsControlledBy(o.holder, o.dump)
}
