// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/format"
	"livedump.io/internal/session"
	"livedump.io/node-agent/engine"
)

var resource = schema.GroupResource{Group: "livedump.io", Resource: "livedumps"}

const testUID = "11111111-2222-3333-4444-555555555555"

// apiServer stands for the API server: a store, and a status endpoint that can be away.
type apiServer struct {
	client.Client
	t *testing.T

	mu     sync.Mutex
	parts  []Part
	refuse func(Part) error // called before a write
	ack    func(Part) error // called after it, so that the answer is lost
}

func (s *apiServer) Write(ctx context.Context, p Part) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		if err := s.refuse(p); err != nil {
			return err
		}
	}
	dump := &v1alpha1.LiveDump{}
	if err := s.Get(ctx, types.NamespacedName{Namespace: p.Namespace, Name: p.Name}, dump); err != nil {
		return err
	}
	if string(dump.UID) != p.UID || p.ResourceVersion != "" && p.ResourceVersion != dump.ResourceVersion {
		return apierrors.NewConflict(resource, p.Name, errors.New("changed"))
	}
	for _, c := range p.Conditions {
		meta.SetStatusCondition(&dump.Status.Conditions, c)
	}
	dump.Status.Session, dump.Status.Progress, dump.Status.Result = p.Session, p.Progress, p.Result
	if err := s.Status().Update(ctx, dump); err != nil {
		return err
	}
	s.parts = append(s.parts, p)
	if s.ack != nil {
		return s.ack(p)
	}
	return nil
}

func (s *apiServer) written() []Part {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Part(nil), s.parts...)
}

func (s *apiServer) setRefuse(f func(Part) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = f
}

// machine stands for the node: dumps that end when the test says so.
type machine struct {
	mu        sync.Mutex
	dumps     int
	unloads   int
	alive     bool
	session   string // frozen
	abandoned int
	progress  func(engine.Progress)
	options   engine.Options

	finish chan error // what a dump returns
	thaw   chan error // what a dump that ends before the thaw says then
	began  chan struct{}
	over   chan struct{} // closed when the test has ended
}

func (m *machine) dump(ctx context.Context, _ *v1alpha1.LiveDump, o engine.Options) (*engine.Report, error) {
	m.mu.Lock()
	m.dumps++
	m.progress, m.options = o.Progress, o
	m.mu.Unlock()
	r := &engine.Report{Format: format.Kdump.String(), DumpLevel: uint32(o.Level), SHA256: "abc", SizeBytes: 4096, PagesDumped: 7,
		PagesToDump: 8, LostPages: 1, FreezeNS: 1500, Device: "/dev/vdb"}
	r.Module.How, r.Module.Version = "loaded", "1"
	m.began <- struct{}{}
	select {
	case err := <-m.thaw:
		early := *r
		early.Unthawed = true
		o.Unthawed(&early, err)
		select { // the kernel decides when it is over, not the context
		case <-m.finish:
		case <-m.over:
		}
		return r, err
	case err := <-m.finish:
		return r, err
	case <-ctx.Done():
		return r, fmt.Errorf("ended: %w", context.Cause(ctx))
	}
}

func (m *machine) count() (dumps, unloads int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dumps, m.unloads
}

type bench struct {
	*testing.T
	api   *apiServer
	node  *machine
	clock *clocktesting.FakeClock
	agent *Agent
}

var testStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// secondDump is another LiveDump for the node.
func secondDump() *v1alpha1.LiveDump {
	second := newDump("e")
	second.UID = "99999999-2222-3333-4444-555555555555"
	return second
}

// newDump is a LiveDump that the agent of node n1 may take up.
func newDump(name string) *v1alpha1.LiveDump {
	started := metav1.NewTime(testStart)
	d := &v1alpha1.LiveDump{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: testUID, Generation: 3},
		Spec: v1alpha1.LiveDumpSpec{NodeName: "n1", TimeoutSeconds: 600,
			Target:       v1alpha1.Target{PersistentVolumeClaim: &v1alpha1.PersistentVolumeClaimTarget{ClaimName: "c"}},
			Content:      v1alpha1.Content{Profile: v1alpha1.ContentKernel},
			Consistency:  v1alpha1.ConsistencyStrict,
			Compression:  v1alpha1.CompressionZstd,
			DesiredState: v1alpha1.DesiredStateRun},
		Status: v1alpha1.LiveDumpStatus{StartTime: &started,
			Node:   v1alpha1.NodeIdentity{BootID: "boot-1"},
			Target: v1alpha1.TargetStatus{PersistentVolumeName: "pv", HolderPodUID: "uid", CapacityBytes: 1 << 30}},
	}
	for _, c := range []struct {
		kind, reason string
		status       metav1.ConditionStatus
	}{
		{v1alpha1.ConditionAccepted, v1alpha1.ReasonAccepted, metav1.ConditionTrue},
		{v1alpha1.ConditionTargetReady, v1alpha1.ReasonAttached, metav1.ConditionTrue},
		{v1alpha1.ConditionAgentReady, v1alpha1.ReasonPending, metav1.ConditionUnknown},
		{v1alpha1.ConditionModuleLoaded, v1alpha1.ReasonPending, metav1.ConditionUnknown},
		{v1alpha1.ConditionCaptured, v1alpha1.ReasonPending, metav1.ConditionUnknown},
		{v1alpha1.ConditionSucceeded, v1alpha1.ReasonPending, metav1.ConditionUnknown},
	} {
		setCondition(d, c.kind, c.status, c.reason)
	}
	return d
}

func setCondition(d *v1alpha1.LiveDump, kind string, status metav1.ConditionStatus, reason string) {
	meta.SetStatusCondition(&d.Status.Conditions, metav1.Condition{Type: kind, Status: status, Reason: reason, Message: "by the test",
		LastTransitionTime: metav1.NewTime(testStart)})
}

func newBench(t *testing.T, dumps ...*v1alpha1.LiveDump) *bench {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	builder := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.LiveDump{})
	for _, d := range dumps {
		builder.WithObjects(d)
	}
	b := &bench{T: t, api: &apiServer{Client: builder.Build(), t: t}, clock: clocktesting.NewFakeClock(testStart.Add(time.Minute)),
		node: &machine{finish: make(chan error), thaw: make(chan error), began: make(chan struct{}, 8), over: make(chan struct{})}}
	b.agent = &Agent{
		Reader: b.api, Status: b.api, NodeName: "n1", BootID: "boot-1", Dump: b.node.dump,
		Unload: func() error {
			b.node.mu.Lock()
			defer b.node.mu.Unlock()
			b.node.unloads++
			return nil
		},
		Grace: time.Minute,
		Session: func() (string, bool, error) {
			b.node.mu.Lock()
			defer b.node.mu.Unlock()
			return b.node.session, b.node.session != "", nil
		},
		Abandon: func(_ context.Context, uuid string) (bool, error) {
			b.node.mu.Lock()
			defer b.node.mu.Unlock()
			if uuid != b.node.session {
				return false, nil
			}
			b.node.session, b.node.abandoned = "", b.node.abandoned+1
			return true, nil
		},
		SessionAlive: func() (bool, error) { b.node.mu.Lock(); defer b.node.mu.Unlock(); return b.node.alive, nil },
		Clock:        b.clock,
		Log:          slog.New(slog.DiscardHandler),
	}
	t.Cleanup(func() { // nothing may be left running
		giveUp := make(chan struct{})
		close(giveUp)
		close(b.node.over)
		b.api.setRefuse(func(Part) error { return apierrors.NewNotFound(resource, "ended by the test") })
		stop := make(chan struct{})
		defer close(stop)
		go b.tick(stop)
		b.agent.Drain(giveUp)
	})
	return b
}

// tick lets time pass for whoever waits for it.
func (b *bench) tick(stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Millisecond):
			if b.clock.HasWaiters() {
				b.clock.Step(time.Minute)
			}
		}
	}
}

func (b *bench) reconcile(name string) ctrl.Result {
	b.Helper()
	r, err := b.agent.Reconcile(context.Background(), request(name))
	if err != nil {
		b.Fatal(err)
	}
	return r
}

func request(name string) ctrl.Request {
	return ctrl.Request{NamespacedName: types.NamespacedName{Namespace: "ns", Name: name}}
}

func (b *bench) get(name string) *v1alpha1.LiveDump {
	b.Helper()
	d := &v1alpha1.LiveDump{}
	if err := b.api.Get(context.Background(), types.NamespacedName{Namespace: "ns", Name: name}, d); err != nil {
		b.Fatal(err)
	}
	return d
}

func (b *bench) waitFor(what string, f func() bool) {
	b.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			b.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func (b *bench) waitIdle() {
	b.Helper()
	b.waitFor("the dump to end", func() bool {
		b.agent.mu.Lock()
		defer b.agent.mu.Unlock()
		return b.agent.running == nil
	})
}

func (b *bench) wantCaptured(name string, status metav1.ConditionStatus, reason string) {
	b.Helper()
	c := meta.FindStatusCondition(b.get(name).Status.Conditions, v1alpha1.ConditionCaptured)
	if c.Status != status || c.Reason != reason || c.Message == "" {
		b.Errorf("Captured: %s %s %q, want %s %s", c.Status, c.Reason, c.Message, status, reason)
	}
}

func TestSuccess(t *testing.T) {
	b := newBench(t, newDump("d"))
	b.reconcile("d")
	<-b.node.began
	// It was on record before the dump began.
	b.wantCaptured("d", metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	if got := b.get("d").Status.Session; got != testUID {
		t.Errorf("session %q", got)
	}
	o := b.node.options
	if o.Level != session.ExcludeAll || o.Mode != session.Strict || o.Deadline != 9*time.Minute || o.UUID.String() != testUID {
		t.Errorf("options: %+v", o)
	}
	b.reconcile("d") // nothing new
	b.api.setRefuse(func(p Part) error {
		if p.Result != nil {
			if _, unloads := b.node.count(); unloads != 1 {
				t.Error("the end was reported before the module was unloaded")
			}
		}
		return nil
	})
	b.node.finish <- nil
	b.waitIdle()
	b.wantCaptured("d", metav1.ConditionTrue, v1alpha1.ReasonComplete)
	d := b.get("d")
	r := d.Status.Result
	if r == nil || r.SHA256 != "abc" || r.SizeBytes != 4096 || r.PagesDumped != 7 || r.PagesLost != 1 || r.FreezeMicroseconds != 2 || len(r.PagesByClass) != 10 {
		t.Fatalf("result: %+v", r)
	}
	if d.Status.Progress.Percent != 100 {
		t.Errorf("progress: %+v", d.Status.Progress)
	}
	if c := meta.FindStatusCondition(d.Status.Conditions, v1alpha1.ConditionModuleLoaded); c.Status != metav1.ConditionTrue || c.ObservedGeneration != 3 {
		t.Errorf("ModuleLoaded: %+v", c)
	}
	b.reconcile("d")
	if dumps, unloads := b.node.count(); dumps != 1 || unloads != 1 {
		t.Errorf("%d dumps, %d unloads", dumps, unloads)
	}
}

// TestReportedBeforeTheThaw: while a CPU is stuck memory is not thawed, and the end of the dump is reported all the same, once. The module
// stays, and another LiveDump hears why it cannot begin.
func TestReportedBeforeTheThaw(t *testing.T) {
	for _, c := range []struct {
		name, reason string
		err          error
		status       metav1.ConditionStatus
	}{
		{"complete", v1alpha1.ReasonComplete, nil, metav1.ConditionTrue},
		{"failed", v1alpha1.ReasonReserveExhausted, session.ErrReserveExhausted, metav1.ConditionFalse},
	} {
		t.Run(c.name, func(t *testing.T) {
			second := secondDump()
			b := newBench(t, newDump("d"), second)
			b.reconcile("d")
			<-b.node.began
			b.node.thaw <- c.err
			b.waitFor("the report", func() bool {
				return meta.FindStatusCondition(b.get("d").Status.Conditions, v1alpha1.ConditionCaptured).Reason == c.reason
			})
			b.wantCaptured("d", c.status, c.reason)
			d := b.get("d")
			if (d.Status.Result != nil) != (c.err == nil) {
				t.Errorf("result: %+v", d.Status.Result)
			}
			for _, kind := range []string{v1alpha1.ConditionCaptured, v1alpha1.ConditionModuleLoaded} {
				if m := meta.FindStatusCondition(d.Status.Conditions, kind).Message; !strings.Contains(m, "not thawed yet") {
					t.Errorf("%s: %q", kind, m)
				}
			}
			if _, unloads := b.node.count(); unloads != 0 {
				t.Error("the module was unloaded under the session")
			}
			written := len(b.api.written())

			// The controller ends it, which the dump does not hear of any more; and it may be gone soon.
			setCondition(d, v1alpha1.ConditionSucceeded, c.status, c.reason)
			if err := b.api.Status().Update(context.Background(), d); err != nil {
				t.Fatal(err)
			}
			b.reconcile("d")
			if err := b.agent.Tidy(context.Background()); err != nil {
				t.Fatal(err)
			}
			b.reconcile("e")
			b.wantCaptured("e", metav1.ConditionFalse, v1alpha1.ReasonNodeBusy)
			if m := meta.FindStatusCondition(b.get("e").Status.Conditions, v1alpha1.ConditionCaptured).Message; !strings.Contains(m, testUID) {
				t.Errorf("it does not say for which session it cannot begin: %q", m)
			}
			written++

			b.node.finish <- nil
			b.waitIdle()
			if dumps, unloads := b.node.count(); dumps != 1 || unloads != 1 {
				t.Errorf("after the thaw: %d dumps, %d unloads", dumps, unloads)
			}
			if n := len(b.api.written()); n != written {
				t.Errorf("%d writes, want %d: the end is reported once", n, written)
			}
			b.reconcile("d")
			if dumps, _ := b.node.count(); dumps != 1 {
				t.Error("the dump that has ended was begun again")
			}
		})
	}
}

// TestThawBeforeTheReport: memory is thawed while the API server is away. The dump goes on to be reported, and no other is begun until then.
func TestThawBeforeTheReport(t *testing.T) {
	second := secondDump()
	b := newBench(t, newDump("d"), second)
	b.reconcile("d")
	<-b.node.began
	var tries atomic.Int32
	b.api.setRefuse(func(Part) error { tries.Add(1); return errors.New("connection refused") })
	b.node.thaw <- nil
	b.node.finish <- nil
	stop := make(chan struct{})
	defer close(stop)
	go b.tick(stop)
	b.waitFor("the report to be tried again and again", func() bool { return tries.Load() >= 8 })
	if _, unloads := b.node.count(); unloads != 1 {
		t.Error("the module stays for the sake of the API server")
	}
	if r := b.reconcile("e"); r.RequeueAfter == 0 {
		t.Error("the next dump has nothing to wait for but the report, and is not looked at again")
	}
	b.api.setRefuse(nil)
	b.waitIdle()
	b.wantCaptured("d", metav1.ConditionTrue, v1alpha1.ReasonComplete)
}

func TestFailure(t *testing.T) {
	b := newBench(t, newDump("d"))
	b.reconcile("d")
	<-b.node.began
	b.node.finish <- fmt.Errorf("next: %w", session.ErrReserveExhausted)
	b.waitIdle()
	b.wantCaptured("d", metav1.ConditionFalse, v1alpha1.ReasonReserveExhausted)
	if d := b.get("d"); d.Status.Result != nil {
		t.Error("a failed dump has a result")
	}
}

func TestNotToBeTakenUp(t *testing.T) {
	for name, change := range map[string]func(*v1alpha1.LiveDump){
		"another node": func(d *v1alpha1.LiveDump) { d.Spec.NodeName = "n2" },
		"not accepted": func(d *v1alpha1.LiveDump) { setCondition(d, v1alpha1.ConditionAccepted, metav1.ConditionUnknown, "x") },
		"target not ready": func(d *v1alpha1.LiveDump) {
			setCondition(d, v1alpha1.ConditionTargetReady, metav1.ConditionUnknown, "x")
		},
		"no holder": func(d *v1alpha1.LiveDump) { d.Status.Target.HolderPodUID = "" },
		"ended":     func(d *v1alpha1.LiveDump) { setCondition(d, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, "x") },
		"captured":  func(d *v1alpha1.LiveDump) { setCondition(d, v1alpha1.ConditionCaptured, metav1.ConditionTrue, "x") },
		"failed":    func(d *v1alpha1.LiveDump) { setCondition(d, v1alpha1.ConditionCaptured, metav1.ConditionFalse, "x") },
		"canceled":  func(d *v1alpha1.LiveDump) { d.Spec.DesiredState = v1alpha1.DesiredStateCancel },
		"too late":  func(d *v1alpha1.LiveDump) { d.Spec.TimeoutSeconds = 60 },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDump("d")
			change(d)
			b := newBench(t, d)
			b.reconcile("d")
			if dumps, _ := b.node.count(); dumps != 0 || len(b.api.written()) != 0 || b.agent.running != nil {
				t.Errorf("%d dumps, %d writes", dumps, len(b.api.written()))
			}
		})
	}
}

func TestCancel(t *testing.T) {
	b := newBench(t, newDump("d"))
	b.reconcile("d")
	<-b.node.began
	d := b.get("d")
	d.Spec.DesiredState = v1alpha1.DesiredStateCancel
	if err := b.api.Update(context.Background(), d); err != nil {
		t.Fatal(err)
	}
	b.reconcile("d")
	b.waitIdle()
	b.wantCaptured("d", metav1.ConditionFalse, v1alpha1.ReasonCanceled)
}

func TestDeletedWhileRunning(t *testing.T) {
	b := newBench(t, newDump("d"))
	b.reconcile("d")
	<-b.node.began
	if err := b.api.Delete(context.Background(), b.get("d")); err != nil {
		t.Fatal(err)
	}
	b.reconcile("d")
	b.waitIdle() // and does not try forever to report it
}

// TestEndedByController: the timeout of the controller, say. Then no report is taken any more.
func TestEndedByController(t *testing.T) {
	b := newBench(t, newDump("d"))
	b.reconcile("d")
	<-b.node.began
	d := b.get("d")
	setCondition(d, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonDeadlineExceeded)
	if err := b.api.Status().Update(context.Background(), d); err != nil {
		t.Fatal(err)
	}
	b.api.setRefuse(func(Part) error { return apierrors.NewForbidden(resource, "d", errors.New("it has ended")) })
	b.reconcile("d")
	b.waitIdle()
	if n := len(b.api.written()); n != 1 {
		t.Errorf("%d writes, want only the first", n)
	}
}

func TestTimeout(t *testing.T) {
	d := newDump("d")
	d.Spec.TimeoutSeconds = 61 // a second is left, of real time, for the dump's context
	b := newBench(t, d)
	b.reconcile("d")
	<-b.node.began
	b.waitIdle()
	b.wantCaptured("d", metav1.ConditionFalse, v1alpha1.ReasonDeadlineExceeded)
}

// TestTakenOver: a process before this one had taken the LiveDump up.
func TestTakenOver(t *testing.T) {
	taken := newDump("d")
	taken.Status.Session = testUID
	setCondition(taken, v1alpha1.ConditionCaptured, metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	t.Run("and completed", func(t *testing.T) {
		b := newBench(t, taken.DeepCopy())
		b.reconcile("d")
		<-b.node.began
		if o := b.node.options; !o.Resume || o.Grace != time.Minute || o.UUID.String() != testUID {
			t.Errorf("options: %+v", o)
		}
		b.node.finish <- nil
		b.waitIdle()
		b.wantCaptured("d", metav1.ConditionTrue, v1alpha1.ReasonComplete)
	})
	t.Run("and it is impossible to go on", func(t *testing.T) {
		b := newBench(t, taken.DeepCopy())
		b.reconcile("d")
		<-b.node.began
		b.node.finish <- fmt.Errorf("%w: memory was thawed", engine.ErrLost)
		b.waitIdle()
		b.wantCaptured("d", metav1.ConditionFalse, v1alpha1.ReasonAgentLost)
		if got := b.get("d").Status.Session; got != testUID {
			t.Errorf("session %q", got)
		}
	})
	t.Run("after a reboot", func(t *testing.T) {
		b := newBench(t, taken.DeepCopy())
		b.agent.BootID = "boot-2"
		b.reconcile("d")
		b.wantCaptured("d", metav1.ConditionFalse, v1alpha1.ReasonNodeRebooted)
		// The target, which may have got all pages before, was not looked at.
		if m := meta.FindStatusCondition(b.get("d").Status.Conditions, v1alpha1.ConditionCaptured).Message; strings.Contains(m, "no valid dump") || !strings.Contains(m, "not known here") {
			t.Errorf("message: %q", m)
		}
		if dumps, _ := b.node.count(); dumps != 0 {
			t.Errorf("%d dumps", dumps)
		}
	})
	t.Run("canceled meanwhile", func(t *testing.T) {
		d := taken.DeepCopy()
		d.Spec.DesiredState = v1alpha1.DesiredStateCancel
		b := newBench(t, d)
		b.reconcile("d")
		<-b.node.began
		b.waitIdle()
		b.wantCaptured("d", metav1.ConditionFalse, v1alpha1.ReasonCanceled)
	})
	t.Run("after its time", func(t *testing.T) {
		d := taken.DeepCopy()
		d.Spec.TimeoutSeconds = 10
		b := newBench(t, d)
		b.reconcile("d")
		<-b.node.began
		b.waitIdle()
		b.wantCaptured("d", metav1.ConditionFalse, v1alpha1.ReasonDeadlineExceeded)
	})
	t.Run("the answer to the first write is lost", func(t *testing.T) {
		b := newBench(t, taken.DeepCopy())
		b.api.ack = func(Part) error { return errors.New("connection reset") }
		if _, err := b.agent.Reconcile(context.Background(), request("d")); err == nil {
			t.Fatal("no error")
		}
		b.api.mu.Lock()
		b.api.ack = nil
		b.api.mu.Unlock()
		b.reconcile("d")
		<-b.node.began
		if !b.node.options.Resume {
			t.Error("begun anew")
		}
	})
	t.Run("ended meanwhile", func(t *testing.T) {
		d := taken.DeepCopy()
		setCondition(d, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonAgentLost)
		b := newBench(t, d)
		b.node.session = testUID
		b.reconcile("d")
		b.wantNoWrite()
		if b.node.abandoned != 1 {
			t.Error("memory stays frozen for a LiveDump that has ended")
		}
	})
}

// TestLeft: a dump that is left to the next agent is not reported, and the module stays.
func TestLeft(t *testing.T) {
	b := newBench(t, newDump("d"))
	b.reconcile("d")
	<-b.node.began
	b.node.finish <- engine.ErrLeft
	b.waitIdle()
	b.wantCaptured("d", metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	if _, unloads := b.node.count(); unloads != 0 {
		t.Error("the module was unloaded under the session")
	}
}

func (b *bench) wantNoWrite() {
	b.Helper()
	if n := len(b.api.written()); n != 0 {
		b.Errorf("%d writes", n)
	}
	if dumps, _ := b.node.count(); dumps != 0 {
		b.Errorf("%d dumps", dumps)
	}
}

// TestStaleCache: right after the end the cache may still show a LiveDump that runs. It is neither lost nor new.
func TestStaleCache(t *testing.T) {
	b := newBench(t, newDump("d"))
	b.reconcile("d")
	<-b.node.began
	running := b.get("d")
	b.node.finish <- nil
	b.waitIdle()
	before := newDump("d")
	for name, shown := range map[string]*v1alpha1.LiveDump{"running": running, "not begun": before} {
		stale := fake.NewClientBuilder().WithScheme(b.api.Scheme()).WithStatusSubresource(shown).WithObjects(resetVersion(shown)).Build()
		b.agent.Reader = stale
		b.reconcile("d")
		if dumps, _ := b.node.count(); dumps != 1 {
			t.Errorf("cache shows it %s: %d dumps", name, dumps)
		}
		b.wantCaptured("d", metav1.ConditionTrue, v1alpha1.ReasonComplete)
	}
}

func resetVersion(d *v1alpha1.LiveDump) *v1alpha1.LiveDump {
	d = d.DeepCopy()
	d.ResourceVersion = ""
	return d
}

// TestConflictOnClaim: the LiveDump changed (was canceled, say) before it could be taken up.
func TestConflictOnClaim(t *testing.T) {
	b := newBench(t, newDump("d"))
	b.api.setRefuse(func(Part) error { return apierrors.NewConflict(resource, "d", errors.New("changed")) })
	if r := b.reconcile("d"); r.RequeueAfter == 0 {
		t.Error("not looked at again")
	}
	if dumps, _ := b.node.count(); dumps != 0 {
		t.Error("the dump began although it could not be taken up")
	}
	b.api.setRefuse(nil)
	b.reconcile("d")
	<-b.node.began
}

// TestLostAnswer: the claim was written, but the answer did not arrive. The dump is not lost, it has not begun.
func TestLostAnswer(t *testing.T) {
	b := newBench(t, newDump("d"))
	b.api.ack = func(Part) error { return errors.New("connection reset") }
	if _, err := b.agent.Reconcile(context.Background(), request("d")); err == nil {
		t.Fatal("no error")
	}
	if dumps, _ := b.node.count(); dumps != 0 {
		t.Fatal("the dump began although it is not known to be on record")
	}
	b.wantCaptured("d", metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	b.api.mu.Lock()
	b.api.ack = nil
	b.api.mu.Unlock()
	b.reconcile("d")
	<-b.node.began
	b.node.finish <- nil
	b.waitIdle()
	b.wantCaptured("d", metav1.ConditionTrue, v1alpha1.ReasonComplete)
}

func TestOneAtATime(t *testing.T) {
	second := secondDump()
	b := newBench(t, newDump("d"), second)
	b.reconcile("d")
	<-b.node.began
	if r := b.reconcile("e"); r.RequeueAfter == 0 {
		t.Error("not looked at again")
	}
	if dumps, _ := b.node.count(); dumps != 1 {
		t.Errorf("%d dumps at once", dumps)
	}
	b.wantCaptured("e", metav1.ConditionUnknown, v1alpha1.ReasonPending)
	b.node.finish <- nil
	b.waitIdle()
	b.reconcile("e")
	<-b.node.began
	b.wantCaptured("e", metav1.ConditionUnknown, v1alpha1.ReasonRunning)
}

// TestAPIServerAway: the last report is written when the API server is back.
func TestAPIServerAway(t *testing.T) {
	b := newBench(t, newDump("d"))
	b.reconcile("d")
	<-b.node.began
	var tries atomic.Int32
	b.api.setRefuse(func(Part) error { tries.Add(1); return errors.New("connection refused") })
	b.node.finish <- nil
	stop := make(chan struct{})
	defer close(stop)
	go b.tick(stop)
	b.waitFor("the report to be tried again and again", func() bool { return tries.Load() >= 8 })
	b.wantCaptured("d", metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	b.api.setRefuse(nil)
	b.waitIdle()
	b.wantCaptured("d", metav1.ConditionTrue, v1alpha1.ReasonComplete)
}

// TestProgress: at most one write a second, always of the newest.
func TestProgress(t *testing.T) {
	b := newBench(t, newDump("d"))
	b.reconcile("d")
	<-b.node.began
	report := func(done uint64) {
		b.node.progress(engine.Progress{Step: engine.StepWrite, PagesTotal: 1000, PagesDone: done, ModuleLoaded: true})
	}
	b.waitFor("the first second", b.clock.HasWaiters)
	for i := range uint64(100) {
		report(i)
	}
	if n := len(b.api.written()); n != 1 {
		t.Fatalf("%d writes in the first second, want only that of the claim", n)
	}
	b.clock.Step(publishEvery)
	b.waitFor("progress", func() bool { return len(b.api.written()) == 2 })
	d := b.get("d")
	if d.Status.Progress.PagesWritten != 99 || d.Status.Progress.Percent != 9 {
		t.Errorf("progress: %+v", d.Status.Progress)
	}
	c := meta.FindStatusCondition(d.Status.Conditions, v1alpha1.ConditionCaptured)
	if c.Message != string(engine.StepWrite) || c.Status != metav1.ConditionUnknown {
		t.Errorf("Captured: %+v", c)
	}
	if c := meta.FindStatusCondition(d.Status.Conditions, v1alpha1.ConditionModuleLoaded); c.Status != metav1.ConditionTrue {
		t.Errorf("ModuleLoaded: %+v", c)
	}
	// The API server being away does not hold up the dump, and what could not be written is replaced by the newest.
	b.waitFor("the next second", b.clock.HasWaiters)
	b.api.setRefuse(func(Part) error { return errors.New("connection refused") })
	report(500)
	b.clock.Step(publishEvery)
	b.waitFor("the next second", b.clock.HasWaiters)
	b.api.setRefuse(nil)
	report(700)
	b.clock.Step(publishEvery)
	b.waitFor("progress", func() bool { return b.get("d").Status.Progress.PagesWritten == 700 })
}

func TestDrain(t *testing.T) {
	t.Run("the dump ends within the grace period", func(t *testing.T) {
		b := newBench(t, newDump("d"))
		b.reconcile("d")
		<-b.node.began
		drained := make(chan struct{})
		go func() {
			b.agent.Drain(make(chan struct{}))
			close(drained)
		}()
		b.waitFor("draining", func() bool { b.agent.mu.Lock(); defer b.agent.mu.Unlock(); return b.agent.draining })
		select {
		case <-drained:
			t.Fatal("the agent ended while its dump ran")
		default:
		}
		b.node.finish <- nil
		<-drained
		b.wantCaptured("d", metav1.ConditionTrue, v1alpha1.ReasonComplete)
	})
	t.Run("it does not", func(t *testing.T) {
		b := newBench(t, newDump("d"))
		b.reconcile("d")
		<-b.node.began
		giveUp := make(chan struct{})
		close(giveUp)
		b.agent.Drain(giveUp)
		b.wantCaptured("d", metav1.ConditionFalse, v1alpha1.ReasonAgentLost)
	})
	t.Run("no other is taken up", func(t *testing.T) {
		b := newBench(t, newDump("d"))
		b.agent.Drain(make(chan struct{}))
		b.reconcile("d")
		b.wantNoWrite()
	})
}

// TestTidy: at the start, and when a LiveDump ends or goes, nothing stays that nobody needs.
func TestTidy(t *testing.T) {
	tidy := func(b *bench) {
		b.Helper()
		if err := b.agent.Tidy(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	b := newBench(t, newDump("d"))
	b.node.alive = true
	tidy(b)
	if _, unloads := b.node.count(); unloads != 0 {
		t.Error("a module in use was unloaded")
	}
	b.node.session = testUID
	tidy(b)
	if b.node.abandoned != 0 {
		t.Error("the session of a LiveDump that has not ended was ended")
	}
	b.node.session = "99999999-2222-3333-4444-555555555555"
	b.node.alive = false
	b.reconcile("gone")
	if _, unloads := b.node.count(); b.node.abandoned != 1 || unloads != 1 {
		t.Errorf("%d sessions ended, %d unloads", b.node.abandoned, unloads)
	}
}

// A key that passes the API's pattern may still be none. That has to be known before memory is frozen.
func TestRecipientsThatAreNone(t *testing.T) {
	d := newDump("d")
	d.Spec.Encryption = &v1alpha1.Encryption{Recipients: []string{"age1" + strings.Repeat("q", 58)}}
	b := newBench(t, d)
	b.reconcile("d")
	b.wantCaptured("d", metav1.ConditionFalse, v1alpha1.ReasonTargetInvalid)
	if dumps, _ := b.node.count(); dumps != 0 {
		t.Errorf("%d dumps", dumps)
	}
}

// Certificates that pass the API's pattern may still be none.
func TestCertificatesThatAreNone(t *testing.T) {
	d := newDump("d")
	d.Spec.Target = v1alpha1.Target{Stream: &v1alpha1.StreamTarget{Address: "10.0.0.1:7000",
		TLS: v1alpha1.StreamTLS{CABundle: "-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n"}}}
	b := newBench(t, d)
	b.reconcile("d")
	b.wantCaptured("d", metav1.ConditionFalse, v1alpha1.ReasonTargetInvalid)
	if m := meta.FindStatusCondition(b.get("d").Status.Conditions, v1alpha1.ConditionCaptured).Message; !strings.Contains(m, "caBundle") {
		t.Errorf("it does not say what is wrong: %q", m)
	}
	if dumps, _ := b.node.count(); dumps != 0 {
		t.Errorf("%d dumps", dumps)
	}
}

func TestUnknownSpec(t *testing.T) {
	d := newDump("d")
	d.Spec.Compression = "Future"
	b := newBench(t, d)
	b.reconcile("d")
	b.wantCaptured("d", metav1.ConditionFalse, v1alpha1.ReasonInternalError)
	if dumps, _ := b.node.count(); dumps != 0 {
		t.Errorf("%d dumps", dumps)
	}
}
