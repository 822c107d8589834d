// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/blockdev"
	"livedump.io/node-agent/engine"
)

// splitDump is a LiveDump that is split among two claims.
func splitDump() *v1alpha1.LiveDump {
	dump := newDump("d")
	dump.Spec.Target = v1alpha1.Target{PersistentVolumeClaims: []v1alpha1.PersistentVolumeClaimTarget{{ClaimName: "one"}, {ClaimName: "two"}}}
	dump.Status.Target = v1alpha1.TargetStatus{HolderPodUID: "uid", Claims: []v1alpha1.ClaimStatus{
		{ClaimName: "two", PersistentVolumeName: "pv-2", CapacityBytes: 2 << 30, VolumeMode: v1alpha1.VolumeModeFilesystem},
		{ClaimName: "one", PersistentVolumeName: "pv-1", CapacityBytes: 1 << 30, VolumeMode: v1alpha1.VolumeModeBlock},
	}}
	return dump
}

// An agent begins when the controller has told all of its target.
func TestReady(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*v1alpha1.LiveDump)
		ready  bool
	}{
		"all":               {func(*v1alpha1.LiveDump) {}, true},
		"one is not known":  {func(d *v1alpha1.LiveDump) { d.Status.Target.Claims = d.Status.Target.Claims[:1] }, false},
		"no holder":         {func(d *v1alpha1.LiveDump) { d.Status.Target.HolderPodUID = "" }, false},
		"nothing":           {func(d *v1alpha1.LiveDump) { d.Status.Target = v1alpha1.TargetStatus{} }, false},
		"fields of a claim": {func(d *v1alpha1.LiveDump) { d.Status.Target = newDump("d").Status.Target }, false},
		"one claim":         {func(d *v1alpha1.LiveDump) { *d = *newDump("d") }, true},
		"one claim, claims": {func(d *v1alpha1.LiveDump) { d.Spec.Target = newDump("d").Spec.Target }, false},
	} {
		d := splitDump()
		if c.change(d); ready(d) != c.ready {
			t.Errorf("%s: ready %v", name, !c.ready)
		}
	}
}

// Each claim is looked for where it belongs, and an error says which it is.
func TestTargetOfSeveralClaims(t *testing.T) {
	node := engine.Node{Host: blockdev.LocalHost, Log: slog.New(slog.DiscardHandler)}
	open := func(dir string, d *v1alpha1.LiveDump) error {
		tg, err := Target(node, dir, d, false)(context.Background())
		if err == nil {
			t.Fatalf("opened %s", tg.Describe())
		}
		return err
	}
	if err := open(t.TempDir(), splitDump()); !errors.Is(err, blockdev.ErrNotFound) || !strings.Contains(err.Error(), "claim one: ") || !strings.Contains(err.Error(), "pv-1") {
		t.Errorf("without anything: %v", err)
	}
	// The order is that of the spec, and what was found goes by name.
	d := splitDump()
	d.Spec.Target.PersistentVolumeClaims[0], d.Spec.Target.PersistentVolumeClaims[1] = d.Spec.Target.PersistentVolumeClaims[1], d.Spec.Target.PersistentVolumeClaims[0]
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "pods/uid/volumes/kubernetes.io~csi/pv-2/mount"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := open(dir, d); !errors.Is(err, blockdev.ErrNotMount) || !strings.Contains(err.Error(), "claim two: ") {
		t.Errorf("a folder that is no mount: %v", err)
	}
	d.Status.Target.Claims = nil
	if err := open(dir, d); !strings.Contains(err.Error(), "claim two: ") {
		t.Errorf("nothing is known of the claims: %v", err)
	}
	d.Spec.Target = v1alpha1.Target{}
	if err := open(dir, d); !strings.Contains(err.Error(), "does not know the kind of target") || engine.Reason(err) != v1alpha1.ReasonTargetNotFound {
		t.Errorf("a target of a later version: %v", err)
	}
}

// The status has each part by its claim, and claims no checksum of the whole.
func TestPartsAreReported(t *testing.T) {
	r := &engine.Report{SizeBytes: 300, PagesDumped: 7, Device: "/dev/a + /dev/b", Parts: []engine.PartReport{
		{Device: "/dev/a", SizeBytes: 100, SHA256: "aa"}, {Device: "/dev/b", SizeBytes: 200, SHA256: "bb"}}}
	p := finalPart(newPart(splitDump()), splitDump(), r, nil, "unloaded", testStart)
	want := []v1alpha1.PartResult{{ClaimName: "one", SizeBytes: 100, SHA256: "aa", Device: "/dev/a"}, {ClaimName: "two", SizeBytes: 200, SHA256: "bb", Device: "/dev/b"}}
	if p.Result == nil || !reflect.DeepEqual(p.Result.Parts, want) || p.Result.SHA256 != "" || p.Result.SizeBytes != 300 {
		t.Errorf("result %+v", p.Result)
	}
	for _, c := range p.Conditions {
		if c.Type == v1alpha1.ConditionCaptured && (c.Status != metav1.ConditionTrue || !strings.Contains(c.Message, "300 bytes in 2 parts")) {
			t.Errorf("Captured: %+v", c)
		}
	}
}

// TestCaptured says who has checked the dump, by target: nobody says of what was sent away that it was read back.
func TestCaptured(t *testing.T) {
	claim, streamed, stored := newDump("d"), newDump("d"), newDump("d")
	streamed.Spec.Target = v1alpha1.Target{Stream: &v1alpha1.StreamTarget{Address: "10.0.0.1:7000"}}
	stored.Spec.Target = v1alpha1.Target{ObjectStorage: &v1alpha1.ObjectStorageTarget{Bucket: "b"}}
	for name, c := range map[string]struct {
		dump     *v1alpha1.LiveDump
		readBack bool
		says     string
	}{
		"claim":                           {claim, true, "7 pages in 300 bytes, read back and verified"},
		"stream":                          {streamed, false, "7 pages in 300 bytes, confirmed by the receiver with the checksum of what was sent, not read back"},
		"object":                          {stored, true, "7 pages in 300 bytes, read back and verified"},
		"credentials that may only write": {stored, false, "7 pages in 300 bytes, every part compared with its checksum by the store, not read back (the credentials do not allow it)"},
	} {
		r := &engine.Report{SizeBytes: 300, PagesDumped: 7, ReadBack: c.readBack}
		p := finalPart(newPart(c.dump), c.dump, r, nil, "unloaded", testStart)
		if got := meta.FindStatusCondition(p.Conditions, v1alpha1.ConditionCaptured); got.Status != metav1.ConditionTrue || got.Message != c.says {
			t.Errorf("%s: %s %q, want %q", name, got.Status, got.Message, c.says)
		}
	}
}
