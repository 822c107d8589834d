// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"livedump.io/api/v1alpha1"
)

const (
	containerName = "reader"
	devicePath    = "/dev/livedump-target"
	folderPath    = "/livedump-target"
	controller    = "/livedump-controller"

	nameLabel, nameValue           = "app.kubernetes.io/name", "livedump"
	componentLabel, componentValue = "app.kubernetes.io/component", "reader"

	unprivileged = 65532
	// diskGroup owns block devices on about every distribution.
	diskGroup = 6
)

// ReaderLabels are those of every reader pod; the chart's network policy selects by them.
func ReaderLabels() map[string]string {
	return map[string]string{nameLabel: nameValue, componentLabel: componentValue}
}

// image is what a pod is started from.
type image struct {
	name    string
	policy  corev1.PullPolicy
	secrets []corev1.LocalObjectReference
}

// findImage is the image of the controller, which has the program that reads.
func (f *Fetcher) findImage(ctx context.Context, o Options) (image, error) {
	if o.Image != "" {
		return image{name: o.Image, policy: corev1.PullIfNotPresent}, nil
	}
	var last error
	for _, namespace := range []string{o.Namespace, o.SystemNamespace} {
		list, err := f.Kube.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{LabelSelector: nameLabel + "=" + nameValue + "," + componentLabel + "=controller"})
		if err != nil {
			last = err
			continue
		}
		for _, d := range list.Items {
			for _, c := range d.Spec.Template.Spec.Containers {
				i := image{name: c.Image, policy: c.ImagePullPolicy}
				if namespace == o.Namespace {
					i.secrets = d.Spec.Template.Spec.ImagePullSecrets
				}
				return i, nil
			}
		}
	}
	err := errors.New("livedump's controller, whose image the reader pod needs, was not found: name the image with --image")
	if last != nil {
		err = fmt.Errorf("%w (%w)", err, last)
	}
	return image{}, err
}

// readerPod is the pod that has the claim. As root without any capability it may read what root owns and do nothing else that
// root may; restricted says that a policy of the namespace forbids even that.
func readerPod(o Options, dump *v1alpha1.LiveDump, s source, i image, restricted bool) *corev1.Pod {
	security := &corev1.PodSecurityContext{
		RunAsUser: ptr.To[int64](0), RunAsGroup: ptr.To[int64](0),
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	if restricted {
		security.RunAsNonRoot = ptr.To(true)
		security.RunAsUser, security.RunAsGroup = ptr.To[int64](unprivileged), ptr.To[int64](unprivileged)
		security.SupplementalGroups = []int64{diskGroup}
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "livedump-reader-",
			Namespace:    dump.Namespace,
			Labels:       ReaderLabels(),
			Annotations:  map[string]string{"livedump.io/livedump": dump.Name},
		},
		Spec: corev1.PodSpec{
			// Where the claim is; the node may be as sick as it was.
			Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			AutomountServiceAccountToken:  ptr.To(false),
			EnableServiceLinks:            ptr.To(false),
			RestartPolicy:                 corev1.RestartPolicyNever,
			TerminationGracePeriodSeconds: ptr.To[int64](1),
			// Should nobody be left to delete it.
			ActiveDeadlineSeconds: ptr.To(int64(o.PodTimeout / time.Second)),
			ImagePullSecrets:      i.secrets,
			SecurityContext:       security,
			Containers: []corev1.Container{{
				Name: containerName, Image: i.name, ImagePullPolicy: i.policy,
				Command: []string{controller, "hold"},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: ptr.To(false),
					ReadOnlyRootFilesystem:   ptr.To(true),
					Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("32Mi")},
					Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
				},
			}},
			Volumes: []corev1.Volume{{Name: "target", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: s.claim, ReadOnly: true},
			}}},
		},
	}
	c := &pod.Spec.Containers[0]
	if s.file == "" {
		c.VolumeDevices = []corev1.VolumeDevice{{Name: "target", DevicePath: devicePath}}
	} else {
		c.VolumeMounts = []corev1.VolumeMount{{Name: "target", MountPath: folderPath, ReadOnly: true}}
	}
	return pod
}

// startPod creates the reader pod and waits until it runs.
func (f *Fetcher) startPod(ctx context.Context, o Options, dump *v1alpha1.LiveDump, s source) (*corev1.Pod, error) {
	i, err := f.findImage(ctx, o)
	if err != nil {
		return nil, err
	}
	pods := f.Kube.CoreV1().Pods(dump.Namespace)
	pod, err := pods.Create(ctx, readerPod(o, dump, s, i, false), metav1.CreateOptions{})
	if apierrors.IsForbidden(err) && strings.Contains(err.Error(), "PodSecurity") {
		pod, err = pods.Create(ctx, readerPod(o, dump, s, i, true), metav1.CreateOptions{})
	}
	if err != nil {
		return nil, explain("creating the reader pod", err)
	}
	o.Say("waiting for pod %s", pod.Name)
	waiting, cancel := context.WithTimeout(ctx, o.PodWait)
	defer cancel()
	var seen string
	for {
		now, err := pods.Get(waiting, pod.Name, metav1.GetOptions{})
		switch {
		case err == nil && now.Status.Phase == corev1.PodRunning && len(now.Status.ContainerStatuses) > 0 && now.Status.ContainerStatuses[0].State.Running != nil:
			return now, nil
		case err == nil && (now.Status.Phase == corev1.PodFailed || now.Status.Phase == corev1.PodSucceeded):
			return pod, fmt.Errorf("reader pod %s ended: %s", pod.Name, trouble(now))
		case err == nil:
			seen = trouble(now)
		case ctx.Err() == nil && waiting.Err() == nil && (apierrors.IsNotFound(err) || apierrors.IsForbidden(err)):
			return pod, explain("waiting for pod "+pod.Name, err)
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-waiting.Done():
			if err := context.Cause(ctx); err != nil {
				return pod, err
			}
			return pod, fmt.Errorf("reader pod %s does not start (%s): is the claim attached to another node, or used by a pod that has it alone?", pod.Name, seen)
		}
	}
}

// trouble is why a pod does not run.
func trouble(pod *corev1.Pod) string {
	for _, c := range pod.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && w.Reason != "" {
			return strings.TrimSpace(w.Reason + " " + w.Message)
		}
		if t := c.State.Terminated; t != nil {
			return strings.TrimSpace(t.Reason + " " + t.Message)
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Status == corev1.ConditionFalse && c.Message != "" {
			return c.Message
		}
	}
	if pod.Status.Message != "" {
		return pod.Status.Message
	}
	return string(pod.Status.Phase)
}

// deletePod is done whatever happened before, also after Ctrl-C.
func (f *Fetcher) deletePod(pod *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := f.Kube.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](1), Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	if err == nil || apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("deleting pod %s, which ends by itself after its deadline: %w", pod.Name, err)
}
