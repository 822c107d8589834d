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
}

// LiveDumpReconciler takes LiveDumps to their end.
type LiveDumpReconciler struct {
	Config

	// Client writes. It is not read from, see Reader.
	Client client.Client
	// Reader reads from the API server, not from a cache: a verdict such as "the claim does
	// not exist" is final, and the caches of two kinds are not in step. LiveDumps are rare
	// enough to afford it.
	Reader   client.Reader
	Recorder events.EventRecorder
	Clock    clock.PassiveClock
}

// Reconcile looks at one LiveDump and takes the next step.
func (r *LiveDumpReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	seen, err := r.observe(ctx, req.NamespacedName)
	if err != nil || seen == nil {
		return ctrl.Result{}, err
	}
	next := decide(seen)
	err = r.act(ctx, seen, next)
	if apierrors.IsConflict(err) {
		// The agent or the user wrote meanwhile, so the decision was made on an old state.
		log.FromContext(ctx).V(1).Info("Somebody else wrote first, looking again", "error", err.Error())
		return ctrl.Result{RequeueAfter: conflictRetry}, nil
	}
	if err != nil {
		return ctrl.Result{}, err
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
	if err := r.applyStatus(ctx, dump, next.status); err != nil {
		return fmt.Errorf("writing status: %w", err)
	}
	r.tell(seen, next.status)

	switch next.holder {
	case ensure:
		if err := r.createHolder(ctx, dump); err != nil {
			// A quota or a policy of the namespace, say: the user can mend that, and sees no logs.
			r.record(dump, corev1.EventTypeWarning, "HolderNotCreated", "AttachTarget", err.Error())
			return fmt.Errorf("creating holder pod: %w", err)
		}
	case remove:
		if err := r.deleteHolder(ctx, seen.holder); err != nil {
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
