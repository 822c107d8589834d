// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
)

// errChanged: the LiveDump changed while it was looked at.
var errChanged = errors.New("the LiveDump changed meanwhile")

// notHolders selects the pods that do not even say that they are holders.
var notHolders = func() labels.Selector {
	other, err := labels.NewRequirement(ComponentLabel, selection.NotIn, []string{holderComponent})
	if err != nil {
		panic(err) // a constant
	}
	return labels.NewSelector().Add(*other)
}()

// observation is all that a decision about one LiveDump rests on. What does not exist is nil.
type observation struct {
	now  time.Time
	dump *v1alpha1.LiveDump
	// whole: everything was read, and from the API server. Otherwise it is a glance at the caches, without the claims.
	whole bool

	namespaceAllowed bool
	agentNamespace   string

	node *corev1.Node
	// claims are those of the target, in its order, with what stands behind each. A glance does not show them.
	claims []*claimSeen
	// holder is the pod by the name of this LiveDump's holder, whoever owns it.
	holder *corev1.Pod
	// agent is the agent's pod on the node, a ready one if there are several.
	agent *corev1.Pod
	// others are the other LiveDumps that this one may have to yield to, as long as it has not begun.
	others []*v1alpha1.LiveDump
	// maxConcurrent is how many LiveDumps may run at a time on all nodes; 0: any number.
	maxConcurrent int
}

// claimSeen is one claim of the target as it is.
type claimSeen struct {
	v1alpha1.PersistentVolumeClaimTarget
	claim  *corev1.PersistentVolumeClaim
	volume *corev1.PersistentVolume
	// users are the names of pods, holders aside, that use the claim.
	users []string
}

// glance reads what the caches have of the LiveDump by this name and all around it, but for its claims.
// It returns nil if the LiveDump does not exist.
func (r *LiveDumpReconciler) glance(ctx context.Context, name types.NamespacedName) (*observation, error) {
	dump, err := get(ctx, r.cache(), name, &v1alpha1.LiveDump{})
	if err != nil {
		return nil, fmt.Errorf("reading LiveDump: %w", err)
	}
	if dump == nil {
		return nil, nil
	}
	o, err := r.observeAround(ctx, dump, r.cache())
	if err != nil {
		return nil, err
	}
	return r.renew(ctx, r.cache(), o)
}

// look reads all there is around the LiveDump that was glanced at, from the API server.
// It returns nil if the LiveDump does not exist any more.
func (r *LiveDumpReconciler) look(ctx context.Context, glance *observation) (*observation, error) {
	o, err := r.observeAround(ctx, glance.dump, r.Reader)
	if err != nil {
		return nil, err
	}
	o.whole = true
	// In a namespace that is not allowed the controller has no rights to look; and once the agent is at
	// work, or nothing is to begin any more, the claims do not matter.
	if o.namespaceAllowed && !o.dump.Begun() && !o.dump.Canceled() {
		if err := r.observeTarget(ctx, o); err != nil {
			return nil, err
		}
	}
	if o, err = r.renew(ctx, r.Reader, o); o != nil {
		r.turns.haveLooked(o)
	}
	return o, err
}

// renew reads the LiveDump once more, after all else: an agent at work writes every second, and on a busy node the
// other reads may take longer. Were the LiveDump as old as the first of them, every write of the controller
// would come too late. It returns nil if the LiveDump does not exist any more.
func (r *LiveDumpReconciler) renew(ctx context.Context, reader client.Reader, o *observation) (*observation, error) {
	latest, err := get(ctx, reader, client.ObjectKeyFromObject(o.dump), &v1alpha1.LiveDump{})
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading LiveDump: %w", err)
	case latest == nil:
		return nil, nil
	case latest.UID != o.dump.UID, latest.Begun() != o.dump.Begun(), latest.Canceled() != o.dump.Canceled():
		return nil, errChanged // and what was read depends on that
	}
	o.dump, o.now = latest, r.Clock.Now()
	return o, nil
}

// cache is what glances read; without one they read what looks do.
func (r *LiveDumpReconciler) cache() client.Reader {
	if r.Cache == nil {
		return r.Reader
	}
	return r.Cache
}

// observeAround reads node, agent, holder and the other LiveDumps.
func (r *LiveDumpReconciler) observeAround(ctx context.Context, dump *v1alpha1.LiveDump, reader client.Reader) (*observation, error) {
	o := &observation{
		dump:             dump,
		namespaceAllowed: slices.Contains(r.Namespaces, dump.Namespace),
		agentNamespace:   r.AgentNamespace,
		maxConcurrent:    r.MaxConcurrent,
	}
	reads := []func(context.Context, *observation, client.Reader) error{r.observeOthers, r.observeNode}
	// A namespace that is being deleted may have lost the role that allows this; a LiveDump without a session must
	// not need it to end.
	if o.namespaceAllowed && !(deleting(dump) && reader == r.Reader) {
		reads = append(reads, r.observeHolder)
	}
	for _, read := range reads {
		if err := read(ctx, o, reader); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// observeOthers reads the LiveDumps that this one may have to yield to.
func (r *LiveDumpReconciler) observeOthers(ctx context.Context, o *observation, _ client.Reader) error {
	if o.dump.Status.StartTime != nil {
		return nil // it has had its turn
	}
	others, err := r.listOthers(ctx, o.dump)
	if err != nil {
		return err
	}
	r.turns.mu.Lock()
	defer r.turns.mu.Unlock()
	o.others = r.turns.overlay(ctx, r.cache(), others, o.dump, r.Clock.Now())
	return nil
}

// listOthers are the other LiveDumps that have not ended: of the same node and of the same claims, or of all nodes if
// their number is limited. They are the cache's own and must not be changed.
func (r *LiveDumpReconciler) listOthers(ctx context.Context, dump *v1alpha1.LiveDump) ([]*v1alpha1.LiveDump, error) {
	selections := []client.MatchingFields{{activeNodeIndex: dump.Spec.NodeName}}
	for _, name := range claimIndexValues(dump) {
		selections = append(selections, client.MatchingFields{activeClaimIndex: name})
	}
	if r.MaxConcurrent > 0 {
		selections = []client.MatchingFields{{activeIndex: activeIndexValue}}
	}
	var others []*v1alpha1.LiveDump
	seen := map[types.UID]bool{dump.UID: true}
	for _, selection := range selections {
		list := &v1alpha1.LiveDumpList{}
		if err := r.cache().List(ctx, list, selection, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("listing LiveDumps: %w", err)
		}
		for i := range list.Items {
			if other := &list.Items[i]; !seen[other.UID] {
				seen[other.UID] = true
				others = append(others, other)
			}
		}
	}
	return others, nil
}

func (r *LiveDumpReconciler) observeNode(ctx context.Context, o *observation, reader client.Reader) error {
	node, err := get(ctx, reader, types.NamespacedName{Name: o.dump.Spec.NodeName}, &corev1.Node{})
	if err != nil {
		return fmt.Errorf("reading node: %w", err)
	}
	o.node = node
	// Whether the agent is ready is the subject of messages, not of verdicts, so the cache will do.
	pods := &corev1.PodList{}
	if err := r.cache().List(ctx, pods, client.InNamespace(r.AgentNamespace),
		client.MatchingLabelsSelector{Selector: r.AgentSelector},
		client.MatchingFields{podNodeIndex: o.dump.Spec.NodeName}); err != nil {
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
	there := false
	for _, target := range o.dump.Spec.Target.Claims() {
		c, err := r.observeClaim(ctx, o.dump.Namespace, target)
		if err != nil {
			return err
		}
		o.claims = append(o.claims, c)
		there = there || c.claim != nil
	}
	if !there {
		return nil
	}
	// Of the pods that say they are holders there may be a thousand, and the cache has them.
	others := &corev1.PodList{}
	if err := r.Reader.List(ctx, others, client.InNamespace(o.dump.Namespace), client.MatchingLabelsSelector{Selector: notHolders}); err != nil {
		return fmt.Errorf("listing pods that use the target: %w", err)
	}
	for _, c := range o.claims {
		if err := r.observeUsers(ctx, o.dump.Namespace, c, others.Items); err != nil {
			return err
		}
	}
	return nil
}

// observeClaim reads a claim and its volume.
func (r *LiveDumpReconciler) observeClaim(ctx context.Context, namespace string, target v1alpha1.PersistentVolumeClaimTarget) (*claimSeen, error) {
	claim, err := get(ctx, r.Reader, types.NamespacedName{Namespace: namespace, Name: target.ClaimName}, &corev1.PersistentVolumeClaim{})
	if err != nil {
		return nil, fmt.Errorf("reading claim: %w", err)
	}
	c := &claimSeen{PersistentVolumeClaimTarget: target, claim: claim}
	if claim != nil && claim.Spec.VolumeName != "" {
		if c.volume, err = get(ctx, r.Reader, types.NamespacedName{Name: claim.Spec.VolumeName}, &corev1.PersistentVolume{}); err != nil {
			return nil, fmt.Errorf("reading volume: %w", err)
		}
	}
	return c, nil
}

// observeUsers finds the pods that use the claim: among these, which are all that do not say they are holders, and those that do.
func (r *LiveDumpReconciler) observeUsers(ctx context.Context, namespace string, c *claimSeen, others []corev1.Pod) error {
	holders := &corev1.PodList{}
	if err := r.cache().List(ctx, holders, client.InNamespace(namespace), client.MatchingLabels{ComponentLabel: holderComponent},
		client.MatchingFields{podClaimIndex: c.ClaimName}); err != nil {
		return fmt.Errorf("listing holder pods that use the claim: %w", err)
	}
	for _, pod := range slices.Concat(others, holders.Items) {
		if podUsesClaim(&pod, c.ClaimName) && !podEnded(&pod) && !isHolder(&pod) {
			c.users = append(c.users, pod.Name)
		}
	}
	slices.Sort(c.users)
	return nil
}

func (r *LiveDumpReconciler) observeHolder(ctx context.Context, o *observation, reader client.Reader) error {
	holder, err := get(ctx, reader, types.NamespacedName{Namespace: o.dump.Namespace, Name: holderName(o.dump)}, &corev1.Pod{})
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
