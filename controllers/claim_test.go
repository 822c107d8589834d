// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"livedump.io/api/v1alpha1"
)

func TestCheckClaim(t *testing.T) {
	filesystem := corev1.PersistentVolumeFilesystem
	for name, test := range map[string]struct {
		change  func(*observation)
		state   state
		reason  string
		message string
	}{
		"fits":              {func(*observation) {}, fine, v1alpha1.ReasonAttached, ""},
		"missing":           {func(o *observation) { o.claims[0].claim = nil }, failed, v1alpha1.ReasonTargetNotFound, "claim claim does not exist in namespace dumps"},
		"no target":         {func(o *observation) { o.dump.Spec.Target.PersistentVolumeClaim = nil }, failed, v1alpha1.ReasonTargetInvalid, ""},
		"path in a device":  {func(o *observation) { o.claims[0].Path = "a" }, failed, v1alpha1.ReasonTargetWrongMode, "there is no path in it"},
		"ELF on a device":   {func(o *observation) { o.dump.Spec.Format = v1alpha1.FormatELF }, failed, v1alpha1.ReasonTargetWrongMode, "ELF needs volumeMode Filesystem"},
		"kdump on a device": {func(o *observation) { o.dump.Spec.Format = v1alpha1.FormatKdump }, fine, v1alpha1.ReasonAttached, ""},
		"filesystem": {func(o *observation) {
			o.claims[0].claim.Spec.VolumeMode, o.claims[0].volume.Spec.VolumeMode = &filesystem, &filesystem
			o.dump.Spec.Format, o.claims[0].Path = v1alpha1.FormatELF, "dumps/a.elf"
			o.claims[0].users = []string{"reader"} // a file is nobody else's
		}, fine, v1alpha1.ReasonAttached, ""},
		"mode not given": {func(o *observation) {
			o.claims[0].claim.Spec.VolumeMode, o.claims[0].volume.Spec.VolumeMode = nil, &filesystem
		}, fine, v1alpha1.ReasonAttached, ""},
		"in use":             {func(o *observation) { o.claims[0].users = []string{"a", "b", "c", "d", "e"} }, failed, v1alpha1.ReasonTargetInUse, "pods a, b, c and 2 more"},
		"pending":            {func(o *observation) { o.claims[0].claim.Status.Phase = corev1.ClaimPending; o.claims[0].volume = nil }, pending, v1alpha1.ReasonTargetNotBound, "not bound"},
		"bound, volume gone": {func(o *observation) { o.claims[0].volume = nil }, pending, v1alpha1.ReasonTargetNotBound, ""},
		"another's volume":   {func(o *observation) { o.claims[0].volume.Spec.ClaimRef.UID = "other" }, failed, v1alpha1.ReasonTargetInvalid, "is not bound to it"},
		"volume of files":    {func(o *observation) { o.claims[0].volume.Spec.VolumeMode = &filesystem }, failed, v1alpha1.ReasonTargetWrongMode, "has volumeMode Filesystem, and claim claim has Block"},
		"another node's": {func(o *observation) {
			o.claims[0].volume.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"x"}}}}}}}
		}, failed, v1alpha1.ReasonTargetWrongNode, "node affinity excludes the node"},
		"too small": {func(o *observation) {
			o.claims[0].volume.Spec.Capacity[corev1.ResourceStorage] = *resource.NewQuantity(leastSize(o.node, 1)-1, resource.BinarySI)
		}, failed, v1alpha1.ReasonTargetTooSmall, "needs at least"},
		"just large enough": {func(o *observation) {
			o.claims[0].volume.Spec.Capacity[corev1.ResourceStorage] = *resource.NewQuantity(leastSize(o.node, 1), resource.BinarySI)
		}, fine, v1alpha1.ReasonAttached, ""},
	} {
		t.Run(name, func(t *testing.T) {
			o := fresh()
			test.change(o)
			f := checkClaims(o)
			if f.state != test.state || f.reason != test.reason || !strings.Contains(f.message, test.message) {
				t.Errorf("%+v, want state %v, %s: %q", f, test.state, test.reason, test.message)
			}
		})
	}
}

// The bitmaps of 8 GiB in 4 KiB pages are 2 * 256 KiB.
func TestLeastSize(t *testing.T) {
	if got, want := leastSize(fresh().node, 1), int64(16<<20+2*256<<10); got != want {
		t.Errorf("%d, want %d", got, want)
	}
}

func TestPodUsesClaim(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pod"}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{
		{Name: "a", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "named"}}},
		{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
	}}}
	for claim, want := range map[string]bool{"named": true, "pod-scratch": true, "pod-a": false, "other": false} {
		if got := podUsesClaim(pod, claim); got != want {
			t.Errorf("claim %s: %v, want %v", claim, got, want)
		}
	}
}

func TestHolderIsRestrictedAndPinned(t *testing.T) {
	r := &LiveDumpReconciler{Config: Config{HolderImage: "image"}}
	pod := r.holderPod(fresh().dump, map[string]string{"claim": v1alpha1.VolumeModeBlock})
	if pod.Spec.NodeName != "" {
		t.Error("nodeName bypasses the scheduler, and with it the binding of the claim")
	}
	if *pod.Spec.AutomountServiceAccountToken {
		t.Error("the holder has a token")
	}
	if pod.Name != "livedump-holder-0a1b2c3d-0000" {
		t.Errorf("name %s", pod.Name)
	}
	if d := pod.Spec.Containers[0].VolumeDevices; len(d) != 1 || pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName != "claim" || pod.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly {
		t.Errorf("devices %+v, volumes %+v", d, pod.Spec.Volumes)
	}
	c := r.holderPod(fresh().dump, map[string]string{"claim": v1alpha1.VolumeModeFilesystem}).Spec.Containers[0]
	if m := c.VolumeMounts; len(m) != 1 || !m[0].ReadOnly || len(c.VolumeDevices) != 0 {
		t.Errorf("of a file system it has mounts %+v, devices %+v", m, c.VolumeDevices)
	}
}

// For an object store the holder has the credentials, and nothing else of the Secret.
func TestHolderHasTheCredentials(t *testing.T) {
	o := fresh()
	o.claims = nil
	o.dump.Spec.Target = v1alpha1.Target{ObjectStorage: &v1alpha1.ObjectStorageTarget{Endpoint: "https://store", Bucket: "dumps", CredentialsSecretName: "store"}}
	o.proceed()
	if d := o.proceed(); d.holder != ensure || !equality.Semantic.DeepEqual(d.status.Target, v1alpha1.TargetStatus{}) {
		t.Errorf("decision without a holder: %+v", d)
	}
	for _, whole := range []bool{false, true} {
		o.whole = whole
		d := o.withHolder().withAgent().proceed()
		if c := conditionOf(d, v1alpha1.ConditionTargetReady); c.Status != metav1.ConditionTrue || !equality.Semantic.DeepEqual(d.status.Target, v1alpha1.TargetStatus{HolderPodUID: "holder-uid"}) {
			t.Errorf("whole %v: TargetReady %+v, target %+v", whole, c, d.status.Target)
		}
	}
	pod := (&LiveDumpReconciler{}).holderPod(o.dump, nil)
	if len(pod.Spec.Volumes) != 1 || pod.Spec.Volumes[0].Name != v1alpha1.CredentialsVolume {
		t.Fatalf("volumes %+v", pod.Spec.Volumes)
	}
	var keys []string
	for _, s := range pod.Spec.Volumes[0].Projected.Sources {
		if s.Secret.Name != "store" || len(s.Secret.Items) == 0 {
			t.Errorf("source %+v: without items it would be the whole Secret", s.Secret)
		}
		for _, i := range s.Secret.Items {
			keys = append(keys, i.Key)
		}
	}
	if want := []string{"accessKeyID", "secretAccessKey", "sessionToken", "ca.crt"}; !slices.Equal(keys, want) {
		t.Errorf("keys %v, want %v", keys, want)
	}
	o.report(metav1.ConditionTrue, v1alpha1.ReasonComplete).dump.Status.Result = &v1alpha1.Result{SizeBytes: 1 << 30, SHA256: "sum", PagesDumped: 1, Device: "https://store/dumps/key"}
	if c := conditionOf(decide(o), v1alpha1.ConditionSucceeded); c.Status != metav1.ConditionTrue || !strings.Contains(c.Message, "https://store/dumps/key") {
		t.Errorf("Succeeded: %+v", c)
	}
}

// A stream needs no holder, and the agent is told to begin all the same.
func TestStreamNeedsNoHolder(t *testing.T) {
	o := fresh().withAgent()
	o.claims = nil
	o.dump.Spec.Target = v1alpha1.Target{Stream: &v1alpha1.StreamTarget{Address: "receiver:9300"}}
	d := o.proceed()
	d = o.proceed()
	if d.holder != leave {
		t.Errorf("holder: %v", d.holder)
	}
	for _, conditionType := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionTargetReady} {
		if c := condition(o.dump, conditionType); c == nil || c.Status != metav1.ConditionTrue {
			t.Errorf("%s: %+v", conditionType, c)
		}
	}
	if c := condition(o.dump, v1alpha1.ConditionTargetReady); c.Reason != v1alpha1.ReasonNothingToAttach || !strings.Contains(c.Message, "receiver:9300") {
		t.Errorf("%+v", c)
	}
}

// Two LiveDumps may write different files to one claim, but not the same.
func TestFilesOfOneClaim(t *testing.T) {
	filesystem := corev1.PersistentVolumeFilesystem
	for path, rival := range map[string]bool{"": false, "dump.kdump": true, "other": false} {
		o := fresh()
		o.claims[0].claim.Spec.VolumeMode, o.claims[0].volume.Spec.VolumeMode = &filesystem, &filesystem
		other := o.dump.DeepCopy()
		other.Name, other.UID, other.CreationTimestamp = "first", "first", metav1.NewTime(start.Add(-time.Hour))
		other.Spec.Target.PersistentVolumeClaim.Path = path
		o.others = append(o.others, other)
		if f := checkClaims(o); (f.reason == v1alpha1.ReasonTargetInUse) != rival {
			t.Errorf("path %q: %+v, want a rival: %v", path, f, rival)
		}
	}
}
