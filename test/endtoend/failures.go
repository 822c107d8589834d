// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	livedumpv1alpha1 "livedump.io/api/v1alpha1"
	"livedump.io/test/cluster"
)

// badSpecs applies specs as a user would and wants an error that names the field.
func (b *Bench) badSpecs(ctx context.Context) error {
	manifest := func(spec string) string {
		return "apiVersion: livedump.io/v1alpha1\nkind: LiveDump\nmetadata: {name: bad-spec, namespace: " + Namespace + "}\nspec: " + spec + "\n"
	}
	target := "target: {persistentVolumeClaim: {claimName: " + ClaimName + "}}"
	for _, c := range []struct{ what, manifest, says string }{
		{"no node", manifest("{" + target + "}"), "spec.nodeName"},
		{"an empty target", manifest("{nodeName: " + NodeName + ", target: {}}"), "spec.target"},
		{"an ELF vmcore in parts", manifest("{nodeName: " + NodeName + ", format: ELF, target: {persistentVolumeClaims: [{claimName: " + ClaimName + "}, {claimName: another}]}}"), "spec.format"},
		{"one claim of several", manifest("{nodeName: " + NodeName + ", target: {persistentVolumeClaims: [{claimName: " + ClaimName + "}]}}"), "spec.target.persistentVolumeClaims"},
		{"an unknown compression", manifest("{nodeName: " + NodeName + ", compression: Lz77, " + target + "}"), "spec.compression"},
		{"an unknown desired state", manifest("{nodeName: " + NodeName + ", desiredState: Pause, " + target + "}"), "spec.desiredState"},
	} {
		_, err := b.Kubectl(ctx, strings.NewReader(c.manifest), "apply", "-f", "-")
		if err == nil {
			return fmt.Errorf("a LiveDump with %s was accepted", c.what)
		}
		if !strings.Contains(err.Error(), c.says) {
			return fmt.Errorf("the error for a LiveDump with %s does not name %s: %w", c.what, c.says, err)
		}
		b.Step("  %s: %s", c.what, lineWith(err.Error(), c.says))
	}

	// A spec may not change. The node does not exist, so nothing comes of this LiveDump.
	if err := b.create(ctx, "changed-spec", "no-such-node", ClaimName); err != nil {
		return err
	}
	_, err := b.Kubectl(ctx, nil, "--namespace="+Namespace, "patch", "livedump", "changed-spec", "--type=merge",
		`--patch={"spec":{"nodeName":"`+NodeName+`"}}`)
	if err == nil || !strings.Contains(err.Error(), "immutable") {
		return fmt.Errorf("changing spec.nodeName of a LiveDump: want an error that says that it is immutable, got: %v", err)
	}
	b.Step("  a changed spec: %s", lineWith(err.Error(), "immutable"))
	return b.delete(ctx, "changed-spec")
}

// lineWith is the line of a message that says something.
func lineWith(message, says string) string {
	for line := range strings.Lines(message) {
		if strings.Contains(line, says) {
			return strings.TrimSpace(line)
		}
	}
	return message
}

func (b *Bench) create(ctx context.Context, name, node, claim string) error {
	return b.createWith(ctx, name, node, claim, nil)
}

// createWith creates a LiveDump with what more, if it is not nil, makes of its spec.
func (b *Bench) createWith(ctx context.Context, name, node, claim string, more func(*livedumpv1alpha1.LiveDumpSpec)) error {
	dump := &livedumpv1alpha1.LiveDump{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: name},
		Spec: livedumpv1alpha1.LiveDumpSpec{
			NodeName: node,
			Target:   livedumpv1alpha1.Target{PersistentVolumeClaim: &livedumpv1alpha1.PersistentVolumeClaimTarget{ClaimName: claim}},
		},
	}
	if more != nil {
		more(&dump.Spec)
	}
	if err := b.Client.Create(ctx, dump); err != nil {
		return fmt.Errorf("create LiveDump %s: %w", name, err)
	}
	return nil
}

// delete deletes a LiveDump and waits until it is gone, finalizer and all.
func (b *Bench) delete(ctx context.Context, name string) error {
	dump := &livedumpv1alpha1.LiveDump{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: name}}
	if err := b.Client.Delete(ctx, dump); err != nil {
		return fmt.Errorf("delete LiveDump %s: %w", name, err)
	}
	return cluster.Poll(ctx, "the end of the deleted LiveDump "+name, time.Minute, func(ctx context.Context) (bool, string, error) {
		_, err := b.Get(ctx, name)
		if apierrors.IsNotFound(err) {
			return true, "", nil
		}
		return false, "it is still there", err
	})
}

// badTargets: a LiveDump for each thing that can be wrong beforehand.
func (b *Bench) badTargets(ctx context.Context) error {
	untouched, err := b.untouched()
	if err != nil {
		return err
	}
	if err := b.makeBadParts(ctx); err != nil {
		return err
	}
	for _, c := range []struct {
		name, node, claim, reason, says string
		user                            string // a pod that uses the claim meanwhile
		other                           string // a claim that the dump is split with
	}{
		{name: "missing-node", node: "no-such-node", claim: ClaimName, reason: livedumpv1alpha1.ReasonNodeNotFound, says: "no-such-node"},
		{name: "arm64-node", node: "arm64-node", claim: ClaimName, reason: livedumpv1alpha1.ReasonUnsupportedNode, says: "arm64"},
		{name: "missing-claim", node: NodeName, claim: "no-such-claim", reason: livedumpv1alpha1.ReasonTargetNotFound, says: "no-such-claim"},
		{name: "small-claim", node: NodeName, claim: "small-claim", reason: livedumpv1alpha1.ReasonTargetTooSmall, says: "small-claim"},
		// Only the agent sees the device itself.
		{name: "false-capacity", node: NodeName, claim: "false-claim", reason: livedumpv1alpha1.ReasonTargetTooSmall, says: "bytes"},
		// Two volumes are one device, which the API cannot know.
		{name: "one-disk-twice", node: NodeName, claim: ClaimName, other: "twin-claim", reason: livedumpv1alpha1.ReasonTargetInUse, says: "claim twin-claim: "},
		{name: "second-claim-small", node: NodeName, claim: ClaimName, other: "false-claim", reason: livedumpv1alpha1.ReasonTargetTooSmall, says: "claim false-claim: "},
		{name: "used-claim", node: NodeName, claim: ClaimName, reason: livedumpv1alpha1.ReasonTargetInUse, says: "claim-user", user: "claim-user"},
	} {
		if c.user != "" {
			if err := b.useClaim(ctx, c.user, c.claim); err != nil {
				return err
			}
		}
		create := func() error { return b.create(ctx, c.name, c.node, c.claim) }
		if c.other != "" {
			create = func() error { return b.createSplit(ctx, c.name, c.other, nil) }
		}
		if err := create(); err != nil {
			return err
		}
		dump, err := b.AwaitEnd(ctx, c.name)
		if err != nil {
			return err
		}
		if err := expectFailed(dump, c.reason, c.says); err != nil {
			return err
		}
		if c.user != "" {
			if err := b.deletePod(ctx, Namespace, c.user); err != nil {
				return err
			}
		}
		if err := b.delete(ctx, c.name); err != nil {
			return err
		}
	}
	if err := b.AwaitCleanNode(ctx); err != nil {
		return err
	}
	return untouched()
}

func expectFailed(dump *livedumpv1alpha1.LiveDump, reason, says string) error {
	c := apimeta.FindStatusCondition(dump.Status.Conditions, livedumpv1alpha1.ConditionSucceeded)
	switch {
	case c == nil || c.Status != metav1.ConditionFalse:
		return fmt.Errorf("LiveDump %s should have failed: %s", dump.Name, summary(dump))
	case c.Reason != reason:
		return fmt.Errorf("LiveDump %s failed with the reason %s, want %s: %s", dump.Name, c.Reason, reason, c.Message)
	case !strings.Contains(c.Message, says):
		return fmt.Errorf("the message of LiveDump %s does not name %s: %s", dump.Name, says, c.Message)
	case dump.Status.Result != nil:
		return fmt.Errorf("LiveDump %s failed and has a result", dump.Name)
	case dump.Status.CompletionTime == nil:
		return fmt.Errorf("LiveDump %s failed and has no completion time", dump.Name)
	}
	return nil
}

// makeBadParts makes the nodes and claims that badTargets names.
func (b *Bench) makeBadParts(ctx context.Context) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name:   "arm64-node",
		Labels: map[string]string{corev1.LabelArchStable: "arm64", corev1.LabelOSStable: "linux", corev1.LabelHostname: "arm64-node"},
	}}
	if err := b.Client.Create(ctx, node); err != nil {
		return err
	}
	// A patch, for the controllers of nodes write to it too.
	unpatched := node.DeepCopy()
	node.Status = corev1.NodeStatus{
		Capacity:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("2Gi"), corev1.ResourceCPU: resource.MustParse("2")},
		NodeInfo:   corev1.NodeSystemInfo{Architecture: "arm64", OperatingSystem: "linux"},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}},
	}
	if err := b.Client.Status().Patch(ctx, node, client.MergeFrom(unpatched)); err != nil {
		return err
	}
	small := corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(smallTargetMiB<<20, resource.BinarySI)}
	// Both volumes are the small disk; the second claims to be as big as the target.
	big := corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(targetMiB<<20, resource.BinarySI)}
	for _, object := range []client.Object{
		localVolume("node-1-small-disk", "/dev/vdc", small, "small-claim"), blockClaim("small-claim", "node-1-small-disk", small),
		localVolume("node-1-false-disk", "/dev/vdc", big, "false-claim"), blockClaim("false-claim", "node-1-false-disk", small),
		localVolume("node-1-twin-disk", "/dev/vdb", big, "twin-claim"), blockClaim("twin-claim", "node-1-twin-disk", big),
	} {
		if err := b.Client.Create(ctx, object); err != nil {
			return fmt.Errorf("create %s: %w", object.GetName(), err)
		}
	}
	return nil
}

var diskClass, blockMode = "dump-disks", corev1.PersistentVolumeBlock

// localVolume is a disk of the node, for one claim.
func localVolume(name, device string, capacity corev1.ResourceList, claim string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: capacity, VolumeMode: &blockMode, StorageClassName: diskClass,
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: device}},
			ClaimRef:                      &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: Namespace, Name: claim},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{NodeName}}},
			}}}},
		},
	}
}

func blockClaim(name, volume string, request corev1.ResourceList) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			VolumeMode:  &blockMode, StorageClassName: &diskClass, VolumeName: volume,
			Resources: corev1.VolumeResourceRequirements{Requests: request},
		},
	}
}

// useClaim runs a pod that has a block claim attached.
func (b *Bench) useClaim(ctx context.Context, name, claim string) error {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: name},
		Spec: corev1.PodSpec{
			RestartPolicy:                corev1.RestartPolicyNever,
			AutomountServiceAccountToken: new(bool),
			Containers: []corev1.Container{{
				Name: "user", Image: cluster.PauseImage, ImagePullPolicy: corev1.PullNever,
				VolumeDevices: []corev1.VolumeDevice{{Name: "disk", DevicePath: "/dev/disk"}},
			}},
			Volumes: []corev1.Volume{{Name: "disk", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
			}}},
		},
	}
	if err := b.Client.Create(ctx, pod); err != nil {
		return fmt.Errorf("create pod %s: %w", name, err)
	}
	return cluster.Poll(ctx, "pod "+name, 2*time.Minute, func(ctx context.Context) (bool, string, error) {
		var now corev1.Pod
		if err := b.Client.Get(ctx, types.NamespacedName{Namespace: Namespace, Name: name}, &now); err != nil {
			return false, "", err
		}
		return now.Status.Phase == corev1.PodRunning, "it is " + string(now.Status.Phase), nil
	})
}

func (b *Bench) deletePod(ctx context.Context, namespace, name string) error {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	// Nothing in it needs time to end.
	if err := b.Client.Delete(ctx, pod, client.GracePeriodSeconds(1)); err != nil {
		return fmt.Errorf("delete pod %s: %w", name, err)
	}
	return cluster.Poll(ctx, "the end of pod "+name, 2*time.Minute, func(ctx context.Context) (bool, string, error) {
		err := b.Client.Get(ctx, client.ObjectKeyFromObject(pod), &corev1.Pod{})
		if apierrors.IsNotFound(err) {
			return true, "", nil
		}
		return false, "it is still there", err
	})
}

// killedAgent kills the agent's process while pages are being written and the
// workload runs. The one that the kubelet starts in its place goes on with the dump.
func (b *Bench) killedAgent(ctx context.Context) error {
	if err := b.StartWorkload(ctx); err != nil {
		return err
	}
	before, err := b.PageTables(ctx)
	if err != nil {
		return err
	}
	if err := b.create(ctx, "agent-killed", NodeName, ClaimName); err != nil {
		return err
	}
	if err := b.Follow(ctx, "agent-killed", "pages being written", func(dump *livedumpv1alpha1.LiveDump) (bool, error) {
		captured := apimeta.FindStatusCondition(dump.Status.Conditions, livedumpv1alpha1.ConditionCaptured)
		if captured != nil && captured.Status != metav1.ConditionUnknown {
			return false, fmt.Errorf("the dump was over before the agent could be killed: %s", summary(dump))
		}
		return captured != nil && dump.Status.Progress.PagesWritten > 0, nil
	}); err != nil {
		return err
	}
	if _, err := b.Guest.Run(ctx, "sh", "-c", "kill -KILL $(pidof livedump-agent)"); err != nil {
		return fmt.Errorf("kill the agent: %w", err)
	}
	b.Step("  killed the agent")
	// Whatever the thaw did to memory, the workload's checks must see it.
	counts, err := b.Workload(ctx)
	if err != nil {
		return err
	}
	if err := b.AwaitWorkload(ctx, counts); err != nil {
		return err
	}
	dump, err := b.AwaitSuccess(ctx, "agent-killed")
	if err != nil {
		return err
	}
	captured := apimeta.FindStatusCondition(dump.Status.Conditions, livedumpv1alpha1.ConditionCaptured)
	if !strings.Contains(captured.Message, "taken over") {
		return fmt.Errorf("the LiveDump does not say that another agent went on with it: %s", captured.Message)
	}
	if _, err := b.takeDump(ctx, dump, b.Target, "agent-killed.kdump"); err != nil {
		return err
	}
	if err := b.AwaitCleanNode(ctx); err != nil {
		return err
	}
	if err := b.ExpectSameTables(ctx, before); err != nil {
		return err
	}
	if err := b.Guest.CheckConsole(); err != nil {
		return err
	}

	b.Step("  the next LiveDump must succeed")
	if err := b.create(ctx, "after-kill", NodeName, ClaimName); err != nil {
		return err
	}
	if dump, err = b.AwaitEnd(ctx, "after-kill"); err != nil {
		return err
	}
	if err := ExpectSucceeded(dump); err != nil {
		return err
	}
	if _, err := b.takeDump(ctx, dump, b.Target, "after-kill.kdump"); err != nil {
		return err
	}
	return errors.Join(b.AwaitCleanNode(ctx), b.EndWorkload(ctx))
}
