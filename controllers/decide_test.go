// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"livedump.io/api/v1alpha1"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// fresh is what is seen of a LiveDump on its first look, on a node and claim that fit.
func fresh() *observation {
	const block = corev1.PersistentVolumeBlock
	dump := &v1alpha1.LiveDump{
		ObjectMeta: metav1.ObjectMeta{Namespace: "dumps", Name: "dump", UID: "0a1b2c3d-0000-4000-8000-000000000000", Generation: 1,
			CreationTimestamp: metav1.NewTime(start)},
		Spec: v1alpha1.LiveDumpSpec{NodeName: "node", TimeoutSeconds: 600, DesiredState: v1alpha1.DesiredStateRun,
			Target: v1alpha1.Target{PersistentVolumeClaim: &v1alpha1.PersistentVolumeClaimTarget{ClaimName: "claim"}}},
	}
	return &observation{
		now: start, dump: dump, whole: true, namespaceAllowed: true, agentNamespace: "livedump-system",
		node: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", Labels: map[string]string{corev1.LabelHostname: "node"}}, Status: corev1.NodeStatus{
			Capacity:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("8Gi")},
			NodeInfo:   corev1.NodeSystemInfo{BootID: "boot-1", KernelVersion: "6.1.0", OperatingSystem: "linux", Architecture: "amd64"},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		}},
		claims: []*claimSeen{seen("claim", block, "4Gi")},
	}
}

// seen is a claim that is bound to a volume of a size.
func seen(name string, mode corev1.PersistentVolumeMode, size string) *claimSeen {
	uid, volume := types.UID(name+"-uid"), "volume"
	if name != "claim" {
		volume += "-of-" + name
	}
	return &claimSeen{
		PersistentVolumeClaimTarget: v1alpha1.PersistentVolumeClaimTarget{ClaimName: name},
		claim: &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name, UID: uid},
			Spec:   corev1.PersistentVolumeClaimSpec{VolumeMode: &mode, VolumeName: volume},
			Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}},
		volume: &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: volume}, Spec: corev1.PersistentVolumeSpec{
			VolumeMode: &mode, ClaimRef: &corev1.ObjectReference{UID: uid},
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}}},
	}
}

// proceed decides and takes over the status that was decided.
func (o *observation) proceed() decision {
	d := decide(o)
	o.dump.Status = d.status
	return d
}

func (o *observation) withHolder() *observation {
	o.holder = &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: holderName(o.dump), UID: "holder-uid", CreationTimestamp: metav1.NewTime(o.now), Labels: map[string]string{ComponentLabel: holderComponent},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: v1alpha1.GroupVersion.String(), Kind: "LiveDump", Name: o.dump.Name, UID: o.dump.UID, Controller: new(true)}}},
		Spec:   corev1.PodSpec{NodeName: "node"},
		Status: runningPod(),
	}
	return o
}

func (o *observation) withAgent() *observation {
	o.agent = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "livedump-system", Name: "agent"}, Status: runningPod()}
	return o
}

func runningPod() corev1.PodStatus {
	return corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
}

// report sets the agent's conditions.
func (o *observation) report(status metav1.ConditionStatus, reason string) *observation {
	o.dump.Status.Session = "session"
	meta.SetStatusCondition(&o.dump.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionCaptured, Status: status, Reason: reason, Message: "by the agent"})
	if status == metav1.ConditionTrue {
		o.dump.Status.Result = &v1alpha1.Result{SizeBytes: 1 << 20, SHA256: "ab", PagesDumped: 5}
	}
	return o
}

// running is a LiveDump that the agent has taken up.
func running() *observation {
	o := fresh()
	o.proceed()
	o.withHolder().withAgent().proceed()
	return o.report(metav1.ConditionUnknown, v1alpha1.ReasonRunning)
}

func conditionOf(d decision, conditionType string) metav1.Condition {
	if c := meta.FindStatusCondition(d.status.Conditions, conditionType); c != nil {
		return *c
	}
	return metav1.Condition{}
}

func TestFirstLookAcceptsAndAsksForAll(t *testing.T) {
	d := decide(fresh())
	if d.finalizer != ensure || d.holder != ensure || d.cancel || d.expire {
		t.Errorf("decision: %+v", d)
	}
	for conditionType, want := range map[string]metav1.ConditionStatus{
		v1alpha1.ConditionAccepted: metav1.ConditionTrue, v1alpha1.ConditionTargetReady: metav1.ConditionUnknown, v1alpha1.ConditionAgentReady: metav1.ConditionUnknown,
		v1alpha1.ConditionModuleLoaded: metav1.ConditionUnknown, v1alpha1.ConditionCaptured: metav1.ConditionUnknown, v1alpha1.ConditionSucceeded: metav1.ConditionUnknown,
	} {
		if c := conditionOf(d, conditionType); c.Status != want || c.Reason == "" || c.Message == "" || c.ObservedGeneration != 1 {
			t.Errorf("%s: %+v, want status %s", conditionType, c, want)
		}
	}
	if d.status.StartTime == nil || !d.status.StartTime.Time.Equal(start) {
		t.Errorf("startTime %v", d.status.StartTime)
	}
	if !equality.Semantic.DeepEqual(d.status.Target, v1alpha1.TargetStatus{}) {
		t.Errorf("the target is told before it is attached: %+v", d.status.Target)
	}
}

// A look at an unchanged world changes nothing, or the controller would write for ever.
func TestDecisionsSettle(t *testing.T) {
	for name, o := range map[string]*observation{"accepted": fresh(), "attached": fresh().withHolder().withAgent(), "running": running(),
		"split": split().withHolder().withAgent()} {
		t.Run(name, func(t *testing.T) {
			o.proceed()
			o.dump.Finalizers = []string{Finalizer}
			before := o.dump.Status.DeepCopy()
			o.now = o.now.Add(time.Second)
			again := decide(o)
			for _, c := range again.status.Conditions {
				if was := meta.FindStatusCondition(before.Conditions, c.Type); was == nil || *was != c {
					t.Errorf("condition %s changed from %+v to %+v", c.Type, was, c)
				}
			}
			if !again.status.StartTime.Equal(before.StartTime) || !equality.Semantic.DeepEqual(again.status.Target, before.Target) {
				t.Errorf("status changed from %+v to %+v", before, again.status)
			}
		})
	}
}

func TestTargetIsToldOnceItIsAttached(t *testing.T) {
	o := fresh()
	o.proceed()
	d := o.withHolder().proceed()
	want := v1alpha1.TargetStatus{PersistentVolumeName: "volume", CapacityBytes: 4 << 30, HolderPodUID: "holder-uid", VolumeMode: v1alpha1.VolumeModeBlock}
	if c := conditionOf(d, v1alpha1.ConditionTargetReady); c.Status != metav1.ConditionTrue || !equality.Semantic.DeepEqual(d.status.Target, want) {
		t.Errorf("TargetReady %+v, target %+v", c, d.status.Target)
	}
	// If the holder goes before the agent begins, the agent must not begin.
	o.holder.Status.Conditions = nil
	if c := conditionOf(o.proceed(), v1alpha1.ConditionTargetReady); c.Status != metav1.ConditionUnknown {
		t.Errorf("TargetReady without a ready holder: %+v", c)
	}
}

// An agent at work goes on whatever becomes of holder and claim; a new holder keeps the claim from being deleted.
func TestAgentAtWorkOutlivesItsHolder(t *testing.T) {
	o := running()
	o.holder, o.claims[0].claim, o.claims[0].volume, o.claims[0].users = nil, nil, nil, []string{"late"}
	d := decide(o)
	if c := conditionOf(d, v1alpha1.ConditionSucceeded); c.Status != metav1.ConditionUnknown || c.Reason != v1alpha1.ReasonRunning {
		t.Errorf("Succeeded: %+v", c)
	}
	if d.holder != ensure || conditionOf(d, v1alpha1.ConditionTargetReady).Status != metav1.ConditionTrue || d.status.Target.HolderPodUID != "holder-uid" {
		t.Errorf("decision: %+v", d)
	}
	o.withHolder()
	o.holder.UID = "holder-2"
	if d := o.proceed(); d.status.Target.HolderPodUID != "holder-2" || d.holder != leave {
		t.Errorf("with a new holder: %+v", d)
	}
}

func TestHolderSteps(t *testing.T) {
	failedHolder := func(age time.Duration) *observation {
		o := fresh().withHolder()
		o.holder.Status = corev1.PodStatus{Phase: corev1.PodFailed}
		o.now = o.now.Add(age)
		return o
	}
	foreign := fresh().withHolder()
	foreign.holder.OwnerReferences = nil
	for name, test := range map[string]struct {
		o    *observation
		want want
	}{
		"none yet":           {fresh(), ensure},
		"there":              {fresh().withHolder(), leave},
		"failed just now":    {failedHolder(time.Second), leave},
		"failed":             {failedHolder(holderRetry), remove},
		"somebody else's":    {foreign, leave},
		"while at work":      {running(), leave},
		"lost while at work": {func() *observation { o := running(); o.holder = nil; return o }(), ensure},
		"lost at the end": {func() *observation {
			o := running()
			o.holder, o.dump.DeletionTimestamp = nil, &metav1.Time{Time: start}
			return o
		}(), leave},
	} {
		t.Run(name, func(t *testing.T) {
			if d := decide(test.o); d.holder != test.want {
				t.Errorf("holder: %v, want %v", d.holder, test.want)
			}
		})
	}
	if c := conditionOf(decide(foreign), v1alpha1.ConditionTargetReady); c.Status != metav1.ConditionUnknown || !strings.Contains(c.Message, "is not it") {
		t.Errorf("a foreign pod by the holder's name: %+v", c)
	}
}

func TestEnds(t *testing.T) {
	at := func(o *observation, after time.Duration) *observation {
		o.now = start.Add(after)
		return o
	}
	with := func(o *observation, change func(*observation)) *observation {
		change(o)
		return o
	}
	deleted := func(o *observation) { o.dump.DeletionTimestamp = &metav1.Time{Time: start} }
	cancel := func(o *observation) { o.dump.Spec.DesiredState = v1alpha1.DesiredStateCancel }
	accepted := func() *observation { o := fresh(); o.proceed(); return o }
	attached := func() *observation { o := accepted().withHolder(); o.proceed(); return o }

	tests := map[string]struct {
		o       *observation
		status  metav1.ConditionStatus // Unknown: goes on
		reason  string
		message string
	}{
		"complete":                         {running().report(metav1.ConditionTrue, "Complete"), metav1.ConditionTrue, "Complete", "5 pages"},
		"failed by the agent":              {running().report(metav1.ConditionFalse, "IOError"), metav1.ConditionFalse, "IOError", "by the agent"},
		"complete, then canceled":          {with(running().report(metav1.ConditionTrue, "Complete"), cancel), metav1.ConditionTrue, "Complete", ""},
		"complete, then the node was lost": {with(running().report(metav1.ConditionTrue, "Complete"), func(o *observation) { o.node = nil }), metav1.ConditionTrue, "Complete", ""},
		"complete without acceptance":      {fresh().report(metav1.ConditionTrue, "Complete"), metav1.ConditionFalse, "InternalError", "never accepted"},
		"complete without checksum":        {with(running().report(metav1.ConditionTrue, "Complete"), func(o *observation) { o.dump.Status.Result.SHA256 = "" }), metav1.ConditionFalse, "InternalError", "without its result"},
		"larger than its target":           {with(running().report(metav1.ConditionTrue, "Complete"), func(o *observation) { o.dump.Status.Result.SizeBytes = 5 << 30 }), metav1.ConditionFalse, "InternalError", "on a target of"},

		"canceled before acceptance":      {with(fresh(), cancel), metav1.ConditionFalse, "Canceled", "nothing was written"},
		"canceled before the agent began": {with(attached(), cancel), metav1.ConditionFalse, "Canceled", "nothing was written"},
		"canceled while at work":          {with(running(), cancel), metav1.ConditionUnknown, "Running", ""},
		"deleted before the agent began":  {with(attached(), deleted), metav1.ConditionFalse, "Canceled", ""},
		"deleted while at work":           {at(with(running(), deleted), deletionGrace-time.Second), metav1.ConditionUnknown, "Running", ""},
		"deleted, agent silent":           {at(with(running(), deleted), deletionGrace), metav1.ConditionFalse, "Canceled", "did not confirm"},
		"deleted, node gone":              {with(with(running(), deleted), func(o *observation) { o.node = nil }), metav1.ConditionFalse, "NodeNotFound", "deleted while the agent was at work"},

		"rebooted while at work":     {with(running(), func(o *observation) { o.node.Status.NodeInfo.BootID = "boot-2" }), metav1.ConditionFalse, "NodeRebooted", "boot-2"},
		"rebooted before":            {with(attached(), func(o *observation) { o.node.Status.NodeInfo.BootID = "boot-2" }), metav1.ConditionFalse, "NodeRebooted", ""},
		"boot ID not reported now":   {with(running(), func(o *observation) { o.node.Status.NodeInfo.BootID = "" }), metav1.ConditionUnknown, "Running", ""},
		"node deleted while at work": {with(running(), func(o *observation) { o.node = nil }), metav1.ConditionFalse, "NodeNotFound", "deleted while the agent was at work"},
		"node deleted before":        {with(attached(), func(o *observation) { o.node = nil }), metav1.ConditionFalse, "NodeNotFound", "does not exist"},
		"claim deleted before":       {with(attached(), func(o *observation) { o.claims[0].claim = nil }), metav1.ConditionFalse, "TargetNotFound", ""},
		"namespace taken off":        {with(attached(), func(o *observation) { o.namespaceAllowed = false }), metav1.ConditionFalse, "NamespaceNotAllowed", "namespace dumps"},

		"just in time":                 {at(attached(), 599*time.Second), metav1.ConditionUnknown, "Pending", ""},
		"no agent in time":             {at(attached(), 600*time.Second), metav1.ConditionFalse, "DeadlineExceeded", "waiting for the agent: no pod"},
		"agent did not begin in time":  {at(attached().withAgent(), 600*time.Second), metav1.ConditionFalse, "DeadlineExceeded", "waiting for the agent to begin"},
		"claim not bound in time":      {at(with(accepted(), func(o *observation) { o.claims[0].claim.Status.Phase = corev1.ClaimPending }), 600*time.Second), metav1.ConditionFalse, "TargetNotBound", "is not bound"},
		"node not ready in time":       {at(with(attached(), func(o *observation) { o.node.Status.Conditions[0].Status = corev1.ConditionUnknown }), 600*time.Second), metav1.ConditionFalse, "NodeNotReady", "is not Ready"},
		"agent at work has some grace": {at(running(), 600*time.Second), metav1.ConditionUnknown, "Running", ""},
		"agent at work too long":       {at(running(), 600*time.Second+agentGrace), metav1.ConditionFalse, "DeadlineExceeded", "still at work"},
		"agent away":                   {at(with(running(), func(o *observation) { o.agent = nil }), 599*time.Second), metav1.ConditionUnknown, "Running", "waiting for the agent"},
		"agent lost":                   {at(with(running(), func(o *observation) { o.agent = nil }), 600*time.Second), metav1.ConditionFalse, "AgentLost", "did not come back"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := decide(test.o)
			c := conditionOf(d, v1alpha1.ConditionSucceeded)
			if c.Status != test.status || c.Reason != test.reason || !strings.Contains(c.Message, test.message) {
				t.Errorf("Succeeded is %s/%s: %q; want %s/%s: %q", c.Status, c.Reason, c.Message, test.status, test.reason, test.message)
			}
			if test.status == metav1.ConditionUnknown {
				if d.status.CompletionTime != nil || d.lookAgain <= 0 {
					t.Errorf("goes on with completionTime %v, next look after %s", d.status.CompletionTime, d.lookAgain)
				}
				return
			}
			if d.status.CompletionTime == nil || d.holder != leave || d.finalizer != leave {
				t.Errorf("decision at the end: %+v", d)
			}
			// The controller sees no target. What it said of one that the agent has begun to write would be a guess.
			if guess := test.o.dump.Begun() && reportedEnd(test.o) == nil; guess != strings.HasSuffix(c.Message, unknownTarget) {
				t.Errorf("the end of one that has begun is not the agent's word: %v; message: %q", guess, c.Message)
			}
			for _, c := range d.status.Conditions {
				if c.Status == metav1.ConditionUnknown {
					t.Errorf("condition %s is Unknown after the end", c.Type)
				}
			}
		})
	}
}

// Who has begun is told by Captured alone, whose first value is the controller's own.
func TestOwnConditionsAreNoSignOfTheAgent(t *testing.T) {
	o := fresh()
	o.proceed()
	if o.dump.Begun() {
		t.Error("the controller takes its own conditions for the agent's")
	}
	if !running().dump.Begun() {
		t.Error("the agent's conditions are not seen")
	}
}

func TestDeletionTellsTheAgent(t *testing.T) {
	o := running()
	o.dump.DeletionTimestamp = &metav1.Time{Time: start}
	if d := decide(o); !d.cancel || d.finalizer != leave {
		t.Errorf("decision: %+v", d)
	}
	o.dump.Spec.DesiredState = v1alpha1.DesiredStateCancel
	if d := decide(o); d.cancel {
		t.Error("canceled twice")
	}
}

func TestCleanUp(t *testing.T) {
	over := func(change func(*observation)) *observation {
		o := running().report(metav1.ConditionTrue, "Complete")
		o.proceed()
		o.now = start.Add(10 * time.Second)
		if change != nil {
			change(o)
		}
		return o
	}
	ttl := func(seconds int32) func(*observation) {
		return func(o *observation) { o.dump.Spec.TTLSecondsAfterFinished = &seconds }
	}
	for name, test := range map[string]struct {
		o         *observation
		holder    want
		expire    bool
		lookAgain time.Duration
	}{
		"holder there":     {over(nil), remove, false, 0},
		"holder gone":      {over(func(o *observation) { o.holder = nil }), leave, false, 0},
		"holder going":     {over(func(o *observation) { o.holder.DeletionTimestamp = &metav1.Time{Time: start} }), leave, false, 0},
		"not our holder":   {over(func(o *observation) { o.holder.OwnerReferences = nil }), leave, false, 0},
		"to live a while":  {over(ttl(30)), remove, false, 20 * time.Second},
		"to live no more":  {over(ttl(10)), remove, true, 0},
		"being deleted":    {over(func(o *observation) { ttl(0)(o); o.dump.DeletionTimestamp = &metav1.Time{Time: start} }), remove, false, 0},
		"node gone for it": {over(func(o *observation) { o.node = nil }), remove, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			d := decide(test.o)
			if d.holder != test.holder || d.expire != test.expire || d.lookAgain != test.lookAgain || d.finalizer != remove {
				t.Errorf("decision: %+v", d)
			}
			if conditionOf(d, v1alpha1.ConditionSucceeded).Status != metav1.ConditionTrue {
				t.Error("the status changed after the end")
			}
		})
	}
}

func TestLine(t *testing.T) {
	other := func(change func(*v1alpha1.LiveDump)) v1alpha1.LiveDump {
		d := *fresh().dump.DeepCopy()
		d.Name, d.UID = "other", "ffffffff-0000-4000-8000-000000000000"
		d.Spec.Target.PersistentVolumeClaim.ClaimName = "claim-2"
		change(&d)
		return d
	}
	older := func(d *v1alpha1.LiveDump) { d.CreationTimestamp = metav1.NewTime(start.Add(-time.Second)) }
	for name, test := range map[string]struct {
		other    v1alpha1.LiveDump
		accepted metav1.ConditionStatus
		ended    bool
	}{
		"a younger one waits itself":   {other(func(d *v1alpha1.LiveDump) { d.CreationTimestamp = metav1.NewTime(start.Add(time.Second)) }), metav1.ConditionTrue, false},
		"an older one goes first":      {other(older), metav1.ConditionUnknown, false},
		"a running one keeps the node": {other(func(d *v1alpha1.LiveDump) { d.Status.StartTime = &metav1.Time{Time: start} }), metav1.ConditionUnknown, false},
		"one that ended is no matter": {other(func(d *v1alpha1.LiveDump) {
			older(d)
			d.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionSucceeded, Status: metav1.ConditionFalse}}
		}), metav1.ConditionTrue, false},
		"nor is one of another node":      {other(func(d *v1alpha1.LiveDump) { older(d); d.Spec.NodeName = "node-2" }), metav1.ConditionTrue, false},
		"of the same age the UID decides": {other(func(d *v1alpha1.LiveDump) { d.UID = types.UID("00000000") }), metav1.ConditionUnknown, false},
		"an older one has the claim":      {other(func(d *v1alpha1.LiveDump) { older(d); d.Spec.Target.PersistentVolumeClaim.ClaimName = "claim" }), metav1.ConditionFalse, true},
		"a claim of that name elsewhere is": {other(func(d *v1alpha1.LiveDump) {
			older(d)
			d.Namespace = "x"
			d.Spec.NodeName = "node-2"
			d.Spec.Target.PersistentVolumeClaim.ClaimName = "claim"
		}), metav1.ConditionTrue, false},
	} {
		t.Run(name, func(t *testing.T) {
			o := fresh()
			o.others = []*v1alpha1.LiveDump{&test.other}
			d := decide(o)
			if c := conditionOf(d, v1alpha1.ConditionAccepted); c.Status != test.accepted {
				t.Errorf("Accepted: %+v, want %s", c, test.accepted)
			}
			if end := conditionOf(d, v1alpha1.ConditionSucceeded); (end.Reason == v1alpha1.ReasonTargetInUse) != test.ended {
				t.Errorf("Succeeded: %+v", end)
			}
			if waits := test.accepted != metav1.ConditionTrue; waits && (d.status.StartTime != nil || d.holder != leave) {
				t.Errorf("one that waits is started: %+v", d)
			}
		})
	}
}
