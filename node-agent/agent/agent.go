// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"

	"livedump.io/api/v1alpha1"
	"livedump.io/node-agent/engine"
)

// Agent reconciles the LiveDumps of its node.
type Agent struct {
	// Reader is the cache of the LiveDumps of this node.
	Reader client.Reader
	Status StatusWriter
	// NodeName is the node's name in the API, BootID the ID of its running boot.
	NodeName, BootID string
	// Dump makes one dump and returns when memory is thawed and the target is either a dump or marked as none.
	Dump func(ctx context.Context, dump *v1alpha1.LiveDump, o engine.Options) (*engine.Report, error)
	// Unload takes the module out of the kernel; that it is not loaded is no error.
	Unload func() error
	// SessionAlive says whether any process still has a session of the module.
	SessionAlive func() (bool, error)
	Clock        clock.Clock
	Log          *slog.Logger

	mu       sync.Mutex
	running  *job
	finished map[types.UID]bool // ran here, and the cache has not shown its end yet
	claimed  map[types.UID]bool // tried to take up
	draining bool
	jobs     sync.WaitGroup
}

// job is the dump under way.
type job struct {
	dump   *v1alpha1.LiveDump
	cancel context.CancelCauseFunc
}

// How soon to look again at what nothing reports.
const (
	busyRetry     = time.Second     // another dump runs
	conflictRetry = time.Second     // the LiveDump changed meanwhile
	aliveRetry    = 2 * time.Second // the session of a process that is ending
	writeTimeout  = 15 * time.Second
)

// SetupWithManager registers the agent.
func (a *Agent) SetupWithManager(m ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(m).For(&v1alpha1.LiveDump{}).Named(FieldManager).
		WithOptions(controller.Options{MaxConcurrentReconciles: 1}).Complete(a)
}

// Reconcile takes the next step for one LiveDump.
func (a *Agent) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	dump := &v1alpha1.LiveDump{}
	err := a.Reader.Get(ctx, request.NamespacedName, dump)
	if apierrors.IsNotFound(err) {
		a.stopMissing(request.NamespacedName)
		return ctrl.Result{}, nil
	}
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("LiveDump %s: %w", request, err)
	}
	now := a.Clock.Now()
	d := decide(dump, a.NodeName, a.role(dump), now)
	switch d.action {
	case stop:
		a.stop(dump.UID, d.cause)
	case lost:
		return a.reportLost(ctx, dump, now)
	case start:
		return a.start(ctx, dump, now)
	}
	return ctrl.Result{}, nil
}

// role says what this process has to do with a LiveDump.
func (a *Agent) role(dump *v1alpha1.LiveDump) role {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running != nil && a.running.dump.UID == dump.UID {
		return worker
	}
	if a.finished[dump.UID] {
		if c := status(dump, v1alpha1.ConditionCaptured); c == metav1.ConditionTrue || c == metav1.ConditionFalse {
			delete(a.finished, dump.UID) // the cache has caught up
		}
		return done
	}
	if a.claimed[dump.UID] {
		return claimant
	}
	return stranger
}

func (a *Agent) stop(uid types.UID, cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running != nil && a.running.dump.UID == uid {
		a.running.cancel(cause)
	}
}

// stopMissing ends the dump of a LiveDump that does not exist any more.
func (a *Agent) stopMissing(name types.NamespacedName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running != nil && client.ObjectKeyFromObject(a.running.dump) == name {
		a.running.cancel(fmt.Errorf("the LiveDump was deleted: %w", engine.ErrCanceled))
	}
}

// reportLost ends a LiveDump that an earlier process of the agent had taken up.
func (a *Agent) reportLost(ctx context.Context, dump *v1alpha1.LiveDump, now time.Time) (ctrl.Result, error) {
	// As long as a session is open its owner may still be ending, with a report of its own.
	alive, err := a.SessionAlive()
	if err != nil {
		return ctrl.Result{}, err
	}
	if alive {
		return ctrl.Result{RequeueAfter: aliveRetry}, nil
	}
	reason := v1alpha1.ReasonAgentLost
	message := "the agent ended while the dump ran; the kernel thawed memory when it did, and the target carries no valid dump"
	if before := dump.Status.Node.BootID; before != "" && a.BootID != "" && before != a.BootID {
		reason = v1alpha1.ReasonNodeRebooted
		message = "the node was rebooted while the dump ran; the target carries no valid dump"
	}
	p := newPart(dump)
	p.ResourceVersion = dump.ResourceVersion
	if c := status(dump, v1alpha1.ConditionModuleLoaded); c != metav1.ConditionTrue && c != metav1.ConditionFalse {
		p.set(now, dump.Generation, v1alpha1.ConditionModuleLoaded, metav1.ConditionFalse, v1alpha1.ReasonNotReached, message)
	}
	p.set(now, dump.Generation, v1alpha1.ConditionCaptured, metav1.ConditionFalse, reason, message)
	a.Log.Warn("LiveDump of an earlier process", "liveDump", client.ObjectKeyFromObject(dump).String(), "session", dump.Status.Session, "reason", reason)
	return a.write(ctx, p)
}

// write writes a part that must fit the LiveDump that was looked at.
func (a *Agent) write(ctx context.Context, p Part) (ctrl.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := a.Status.Write(ctx, p)
	switch {
	case err == nil, apierrors.IsNotFound(err):
		return ctrl.Result{}, nil
	case apierrors.IsConflict(err):
		return ctrl.Result{RequeueAfter: conflictRetry}, nil
	}
	return ctrl.Result{}, fmt.Errorf("status of LiveDump %s/%s: %w", p.Namespace, p.Name, err)
}

// start takes a LiveDump up. That it is taken up is on record before anything else happens, so that whoever comes
// after this process knows that there may have been a session.
func (a *Agent) start(ctx context.Context, dump *v1alpha1.LiveDump, now time.Time) (ctrl.Result, error) {
	until := deadline(dump, now)
	p := newPart(dump)
	p.ResourceVersion = dump.ResourceVersion
	options, err := optionsOf(dump, until, now)
	if err != nil {
		p.set(now, dump.Generation, v1alpha1.ConditionModuleLoaded, metav1.ConditionFalse, v1alpha1.ReasonNotReached, err.Error())
		reason := v1alpha1.ReasonInternalError
		if errors.Is(err, errSpec) {
			reason = v1alpha1.ReasonTargetInvalid
		}
		p.set(now, dump.Generation, v1alpha1.ConditionCaptured, metav1.ConditionFalse, reason, err.Error())
		return a.write(ctx, p)
	}
	a.mu.Lock()
	if a.draining || a.running != nil {
		draining := a.draining
		a.mu.Unlock()
		if draining {
			return ctrl.Result{}, nil // the next agent will take it
		}
		return ctrl.Result{RequeueAfter: busyRetry}, nil
	}
	workCtx, cancel := context.WithCancelCause(context.Background())
	j := &job{dump: dump.DeepCopy(), cancel: cancel}
	a.running = j
	if a.claimed == nil {
		a.claimed, a.finished = map[types.UID]bool{}, map[types.UID]bool{}
	}
	a.claimed[dump.UID] = true
	a.jobs.Add(1)
	a.mu.Unlock()

	p.Session = options.UUID.String()
	p.set(now, dump.Generation, v1alpha1.ConditionModuleLoaded, metav1.ConditionUnknown, v1alpha1.ReasonPending, "not loaded yet")
	p.set(now, dump.Generation, v1alpha1.ConditionCaptured, metav1.ConditionUnknown, v1alpha1.ReasonRunning, string(engine.StepTarget))
	writeCtx, writeCancel := context.WithTimeout(ctx, writeTimeout)
	defer writeCancel()
	if err := a.Status.Write(writeCtx, p); err != nil {
		// Whether it was written is not known; the next look tries again either way.
		a.end(j, false)
		if apierrors.IsConflict(err) {
			return ctrl.Result{RequeueAfter: conflictRetry}, nil
		}
		return ctrl.Result{}, fmt.Errorf("taking up LiveDump %s/%s: %w", dump.Namespace, dump.Name, err)
	}
	p.ResourceVersion = ""
	log := a.Log.With("liveDump", client.ObjectKeyFromObject(dump).String(), "session", p.Session)
	log.Info("taking up", "volume", dump.Status.Target.PersistentVolumeName, "holder", dump.Status.Target.HolderPodUID)
	go func() {
		defer a.end(j, true)
		a.work(workCtx, j, p, options, until.Sub(now), log)
	}()
	return ctrl.Result{}, nil
}

// end forgets a job.
func (a *Agent) end(j *job, ran bool) {
	j.cancel(nil)
	a.mu.Lock()
	a.running = nil
	if ran {
		a.finished[j.dump.UID] = true
		delete(a.claimed, j.dump.UID)
	}
	a.mu.Unlock()
	a.jobs.Done()
}

// work makes the dump and sees to it that its end is reported.
func (a *Agent) work(ctx context.Context, j *job, p Part, o engine.Options, limit time.Duration, log *slog.Logger) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, engine.ErrDeadline)
	defer cancel()
	pub := a.publish(p, j.dump.Generation, log)
	o.Progress = pub.progress
	report, err := a.Dump(ctx, j.dump, o)
	p = pub.stop()
	// Before the end is reported: the controller takes the agent away then.
	module := "unloaded after the dump"
	if uerr := a.Unload(); uerr != nil {
		module = uerr.Error()
		log.Error("the module stays loaded", "error", uerr)
	} else {
		log.Info("module unloaded")
	}
	a.deliver(finalPart(p, j.dump.Generation, report, err, module, a.Clock.Now()), log)
}

// finalPart is the agent's last word on a LiveDump.
func finalPart(p Part, generation int64, r *engine.Report, err error, module string, now time.Time) Part {
	if r.Module.How != "" {
		p.set(now, generation, v1alpha1.ConditionModuleLoaded, metav1.ConditionTrue, reasonLoaded,
			fmt.Sprintf("version %q was %s; %s", r.Module.Version, r.Module.How, module))
	}
	if err == nil {
		p.Result = resultOf(r)
		p.Progress = v1alpha1.Progress{PagesTotal: int64(r.PagesToDump), PagesWritten: int64(r.PagesToDump),
			BytesWritten: int64(r.SizeBytes), Percent: 100, LastUpdateTime: metav1.NewTime(now)}
		p.set(now, generation, v1alpha1.ConditionCaptured, metav1.ConditionTrue, v1alpha1.ReasonComplete,
			fmt.Sprintf("%d pages in %d bytes, read back and verified", r.PagesDumped, r.SizeBytes))
		return p
	}
	reason := engine.Reason(err)
	if r.Module.How == "" {
		moduleReason, message := v1alpha1.ReasonNotReached, "the dump ended before"
		if engine.IsModuleError(err) {
			moduleReason, message = reason, err.Error()
		}
		p.set(now, generation, v1alpha1.ConditionModuleLoaded, metav1.ConditionFalse, moduleReason, message)
	}
	p.set(now, generation, v1alpha1.ConditionCaptured, metav1.ConditionFalse, reason, err.Error())
	return p
}

// deliver writes a part until the API server takes it. The server may be away for a while, and this report is all
// that tells how the dump ended.
func (a *Agent) deliver(p Part, log *slog.Logger) {
	const longest = 15 * time.Second
	for wait := 250 * time.Millisecond; ; wait = min(2*wait, longest) {
		ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
		err := a.Status.Write(ctx, p)
		cancel()
		switch {
		case err == nil:
			return
		case apierrors.IsNotFound(err), apierrors.IsConflict(err):
			log.Info("the LiveDump is gone", "error", err)
			return
		case apierrors.IsInvalid(err):
			log.Error("the API server does not take the report", "error", err)
			return
		case a.endedMeanwhile(p):
			log.Info("the LiveDump has ended already", "error", err)
			return
		}
		log.Warn("the report has to wait", "error", err, "retryIn", wait)
		<-a.Clock.After(wait)
	}
}

// endedMeanwhile says whether the controller ended the LiveDump; its status does not change any more then.
func (a *Agent) endedMeanwhile(p Part) bool {
	dump := &v1alpha1.LiveDump{}
	err := a.Reader.Get(context.Background(), types.NamespacedName{Namespace: p.Namespace, Name: p.Name}, dump)
	if apierrors.IsNotFound(err) {
		return true
	}
	if err != nil {
		return false
	}
	s := status(dump, v1alpha1.ConditionSucceeded)
	return string(dump.UID) != p.UID || s == metav1.ConditionTrue || s == metav1.ConditionFalse
}

// Drain lets the running dump, if there is one, come to its end and takes up no other. When giveUp is closed the dump
// is ended. Drain returns when the end has been reported.
func (a *Agent) Drain(giveUp <-chan struct{}) {
	a.mu.Lock()
	a.draining = true
	j := a.running
	a.mu.Unlock()
	if j != nil {
		a.Log.Info("stopping: a dump is running and gets the grace period to end", "session", sessionOf(j.dump).String())
	}
	ended := make(chan struct{})
	go func() {
		a.jobs.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-giveUp:
		if j != nil {
			j.cancel(engine.ErrShutdown)
		}
		<-ended
	}
}

// UnloadIdle takes the module out of the kernel if an earlier process left it there. It is for the start of the
// agent, before any dump.
func (a *Agent) UnloadIdle() error {
	alive, err := a.SessionAlive()
	if err != nil {
		return err
	}
	if alive {
		return errors.New("a session of another process is open; the module stays loaded")
	}
	return a.Unload()
}
