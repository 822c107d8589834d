// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/convert"
	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
)

// splitAmong has the LiveDump's dump split among claims.
func splitAmong(d *v1alpha1.LiveDump, claims ...string) {
	d.Spec.Target = v1alpha1.Target{}
	for _, claim := range claims {
		d.Spec.Target.PersistentVolumeClaims = append(d.Spec.Target.PersistentVolumeClaims, v1alpha1.PersistentVolumeClaimTarget{ClaimName: claim})
	}
}

// The whole path of a split dump, with one claim that is bound and one that binds only for the holder; then nothing but all parts is a
// dump.
func TestDumpSplitAmongClaims(t *testing.T) {
	w := newWorld(t)
	second := w.claim + "-second-part"
	w.createVolume(second, w.node, "2Gi", corev1.PersistentVolumeBlock)
	w.createClaim(second, corev1.PersistentVolumeBlock)
	dump := w.create("dump", func(d *v1alpha1.LiveDump) { splitAmong(d, w.claim, second) })
	pod := w.runHolder(dump)
	if c := w.await(dump, v1alpha1.ConditionTargetReady, metav1.ConditionUnknown, v1alpha1.ReasonTargetNotBound); !strings.Contains(c.Message, "claim "+second+" is not bound") {
		t.Errorf("message before the second claim is bound: %q", c.Message)
	}
	if v := pod.Spec.Volumes; len(v) != 2 || v[0].PersistentVolumeClaim.ClaimName != w.claim || v[1].PersistentVolumeClaim.ClaimName != second {
		t.Errorf("volumes of the holder: %+v", v)
	}
	w.bind(second)
	p := w.startAgent().runProcess(nodeMemory(), filepath.Join(t.TempDir(), "target"), nil)
	c := w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionTrue, v1alpha1.ReasonComplete)
	if !strings.Contains(c.Message, "split among claims "+w.claim+", "+second) {
		t.Errorf("message of the end: %q", c.Message)
	}
	d := w.get(dump)
	if s := d.Status.Target; s.HolderPodUID != string(pod.UID) || s.PersistentVolumeName != "" || len(s.Claims) != 2 ||
		s.Claims[0] != (v1alpha1.ClaimStatus{ClaimName: w.claim, PersistentVolumeName: w.claim, CapacityBytes: 4 << 30, VolumeMode: v1alpha1.VolumeModeBlock}) ||
		s.Claims[1] != (v1alpha1.ClaimStatus{ClaimName: second, PersistentVolumeName: second, CapacityBytes: 2 << 30, VolumeMode: v1alpha1.VolumeModeBlock}) {
		t.Errorf("target for the agent: %+v", s)
	}
	r := d.Status.Result
	if r == nil || r.PagesDumped != 1800 || r.SHA256 != "" || r.Format != format.Kdump.String() || len(r.Parts) != 2 || r.Parts[0].SizeBytes+r.Parts[1].SizeBytes != r.SizeBytes {
		t.Fatalf("result: %+v", r)
	}
	var parts []string
	for i, claim := range []string{w.claim, second} {
		content, err := os.ReadFile(p.target + "." + claim)
		w.must(err)
		part := r.Parts[i]
		if sum := sha256.Sum256(content[:part.SizeBytes]); part.ClaimName != claim || part.SHA256 != hex.EncodeToString(sum[:]) || part.Device == "" {
			t.Errorf("part %d of the result is %+v, and there lies %x", i+1, part, sum)
		}
		parts = append(parts, p.target+"."+claim)
	}
	if _, err := convert.OpenAll(parts[:1]); err == nil {
		t.Error("one of the parts is taken for a dump")
	}
	s, err := convert.OpenAll(parts)
	w.must(err)
	defer s.Close()
	sum, err := convert.Run(context.Background(), s, filepath.Join(t.TempDir(), "whole"), convert.Options{Verify: true})
	if err != nil || sum.Pages != 1800 {
		t.Errorf("joined: %+v, %v", sum, err)
	}
	w.awaitReleased(dump)
	w.awaitLabel(false)
}

// Who has one of the claims has the better right, whether its own dump is split or not.
func TestSplitDumpsShareNoClaim(t *testing.T) {
	w := newWorld(t)
	other, third := w.anotherClaim("other"), w.anotherClaim("third")
	first := w.create("first", func(d *v1alpha1.LiveDump) { splitAmong(d, other, w.claim) })
	a := w.begin(first)
	for name, change := range map[string]func(*v1alpha1.LiveDump){
		"one":   func(*v1alpha1.LiveDump) {},
		"split": func(d *v1alpha1.LiveDump) { splitAmong(d, third, w.claim) },
	} {
		rival := w.create(name, change)
		if c := w.await(rival, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonTargetInUse); !strings.Contains(c.Message, "claim "+w.claim+" is the target of LiveDump "+first.Name) {
			t.Errorf("%s ended with: %q", name, c.Message)
		}
	}
	w.must(a.report(first, gaveUp(v1alpha1.ReasonIOError, "the second device is broken")))
	c := w.await(first, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonIOError)
	if c.Message != "the second device is broken" {
		t.Errorf("message: %q", c.Message)
	}
	w.awaitReleased(first)
}

// A split dump that fails in the middle leaves no part that looks like one.
func TestSplitDumpIsCanceled(t *testing.T) {
	w := newWorld(t)
	second := w.anotherClaim("second-part")
	dump := w.create("dump", func(d *v1alpha1.LiveDump) { splitAmong(d, w.claim, second) })
	m := nodeMemory()
	release := hold(t, m)
	p := w.startAgent().runProcess(m, filepath.Join(t.TempDir(), "target"), release)
	w.runHolder(dump)
	w.awaitSession(dump, m)
	w.must(admin.Patch(w.ctx, dump.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"desiredState":"Cancel"}}`))))
	w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonCanceled)
	if m.Frozen() || m.Open() {
		t.Error("the LiveDump ended before the session did")
	}
	for _, claim := range []string{w.claim, second} {
		if _, err := kdump.Open(p.target + "." + claim); !errors.Is(err, kdump.ErrFailed) {
			t.Errorf("the part on claim %s: got %v, want %v", claim, err, kdump.ErrFailed)
		}
	}
	if r := w.get(dump).Status.Result; r != nil {
		t.Errorf("result of what failed: %+v", r)
	}
}
