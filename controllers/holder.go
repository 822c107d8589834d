// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"livedump.io/api/v1alpha1"
)

// Labels of the pods that belong to livedump.
const (
	NameLabel       = "app.kubernetes.io/name"
	ComponentLabel  = "app.kubernetes.io/component"
	nameValue       = "livedump"
	holderComponent = "holder"
)

const (
	// holderDevice is where the holder has the device, holderFolder where it has the file system; it never opens them. Of several
	// each has its number behind it.
	holderDevice = "/dev/livedump-target"
	holderFolder = "/livedump-target"
	// holderCredentials is where it has those of an object store.
	holderCredentials = "/livedump-credentials"

	// holderUser is any user but root.
	holderUser = 65532

	// holderRetry is how long a holder that failed stays, so that one that the kubelet
	// refuses is not made anew in a tight loop.
	holderRetry = 10 * time.Second
)

// holderName is the same for every look at one LiveDump, so that there is never a second
// holder, and another for a LiveDump that is created anew under the same name.
func holderName(dump *v1alpha1.LiveDump) string {
	uid := string(dump.UID)
	return "livedump-holder-" + uid[:min(len(uid), 13)]
}

// HolderLabels are those of every holder pod; the chart's network policy selects by them.
func HolderLabels() map[string]string {
	return map[string]string{NameLabel: nameValue, ComponentLabel: holderComponent}
}

func isHolder(pod *corev1.Pod) bool {
	owner := metav1.GetControllerOf(pod)
	return pod.Labels[ComponentLabel] == holderComponent && owner != nil && owner.Kind == "LiveDump" && owner.APIVersion == v1alpha1.GroupVersion.String()
}

// checkHolder says whether what the target needs is attached to the node.
func checkHolder(o *observation) finding {
	h := o.holder
	switch {
	case h == nil:
		return waiting(v1alpha1.ReasonPending, "waiting for the holder pod to be created")
	case !o.owned():
		return waiting(v1alpha1.ReasonPending, fmt.Sprintf("pod %s has the name of the holder and is not it; delete it", h.Name))
	case h.Spec.NodeName != "" && h.Spec.NodeName != o.dump.Spec.NodeName:
		// Its affinity forbids it. Whoever put it there, that node's device is not ours.
		return bad(v1alpha1.ReasonTargetWrongNode, fmt.Sprintf("holder pod %s runs on node %s", h.Name, h.Spec.NodeName))
	case !podReady(h):
		return waiting(v1alpha1.ReasonPending, fmt.Sprintf("waiting for %s: holder pod %s is %s", held(o.dump), h.Name, podTrouble(h)))
	}
	return good(v1alpha1.ReasonAttached, fmt.Sprintf("pod %s has %s", h.Name, held(o.dump)))
}

// held is what a holder keeps on the node; "" if the target needs nothing there.
func held(dump *v1alpha1.LiveDump) string {
	switch target := &dump.Spec.Target; {
	case target.Split():
		return "the claims " + claimNames(dump)
	case target.PersistentVolumeClaim != nil:
		return "the claim " + target.PersistentVolumeClaim.ClaimName
	case target.ObjectStorage != nil:
		return "the credentials of Secret " + target.ObjectStorage.CredentialsSecretName
	}
	return ""
}

// holderStep is what to do about the holder of a LiveDump that waits for it.
func holderStep(o *observation) want {
	switch {
	case held(o.dump) == "":
		return leave
	case o.holder == nil:
		// Also while the agent is at work: without a pod that has it, the claim and with it the volume could be
		// deleted, and the agent that comes after this one could not find the device.
		return ensure
	case o.owned() && podEnded(o.holder) && o.holder.DeletionTimestamp == nil && o.now.Sub(o.holder.CreationTimestamp.Time) >= holderRetry:
		return remove // the next look creates it anew
	}
	return leave
}

// holderModes says, by its name, how the holder has each claim: as it is, or, while the agent is at work and the claims are
// not looked at any more, as it was.
func holderModes(o *observation) map[string]string {
	modes := map[string]string{}
	for _, claim := range o.dump.Spec.Target.Claims() {
		was, _ := o.dump.Status.Target.OfClaim(&o.dump.Spec.Target, claim.ClaimName)
		modes[claim.ClaimName] = was.VolumeMode
	}
	for _, c := range o.claims {
		if c.claim != nil {
			modes[c.ClaimName] = modeName(c.claim.Spec.VolumeMode)
		}
	}
	return modes
}

// createHolder asks for the pod that keeps the claims attached to the node.
func (r *LiveDumpReconciler) createHolder(ctx context.Context, dump *v1alpha1.LiveDump, modes map[string]string) error {
	pod := r.holderPod(dump, modes)
	if err := controllerutil.SetControllerReference(dump, pod, r.Client.Scheme()); err != nil {
		return err
	}
	err := r.Client.Create(ctx, pod)
	if apierrors.IsAlreadyExists(err) {
		return nil // the next look sees it
	}
	return err
}

// deleteHolder deletes the pod that was seen, and no later one of the same name.
func (r *LiveDumpReconciler) deleteHolder(ctx context.Context, pod *corev1.Pod) error {
	err := r.Client.Delete(ctx, pod, client.Preconditions{UID: &pod.UID})
	if apierrors.IsConflict(err) {
		return nil
	}
	return client.IgnoreNotFound(err)
}

func (r *LiveDumpReconciler) holderPod(dump *v1alpha1.LiveDump, modes map[string]string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:      holderName(dump),
			Namespace: dump.Namespace,
			Labels:    HolderLabels(),
			Annotations: map[string]string{
				"livedump.io/livedump": dump.Name,
			},
		},
		Spec: corev1.PodSpec{
			// By affinity and not by nodeName: a claim whose class waits for its first
			// consumer is bound by the scheduler, which nodeName bypasses.
			Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
					NodeSelectorTerms: []corev1.NodeSelectorTerm{{
						MatchFields: []corev1.NodeSelectorRequirement{{
							Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{dump.Spec.NodeName},
						}},
					}},
				},
			}},
			// A sick node is the very one to be dumped, so no taint keeps the holder off or drives it out.
			Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			AutomountServiceAccountToken:  ptr.To(false),
			EnableServiceLinks:            ptr.To(false),
			RestartPolicy:                 corev1.RestartPolicyAlways,
			TerminationGracePeriodSeconds: ptr.To[int64](5),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot:   ptr.To(true),
				RunAsUser:      ptr.To[int64](holderUser),
				RunAsGroup:     ptr.To[int64](holderUser),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name:            "holder",
				Image:           r.HolderImage,
				ImagePullPolicy: r.HolderImagePullPolicy,
				Command:         []string{"/livedump-controller", "hold"},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: ptr.To(false),
					ReadOnlyRootFilesystem:   ptr.To(true),
					Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("5m"), corev1.ResourceMemory: resource.MustParse("16Mi")},
					Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")},
				},
			}},
		},
	}
	container := &pod.Spec.Containers[0]
	if storage := dump.Spec.Target.ObjectStorage; storage != nil {
		pod.Spec.Volumes = []corev1.Volume{credentials(storage.CredentialsSecretName)}
		container.VolumeMounts = []corev1.VolumeMount{{Name: v1alpha1.CredentialsVolume, MountPath: holderCredentials, ReadOnly: true}}
		return pod
	}
	for i, claim := range dump.Spec.Target.Claims() {
		number := ""
		if dump.Spec.Target.Split() {
			number = fmt.Sprintf("-%d", i+1)
		}
		name := "target" + number
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
			Name:         name,
			VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.ClaimName}},
		})
		if modes[claim.ClaimName] == v1alpha1.VolumeModeBlock {
			container.VolumeDevices = append(container.VolumeDevices, corev1.VolumeDevice{Name: name, DevicePath: holderDevice + number})
		} else {
			container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: holderFolder + number, ReadOnly: true})
		}
	}
	return pod
}

// credentials are those keys of a Secret that have to do with object storage, and no others. The agent reads them through the
// kubelet's directory of the holder, so neither it nor the controller needs a right on Secrets.
func credentials(secret string) corev1.Volume {
	source := func(optional bool, keys ...string) corev1.VolumeProjection {
		p := &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: secret}, Optional: &optional}
		for _, key := range keys {
			p.Items = append(p.Items, corev1.KeyToPath{Key: key, Path: key})
		}
		return corev1.VolumeProjection{Secret: p}
	}
	return corev1.Volume{Name: v1alpha1.CredentialsVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{
			source(false, v1alpha1.AccessKeyID, v1alpha1.SecretAccessKey),
			source(true, v1alpha1.SessionToken), source(true, v1alpha1.CACertificate),
		},
	}}}
}
