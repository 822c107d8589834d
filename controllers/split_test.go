// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"livedump.io/api/v1alpha1"
)

// split is what is seen of a LiveDump whose dump is split among a device and a file.
func split() *observation {
	o := fresh()
	o.claims = []*claimSeen{seen("claim", corev1.PersistentVolumeBlock, "1Gi"), seen("files", corev1.PersistentVolumeFilesystem, "2Gi")}
	o.dump.Spec.Target = v1alpha1.Target{PersistentVolumeClaims: []v1alpha1.PersistentVolumeClaimTarget{{ClaimName: "claim"}, {ClaimName: "files"}}}
	return o
}

// reportParts has the agent report parts of so many bytes.
func (o *observation) reportParts(bytes ...int64) *observation {
	o.report(metav1.ConditionTrue, v1alpha1.ReasonComplete)
	r := &v1alpha1.Result{PagesDumped: 5}
	for i, claim := range o.dump.Spec.Target.Claims() {
		if i < len(bytes) {
			r.SizeBytes += bytes[i]
			r.Parts = append(r.Parts, v1alpha1.PartResult{ClaimName: claim.ClaimName, SizeBytes: bytes[i], SHA256: "ab"})
		}
	}
	o.dump.Status.Result = r
	return o
}

// Whatever is checked of one claim is checked of each.
func TestCheckSeveralClaims(t *testing.T) {
	size := func(c *claimSeen, bytes int64) {
		c.volume.Spec.Capacity[corev1.ResourceStorage] = *resource.NewQuantity(bytes, resource.BinarySI)
	}
	elsewhere := func(c *claimSeen) {
		c.volume.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"x"}}}}}}}
	}
	least := leastSize(fresh().node, 2)
	for name, test := range map[string]struct {
		change  func(*observation)
		state   state
		reason  string
		message string
	}{
		"fits":          {func(*observation) {}, fine, v1alpha1.ReasonAttached, "the claims fit"},
		"missing":       {func(o *observation) { o.claims[1].claim, o.claims[1].volume = nil, nil }, failed, v1alpha1.ReasonTargetNotFound, "claim files does not exist"},
		"being deleted": {func(o *observation) { o.claims[1].claim.DeletionTimestamp = &metav1.Time{Time: start} }, failed, v1alpha1.ReasonTargetNotFound, "claim files is being deleted"},
		"lost":          {func(o *observation) { o.claims[1].claim.Status.Phase = corev1.ClaimLost }, failed, v1alpha1.ReasonTargetInvalid, "claim files has lost"},
		"path":          {func(o *observation) { o.claims[0].Path = "a" }, failed, v1alpha1.ReasonTargetWrongMode, "claim claim has volumeMode Block"},
		"in use":        {func(o *observation) { o.claims[0].users = []string{"database"} }, failed, v1alpha1.ReasonTargetInUse, "claim claim is used by pod database"},
		"read by a pod": {func(o *observation) { o.claims[1].users = []string{"reader"} }, fine, v1alpha1.ReasonAttached, ""},
		"unbound":       {func(o *observation) { o.claims[0].claim.Status.Phase = corev1.ClaimPending; o.claims[0].volume = nil }, pending, v1alpha1.ReasonTargetNotBound, "claim claim is not bound"},
		"unbound, and the other is of another node": {func(o *observation) {
			o.claims[0].claim.Status.Phase, o.claims[0].volume = corev1.ClaimPending, nil
			elsewhere(o.claims[1])
		}, failed, v1alpha1.ReasonTargetWrongNode, "claim files is bound to volume volume-of-files"},
		"another's volume": {func(o *observation) { o.claims[1].volume.Spec.ClaimRef.UID = "other" }, failed, v1alpha1.ReasonTargetInvalid, "volume volume-of-files"},
		"volume's mode": {func(o *observation) {
			*o.claims[1].volume.Spec.VolumeMode = corev1.PersistentVolumeBlock
			mode := corev1.PersistentVolumeFilesystem
			o.claims[1].claim.Spec.VolumeMode = &mode
		}, failed, v1alpha1.ReasonTargetWrongMode, "volume volume-of-files"},
		"of another node":   {func(o *observation) { elsewhere(o.claims[1]) }, failed, v1alpha1.ReasonTargetWrongNode, "claim files"},
		"one has no room":   {func(o *observation) { size(o.claims[1], leastPart) }, failed, v1alpha1.ReasonTargetTooSmall, "claim files has 1Mi bytes; any part"},
		"both have little":  {func(o *observation) { size(o.claims[0], least/2); size(o.claims[1], least/2-1) }, failed, v1alpha1.ReasonTargetTooSmall, "claims claim, files have"},
		"both just fit":     {func(o *observation) { size(o.claims[0], least/2); size(o.claims[1], least-least/2) }, fine, v1alpha1.ReasonAttached, ""},
		"one has it all":    {func(o *observation) { size(o.claims[0], leastPart+bitmapBytes(o.node)) }, fine, v1alpha1.ReasonAttached, ""},
		"rival for a claim": {rivalFor("claim"), failed, v1alpha1.ReasonTargetInUse, "claim claim is the target of LiveDump first"},
		"rival for both":    {rivalFor("other", "claim"), failed, v1alpha1.ReasonTargetInUse, "claim claim is the target of LiveDump first"},
		"other file":        {rivalFor("files"), fine, v1alpha1.ReasonAttached, ""},
		"same file": {func(o *observation) {
			rivalFor("files")(o)
			o.others[0].Spec.Target.PersistentVolumeClaim.Path = "dump.files.kdump"
		}, failed, v1alpha1.ReasonTargetInUse, "claim files is the target of LiveDump first"},
	} {
		t.Run(name, func(t *testing.T) {
			o := split()
			test.change(o)
			f := checkClaims(o)
			if f.state != test.state || f.reason != test.reason || !strings.Contains(f.message, test.message) {
				t.Errorf("%+v, want state %v, %s: %q", f, test.state, test.reason, test.message)
			}
		})
	}
}

// rivalFor adds a LiveDump that was there first and has these claims.
func rivalFor(claims ...string) func(*observation) {
	return func(o *observation) {
		other := o.dump.DeepCopy()
		other.Name, other.UID, other.CreationTimestamp = "first", "first", metav1.NewTime(start.Add(-time.Hour))
		other.Spec.NodeName = "another" // that it is on another node does not matter
		other.Spec.Target = v1alpha1.Target{}
		for _, claim := range claims {
			other.Spec.Target.PersistentVolumeClaims = append(other.Spec.Target.PersistentVolumeClaims, v1alpha1.PersistentVolumeClaimTarget{ClaimName: claim})
		}
		if len(claims) == 1 {
			other.Spec.Target = v1alpha1.Target{PersistentVolumeClaim: &other.Spec.Target.PersistentVolumeClaims[0]}
		}
		o.others = append(o.others, other)
	}
}

// A LiveDump is found by each of its claims.
func TestIndexOfSeveralClaims(t *testing.T) {
	i := slices.IndexFunc(indexes, func(i index) bool { return i.field == activeClaimIndex })
	if got := indexes[i].values(split().dump); !slices.Equal(got, []string{"dumps/claim", "dumps/files"}) {
		t.Errorf("indexed by %v", got)
	}
	if got := indexes[i].values(running().report(metav1.ConditionTrue, v1alpha1.ReasonComplete).dump); len(got) != 1 {
		t.Errorf("one that has not ended: %v", got)
	}
	over := split()
	over.dump.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionSucceeded, Status: metav1.ConditionTrue}}
	if got := indexes[i].values(over.dump); len(got) != 0 {
		t.Errorf("one that has ended is indexed by %v", got)
	}
}

func TestHolderHasAllClaims(t *testing.T) {
	o := split()
	pod := (&LiveDumpReconciler{}).holderPod(o.dump, holderModes(o))
	c := pod.Spec.Containers[0]
	if len(pod.Spec.Volumes) != 2 || len(c.VolumeDevices) != 1 || len(c.VolumeMounts) != 1 {
		t.Fatalf("volumes %+v, devices %+v, mounts %+v", pod.Spec.Volumes, c.VolumeDevices, c.VolumeMounts)
	}
	for i, claim := range []string{"claim", "files"} {
		if v := pod.Spec.Volumes[i].PersistentVolumeClaim; v.ClaimName != claim || v.ReadOnly {
			t.Errorf("volume %d: %+v", i, v)
		}
	}
	if c.VolumeDevices[0].Name != pod.Spec.Volumes[0].Name || c.VolumeMounts[0].Name != pod.Spec.Volumes[1].Name || !c.VolumeMounts[0].ReadOnly {
		t.Errorf("devices %+v, mounts %+v", c.VolumeDevices, c.VolumeMounts)
	}
	// Several devices must not have one path.
	o.claims[1] = seen("files", corev1.PersistentVolumeBlock, "2Gi")
	d := (&LiveDumpReconciler{}).holderPod(o.dump, holderModes(o)).Spec.Containers[0].VolumeDevices
	if len(d) != 2 || d[0].DevicePath == d[1].DevicePath || d[0].Name == d[1].Name {
		t.Errorf("devices %+v", d)
	}
}

// What is found for each claim is told, and remembered for a holder that is made anew while the agent is at work.
func TestSeveralClaimsAreTold(t *testing.T) {
	o := split()
	o.proceed()
	if d := o.withHolder().withAgent().proceed(); !equality.Semantic.DeepEqual(d.status.Target, v1alpha1.TargetStatus{HolderPodUID: "holder-uid", Claims: []v1alpha1.ClaimStatus{
		{ClaimName: "claim", PersistentVolumeName: "volume", CapacityBytes: 1 << 30, VolumeMode: v1alpha1.VolumeModeBlock},
		{ClaimName: "files", PersistentVolumeName: "volume-of-files", CapacityBytes: 2 << 30, VolumeMode: v1alpha1.VolumeModeFilesystem},
	}}) {
		t.Errorf("target: %+v", d.status.Target)
	}
	o.report(metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	o.claims, o.holder = nil, nil
	if d := o.proceed(); d.holder != ensure || len(d.status.Target.Claims) != 2 {
		t.Errorf("decision: %+v", d)
	}
	if modes := holderModes(o); modes["claim"] != v1alpha1.VolumeModeBlock || modes["files"] != v1alpha1.VolumeModeFilesystem {
		t.Errorf("modes of the next holder: %v", modes)
	}
	if d := o.withHolder().reportParts(1<<20, 3<<20).proceed(); !strings.Contains(conditionOf(d, v1alpha1.ConditionSucceeded).Message, "split among claims claim, files, every part read back and verified: 4194304 bytes") {
		t.Errorf("the end: %+v", conditionOf(d, v1alpha1.ConditionSucceeded))
	}
}

// A claim that is unbound, or taken by a pod before the agent begins, keeps the whole target from being ready.
func TestOneOfSeveralClaimsIsNotReady(t *testing.T) {
	o := split()
	o.proceed()
	o.withHolder().withAgent()
	o.claims[1].claim.Status.Phase, o.claims[1].volume = corev1.ClaimPending, nil
	if d := decide(o); conditionOf(d, v1alpha1.ConditionTargetReady).Status != metav1.ConditionUnknown || len(d.status.Target.Claims) != 0 {
		t.Errorf("unbound: %+v", d.status)
	}
	o = split()
	o.proceed()
	o.withHolder().withAgent()
	o.claims[0].users = []string{"late"}
	if c := conditionOf(decide(o), v1alpha1.ConditionSucceeded); c.Reason != v1alpha1.ReasonTargetInUse {
		t.Errorf("taken: %+v", c)
	}
}

// The direct way is taken if all of the claims have it.
func TestDirectWayToSeveralClaims(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*observation)
		direct bool
	}{
		"both are disks":      {func(*observation) {}, true},
		"one is not local":    {func(o *observation) { o.claims[1].volume.Spec.Local = nil }, false},
		"one has files":       {func(o *observation) { o.claims[1] = seen("files", corev1.PersistentVolumeFilesystem, "2Gi") }, false},
		"one is not yet seen": {func(o *observation) { o.claims[1].volume = nil; o.claims[1].claim.Status.Phase = corev1.ClaimPending }, false},
	} {
		t.Run(name, func(t *testing.T) {
			o := split()
			o.claims[1] = seen("files", corev1.PersistentVolumeBlock, "2Gi")
			for i, path := range []string{"/dev/one", "/dev/two"} {
				o.claims[i].volume.Spec.Local = &corev1.LocalVolumeSource{Path: path}
			}
			o.proceed()
			o.withHolder()
			o.holder.Status = corev1.PodStatus{Phase: corev1.PodPending}
			o.now = start.Add(directAfter)
			test.change(o)
			d := decide(o)
			c := conditionOf(d, v1alpha1.ConditionTargetReady)
			if direct := c.Reason == v1alpha1.ReasonAttachedDirectly; direct != test.direct {
				t.Fatalf("TargetReady: %+v", c)
			}
			if !test.direct {
				return
			}
			if got := d.status.Target.Claims; len(got) != 2 || got[0].LocalPath != "/dev/one" || got[1].LocalPath != "/dev/two" {
				t.Errorf("claims: %+v", got)
			}
			if !strings.Contains(c.Message, "claim claim is /dev/one, claim files is /dev/two on the node") {
				t.Errorf("message: %q", c.Message)
			}
		})
	}
}

// What the agent reports of the parts must fit what the controller knows.
func TestReportedParts(t *testing.T) {
	atWork := func() *observation {
		o := split()
		o.proceed()
		o.withHolder().withAgent().proceed()
		return o.report(metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	}
	for name, test := range map[string]struct {
		o       *observation
		message string // of the failure; empty: none
	}{
		"complete":               {atWork().reportParts(1<<20, 2<<20), ""},
		"a file with holes":      {atWork().reportParts(1<<20, 3<<30), ""},
		"larger than the device": {atWork().reportParts(1<<30+1, 1<<20), "1073741825 bytes on a target of 1073741824"},
		"a part is missing":      {atWork().reportParts(1 << 20), "without its part on claim files"},
		"a part has no sum": {func() *observation {
			o := atWork().reportParts(1<<20, 2<<20)
			o.dump.Status.Result.Parts[1].SHA256 = ""
			return o
		}(), "without its part on claim files"},
		"the sum is another": {func() *observation {
			o := atWork().reportParts(1<<20, 2<<20)
			o.dump.Status.Result.SizeBytes++
			return o
		}(), "3145729 bytes, and 2 parts that have 3145728"},
		"a part too many": {func() *observation {
			o := atWork().reportParts(1<<20, 2<<20)
			o.dump.Status.Result.Parts = append(o.dump.Status.Result.Parts, v1alpha1.PartResult{ClaimName: "third", SizeBytes: 1, SHA256: "ab"})
			return o
		}(), "3 parts"},
		"not split": {atWork().report(metav1.ConditionTrue, v1alpha1.ReasonComplete), "without its part on claim claim"},
	} {
		c := conditionOf(decide(test.o), v1alpha1.ConditionSucceeded)
		if test.message == "" && c.Status != metav1.ConditionTrue ||
			test.message != "" && (c.Reason != v1alpha1.ReasonInternalError || !strings.Contains(c.Message, test.message)) {
			t.Errorf("%s: %+v, want %q", name, c, test.message)
		}
	}
}

// A controller that is older than the target says so.
func TestUnknownTarget(t *testing.T) {
	o := fresh()
	o.claims, o.dump.Spec.Target = nil, v1alpha1.Target{}
	if c := conditionOf(decide(o), v1alpha1.ConditionSucceeded); c.Reason != v1alpha1.ReasonTargetInvalid || !strings.Contains(c.Message, "no target that this version knows") {
		t.Errorf("%+v", c)
	}
}

// What runs with one of the claims keeps the turn from a dump of another node that is split among them, also if only the notes of
// this controller tell that it runs; two files in one claim do not.
func TestTurnsOfSeveralClaims(t *testing.T) {
	o := split()
	first := waitingDump("node-1", 1)
	first.Spec.Target = *o.dump.Spec.Target.DeepCopy()
	second := waitingDump("node-2", 2)
	second.Spec.Target = v1alpha1.Target{PersistentVolumeClaim: &v1alpha1.PersistentVolumeClaimTarget{ClaimName: "claim"}}
	third := waitingDump("node-3", 3)
	third.Spec.Target = v1alpha1.Target{PersistentVolumeClaim: &v1alpha1.PersistentVolumeClaimTarget{ClaimName: "files"}}
	r := reconcilerOn(t, interceptor.Funcs{}, first, second, third, o.node)
	if err := r.takeTurn(t.Context(), first, o.claims); err != nil {
		t.Fatal(err)
	}
	if err := r.takeTurn(t.Context(), second, o.claims[:1]); !errors.Is(err, errNotItsTurn) {
		t.Errorf("a device that is being written: %v, want %v", err, errNotItsTurn)
	}
	if err := r.takeTurn(t.Context(), third, o.claims[1:]); err != nil {
		t.Errorf("another file: %v", err)
	}
}
