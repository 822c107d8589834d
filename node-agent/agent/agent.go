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
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/source"

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
	// Dump makes one dump and returns when memory is thawed and the target is either a dump or marked as none. If memory takes longer,
	// it calls Options.Unthawed meanwhile.
	Dump func(ctx context.Context, dump *v1alpha1.LiveDump, o engine.Options) (*engine.Report, error)
	// Unload takes the module out of the kernel; that it is not loaded is no error.
	Unload func() error
	// SessionAlive says whether there is a session of the module, or any process has its device open.
	SessionAlive func() (bool, error)
	// Session is the frozen session that there is, whoever has it; frozen is false if there is none.
	Session func() (uuid string, frozen bool, err error)
	// Abandon ends a frozen session whose owner is gone. found is false if there is no such session.
	Abandon func(ctx context.Context, uuid string) (found bool, err error)
	// Grace is how long memory stays frozen for the next agent when this one dies or leaves.
	Grace time.Duration
	// Calibrate is the length of the dry run by which the module sizes the reserve; 0: none.
	Calibrate time.Duration
	// OnPoint, if not nil, is called at each step of a dump, at the engine's points, and at PointReport: for tests.
	OnPoint func(context.Context, engine.Step)
	Clock   clock.Clock
	Log     *slog.Logger

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
	// unthawed: it has ended, and is being reported, but memory is not thawed yet. Under Agent.mu.
	unthawed bool
}

// PointReport comes before the end of a dump is reported: the module is unloaded.
const PointReport engine.Step = "Reporting"

// How soon to look again at what nothing reports.
const (
	busyRetry     = time.Second // another dump runs
	conflictRetry = time.Second // the LiveDump changed meanwhile
	writeTimeout  = 15 * time.Second
)

// SetupWithManager registers the agent.
func (a *Agent) SetupWithManager(m ctrl.Manager) error {
	// One look at the node before any LiveDump asks for it: what is left there may belong to none.
	begin := make(chan event.GenericEvent, 1)
	begin <- event.GenericEvent{Object: &v1alpha1.LiveDump{ObjectMeta: metav1.ObjectMeta{Name: beginName}}}
	return ctrl.NewControllerManagedBy(m).For(&v1alpha1.LiveDump{}).Named(FieldManager).
		WatchesRawSource(source.Channel(begin, &handler.EnqueueRequestForObject{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: 1}).Complete(a)
}

// beginName is the name of no LiveDump.
const beginName = "."

// Reconcile takes the next step for one LiveDump.
func (a *Agent) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	if request.Name == beginName {
		return ctrl.Result{}, a.Tidy(ctx)
	}
	dump := &v1alpha1.LiveDump{}
	err := a.Reader.Get(ctx, request.NamespacedName, dump)
	if apierrors.IsNotFound(err) {
		a.stopMissing(request.NamespacedName)
		return ctrl.Result{}, a.Tidy(ctx)
	}
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("LiveDump %s: %w", request, err)
	}
	now := a.Clock.Now()
	d := decide(dump, a.NodeName, a.role(dump), now)
	switch d.action {
	case stop:
		a.stop(dump.UID, d.cause)
	case resume:
		if before := dump.Status.Node.BootID; before != "" && a.BootID != "" && before != a.BootID {
			return a.reportRebooted(ctx, dump, now)
		}
		return a.start(ctx, dump, now, true)
	case start:
		return a.start(ctx, dump, now, false)
	}
	if dump.Ended() {
		return ctrl.Result{}, a.Tidy(ctx)
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

// reportRebooted ends a LiveDump that was taken up before this boot: the memory to be dumped is gone. The target may have got all of it before.
func (a *Agent) reportRebooted(ctx context.Context, dump *v1alpha1.LiveDump, now time.Time) (ctrl.Result, error) {
	reason := v1alpha1.ReasonNodeRebooted
	message := "the node was rebooted before the end of the dump was reported; what the target holds is not known here; livedump verify tells"
	p := newPart(dump)
	p.ResourceVersion = dump.ResourceVersion
	if c := status(dump, v1alpha1.ConditionModuleLoaded); c != metav1.ConditionTrue && c != metav1.ConditionFalse {
		p.set(now, dump.Generation, v1alpha1.ConditionModuleLoaded, metav1.ConditionFalse, v1alpha1.ReasonNotReached, message)
	}
	p.set(now, dump.Generation, v1alpha1.ConditionCaptured, metav1.ConditionFalse, reason, message)
	a.Log.Warn("LiveDump of an earlier boot", "liveDump", client.ObjectKeyFromObject(dump).String(), "session", dump.Status.Session, "reason", reason)
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

// start takes a LiveDump up, or goes on with it. That it is taken up is on record before anything else happens, so that whoever comes
// after this process knows that there may have been a session.
func (a *Agent) start(ctx context.Context, dump *v1alpha1.LiveDump, now time.Time, resume bool) (ctrl.Result, error) {
	until := dump.Deadline(now)
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
	options.Grace, options.Resume, options.OnStep = a.Grace, resume, a.OnPoint
	if a.Calibrate > 0 {
		options.Calibrate, options.Expected = a.Calibrate, expectedFor(options)
	}
	a.mu.Lock()
	if a.draining || a.running != nil {
		draining, before := a.draining, a.running
		unthawed := before != nil && before.unthawed
		a.mu.Unlock()
		if unthawed && !resume {
			// As long as a CPU is stuck; and a dump of the time after that is not what was asked for.
			p.set(now, dump.Generation, v1alpha1.ConditionModuleLoaded, metav1.ConditionFalse, v1alpha1.ReasonNotReached, "the dump ended before")
			p.set(now, dump.Generation, v1alpha1.ConditionCaptured, metav1.ConditionFalse, v1alpha1.ReasonNodeBusy, fmt.Sprintf(
				"session %s of the dump before is not thawed yet, which takes until every CPU has scheduled: is one stuck?", sessionOf(before.dump)))
			return a.write(ctx, p)
		}
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
	if !resume {
		a.claimed[dump.UID] = true
	}
	a.jobs.Add(1)
	a.mu.Unlock()

	p.Session = options.UUID.String()
	if !resume || status(dump, v1alpha1.ConditionModuleLoaded) != metav1.ConditionTrue {
		p.set(now, dump.Generation, v1alpha1.ConditionModuleLoaded, metav1.ConditionUnknown, v1alpha1.ReasonPending, "not loaded yet")
	}
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
	log.Info("taking up", "again", resume, "volumes", volumesOf(dump), "holder", dump.Status.Target.HolderPodUID)
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

// work makes the dump and sees to it that its end is reported, once.
func (a *Agent) work(ctx context.Context, j *job, p Part, o engine.Options, limit time.Duration, log *slog.Logger) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, engine.ErrDeadline)
	defer cancel()
	pub := a.publish(p, j.dump.Generation, log)
	o.Progress = pub.progress
	var reported chan struct{} // if the report came before the thaw: closed when it is delivered
	o.Unthawed = func(report *engine.Report, err error) {
		a.mu.Lock()
		j.unthawed = true
		a.mu.Unlock()
		final := finalPart(pub.stop(), j.dump, report, err, stillThawing, a.Clock.Now())
		reported = make(chan struct{})
		go func() {
			defer close(reported)
			a.deliver(final, log)
		}()
	}
	if j.dump.Canceled() {
		j.cancel(engine.ErrCanceled) // what the process before this one has begun is only ended
	}
	report, err := a.Dump(ctx, j.dump, o)
	a.mu.Lock()
	j.unthawed = false
	a.mu.Unlock()
	if reported == nil {
		p = pub.stop()
	}
	if errors.Is(err, engine.ErrLeft) {
		return // the next agent reports
	}
	// Before the end is reported, if memory is thawed: the controller takes the agent away then.
	module := "unloaded after the dump"
	if uerr := a.Unload(); uerr != nil {
		module = uerr.Error()
		log.Error("the module stays loaded", "error", uerr)
	} else {
		log.Info("module unloaded")
	}
	if reported != nil {
		<-reported
		return
	}
	if a.OnPoint != nil {
		a.OnPoint(ctx, PointReport)
	}
	a.deliver(finalPart(p, j.dump, report, err, module, a.Clock.Now()), log)
}

// stillThawing is what is said of the module if the end is reported before the thaw.
const stillThawing = "not unloaded when this was reported, for memory was not thawed yet: that takes until every CPU has scheduled, and one may be stuck"

// finalPart is the agent's last word on a LiveDump.
func finalPart(p Part, dump *v1alpha1.LiveDump, r *engine.Report, err error, module string, now time.Time) Part {
	generation := dump.Generation
	if r.Module.How != "" {
		p.set(now, generation, v1alpha1.ConditionModuleLoaded, metav1.ConditionTrue, reasonLoaded,
			fmt.Sprintf("version %q was %s; %s", r.Module.Version, r.Module.How, module))
	}
	if err == nil {
		p.Result = resultOf(r, dump.Spec.Target.PersistentVolumeClaims)
		p.Progress = v1alpha1.Progress{PagesTotal: int64(r.PagesToDump), PagesWritten: int64(r.PagesToDump),
			BytesWritten: int64(r.SizeBytes), Percent: 100, LastUpdateTime: metav1.NewTime(now)}
		p.set(now, generation, v1alpha1.ConditionCaptured, metav1.ConditionTrue, v1alpha1.ReasonComplete,
			fmt.Sprintf("%d pages in %d bytes%s, %s%s%s", r.PagesDumped, r.SizeBytes, inParts(r), checked(r, &dump.Spec.Target), takenOver(r), unthawed(r)))
		return p
	}
	reason := engine.Reason(err)
	if r.Module.How == "" && !p.is(v1alpha1.ConditionModuleLoaded, metav1.ConditionTrue) {
		moduleReason, message := v1alpha1.ReasonNotReached, "the dump ended before"
		if engine.IsModuleError(err) {
			moduleReason, message = reason, err.Error()
		}
		p.set(now, generation, v1alpha1.ConditionModuleLoaded, metav1.ConditionFalse, moduleReason, message)
	}
	p.set(now, generation, v1alpha1.ConditionCaptured, metav1.ConditionFalse, reason, err.Error()+unthawed(r))
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
	return string(dump.UID) != p.UID || dump.Ended()
}

// Drain lets the running dump, if there is one, come to its end and takes up no other. When giveUp is closed the dump
// is left to the next agent, or ended if none could go on with it. Drain returns when that is done.
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

// checked says who has compared what lies on the target with what was written.
func checked(r *engine.Report, t *v1alpha1.Target) string {
	switch {
	case r.ReadBack:
		return "read back and verified"
	case t.Stream != nil:
		return "confirmed by the receiver with the checksum of what was sent, not read back"
	case t.ObjectStorage != nil:
		return "every part compared with its checksum by the store, not read back (the credentials do not allow it)"
	}
	return "not read back"
}

// inParts says if the dump is split.
func inParts(r *engine.Report) string {
	if len(r.Parts) == 0 {
		return ""
	}
	return fmt.Sprintf(" in %d parts", len(r.Parts))
}

// unthawed says if memory was not thawed when the dump had ended.
func unthawed(r *engine.Report) string {
	if !r.Unthawed {
		return ""
	}
	return "; memory was not thawed yet when this was reported"
}

// takenOver says if more than one agent made the dump.
func takenOver(r *engine.Report) string {
	if r.Takeovers == 0 {
		return ""
	}
	return fmt.Sprintf("; taken over from an agent that ended, %d times", r.Takeovers)
}

// Tidy ends what no LiveDump needs any more: a session whose owner is gone, and the module.
func (a *Agent) Tidy(ctx context.Context) error {
	a.mu.Lock()
	busy := a.running != nil
	a.mu.Unlock()
	if busy {
		return nil
	}
	uuid, frozen, err := a.Session()
	if err != nil {
		return err
	}
	if frozen {
		wanted, err := a.wants(ctx, uuid)
		if err != nil || wanted {
			return err
		}
		found, err := a.Abandon(ctx, uuid)
		if err != nil {
			return fmt.Errorf("ending session %s, which no LiveDump has: %w", uuid, err)
		}
		if !found {
			return nil // another program's
		}
		a.Log.Warn("memory was still frozen for a LiveDump that has ended; thawed", "session", uuid)
	}
	alive, err := a.SessionAlive()
	if err != nil || alive {
		return err
	}
	return a.Unload()
}

// wants says whether a session belongs to a LiveDump of this node that has not ended.
func (a *Agent) wants(ctx context.Context, uuid string) (bool, error) {
	list := &v1alpha1.LiveDumpList{}
	if err := a.Reader.List(ctx, list); err != nil {
		return false, fmt.Errorf("listing LiveDumps: %w", err)
	}
	for i := range list.Items {
		d := &list.Items[i]
		if sessionOf(d).String() == uuid && d.Spec.NodeName == a.NodeName && !d.Ended() {
			return true, nil
		}
	}
	return false, nil
}
