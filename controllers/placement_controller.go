// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
)

const (
	// AgentLabel brings the agent to a node. The controller sets and removes AgentOnDemand;
	// AgentResident is the administrator's, for nodes that are to have a warm agent.
	AgentLabel    = "livedump.io/agent"
	AgentOnDemand = "on-demand"
	AgentResident = "resident"

	// DefaultLinger is how long the agent stays after the last dump of its node, for it
	// unloads the module after the end, and the next dump may be near.
	DefaultLinger = 15 * time.Second
)

// PlacementReconciler labels the nodes on which the agent is needed.
type PlacementReconciler struct {
	Client client.Client
	// Cache is what decisions rest on, but for taking the label away: for that the API server is asked.
	Cache  client.Reader
	Reader client.Reader
	Clock  clock.PassiveClock
	// Linger is how long the agent stays on a node after the last dump's end.
	Linger time.Duration
}

// Reconcile sets or removes the label of one node.
func (r *PlacementReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	node, step, lookAgain, err := r.decide(ctx, r.Cache, req.Name)
	if err == nil && step == remove {
		// The cache may not show yet that a LiveDump has begun, and the agent would be taken from under it.
		node, step, lookAgain, err = r.decide(ctx, r.Reader, req.Name)
	}
	if err != nil || step == leave {
		return ctrl.Result{RequeueAfter: lookAgain}, err
	}
	before := node.DeepCopy()
	if step == ensure {
		if node.Labels == nil {
			node.Labels = map[string]string{}
		}
		node.Labels[AgentLabel] = AgentOnDemand
	} else {
		delete(node.Labels, AgentLabel)
	}
	// The lock keeps a label that the administrator sets at this moment.
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := r.Client.Patch(ctx, node, patch, client.FieldOwner(FieldManager)); apierrors.IsConflict(err) {
		return ctrl.Result{RequeueAfter: conflictRetry}, nil
	} else if err != nil {
		return ctrl.Result{}, fmt.Errorf("labelling node %s: %w", node.Name, client.IgnoreNotFound(err))
	}
	return ctrl.Result{RequeueAfter: lookAgain}, nil
}

// decide gives the node and what to do about its label, by what reader shows.
func (r *PlacementReconciler) decide(ctx context.Context, reader client.Reader, name string) (*corev1.Node, want, time.Duration, error) {
	node, err := get(ctx, reader, types.NamespacedName{Name: name}, &corev1.Node{})
	if err != nil || node == nil {
		return nil, leave, 0, err
	}
	dumps := &v1alpha1.LiveDumpList{}
	if err := reader.List(ctx, dumps, client.MatchingFields{nodeNameField: name}); err != nil {
		return nil, leave, 0, fmt.Errorf("listing LiveDumps of node %s: %w", name, err)
	}
	step, lookAgain := place(node, dumps.Items, r.Linger, r.Clock.Now())
	return node, step, lookAgain, nil
}

// place decides about the node's label, and when to look again even if nothing happens (0: never).
func place(node *corev1.Node, dumps []v1alpha1.LiveDump, linger time.Duration, now time.Time) (want, time.Duration) {
	var stays time.Duration
	needed := false
	for i := range dumps {
		dump := &dumps[i]
		switch {
		case dump.Status.StartTime == nil:
			// was never accepted, so no agent ever looked at it
		case !dump.Ended():
			needed = true
		case dump.Status.CompletionTime != nil:
			// An end in the future means that the clock was set back: how long ago it was is not known then, and
			// the label must not stay for as long as the clock jumped.
			if since := now.Sub(dump.Status.CompletionTime.Time); since > -linger {
				stays = max(stays, min(linger, linger-since))
			}
		}
	}
	label, labelled := node.Labels[AgentLabel]
	switch {
	case needed && !labelled:
		return ensure, 0
	case !needed && label == AgentOnDemand && stays > 0:
		return leave, stays
	case !needed && label == AgentOnDemand:
		return remove, 0
	}
	return leave, 0
}
