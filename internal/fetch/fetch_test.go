// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"livedump.io/api/v1alpha1"
)

func succeeded() *v1alpha1.LiveDump {
	return &v1alpha1.LiveDump{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "dump", UID: "uid"},
		Spec:       v1alpha1.LiveDumpSpec{Target: v1alpha1.Target{PersistentVolumeClaim: &v1alpha1.PersistentVolumeClaimTarget{ClaimName: "claim"}}},
		Status: v1alpha1.LiveDumpStatus{
			Conditions: []metav1.Condition{{Type: v1alpha1.ConditionSucceeded, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonComplete}},
			Result:     &v1alpha1.Result{SizeBytes: 100, SHA256: strings.Repeat("a", 64)},
		},
	}
}

func TestSourceOf(t *testing.T) {
	if s, err := sourceOf(succeeded(), ""); err != nil || s.claim != "claim" || s.file != "" || s.size != 100 {
		t.Errorf("%+v, %v", s, err)
	}
	onFile := succeeded()
	onFile.Status.Target.VolumeMode = v1alpha1.VolumeModeFilesystem
	onFile.Spec.Encryption = &v1alpha1.Encryption{}
	if s, err := sourceOf(onFile, "claim"); err != nil || s.file != "dump.kdump.age" {
		t.Errorf("on a file system: %+v, %v", s, err)
	}
	for name, c := range map[string]struct {
		change func(*v1alpha1.LiveDump)
		says   string
	}{
		"new": {func(d *v1alpha1.LiveDump) { d.Status = v1alpha1.LiveDumpStatus{} }, "has not ended"},
		"running": {func(d *v1alpha1.LiveDump) {
			d.Status.Conditions[0].Status = metav1.ConditionUnknown
			d.Status.Progress.Percent = 42
		}, "42 %"},
		"failed": {func(d *v1alpha1.LiveDump) {
			d.Status.Conditions[0] = metav1.Condition{Type: v1alpha1.ConditionSucceeded, Status: metav1.ConditionFalse, Reason: "IOError", Message: "the disk is broken"}
		}, "IOError: the disk is broken"},
		"no result": {func(d *v1alpha1.LiveDump) { d.Status.Result = nil }, "no result"},
		"no sum":    {func(d *v1alpha1.LiveDump) { d.Status.Result.SHA256 = "" }, "no result"},
		"elsewhere": {func(d *v1alpha1.LiveDump) {
			d.Spec.Target = v1alpha1.Target{}
			d.Status.Result.Device = "https://store/bucket/key"
		}, "https://store/bucket/key"},
	} {
		d := succeeded()
		c.change(d)
		if _, err := sourceOf(d, ""); !errors.Is(err, ErrNoDump) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %v that says %q", name, err, ErrNoDump, c.says)
		}
	}
}

// splitDump is one that lies on two claims.
func splitDump() *v1alpha1.LiveDump {
	d := succeeded()
	d.Spec.Target = v1alpha1.Target{PersistentVolumeClaims: []v1alpha1.PersistentVolumeClaimTarget{{ClaimName: "one"}, {ClaimName: "two"}}}
	d.Status.Target.Claims = []v1alpha1.ClaimStatus{{ClaimName: "two", VolumeMode: v1alpha1.VolumeModeFilesystem}, {ClaimName: "one", VolumeMode: v1alpha1.VolumeModeBlock}}
	d.Status.Result = &v1alpha1.Result{SizeBytes: 300, Parts: []v1alpha1.PartResult{
		{ClaimName: "one", SizeBytes: 100, SHA256: strings.Repeat("1", 64)}, {ClaimName: "two", SizeBytes: 200, SHA256: strings.Repeat("2", 64)}}}
	return d
}

// A part is fetched by the name of its claim, and who names none is told what to do.
func TestSourceOfAPart(t *testing.T) {
	for claim, want := range map[string]source{
		"one": {claim: "one", size: 100, sha256: strings.Repeat("1", 64)},
		"two": {claim: "two", file: "dump.two.kdump", size: 200, sha256: strings.Repeat("2", 64)},
	} {
		if s, err := sourceOf(splitDump(), claim); err != nil || s != want {
			t.Errorf("claim %s: %+v, %v", claim, s, err)
		}
	}
	if _, err := sourceOf(splitDump(), ""); !errors.Is(err, ErrSplit) || !strings.Contains(err.Error(), "one, two") || !strings.Contains(err.Error(), "--claim") {
		t.Errorf("no claim: %v", err)
	}
	if _, err := sourceOf(splitDump(), "three"); !errors.Is(err, ErrNoDump) || !strings.Contains(err.Error(), "went to one, two") {
		t.Errorf("another claim: %v", err)
	}
	if _, err := sourceOf(succeeded(), "three"); !errors.Is(err, ErrNoDump) || !strings.Contains(err.Error(), "went to claim") {
		t.Errorf("another claim than the only one: %v", err)
	}
	without := splitDump()
	without.Status.Result.Parts = without.Status.Result.Parts[:1]
	if _, err := sourceOf(without, "two"); !errors.Is(err, ErrNoDump) || !strings.Contains(err.Error(), "no result") {
		t.Errorf("no result of a part: %v", err)
	}
	// The checksum of the whole is none of a part's.
	without.Status.Result.SHA256 = strings.Repeat("a", 64)
	if _, err := sourceOf(without, "two"); !errors.Is(err, ErrNoDump) {
		t.Errorf("a checksum of something else: %v", err)
	}
}

func TestPartGoesOn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dump")
	content := []byte(strings.Repeat("content of the dump ", 1000))
	raw := sha256.Sum256(content)
	sum := hex.EncodeToString(raw[:])
	for _, half := range [][]byte{content[:777], content[777:]} {
		p, err := openPart(file, sum)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Write(half); err != nil {
			t.Fatal(err)
		}
		if p.size == int64(len(content)) {
			if err := p.finish(file, sum); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != string(content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := openPart(file, sum); err == nil {
		t.Error("a file that is there would be overwritten")
	}

	// What an attempt at another dump left is not taken for this one; what is wrong gets no name.
	other := filepath.Join(t.TempDir(), "dump")
	p, err := openPart(other, sum)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write([]byte("damaged")); err != nil {
		t.Fatal(err)
	}
	q, err := openPart(other, strings.Repeat("b", 64))
	if err != nil || q.size != 0 {
		t.Errorf("the part of another dump: %d bytes, %v", q.size, err)
	}
	if err := p.finish(other, sum); !errors.Is(err, ErrChecksum) {
		t.Errorf("damaged: %v", err)
	}
	if _, err := os.Stat(other); !errors.Is(err, os.ErrNotExist) {
		t.Error("a damaged dump got its name")
	}
	if p, err = openPart(other, sum); err != nil || p.size != 0 {
		t.Error("a damaged part is gone on with")
	}
}

func TestReaderPod(t *testing.T) {
	for _, restricted := range []bool{false, true} {
		for _, file := range []string{"", "a/b.kdump"} {
			pod := readerPod(Options{PodTimeout: time.Hour}, succeeded(), source{claim: "claim", file: file}, image{name: "i"}, restricted)
			c, s := pod.Spec.Containers[0], pod.Spec.SecurityContext
			if *pod.Spec.ActiveDeadlineSeconds != 3600 || *pod.Spec.AutomountServiceAccountToken || pod.Spec.RestartPolicy != corev1.RestartPolicyNever {
				t.Errorf("pod %+v", pod.Spec)
			}
			if !pod.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly || (len(c.VolumeDevices) == 1) != (file == "") || (len(c.VolumeMounts) == 1) != (file != "") {
				t.Errorf("file %q: volumes %+v, container %+v", file, pod.Spec.Volumes, c)
			}
			if *c.SecurityContext.AllowPrivilegeEscalation || !*c.SecurityContext.ReadOnlyRootFilesystem || c.SecurityContext.Privileged != nil ||
				len(c.SecurityContext.Capabilities.Drop) != 1 || c.SecurityContext.Capabilities.Drop[0] != "ALL" || pod.Spec.HostPID || pod.Spec.HostNetwork {
				t.Errorf("security %+v", c.SecurityContext)
			}
			if restricted && (s.RunAsNonRoot == nil || !*s.RunAsNonRoot || *s.RunAsUser == 0) {
				t.Errorf("restricted: %+v", s)
			}
		}
	}
}
