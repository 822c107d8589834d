// SPDX-License-Identifier: Apache-2.0

// Package controllers drives LiveDumps: it decides, the agent of the node acts.
//
// Two reconcilers, both level-triggered:
//
//   - LiveDumpReconciler takes one LiveDump from its creation to its end: observe
//     (observe.go), decide with pure functions (decide.go and the checks it calls),
//     act (this file, holder.go, status.go).
//   - PlacementReconciler (placement_controller.go) keeps the label that brings the
//     agent to a node exactly as long as a LiveDump of the node needs it.
package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"livedump.io/api/v1alpha1"
)

const (
	// FieldManager owns the controller's part of a LiveDump's status.
	FieldManager = "livedump-controller"

	// Finalizer keeps a LiveDump until its session has ended and its holder is gone.
	Finalizer = "livedump.io/cleanup"

	// conflictRetry is how soon to look again after somebody else wrote first.
	conflictRetry = 200 * time.Millisecond
)

// Config of the reconcilers.
type Config struct {
	// Namespaces in which LiveDumps are carried out.
	Namespaces []string
	// AgentNamespace is where the agent's DaemonSet runs, AgentSelector its pods' labels.
	AgentNamespace string
	AgentSelector  labels.Selector
	// HolderImage holds the controller's own binary.
	HolderImage           string
	HolderImagePullPolicy corev1.PullPolicy
	// MaxConcurrent is how many LiveDumps may run at a time, on all nodes together; 0: any number.
	MaxConcurrent int
}

// LiveDumpReconciler takes LiveDumps to their end.
type LiveDumpReconciler struct {
	Config

	// Client writes. It is not read from, see Cache and Reader.
	Client client.Client
	// Cache is what the watches keep: LiveDumps, nodes and livedump's own pods. A glance at it costs the
	// API server nothing, and most looks at a LiveDump find that there is nothing to do.
	Cache client.Reader
	// Reader reads from the API server. A verdict such as "the claim does not exist" is final, and
	// the caches of two kinds are not in step, so nothing that counts is decided by a glance.
	Reader   client.Reader
	Recorder events.EventRecorder
	Clock    clock.PassiveClock

	turns turns
}

// Reconcile looks at one LiveDump and takes the next step.
func (r *LiveDumpReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	seen, err := r.glance(ctx, req.NamespacedName)
	if errors.Is(err, errChanged) {
		return ctrl.Result{RequeueAfter: conflictRetry}, nil
	}
	if err != nil {
		return ctrl.Result{}, err
	}
	if seen == nil {
		r.turns.forget(req.NamespacedName)
		return ctrl.Result{}, nil
	}
	// The agent names the session after the LiveDump, so this word finds the dump in the logs of
	// controller, agent and kernel alike.
	session := string(seen.dump.UID)
	ctx = log.IntoContext(ctx, log.FromContext(ctx).WithValues("session", session))
	r.turns.settle(seen.dump)
	next := decide(seen)
	if next.weighs(seen) || r.turns.lookIsDue(seen, next) {
		if seen, err = r.look(ctx, seen); err == nil && seen == nil {
			r.turns.forget(req.NamespacedName)
			return ctrl.Result{}, nil
		}
		if err == nil {
			next = decide(seen)
		}
	}
	if err == nil {
		err = r.act(ctx, seen, next)
	}
	switch {
	case apierrors.IsConflict(err), errors.Is(err, errChanged), errors.Is(err, errNotItsTurn):
		log.FromContext(ctx).V(1).Info("Somebody else came first, looking again", "error", err.Error())
		return ctrl.Result{RequeueAfter: conflictRetry}, nil
	case err != nil:
		return ctrl.Result{}, fmt.Errorf("session %s: %w", session, err)
	}
	return ctrl.Result{RequeueAfter: next.lookAgain}, nil
}

// act carries out a decision. The order matters: nothing is created for a LiveDump that has
// no finalizer, nothing is taken down before the end stands in the status, and the finalizer
// goes last. Every step can be repeated.
func (r *LiveDumpReconciler) act(ctx context.Context, seen *observation, next decision) error {
	dump := seen.dump.DeepCopy()
	if next.finalizer == ensure || next.cancel {
		if err := r.patch(ctx, dump, func() {
			if next.finalizer == ensure {
				controllerutil.AddFinalizer(dump, Finalizer)
			}
			if next.cancel {
				dump.Spec.DesiredState = v1alpha1.DesiredStateCancel
			}
		}); err != nil {
			return fmt.Errorf("preparing LiveDump: %w", err)
		}
	}
	begins := dump.Status.StartTime == nil && next.status.StartTime != nil && next.status.CompletionTime == nil
	if begins {
		if err := r.takeTurn(ctx, dump, seen.claims); err != nil {
			return err
		}
	}
	if err := r.applyStatus(ctx, dump, next.status); err != nil {
		if begins && apierrors.IsConflict(err) {
			// Any other error leaves open whether it was written; then the turn stays taken until the cache tells.
			r.turns.giveBack(dump)
		}
		return fmt.Errorf("writing status: %w", err)
	}
	r.tell(ctx, seen, next.status)

	switch next.holder {
	case ensure:
		if err := r.createHolder(ctx, dump, holderModes(seen)); err != nil {
			// A quota or a policy of the namespace, say: the user can mend that, and sees no logs.
			r.record(dump, corev1.EventTypeWarning, "HolderNotCreated", "AttachTarget", err.Error())
			return fmt.Errorf("creating holder pod: %w", err)
		}
	case remove:
		err := r.deleteHolder(ctx, seen.holder)
		if apierrors.IsForbidden(err) && deleting(dump) {
			// A namespace that is being deleted loses its roles in no order, and the right to delete pods with
			// them. Its pods go anyway, and the LiveDump must not wait for a right that never comes back.
			log.FromContext(ctx).Info("The holder pod is left to the end of its namespace", "pod", seen.holder.Name, "error", err.Error())
			err = nil
		}
		if err != nil {
			return fmt.Errorf("deleting holder pod: %w", err)
		}
	}
	if next.finalizer == remove {
		if err := r.patch(ctx, dump, func() { controllerutil.RemoveFinalizer(dump, Finalizer) }); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("releasing LiveDump: %w", err)
		}
	}
	if next.expire {
		err := r.Client.Delete(ctx, dump, client.Preconditions{UID: &dump.UID})
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("deleting LiveDump after ttlSecondsAfterFinished: %w", err)
		}
	}
	return nil
}

// patch writes what change does to dump, if it does anything, provided that nobody else wrote.
func (r *LiveDumpReconciler) patch(ctx context.Context, dump *v1alpha1.LiveDump, change func()) error {
	before := dump.DeepCopy()
	status := dump.Status
	change()
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if data, err := client.MergeFrom(before).Data(dump); err != nil {
		return err
	} else if string(data) == "{}" {
		return nil
	}
	if err := r.Client.Patch(ctx, dump, patch, client.FieldOwner(FieldManager)); err != nil {
		return err
	}
	dump.Status = status
	return nil
}

// validate reports what is missing in the configuration.
func (c *Config) validate() error {
	var errs []error
	if len(c.Namespaces) == 0 {
		errs = append(errs, errors.New("no namespace is allowed to have LiveDumps"))
	}
	if c.AgentNamespace == "" {
		errs = append(errs, errors.New("the agent's namespace is not set"))
	}
	if c.AgentSelector == nil || c.AgentSelector.Empty() {
		errs = append(errs, errors.New("the agent's label selector is empty"))
	}
	if c.HolderImage == "" {
		errs = append(errs, errors.New("the holder's image is not set"))
	}
	return errors.Join(errs...)
}
