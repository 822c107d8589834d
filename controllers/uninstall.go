// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"livedump.io/api/v1alpha1"
)

// Uninstaller brings LiveDumps to their end and takes back what the controller has put on objects, for a release that
// is about to be removed: a finalizer that nobody releases would keep LiveDumps and their namespaces for ever.
type Uninstaller struct {
	// Client reads from the API server, not from a cache.
	Client client.Client
	Clock  clock.PassiveClock
	// Patience is how long the controller and the agents get to end what runs.
	Patience time.Duration
}

// uninstallPoll is how often to look whether the LiveDumps have ended.
const uninstallPoll = time.Second

// Run cancels all LiveDumps, waits for the controller and the agents to end them, and does what is left itself.
func (u *Uninstaller) Run(ctx context.Context) error {
	err := wait.PollUntilContextTimeout(ctx, uninstallPoll, u.Patience, true, func(ctx context.Context) (bool, error) {
		open, err := u.cancel(ctx)
		if err != nil {
			log.FromContext(ctx).Info("Looking again", "error", err.Error())
			return false, nil
		}
		return open == 0, nil
	})
	if err != nil && !wait.Interrupted(err) {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return errors.Join(u.release(ctx), u.unlabel(ctx))
}

// cancel asks for the end of every LiveDump and returns how many have not come to it.
func (u *Uninstaller) cancel(ctx context.Context) (open int, err error) {
	err = u.each(ctx, func(dump *v1alpha1.LiveDump) error {
		if dump.Ended() && !controllerutil.ContainsFinalizer(dump, Finalizer) {
			return nil
		}
		open++
		if dump.Ended() || dump.Canceled() {
			return nil
		}
		log.FromContext(ctx).Info("Canceling", "liveDump", reference(dump), "session", dump.UID)
		before := dump.DeepCopy()
		dump.Spec.DesiredState = v1alpha1.DesiredStateCancel
		return client.IgnoreNotFound(u.Client.Patch(ctx, dump, client.MergeFrom(before), client.FieldOwner(FieldManager)))
	})
	return open, err
}

// release ends what neither the controller nor an agent has ended, and takes holders and finalizers away.
func (u *Uninstaller) release(ctx context.Context) error {
	return u.each(ctx, func(listed *v1alpha1.LiveDump) error {
		// The controller, which is still there, may be at the same LiveDump.
		err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
			dump, err := get(ctx, u.Client, client.ObjectKeyFromObject(listed), &v1alpha1.LiveDump{})
			if err != nil || dump == nil {
				return err
			}
			return u.releaseOne(ctx, dump)
		})
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("releasing LiveDump %s: %w", reference(listed), err)
		}
		return nil
	})
}

func (u *Uninstaller) releaseOne(ctx context.Context, dump *v1alpha1.LiveDump) error {
	r := &LiveDumpReconciler{Client: u.Client}
	if !dump.Ended() {
		log.FromContext(ctx).Info("Ended without word from controller and agent", "liveDump", reference(dump), "session", dump.UID)
		o := &observation{dump: dump, now: u.Clock.Now()}
		found := keptFindings(dump)
		message := "livedump was uninstalled before the agent began; nothing was written to the target"
		if dump.Begun() {
			message = fmt.Sprintf("livedump was uninstalled; the agent did not confirm within %s that it ended the session%s", u.Patience, unknownTarget)
		}
		if err := r.applyStatus(ctx, dump, endedStatus(o, found, *failure(v1alpha1.ReasonCanceled, message))); err != nil {
			return err
		}
	}
	if !controllerutil.ContainsFinalizer(dump, Finalizer) {
		return nil // then it has no holder either
	}
	if err := u.removeHolder(ctx, r, dump); err != nil {
		return err
	}
	return r.patch(ctx, dump, func() { controllerutil.RemoveFinalizer(dump, Finalizer) })
}

// removeHolder deletes the holder of a LiveDump that has ended: where the LiveDump stays, so would the pod, and with it the claim would
// stay attached.
func (u *Uninstaller) removeHolder(ctx context.Context, r *LiveDumpReconciler, dump *v1alpha1.LiveDump) error {
	name := types.NamespacedName{Namespace: dump.Namespace, Name: holderName(dump)}
	holder, err := get(ctx, u.Client, name, &corev1.Pod{})
	if o := (&observation{dump: dump, holder: holder}); err == nil && o.owned() && holder.DeletionTimestamp == nil {
		log.FromContext(ctx).Info("Deleting the holder pod", "pod", name, "liveDump", reference(dump), "session", dump.UID)
		err = r.deleteHolder(ctx, holder)
	}
	if apierrors.IsForbidden(err) {
		// Its namespace is not allowed any more, so there is no right to look, or it is being deleted, pods and all. The release must
		// not stay for a right that never comes back.
		log.FromContext(ctx).Error(err, "The holder pod, if there is one, is left", "pod", name, "liveDump", reference(dump), "session", dump.UID)
		return nil
	}
	if err != nil {
		return fmt.Errorf("deleting holder pod %s: %w", name, err)
	}
	return nil
}

// unlabel takes the controller's label off all nodes. The administrator's own value stays.
func (u *Uninstaller) unlabel(ctx context.Context) error {
	nodes := &corev1.NodeList{}
	if err := u.Client.List(ctx, nodes, client.MatchingLabels{AgentLabel: AgentOnDemand}); err != nil {
		return fmt.Errorf("listing nodes: %w", err)
	}
	var errs []error
	for i := range nodes.Items {
		node := &nodes.Items[i]
		before := node.DeepCopy()
		delete(node.Labels, AgentLabel)
		if err := u.Client.Patch(ctx, node, client.MergeFrom(before), client.FieldOwner(FieldManager)); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("taking the label off node %s: %w", node.Name, err))
		}
	}
	return errors.Join(errs...)
}

// each calls do for every LiveDump there is.
func (u *Uninstaller) each(ctx context.Context, do func(*v1alpha1.LiveDump) error) error {
	var errs []error
	for dump, err := range allLiveDumps(ctx, u.Client) {
		if err == nil {
			err = do(dump)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
